"""timm's vision transformers: ViT, DeiT, CLIP's, SigLIP's, DINOv2's with registers, EVA's without rotary positions."""

from torch import Tensor, nn

from madtp.shared.library.adapted import Adapted, decided, name_of, unit
from madtp.shared.library.layer import Names, part
from madtp.shared.library.refusal import refusal
from madtp.shared.library.replacement import IMAGE, Place, Refused, Replacement
from madtp.shared.library.tower import Tower

ATTENTION = {
    "query_key_value": ("attn.qkv",),
    "heads": "attn.num_heads",
    "query_key_norm": ("attn.q_norm?", "attn.k_norm?"),
    "dropout": "attn.attn_drop?",
}
OUTPUT = ("attn.norm?", "attn.proj", "attn.proj_drop?")
NAMES = {
    "vision_transformer.Block": Names(
        norm="norm1",
        output=(*OUTPUT, "ls1?", "drop_path1?"),
        second_norm="norm2",
        feed_forward=("mlp", "ls2?", "drop_path2?"),
        **ATTENTION,
    ),
    "eva.EvaBlock": Names(
        norm="norm1",
        output=(*OUTPUT, "gamma_1?", "drop_path1?"),
        second_norm="norm2",
        feed_forward=("mlp", "gamma_2?", "drop_path2?"),
        biases=("attn.q_bias?", "attn.k_bias?", "attn.v_bias?"),
        **ATTENTION,
    ),
}
INTERMEDIATE = ("forward_intermediates", "get_intermediate_layers")


def adapt(model: nn.Module, name: str) -> Adapted | None:
    """A model of timm's; None for a model of another library."""
    if not any(kind.__module__.startswith("timm.") for kind in type(model).__mro__):
        return None
    if name != IMAGE:
        raise refusal(model, f"has no {name} tower")

    def answer(images: Tensor) -> Tensor:
        output = model(images)
        return decided(output) if getattr(model, "num_classes", 0) else unit(output)

    found = tower(model)
    return Adapted(found, answer, others(model, found))


def tower(model: nn.Module) -> Tower:
    """The model as a tower.

    Raises:
        UserError: it cannot be pruned, and why.
    """
    blocks = getattr(model, "blocks", None)
    kinds = {name_of(block) for block in blocks} if isinstance(blocks, nn.Sequential | nn.ModuleList) else set()
    patches = part(model, "patch_embed.proj")
    if len(kinds) != 1 or not kinds <= NAMES.keys() or not isinstance(patches, nn.Conv2d):
        raise refusal(model)
    names = NAMES[kinds.pop()]
    if getattr(model, "rope", None) is not None or not all(plain(block, names) for block in blocks):
        raise refusal(model)
    return Tower(
        entry=blocks if isinstance(blocks, nn.Sequential) else blocks[0],
        blocks=blocks,
        names=names,
        embedding=patches,
        prefix=model.num_prefix_tokens,
        class_token=getattr(model, "cls_token", None) is not None,
    )


def others(model: nn.Module, tower: Tower) -> list[Place]:
    """What of a model calls layers one by one, and what happens instead."""
    refused = [
        Place(model, method, Refused("intermediate states")) for method in INTERMEDIATE if hasattr(model, method)
    ]
    return [Place(model, "set_grad_checkpointing", Recompute(model, tower)), *refused]


class Recompute(Replacement):
    """timm's `set_grad_checkpointing`, whose own way goes past what prunes: the tower is told instead."""

    def __init__(self, model: nn.Module, tower: Tower):
        self.model, self.of = model, tower

    def install(self, module: nn.Module, method: str) -> None:
        super().install(module, method)
        self(self.model.grad_checkpointing)

    def remove(self, module: nn.Module, method: str) -> None:
        super().remove(module, method)
        module.set_grad_checkpointing(self.of.recompute)

    def __call__(self, enable: bool = True) -> None:
        type(self.model).set_grad_checkpointing(self.model, enable)
        self.model.grad_checkpointing, self.of.recompute = False, enable


def plain(block: nn.Module, names: Names) -> bool:
    """Whether attention is what its name says and no more."""
    attention = block.attn
    known = type(attention).__name__ in ("Attention", "EvaAttention") and names.fit(block)
    gated = getattr(attention, "gate", None) is not None
    return known and not gated and attention.scale == (attention.proj.in_features // attention.num_heads) ** -0.5
