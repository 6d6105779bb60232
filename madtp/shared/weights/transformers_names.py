"""The names of the transformers library's weights, and ours: the one place that knows them.

A table says which name of ours stands for a name of theirs, or for all names that begin with it. `{}` is the number of
a layer. Of our names `[0]`, `[1]`, `[2]` are the thirds of one tensor (query, key and value), `^T` is transposed.
"""

import re
from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

StateDict = dict[str, Tensor]
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


def to_ours(state: StateDict, table: Table) -> tuple[StateDict, list[str]]:
    """Weights by our names, and their names that the table does not know."""
    ours, thirds, unknown = {}, {}, []
    for name, value in state.items():
        marked = _translated(name, table)
        if marked is None:
            unknown.append(name)
            continue
        mark, own = MARK.search(marked), MARK.sub("", marked)
        if mark is None:
            ours[own] = value
        elif mark[1] is None:
            ours[own] = value.T
        else:
            thirds.setdefault(own, {})[mark[1]] = value
    for own, parts in thirds.items():
        if len(parts) == 3:  # what lacks a part is missing, and whoever fits it into a model says so
            ours[own] = torch.cat([parts[place] for place in sorted(parts)])
    return ours, unknown


def without_prefix(state: StateDict, prefix: str) -> StateDict:
    """A tower's own names, where a model with a head on top has put them behind a prefix."""
    return {name.removeprefix(prefix): value for name, value in state.items()}


def modern(state: StateDict) -> StateDict:
    """Old files call the weight and the bias of a norm gamma and beta."""
    return {re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name)): value for name, value in state.items()}


def among(names: Iterable[str], parts: Iterable[str]) -> list[str]:
    """The names that are, or lie inside, none of the parts."""
    parts = tuple(parts)
    return [name for name in names if not any(name == part or name.startswith(f"{part}.") for part in parts)]


def _translated(name: str, table: Table) -> str | None:
    for pattern, own in _patterns(table):
        if match := pattern.fullmatch(name):
            *numbers, rest = match.groups(default="")
            return own.format(*numbers) + rest
    return None


@cache
def _patterns(table: Table) -> list[tuple[re.Pattern, str]]:
    return [(re.compile(re.escape(theirs).replace(r"\{\}", r"(\d+)") + r"(\..+)?"), own) for theirs, own in table]
