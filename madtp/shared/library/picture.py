"""A picture of what became of the patches."""

import numpy as np
import torch
from torch import Tensor, nn

from madtp.method.errors import UserError
from madtp.shared.library.prune import adapt, inference, inputs_of, pruned_of
from madtp.shared.library.replacement import IMAGE

BORDER = 0.35  # what is left of the brightness along borders between tokens


def picture(model: nn.Module, images: Tensor) -> np.ndarray:
    """Draws what a pruned model sees in the end: patches of one token in the colour of their mean, with borders around.

    Args:
        model: pruned by `madtp.prune`.
        images: [B, 3, H, W], as the model takes them.

    Returns:
        [B, H', W', 3] from 0 to 255, bytes, H' and W' whole patches; each picture's contrast is stretched, since
        nobody says how it was normalised. `PIL.Image.fromarray(drawn[0]).save("kept.png")` writes the first one.

    Raises:
        UserError: the model is not pruned, images are none or several batches, or their patches no grid.
    """
    pruned, entered, batches = pruned_of(model, IMAGE), [], list(inputs_of(images, model, IMAGE))
    if len(batches) != 1:
        raise UserError(f"images are {len(batches)} batches with images in them, expected one, [B, 3, H, W]")
    (images,) = batches
    tower = pruned.of
    hook = tower.entry.register_forward_pre_hook(
        lambda module, given, named: entered.append(pruned.tokens(given, named)), with_kwargs=True
    )
    try:
        with inference(model):
            adapt(model, IMAGE).answer(images)
            _, place = pruned.run(*entered[0])
    finally:
        hook.remove()
    rows, columns = (size // step for size, step in zip(images.shape[2:], tower.embedding.stride, strict=True))
    count = entered[0][0].shape[1] - tower.prefix
    if rows * columns != count:
        raise UserError(f"{count} tokens are no grid of {rows} x {columns} patches: they cannot be drawn")
    place = torch.arange(count).expand(len(images), -1) if place is None else place.cpu()
    return draw(images.cpu().float(), place.view(-1, rows, columns), tower.embedding.stride)


def draw(images: Tensor, place: Tensor, steps: tuple[int, int]) -> np.ndarray:
    """Paints groups of patches.

    Args:
        images: [B, 3, H, W].
        place: [B, rows, columns], which token each patch is part of.
        steps: height and width of a patch.

    Returns:
        [B, H', W', 3], bytes.
    """
    batch, rows, columns = place.shape
    images = images[:, :, : rows * steps[0], : columns * steps[1]]
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    images = (images - low) / (high - low).clamp(min=1e-8)
    patches = images.unflatten(2, (rows, steps[0])).unflatten(4, (columns, steps[1])).mean(dim=(3, 5))  # [B, 3, r, c]
    same = (place.flatten(1).unsqueeze(2) == place.flatten(1).unsqueeze(1)).float()
    means = patches.flatten(2) @ (same / same.sum(dim=1, keepdim=True))
    drawn = large(means.view(batch, 3, rows, columns), steps)
    groups = large(place.unsqueeze(1), steps)
    border = torch.zeros_like(groups, dtype=torch.bool)
    border[:, :, 1:] |= groups[:, :, 1:] != groups[:, :, :-1]
    border[..., 1:] |= groups[..., 1:] != groups[..., :-1]
    drawn = torch.where(border, BORDER * drawn, drawn)
    return (255 * drawn).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def large(values: Tensor, steps: tuple[int, int]) -> Tensor:
    """A value for every patch as one for every pixel: [B, any, rows, columns] -> [B, any, H', W']."""
    return values.repeat_interleave(steps[0], dim=2).repeat_interleave(steps[1], dim=3)
