"""CLIP from a file: OpenAI's TorchScript archives, plain state dicts, fine-tuned and compressed checkpoints.

Shapes: N patches of an image, D width.
"""

import math
import re
import warnings
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from clip.download import FOLDER, MODELS
from clip.model import Sizes
from clip.retrieval import ClipRetrieval
from clip.tokenizer import CONTEXT_LENGTH, VOCABULARY
from madtp.method.errors import UserError
from madtp.method.keep import rule_of
from madtp.shared.momentum import complete_momentum
from madtp.shared.weights import checkpoint
from transform.pictures import MEAN, STD

# Fidelity: OpenAI's archives hold these numbers among the weights; the sizes come from the weights themselves.
ARCHIVE_NUMBERS = ("input_resolution", "context_length", "vocab_size")


def load(
    name: str,
    device: str | torch.device | None = None,
    evaluate: bool = False,
    config: dict | None = None,
) -> tuple[ClipRetrieval, transforms.Compose]:
    """Builds a CLIP and loads its weights in float32.

    Args:
        name: a file, or one of `available_models()` whose file is in `pretrained/`; empty for fresh weights.
        device: where the model goes; by default to the GPU, if there is one.
        evaluate: whether it is used as it is.
        config: `sd_num` (100), `sd_dim` (768), `queue_size` (57600), `image_size` (the file's); `vit_grad_ckpt` and
            `vit_ckpt_layer`; `keep` ("batch"); for fresh weights `clip` with the sizes.

    Returns:
        The model, its sizes those of the file, and the transform from a PIL image to its input [3, S, S].

    Raises:
        UserError: the file is missing, damaged, no CLIP with a vision transformer, or does not fit.
    """
    config = config or {}
    path = locate(name) if name else None
    content = read(path) if path else None
    sizes = sizes_of(content["model"], path) if content else fresh_sizes(config.get("clip"))
    sizes = replace(sizes, image_resolution=config.get("image_size", sizes.image_resolution))
    if sizes.image_resolution % sizes.vision_patch_size:
        resolution, patch = sizes.image_resolution, sizes.vision_patch_size
        raise UserError(f"image_size {resolution} is no multiple of the patches of {patch} pixels; choose another")
    model = ClipRetrieval(
        sizes,
        config.get("sd_num", 100),
        config.get("sd_dim", 768),
        config.get("queue_size", 57600),
        config.get("vit_ckpt_layer", 0) if config.get("vit_grad_ckpt") else 0,
        rule_of(config, sizes.vision_layers),
    )
    if content:
        convert = (without_archive_numbers, checkpoint.resize_positions, complete_momentum)
        checkpoint.fit(model, content, path, evaluate=evaluate, convert=convert)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device), preprocess(sizes.image_resolution)


def locate(name: str) -> Path:
    """The file of a published model's name, or of a path."""
    if re.fullmatch(r"RN\d+(x\d+)?", name):
        raise UserError(f"{name} is a CLIP with ResNet, which has no tokens to prune; use one of {', '.join(MODELS)}")
    if name not in MODELS:
        return Path(name)
    path = Path(FOLDER) / MODELS[name][0]
    if not path.is_file():
        raise UserError(f"{name} is not in {FOLDER}/: copy {path.name} there, or fetch it with --download")
    return path


def read(path: str | Path) -> dict:
    """A checkpoint, or a TorchScript archive's weights as one; nothing in the file is run but TorchScript.

    Raises:
        UserError: as `checkpoint.read`, or a damaged archive.
    """
    if not is_torchscript(path):
        return checkpoint.read(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # OpenAI's files stay what they are
            return {"model": dict(torch.jit.load(path, map_location="cpu").state_dict())}
    except RuntimeError as error:
        raise UserError(f"{path} is a damaged TorchScript archive; download it again") from error


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive and not an ordinary checkpoint, which is a zip file as well."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def sizes_of(state: dict[str, Tensor], path: str | Path) -> Sizes:
    """The sizes that a state dict's shapes tell."""
    if "visual.layer1.0.conv1.weight" in state:
        raise UserError(f"{path} is a CLIP with ResNet, which has no tokens to prune; use a ViT, like ViT-B-16.pt")
    try:
        vision_width, _, _, patch_size = state["visual.conv1.weight"].shape
        patches = len(state["visual.positional_embedding"]) - 1
        context_length, transformer_width = state["positional_embedding"].shape
        vocab_size, embed_dim = len(state["token_embedding.weight"]), state["text_projection"].shape[1]
    except KeyError as error:
        raise UserError(f"{path} is no CLIP: {error.args[0]} is missing; check --pretrained") from error
    return Sizes(
        embed_dim=embed_dim,
        image_resolution=math.isqrt(patches) * patch_size,
        vision_layers=depth(state, "visual.transformer."),
        vision_width=vision_width,
        vision_patch_size=patch_size,
        context_length=context_length,
        vocab_size=vocab_size,
        transformer_width=transformer_width,
        transformer_layers=depth(state, "transformer."),
    )


def depth(state: dict[str, Tensor], tower: str) -> int:
    """The number of layers of a tower."""
    return sum(key.startswith(f"{tower}resblocks.") and key.endswith(".ln_1.weight") for key in state)


def fresh_sizes(chosen: dict | None) -> Sizes:
    """The sizes that a configuration chose for a model from scratch; those of the text follow from the tokenizer."""
    sizes = {"image_resolution": 224, "context_length": CONTEXT_LENGTH, "vocab_size": VOCABULARY} | (chosen or {})
    absent = [field.name for field in fields(Sizes) if field.name not in sizes]
    if absent:
        raise UserError(f"without a checkpoint (--pretrained) the config's `clip` has to say {', '.join(absent)}")
    return Sizes(**sizes)


def without_archive_numbers(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Leaves out what is no weight."""
    return {key: value for key, value in state.items() if key not in ARCHIVE_NUMBERS}


def preprocess(image_size: int) -> transforms.Compose:
    """CLIP's transform from a PIL image: the short side resized, the center cropped, normalised."""
    return transforms.Compose(
        [
            transforms.Resize(image_size, interpolation=InterpolationMode.BICUBIC),
            transforms.CenterCrop(image_size),
            transforms.Lambda(lambda image: image.convert("RGB")),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
