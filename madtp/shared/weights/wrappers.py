"""What training tools wrap a model's weights in: entries of a dict, and parts of names."""

from collections.abc import Mapping

from torch import Tensor

from madtp.method.errors import UserError

StateDict = dict[str, Tensor]

ENTRIES = ("model", "state_dict", "model_state_dict", "module", "net")  # which may lie inside each other
# Of data parallelism, `torch.compile`, FSDP and activation checkpointing: they may stand anywhere in a name.
PARTS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
PREFIXES = ("model.", "net.")  # of classes around a model, where all names have them


def unwrapped(content: object, path: object) -> tuple[dict, list[str]]:
    """A checkpoint's entries, whose "model" is the bare state dict; and in words what it was taken out of.

    Raises:
        UserError: there are no weights, or two of one name.
    """
    entries, notes, inner = {}, [], content
    for _ in ENTRIES:
        name = next((name for name in ENTRIES if isinstance(inner, Mapping) and name in inner), None)
        if name is None or _is_state(inner):
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
    notes += [f"names without {' '.join(stripped)}"] if stripped else []
    return {**entries, "model": state}, notes


def bare(state: Mapping[str, Tensor]) -> tuple[StateDict, list[str]]:
    """A state dict by the names that a model itself has, and what was stripped off them."""
    stripped = [f"{part}." for part in PARTS if any(part in name.split(".") for name in state)]
    if stripped:
        state = {
            ".".join(part for part in name.split(".") if part not in PARTS): value for name, value in state.items()
        }
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), ""):
        stripped.append(prefix)
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state), stripped


def _is_state(value: object) -> bool:
    is_named = isinstance(value, Mapping) and bool(value)
    return is_named and all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items())
