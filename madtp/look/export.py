"""A checkpoint, dense or fine-tuned, as a folder that the transformers library's classes load.

    python -m madtp export --checkpoint output/caption_hub --output_dir caption_for_transformers

    >>> BlipForConditionalGeneration.from_pretrained("caption_for_transformers")

The pruning stays behind, since the library has no place for it: its class computes what ours does at T 0.
"""

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from torch import nn

from clip.tokenizer import MARKS, byte_pairs
from madtp.look.predictor import built
from madtp.method.errors import UserError
from madtp.method.rules import setting
from madtp.shared.files import prepare_output, write_atomic
from madtp.shared.weights import transformers_export as export
from madtp.shared.weights.folders import CONFIG, WHOLE
from madtp.shared.weights.stored import Stored
from models.blip import VIT_SIZES
from transform.pictures import MEAN, STD

SPECIAL = {"bos_token": MARKS[0], **dict.fromkeys(("eos_token", "unk_token", "pad_token"), MARKS[1])}


def run(args: Namespace) -> None:
    """Writes the folder, and says what is in it and what is not.

    Raises:
        UserError: a file is missing or does not fit, the library has no class for this model, or the folder has one.
    """
    folder = Path(args.output_dir)
    if there := next((name for name in (CONFIG, *WHOLE) if (folder / name).exists()), ""):
        raise UserError(f"{folder / there} is there already; remove it or name another folder with --output_dir")
    chosen, model, stored = built(args.checkpoint, args.task, args.config, args.set)
    task = chosen.name
    kind, config = export.class_of(task), config_of(task, model)
    prepare_output(folder)
    preprocessing = export.preprocessor(task, model.architecture["image_size"], list(MEAN), list(STD))
    export.write(folder, config, preprocessing, export.weights(model.state_dict(), task))
    write_vocabulary(task, model, folder)
    print(f"wrote {folder}: a {kind} with its preprocessor_config.json and its vocabulary")
    print(left_behind(stored))


def config_of(task: str, model: nn.Module) -> dict:
    """config.json of a model."""
    if task == "retrieval_clip":
        return export.clip_config(asdict(model.sizes))
    vit = model.architecture["vit"]
    architecture = model.architecture | {"vit": vit if isinstance(vit, dict) else VIT_SIZES[vit]}
    words = {word: model.tokenizer.convert_tokens_to_ids(word) for word in ("[DEC]", "[SEP]")}
    return export.blip_config(task, architecture, words)


def write_vocabulary(task: str, model: nn.Module, folder: Path) -> None:
    """The files of the tokenizer: BERT's own, or those that transformers' CLIPTokenizer reads."""
    if task != "retrieval_clip":
        model.tokenizer.save_pretrained(folder)
        return
    words, pairs = byte_pairs()
    write_atomic(folder / "vocab.json", json.dumps(words, ensure_ascii=False))
    write_atomic(folder / "merges.txt", "\n".join(["#version: 0.2", *map(" ".join, pairs)]) + "\n")
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": model.sizes.context_length}
    write_atomic(folder / "tokenizer_config.json", json.dumps(about | SPECIAL, indent=2) + "\n")


def left_behind(stored: Stored) -> str:
    """What the folder does not hold of how a model prunes."""
    stays = "the pruning stays behind: learnable tokens, what aligns with them, and how much goes"
    if not stored.temperature:
        return stays
    pruned = setting(stored.keep, stored.temperature, stored.shape, stored.keep_norm)
    return f"{stays}; this model was scored at {pruned}, and dense its scores are others"
