"""Folders in the form of the transformers library: config.json and, beside it, the weights in one file or several."""

import re
from pathlib import Path

from torch import Tensor

from madtp.method.errors import UserError
from madtp.shared.files import ENDINGS, read_json
from madtp.shared.run_files import BEST, LAST
from madtp.shared.weights import hub, open_clip_models
from madtp.shared.weights.reading import AGAIN, read_file, weight_map
from madtp.shared.weights.wrappers import plain

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
RUN = BEST, LAST
ADAPTER = "adapter_config.json"


def located(path: str | Path) -> Path:
    """Where the weights are that a path stands for: a file, or a folder of the transformers library.

    Of a run's folder that is its best checkpoint, of an index its folder, of the name of a repository of the hub the
    folder that it was fetched into.

    Raises:
        UserError: a folder that is neither a run's nor a model's, one part of several, a repository not fetched, an
            address, or a pipe.
    """
    if "://" in str(path):
        raise UserError(f"{path} is an address, and nothing is fetched from there: download it and name the file")
    path = Path(path)
    if path.name.endswith(INDEX):
        path = path.parent
    if re.search(r"-\d{5}-of-\d{5}\.", path.name):
        raise UserError(f"{path} is one part of several: name its folder")
    if not path.exists() and hub.is_name(path.as_posix()):
        path = _fetched(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # it would be waited for
        raise UserError(f"{path} is no regular file, and weights are read from one: save them and name that")
    return _inside(path) if path.is_dir() else path


def _fetched(name: Path) -> Path:
    """The folder of a repository of the hub."""
    folder = hub.place_of(name)
    if not folder.is_dir():
        missing = f"nor is it at {folder}, where a script's --download puts the hub's repository of this name"
        raise UserError(f"{name}: no such checkpoint, {missing}; docs/tasks.md has other downloads")
    return folder


def _inside(folder: Path) -> Path:
    """The file of a folder that holds its weights, or the folder itself where config.json has to be read too."""
    own = (folder / CONFIG).is_file()
    for name in (*RUN, *(() if own else open_clip_models.WHOLE)):
        if (folder / name).is_file():
            return folder / name
    if (folder / ADAPTER).is_file():
        way_out = "merge it into its model (merge_and_unload) and save that"
        raise UserError(f"{folder} holds an adapter of PEFT and no model: {way_out}")
    if not own:
        if weights := next((name for name in WHOLE if any(folder.glob(f"{name}*"))), ""):
            raise UserError(f"{folder} has a {weights} and no {CONFIG}, which belongs to it; fetch that too")
        way_out = f"name {' or '.join(inner)}" if (inner := _deeper(folder)) else "name the checkpoint file in it"
        raise UserError(f"{folder} is a folder without {BEST} or {CONFIG}: {way_out}")
    return folder


def _deeper(folder: Path, most: int = 3) -> list[str]:
    """Some of what may be meant: models and weights up to two levels down, where caches and trainers put them."""
    found = {
        path.parent if path.name in (CONFIG, *WHOLE, *RUN) else path
        for pattern in ("*", "*/*", "*/*/*")
        for path in sorted(folder.glob(pattern))
        if path.name == CONFIG or path.suffix in ENDINGS
    }
    models = [path for path in found if (path / CONFIG).is_file() or (path / BEST).is_file()]
    return sorted(map(str, models or found))[:most]


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
    places, tensors = weight_map(index), {}
    for part in sorted(set(places.values())):
        if not (index.parent / part).is_file():
            raise UserError(f"{index.parent} is without its part {part}; {AGAIN}")
        tensors |= _tensors(index.parent / part)
    if absent := [name for name in places if name not in tensors]:
        raise UserError(f"{index}: {absent[0]} is not in {places[absent[0]]}; {AGAIN}")
    return tensors


def _tensors(path: Path) -> dict[str, Tensor]:
    content = read_file(path)
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        return plain(content, path)
    raise UserError(f"{path} holds no weights: expected tensors by name")
