"""The stages of the demos: commands that follow from one another, as a user would type them."""

from dataclasses import dataclass
from pathlib import Path

from madtp.run.clone import own_file
from madtp.shared.run_files import BEST

QUICK_P = 0.2  # what an untrained model can surely reach
QUICK_KEYS = ["max_epoch=1", "epoch_steps=4", "warmup_steps=0", "calibration_batches=2", "batch_size_test=8"]
QUICK_KEYS += [f"cost_slack={QUICK_P}"]  # two batches tell little of the cost of all: any model will do


@dataclass(frozen=True)
class Stage:
    """One command of the demo.

    Attributes:
        name: its output folder.
        title: what it does, for the reader.
        script: module that runs it.
        config: its YAML file.
        seconds: what it took on two cores of an EPYC with nothing else to do, to tell the time left.
        start: stage whose best checkpoint it starts from, if any.
        p: reduce ratio; 0 trains the dense model.
        extra: further arguments.
    """

    name: str
    title: str
    script: str
    config: str
    seconds: float
    start: str = ""
    p: float = 0.0
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Demo:
    """A chain of stages whose last one compresses the model of the one before it.

    Attributes:
        stages: in order.
        task: class of the compressed model's task, in its script.
        metric: name of the score, and how the table calls it.
        folder: of everything the demo writes.
    """

    stages: tuple[Stage, ...]
    task: str
    metric: tuple[str, str]
    folder: str


def halved(start: Stage, epochs: int, seconds: float, *keys: str) -> Stage:
    """The last stage of every demo: compresses the model of the stage before it to half its cost."""
    extra = ("--epoch", f"{epochs}", "--set", "ramp=0", *keys)
    name = f"{start.name.removesuffix('_dense')}_p0.5"
    return Stage(name, "compress it to half its cost", start.script, start.config, seconds, start.name, 0.5, extra)


CAPTION = Stage("caption", "train a captioner", "compress_caption_dtp", "configs/demo/caption.yaml", 88)
VQA = Stage("vqa_dense", "train a VQA model from it", "compress_vqa_dtp", "configs/demo/vqa.yaml", 83, "caption")
NLVR = Stage(
    "nlvr_dense", "train an NLVR2 model from that", "compress_nlvr_dtp", "configs/demo/nlvr.yaml", 167, "vqa_dense"
)
RETRIEVAL = Stage(
    "retrieval_dense",
    "train a retrieval model from it",
    "compress_retrieval_flickr_dtp",
    "configs/demo/retrieval.yaml",
    145,
    "caption",
)
CLIP = Stage("clip_dense", "train a CLIP", "compress_retrieval_clip_dtp", "configs/demo/clip.yaml", 180)

ACCURACY, EXACT_MATCH, RECALL = ("accuracy", "accuracy %"), ("exact_match", "exact match %"), ("txt_r1", "R@1 %")
DEMOS = {
    "nlvr": Demo(
        (CAPTION, VQA, NLVR, halved(NLVR, 3, 126, "init_lr=7e-4", "warmup_steps=50", "epoch_steps=300")),
        "NLVR",
        ACCURACY,
        "output/demo",
    ),
    "caption": Demo((CAPTION, halved(CAPTION, 4, 80, "init_lr=5e-4")), "Caption", EXACT_MATCH, "output/demo_caption"),
    "vqa": Demo((CAPTION, VQA, halved(VQA, 2, 80, "init_lr=5e-4")), "VQA", ACCURACY, "output/demo_vqa"),
    "retrieval": Demo(
        (CAPTION, RETRIEVAL, halved(RETRIEVAL, 3, 150, "init_lr=5e-4", "epoch_steps=200")),
        "RetrievalFlickr",
        RECALL,
        "output/demo_retrieval",
    ),
    "clip": Demo(
        (CLIP, halved(CLIP, 3, 80, "init_lr=5e-4", "epoch_steps=90")), "RetrievalClip", RECALL, "output/demo_clip"
    ),
}


def command(stage: Stage, folder: Path, data: str, quick: bool) -> list[str]:
    """The arguments of a stage, as a user would type them."""
    arguments = [
        own_file(f"{stage.script}.py"),
        "--p",
        f"{QUICK_P if quick and stage.p else stage.p:g}",
        "--config",
        own_file(stage.config),
    ]
    if stage.start:
        arguments += ["--pretrained", f"{folder}/{stage.start}/{BEST}"]
    arguments += ["--output_dir", f"{folder}/{stage.name}", "--num_workers", "0", "--overwrite", *stage.extra]
    return arguments + (["--epoch", "1", "--set", *quick_keys(stage.config, data)] if quick else [])


def quick_keys(config: str, data: str) -> list[str]:
    """What --quick changes in a config: fewer steps, and the small data's folders."""
    lines = [line.partition(": ") for line in Path(own_file(config)).read_text(encoding="utf-8").splitlines()]
    moved = [f"{key}={value.replace('datasets/demo', data)}" for key, _, value in lines if "datasets/demo" in value]
    return QUICK_KEYS + [entry for entry in moved if not entry.startswith("#")]
