"""The optimizer of a model small enough to test its steps by themselves."""

import torch

from madtp.run.optimization import Optimization

OPTIMIZER = {"init_lr": 0.1, "min_lr": 0.01, "weight_decay": 0.05, "betas": [0.9, 0.98], "clip_grad": 0.0}
OPTIMIZER |= {"lr_schedule": "epoch", "warmup_steps": 0, "max_epoch": 4}


def optimization(dtype=torch.float32, accum=1, batches=6, model=None, **config):
    torch.manual_seed(0)
    return Optimization(model or torch.nn.Linear(3, 1), OPTIMIZER | config, dtype, accum, batches)
