"""A vision transformer and a BERT in transformers' form as the start of BLIP's tasks.

    python -m madtp towers --image dinov2-small --text all-MiniLM-L6-v2 --config configs/retrieval_flickr.yaml \\
        --image_size 224 --output_dir pretrained/towers
    python compress_retrieval_flickr_dtp.py --p 0 --config pretrained/towers/retrieval_flickr.yaml

Writes a checkpoint, `towers.pth`, and for every configuration one of the same name whose model these towers are. Both
towers keep what they computed: what ours lack is folded into their weights. Cross-attention and heads start fresh.
"""

import argparse
from pathlib import Path

from madtp.method.errors import UserError
from madtp.run import config as configuration
from madtp.run.keys import COMMON_KEYS, checked
from madtp.shared.files import prepare_output
from madtp.shared.weights import checkpoint, hub
from madtp.shared.weights.architecture import MED
from madtp.shared.weights.towers import Normalisation, image_tower, text_tower
from models.blip import check_vit
from models.tokenizer import FILES, check_vocabulary, fingerprint, init_tokenizer
from transform.pictures import MEAN, STD

CHECKPOINT = "towers.pth"


def run(args: argparse.Namespace) -> None:
    """Reads both towers, then writes the checkpoint and the configurations and says what was done.

    Raises:
        UserError: a folder or a vocabulary is missing, or they do not fit each other.
    """
    if (args.mean is None) != (args.std is None):
        raise UserError("--mean and --std belong together: give both, or neither")
    asked = {} if args.image_size is None else checked({"image_size": args.image_size}, COMMON_KEYS, "--image_size")
    image_folder, text_folder = (hub.folder_of(name, args.download) for name in (args.image, args.text))
    for name in (image_folder, text_folder):
        if not Path(name).is_dir():
            raise UserError(
                f"{name}: no such folder; give one with config.json and weights, or OWNER/NAME and --download"
            )
    folder = args.tokenizer or text_folder
    if not any((Path(folder) / name).exists() for name in FILES):
        raise UserError(f"{folder} has no {' and no '.join(FILES)}; --tokenizer names a folder that has one")
    tokenizer = init_tokenizer(folder)
    image = image_tower(
        image_folder, Normalisation(MEAN, STD), Normalisation(args.mean, args.std) if args.mean else None
    )
    text = text_tower(text_folder, len(tokenizer), tokenizer.cls_token_id)
    if args.tokenizer:
        check_vocabulary(tokenizer, folder, {"model": text.state}, text_folder)
    out = Path(args.output_dir)
    sizes = {**image.sizes, **text.sizes, "tokenizer": folder, "pretrained": str(out / CHECKPOINT)}
    sizes["sd_dim"] = sizes["med_config"]["hidden_size"]
    sizes |= asked
    check_vit(sizes["image_size"], **sizes["vit"])
    configs = {Path(path).name: adapted(path, sizes) for path in args.config}
    prepare_output(out)
    own = {name: value for name, value in text.sizes["med_config"].items() if name in MED}
    own = {**image.sizes, "med_config": own, "vocabulary": fingerprint(tokenizer)}
    checkpoint.save(out / CHECKPOINT, model={**image.state, **text.state}, architecture=own)
    for name, config in configs.items():
        configuration.write(config, out / name)
    print(f"{image.told}\n{text.told}\nwrote {out / CHECKPOINT}, for {sizes['image_size']} pixels, and")
    print("\n".join(f"  {out / name}" for name in configs))


def adapted(path: str, sizes: dict) -> dict:
    """The configuration of a task with other towers.

    Raises:
        UserError: it is CLIP's, or cannot be read.
    """
    task = configuration.task_of(path)
    if task == "retrieval_clip":
        raise UserError(f"{path} is for CLIP, which has its own two towers; name a configuration of BLIP's")
    return configuration.resolve(path, task) | sizes
