"""The scripts by the tasks that they run."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from madtp.run.task import Task

SCRIPTS = {
    "nlvr": ("compress_nlvr_dtp", "NLVR"),
    "caption": ("compress_caption_dtp", "Caption"),
    "vqa": ("compress_vqa_dtp", "VQA"),
    "retrieval": ("compress_retrieval_dtp", "RetrievalCOCO"),
    "retrieval_flickr": ("compress_retrieval_flickr_dtp", "RetrievalFlickr"),
    "retrieval_clip": ("compress_retrieval_clip_dtp", "RetrievalClip"),
}


def task_named(name: str) -> "Task":
    """A task by its name."""
    module, kind = SCRIPTS[name]
    return getattr(importlib.import_module(module), kind)()
