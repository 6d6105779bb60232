"""The lines of results that pages are made of."""

import json
from pathlib import Path


class Lines:
    """The lines of one folder, file by file.

    Args:
        folder: of the JSON lines.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def of(self, file: str, /, **wanted: object) -> list[dict]:
        """The lines of a file whose entries are as wanted, in order; none where there is no file."""
        path = self.folder / f"{file}.jsonl"
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else [])
        return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
