"""What a run multiplies in: float32, or mixed precision where the processor or the GPU has a unit for it."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from madtp.cost.measure import device_of
from madtp.method import processor
from madtp.shared.inference import prepared

PROCESSOR = processor.FILE
BF16_UNITS = {processor.TILES, processor.BF16}  # features of processors that multiply bf16 in hardware

logger = logging.getLogger(__name__)


def precision(amp: str, device: torch.device) -> torch.dtype:
    """The type to compute in: bf16, fp16 or, for off, float32; auto is what `settled` says.

    From now on float32 is float32 in convolutions too, where GPUs would round to ten bits.
    """
    torch.backends.cudnn.allow_tf32 = False
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}[settled(amp, device)]


def settled(amp: str, device: torch.device) -> str:
    """What auto stands for: bf16 where the device multiplies it in hardware, else off."""
    if amp != "auto":
        return amp
    return "bf16" if multiplies_bf16(device) else "off"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has a unit for bf16, by what it is: a clock would say one thing today and another later."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return not BF16_UNITS.isdisjoint(processor_features())


def processor_features() -> set[str]:
    """The features of this machine's processor; see `madtp.method.processor`."""
    return processor.features(PROCESSOR)


def announce_precision(asked: str, amp: str, device: torch.device) -> None:
    """Says on a processor what nobody asked for, and what is slower there than what it replaces."""
    if device.type != "cpu" or amp != "bf16":
        return
    if not multiplies_bf16(device):
        logger.warning("this processor has no unit for bf16 and imitates it: --amp off is faster")
    elif asked == "auto":
        logger.info("multiplying in bf16, for which this processor has a unit; --amp off is float32")


@contextmanager
def inference(model: nn.Module, dtype: torch.dtype) -> Iterator[nn.Module]:
    """The model without gradients in mixed precision of this type, its linear layers ready for it."""
    with torch.inference_mode(), autocast(dtype, device_of(model)), prepared(model, dtype):
        yield model


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager:
    """Mixed precision of this type, nothing for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
