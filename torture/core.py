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
_LAYOUTS = ("tests/transfer/test_layouts.py",)
_ORBAX = ("tests/files/test_orbax.py", "tests/files/test_orbax_hostile.py")
_PLANS = ("tests/transfer/test_plan.py", "tests/transfer/test_match.py", "tests/transfer/test_transfer.py")
_RULES = ("tests/averaging/test_rules.py", "tests/averaging/test_parse.py", "tests/averaging/test_profile.py")
_TORCH = ("tests/files/test_torch_pt.py",)
_OF_KERAS_WRITE = (
    "test_two_weights_of_one_place_are_refused",
    "test_a_dtype_that_keras_does_not_store_is_refused",
    "test_a_place_that_cannot_be_written_is_refused_before_anything_is_read",
    "test_what_the_system_refuses_to_write_is_an_error_and_the_old_file_stands",
    "test_a_weight_without_a_place_in_keras_files_is_refused",
    "test_one_role_is_written",
    "test_the_name_must_be_one_that_keras_takes",
)
TESTS: Mapping[str, tuple[str, ...]] = {
    "averaging/base.py": ("tests/averaging/test_rules.py", "tests/averaging/test_parse.py"),
    "averaging/bema.py": (*_RULES, "tests/test_derived.py::test_a_burn_in_that_no_rule_can_follow_is_refused"),
    "averaging/decays.py": _RULES,
    "averaging/emas.py": _RULES,
    "averaging/kernel.py": ("tests/averaging/test_kernel.py",),
    "averaging/parse.py": ("tests/averaging/test_parse.py",),
    "averaging/posthoc.py": ("tests/averaging/test_posthoc.py",),
    "averaging/rules.py": _RULES,
    "averaging/splice.py": _RULES,
    "averaging/units.py": _RULES,
    "averaging/wrappers.py": _RULES,
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
    "frameworks/exchange.py": ("tests/frameworks/test_exchange.py",),
    "frameworks/locks.py": ("tests/frameworks/test_exchange.py",),
    "frameworks/shadow_target.py": ("tests/frameworks/test_stateful.py",),
    "frameworks/stateful.py": ("tests/frameworks/test_stateful.py",),
    "manifest.py": ("tests/test_manifest.py", "tests/files/test_safetensors.py"),
    "renaming.py": ("tests/test_renaming.py",),
    "saving.py": ("tests/test_saving.py",),
    "snapshot.py": ("tests/test_snapshot.py",),
    "transfer/commit.py": ("tests/transfer/test_commit.py",),
    "transfer/layout_asked.py": (*_LAYOUTS, "tests/transfer/test_plan.py"),
    "transfer/layout_layers.py": _LAYOUTS,
    "transfer/layout_pairs.py": _LAYOUTS,
    "transfer/layout_parts.py": _LAYOUTS,
    "transfer/layout_recurrent.py": _LAYOUTS,
    "transfer/layouts.py": _LAYOUTS,
    "transfer/match.py": (
        *_PLANS, "tests/dialects/test_keras_file.py::test_the_name_of_an_outer_layer_objects_for_those_inside"
    ),
    "transfer/names.py": ("tests/dialects/test_other_names.py",),
    "transfer/places.py": ("tests/transfer/test_places.py",),
    "transfer/plan.py": (
        *_PLANS, "tests/dialects/test_keras_file.py",
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
}  # fmt: skip
# Mutants that change nothing that can be seen: module, function and text of the statement, and the reason.
EQUIVALENT: Mapping[tuple[str, str, str], str] = {
    ("transfer/commit.py", "commit", "_undo(undo, target.label, error)"): "the handler around it does it then",
    ("files/positioned.py", "_read_into", "with self._turn:"): "it is made on Windows alone",
}
