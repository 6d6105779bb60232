"""The real tasks in miniature: a data set of a hundred and fifty small pictures, models of two narrow layers."""

from pathlib import Path

from data import demo
from madtp.run import config as configuration

BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.0,
}


def make_data(folder: Path) -> None:
    """Writes 50 pictures of 72 pixels for each split."""
    demo.make(folder, seed=0, train=50, val=50, test=50, pairs=64, grid=6, objects=2)


def write_config(data: Path, path: Path, task: str, **keys) -> Path:
    """Writes the configuration of a task on that data set."""
    images, annotations = str(data / "images"), str(data / "annotation")
    roots = {"vqa_root": images, "vg_root": images} if task == "vqa" else {"image_root": images}
    own = {"caption": {"coco_gt_root": str(data / "annotation" / "coco_gt"), "metrics": []}}  # Java starts slowly
    config = {
        **roots,
        **own.get(task, {}),
        "ann_root": annotations,
        "tokenizer": str(data / "tokenizer"),
        "image_size": 72,
        "vit": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 12},
        "med_config": BERT,
        "init_scheme": "xavier",
        "sd_num": 8,
        "sd_dim": 32,
        "batch_size_train": 8,
        "batch_size_test": 25,
        "max_epoch": 2,
        "epoch_steps": 4,
        "init_lr": 1e-3,
        "amp": "off",
    }
    configuration.write(config | keys, path)
    return path
