"""open_clip's CLIP with a vision transformer of its own or of timm's; its text tower stays whole."""

import torch.nn.functional as F
from torch import Tensor, nn

from madtp.shared.library import timm
from madtp.shared.library.adapted import Adapted, name_of, unit
from madtp.shared.library.layer import Layer, Names
from madtp.shared.library.refusal import refusal
from madtp.shared.library.tower import Tower

NAMES = Names(
    norm="ln_1",
    query_key_value=("attn",),
    heads="attn.num_heads",
    output=("attn.out_proj", "ls_1?"),
    second_norm="ln_2",
    feed_forward=("mlp", "ls_2?"),
    dropout="attn.dropout",
)


def adapt(model: nn.Module) -> Adapted | None:
    """A model of open_clip's, or its image tower alone; None for a model of another library."""
    if not any(kind.__module__.startswith("open_clip.") for kind in type(model).__mro__):
        return None
    visual = getattr(model, "visual", model)

    def answer(images: Tensor) -> Tensor:
        if visual is not model:
            return F.normalize(model.encode_image(images).float(), dim=-1)
        output = model(images)
        return unit(output[0] if isinstance(output, tuple) else output)

    return Adapted(tower(visual), answer)


def tower(visual: nn.Module) -> Tower:
    """An image tower.

    Raises:
        UserError: it cannot be pruned, and why.
    """
    if name_of(visual) == "timm_model.TimmModel":
        return timm.tower(visual.trunk)
    transformer, patches = getattr(visual, "transformer", None), getattr(visual, "conv1", None)
    blocks = getattr(transformer, "resblocks", ())
    kinds = {name_of(block) for block in blocks}
    plain = kinds == {"transformer.ResidualAttentionBlock"} and all(NAMES.fit(block) for block in blocks)
    if not plain or not isinstance(patches, nn.Conv2d):
        raise refusal(visual)
    return Tower(
        entry=transformer,
        layers=[Layer(block, NAMES) for block in blocks],
        patches=patches,
        prefix=1,
        class_token=True,
        sequence_first=not hasattr(transformer, "batch_first"),  # before there was a choice
        flag="grad_checkpointing",
    )
