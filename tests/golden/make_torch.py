"""Writes the golden files in ``torch*/`` with the real tools. Run it by hand in an environment that has them.

Beside each file ``NAME.pt`` lies ``NAME.npz``: what the tool itself holds, under ``raw/...`` and ``average/...``
(or, for files without roles, under the paths in the file). Extended dtypes are stored as unsigned integers of the
same width, under ``NAME|dtype``.
"""

from __future__ import annotations

import argparse
import copy
import importlib.abc
import importlib.machinery
import importlib.metadata
import io
import json
import pathlib
import sys
import tempfile
import types
import zipfile
import zlib

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

HERE = pathlib.Path(__file__).resolve().parent / "torch"
TOOLS = ("torch", "timm", "ema-pytorch", "torch-ema", "lightning", "mmengine", "diffusers", "numpy")
_WIDTH = {1: torch.uint8, 2: torch.int16}


class Net(nn.Module):
    """Small, with a BatchNorm, so that there are buffers and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 2)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).mean(-1))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 2, 5)).square().sum().backward()
    optimizer.step()


def trained(follow, steps: int = 3):
    """A model and what follows it after some real steps."""
    model = net()
    followed = follow(model)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(steps):
        step(model, optimizer)
        followed[1]()
    return model, followed[0], optimizer


def numpy_of(tensor: torch.Tensor) -> tuple[str, np.ndarray]:
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    try:
        return "", tensor.numpy()
    except TypeError:
        name = str(tensor.dtype).removeprefix("torch.")
        shape = tuple(tensor.shape)
        raw = tensor.reshape(-1).view(torch.uint8).numpy()
        return f"|{name}", raw.view(f"u{tensor.element_size()}").reshape(shape)


def expected(name: str, **roles) -> None:
    arrays = {}
    for role, tensors in roles.items():
        for key, tensor in tensors.items():
            suffix, array = numpy_of(tensor)
            arrays[(f"{role}/{key}" if role != "all" else key) + suffix] = array
    np.savez_compressed(HERE / f"{name}.npz", **arrays)


def write(name: str, value, suffix: str = ".pt", **options) -> None:
    torch.save(value, HERE / f"{name}{suffix}", **options)


def kinds() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    tensors = {f"dtype.{d}": torch.randn(3, 2).mul(5).to(d) for d in (torch.float16, torch.bfloat16, torch.float64)}
    for d in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz):
        tensors[f"dtype.{d}"] = torch.randn(3, 2).to(d)
    for d in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64):
        tensors[f"dtype.{d}"] = torch.arange(6).reshape(2, 3).to(d)
    tensors["dtype.bool"] = torch.tensor([True, False, True])
    tensors["dtype.complex64"] = torch.randn(3, dtype=torch.complex64)
    tensors["dtype.complex128"] = torch.randn(3, dtype=torch.complex128)
    tensors["conjugate"] = torch.randn(3, dtype=torch.complex64).conj()
    tensors["negative"] = torch.randn(3, dtype=torch.complex64).conj().imag
    return tensors | {
        "shared.whole": base, "shared.slice": base[1, 1:], "transposed": base.permute(2, 0, 1),
        "every.second": base[..., ::2],
        "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "parameter": nn.Parameter(torch.randn(2, 2)), "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
    }  # fmt: skip


def plain_files() -> None:
    tensors = {k.replace("torch.", ""): v for k, v in kinds().items()}
    for name, options in (("kinds", {}), ("kinds_legacy", {"_use_new_zipfile_serialization": False})):
        write(name, tensors, **options)
        expected(name, all=tensors)
    write("protocol5", tensors, pickle_protocol=5)
    expected("protocol5", all=tensors)
    state = net().state_dict()
    for name, options in (("plain", {}), ("plain_legacy", {"_use_new_zipfile_serialization": False})):
        write(name, state, **options)
        expected(name, raw=state)
    write("wrapped", {f"module._orig_mod.{k}": v for k, v in state.items()})
    expected("wrapped", raw=state)
    odd = {"q": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "sparse": torch.eye(2).to_sparse()}
    write("not_read", {"a": torch.ones(2), **odd})
    expected("not_read", all={"a": torch.ones(2)})
    write("module", {"model": net()})
    expected("module", raw=state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(HERE / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr("some/where/" + info.filename, old.read(info))
    expected("deflated", raw=state)


def averaged_files() -> None:
    model, ema, optimizer = trained(follow_averaged(multi_avg_fn=get_ema_multi_avg_fn(0.9)))
    average = copy.deepcopy(ema.module.state_dict())
    write("averaged_model", ema.state_dict())
    expected("averaged_model", average=average)
    both = {"model": model.state_dict(), "swa": ema.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    write("averaged_model_both", both)
    expected("averaged_model_both", raw=model.state_dict(), average=average)
    twins = {"model": model.state_dict(), "model_ema": average, "optimizer": optimizer.state_dict(), "step": 3}
    write("own_ema", twins)
    expected("own_ema", raw=model.state_dict(), average=average)
    write("ema_0.9999_000003", average)
    expected("ema_0.9999_000003", average=average)


def follow_averaged(**options):
    def follow(model):
        ema = AveragedModel(model, **options)
        return ema, lambda: ema.update_parameters(model)

    return follow


class AnyName(type):
    """A class that has every attribute."""

    def __getattr__(cls, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return name


class NoVision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A stand-in for torchvision: timm imports it for image models, and its wheel does not fit every build of torch."""

    def find_spec(self, name, path=None, target=None):
        found = name.split(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if found else None

    def create_module(self, spec):
        class Module(types.ModuleType):
            def __getattr__(self, name):
                if name.startswith("__"):
                    raise AttributeError(name)
                return AnyName(name, (nn.Module,), {})

        return Module(spec.name)

    def exec_module(self, module):
        pass


def timm_files() -> None:
    sys.meta_path.append(NoVision())
    from timm.utils.checkpoint_saver import CheckpointSaver
    from timm.utils.model_ema import ModelEmaV3

    def follow(model):
        ema = ModelEmaV3(model, decay=0.9)
        return ema, lambda: ema.update(model)

    model, ema, optimizer = trained(follow)
    args = argparse.Namespace(model="net", model_ema_decay=0.9, output=pathlib.Path("out"))
    model.default_cfg = {}
    with tempfile.TemporaryDirectory() as folder:
        saver = CheckpointSaver(model, optimizer, args, ema, checkpoint_dir=folder, recovery_dir=folder)
        saver.save_checkpoint(2, metric=np.float64(0.5))
        (HERE / "timm.pt").write_bytes((pathlib.Path(folder) / "last.pth.tar").read_bytes())
    expected("timm", raw=model.state_dict(), average=ema.module.state_dict())


def ema_pytorch_files() -> None:
    from ema_pytorch import EMA

    for name, online in (("ema_pytorch", True), ("ema_pytorch_alone", False)):

        def follow(model, online=online):
            ema = EMA(model, beta=0.9, update_after_step=0, update_every=1, include_online_model=online)
            return ema, ema.update

        model, ema, _ = trained(follow)
        write(name, ema.state_dict())
        sets = {"average": ema.ema_model.state_dict()} | ({"raw": model.state_dict()} if online else {})
        expected(name, **sets)


def torch_ema_files() -> None:
    from torch_ema import ExponentialMovingAverage

    def follow(model):
        ema = ExponentialMovingAverage(model.parameters(), decay=0.9)
        return ema, ema.update

    model, ema, _ = trained(follow)
    names = [n for n, _ in model.named_parameters()]
    write("torch_ema", ema.state_dict())
    expected("torch_ema", average={f"#{i}": p for i, p in enumerate(ema.shadow_params)})
    write("torch_ema_both", {"model": model.state_dict(), "ema": ema.state_dict()})
    average = model.state_dict() | dict(zip(names, ema.shadow_params, strict=True))
    expected("torch_ema_both", raw=model.state_dict(), average=average)


def diffusers_files() -> None:
    from diffusers.training_utils import EMAModel

    def follow(model):
        ema = EMAModel(model.parameters(), decay=0.9)
        return ema, lambda: ema.step(model.parameters())

    _, ema, _ = trained(follow)
    write("diffusers", ema.state_dict())
    expected("diffusers", average={f"#{i}": p for i, p in enumerate(ema.shadow_params)})


def lightning_files() -> None:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import EMAWeightAveraging

    class Task(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch, index):
            return self.net(batch[0]).square().sum()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.1)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 2, 5)), batch_size=4)
    callback, task = EMAWeightAveraging(decay=0.9, update_every_n_steps=1, update_starting_at_step=0), Task()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=2, callbacks=[callback], logger=False, default_root_dir=folder, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        held = {}

        class Keep(pl.Callback):
            def on_train_end(self, trainer, module):
                held["raw"] = copy.deepcopy(module.state_dict())
                held["average"] = copy.deepcopy(callback._average_model.module.state_dict())
                trainer.save_checkpoint(HERE / "lightning.ckpt")

        trainer.callbacks.insert(0, Keep())
        trainer.fit(task, data)
    without_place("lightning.ckpt", folder)
    expected("lightning", **held)


def mmengine_files() -> None:
    from mmengine.hooks import EMAHook
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Task(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x, mode="tensor"):
            return {"loss": self.net(x).square().sum()}

        def train_step(self, data, optim_wrapper):
            losses = self(data[0])
            optim_wrapper.update_params(losses["loss"])
            return losses

    hook, task = EMAHook(momentum=0.1), Task()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 2, 5)), batch_size=4)
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            model=task, work_dir=folder, train_dataloader=data, train_cfg={"by_epoch": True, "max_epochs": 1},
            optim_wrapper={"optimizer": {"type": "Adam", "lr": 0.1}}, custom_hooks=[hook], experiment_name="golden",
            default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1, "save_optimizer": False}},
        )  # fmt: skip
        runner.train()
        raw, average = task.state_dict(), hook.ema_model.module.state_dict()
        (HERE / "mmengine.pt").write_bytes((pathlib.Path(folder) / "epoch_1.pth").read_bytes())
    without_place("mmengine.pt", folder)
    expected("mmengine", raw=raw, average=average)


def without_place(name: str, folder: str) -> None:
    """Take the folder that a tool wrote into its file out of it again: same length, and the zip's checksums mended."""
    path = HERE / name
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        texts = {i: archive.read(i) for i in archive.infolist()}
    for info, text in texts.items():
        neutral = text.replace(folder.encode(), b"run".ljust(len(folder), b"_"))
        if neutral != text:
            data = data.replace(text, neutral)
            data = data.replace(info.CRC.to_bytes(4, "little"), zlib.crc32(neutral).to_bytes(4, "little"))
    path.write_bytes(data)


def lit_ema_files() -> None:
    """Stable Diffusion's LitEma in a few lines: its repository is no package. Names and update as it has them."""
    inner = net()
    names = {n: n.replace(".", "") for n, _ in inner.named_parameters()}
    shadow = {n: p.detach() * 0.5 for n, p in inner.named_parameters()}
    state = {f"model.{k}": v for k, v in inner.state_dict().items()} | {"first_stage_model.w": torch.ones(2)}
    ema = {f"model_ema.{names[n]}": p for n, p in shadow.items()}
    ema |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}
    write("lit_ema", {"state_dict": state | ema, "global_step": 7}, ".ckpt")
    expected("lit_ema", raw=state, average=state | {f"model.{n}": p for n, p in shadow.items()})


def main() -> None:
    HERE.mkdir(exist_ok=True)
    own = (plain_files, averaged_files, lit_ema_files)
    tools = (ema_pytorch_files, torch_ema_files, diffusers_files, lightning_files, mmengine_files, timm_files)
    for make in (*own, *tools):
        try:
            make()
        except ImportError as error:
            print(f"{make.__name__}: left out, {error}", file=sys.stderr)
    found = {}
    for tool in TOOLS:
        try:
            found[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            continue
    (HERE / "versions.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
