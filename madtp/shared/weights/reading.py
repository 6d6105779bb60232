"""One file of weights from the disk: PyTorch's own, or safetensors, or the index of several. Nothing in it is run."""

import re
import zipfile
from pathlib import Path

import torch

from madtp.method.errors import UserError, excerpt
from madtp.shared.files import FETCH, forbidden, is_pointer, no_checkpoint, read_json

AGAIN = "fetch the folder again"


def read_file(path: str | Path) -> object:
    """What a file holds, its tensors on the CPU; a safetensors file is a dict of tensors.

    Raises:
        UserError: there is no such file, it may not be read, is damaged, stands for a file that was not fetched, or
            wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise no_checkpoint(path, "--pretrained")
    try:
        fetched = not is_pointer(path)
        if fetched and _is_safetensors(path):
            return _safetensors(path)
        if fetched:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except PermissionError as error:
        raise forbidden(path) from error
    except Exception as error:  # there is no telling what is raised over broken bytes
        raise UserError(f"{path}: {_why_unreadable(error)}") from error
    raise UserError(f"{path} holds no weights, it is {FETCH}")


def weight_map(index: Path) -> dict[str, str]:
    """Which of the files beside an index holds each tensor.

    Raises:
        UserError: it is no index, or names a file that is elsewhere.
    """
    content = read_json(index, AGAIN)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(part, str) for part in places.values()):
        raise UserError(f"{index}: expected a weight_map of names and files; {AGAIN}")
    if elsewhere := next((part for part in places.values() if part != Path(part).name), None):
        raise UserError(f"{index}: {excerpt(elsewhere)} is not a file beside it; {AGAIN}")
    return places


def _is_safetensors(path: Path) -> bool:
    """Whether a file, whatever its name, begins as one of safetensors: the length of a header in JSON, and that."""
    with open(path, "rb") as file:
        length, brace = int.from_bytes(file.read(8), "little"), file.read(1)
    return brace == b"{" and length < path.stat().st_size


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import safe_open  # only now: PyTorch's own files need no more than PyTorch

    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict


def _why_unreadable(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"can be read by the package {error.name} alone: python -m pip install {error.name}"
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    if wanted:
        return f"refused, because reading it would run code ({wanted[1]}); save its state dict alone, as tensors"
    if "TorchScript" in str(error):
        return "is a TorchScript archive, which only the CLIP task reads"
    return "is not a checkpoint or is damaged; fetch it again, or take another"
