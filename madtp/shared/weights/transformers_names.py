"""The names of the transformers library's weights, and ours: the one place that knows them.

A table says which name of ours stands for a name of theirs, or for all names that begin with it. `{}` is the number of
a layer. Of our names `[0]`, `[1]`, `[2]` are the thirds of one tensor (query, key and value), `^T` is transposed.
"""

import re
from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

from madtp.shared.weights.wrappers import StateDict

Table = tuple[tuple[str, str], ...]

MARK = re.compile(r"\[(\d)\]|\^T")


def layers(theirs: str, ours: str, pairs: dict[str, str]) -> Table:
    """The entries of a table that lie inside every layer."""
    return tuple((f"{theirs}.{{}}.{name}", f"{ours}.{{}}.{own}") for name, own in pairs.items())


# Single towers. A file has the names of old; the modules of transformers 5 have others, which a state dict shows.
IMAGE_LAYER = {
    "norm1": "norm1",
    "norm2": "norm2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention.query": "attn.qkv[0]",
    "attention.attention.key": "attn.qkv[1]",
    "attention.attention.value": "attn.qkv[2]",
    "attention.q_proj": "attn.qkv[0]",
    "attention.k_proj": "attn.qkv[1]",
    "attention.v_proj": "attn.qkv[2]",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "mlp": "mlp",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layer_scale1.lambda1": "attn.proj.scale",
    "layer_scale2.lambda1": "mlp.fc2.scale",
}
IMAGE_TOWER = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    *layers("encoder.layer", "blocks", IMAGE_LAYER),
    *layers("layers", "blocks", IMAGE_LAYER),
    ("layernorm", "norm"),
)
TEXT_TOWER = (
    ("embeddings", "embeddings"),
    ("encoder", "encoder"),
)
PREDICTION_HEAD = (("cls.predictions", "cls.predictions"),)

# Whole models.
BLIP_LAYER = {
    "layer_norm1": "norm1",
    "self_attn.qkv": "attn.qkv",
    "self_attn.projection": "attn.proj",
    "layer_norm2": "norm2",
    "mlp": "mlp",
}
BLIP = (
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
    *layers("vision_model.encoder.layers", "visual_encoder.blocks", BLIP_LAYER),
    ("vision_model.post_layernorm", "visual_encoder.norm"),
    *((name, name) for name in ("text_encoder", "text_decoder", "vision_proj", "text_proj", "itm_head")),
)
CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "self_attn.q_proj.weight": "attn.in_proj_weight[0]",
    "self_attn.k_proj.weight": "attn.in_proj_weight[1]",
    "self_attn.v_proj.weight": "attn.in_proj_weight[2]",
    "self_attn.q_proj.bias": "attn.in_proj_bias[0]",
    "self_attn.k_proj.bias": "attn.in_proj_bias[1]",
    "self_attn.v_proj.bias": "attn.in_proj_bias[2]",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
CLIP = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
    ("vision_model.pre_layrnorm", "visual.ln_pre"),
    *layers("vision_model.encoder.layers", "visual.transformer.resblocks", CLIP_LAYER),
    ("vision_model.post_layernorm", "visual.ln_post"),
    ("visual_projection.weight", "visual.proj^T"),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    *layers("text_model.encoder.layers", "transformer.resblocks", CLIP_LAYER),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_projection.weight", "text_projection^T"),
    ("logit_scale", "logit_scale"),
)


def to_ours(state: StateDict, table: Table) -> tuple[StateDict, list[str]]:
    """Weights by our names, and their names that the table does not know."""
    ours, thirds, unknown = {}, {}, []
    for name, value in state.items():
        found = _found(name, table)
        if found is None:
            unknown.append(name)
            continue
        mark, own = MARK.search(found), MARK.sub("", found)
        if mark is None:
            ours[own] = value
        elif mark[1] is None:
            ours[own] = value.T
        else:
            thirds.setdefault(own, {})[mark[1]] = value
    for own, parts in thirds.items():
        alike = len({value.shape for value in parts.values()}) == 1
        if len(parts) == 3 and alike:  # what lacks a part is missing, and whoever fits it into a model says so
            ours[own] = torch.cat([parts[place] for place in sorted(parts)])
    return ours, unknown


def to_theirs(state: StateDict, table: Table) -> StateDict:
    """Weights by their names, each with memory of its own; what the table does not know stays behind."""
    theirs = {}
    for mark in ("", "[0]", "[1]", "[2]", "^T"):
        turned = tuple((own.replace(mark, ""), their) for their, own in table if _mark(own) == mark)
        for name, value in state.items():
            if their := _found(name, turned):
                theirs[their] = _part(value, mark).clone(memory_format=torch.contiguous_format)
    return theirs


def without_prefix(state: StateDict, prefix: str) -> StateDict:
    """A tower's own names, where a model with a head on top has put them behind a prefix."""
    return {name.removeprefix(prefix): value for name, value in state.items()}


def modern(state: StateDict) -> StateDict:
    """Old files call the weight and the bias of a norm gamma and beta."""
    return {re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name)): value for name, value in state.items()}


def outside(names: Iterable[str], parts: tuple[str, ...]) -> list[str]:
    """The names that neither are one of the parts nor lie inside one."""
    return [name for name in names if not any(name == part or name.startswith(f"{part}.") for part in parts)]


def _mark(own: str) -> str:
    found = MARK.search(own)
    return found[0] if found else ""


def _part(value: Tensor, mark: str) -> Tensor:
    """What a mark stands for of a tensor of ours."""
    if mark == "^T":
        return value.T
    return value.chunk(3)[int(mark[1])] if mark else value


def _found(name: str, table: Table) -> str | None:
    """The right name for a left one, with its numbers and what comes behind."""
    for pattern, other in _patterns(table):
        if match := pattern.fullmatch(name):
            *numbers, rest = match.groups(default="")
            return other.format(*numbers) + rest
    return None


@cache
def _patterns(table: Table) -> list[tuple[re.Pattern, str]]:
    return [(re.compile(re.escape(left).replace(r"\{\}", r"(\d+)") + r"(\..+)?"), right) for left, right in table]
