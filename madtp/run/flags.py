"""The command line of the six scripts, the same for every task."""

import argparse
import math
import sys
from collections.abc import Sequence

import torch

from madtp.method.errors import Flags, UserError
from madtp.method.rules import RULES
from madtp.run import scalars
from madtp.run.clone import named_path, own_file
from madtp.run.config import refuse_contradictions, resolve
from madtp.run.keys import checked, keys_of
from madtp.shared.files import PIPE_CLOSED, stop_printing

# The smallest and largest values of flags.
LEAST = {"accum": 1, "num_workers": 0, "seed": 0, "world_size": 1, "temperature": 0, "save_steps": 0}
LEAST |= {"skip_nonfinite": 0}
MOST = {"seed": 2**32 - 1, "num_workers": 1024}  # a mistyped number of processes would take the machine down


def parse(argv: Sequence[str] | None, task) -> tuple[argparse.Namespace, dict]:
    """Reads the command line of a task and the YAML file it names.

    Args:
        argv: the arguments, those of the process if None.
        task: its `name` decides which keys exist, its `default_config` is the default of --config.

    Returns:
        The flags, and the configuration: defaults < file < --set < --pretrained, --epoch, --clip_grad, --keep, --amp.

    Raises:
        UserError: a flag, key or value that does not exist or does not fit the others, or a file that cannot be read.
    """
    try:
        args = command_line(task).parse_args(argv)
    except BrokenPipeError:  # as of `--help | head`: who read has had enough
        stop_printing()
        sys.exit(PIPE_CLOSED)
    _check(args)
    keys, config = keys_of(task.name), resolve(args.config, task.name, args.set)
    if args.epoch is not None:
        config |= checked({"max_epoch": args.epoch}, keys, "--epoch")
    if args.clip_grad is not None:
        config |= checked({"clip_grad": args.clip_grad}, keys, "--clip_grad")
    if args.pretrained is not None:
        config["pretrained"] = args.pretrained
    for name in ("keep", "amp"):
        if getattr(args, name) is not None:
            config[name] = getattr(args, name)
    if not args.evaluate:
        refuse_contradictions(config)
    return args, config


def command_line(task) -> argparse.ArgumentParser:
    """The flags, the same for every task but for two defaults; help begins as the task's script does."""
    about = sys.modules[type(task).__module__].__doc__
    parser = Flags(description=about, allow_abbrev=False, formatter_class=_Help)
    flag = parser.add_argument
    flag("--config", type=named_path, default=own_file(task.default_config), help="YAML file")
    output = f"output/{task.name}"
    flag("--output_dir", type=named_path, default=output, help="folder for checkpoints, logs and results")
    flag("--pretrained", help="checkpoint to start from or to evaluate, instead of the config's")
    flag(
        "--download",
        action="store_true",
        help="fetch the CLIP or the repository of the Hugging Face hub that --pretrained names",
    )
    flag("--evaluate", action="store_true", help="score the model, train nothing")
    flag("--p", type=float, default=0.5, help="share of the GFLOPs to remove; 0 is the dense model")
    flag("--epoch", type=int, help="number of epochs, instead of the config's max_epoch")
    flag("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:NUMBER")
    flag("--seed", type=int, default=42, help="of every random draw")
    flag("--amp", choices=("auto", "bf16", "fp16", "off"), help="mixed precision, instead of the config's")
    flag("--accum", type=int, default=1, help="batches per optimizer step")
    flag("--num_workers", type=int, default=4, help="processes that load data, for each rank")
    flag("--bad_images", choices=("stop", "skip"), default="stop", help="what training does at an unreadable image")
    flag("--temperature", type=float, help="pruning temperature, or coverage's amount, instead of a controller")
    flag("--keep", choices=RULES, help="the rule of which tokens stay, instead of the config's or the model's")
    flag("--controller", choices=("closed_loop", "ladder"), default="closed_loop", help="what steers the temperature")
    resume = {"type": named_path, "nargs": "?", "const": "auto", "metavar": "auto|PATH"}
    flag("--resume", **resume, help="go on from checkpoint_last.pth or from PATH")
    flag("--resume_anyway", action="store_true", help="go on under other settings, for instance for more epochs")
    flag("--overwrite", action="store_true", help="replace the run that the output folder holds")
    flag("--save_steps", type=int, default=0, help="optimizer steps between checkpoints within an epoch; 0 for none")
    flag("--skip_nonfinite", type=int, default=0, help="steps without a finite loss and gradient to pass over")
    flag("--clip_grad", type=float, help="largest norm of the gradient, instead of the config's clip_grad; 0 for any")
    flag("--deterministic", action="store_true", help="only operations that repeat exactly, also on GPUs")
    flag("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the config")
    flag("--tensorboard", action="store_true", help="write every epoch's numbers for TensorBoard too")
    flag("--wandb", action="store_true", help="write every epoch's numbers to Weights & Biases too")
    flag("--world_size", type=int, default=1, help="number of processes under SLURM without srun's variables")
    flag("--dist_url", default="env://", help="where the processes meet")
    flag("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # of old launchers, whose variables say it
    flag("--distributed", nargs="?", const=True, default=True, help="accepted for old scripts; the launcher decides")
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Names the defaults that are values; None, False and nothing go without saying."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default is not None and action.default is not False and action.default != []
        return super()._get_help_string(action) if told else action.help


def _check(args: argparse.Namespace) -> None:
    """Checks the flags that argparse cannot."""
    if not 0 <= args.p < 1:
        raise UserError(f"--p is {args.p:g}, expected a share of the GFLOPs to remove, at least 0 and below 1")
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and not least <= value < math.inf:
            raise UserError(f"--{name} is {value}, expected a number, at least {least}")
        if value is not None and value > MOST.get(name, value):
            raise UserError(f"--{name} is {value}, expected at most {MOST[name]}")
    if args.evaluate and args.resume:
        raise UserError("--evaluate goes on with no run, so leave --resume out; --pretrained names what is scored")
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
