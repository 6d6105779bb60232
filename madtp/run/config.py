"""One checked configuration from defaults, a YAML file and assignments, each overriding the one before."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from madtp.method.errors import UserError, excerpt
from madtp.method.rules import COVERAGE, refuse_idle
from madtp.run.clone import own_file
from madtp.run.keys import COMMON_KEYS, TASK_KEYS, checked, keys_of
from madtp.shared.files import write_atomic

if TYPE_CHECKING:
    from ruamel.yaml import YAML


def resolve(path: str, task: str, assignments: Iterable[str] = ()) -> dict:
    """The configuration of a task: defaults < the file at `path` < `assignments`, each KEY=VALUE.

    A text that begins with ~/ is a path in the user's home, which no shell has put in its place here.

    Raises:
        UserError: a key or value that does not exist or does not fit, or a file that cannot be read.
    """
    keys, config = keys_of(task), defaults(task)
    config |= checked(_split_batch_size(_read(path)), keys, path)
    for assignment in assignments:
        keypath, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: expected KEY=VALUE")
        name, *inner = keypath.split(".")
        value = "" if not text and isinstance(config.get(name), str) else _yaml(text, f"--set {assignment}")
        value = _put(config.get(name, {}), name, inner, value)
        config |= checked(_split_batch_size({name: value}), keys, "--set")
    at_home = {name: text for name, text in config.items() if isinstance(text, str) and text.startswith("~/")}
    config |= {name: os.path.expanduser(text) for name, text in at_home.items()}
    for name in ("med_config", "tokenizer"):
        config[name] = own_file(config[name]) if isinstance(config[name], str) else config[name]
    return config


def refuse_unsaid_shape(config: dict, temperature: float | None) -> None:
    """Raises a UserError where the amount of coverage is given, and nobody says when tokens go."""
    if config["keep"] == COVERAGE and temperature and config["shape"] is None:
        raise UserError(f"--temperature {temperature:g} is an amount by coverage and needs a shape: --set shape=1")


def refuse_contradictions(config: dict) -> None:
    """Raises a UserError where keys of a training run leave one another without effect, or turn it around."""
    refuse_idle(config["keep"], config["shape"], config["keep_norm"])
    if config["vit_grad_ckpt"] and not config["vit_ckpt_layer"]:
        idle = "vit_grad_ckpt is true, but vit_ckpt_layer 0 recomputes no layer"
        raise UserError(f"{idle}; say of how many, like --set vit_ckpt_layer=12, or leave both out")
    if config["min_lr"] > config["init_lr"]:
        least, first = config["min_lr"], config["init_lr"]
        raise UserError(f"min_lr {least:g} is above init_lr {first:g}, from which the rate falls to it; lower min_lr")


def named(assignments: Iterable[str]) -> set[str]:
    """The keys that assignments set."""
    return {assignment.partition("=")[0].partition(".")[0] for assignment in assignments}


def defaults(task: str) -> dict:
    """The configuration of a task where nobody says anything."""
    return {name: deepcopy(key.default) for name, key in keys_of(task).items()}


def task_of(path: str) -> str:
    """The task that a configuration file is for: the one whose own keys it has; NLVR2 has none.

    Of retrieval BLIP's and CLIP's keys are the same, but CLIP's files choose neither a ViT nor a BERT.

    Raises:
        UserError: the file cannot be read.
    """
    names = _read(path).keys()
    own = names - COMMON_KEYS.keys()
    task = max(["nlvr", *TASK_KEYS], key=lambda task: len(own & TASK_KEYS.get(task, {}).keys()))
    return "retrieval_clip" if task == "retrieval" and names.isdisjoint(("vit", "med_config")) else task


def write(config: dict, path: str | Path) -> None:
    """Writes `config` as YAML which `--config` reads back as the same configuration."""
    text = io.StringIO()
    _loader().dump(config, text)
    write_atomic(path, text.getvalue())


def _loader() -> YAML:
    from ruamel.yaml import YAML  # only now, so that whoever makes a configuration in Python needs no YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    return yaml


def _yaml(text: str, source: str) -> object:
    """Reads YAML 1.2, in which 1e-5 is a number."""
    from ruamel.yaml.error import MarkedYAMLError

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
        reason = getattr(error, "strerror", None) or "no text in UTF-8"
        raise UserError(f"{path}: cannot be read as a YAML file: {reason}; --config names the one to use") from error
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
