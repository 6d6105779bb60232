"""The cells of the experiment: which models, which steps, which files."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison.methods import DEPTH, METHODS
from madtp.shared.run_files import BEST

TASKS = ("nlvr", "vqa", "caption")
PRETRAINED = 1  # the seed of the captioner that all start from: as with BLIP, there is one for all
BATCH = 32  # of evaluation, where no other is named
MODEL = (f"vit={{embed_dim: 96, depth: {DEPTH}, num_heads: 3, patch_size: 12}}",)
DENSE_TRAINING = {
    "caption": ("max_epoch=4",),
    "vqa": ("max_epoch=2",),
    "nlvr": ("max_epoch=4", "epoch_steps=250", "init_lr=7e-4", "warmup_steps=50"),
}
EPOCHS, STEPS = 4, 25  # of fine-tuning, and in each of them
FINE_TUNING = ("init_lr=3e-4", "warmup_steps=10", "ramp=0")


@dataclass(frozen=True)
class Cell:
    """A method "dense" has p 0."""

    task: str
    seed: int
    method: str = "dense"
    p: float = 0.0

    @property
    def name(self) -> str:
        """Names its files."""
        return f"{self.task}-{self.seed}-{self.method}" + (f"-{self.p:g}" if self.p else "")

    @property
    def epoch_steps(self) -> int:
        """Steps in each of its epochs of fine-tuning."""
        return STEPS * METHODS[self.method].longer

    @property
    def training(self) -> tuple[str, ...]:
        """How it trains, in settings of its script."""
        if not self.p:
            return DENSE_TRAINING[self.task]
        return (f"max_epoch={EPOCHS}", f"epoch_steps={self.epoch_steps}", *FINE_TUNING)

    @property
    def command(self) -> str:
        """Runs this cell alone."""
        chosen = f"--methods {self.method} --p {self.p:g} " if self.p else "--methods dense "
        return f"python -m benchmarks.experiment --task {self.task} {chosen}--seeds {self.seed}"

    @property
    def earlier(self) -> "Cell | None":
        """The cell whose checkpoint this one starts from."""
        if self.p:
            return Cell(self.task, self.seed)
        return {"nlvr": Cell("vqa", self.seed), "vqa": Cell("caption", PRETRAINED)}.get(self.task)


@dataclass(frozen=True)
class Places:
    """Where generated data and checkpoints lie."""

    data: Path
    output: Path

    def checkpoint(self, cell: Cell) -> Path:
        """Of a dense model."""
        return self.output / cell.name / BEST

    def arguments(self, cell: Cell) -> list[str]:
        """The command line of the task's script for a cell."""
        data, images = self.data / str(cell.seed), "image_root={}/images"
        roots = ["vqa_root={}/images", "vg_root={}/images"] if cell.task == "vqa" else [images]
        roots += ["coco_gt_root={}/annotation/coco_gt", "metrics=[]"] if cell.task == "caption" else []
        roots += ["ann_root={}/annotation", "tokenizer={}/tokenizer"]
        start = [] if cell.earlier is None else ["--pretrained", str(self.checkpoint(cell.earlier))]
        settings = [root.format(data) for root in roots] + [*MODEL, f"batch_size_test={BATCH}", *cell.training]
        flags = ["--seed", str(cell.seed), "--num_workers", "0", "--device", "cpu", "--p", str(cell.p)]
        folder = ["--output_dir", str(self.output / cell.name)]
        return [*flags, *folder, *start, "--config", f"configs/demo/{cell.task}.yaml", "--set", *settings]
