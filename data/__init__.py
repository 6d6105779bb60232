"""The data sets of every task, read from BLIP's annotation files, and their loaders."""

from torch.utils.data import Dataset

from data.caption_dataset import CaptionEvaluation, CaptionTrain
from data.loading import create_loader
from data.nlvr_dataset import NLVRDataset
from data.retrieval_dataset import FILES, RetrievalEvaluation, RetrievalTrain
from data.transforms import evaluation_transform, training_transform
from data.vqa_dataset import VQAEvaluation, VQATrain
from utils import UserError

__all__ = ["create_dataset", "create_loader"]


def create_dataset(task: str, config: dict, evaluate: bool = False) -> tuple[Dataset | None, Dataset, Dataset]:
    """Returns the training, validation and test sets of a task.

    Args:
        task: "nlvr", "caption", "vqa" or any "retrieval..."; the latter on `config["dataset"]`, "coco" or "flickr".
        config: `image_size`, `ann_root` and `image_root` (VQA: `vqa_root`, `vg_root`, `train_files`); captions have a
            `prompt`; without `augment` training samples are treated like those of evaluation.
        evaluate: leave out the training set, and read none of its files.

    Raises:
        UserError: a missing file or folder, or a wrong entry.
    """
    evaluation = evaluation_transform(config["image_size"])
    augment = config.get("augment", True)
    training = training_transform(config["image_size"]) if augment else evaluation
    ann_root = config["ann_root"]

    if task == "vqa":
        roots = {key: config[key] for key in ("vqa_root", "vg_root")}
        train = None if evaluate else VQATrain(training, roots, ann_root, config["train_files"])
        return train, *(VQAEvaluation(evaluation, roots, ann_root, [name]) for name in ("vqa_val", "vqa_test"))

    folders = config["image_root"], ann_root
    if task == "nlvr":
        train = None if evaluate else NLVRDataset(training, *folders, "train", swap=augment)
        return train, *(NLVRDataset(evaluation, *folders, split) for split in ("dev", "test"))
    if task == "caption":
        train = None if evaluate else CaptionTrain(training, *folders, config["prompt"])
        return train, *(CaptionEvaluation(evaluation, *folders, split) for split in ("val", "test"))
    if task.startswith("retrieval"):
        dataset = config["dataset"]
        if dataset not in FILES:
            raise UserError(f"dataset: {dataset!r} should be one of {list(FILES)}; set it in the config")
        train = None if evaluate else RetrievalTrain(training, *folders, dataset)
        return train, *(RetrievalEvaluation(evaluation, *folders, dataset, split) for split in ("val", "test"))
    raise ValueError(f"unknown task {task!r}")
