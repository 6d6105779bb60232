"""What training tools wrap a model's weights in: entries of a dict, and parts of names."""

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from madtp.method.errors import UserError

StateDict = dict[str, Tensor]

ENTRIES = ("model", "state_dict", "model_state_dict", "module", "net")  # which may lie inside each other
# Of data parallelism, `torch.compile`, FSDP and activation checkpointing: they may stand anywhere in a name.
PARTS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# A weight that every BLIP, CLIP or model of transformers has: what stands before it is of classes around the model.
IMAGE_TOWERS = ("visual_encoder.patch_embed.proj.weight", "visual.conv1.weight", "vision_model.post_layernorm.weight")
LONE_TOWERS = {"text_encoder", "text_decoder", "text_model", "transformer", "bert"}  # which a file may hold alone


def unwrapped(content: object, path: object) -> tuple[dict, list[str]]:
    """A checkpoint's entries, whose "model" is the bare state dict; and in words what it was taken out of.

    Raises:
        UserError: there are no weights, those of several models, two of one name, or sparse or quantized ones.
    """
    entries, notes, inner = {}, [], content
    for _ in ENTRIES:
        name = _next_entry(inner, path)
        if name is None:
            break
        entries |= {key: value for key, value in inner.items() if key != name}
        inner = inner[name]
        notes += [f"taken from its entry {name!r}"] if name != "model" else []
    if not _is_state(inner):
        wanted = "a state dict or {'model': state dict}"
        raise UserError(f"{path} holds no weights: expected {wanted}, or one of {', '.join(ENTRIES[1:])}")
    state, stripped = bare(inner)
    if len(state) < len(inner):
        raise UserError(f"{path} has some weights twice, with and without {' '.join(stripped)}; save one of them")
    state, prefix, beside = _of_one_model(plain(state, path), path)
    if stripped or prefix:
        notes.append(f"names without {' '.join([*stripped, prefix]).strip()}")
    if beside:
        notes.append(f"left {len(beside)} others beside it, like {beside[0]}")
    return {**entries, "model": state}, notes


def bare(state: Mapping[str, Tensor]) -> tuple[StateDict, list[str]]:
    """A state dict by the names that a model itself has, and what was stripped off them."""
    stripped = [f"{part}." for part in PARTS if any(part in name.split(".") for name in state)]
    if stripped:
        state = {
            ".".join(part for part in name.split(".") if part not in PARTS): value for name, value in state.items()
        }
    return dict(state), stripped


def plain(state: StateDict, path: object) -> StateDict:
    """The same weights, if they are numbers row by row, as a model computes with.

    Raises:
        UserError: some are sparse or quantized.
    """
    for name, value in state.items():
        if value.layout is not torch.strided or value.is_quantized:
            kind, way_out = ("quantized", "dequantize()") if value.is_quantized else ("sparse", "to_dense()")
            raise UserError(f"{path}: its weight {name} is {kind}; save all of them as plain tensors, by {way_out}")
    return state


def _next_entry(content: object, path: object) -> str | None:
    """The entry that holds the weights: one that tools call so, or else the only one that is a state dict."""
    if not isinstance(content, Mapping) or _is_state(content):
        return None
    if known := next((name for name in ENTRIES if name in content), None):
        return known
    states = [name for name, value in content.items() if _is_state(value)]
    if len(states) > 1:
        raise UserError(f"{path} holds several models, {' and '.join(map(str, states))}; save the one that is meant")
    return states[0] if states else None


def _of_one_model(state: StateDict, path: object) -> tuple[StateDict, str, list[str]]:
    """The weights of the model that a class around it holds, what stood before their names, and what else it holds."""
    found = {name.removesuffix(tower) for name in state for tower in IMAGE_TOWERS if f".{name}".endswith(f".{tower}")}
    found = found or _around_all(state)
    if not found or "" in found:
        return state, "", []
    if len(found) > 1:
        raise UserError(f"{path} holds several models, {' and '.join(sorted(found))}; save the one that is meant")
    (prefix,) = found
    model = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return model, prefix, [name for name in state if not name.startswith(prefix)]


def _around_all(state: StateDict) -> set[str]:
    """What stands before all names, if anything: that of classes around a model, which itself has several parts."""
    common = os.path.commonprefix([name.split(".")[:-1] for name in state])
    return {".".join([*common, ""])} if len(state) > 1 and common and common[0] not in LONE_TOWERS else set()


def _is_state(value: object) -> bool:
    is_named = isinstance(value, Mapping) and bool(value)
    return is_named and all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items())
