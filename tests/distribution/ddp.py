"""One of two gloo processes under DistributedDataParallel: a Keras model on PyTorch and its average in each."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import keras
import numpy as np
import torch
import torch.distributed as dist

import polyak
from polyak.manifest import digest

RANK, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
store = dist.FileStore(os.fspath(FOLDER / "rendezvous"), 2)
dist.init_process_group("gloo", store=store, rank=RANK, world_size=2, timeout=timedelta(seconds=120))

keras.utils.set_random_seed(RANK)  # DistributedDataParallel hands out the weights of the first process
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
model(np.zeros((1, 4), np.float32))
replica = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(replica.parameters(), 0.01)
average = polyak.track(model, "ema:0.9,start=copy")
rng = np.random.default_rng(0)
x = rng.standard_normal((64, 4)).astype(np.float32)
y = x.sum(1, keepdims=True)
for i in range(8):
    rows = slice(8 * i + 4 * RANK, 8 * i + 4 * RANK + 4)
    optimizer.zero_grad()
    ((replica(torch.from_numpy(x[rows])) - torch.from_numpy(y[rows])) ** 2).mean().backward()
    optimizer.step()
    average.update()
receipt = polyak.save(average, FOLDER / "average.safetensors")  # in both: the first writes
print(
    json.dumps(
        {
            "count": average.count,
            "digests": {path: digest(value) for path, value in average.values().items()},
            "receipt": {m.target: m.digest for m in receipt.moved},
            "file": (FOLDER / "average.safetensors").stat().st_ino,
        }
    )
)
dist.barrier()
dist.destroy_process_group()
