"""Why a model cannot be pruned, by its name and by what was found in it."""

from torch import nn

from madtp.method.errors import UserError

PRUNED = (
    "timm's plain vision transformers, open_clip's CLIP with such a tower, and transformers' CLIP, SigLIP, ViT, DINOv2 "
    "and BLIP"
)
WRAPPERS = {  # what they keep a model in
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
}
CAUSAL = (
    "'s text tower cannot be pruned: every word sees another past, so that even copies differ and none can stand "
    "for both. What costs most there is padding: let texts be as long as the longest of a batch"
)


def refusal(model: nn.Module, why: str | None = None) -> UserError:
    """The error to raise."""
    why = reason(model) if why is None else f"it {why}"
    return UserError(f"{type(model).__name__} cannot be pruned: {why}. Those that can are {PRUNED}")


def causal(model: nn.Module) -> UserError:
    """The error to raise for a text tower whose words do not see those that follow."""
    return UserError(type(model).__name__ + CAUSAL)


def reason(model: nn.Module) -> str:
    """What of a model counts on all tokens being there, in their places."""
    modules = list(model.modules())
    kinds = [type(module).__name__ for module in modules]
    if kinds[0] in WRAPPERS:
        return f"it wraps a model, which is to be pruned first: madtp.prune(model.{WRAPPERS[kinds[0]]}, ...)"
    attributes = {
        name
        for module in modules
        for name, value in {**vars(module), **module._parameters}.items()
        if value is not None and value is not False
    }
    attributes |= {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if any("Window" in kind or "Swin" in kind or "MaxViT" in kind or "MaxxVit" in kind for kind in kinds):
        return "it attends in windows, which pruned tokens do not fill"
    if any("relative_position_bias" in name or "rel_pos" in name for name in attributes):
        return "its attention has a bias for relative positions, which merged tokens do not have"
    if any("rope" in name for name in attributes):
        return "rotary positions depend on where a token is, and merged tokens are in several places"
    if sum(isinstance(module, nn.Conv2d) for module in modules) > 3:
        return "it has convolutional stages, which need every pixel in its place"
    return "its layers are of a kind that is not known here"
