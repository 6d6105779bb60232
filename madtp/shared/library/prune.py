"""One line that prunes somebody else's model, and its way back."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from madtp.cost import flops
from madtp.cost.measure import device_of
from madtp.cost.schedule import SHAPES, amounts_for, least_moved, planned, squared_distance
from madtp.method.errors import UserError, excerpt
from madtp.shared.library.adapted import Adapted
from madtp.shared.library.refusal import refusal
from madtp.shared.library.replacement import IMAGE, TEXT, Refused, check_tower, replaced
from madtp.shared.library.tower import HandOn, Pruned

LIBRARIES = ("timm", "open_clip", "transformers")
INPUTS = {IMAGE: "pixel_values", TEXT: "input_ids"}
WANTED = {IMAGE: "images [B, 3, H, W]", TEXT: "words [B, L]"}
ONE_BY_ONE = "answer layer by layer, as masks, intermediate states or recomputed layers may ask for"
ENOUGH = 512  # images, or texts, by which a schedule is chosen
FINEST = 0.001  # of dense: how closely p is met where tokens are many enough

Batches = Tensor | Mapping[str, Any] | Iterable[Any]


def prune(
    model: nn.Module,
    p: float | None = None,
    batches: Batches | None = None,
    *,
    amount: float | None = None,
    shape: float | None = None,
    keep_norm: bool = False,
    tower: str = IMAGE,
) -> nn.Module:
    """Makes a tower of a model cost a share p less, by merging the patches, or words, that resemble others.

    Nothing is trained and no weight is touched. How much goes follows from p and the size of the images; when it goes,
    early or late in the tower, is how the model's outputs on some images move least. A tower that is pruned already is
    pruned anew.

    Args:
        model: of timm, open_clip or transformers.
        p: the share of the tower's GFLOPs to remove; 0 is the dense model.
        batches: some images as the model takes them, [B, 3, H, W], a few dozen of what it will see; or a mapping with
            `pixel_values`, or what a loader gives, of which the first 512 images or so count. No labels are needed. For
            a text tower words likewise, [B, L], as `input_ids`.
        amount: how much goes, as `cost` tells it of a model pruned before, instead of p and batches.
        shape: when it goes, likewise; with p and batches it is not searched.
        keep_norm: whether a merged token is as long as what it stands for, and not as their mean, which is shorter.
        tower: "image", or "text" for that of SigLIP. Each is pruned by a call of its own.

    Returns:
        The same model, pruned.

    Raises:
        UserError: the model cannot be pruned, or not this far, or something is missing.
    """
    _check(model, p, amount, shape, keep_norm, tower)
    restore(model, tower)
    try:
        adapted = adapt(model, tower)
        pruned = install(adapted)
        pruned.keep_norm = keep_norm
        if amount is not None:
            pruned.amount, pruned.shape = amount, settled(shape)
        elif p > 0 or batches is not None:
            with inference(model):
                inputs = inputs_of(batches, model, tower)
                if p > 0:
                    search(adapted, pruned, 1 - p, inputs, SHAPES if shape is None else (shape,))
                else:
                    for images in islice(inputs, 1):
                        adapted.answer(images)  # whose size tells the cost
    except BaseException:  # Ctrl-C, too, would leave it pruned by what was tried last
        restore(model, tower)
        raise
    return model


def restore(model: nn.Module, tower: str | None = None) -> nn.Module:
    """Makes a pruned model what it was, with the weights that it has now; or one tower of it.

    Raises:
        UserError: there is no tower of this name.
    """
    for place in list(replaced(model, tower)):
        place.replacement.remove(place.module, place.method)
    return model


def cost(model: nn.Module, tower: str | None = None) -> dict[str, Any]:
    """What the pruned tower of a model costs, for images of the size that it saw last, or texts of the length.

    Args:
        model: pruned.
        tower: "image" or "text"; if none is named, the first that is pruned.

    Returns:
        `gflops` and `gflops_dense` of one image, `percent` of dense, `tokens` left after every layer, and the
        `amount`, `shape` and `keep_norm` that prune it so again. GFLOPs are those of docs/method.md:
        multiply-accumulates of patches, layers and the last norm, without heads.

    Raises:
        UserError: the model is not pruned or has not seen an image, or there is no such tower.
    """
    pruned = pruned_of(model, tower)
    if pruned.entered is None:
        raise UserError("the cost depends on the size of the images: let the model see one first")
    layers = planned(pruned.of.schedule(pruned.entered, pruned.shape), pruned.amount)
    spent, dense = (gflops(pruned, pruned.entered, pruned.shape, amount) for amount in (pruned.amount, 0.0))
    return {
        "gflops": spent,
        "gflops_dense": dense,
        "percent": 100 * spent / dense,
        "tokens": [layer.left for layer in layers],
        "amount": pruned.amount,
        "shape": pruned.shape,
        "keep_norm": pruned.keep_norm,
    }


def gflops(pruned: Pruned, entered: int, shape: float, amount: float) -> float:
    """Of one image, of which so many tokens enter."""
    layers = planned(pruned.of.schedule(entered, shape), amount)
    return flops.tower(pruned.of.shape, layers) / flops.GIGA


def pruned_of(model: nn.Module, tower: str | None = None) -> Pruned:
    """The forward that prunes a tower of a model, of its image tower first.

    Raises:
        UserError: it is not pruned.
    """
    found = [place.replacement for place in replaced(model, tower) if isinstance(place.replacement, Pruned)]
    if not found:
        raise UserError(f"this {type(model).__name__} is not pruned: madtp.prune(model, p=0.5, batches=images) first")
    return min(found, key=lambda pruned: pruned.tower)


def adapt(model: nn.Module, tower: str) -> Adapted:
    """The model by the adapter of its library.

    Raises:
        UserError: it is of none, or cannot be pruned, and why.
    """
    for library in LIBRARIES:
        adapted = import_module(f"madtp.shared.library.{library}").adapt(model, tower)
        if adapted is not None:
            return adapted
    raise refusal(model)


def install(adapted: Adapted) -> Pruned:
    """Gives the modules of a model the methods that prune, by nothing as yet."""
    tower = adapted.tower
    pruned = Pruned(tower)
    skipped = [layer.block for layer in tower.layers if layer.block is not tower.entry and not tower.passed]
    forwards = [(tower.entry, pruned), *((layer, HandOn(tower)) for layer in tower.passed)]
    forwards += ((layer, Refused(ONE_BY_ONE)) for layer in skipped)
    for module, method, replacement in [(module, "forward", own) for module, own in forwards] + adapted.others:
        replacement.tower = tower.name
        replacement.install(module, method)
    return pruned


def _check(
    model: nn.Module, p: float | None, amount: float | None, shape: float | None, keep_norm: bool, tower: str
) -> None:
    """Refuses what says nothing, or nothing that can be done, before the model is touched."""
    check_tower(tower)
    if (p is None) == (amount is None):
        raise UserError("give p, the share of GFLOPs to remove, or the amount and the shape of a model pruned before")
    if not isinstance(model, nn.Module):
        raise UserError(f"model is {excerpt(model)}, expected one of timm, open_clip or transformers")
    if p is not None and not _within(p, below=1):
        raise UserError(f"p is {excerpt(p)}, expected a share of the GFLOPs to remove, at least 0 and below 1")
    if amount is not None and not _within(amount):
        raise UserError(f"amount is {excerpt(amount)}, expected a number from 0, as madtp.cost tells it")
    if shape is not None and not (_within(shape) and shape > 0):
        raise UserError(f"shape is {excerpt(shape)}, expected a number above 0: below 1 tokens go early, above it late")
    if type(keep_norm) is not bool:
        raise UserError(f"keep_norm is {excerpt(keep_norm)}, expected True or False")


def _within(value: object, below: float = math.inf) -> bool:
    """Whether it is a number from 0 to less than that."""
    return isinstance(value, Real) and 0 <= value < below


def settled(shape: float | None) -> float:
    """The shape that goes with an amount.

    Raises:
        UserError: nobody gave it.
    """
    if shape is None:
        raise UserError("an amount needs the shape that it was found with")
    return shape


def search(
    adapted: Adapted, pruned: Pruned, share: float, batches: Iterable[Tensor], shapes: tuple[float, ...]
) -> None:
    """Finds amount and shape: of those that cost this share of dense, the ones that move the model's answers least.

    A single shape has nothing to be compared with: its first batch tells the size of the images, and so the amount.

    Raises:
        UserError: no shape costs so little, or there is no image.
    """
    amounts, moved, seen = {}, {}, 0
    for images in batches:
        pruned.amount = 0.0
        dense = adapted.answer(images)
        amounts = amounts or amounts_at(pruned, share, shapes)
        if len(amounts) == 1:
            moved = dict.fromkeys(amounts, 0.0)
            break
        for shape, amount in amounts.items():
            pruned.shape, pruned.amount = shape, amount
            moved[shape] = moved.get(shape, 0.0) + squared_distance(dense, adapted.answer(images))
        seen += len(images)
        if seen >= ENOUGH:  # a loader of all that a model is trained on takes hours, or never ends
            break
    if not moved:
        raise UserError("there is no image in batches: give some of those that the model will see")
    pruned.shape = least_moved(moved, share)
    pruned.amount = amounts[pruned.shape]


def amounts_at(pruned: Pruned, share: float, shapes: tuple[float, ...]) -> dict[float, float]:
    """The amount for each shape, for images of the size that the tower saw last, as near as single tokens allow."""
    entered, tower = pruned.entered, pruned.of
    one_token = 1 / (len(tower.layers) * (entered - tower.prefix))
    dense = gflops(pruned, entered, 1.0, 0.0)

    def cost(shape: float, amount: float) -> float:
        return gflops(pruned, entered, shape, amount) / dense

    return amounts_for(cost, share, max(FINEST, one_token), shapes)


def inputs_of(batches: Batches | None, model: nn.Module, tower: str) -> Iterator[Tensor]:
    """The images, or words, of batches in any of their forms, where and in what precision the model wants them.

    Raises:
        UserError: there are none, or not of the form that is wanted.
    """
    if batches is None:
        raise UserError(f"p needs batches: some {tower}s that the model will see, to find out what can go")
    dtype = next(weight.dtype for weight in model.parameters() if weight.is_floating_point())
    for batch in _each(batches, tower):
        parts = batch.get(INPUTS[tower]) if isinstance(batch, Mapping) else batch
        parts = parts if isinstance(parts, tuple | list) else [parts]
        found = next((part for part in parts if isinstance(part, Tensor) and _fits(part, tower)), None)
        if found is None:
            raise UserError(f"batches are of {WANTED[tower]}, as the model takes them, not {_told(batch)}")
        if not found.isfinite().all():
            raise UserError("batches hold numbers that are infinite or none: give pictures as the model takes them")
        if len(found):
            yield found.to(device_of(model), dtype if tower == IMAGE else None)


def _told(batch: Any) -> str:
    """What a batch is, of a tensor by what is wrong with it: its shape or its type."""
    if isinstance(batch, Tensor):
        return f"a tensor {[*batch.shape]} of {str(batch.dtype).removeprefix('torch.')}"
    return excerpt(batch)


def _each(batches: Batches, tower: str) -> Iterator[Any]:
    """One batch after the other."""
    try:
        return iter([batches] if isinstance(batches, Tensor | Mapping) else batches)
    except TypeError as error:
        raise UserError(
            f"batches are {excerpt(batches)}, expected {WANTED[tower]}, or a list or loader of such"
        ) from error


def _fits(values: Tensor, tower: str) -> bool:
    images = values.dim() == 4 and values.is_floating_point()
    return images if tower == IMAGE else values.dim() == 2 and not values.is_floating_point()


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Without gradients and dropout; afterwards every module trains or not as before."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
