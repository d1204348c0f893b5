"""One of two gloo processes that save to a path of their own each, as live objects and as copies."""

from __future__ import annotations

import json
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import keras
import torch
import torch.distributed as dist

import polyak
from polyak.frameworks import company

RANK, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
store = dist.FileStore(os.fspath(FOLDER / "rendezvous"), 2)
dist.init_process_group("gloo", store=store, rank=RANK, world_size=2, timeout=timedelta(seconds=120))

company.PATIENCE, company.SILENCE = 1.0, 0.25
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
average = polyak.track(model, "ema:0.9,start=copy")
average.update()
sources = {"module": torch.nn.Linear(2, 2), "model": model, "average": average}
said = {}
for name, source in sources.items():
    path, failed = FOLDER / f"{name}_{RANK}.safetensors", ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            polyak.save(source, path)
        except polyak.PolyakError as error:
            failed = str(error)
    told = [(w.category.__name__, str(w.message), Path(w.filename).name) for w in caught]
    receipt = polyak.save(polyak.snapshot(source), FOLDER / f"copy of {path.name}")
    said[name] = {"failed": failed, "told": told, "moved": len(receipt.moved)}
print(json.dumps(said))
dist.barrier()
dist.destroy_process_group()
