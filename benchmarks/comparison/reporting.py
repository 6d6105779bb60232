"""How results become a document: words from a template, everything else from the results."""

import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from utils import UserError, prepare_output, write_atomic

PLACE = re.compile(r"\{(\w+)((?:\s+[\w.:]+)*)\}")  # {name argument ...}
NONE = "—"  # in a table, where there is nothing to say
NOT_RUN = "not run"
COLUMNS = 120
PROSE = re.compile(r"^(?![|#!])\S.*(?:\n(?!- )\S.*|\n  \S.*)*", re.MULTILINE)  # a paragraph, or an item of a list
CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)

Block = Callable[..., str]


def cost_name(p: float) -> str:
    """What is left of the dense cost, for readers."""
    return f"{100 - 100 * p:.0f} %"


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

    return wrapped(PLACE.sub(filled, template.read_text()))


def wrapped(text: str) -> str:
    """Prose in lines of equal length again, whatever was filled in; tables, headings, pictures and code as they are."""

    def lines(prose: re.Match) -> str:
        indent = "  " * prose.group(0).startswith("- ")
        words = " ".join(prose.group(0).split())
        return textwrap.fill(words, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

    return "".join(part if CODE.match(part) else PROSE.sub(lines, part) for part in CODE.split(text))


def write_page(page: Path, template: Path, blocks: dict[str, Block], results: object, way_out: str) -> None:
    """Writes a document and makes room for its plots.

    Args:
        page: of the document.
        template: its words.
        blocks: what fills them.
        results: whose `known` tells whether there are any, and `pictures` where plots go.
        way_out: how to get results.

    Raises:
        UserError: there are no results, or the template asks for what there is not.
    """
    if not results.known:
        raise UserError(f"there are no results in {results.folder} to write {page.name} of: run `{way_out}` first")
    prepare_output(results.pictures)
    write_atomic(page, fill(template, blocks, results))


def named(*functions: Block) -> dict[str, Block]:
    """Blocks by the names of their functions."""
    return {function.__name__: function for function in functions}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
