"""Folders in the form of the transformers library: config.json and, beside it, the weights in one file or several."""

from pathlib import Path

from torch import Tensor

from madtp.method.errors import UserError, excerpt
from madtp.shared.files import read_json
from madtp.shared.weights.reading import read_file

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"


def read_config(folder: str | Path) -> dict:
    """What config.json says.

    Raises:
        UserError: there is none, or it is no model's.
    """
    path = Path(folder) / CONFIG
    values = read_json(path, "transformers' folders hold a model's config.json beside its weights")
    if not (isinstance(values, dict) and isinstance(values.get("model_type"), str)):
        raise UserError(f"{path} does not say the model_type; take the config.json that belongs to the weights")
    return values


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """All tensors of a folder by name, from one file or from the parts that an index lists.

    Raises:
        UserError: there are none, or a part is missing or damaged.
    """
    folder = Path(folder)
    for name in WHOLE:
        if (folder / name).is_file():
            return _tensors(folder / name)
        if (index := folder / f"{name}{INDEX}").is_file():
            return _joined(index)
    raise UserError(f"{folder} has a {CONFIG} and no weights: expected {' or '.join(WHOLE)}, or an index of parts")


def _joined(index: Path) -> dict[str, Tensor]:
    """The tensors of all parts; the index says which part holds which."""
    content = read_json(index, "fetch the folder again")
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(part, str) for part in places.values()):
        raise UserError(f"{index}: expected a weight_map of names and files; fetch the folder again")
    tensors = {}
    for part in sorted(set(places.values())):
        if part != Path(part).name:
            raise UserError(f"{index}: {excerpt(part)} is not a file beside it; fetch the folder again")
        tensors |= _tensors(index.parent / part)
    if absent := [name for name in places if name not in tensors]:
        raise UserError(f"{index}: {absent[0]} is not in {places[absent[0]]}; fetch the folder again")
    return tensors


def _tensors(path: Path) -> dict[str, Tensor]:
    content = read_file(path)
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        return content
    raise UserError(f"{path} holds no weights: expected tensors by name")
