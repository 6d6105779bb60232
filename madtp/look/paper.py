"""What the paper reports for its base models, to be held against: score at GFLOPs, task by task (arXiv 2403.02991).

GFLOPs are the paper's own, of the input that it counted; compare shares of dense. None of it was reproduced by us.
"""

from typing import NamedTuple


class Point(NamedTuple):
    """A model of the paper.

    Attributes:
        method: "dense", or how it was compressed.
        gflops: of one sample.
        scores: by the names of our logs.
    """

    method: str
    gflops: float
    scores: dict[str, float]


def _curve(method: str, metric: str, *pairs: tuple[float, float]) -> list[Point]:
    return [Point(method, gflops, {metric: score}) for score, gflops in pairs]


def _recall(gflops: float, image_to_text: float, text_to_image: float) -> list[Point]:
    return [Point("dense", gflops, {"txt_r1": image_to_text, "img_r1": text_to_image})]


# The first point is the dense model. MADTP's and static pruning's NLVR2 accuracies are read off a figure, +-0.1.
POINTS = {
    "nlvr": [
        *_curve("dense", "accuracy", (83.08, 132.5)),
        *_curve("MADTP", "accuracy", (83.2, 92.5), (82.9, 66.2), (82.4, 52.9), (81.2, 39.7), (79.2, 26.5)),
        *_curve("UPop", "accuracy", (81.13, 89.4), (77.61, 65.3), (73.55, 50.4), (68.76, 39.9)),
        *_curve("static pruning", "accuracy", (80.0, 94), (78.5, 63), (68.1, 51), (65.4, 39), (51.3, 24)),
    ],
    "caption": [
        Point("dense", 65.7, {"CIDEr": 133.3, "SPICE": 23.8}),
        Point("MADTP", 39.7, {"CIDEr": 131.0, "SPICE": 23.5}),
        Point("MADTP", 22.1, {"CIDEr": 120.1, "SPICE": 22.0}),
    ],
    "vqa": [
        *_curve("dense", "accuracy", (77.4, 186.1)),
        *_curve("MADTP", "accuracy", (76.8, 79.4), (76.3, 61.6)),
    ],
    "retrieval coco": _recall(153.2, 81.9, 64.3),
    "retrieval flickr": _recall(153.2, 96.8, 86.9),
    "retrieval_clip coco": _recall(395.7, 71.5, 56.8),
    "retrieval_clip flickr": _recall(395.7, 96.8, 86.6),
}

IMAGE_SIZES = {"nlvr": 384, "caption": 384, "vqa": 480, "retrieval": 384, "retrieval_clip": 336}


def points_for(task: str, config: dict) -> list[Point]:
    """The paper's points for a task, if the configuration is of the paper's model."""
    if config.get("image_size") != IMAGE_SIZES[task] or config.get("vit") != "base" or config.get("clip"):
        return []
    return POINTS[f"{task} {config['dataset']}" if task.startswith("retrieval") else task]
