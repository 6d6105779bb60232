"""Which official form a file is of, told by its beginning; `data/official` converts them."""

import re
from pathlib import Path

HEAD = 2**14  # characters that show it

# What the beginning of a file shows, the first that fits.
SIGNS = {
    "nlvr2": re.compile(r'^\s*\{.*"identifier".*\}\s*$', re.MULTILINE),
    "visual_genome": re.compile(r'"qas"\s*:'),
    "karpathy": re.compile(r'"sentids"\s*:'),
    "vqav2": re.compile(r'"(?:data_subtype|multiple_choice_answer)"\s*:'),
    "coco": re.compile(r'"(?:licenses|file_name)"\s*:'),
}


def form_of(path: Path) -> str:
    """The official form that a file seems to be of, a name that `convert` knows; an empty string if it is none."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        head = file.read(HEAD)
    return next((form for form, sign in SIGNS.items() if sign.search(head)), "")
