"""The core of polyak for the mutation test: its modules, the tests that stand for each, and what changes nothing.

A file stands for those of its tests that reach the statement in question. Tests that reach it in processes of their own
are named one by one.
"""

from __future__ import annotations

from collections.abc import Mapping

_CUTS = "tests/reliability/test_durability.py::test_power_cuts_lose_nothing_that_is"
_COMMITS = ("tests/files/test_place.py", "tests/files/test_atomic.py", "tests/files/test_commits.py")
_BUNDLE = ("tests/files/test_tensorbundle.py", "tests/files/test_tensorbundle_v1.py")
_DCP = ("tests/files/test_torch_dcp.py", "tests/files/test_torch_dcp_hostile.py")
_LAYOUTS = ("tests/transfer/test_layouts.py", "tests/transfer/test_layout_trees.py")
_ORBAX = ("tests/files/test_orbax.py", "tests/files/test_orbax_hostile.py")
_PLANS = ("tests/transfer/test_plan.py", "tests/transfer/test_match.py", "tests/transfer/test_transfer.py")
_RULES = ("tests/averaging/test_rules.py", "tests/averaging/test_parse.py", "tests/averaging/test_profile.py")
_TORCH = ("tests/files/test_torch_pt.py",)
_COMMANDS = tuple(f"tests/cli/test_{name}.py" for name in ("cli", "files", "hints", "plan", "taken"))
_FITS = ("tests/keras/test_refusals.py", "tests/keras/test_loops.py", "tests/keras/test_fit.py")
_THREADS = "tests/keras/test_threads.py"
_STEPS = (*_FITS, "tests/keras/test_functions.py", "tests/keras/test_interrupts.py", _THREADS)
_OF_ONE_MOMENT = "test_what_is_written_of_a_live_average_is_of_one_moment"
_UPDATE = "tests/frameworks/test_update.py"
_DISTRIBUTED = "tests/distribution/test_distribution.py"
_OF_DATA = (
    "test_what_gives_no_statistics_is_refused_and_nothing_is_written",
    "test_one_array_for_several_inputs_is_refused",
    "test_a_tuple_as_fit_takes_it_is_refused",
    "test_endless_datasets_need_steps",
)
_OF_STORES = (
    "test_what_keras_stores_for_another_model_is_refused_and_changes_nothing",
    "test_keras_refuses_to_write_a_file_of_exchanged_weights",
)
_OF_VIEWS = (
    "test_a_model_with_a_step_of_its_own_is_refused",
    "test_a_metric_in_an_attribute_is_refused",
    "test_a_model_that_is_not_compiled_predicts_and_is_not_evaluated",
    "test_a_layer_has_neither",
    "test_who_predicts_while_another_thread_does_waits_for_it",
)
_OF_DEVICES = tuple(
    f"tests/keras/test_arrays.py::{name}"
    for name in (
        "test_an_average_follows_its_weights_to_another_device",
        "test_copies_that_have_drifted_apart_are_one_value_for_nobody",
        "test_weights_on_several_devices_are_averaged_on_the_host",
    )
)
_OF_DERIVED = (
    "test_a_snapshot_of_a_derived_average_is_of_one_moment",
    "test_a_double_average_moves_within_one_moment",
)
_OF_KERAS_WRITE = (
    "test_two_weights_of_one_place_are_refused",
    "test_a_dtype_that_keras_does_not_store_is_refused",
    "test_a_place_that_cannot_be_written_is_refused_before_anything_is_read",
    "test_what_the_system_refuses_to_write_is_an_error_and_the_old_file_stands",
    "test_a_weight_without_a_place_in_keras_files_is_refused",
    "test_one_role_is_written",
    "test_the_name_must_be_one_that_keras_takes",
)
_WRAPPED = "refuse_wrapped(self.followed(), self._followed_by_path.value.values())"
TESTS: Mapping[str, tuple[str, ...]] = {
    "averaging/base.py": ("tests/averaging/test_rules.py", "tests/averaging/test_parse.py"),
    "averaging/bema.py": (*_RULES, "tests/test_derived.py::test_a_burn_in_that_no_rule_can_follow_is_refused"),
    "averaging/decays.py": _RULES,
    "averaging/emas.py": _RULES,
    "averaging/kernel.py": ("tests/averaging/test_kernel.py",),
    "averaging/parse.py": ("tests/averaging/test_parse.py",),
    "averaging/parts.py": ("tests/averaging/test_rules.py",),
    "averaging/posthoc.py": ("tests/averaging/test_posthoc.py",),
    "averaging/rules.py": _RULES,
    "averaging/splice.py": _RULES,
    "averaging/units.py": _RULES,
    "averaging/wrappers.py": _RULES,
    "cli/average.py": _COMMANDS,
    "cli/convert.py": _COMMANDS,
    "cli/demo.py": (*_COMMANDS, "tests/demo/test_demo.py"),
    "cli/extract.py": _COMMANDS,
    "cli/options.py": _COMMANDS,
    "cli/output.py": (*_COMMANDS, "tests/cli/test_files.py::test_an_answer_that_goes_nowhere_is_not_done"),
    "cli/plan.py": _COMMANDS,
    "cli/profile.py": _COMMANDS,
    "cli/reading.py": (*_COMMANDS, "tests/cli/test_files.py::test_a_closed_standard_input_holds_no_plan"),
    "cli/synthesize.py": _COMMANDS,
    "cli/transfer.py": _COMMANDS,
    "combine/average.py": ("tests/combine/test_average.py",),
    "combine/convert.py": ("tests/combine/test_convert.py", "tests/test_renaming.py"),
    "combine/difference.py": ("tests/combine/test_difference.py",),
    "combine/soup.py": ("tests/combine/test_average.py",),
    "combine/synthesis.py": ("tests/test_posthoc_verbs.py",),
    "contents.py": ("tests/dialects/test_diffusers.py",),
    "derived.py": ("tests/test_derived.py", *(f"{_THREADS}::{name}" for name in _OF_DERIVED)),
    "demo/place.py": ("tests/demo/test_demo.py",),
    "demo/routes.py": ("tests/demo/test_demo.py",),
    "dialects/keras_file.py": ("tests/dialects/test_keras_file.py",),
    "dialects/keras_legacy.py": ("tests/dialects/test_keras_optimizer.py",),
    "dialects/keras_module.py": ("tests/keras/test_torch_module.py", "tests/dialects/test_torch_dialects.py"),
    "dialects/keras_optimizer.py": ("tests/dialects/test_keras_optimizer.py", "tests/dialects/test_keras_golden.py"),
    "file_verbs.py": (
        "tests/cli/test_taken.py", "tests/files/test_writers.py", f"{_THREADS}::{_OF_ONE_MOMENT}",
        f"{_DISTRIBUTED}::test_a_process_that_waits_for_the_first_one_has_its_receipt",
    ),
    "files/__init__.py": (
        "tests/files/test_writers.py", "tests/files/test_npz.py", "tests/files/test_tensorbundle_format.py"
    ),
    "files/ahead.py": ("tests/files/test_ahead.py",),
    "files/atomic.py": (*_COMMITS, _CUTS),
    "files/beside.py": (*_BUNDLE, "tests/files/test_keras_h5.py"),
    "files/bundle_commit.py": ("tests/files/test_commits.py", _CUTS),
    "files/bundle_entries.py": _BUNDLE,
    "files/bundle_path.py": _BUNDLE,
    "files/flax_msgpack.py": ("tests/files/test_flax_msgpack.py",),
    "files/flax_msgpack_tree.py": ("tests/files/test_flax_msgpack.py",),
    "files/flushing.py": ("tests/files/test_flushing.py",),
    "files/hdf5_floats.py": ("tests/files/test_hdf5_floats.py",),
    "files/hdf5_stream.py": (
        "tests/files/test_hdf5_stream.py",
        "tests/reliability/test_integrity.py::test_what_fuzzing_has_found_is_refused_or_read",
    ),
    "files/json_cursor.py": ("tests/files/test_json_cursor.py", "tests/files/test_safetensors.py"),
    "files/keras_archive.py": ("tests/files/test_keras_h5.py",),
    "files/keras_h5.py": ("tests/files/test_keras_h5.py", "tests/files/test_keras_write.py"),
    "files/keras_hdf5.py": ("tests/files/test_keras_h5.py", "tests/files/test_hdf5_chunks.py"),
    "files/keras_shards.py": ("tests/files/test_keras_h5.py",),
    "files/keras_write.py": tuple(f"tests/files/test_keras_write.py::{name}" for name in _OF_KERAS_WRITE),
    "files/model_folder.py": ("tests/dialects/test_diffusers.py",),
    "files/naming.py": ("tests/files/test_naming.py",),
    "files/npz.py": ("tests/files/test_npz.py", "tests/files/test_writers.py"),
    "files/orbax.py": _ORBAX,
    "files/orbax_path.py": _ORBAX,
    "files/orbax_store.py": _ORBAX,
    "files/orbax_tree.py": _ORBAX,
    "files/orbax_write.py": ("tests/files/test_orbax.py", "tests/files/test_writers.py", "tests/files/test_commits.py"),
    "files/partial.py": (*_COMMITS, _CUTS),
    "files/pinned.py": (*_ORBAX, "tests/files/test_place.py"),
    "files/place.py": (
        *_COMMITS,
        "tests/files/test_safetensors_sharded.py::test_a_list_that_a_directory_gives_to_new_files_opens_none_that_was_closed",
    ),
    "files/positioned.py": ("tests/files/test_positioned.py",),
    "files/protobuf.py": ("tests/files/test_protobuf.py", "tests/files/test_object_graph.py"),
    "files/safetensors.py": ("tests/files/test_safetensors.py", "tests/files/test_writers.py"),
    "files/safetensors_sharded.py": (
        "tests/files/test_safetensors_sharded.py", "tests/files/test_writers.py", "tests/files/test_commits.py", _CUTS
    ),
    "files/sstable.py": ("tests/files/test_sstable.py", *_BUNDLE),
    "files/tensorbundle.py": _BUNDLE,
    "files/tensorbundle_format.py": (*_BUNDLE, "tests/files/test_tensorbundle_format.py"),
    "files/tensorbundle_v1.py": (*_BUNDLE, "tests/files/test_tensorbundle_v1_hostile.py"),
    "files/torch_dcp.py": _DCP,
    "files/torch_dcp_metadata.py": _DCP,
    "files/torch_globals.py": _TORCH,
    "files/torch_legacy.py": _TORCH,
    "files/torch_pickle.py": _TORCH,
    "files/torch_pickled.py": ("tests/files/test_torch_write.py",),
    "files/torch_pt.py": (*_TORCH, "tests/files/test_torch_tar.py", "tests/files/test_torch_write.py"),
    "files/torch_storage.py": _TORCH,
    "files/torch_tar.py": ("tests/files/test_torch_tar.py", "tests/files/test_torch_tar_hostile.py"),
    "files/torch_tree.py": _TORCH,
    "files/torch_values.py": _TORCH,
    "files/torch_write.py": ("tests/files/test_torch_write.py", "tests/files/test_writers.py"),
    "files/torch_zip.py": ("tests/files/test_torch_write.py", *_TORCH),
    "files/zips.py": ("tests/files/test_zips.py", "tests/files/test_npz.py"),
    "forks.py": ("tests/test_forks.py",),
    "frameworks/adopting.py": (
        "tests/keras/test_adopting.py::test_what_cannot_be_adopted_is_refused_and_left_as_it_is",
        "tests/keras/test_adopting.py::test_what_fit_keeps_in_its_compiled_step_is_not_adopted",
    ),
    "frameworks/base.py": (
        "tests/frameworks/test_stateful.py",
        "tests/keras/test_placement.py::test_another_place_is_refused_by_name",
        "tests/keras/test_average.py::test_of_values_that_are_missing_the_first_is_named",
        f"{_THREADS}::test_values_are_of_one_moment",
        f"{_THREADS}::test_a_hard_sync_is_of_one_moment",
    ),
    "frameworks/batch_statistics.py": (
        "tests/keras/test_recalibrate.py", "tests/frameworks/test_legacy_statistics.py"
    ),
    "frameworks/company.py": (_DISTRIBUTED,),
    "frameworks/described.py": (
        "tests/frameworks/test_unfixed.py", "tests/frameworks/test_paths.py",
        f"{_UPDATE}::test_complex_weights_are_copied_and_refused_as_trainable",
        f"{_UPDATE}::test_arguments_that_cannot_be_right_are_refused",
    ),
    "frameworks/engine_jax.py": (
        "tests/keras/test_arrays.py", "tests/keras/test_placement.py", "tests/keras/test_functions.py",
        *_OF_DEVICES,
    ),
    "frameworks/exchange.py": ("tests/frameworks/test_exchange.py",),
    "frameworks/finished.py": ("tests/keras/test_finish.py::test_raw_weights_that_nobody_has_kept_are_not_made_up",),
    "frameworks/growth.py": (
        "tests/frameworks/test_stateful.py",
        "tests/keras/test_refresh.py::test_a_rule_that_leaves_all_out_is_refused",
        "tests/recipes/test_checkpoint.py::test_an_average_of_a_larger_model_is_not_restored_in_part",
    ),
    "frameworks/jax_refusals.py": ("tests/keras/test_arrays.py", *_OF_DEVICES),
    "frameworks/keras_anatomy.py": ("tests/frameworks/test_paths.py", "tests/recipes/test_checkpoint.py"),
    "frameworks/keras_data.py": tuple(f"tests/keras/test_recalibrate.py::{name}" for name in _OF_DATA),
    "frameworks/keras_moving.py": (
        "tests/keras/test_several.py::test_an_applied_average_stops_them_all",
        "tests/keras/test_interrupts.py::test_an_update_is_whole_or_has_not_begun",
        f"{_THREADS}::test_an_action_waits_while_another_thread_is_within_a_moment",
    ),
    "frameworks/keras_native.py": (
        "tests/keras/test_target.py", "tests/keras/test_arrays.py", _THREADS, "tests/keras/test_wrapped.py",
        "tests/keras/test_average.py::test_a_rule_that_starts_at_the_initial_weights_needs_them",
        "tests/keras/test_average.py::test_an_average_does_not_begin_anew_while_its_model_holds_its_values",
        "tests/keras/test_average.py::test_every_weight_needs_a_rule_and_every_glob_a_weight",
        "tests/keras/test_views.py::test_a_call_refuses_weights_that_came_after_the_average",
    ),
    "frameworks/keras_scope.py": ("tests/keras/test_average.py",),
    "frameworks/keras_statistics.py": ("tests/keras/test_recalibrate.py", "tests/keras/test_wrapped.py"),
    "frameworks/keras_stored.py": tuple(f"tests/keras/test_average.py::{name}" for name in _OF_STORES),
    "frameworks/keras_target.py": (
        "tests/keras/test_target.py", "tests/keras/test_arrays.py", *_OF_DEVICES,
        f"{_DISTRIBUTED}::test_processes_of_jax_have_one_average_bit_for_bit",
        "tests/keras/test_average.py::test_an_average_is_not_written_while_its_model_holds_its_values",
        "tests/keras/test_average.py::test_nothing_is_written_into_a_model_that_holds_averaged_values",
    ),
    "frameworks/keras_tensorflow.py": ("tests/keras/test_views.py",),
    "frameworks/keras_views.py": tuple(f"tests/keras/test_views.py::{name}" for name in _OF_VIEWS),
    "frameworks/keras_wrapped.py": ("tests/keras/test_wrapped.py",),
    "frameworks/locks.py": ("tests/frameworks/test_exchange.py",),
    "frameworks/shadow_target.py": ("tests/frameworks/test_stateful.py",),
    "frameworks/stateless.py": (
        "tests/keras/test_target.py", "tests/keras/test_arrays.py", f"{_THREADS}::test_a_call_is_of_one_moment",
        *_OF_DEVICES,
    ),
    "frameworks/stateful.py": (
        "tests/frameworks/test_stateful.py",
        "tests/recipes/test_checkpoint.py::test_an_average_of_a_larger_model_is_not_restored_in_part",
    ),
    "frameworks/tensorflow.py": (
        "tests/frameworks/test_graphs.py", "tests/frameworks/test_paths.py", "tests/test_messages.py"
    ),
    "frameworks/tensorflow_average.py": (
        "tests/frameworks/test_graphs.py", "tests/frameworks/test_stateful.py", "tests/test_messages.py",
        f"{_UPDATE}::test_a_rule_that_starts_at_the_initial_weights_needs_them",
        f"{_UPDATE}::test_every_weight_needs_a_rule_and_every_glob_a_weight",
        "tests/frameworks/test_applied.py::test_applied_has_no_meaning_inside_a_graph",
        "tests/recipes/test_checkpoint.py::test_nor_is_one_of_a_larger_model_that_is_built_after_the_restore",
        "tests/keras/test_refresh.py::test_what_a_trace_builds_has_no_first_value_to_start_from",
        "tests/keras/test_interrupts.py::test_a_reset_is_whole_or_has_not_begun",
        f"{_THREADS}::test_an_average_is_not_applied_within_another_one_s_moment_in_another_thread",
        "tests/recipes/test_checkpoint.py::test_an_average_of_a_larger_model_is_not_restored_in_part",
    ),
    "frameworks/tensorflow_binding.py": (
        "tests/frameworks/test_unfixed.py", "tests/test_messages.py", "tests/frameworks/test_stateful.py",
        f"{_UPDATE}::test_every_average_needs_a_finite_start",
    ),
    "frameworks/tensorflow_lending.py": ("tests/frameworks/test_graphs.py",),
    "frameworks/tensorflow_moving.py": (
        "tests/frameworks/test_graphs.py", "tests/frameworks/test_unfixed.py", "tests/frameworks/test_stateful.py",
        f"{_UPDATE}::test_an_update_while_an_average_is_applied_is_refused",
        f"{_THREADS}::test_an_action_waits_while_another_thread_is_within_a_moment",
        "tests/keras/test_interrupts.py::test_an_update_is_whole_or_has_not_begun",
        f"{_DISTRIBUTED}::test_each_update_counts_once_also_where_the_average_was_made_elsewhere_than_the_weights",
    ),
    "frameworks/tensorflow_placing.py": (_DISTRIBUTED,),
    "frameworks/tensorflow_state.py": ("tests/frameworks/test_stateful.py",),
    "frameworks/tensorflow_target.py": (
        "tests/frameworks/test_graphs.py", "tests/frameworks/test_stateful.py",
        "tests/frameworks/test_paths.py::test_a_variable_without_a_value_is_named",
        "tests/frameworks/test_applied.py::test_what_is_written_into_an_applied_model_is_refused",
        f"{_DISTRIBUTED}::test_statistics_are_those_of_the_first_replica_and_what_drifts_is_refused",
    ),
    "frameworks/torch.py": (
        "tests/frameworks/test_torch_target.py",
        "tests/keras/test_average.py::test_what_runs_a_keras_model_is_not_taken_for_a_module_of_pytorch",
    ),
    "frameworks/torch_target.py": ("tests/frameworks/test_torch_target.py",),
    "keras/averaging.py": (
        *_FITS, "tests/keras/test_finish.py", "tests/keras/test_functions.py", "tests/keras/test_validating.py",
        "tests/keras/test_validating_data.py",
    ),
    "keras/beside.py": _FITS,
    "keras/fitting.py": (*_FITS, "tests/keras/test_functions.py"),
    "keras/fitting_jax.py": _STEPS,
    "keras/fitting_tensorflow.py": _STEPS,
    "keras/fitting_torch.py": _STEPS,
    "keras/keeping.py": (*_FITS, "tests/keras/test_finish.py"),
    "keras/refusals.py": _FITS,
    "keras/schedule_free.py": ("tests/keras/test_actions.py",),
    "keras/switching.py": ("tests/keras/test_actions.py",),
    "keras/validating.py": ("tests/keras/test_validating.py", "tests/keras/test_validating_data.py"),
    "manifest.py": ("tests/test_manifest.py", "tests/files/test_safetensors.py"),
    "periodic.py": ("tests/test_posthoc_verbs.py",),
    "plan_verbs.py": (
        "tests/transfer/test_stored.py", "tests/transfer/test_transfer.py", "tests/cli/test_taken.py",
        f"{_THREADS}::{_OF_ONE_MOMENT}",
    ),
    "posthoc_verbs.py": ("tests/test_posthoc_verbs.py",),
    "recalibrating.py": ("tests/keras/test_recalibrate.py",),
    "renaming.py": ("tests/test_renaming.py",),
    "report/pictures.py": ("tests/report/test_pictures.py",),
    "saving.py": ("tests/test_saving.py",),
    "several.py": ("tests/keras/test_several.py::test_what_cannot_move_together_is_refused",),
    "snapshot.py": ("tests/test_snapshot.py",),
    "targets.py": ("tests/keras/test_target.py::test_what_cannot_be_a_target_is_refused",),
    "tensorflow.py": (
        "tests/recipes/test_tf1.py",
        "tests/recipes/test_saved_model.py::test_an_export_without_a_sample_asks_for_one",
        "tests/recipes/test_saved_model.py::test_an_export_is_of_an_average",
        "tests/recipes/test_saved_model.py::test_an_export_takes_no_directory_in_use",
        "tests/recipes/test_checkpoint.py::test_what_is_no_checkpoint_is_not_written",
        "tests/recipes/test_checkpoint.py::test_a_model_of_another_framework_is_in_no_checkpoint_of_tensorflow",
    ),
    "testing.py": ("tests/averaging/test_testing.py",),
    "transfer/commit.py": ("tests/transfer/test_commit.py",),
    "transfer/complete.py": (
        "tests/transfer/test_match.py", "tests/transfer/test_transfer.py::test_nothing_to_transfer_is_refused"
    ),
    "transfer/layout_asked.py": (*_LAYOUTS, "tests/transfer/test_plan.py", "tests/transfer/test_hints.py"),
    "transfer/layout_layers.py": _LAYOUTS,
    "transfer/layout_order.py": ("tests/transfer/test_layout_order.py",),
    "transfer/layout_pairs.py": _LAYOUTS,
    "transfer/layout_parts.py": _LAYOUTS,
    "transfer/layout_recurrent.py": _LAYOUTS,
    "transfer/layout_whole.py": ("tests/transfer/test_layout_whole.py",),
    "transfer/layouts.py": _LAYOUTS,
    "transfer/match.py": (
        *_PLANS, "tests/transfer/test_layout_trees.py",
        "tests/dialects/test_keras_file.py::test_the_name_of_an_outer_layer_objects_for_those_inside",
    ),
    "transfer/names.py": ("tests/dialects/test_other_names.py",),
    "transfer/places.py": ("tests/transfer/test_places.py",),
    "transfer/plan.py": (
        *_PLANS, "tests/dialects/test_keras_file.py", "tests/transfer/test_layout_trees.py",
        "tests/transfer/test_layouts.py::test_a_plan_between_layouts_is_not_stored_and_its_hint_leads_on",
    ),
    "transfer/shared.py": (
        *_PLANS, "tests/transfer/test_commit.py",
        "tests/frameworks/test_torch_target.py::test_two_values_for_a_shared_weight_are_refused",
    ),
    "transfer/stored.py": (
        "tests/transfer/test_stored.py",
        "tests/transfer/test_layouts.py::test_a_stored_plan_never_goes_between_layouts",
    ),
    "transfer/unbroken.py": ("tests/transfer/test_unbroken.py", "tests/transfer/test_commit.py"),
    "verbs.py": (
        "tests/cli/test_taken.py",
        f"{_UPDATE}::test_arguments_that_cannot_be_right_are_refused",
        "tests/recipes/test_file.py::test_the_name_of_a_file_never_promises_another_format",
        f"{_THREADS}::{_OF_ONE_MOMENT}",
    ),
    "weights.py": ("tests/test_weights.py",),
}  # fmt: skip
# What Keras runs on in the tests of a module, or of one mutant of it by its name, where that is not TensorFlow.
BACKENDS: Mapping[str | tuple[str, str, str], str] = {
    ("frameworks/keras_native.py", "fresh_to_run", _WRAPPED): "torch",
    "dialects/keras_module.py": "torch",
    "frameworks/adopting.py": "jax",
    "frameworks/jax_refusals.py": "jax",
    "frameworks/keras_moving.py": "jax",
    "frameworks/keras_native.py": "jax",
    "frameworks/keras_scope.py": "jax",
    "frameworks/keras_statistics.py": "torch",
    "frameworks/keras_target.py": "jax",
    "frameworks/keras_wrapped.py": "torch",
    "frameworks/stateless.py": "jax",
    "frameworks/torch.py": "torch",
    "frameworks/engine_jax.py": "jax",
    "keras/fitting_jax.py": "jax",
    "keras/fitting_torch.py": "torch",
}
# Mutants that change nothing that can be seen: module, function and text of the statement, and the reason.
EQUIVALENT: Mapping[tuple[str, str, str], str] = {
    ("frameworks/keras_target.py", "hold", "self._engine.refuse_traced(None)"): "the look after the write undoes it",
    ("frameworks/stateless.py", "values", "self.engine.refuse_traced(self.held.count)"): "so does each shadow's read",
    ("transfer/commit.py", "commit", "_undo(undo, target.label, error)"): "the handler around it does it then",
    ("files/positioned.py", "_read_into", "with self._turn:"): "it is made on Windows alone",
}
