"""Where the time of one layer goes, kernel by kernel."""

from collections.abc import Iterator
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.lines import Part
from madtp.method.keep import Coverage, keep_batch
from madtp.run.precision import autocast
from madtp.shared.layers import Guidance
from models.vit import Block

SIDES = {"dense": (keep_batch, 0.0), "pruned": (keep_batch, 3.0), "coverage": (Coverage(12), 0.7)}
CALLS, LISTED = 10, 12


def parts(device: str, small: bool) -> Iterator[Part]:
    """A base-size layer on 577 tokens, dense and by both rules, forward and, dense and pruned, backward."""
    for name in SIDES:
        for train in (False, True):
            what = "backward and forward" if train else "forward"
            yield Part(f"layer {name} {what}", partial(kernels, name, train, device, small), least=3)


def kernels(name: str, train: bool, device: str, small: bool) -> Iterator[dict]:
    """Microseconds of a call in each of the longest kernels (without a GPU: operators), and in all of them."""
    batch, tokens, width, heads = (2, 17, 64, 1) if small else (64, 577, 768, 12)
    block = Block(width, heads, 4.0, 1e-6, width, 0.0).to(device)
    x, space_dict = torch.randn(batch, tokens, width, device=device), torch.randn(100, width, device=device)
    keep, temperature = SIDES[name]

    def call() -> None:
        with torch.set_grad_enabled(train), autocast(torch.bfloat16, torch.device(device)):
            sequences = keep(x)
            guidance = Guidance.by(space_dict, temperature, align=False)
            result = block(sequences.tokens, sequences.layout, guidance)[0]
        if train:
            result.float().sum().backward()

    for _ in range(3):
        call()
    on_gpu = torch.device(device).type == "cuda"
    calls = 1 if small else CALLS
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiled:
        for _ in range(calls):
            call()
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, attribute))
    total = sum(getattr(event, attribute) for event in events) / calls
    setting = {"name": name, "train": train, "batch": batch, "tokens": tokens}
    yield setting | {"kernel": "all", "us": total, "percent": 100.0}
    for event in events[:LISTED]:
        own = getattr(event, attribute) / calls
        yield setting | {"kernel": event.key, "us": own, "percent": 100 * own / total, "calls": event.count / calls}
