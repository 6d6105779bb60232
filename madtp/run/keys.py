"""The keys of a configuration: their defaults, types and ranges."""

import difflib
import math
import sys
import types
from dataclasses import dataclass

from madtp.method.errors import LARGEST, UserError, excerpt
from madtp.method.rules import RULES

CAPTION_SCORES = ("Bleu", "METEOR", "ROUGE_L", "CIDEr", "SPICE")

KINDS = {str: "text", int: "an integer", float: "a number", bool: "true or false", list: "a list", dict: "a mapping"}


@dataclass(frozen=True)
class Key:
    """What one key of a configuration may hold; None only where that is the default.

    Attributes:
        default: the value where nobody says otherwise.
        kind: its type or types, the default's own unless given. An integer will do for a float.
        choices: the texts it may be, any if empty.
        least: the smallest number.
        most: the largest number.
        fewest: the smallest number of items of a list.
        items: what each item of a list may be.
        length: of a list, any if None.
        fields: the keys that a mapping may hold, any if empty.
    """

    default: object
    kind: type | types.UnionType | None = None
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    fewest: int | None = None
    items: "Key | None" = None
    length: int | None = None
    fields: tuple[tuple[str, "Key"], ...] = ()

    def checked(self, value: object, name: str, source: str) -> object:
        """Returns `value` in its proper type, or raises a UserError that names `source` and `name`."""
        kind = self.kind or type(self.default)
        if value is None and self.default is None:
            return None
        if kind is float and type(value) is int and abs(value) < sys.float_info.max:
            value = float(value)
        is_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not is_kind or not self._allows(value):
            raise UserError(f"{source}: {name} is {excerpt(value)}, expected {self._expected(kind)}")
        if type(value) is int and value > LARGEST:
            raise UserError(f"{source}: {name} is {excerpt(value)}, expected an integer, at most {LARGEST}")
        if self.items and isinstance(value, list):
            return [self.items.checked(item, f"{name}[{place}]", source) for place, item in enumerate(value)]
        if self.fields and isinstance(value, dict):
            return checked(value, dict(self.fields), source, f"{name}.")
        return value

    def _allows(self, value: object) -> bool:
        if isinstance(value, str):
            return not self.choices or value in self.choices
        if isinstance(value, list):
            return self.length in (None, len(value)) and len(value) >= (self.fewest or 0)
        above = (self.least is None or value >= self.least) and value != math.inf
        return above and (self.most is None or value <= self.most)

    def _expected(self, kind: type | types.UnionType) -> str:
        names = KINDS | {str: f"one of {', '.join(self.choices)}" if self.choices else KINDS[str]}
        names |= {list: f"a list of {self.length}" if self.length else KINDS[list]}
        wanted = " or ".join(names[one] for one in getattr(kind, "__args__", [kind]))
        limits = [f"at least {least:g}" for least in (self.least, self.fewest) if least is not None]
        limits += [f"at most {self.most:g}"] if self.most is not None else []
        return ", ".join([wanted, *limits])


def checked(values: dict, keys: dict[str, Key], source: str, prefix: str = "") -> dict:
    """Checks names, types and ranges; a UserError names the source, the key, and whose key it is or the closest one."""
    for name in values:
        if name not in keys:
            unknown = excerpt(name).strip("'")
            owners = [task for task, own in TASK_KEYS.items() if name in own and not prefix]
            if owners:
                whose = f"'{unknown}', which is one of {', '.join(owners)}"
                raise UserError(f"{source}: unknown key {whose}; take a file of this task, or that task")
            closest = difflib.get_close_matches(unknown, keys, n=1, cutoff=0.0)[0]
            raise UserError(f"{source}: unknown key '{prefix}{unknown}', the closest known key is '{prefix}{closest}'")
    return {name: keys[name].checked(value, f"{prefix}{name}", source) for name, value in values.items()}


SIZE = Key(1, least=1)
VIT_FIELDS = tuple((name, SIZE) for name in ("embed_dim", "depth", "num_heads", "patch_size"))
VIT_FIELDS += (("mlp_ratio", Key(4.0, least=0)), ("norm_eps", Key(1e-6, least=0)))
CLIP_SIZES = (
    "embed_dim vision_width vision_layers vision_patch_size transformer_width transformer_layers context_length"
)
CLIP_FIELDS = tuple((name, SIZE) for name in CLIP_SIZES.split())

COMMON_KEYS = {
    # Files.
    "image_root": Key("datasets/vision"),
    "ann_root": Key("annotation"),
    "pretrained": Key(""),
    "tokenizer": Key("pretrained/bert-base-uncased"),
    # Model.
    "image_size": Key(384, least=1),
    "vit": Key("base", str | dict, choices=("tiny", "small", "base", "large"), fields=VIT_FIELDS),
    "vit_grad_ckpt": Key(False),
    "vit_ckpt_layer": Key(0, least=0),
    "med_config": Key("configs/med_config.json", str | dict),
    "init_scheme": Key("bert", choices=("bert", "xavier")),
    "drop_path": Key(None, float, least=0, most=1),
    # Alignment guidance and the temperature controller.
    "sd_num": Key(100, least=1),
    "sd_dim": Key(768, least=1),
    "keep": Key("batch", choices=RULES),
    "shape": Key(None, float, least=0.05, most=20),
    "keep_norm": Key(False),
    "distill": Key(0.0, least=0),
    "ramp": Key(0.5, least=0, most=1),
    "calibration_batches": Key(16, least=1),
    "cost_slack": Key(0.04, least=0),
    # Training.
    "batch_size_train": Key(16, least=1),
    "batch_size_test": Key(32, least=1),
    "max_epoch": Key(5, least=1),
    "epoch_steps": Key(0, least=0),
    "init_lr": Key(1e-5, least=0),
    "min_lr": Key(0.0, least=0),
    "lr_schedule": Key("epoch", choices=("epoch", "step")),
    "warmup_steps": Key(0, least=0),
    "weight_decay": Key(0.05, least=0),
    "betas": Key([0.9, 0.999], length=2, items=Key(0.0, least=0, most=0.999999)),
    "clip_grad": Key(0.0, least=0),
    "augment": Key(True),
    "print_freq": Key(50, least=1),
    "amp": Key("auto", choices=("auto", "bf16", "fp16", "off")),
}

RETRIEVAL_KEYS = {
    "dataset": Key("coco", choices=("coco", "flickr")),
    "queue_size": Key(57600, least=1),
    "alpha": Key(0.4, least=0, most=1),
    "k_test": Key(256, least=1),
    "negative_all_rank": Key(True),
}

TASK_KEYS = {
    "caption": {
        "coco_gt_root": Key("annotation/coco_gt"),
        "prompt": Key("a picture of "),
        "max_length": Key(20, least=1),
        "min_length": Key(5, least=0),
        "num_beams": Key(3, least=1, most=1024),
        "metrics": Key(list(CAPTION_SCORES), items=Key("", choices=CAPTION_SCORES)),
    },
    "vqa": {
        "vqa_root": Key("datasets/vision/coco"),
        "vg_root": Key("datasets/vision/visual-genome"),
        "train_files": Key(["vqa_train", "vqa_val", "vg_qa"], fewest=1, items=Key("")),
        "inference": Key("rank", choices=("rank", "generate")),
        "k_test": Key(128, least=1),
    },
    "retrieval": RETRIEVAL_KEYS,
    "retrieval_flickr": RETRIEVAL_KEYS,
    "retrieval_clip": RETRIEVAL_KEYS
    | {
        "clip": Key(None, dict, fields=CLIP_FIELDS),
        "image_size": Key(None, int, least=1),  # the checkpoint's
        # What no shape of a weight tells, where the checkpoint does not say it.
        "activation": Key(None, str, choices=("quick_gelu", "gelu")),
        "head_width": Key(None, int, least=1),
        "text_head_width": Key(None, int, least=1),
    },
}


def keys_of(task: str) -> dict[str, Key]:
    """The keys that the configuration of a task has, by name."""
    return COMMON_KEYS | TASK_KEYS.get(task, {})
