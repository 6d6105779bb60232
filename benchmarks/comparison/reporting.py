"""How results become a document: words from a template, everything else from the results."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from utils import UserError

PLACE = re.compile(r"\{(\w+)((?:\s+[\w.:]+)*)\}")  # {name argument ...}

Block = Callable[..., str]


def fill(template: Path, blocks: dict[str, Block], results: object) -> str:
    """The template with every `{name argument ...}` replaced by what the block of this name makes of the results.

    Raises:
        UserError: the template asks for what there is not.
    """

    def filled(place: re.Match) -> str:
        name, *arguments = place.group(0)[1:-1].split()
        if name not in blocks:
            raise UserError(f"{template}: {place.group(0)} is none of {', '.join(blocks)}")
        return blocks[name](results, *arguments)

    return PLACE.sub(filled, template.read_text())


def named(*functions: Block) -> dict[str, Block]:
    """Blocks by the names of their functions."""
    return {function.__name__: function for function in functions}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
