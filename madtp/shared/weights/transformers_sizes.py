"""What config.json of the transformers library says of a model's sizes, and what ours cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from madtp.method.errors import UserError, excerpt
from madtp.shared.weights.folders import CONFIG, read_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

IMAGE = {"dinov2": "Dinov2Model", "vit": "ViTModel"}
TEXT = {"bert": "BertModel"}
TOWERS = IMAGE | TEXT
SIZES = "hidden_size num_hidden_layers num_attention_heads intermediate_size patch_size image_size"


def read_sizes(folder: str | Path, known: Mapping[str, str]) -> PretrainedConfig:
    """config.json, completed by the library's own defaults.

    Args:
        folder: with the file.
        known: the classes by the model_type that is wanted.

    Raises:
        UserError: it is of another type, not as the library reads it, or of a size that is none.
    """
    from transformers import AutoConfig  # only now, since it takes seconds and most checkpoints do without

    values = read_config(folder)
    if (kind := values["model_type"]) not in known:
        wanted = " or ".join(known.values())
        raise UserError(f"{folder} is a model of type {excerpt(kind)}; here a {wanted} is needed, see its {CONFIG}")
    try:
        config = AutoConfig.for_model(**values)
    except Exception as error:  # versions of the library differ in what they check, and in what they raise
        raise UserError(f"{Path(folder) / CONFIG}: {error}; take the file that belongs to the weights") from error
    for part in (config, *(getattr(config, tower, None) for tower in ("vision_config", "text_config"))):
        for name in SIZES.split():
            size = getattr(part, name, 1)
            refuse(isinstance(size, int) and size < 1, folder, f"{name} {size}", "a model has one at least")
    return config


def refuse(wrong: bool, folder: str | Path, found: str, way_out: str) -> None:
    """Refuses what config.json says and ours cannot be, where that is so."""
    if wrong:
        raise UserError(f"{Path(folder) / CONFIG}: {found} is not supported, {way_out}; choose another model")


def side(size: int | Sequence[int], folder: str | Path) -> int:
    """Pixels on a side of a square."""
    sides = {size} if isinstance(size, int) else set(size)
    refuse(len(sides) != 1, folder, f"a size of {size}", "ours are squares")
    return sides.pop()
