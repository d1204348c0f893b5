"""One of two gloo processes under FullyShardedDataParallel: what is refused of its parts, and saved of the whole."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import polyak
from polyak.errors import ModelError

RANK, FOLDER, ORIGINAL = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "original"
HOST = torch.device("cpu")
store = dist.FileStore(os.fspath(FOLDER / "rendezvous"), 2)
dist.init_process_group("gloo", store=store, rank=RANK, world_size=2, timeout=timedelta(seconds=120))


def plain(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3, bias=False)))


def parted(module: nn.Module) -> FullyShardedDataParallel:
    return FullyShardedDataParallel(module, device_id=HOST, use_orig_params=ORIGINAL)


def refused(call: object) -> str:
    try:
        call()  # type: ignore[operator]
    except ModelError as error:
        return str(error)
    return ""


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


inner = plain(0)
inner[1] = parted(inner[1])
model, given = parted(inner), plain(1)
before = refused(lambda: polyak.save(model, FOLDER / "parts.pt"))
with FullyShardedDataParallel.summon_full_params(model):
    polyak.save(model, FOLDER / "whole.pt")
loaded = plain(1)
polyak.transfer(FOLDER / "whole.pt", loaded)
with FullyShardedDataParallel.summon_full_params(model):
    polyak.transfer(plain(2), model)
written = plain(0)
with FullyShardedDataParallel.summon_full_params(model):
    polyak.transfer(model, written)
with FullyShardedDataParallel.summon_full_params(model, rank0_only=True, writeback=False):
    elsewhere = refused(lambda: polyak.snapshot(model))
second = fully_shard(plain(0), mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
parts = refused(lambda: polyak.snapshot(second))
second.unshard()
polyak.save(second, FOLDER / "second.pt")
second.reshard()
again = plain(1)
polyak.transfer(FOLDER / "second.pt", again)
print(
    json.dumps(
        {
            "refused": [before, refused(lambda: polyak.transfer(given, model))],
            "written": (FOLDER / "parts.pt").exists(),
            "names": sorted(polyak.open(FOLDER / "whole.pt")) == sorted(plain(0).state_dict()),
            "saved": same(loaded, plain(0)),
            "transferred": same(written, plain(2)),
            "rank 0 alone": elsewhere,
            "second": [parts, same(again, plain(0))],
        }
    )
)
dist.barrier()
dist.destroy_process_group()
