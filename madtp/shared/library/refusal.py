"""Why a model cannot be pruned, by its name and by what was found in it."""

from torch import nn

from madtp.method.errors import UserError

PRUNED = (
    "timm's plain vision transformers, open_clip's CLIP with such a tower, and transformers' CLIP, SigLIP, ViT, DINOv2 "
    "and BLIP"
)


def refusal(model: nn.Module) -> UserError:
    """The error to raise."""
    return UserError(f"{type(model).__name__} cannot be pruned: {reason(model)}. Those that can are {PRUNED}")


def reason(model: nn.Module) -> str:
    """What of a model counts on all tokens being there, in their places."""
    modules = list(model.modules())
    kinds = [type(module).__name__ for module in modules]
    attributes = {
        name
        for module in modules
        for name, value in {**vars(module), **module._parameters}.items()
        if value is not None
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
