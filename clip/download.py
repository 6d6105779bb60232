"""The models that OpenAI published, by name; fetched only when asked, and only if the bytes are the published ones."""

import hashlib
from pathlib import Path

from madtp.method.errors import UserError
from madtp.shared.weights.fetching import CHUNK, fetch

FOLDER = "pretrained"
ADDRESS = "https://openaipublic.azureedge.net/clip/models/{digest}/{file}"
MODELS = {  # name: file, its SHA-256
    "ViT-B/32": ("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    "ViT-B/16": ("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    "ViT-L/14": ("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    "ViT-L/14@336px": ("ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
}


def available_models() -> list[str]:
    """The names that `load` and `download` know."""
    return list(MODELS)


def download(name: str, folder: str | Path = FOLDER) -> Path:
    """Fetches a model into `folder`, unless it is there already, and returns its path.

    Raises:
        UserError: an unknown name, no connection, a folder that cannot be written, or other bytes than published, there
            already or fetched.
    """
    if name not in MODELS:
        raise UserError(f"{name!r} is none of the published models: {', '.join(MODELS)}")
    file, digest = MODELS[name]
    path, address = Path(folder) / file, ADDRESS.format(digest=digest, file=file)
    if path.is_file():
        if sha_256(path) != digest:
            raise UserError(f"{path} is not the published {name}, its SHA-256 differs; move it out of the way")
        return path
    fetch(address, path, digest)
    return path


def sha_256(path: Path) -> str:
    """The SHA-256 of a file, read piece by piece."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(CHUNK):
            sha.update(piece)
    return sha.hexdigest()
