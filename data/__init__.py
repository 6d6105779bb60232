"""The data sets of every task, read from BLIP's annotation files, and their loaders."""

from pathlib import Path

from data.annotated import AnnotatedDataset
from data.caption_dataset import CaptionEvaluation, CaptionTrain
from data.loading import create_loader
from data.nlvr_dataset import NLVREvaluation, NLVRTrain
from data.retrieval_dataset import FILES, RetrievalEvaluation, RetrievalTrain
from data.vqa_dataset import VQAEvaluation, VQATrain, VQAValidation
from transform.pictures import evaluation_transform, training_transform
from utils import UserError

__all__ = ["create_dataset", "create_loader", "splits"]


def create_dataset(
    task: str, config: dict, evaluate: bool = False
) -> tuple[AnnotatedDataset | None, AnnotatedDataset, AnnotatedDataset]:
    """Returns the training, validation and test sets of a task.

    Args:
        task: as of `splits`.
        config: that of `splits`, `image_size` and `image_root` (VQA: `vqa_root`, `vg_root`); captions have a `prompt`
            and a `coco_gt_root`, VQA its `inference`; without `augment` training samples are treated like those of
            evaluation.
        evaluate: leave out the training set, and read none of its files.

    Raises:
        UserError: a missing file or folder, or a wrong entry.
    """
    evaluation = evaluation_transform(config["image_size"])
    training = training_transform(config["image_size"]) if config.get("augment", True) else evaluation
    transforms = {"train": training, "val": evaluation, "test": evaluation}
    return tuple(
        None if evaluate and split == "train" else dataset(transforms[split], files, config)
        for split, (dataset, files) in splits(task, config).items()
    )


def splits(task: str, config: dict) -> dict[str, tuple[type[AnnotatedDataset], list[Path]]]:
    """Returns the class and the annotation files of the training, validation and test sets of a task.

    Args:
        task: "nlvr", "caption", "vqa" or any "retrieval..."; the latter on `config["dataset"]`, "coco" or "flickr".
        config: `ann_root`; VQA: `train_files`.

    Raises:
        UserError: there is no such `dataset`.
    """
    names = {"train": ["nlvr_train"], "val": ["nlvr_dev"], "test": ["nlvr_test"]}
    if task == "nlvr":
        classes = NLVRTrain, NLVREvaluation, NLVREvaluation
    elif task == "vqa":
        classes = VQATrain, VQAValidation, VQAEvaluation
        trained = [name.removesuffix(".json") for name in config["train_files"]]  # as one reads them in a folder, too
        names = {"train": trained, "val": ["vqa_val"], "test": ["vqa_test"]}
    elif task == "caption":
        classes = CaptionTrain, CaptionEvaluation, CaptionEvaluation
        names = {split: [f"coco_karpathy_{split}"] for split in names}
    elif task.startswith("retrieval"):
        classes = RetrievalTrain, RetrievalEvaluation, RetrievalEvaluation
        if config["dataset"] not in FILES:
            raise UserError(f"dataset: {config['dataset']!r} should be one of {list(FILES)}; set it in the config")
        names = {split: [f"{FILES[config['dataset']]}_{split}"] for split in names}
    else:
        raise ValueError(f"unknown task {task!r}")
    root = Path(config["ann_root"])
    return {
        split: (dataset, [root / f"{name}.json" for name in files])
        for dataset, (split, files) in zip(classes, names.items(), strict=True)
    }
