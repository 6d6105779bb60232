"""What the small models of these tests are, and what they are asked."""

import json

from madtp.__main__ import main

KEYS = {
    "nlvr": {},
    "caption": {"max_length": 12, "num_beams": 1},
    "vqa": {"k_test": 4},
    "retrieval": {"dataset": "coco", "queue_size": 8},
    "retrieval_clip": {"dataset": "coco", "queue_size": 8},
}
CLIP = {"embed_dim": 24, "vision_width": 64, "vision_layers": 3, "vision_patch_size": 12, "context_length": 20}
CLIP |= {"transformer_width": 32, "transformer_layers": 2}
TEXTS = {
    "nlvr": ["Both images contain a red circle."],
    "caption": [],
    "vqa": ["what color is the circle?"],
    "retrieval": ["a large red circle", "a small blue cross and a large green square"],
}
TEXTS["retrieval_clip"] = TEXTS["retrieval"]
TEMPERATURE = 20.0


def asked(capsys, *flags):
    """The records that --json prints."""
    assert main(["predict", *flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)
