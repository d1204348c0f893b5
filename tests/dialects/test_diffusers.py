"""A model's folder of diffusers: the configuration says whether it holds the average."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import polyak
from polyak.errors import AmbiguousRole, DamagedFile, UnknownFormat

WEIGHTS = {"conv_in.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "conv_in.bias": np.float32([1, 2])}
# What EMAModel.save_pretrained adds to the model's own configuration.
SETTINGS = {"decay": 0.9999, "min_decay": 0.0, "optimization_step": 120, "update_after_step": 0,
            "use_ema_warmup": False, "inv_gamma": 1.0, "power": 0.6667}  # fmt: skip


def folder(path: Path, **settings: Any) -> Path:
    path.mkdir()
    save_file(WEIGHTS, path / "diffusion_pytorch_model.safetensors")
    (path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", "sample_size": 8, **settings}))
    return path


def test_a_folder_with_the_settings_of_an_average_holds_one(tmp_path: Path) -> None:
    held = polyak.open(folder(tmp_path / "unet_ema", **SETTINGS))
    assert held.roles == ("average",)
    assert held.manifest.tool == "diffusers"
    assert "optimization_step = 120" in held.manifest.evidence[0]
    for name, value in WEIGHTS.items():
        assert held[name].tobytes() == value.tobytes()


def test_a_folder_of_shards_holds_one_too(tmp_path: Path) -> None:
    place = folder(tmp_path / "unet_ema", **SETTINGS)
    (place / "diffusion_pytorch_model.safetensors").unlink()
    index: dict[str, Any] = {"metadata": {"total_size": 32}, "weight_map": {}}
    for i, (name, value) in enumerate(WEIGHTS.items(), 1):
        shard = f"diffusion_pytorch_model-{i:05}-of-00002.safetensors"
        save_file({name: value}, place / shard)
        index["weight_map"][name] = shard
    (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    held = polyak.open(place)
    assert held.roles == ("average",)
    assert held["conv_in.weight"].tobytes() == WEIGHTS["conv_in.weight"].tobytes()


@pytest.mark.parametrize("end", [".safetensors", ".bin"])
def test_its_file_of_weights_is_the_average_by_its_own_path(end: str, tmp_path: Path) -> None:
    place = folder(tmp_path / "unet_ema", **SETTINGS)
    whole = place / "diffusion_pytorch_model.safetensors"
    if end == ".bin":
        torch = pytest.importorskip("torch")
        whole.unlink()
        torch.save({n: torch.tensor(v) for n, v in WEIGHTS.items()}, whole.with_suffix(end))
    held = polyak.open(whole.with_suffix(end))
    assert (held.roles, held.manifest.tool) == (("average",), "diffusers")
    assert {n: held[n].tolist() for n in held} == {n: v.tolist() for n, v in WEIGHTS.items()}
    raw = folder(tmp_path / "unet") / "diffusion_pytorch_model.safetensors"
    with pytest.raises(AmbiguousRole, match="expected members of one role"):
        polyak.average([whole.with_suffix(end), raw])


def test_its_index_of_shards_is_the_average_by_its_own_path(tmp_path: Path) -> None:
    place = folder(tmp_path / "unet_ema", **SETTINGS)
    shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
    (place / "diffusion_pytorch_model.safetensors").rename(place / shard)
    index = place / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(WEIGHTS, shard)}))
    assert polyak.open(index).roles == ("average",)


@pytest.mark.parametrize(("precision", "role"), [("fp16", "average"), ("bf16", "average"), ("non_ema", "raw")])
def test_a_file_of_another_precision_is_what_its_folder_says(precision: str, role: str, tmp_path: Path) -> None:
    place = folder(tmp_path / "unet_ema", **SETTINGS)
    whole = place / "diffusion_pytorch_model.safetensors"
    assert polyak.open(whole.rename(whole.with_suffix(f".{precision}.safetensors"))).roles == (role,)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]"])
def test_a_file_beside_something_else_called_a_configuration_is_read(content: bytes, tmp_path: Path) -> None:
    place = folder(tmp_path / "unet")
    (place / "config.json").write_bytes(content)
    assert polyak.open(place / "diffusion_pytorch_model.safetensors").roles == ("raw",)


def test_a_name_of_weights_on_something_else_deceives_nobody(tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", **WEIGHTS)
    (tmp_path / "model.npz").rename(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    assert polyak.open(tmp_path / "model.safetensors").roles == ("raw",)


@pytest.mark.parametrize(
    ("file", "config"),
    [
        ("model.fp16.safetensors", "config.json"),
        ("diffusion_pytorch_model.non_ema.safetensors", "config.json"),
        ("adapter_model.safetensors", "adapter_config.json"),
        ("model.safetensors", ""),
    ],
)
def test_a_folder_that_does_not_say_which_file_is_meant_names_what_it_has(
    file: str, config: str, tmp_path: Path
) -> None:
    save_file(WEIGHTS, tmp_path / file)
    if config:
        (tmp_path / config).write_text("{}")
    with pytest.raises(UnknownFormat, match=f"which of its files is meant: {file}") as caught:
        polyak.open(tmp_path)
    assert caught.value.hint == f"open the one that is meant, such as {str(tmp_path / file)!r}"
    assert set(polyak.open(tmp_path / file)) == set(WEIGHTS)


def test_a_folder_with_weights_and_shards_is_refused(tmp_path: Path) -> None:
    """One of the two is left over, and tools disagree about which they load."""
    place = folder(tmp_path / "unet")
    whole = place / "diffusion_pytorch_model.safetensors"
    shards = place / "diffusion_pytorch_model.safetensors.index.json"
    shards.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(UnknownFormat, match="expected one file of weights, received") as caught:
        polyak.open(place)
    assert repr(str(whole)) in str(caught.value)
    assert repr(str(shards)) in str(caught.value)
    assert set(polyak.open(whole)) == set(WEIGHTS)


def test_the_folder_of_the_model_does_not_say(tmp_path: Path) -> None:
    held = polyak.open(folder(tmp_path / "unet"))
    assert held.roles == ("raw",)
    assert held.manifest.confidence == "unknown"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"[" * 100_000, b"{}".ljust(2_000_001)])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    place = folder(tmp_path / "unet")
    (place / "config.json").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"config.json.*expected a configuration in JSON"):
        polyak.open(place)


def test_numbers_that_python_writes_into_a_configuration_are_read(tmp_path: Path) -> None:
    """As transformers does: ``"time_step_limit": [0.0, Infinity]``."""
    held = polyak.open(folder(tmp_path / "mamba", time_step_limit=[0.0, float("inf")], dropout=float("nan")))
    assert held["conv_in.bias"].tolist() == [1, 2]


def test_shards_of_torch_save_are_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = {"metadata": {}, "weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(UnknownFormat, match=r"shards of torch.save, which 'pytorch_model[.]bin[.]index[.]json' lists"):
        polyak.open(tmp_path)
