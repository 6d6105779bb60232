"""Which form a file is of, told by its beginning; `data/official` converts the official ones."""

import json
import re
from pathlib import Path

HEAD = 2**14  # characters that show it

# What the beginning of a file shows, the first that fits.
SIGNS = {
    "nlvr2": re.compile(r'^\s*\{.*"identifier".*\}\s*$', re.MULTILINE),
    "vizwiz": re.compile(r'"image"\s*:\s*"VizWiz_'),
    "visual_genome": re.compile(r'"qas"\s*:'),
    "karpathy": re.compile(r'"sentids"\s*:'),
    "vqav2": re.compile(r'"(?:data_subtype|multiple_choice_answer)"\s*:'),
    "coco": re.compile(r'"(?:licenses|file_name)"\s*:'),
}


def form_of(path: Path) -> str:
    """The official form that a file seems to be of, a name that `convert` knows; an empty string if it is none."""
    return next((form for form, sign in SIGNS.items() if sign.search(head(path))), "")


def is_json_lines(path: Path) -> bool:
    """Whether the first line of a file is an entry by itself, and another follows."""
    first, _, rest = head(path).lstrip().partition("\n")
    try:
        return isinstance(json.loads(first), dict) and rest.lstrip().startswith("{")
    except (ValueError, RecursionError):
        return False


def head(path: Path) -> str:
    """The beginning of a text file; of one that cannot be read nothing."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return file.read(HEAD)
    except OSError:
        return ""
