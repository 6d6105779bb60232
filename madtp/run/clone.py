"""Files that the project brings, wherever the command is started."""

from pathlib import Path

CLONE = Path(__file__).parents[2]


def own_file(path: str) -> str:
    """Where a file of the project is: as named, from the working directory, or else in the project's own folder."""
    return path if Path(path).exists() or not (CLONE / path).exists() else str(CLONE / path)
