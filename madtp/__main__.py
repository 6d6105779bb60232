"""The command: `python -m madtp NAME ...` or, once installed, `madtp NAME ...`; without a name it says which there are.

Flags are read before anything slow is imported, so that help and mistakes are answered at once.
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from madtp import __version__
from madtp.method.errors import Flags, UserError, as_user_error
from madtp.shared.files import ENDINGS, PIPE_CLOSED, no_checkpoint, print_any_text, stop_printing

CLONE = Path(__file__).parents[1]  # of the repository, unless `madtp` was installed alone
INSTALLED = ("madtp.method.", "madtp.cost.", "madtp.shared.")  # what does without the rest


class Command(NamedTuple):
    """What stands behind a name.

    Attributes:
        about: one line for the list.
        run: `module:function` that does it, given the flags; it returns the exit status, None for 0.
        flags: `module:function` that gives a parser its flags, if it has any. Its module must be quick to import.
    """

    about: str
    run: str
    flags: str = ""


COMMANDS = {
    "predict": Command(
        "answers about your own pictures, by any checkpoint, dense or compressed",
        "madtp.look.predict:run",
        "madtp.look.command_line:predict",
    ),
    "visualize": Command(
        "draws what a model keeps of the first samples of a data set, layer by layer, and why",
        "madtp.look.visualize:run",
        "madtp.look.command_line:visualize",
    ),
    "report": Command(
        "one static page about one or several runs: scores, cost, temperature, tokens, pictures",
        "madtp.look.report:run",
        "madtp.look.command_line:report",
    ),
    "app": Command(
        "a local page to play with: pictures in, answers, tokens and costs out",
        "madtp.look.app:run",
        "madtp.look.command_line:app",
    ),
    "demo": Command(
        "trains a small model on generated pictures, compresses it and compares the two",
        "madtp.look.demo:run",
        "madtp.look.command_line:demo",
    ),
    "demo_data": Command(
        "makes the pictures, questions and answers that the demo learns from",
        "data.demo:run",
        "madtp.look.command_line:demo_data",
    ),
    "flops": Command("prints the dense GFLOPs of the paper's models", "madtp.cost.flops:run"),
    "convert": Command(
        "converts a data set from its authors' files to those that the tasks read",
        "madtp.look.convert:run",
        "madtp.look.command_line:convert",
    ),
    "towers": Command(
        "makes a vision transformer and a BERT in transformers' form the start of BLIP's tasks",
        "madtp.look.towers:run",
        "madtp.look.command_line:towers",
    ),
    "export": Command(
        "writes a dense or fine-tuned model as transformers' classes load it; the pruning stays behind",
        "madtp.look.export:run",
        "madtp.look.command_line:export",
    ),
    "check": Command(
        "looks at all data of a configuration, so that no run of hours stumbles over it",
        "madtp.look.check:run",
        "madtp.look.command_line:check",
    ),
    "answers": Command(
        "makes VQA's list of answers to rank from the training questions",
        "madtp.scoring.answers:run",
        "madtp.look.command_line:answers",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line says; the exit status, 2 after one line about what the user has to mend."""
    print_any_text()
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        status = perform(name, words)
        print(end="", flush=True)  # also where there is no standard output
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # as of `| head`: who read the output has had enough
        stop_printing()
        return PIPE_CLOSED
    except Exception as error:
        if (fault := as_user_error(error)) is None:
            raise
        print(f"error: {' '.join(str(fault).split())}", file=sys.stderr)
        if isinstance(error, OSError):  # it may be the output that is full
            stop_printing()
        return 2


def listing() -> str:
    """Every command with its line."""
    rows = [f"  {name:10s} {command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "python -m madtp COMMAND ..., one of",
            *rows,
            "COMMAND --help lists the flags of each; compress_*_dtp.py --help those of training and evaluation; "
            "--version prints the version",
        ]
    )


def perform(name: str, words: Sequence[str]) -> int:
    """Runs one command with its flags, or lists all; the exit status.

    Raises:
        UserError: what the user has to mend, be it that a part of the project or a package is not there.
    """
    if name in ("-h", "--help"):
        print(listing())
        return 0
    if name == "--version":
        print(f"madtp {__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}, but {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    if find_spec("madtp.look") is None and not command.run.startswith(INSTALLED):
        raise UserError(
            f"{name} needs the whole repository, and what was installed is the method alone: "
            "clone it and run `python -m pip install -e .` in the clone"
        )
    if str(CLONE) not in sys.path:
        sys.path.insert(0, str(CLONE))  # models, data and the scripts are there, and are installed nowhere
    parser = Flags(prog=f"python -m madtp {name}", description=command.about, allow_abbrev=False)
    if command.flags:
        resolve_name(command.flags)(parser)
    args = parser.parse_args(words)
    for flag in ("checkpoint", "compare"):
        refuse_missing(getattr(args, flag, None) or (), f"--{flag}")
    try:
        return resolve_name(command.run)(args) or 0
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if (CLONE / package).exists() or (CLONE / f"{package}.py").exists():
            raise
        missing = f"{name} needs the package {package}, which is not installed"
        raise UserError(f"{missing}: python -m pip install -r {CLONE / 'requirements.txt'}") from error


def refuse_missing(checkpoints: str | Sequence[str], flag: str) -> None:
    """Raises a UserError about a file of weights that is not there, before anything slow is imported to read it."""
    # Other names may stand for folders, or be those of published models.
    for path in [checkpoints] if isinstance(checkpoints, str) else checkpoints:
        if path.endswith(ENDINGS) and not Path(path).exists():
            raise no_checkpoint(path, flag)


if __name__ == "__main__":
    sys.exit(main())
