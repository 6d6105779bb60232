"""Repositories of the Hugging Face hub, fetched by their names and only when asked: JSON and safetensors, no code.

The environment's HF_ENDPOINT names another server that answers as the hub does.
"""

import json
import logging
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from madtp.method.errors import UserError, excerpt
from madtp.shared.files import ENDINGS
from madtp.shared.weights import fetching
from madtp.shared.weights.reading import weight_map

logger = logging.getLogger(__name__)

HUB = "https://huggingface.co"
FOLDER = "pretrained"
WEIGHTS = ("model.safetensors", "open_clip_model.safetensors")
INDEX = "model.safetensors.index.json"
FILES = (*ENDINGS, ".json")  # which end no repository's name


def is_name(name: str) -> bool:
    """Whether this may be a repository's name, OWNER/NAME, and is no file's and no path like ./NAME."""
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)) and not name.endswith(FILES) and ".." not in name


def place_of(name: str | Path) -> Path:
    """Where a repository is kept once it is fetched."""
    return Path(FOLDER) / name


def folder_of(name: str, download: bool) -> str:
    """A folder, or the one of a repository's name, fetched if that is asked for."""
    if Path(name).exists() or not is_name(name):
        return name
    return str(fetch(name) if download else place_of(name))


def fetch(name: str) -> Path:
    """Fetches the JSON files and the weights of a repository that are not there yet, and returns the folder.

    Raises:
        UserError: there is no such repository, it has no safetensors, no connection, a folder that cannot be written,
            an index that is none, or other bytes than the hub says.
    """
    server = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    listing = _json(f"{server}/api/models/{name}?blobs=true", name)
    files = {file["rfilename"]: file for file in listing.get("siblings", ()) if _is_plain(file)}
    source, folder = f"{server}/{name}/resolve/{quote(str(listing.get('sha', 'main')))}", place_of(name)
    texts = [file for file in files if file.endswith(".json")]
    for file in texts:
        _keep(f"{source}/{quote(file)}", folder / file, files[file])
    for file in _weights(files, folder, name):
        _keep(f"{source}/{quote(file)}", folder / file, files[file])
    return folder


def _is_plain(file: object) -> bool:
    """Whether an entry of a listing is a file at the top of its repository."""
    name = file.get("rfilename") if isinstance(file, dict) else None
    return isinstance(name, str) and name == Path(name).name and not name.startswith(".")


def _weights(files: Iterable[str], folder: Path, name: str) -> list[str]:
    """The files of the weights: one, or the parts that the index lists."""
    for file in WEIGHTS:
        if file in files:
            return [file]
    if INDEX in files:
        parts = set(weight_map(folder / INDEX).values())
        if parts <= set(files):
            return sorted(parts)
    raise UserError(f"{name} has no safetensors at the hub; fetch its weights by other means and name the folder")


def _keep(address: str, path: Path, said: dict) -> None:
    """Fetches a file unless it is there."""
    size, digest = said.get("size"), (said.get("lfs") or {}).get("sha256")
    if path.is_file() and size in (None, path.stat().st_size):
        return
    logger.info("fetching %s", address)
    fetching.fetch(address, path, digest, size)


def _json(address: str, name: str) -> dict:
    with fetching.opened(address, f"repository {name}") as response:
        content = response.read()
    with suppress(ValueError):
        content = json.loads(content)
    if not isinstance(content, dict):
        raise UserError(f"{address} answers {excerpt(content)}; is HF_ENDPOINT a hub?")
    return content
