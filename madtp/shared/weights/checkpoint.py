"""Reading, fitting and writing checkpoints: BLIP's, CLIP's state dicts, MADTP's and our own.

Shapes: N patches of an image, D width, G rows or columns of a square grid of patches.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from madtp.cost.processes import is_main
from madtp.method.errors import UserError, excerpt
from madtp.method.rules import BATCH, RULES
from madtp.shared.files import whole_file
from madtp.shared.weights import folders, open_clip_models, transformers_models
from madtp.shared.weights.architecture import ENTRY, checked
from madtp.shared.weights.reading import read_file
from madtp.shared.weights.wrappers import StateDict, unwrapped

logger = logging.getLogger(__name__)

Convert = Callable[[StateDict, nn.Module], StateDict]

# What no dense checkpoint holds: the alignment guidance, drawn anew; and buffers that are the same in every model.
EXPECTED_MISSING = ("space_dict", "query_model", "position_ids")

LAYER = re.compile(r"(.*)\.\d+\.")


@dataclass(frozen=True)
class LoadReport:
    """Which keys of the model a file filled, which it lacked, which of its own had no place, and what else it held."""

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    entries: dict[str, object]


def read(path: str | Path) -> dict:
    """Reads a checkpoint onto the CPU without running anything that is in it.

    Args:
        path: a file of PyTorch's or safetensors, also of open_clip or LAVIS; the folder of a run, whose best checkpoint
            is taken; a folder of the transformers library, or a file of one with its config.json beside it.

    Returns:
        The file's dict, whose "model" is the state dict by our names. Where there is something to say, "architecture"
        is what the checkpoint says of its own (see `architecture`), "notes" what was unwrapped, and "absent" lists
        parts of names that such a file never has.

    Raises:
        UserError: there is no such file, it is damaged, wants to run code, or holds no weights, or a temperature that
            is no number.
    """
    place = folders.located(path)
    if place.is_dir():
        transformers_models.check_kind(place)
        content = folders.read_weights(place)
    else:
        content = read_file(place)
    entries, notes = unwrapped(content, path)
    _check(place, entries)
    if adapter := next((name for name in entries["model"] if ".lora_" in name), None):
        raise UserError(
            f"{path} has an adapter beside its weights ({adapter}): merge it (merge_and_unload), save again"
        )
    folder = place if place.is_dir() else place.parent
    if transformers_models.is_theirs(entries["model"]):
        entries = transformers_models.converted(entries["model"], folder)
        entries[ENTRY] = checked(entries[ENTRY], folder / folders.CONFIG)
        notes.append(f"converted from transformers' names by {folder / folders.CONFIG}")
    elif any(name.startswith("visual.") for name in entries["model"]):
        entries |= {ENTRY: open_clip_models.architecture(folder) | entries.get(ENTRY, {})}
    if place != Path(path):
        notes.insert(0, f"it is {place.name} of this folder")
    return {
        name: value for name, value in (entries | {"notes": notes}).items() if value or name not in (ENTRY, "notes")
    }


def _check(path: Path, entries: dict) -> None:
    """Refuses what no model can be or be pruned by, and makes the temperature a plain number."""
    if empty := next((name for name, value in entries["model"].items() if value.is_meta or not value.numel()), None):
        elsewhere = "its weights are in pieces elsewhere, as with DeepSpeed's ZeRO-3: zero_to_fp32.py joins them"
        raise UserError(f"{path}: {empty} is empty, {elsewhere}")
    entries[ENTRY] = checked(entries.get(ENTRY, {}), path)
    temperature = entries.get("temperature", 0.0)
    try:
        fits = float(temperature) >= 0
    except (TypeError, ValueError, RuntimeError, OverflowError):
        fits = False
    if not fits:
        raise UserError(f"{path}: its temperature is {excerpt(temperature)}, expected a number, at least 0")
    if "temperature" in entries:
        entries["temperature"] = float(temperature)
    keep, batch_size = entries.get("keep", BATCH), entries.get("batch_size", 1)
    if not (isinstance(keep, str) and keep in RULES):
        raise UserError(f"{path}: its rule of keeping is {excerpt(keep)}, expected one of {', '.join(RULES)}")
    shape = entries.get("shape")
    if shape is not None and not (type(shape) is float and 0 < shape < math.inf):
        raise UserError(f"{path}: its shape is {excerpt(shape)}, expected a number above 0")
    if type(keep_norm := entries.get("keep_norm", False)) is not bool:
        raise UserError(f"{path}: its keep_norm is {excerpt(keep_norm)}, expected true or false")
    if not (type(batch_size) is int and batch_size > 0):
        raise UserError(f"{path}: its batch_size is {excerpt(batch_size)}, expected an integer, at least 1")


def save(path: str | Path, **entries) -> None:
    """Writes `entries` to `path` in one step; when that fails the file that was there is left whole.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    with whole_file(path, _bytes(entries)) as file:
        torch.save(entries, file)


def _bytes(value: object) -> int:
    """The bytes of all tensors in nested dicts and lists."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def load(
    model: nn.Module,
    path: str | Path,
    fresh: Iterable[str] = (),
    evaluate: bool = False,
    convert: Iterable[Convert] = (),
) -> LoadReport:
    """Fills `model` from a file, see `read` and `fit`."""
    return fit(model, read(path), path, fresh, evaluate, convert)


def fit(
    model: nn.Module,
    content: Mapping,
    path: str | Path,
    fresh: Iterable[str] = (),
    evaluate: bool = False,
    convert: Iterable[Convert] = (),
) -> LoadReport:
    """Fills `model` from a checkpoint, or leaves it untouched and says why the file does not fit.

    Args:
        model: filled in place.
        content: of the checkpoint, as `read` returns it.
        path: the file it is from.
        fresh: parts of names of parameters which may keep their fresh values when training starts: heads that the
            file lacks or holds in another shape.
        evaluate: whether the model is used as it is, so that nothing may stay fresh but the alignment guidance,
            which a dense model does not use.
        convert: functions `(state, model) -> state`, applied in turn before the fit.

    Raises:
        UserError: nothing matches, a shape differs, keys are missing, or weights are not finite; names the first.
    """
    state = content["model"]
    for function in convert:
        state = function(state, model)
    own = model.state_dict(keep_vars=True)
    if own.keys().isdisjoint(state):
        raise UserError(f"{path} has nothing of this model: it holds {_first(state)}; the model wants {_first(own)}")
    loaded = [key for key in own if key in state and _fits(state[key], own[key])]
    filled = {id(own[key]) for key in loaded}  # a tied weight stands in a file under one of its names, or under all
    missing = [key for key in own if id(own[key]) not in filled]
    unexpected = [key for key in state if key not in own]

    def may_stay_fresh(key: str) -> bool:
        parts = () if evaluate else tuple(fresh)
        absent = EXPECTED_MISSING + tuple(content.get("absent", ()))
        return any(part in key for part in (parts if key in state else parts + absent))

    if unfit := [key for key in missing if not may_stay_fresh(key)]:
        faults = {_part(key): _fault(key, own, state) for key in reversed(unfit)}  # the first one of every part
        faults = _first(reversed(faults.values()), len(unfit), most=5)
        theirs, ours = _purpose(state), _purpose(own)
        which = f"it is of {theirs} and the model of {ours}, " if theirs and theirs != ours else ""
        raise UserError(f"{path} does not fit this model: {which}check --config and the checkpoint: {faults}")
    if broken := [key for key in loaded if not _is_finite(state[key])]:
        way_out = "the training that made it went astray, take an earlier checkpoint"
        raise UserError(f"{path} has weights that are infinite or no numbers, {_first(broken)}: {way_out}")
    model.load_state_dict({key: state[key] for key in loaded}, strict=False)
    others = {key: value for key, value in content.items() if key not in ("model", "notes", "absent")}
    report = LoadReport(loaded, missing, unexpected, others)
    if is_main():
        logger.info(", ".join([_summary(path, report, model), *content.get("notes", ())]))
        if evaluate and (odd := _odd(unexpected, own)):
            logger.warning(
                "%s has layers, or in them weights, that this model has not, so this is another one: %s", path, odd
            )
    return report


def _fits(value: Tensor, own: Tensor) -> bool:
    """Whether a value may become a weight: of its shape, and no quantized one for a real number."""
    return value.shape == own.shape and _is_real(value) == _is_real(own)


def _is_real(value: Tensor) -> bool:
    """Whether a number means what it says; in eight bits, also floating ones, it waits for a scale."""
    return value.is_floating_point() and value.element_size() > 1


def _is_finite(value: Tensor) -> bool:
    """Whether all numbers are, looked at once and without a copy: NaN is both the smallest and the largest."""
    return not _is_real(value) or all(extreme.isfinite() for extreme in value.aminmax())


def _fault(key: str, own: StateDict, state: StateDict) -> str:
    if key not in state:
        return f"{key} is missing"
    if state[key].shape == own[key].shape:
        return f"{key} is {state[key].dtype} in the file and {own[key].dtype} in the model"
    return f"{key} is {list(state[key].shape)} in the file and {list(own[key].shape)} in the model"


def _odd(unexpected: Iterable[str], own: Iterable[str]) -> str:
    """The first weight without a place in, or behind, layers that the model has as well; nothing if there is none."""
    stacks = {found[1] for key in own if (found := LAYER.match(key))}
    return next((key for key in unexpected if (found := LAYER.match(key)) and found[1] in stacks), "")


def _first(names: Iterable[str], number: int | None = None, most: int = 3) -> str:
    """The first few names and how many there are, or of how many they are examples."""
    names = list(names)
    number = number or len(names)
    return f"{number} ({', '.join(names[:most])}{', ...' if number > min(most, len(names)) else ''})"


def _summary(path: str | Path, report: LoadReport, model: nn.Module) -> str:
    parts = [f"{path}: loaded {len(report.loaded)}"]
    if fresh := by_parts(report.missing, model):
        parts.append(f"left fresh {fresh}")
    if report.unexpected:
        parts.append(f"no place for {_first(report.unexpected)}")
    return ", ".join(parts)


TASKS = {
    "BLIP's retrieval": {"visual_encoder", "itm_head"},
    "NLVR2": {"visual_encoder", "cls_head"},
    "VQA": {"visual_encoder", "text_encoder", "text_decoder"},
    "captioning": {"visual_encoder", "text_decoder"},
    "CLIP's retrieval": {"visual", "transformer"},
}  # the parts that tell, the most telling first
PARTS = {
    "crossattention": "cross-attention",
    "cls.predictions": "prediction head",
    "itm_head": "matching head",
    "cls_head": "classifier",
    "vision_proj": "projection",
    "text_proj": "projection",
    "space_dict": "guidance",
    "query_model": "guidance",
    "temp": "contrastive temperature",
}


def by_parts(names: Iterable[str], model: nn.Module) -> str:
    """How many weights of which parts of a model these are: "60 cross-attention, 5 prediction head".

    Tied weights count once, and buffers, which nobody learned, not at all.
    """
    weights = dict(model.named_parameters())
    counts = Counter(_part(name) for name in names if name in weights)
    return ", ".join(f"{count} {part}" for part, count in counts.most_common())


def _purpose(state: Iterable[str]) -> str:
    """What a model is for, by the names of its weights; nothing where they do not tell."""
    parts = {name.partition(".")[0] for name in state}
    for task, own in TASKS.items():
        if own <= parts:
            return task
    return ""


def _part(name: str) -> str:
    """What people call the part of a model that a weight is of; a tower where it is no special one."""
    named = (part for key, part in PARTS.items() if f".{key}." in f".{name}.")
    return next(named, name.partition(".")[0])


def resize_positions(state: StateDict, model: nn.Module) -> StateDict:
    """Resizes the position embeddings of images to the model's grid of patches, online and momentum towers alike.

    Covers `*pos_embed` `[1, 1+N, D]` and CLIP's `visual*.positional_embedding` `[1+N, D]`. What already fits, or is no
    square grid, is left as it is.
    """
    own = model.state_dict()
    resized = dict(state)
    for key, positions in state.items():
        of_images = key.endswith("pos_embed") or re.fullmatch(r"visual\w*\.positional_embedding", key)
        alike = of_images and key in own and positions.dim() == own[key].dim()
        if alike and positions.shape[:-2] == own[key].shape[:-2]:
            table = _resize_grid(positions.view(positions.shape[-2:]), own[key].shape[-2])
            resized[key] = table.view(*positions.shape[:-2], *table.shape)
    return resized


def _resize_grid(positions: Tensor, length: int) -> Tensor:
    """Resizes positions `[1+N, D]` to `[length, D]`: bicubic over the grid, the first (CLS) untouched."""
    old, new = math.isqrt(len(positions) - 1), math.isqrt(length - 1)
    if old in (0, new) or old**2 != len(positions) - 1 or new**2 != length - 1:
        return positions
    grid = positions[1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)  # [1, D, G, G]
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    patches = grid.permute(0, 2, 3, 1).reshape(new**2, -1)  # [N', D]
    return torch.cat([positions[:1], patches.to(positions.dtype)])


TWINS = {
    ".crossattention.self.": ".crossattention.self{}.",
    ".crossattention.output.dense.": ".crossattention.output.dense{}.",
}


def copy_cross_attention_to_twins(state: StateDict, model: nn.Module) -> StateDict:
    """Copies a single cross-attention into NLVR2's two, one per image, where the file has no twins."""
    twinned = {}
    for key, value in state.items():
        single = next((part for part in TWINS if part in key), None)
        if single is None:
            twinned[key] = value
            continue
        for image in (0, 1):
            twinned.setdefault(key.replace(single, TWINS[single].format(image)), value)
    return twinned
