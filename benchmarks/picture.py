"""Draws a picture as a pruned model sees it: whole, at half of the cost and at 30 %.

    python -m benchmarks.picture --model facebook/dinov2-small --image astronaut.png --out kept.png

`--model` is a folder with a ViT or a DINOv2 of transformers, or its name on the hub.
"""

import argparse

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel

import madtp

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as DINOv2 has them


def main(argv: list[str] | None = None) -> None:
    """Prunes, draws and says what is left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or name on the hub")
    parser.add_argument("--image", required=True, help="picture to show the model")
    parser.add_argument("--out", required=True, help="picture to write")
    parser.add_argument("--pixels", type=int, default=448, help="on a side, a multiple of the patch size")
    args = parser.parse_args(argv)
    model = AutoModel.from_pretrained(args.model).float().eval()
    picture = Image.open(args.image).convert("RGB").resize((args.pixels, args.pixels), Image.Resampling.BICUBIC)
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


@torch.inference_mode()
def feature(model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """What the model makes of a picture: the class token behind the last norm, [1, D]."""
    return model(image).last_hidden_state[:, 0]


if __name__ == "__main__":
    main()
