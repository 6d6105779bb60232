"""Draws a picture as a pruned model sees it: whole, at half of the cost and at 30 %.

    python -m benchmarks.picture --model dinov2-small --image astronaut.png --out kept.png

`--model` is a folder with a ViT or a DINOv2 of transformers, or with `--download` its name on the hub.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel

import madtp
from benchmarks.timing import told
from data.files import decode_image
from utils import UserError, prepare_output

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as DINOv2 has them


def main(argv: list[str] | None = None) -> None:
    """Prunes, draws and says what is left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder, or OWNER/NAME on the hub")
    parser.add_argument("--download", action="store_true", help="fetch the model from the hub")
    parser.add_argument("--image", required=True, help="picture to show the model")
    parser.add_argument("--out", required=True, help="picture to write")
    parser.add_argument("--pixels", type=int, default=448, help="on a side, a multiple of the patch size")
    args = parser.parse_args(argv)
    prepare_output(Path(args.out).parent)
    size = (args.pixels, args.pixels)
    picture = opened(Path(args.image), args.pixels).resize(size, Image.Resampling.BICUBIC)
    model = model_of(args.model, args.download)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).unsqueeze(0) / 255
    image = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    drawn, dense = [np.array(picture)], feature(model, image)
    for p in (0.5, 0.7):
        madtp.prune(model, p=p, batches=image)
        cosine = torch.cosine_similarity(feature(model, image), dense).item()
        left = madtp.cost(model)
        print(f"{left['percent']:.1f} % of dense, {left['tokens'][-1]} tokens at the end, cosine to dense {cosine:.3f}")
        drawn.append(madtp.picture(model, image)[0])
    Image.fromarray(np.concatenate(drawn, axis=1)).save(args.out, optimize=True)


def opened(path: Path, pixels: int) -> Image.Image:
    """The picture, upright and in colours."""
    try:
        return decode_image(path, pixels)
    except (OSError, ValueError) as error:
        raise UserError(f"--image {path}: {getattr(error, 'strerror', None) or error}") from error


def model_of(name: str, download: bool) -> torch.nn.Module:
    """A model of transformers from its folder, or from the hub where that is allowed."""
    try:
        return AutoModel.from_pretrained(name, local_files_only=not download).float().eval()
    except OSError as error:
        raise UserError(f"--model {name}: no folder with config.json and weights; --download fetches it") from error


@torch.inference_mode()
def feature(model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """What the model makes of a picture: the class token behind the last norm, [1, D]."""
    return model(image).last_hidden_state[:, 0]


if __name__ == "__main__":
    told(main)
