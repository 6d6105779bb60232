"""open_clip's CLIP with a vision transformer of its own or of timm's, and the texts of its SigLIP."""

import torch.nn.functional as F
from torch import Tensor, nn

from madtp.shared.library import timm
from madtp.shared.library.adapted import Adapted, name_of, unit
from madtp.shared.library.layer import Names
from madtp.shared.library.refusal import causal, refusal
from madtp.shared.library.replacement import IMAGE, TEXT
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


def adapt(model: nn.Module, name: str) -> Adapted | None:
    """A model of open_clip's, or a tower of it alone; None for a model of another library."""
    if not any(kind.__module__.startswith("open_clip.") for kind in type(model).__mro__):
        return None
    if name == TEXT:
        return Adapted(text_tower(model), lambda words: answer_to_text(model, words))
    visual = getattr(model, "visual", model)

    def answer(images: Tensor) -> Tensor:
        if visual is not model:
            return F.normalize(first(model.encode_image(images)).float(), dim=-1)
        return unit(first(model(images)))

    if name_of(visual) == "timm_model.TimmModel":
        found = timm.tower(visual.trunk)
        return Adapted(found, answer, timm.others(visual.trunk, found))
    return Adapted(image_tower(visual), answer)


def answer_to_text(model: nn.Module, words: Tensor) -> Tensor:
    """The feature of words [B, L]."""
    return unit(model.encode_text(words) if hasattr(model, "encode_text") else first(model(words)))


def first(output: Tensor | tuple) -> Tensor:
    """The feature, where tokens may follow it."""
    return output[0] if isinstance(output, tuple) else output


def image_tower(visual: nn.Module) -> Tower:
    """An image tower of open_clip's own.

    Raises:
        UserError: it cannot be pruned, and why.
    """
    patches = getattr(visual, "conv1", None)
    if not plain(visual) or not isinstance(patches, nn.Conv2d):
        raise refusal(visual)
    return tower(visual.transformer, patches, IMAGE)


def text_tower(model: nn.Module) -> Tower:
    """A text tower of open_clip's own that reads its first token or its last.

    Raises:
        UserError: it cannot be pruned, and why.
    """
    text = getattr(model, "text", model)
    if getattr(text, "attn_mask", None) is not None:
        raise causal(model)
    read = getattr(text, "pool_type", None)
    if not plain(text) or read not in ("first", "last") or text.cls_emb is not None:
        raise refusal(model, "has no text tower that is known here")
    return tower(text.transformer, text.token_embedding, TEXT, last=read == "last")


def plain(module: nn.Module) -> bool:
    """Whether it has layers of the kind that is known."""
    blocks = getattr(getattr(module, "transformer", None), "resblocks", ())
    kinds = {name_of(block) for block in blocks}
    return kinds == {"transformer.ResidualAttentionBlock"} and all(NAMES.fit(block) for block in blocks)


def tower(transformer: nn.Module, embedding: nn.Module, name: str, last: bool = False) -> Tower:
    """What runs the layers, as a tower."""
    return Tower(
        entry=transformer,
        blocks=transformer.resblocks,
        names=NAMES,
        embedding=embedding,
        prefix=1,
        class_token=True,
        last=last,
        name=name,
        sequence_first=not hasattr(transformer, "batch_first"),  # before there was a choice
        flag="grad_checkpointing",
    )
