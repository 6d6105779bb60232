"""One checked configuration from defaults, a YAML file and the command line, each overriding the one before."""

import argparse
import difflib
import io
import sys
import types
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from madtp import scalars
from madtp.caption_metrics import SCORERS
from utils import UserError, excerpt, write_atomic

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
        items: what each item of a list may be.
        length: of a list, any if None.
        fields: the keys that a mapping may hold, any if empty.
    """

    default: object
    kind: type | types.UnionType | None = None
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
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
        if self.items and isinstance(value, list):
            return [self.items.checked(item, f"{name}[{place}]", source) for place, item in enumerate(value)]
        if self.fields and isinstance(value, dict):
            return checked(value, dict(self.fields), source, f"{name}.")
        return value

    def _allows(self, value: object) -> bool:
        if isinstance(value, str):
            return not self.choices or value in self.choices
        if isinstance(value, list):
            return self.length is None or len(value) == self.length
        above = self.least is None or value >= self.least
        return above and (self.most is None or value <= self.most)

    def _expected(self, kind: type | types.UnionType) -> str:
        names = KINDS | {str: f"one of {', '.join(self.choices)}" if self.choices else KINDS[str]}
        names |= {list: f"a list of {self.length}" if self.length else KINDS[list]}
        wanted = " or ".join(names[one] for one in getattr(kind, "__args__", [kind]))
        limits = [f"at least {self.least:g}"] if self.least is not None else []
        limits += [f"at most {self.most:g}"] if self.most is not None else []
        return ", ".join([wanted, *limits])


def checked(values: dict, keys: dict[str, Key], source: str, prefix: str = "") -> dict:
    """Checks names, types and ranges; a UserError names the source, the key and the closest known one."""
    for name in values:
        if name not in keys:
            unknown = excerpt(name).strip("'")
            closest = difflib.get_close_matches(unknown, keys, n=1, cutoff=0.0)[0]
            raise UserError(f"{source}: unknown key '{prefix}{unknown}', the closest known key is '{prefix}{closest}'")
    return {name: keys[name].checked(value, f"{prefix}{name}", source) for name, value in values.items()}


SIZE = Key(1, least=1)
VIT_FIELDS = (("embed_dim", SIZE), ("depth", SIZE), ("num_heads", SIZE), ("patch_size", SIZE))
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
    "keep": Key("batch", choices=("batch", "sample")),
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
        "num_beams": Key(3, least=1),
        "metrics": Key(list(SCORERS), items=Key("", choices=tuple(SCORERS))),
    },
    "vqa": {
        "vqa_root": Key("datasets/vision/coco"),
        "vg_root": Key("datasets/vision/visual-genome"),
        "train_files": Key(["vqa_train", "vqa_val", "vg_qa"], items=Key("")),
        "inference": Key("rank", choices=("rank", "generate")),
        "k_test": Key(128, least=1),
    },
    "retrieval": RETRIEVAL_KEYS,
    "retrieval_flickr": RETRIEVAL_KEYS,
    "retrieval_clip": RETRIEVAL_KEYS | {"clip": Key(None, dict, fields=CLIP_FIELDS)},
}


# The smallest and largest values of flags.
LEAST = {"accum": 1, "num_workers": 0, "seed": 0, "world_size": 1, "temperature": 0, "save_steps": 0}
LEAST |= {"skip_nonfinite": 0}
MOST = {"seed": 2**32 - 1}


def parse(argv: Sequence[str] | None, task) -> tuple[argparse.Namespace, dict]:
    """Reads the command line of a task and the YAML file it names.

    Args:
        argv: the arguments, those of the process if None.
        task: its `name` decides which keys exist, its `default_config` is the default of --config.

    Returns:
        The flags, and the configuration: defaults < file < --set < --pretrained, --epoch, --clip_grad and --keep.

    Raises:
        UserError: a flag, key or value that does not exist or does not fit, or a file that cannot be read.
    """
    args = command_line(task).parse_args(argv)
    _check(args)
    keys, config = keys_of(task.name), resolve(args.config, task.name, args.set)
    if args.epoch is not None:
        config |= checked({"max_epoch": args.epoch}, keys, "--epoch")
    if args.clip_grad is not None:
        config |= checked({"clip_grad": args.clip_grad}, keys, "--clip_grad")
    if args.pretrained is not None:
        config["pretrained"] = args.pretrained
    if args.keep is not None:
        config["keep"] = args.keep
    return args, config


def keys_of(task: str) -> dict[str, Key]:
    """The keys that the configuration of a task has, by name."""
    return COMMON_KEYS | TASK_KEYS.get(task, {})


def resolve(path: str, task: str, assignments: Iterable[str] = ()) -> dict:
    """The configuration of a task: defaults < the file at `path` < `assignments`, each KEY=VALUE.

    Raises:
        UserError: a key or value that does not exist or does not fit, or a file that cannot be read.
    """
    keys = keys_of(task)
    config = {name: deepcopy(key.default) for name, key in keys.items()}
    config |= checked(_split_batch_size(_read(path)), keys, path)
    for assignment in assignments:
        keypath, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: expected KEY=VALUE")
        name, *inner = keypath.split(".")
        value = _put(config.get(name, {}), name, inner, _yaml(text, f"--set {assignment}"))
        config |= checked(_split_batch_size({name: value}), keys, "--set")
    return config


def task_of(path: str) -> str:
    """The task that a configuration file is for: the one whose own keys it has; NLVR2 has none.

    Of retrieval BLIP's and CLIP's keys are the same, but CLIP's files choose neither a ViT nor a BERT.

    Raises:
        UserError: the file cannot be read.
    """
    names = _read(path).keys()
    task = max(["nlvr", *TASK_KEYS], key=lambda task: len(names & TASK_KEYS.get(task, {}).keys()))
    return "retrieval_clip" if task == "retrieval" and names.isdisjoint(("vit", "med_config")) else task


def write(config: dict, path: str | Path) -> None:
    """Writes `config` as YAML which `--config` reads back as the same configuration."""
    text = io.StringIO()
    _loader().dump(config, text)
    write_atomic(path, text.getvalue())


def command_line(task) -> argparse.ArgumentParser:
    """The flags, the same for every task but for two defaults."""
    parser = _Parser(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flag = parser.add_argument
    flag("--config", default=task.default_config, help="YAML file")
    flag("--output_dir", default=f"output/{task.name}", help="folder for checkpoints, logs and results")
    flag("--pretrained", help="checkpoint to start from or to evaluate, instead of the config's")
    flag("--download", action="store_true", help="fetch the published CLIP that --pretrained names, if it is missing")
    flag("--evaluate", action="store_true", help="evaluate only")
    flag("--p", type=float, default=0.5, help="share of the GFLOPs to remove; 0 is the dense model")
    flag("--epoch", type=int, help="number of epochs, instead of the config's max_epoch")
    flag("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:NUMBER")
    flag("--seed", type=int, default=42, help="of every random draw")
    flag("--amp", choices=("auto", "bf16", "fp16", "off"), default="auto", help="mixed precision")
    flag("--accum", type=int, default=1, help="batches per optimizer step")
    flag("--num_workers", type=int, default=4, help="processes that load data, for each rank")
    flag("--bad_images", choices=("stop", "skip"), default="stop", help="what training does at an unreadable image")
    flag("--temperature", type=float, help="pruning temperature for the whole run, instead of a controller")
    flag(
        "--keep", choices=("batch", "sample"), help="the rule of keeping tokens, instead of the config's or the model's"
    )
    flag("--controller", choices=("closed_loop", "ladder"), default="closed_loop", help="what steers the temperature")
    flag("--resume", nargs="?", const="auto", metavar="auto|PATH", help="go on from checkpoint_last.pth or from PATH")
    flag("--resume_anyway", action="store_true", help="go on although p, config or another setting differs")
    flag("--save_steps", type=int, default=0, help="optimizer steps between checkpoints within an epoch; 0 for none")
    flag("--skip_nonfinite", type=int, default=0, help="steps without a finite loss and gradient to pass over")
    flag("--clip_grad", type=float, help="largest norm of the gradient, instead of the config's clip_grad; 0 for any")
    flag("--deterministic", action="store_true", help="only operations that repeat exactly, also on GPUs")
    flag("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the config")
    flag("--tensorboard", action="store_true", help="write every epoch's numbers for TensorBoard too")
    flag("--wandb", action="store_true", help="write every epoch's numbers to Weights & Biases too")
    flag("--world_size", type=int, default=1, help="number of processes under SLURM without srun's variables")
    flag("--dist_url", default="env://", help="where the processes meet")
    flag("--distributed", nargs="?", const=True, default=True, help="accepted for old scripts; the launcher decides")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; --help lists the flags")


def _check(args: argparse.Namespace) -> None:
    """Checks the flags that argparse cannot."""
    if not 0 <= args.p < 1:
        raise UserError(f"--p is {args.p:g}, expected a share of the GFLOPs to remove, at least 0 and below 1")
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise UserError(f"--{name} is {value}, expected at least {least}")
        if value is not None and value > MOST.get(name, value):
            raise UserError(f"--{name} is {value}, expected at most {MOST[name]}")
    for flag in filter(vars(args).get, ("tensorboard", "wandb")):
        scalars.check_installed(flag)
    check_device(args.device)


def check_device(name: str) -> None:
    """Refuses a device that is none, or that this machine does not have."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device is {name!r}, expected cpu, cuda or cuda:NUMBER") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is {name!r}, expected cpu, cuda or cuda:NUMBER")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device is {name!r}, but {torch.cuda.device_count()} GPUs are visible; try cpu")


def _loader() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    return yaml


def _yaml(text: str, source: str) -> object:
    """Reads YAML 1.2, in which 1e-5 is a number."""
    try:
        return _loader().load(text)
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{source}{line}: not YAML: {error.problem}") from error
    except Exception as error:  # there is no telling what is raised over a value that is not what its tag says
        raise UserError(f"{source}: not YAML: {str(error).partition(chr(10))[0] or type(error).__name__}") from error


def _read(path: str) -> dict:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; --config names the YAML file to use") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a YAML file; --config names the one to use") from error
    values = _yaml(text, path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected lines of 'key: value'")
    return values


def _split_batch_size(values: dict) -> dict:
    """Lets `batch_size` stand for both sizes, unless they are given beside it."""
    if "batch_size" not in values:
        return values
    rest = {name: value for name, value in values.items() if name != "batch_size"}
    return {"batch_size_train": values["batch_size"], "batch_size_test": values["batch_size"], **rest}


def _put(old: object, name: str, path: list[str], value: object) -> object:
    """Returns `old`, the value of `name`, with what `path` leads to replaced by `value`."""
    if not path:
        return value
    if not isinstance(old, dict):
        way_out = f"set all of it, {name}='{{...}}'"
        raise UserError(f"--set {name}.{path[0]}: {name} is {excerpt(old)}, not a mapping; {way_out}")
    return {**old, path[0]: _put(old.get(path[0], {}), f"{name}.{path[0]}", path[1:], value)}
