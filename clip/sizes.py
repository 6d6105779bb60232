"""The sizes of a CLIP: from the shapes of its weights, and what no shape tells from its file or from what is known.

Shapes: D width.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path

from torch import Tensor

from clip.model import ACTIVATIONS, Sizes
from clip.tokenizer import CONTEXT_LENGTH, VOCABULARY
from madtp.method.errors import UserError
from madtp.shared.momentum import QUEUES
from madtp.shared.weights.architecture import mlp_ratio
from madtp.shared.weights.open_clip_models import check_names

logger = logging.getLogger(__name__)

# What no shape tells, by the keys of a configuration and by our names.
HIDDEN = {
    "activation": "activation",
    "head_width": "vision_head_width",
    "text_head_width": "transformer_head_width",
    "norm_eps": "norm_eps",
}
OPENAI = {"activation": "quick_gelu", "head_width": 64, "text_head_width": 64, "norm_eps": 1e-5}
LAION_HEADS = {1280: 80, 1408: 88, 1664: 104}  # of ViT-H, g and bigG, by the width of the image tower
AXES = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "positional_embedding": 2,
    "token_embedding.weight": 2,
    "text_projection": 2,
}  # of the weights whose shapes tell sizes
FINE_TUNED = ("space_dict", *QUEUES)  # entries of models that were made of OpenAI's by this method or for it


def sizes_of(state: dict[str, Tensor], path: str | Path) -> Sizes:
    """The sizes that a state dict's shapes tell.

    Raises:
        UserError: it is no CLIP, or one with parts that ours does not have.
    """
    if "visual.layer1.0.conv1.weight" in state:
        raise UserError(f"{path} is a CLIP with ResNet, which has no tokens to prune; use a ViT, like ViT-B-16.pt")
    check_names(state, path)
    for name, axes in AXES.items():
        if name not in state:
            raise UserError(f"{path} is no CLIP: {name} is missing; check --pretrained")
        if state[name].dim() != axes:
            shape = list(state[name].shape)
            raise UserError(f"{path} is no CLIP: {name} is {shape}, expected {axes} axes; check --pretrained")
    vision_width, _, _, patch_size = state["visual.conv1.weight"].shape
    patches = len(state["visual.positional_embedding"]) - 1
    context_length, transformer_width = state["positional_embedding"].shape
    vocab_size, embed_dim = len(state["token_embedding.weight"]), state["text_projection"].shape[1]
    return Sizes(
        embed_dim=embed_dim,
        image_resolution=math.isqrt(patches) * patch_size,
        vision_layers=depth(state, "visual.transformer."),
        vision_width=vision_width,
        vision_patch_size=patch_size,
        context_length=context_length,
        vocab_size=vocab_size,
        transformer_width=transformer_width,
        transformer_layers=depth(state, "transformer."),
        vision_mlp_ratio=ratio(state, "visual.transformer.", vision_width),
        transformer_mlp_ratio=ratio(state, "transformer.", transformer_width),
    )


def depth(state: dict[str, Tensor], tower: str) -> int:
    """The number of layers of a tower."""
    return sum(key.startswith(f"{tower}resblocks.") and key.endswith(".ln_1.weight") for key in state)


def ratio(state: dict[str, Tensor], tower: str, width: int) -> float:
    """The hidden width of a tower's MLPs over D."""
    hidden = state.get(f"{tower}resblocks.0.mlp.c_fc.bias")
    return 4.0 if hidden is None else mlp_ratio(hidden.numel(), width)


def fresh_sizes(chosen: dict | None) -> Sizes:
    """The sizes that a configuration chose for a model from scratch; those of the text follow from the tokenizer.

    Raises:
        UserError: it leaves some out.
    """
    sizes = {"image_resolution": 224, "context_length": CONTEXT_LENGTH, "vocab_size": VOCABULARY} | (chosen or {})
    absent = [field.name for field in fields(Sizes) if field.default is MISSING and field.name not in sizes]
    if absent:
        raise UserError(f"without a checkpoint (--pretrained) the config's `clip` has to say {', '.join(absent)}")
    return Sizes(**sizes)


def hidden_sizes(sizes: Sizes, content: Mapping, chosen: Mapping, path: object) -> Sizes:
    """Completes sizes by what no shape tells: as a configuration chose, as the file says, or as is known of its kind.

    Args:
        sizes: by the shapes.
        content: of the checkpoint.
        chosen: by the configuration, which may leave out what it does not choose.
        path: of the checkpoint.

    Raises:
        UserError: the widths do not fit; says what to choose.
    """
    stated = {name: value for name, value in content.get("architecture", {}).items() if name in HIDDEN}
    chosen = {name: chosen[name] for name in HIDDEN if chosen.get(name)}
    fine_tuned = not content["model"].keys().isdisjoint(FINE_TUNED)
    if sizes.vocab_size != VOCABULARY:
        words = f"{path} has {sizes.vocab_size} words and CLIP's tokenizer {VOCABULARY}"
        logger.warning("%s: texts that it cuts are others than those that the model was trained with", words)
    found = (OPENAI if fine_tuned else _known(sizes, stated | chosen, path)) | stated | chosen
    for name in sorted(chosen.keys() & stated.keys()):
        if chosen[name] != stated[name]:
            logger.warning("%s says %s %s; the configuration's %s is taken", path, name, stated[name], chosen[name])
    if found["activation"] not in ACTIVATIONS:
        known = " and ".join(ACTIVATIONS)
        raise UserError(f"{path}: its activation is {found['activation']}; those of CLIP here are {known}")
    for name, width in (("head_width", sizes.vision_width), ("text_head_width", sizes.transformer_width)):
        if width > found[name] and width % found[name]:
            way_out = f"--set {name}= says how wide they are"
            raise UserError(f"{path}: a tower of width {width} cannot have heads of {found[name]}; {way_out}")
    return replace(sizes, **{own: found[name] for name, own in HIDDEN.items()})


def _known(sizes: Sizes, said: Mapping, path: object) -> dict:
    """What is assumed of weights that do not say it, with a line about what that is."""
    laion = LAION_HEADS.get(sizes.vision_width)
    assumed = OPENAI | {"activation": "gelu", "head_width": laion} if laion else OPENAI
    if unsaid := [name for name in ("activation", "head_width", "text_head_width") if name not in said]:
        values = " ".join(f"{name}={assumed[name]}" for name in unsaid)
        whose = "LAION's of this width" if laion else "OpenAI's, while LAION's have activation=gelu"
        logger.warning("%s does not say its %s; taken as %s (--set %s)", path, " or ".join(unsaid), whose, values)
    return assumed
