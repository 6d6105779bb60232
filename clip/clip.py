"""CLIP from a file: OpenAI's TorchScript archives, plain state dicts, fine-tuned and compressed checkpoints.

Shapes: N patches of an image, D width.
"""

import re
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from clip.download import FOLDER, MODELS
from clip.model import Sizes
from clip.retrieval import ClipRetrieval
from clip.sizes import OPENAI, fresh_sizes, hidden_sizes, sizes_of
from madtp.method.errors import UserError
from madtp.method.keep import rule_of
from madtp.shared.momentum import complete_momentum
from madtp.shared.weights import architecture, checkpoint
from madtp.shared.weights.folders import located
from transform.pictures import MEAN, STD

# Fidelity: OpenAI's archives hold these numbers among the weights; the sizes come from the weights themselves.
ARCHIVE_NUMBERS = ("input_resolution", "context_length", "vocab_size")
LONG_POSITIONS = "positional_embedding_res"
KEPT_POSITIONS = 20  # that are CLIP's in a Long-CLIP, arXiv 2403.15378


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
        config: `sd_num` (100), `sd_dim` (768), `queue_size` (57600), `image_size` (the file's); `activation`,
            `head_width` and `text_head_width` where the file does not say them; `vit_grad_ckpt` and `vit_ckpt_layer`;
            `keep` ("batch"); for fresh weights `clip` with the sizes.

    Returns:
        The model, its sizes those of the file, and the transform from a PIL image to its input [3, S, S].

    Raises:
        UserError: the file is missing, damaged, no CLIP with a vision transformer, or does not fit.
    """
    config = config or {}
    path = locate(name) if name else None
    content = read(path) if path else None
    sizes = sizes_of(content["model"], path) if content else fresh_sizes(config.get("clip"))
    sizes = hidden_sizes(sizes, content or {"model": {}, "architecture": OPENAI}, config, path or "a fresh CLIP")
    sizes = at_resolution(sizes, config.get("image_size") or sizes.image_resolution, path, evaluate)
    model = ClipRetrieval(
        sizes,
        config.get("sd_num", 100),
        config.get("sd_dim", 768),
        config.get("queue_size", 57600),
        config.get("vit_ckpt_layer", 0) if config.get("vit_grad_ckpt") else 0,
        rule_of(config, sizes.vision_layers),
    )
    if content:
        convert = (without_archive_numbers, with_long_positions, checkpoint.resize_positions, complete_momentum)
        checkpoint.fit(model, content, path, evaluate=evaluate, convert=convert)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device), preprocess(sizes.image_resolution)


def locate(name: str) -> Path:
    """The file of a published model's name, or where the weights of a path are.

    Raises:
        UserError: the model has no tokens, or its file is not there.
    """
    if re.fullmatch(r"RN\d+(x\d+)?", name):
        raise UserError(f"{name} is a CLIP with ResNet, which has no tokens to prune; use one of {', '.join(MODELS)}")
    if name not in MODELS:
        return located(name)
    path = Path(FOLDER) / MODELS[name][0]
    if not path.is_file():
        raise UserError(f"{name} is not in {FOLDER}/: copy {path.name} there, or let a script fetch it by --download")
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
            state = torch.jit.load(path, map_location="cpu").state_dict()
            return {"model": dict(state), "architecture": OPENAI}  # whose form of file this is
    except RuntimeError as error:
        raise UserError(f"{path} is a damaged TorchScript archive; download it again") from error


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive and not an ordinary checkpoint, which is a zip file as well."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def at_resolution(sizes: Sizes, image_size: int, path: object, evaluate: bool) -> Sizes:
    """The sizes for images of another size, which is said.

    Raises:
        UserError: patches do not fill such images.
    """
    own, patch = sizes.image_resolution, sizes.vision_patch_size
    if image_size % patch:
        closest = patch * max(1, round(image_size / patch))
        way_out = f"the model's own is {own}: --set image_size={own}" if path else f"--set image_size={closest} is one"
        raise UserError(f"image_size {image_size} is no multiple of the patches of {patch} pixels; {way_out}")
    architecture.say_resized({"image_size": own} if path else {}, image_size, path, evaluate)
    return replace(sizes, image_resolution=image_size)


def without_archive_numbers(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Leaves out what is no weight."""
    return {key: value for key, value in state.items() if key not in ARCHIVE_NUMBERS}


def with_long_positions(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Joins the two tables of positions of a Long-CLIP: the first are CLIP's, the others were stretched and learned."""
    if LONG_POSITIONS not in state:
        return state
    both = torch.cat([state["positional_embedding"][:KEPT_POSITIONS], state[LONG_POSITIONS][KEPT_POSITIONS:]])
    others = {key: value for key, value in state.items() if key != LONG_POSITIONS}
    return others | {"positional_embedding": both}


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
