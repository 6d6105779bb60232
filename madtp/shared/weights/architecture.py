"""What a checkpoint says of its model's architecture beyond the shapes of its weights, and what follows from them.

An architecture is a dict of plain values by the names that a configuration has for them:
`image_size`; of BLIP `vit`, `med_config`, `embed_dim` (of retrieval's features) and `vocabulary`; of CLIP `activation`,
`head_width`, `text_head_width` and `norm_eps`. Each may be absent.
"""

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from madtp.method.errors import UserError, excerpt
from madtp.shared.files import read_json

logger = logging.getLogger(__name__)

ENTRY = "architecture"  # of a checkpoint
TEXTS = ("activation", "vocabulary", "tokenizer")
NUMBERS = ("image_size", "embed_dim", "head_width", "text_head_width", "norm_eps")
VIT = ("embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio", "norm_eps")
MED = tuple(
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings "
    "layer_norm_eps pad_token_id".split()
)


def checked(architecture: object, path: object) -> dict:
    """The architecture that a checkpoint says, or nothing where its entry of this name is something else.

    Raises:
        UserError: it is one, with an impossible value.
    """
    known = {*TEXTS, *NUMBERS, "vit", "med_config"}
    if not (isinstance(architecture, Mapping) and all(name in known for name in architecture)):
        return {}
    for name, value in architecture.items():
        if not _fits(name, value):
            raise UserError(f"{path}: its architecture says {name} {excerpt(value)}, which no model has")
    return dict(architecture)


def _fits(name: str, value: object) -> bool:
    if name in TEXTS or (name == "vit" and isinstance(value, str)):
        return isinstance(value, str)
    if name in NUMBERS:
        return _positive(value)
    fields = VIT if name == "vit" else MED
    return isinstance(value, Mapping) and all(
        field in fields and (_positive(number) or field == "pad_token_id" and number == 0)
        for field, number in value.items()
    )


def _positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def entry(model: nn.Module) -> dict:
    """What goes into a checkpoint of a model, so that it says itself what no shape tells."""
    return {ENTRY: model.architecture} if hasattr(model, ENTRY) else {}


def of(content: Mapping) -> dict:
    """The architecture that a checkpoint says, and the image size that its positions tell."""
    stated = content.get(ENTRY, {})
    return stated if "image_size" in stated else stated | image_size(content["model"])


def image_size(state: Mapping[str, Tensor]) -> dict:
    """Pixels on a side of the images whose square grid of patches has this many positions; nothing if it is none."""
    for table, patches in (("visual_encoder.pos_embed", "visual_encoder.patch_embed.proj.weight"), CLIP_IMAGE):
        if table in state and patches in state and state[table].dim() > 1 and state[patches].dim() == 4:
            grid = math.isqrt(state[table].shape[-2] - 1)
            if grid and grid**2 == state[table].shape[-2] - 1:
                return {"image_size": grid * state[patches].shape[-1]}
    return {}


CLIP_IMAGE = ("visual.positional_embedding", "visual.conv1.weight")


def adopt(config: dict, stated: Mapping, path: object, own_size: bool = False) -> dict:
    """The configuration of a model whose weights say what it is; their architecture goes before the chosen one.

    Args:
        config: resolved.
        stated: by the checkpoint.
        path: of the checkpoint, for the log; empty for a fresh model.
        own_size: whether images get the checkpoint's size too, which may be another one since positions are resized.
    """
    adopted = {}
    if "vit" in config and "vit" in stated:
        adopted["vit"] = stated["vit"]
    if "med_config" in config and "med_config" in stated:
        adopted["med_config"] = completed(config["med_config"], stated["med_config"])
    adopted |= {"tokenizer": with_vocabulary(config, stated)["tokenizer"]}
    adopted |= {name: stated[name] for name in _unchosen(config, own_size) if name in stated}
    changed = {name: value for name, value in adopted.items() if value != config[name]}
    if changed:
        said = "; ".join(f"{name} {shown(value)}" for name, value in changed.items())
        logger.info("%s says %s", path or "a fresh model", said)
    return config | changed


def mlp_ratio(hidden: int, width: int) -> float:
    """What a width is multiplied by, and then cut to an integer, for the hidden width of an MLP."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def vit_sizes(width: int, depth: int, num_heads: int, patch_size: int, hidden: int, norm_eps: float) -> dict:
    """What `vit` says of an image tower; an MLP four times as wide as its tokens goes without saying."""
    sizes = {"embed_dim": width, "depth": depth, "num_heads": num_heads, "patch_size": patch_size, "norm_eps": norm_eps}
    return sizes if hidden == 4 * width else sizes | {"mlp_ratio": mlp_ratio(hidden, width)}


def say_resized(stated: Mapping, image_size: int, path: object, evaluate: bool) -> None:
    """Says that a model sees images of another size than it was trained with; training it at one is quite usual."""
    own = stated.get("image_size", image_size)
    if own != image_size:
        level = logging.WARNING if evaluate else logging.INFO
        logger.log(level, "%s is for images of %d pixels and gets %d: its positions are resized", path, own, image_size)


def with_vocabulary(config: dict, stated: Mapping) -> dict:
    """A configuration whose tokenizer is the checkpoint's own where its folder is not there."""
    missing = "tokenizer" in stated and not Path(config["tokenizer"]).is_dir()
    return config | {"tokenizer": stated["tokenizer"]} if missing else config


def _unchosen(config: dict, own_size: bool) -> list[str]:
    """What is the checkpoint's to say, since the configuration does not."""
    names = [name for name in ("activation", "head_width", "text_head_width") if name in config and not config[name]]
    return [*names, "image_size"] if own_size or config["image_size"] is None else names


def completed(med_config: str | Path | dict, stated: Mapping) -> str | Path | dict:
    """BERT's sizes with those of the checkpoint, or what names them where it is right already."""
    file = not isinstance(med_config, dict)
    missing = file and not Path(med_config).is_file()
    chosen = {} if missing else read_json(med_config, "med_config should name BERT's sizes") if file else med_config
    return med_config if all(chosen.get(name) == value for name, value in stated.items()) else {**chosen, **stated}


def shown(value: object) -> str:
    """A value as a configuration would show it."""
    return re.sub(r"['\"]", "", str(value))
