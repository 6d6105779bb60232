"""Statements about two pictures: NLVR2's files of JSON lines."""

from collections.abc import Iterator, Sequence

from data.official import stream
from data.official.records import Record, Source, checked, places
from utils import UserError, excerpt

STATEMENTS = "nlvr"
LABELS = {"true": "True", "false": "False"}


def statement_rows(record: Record, names: Sequence[str]) -> Iterator[tuple[str, dict]]:
    """The file and the entry of a statement."""
    split = "dev" if record.split == "val" else record.split
    yield f"{STATEMENTS}_{split}", {"images": names, **record.content}


def read_nlvr2(sources: Sequence[Source]) -> Iterator[Record]:
    """Reads `train.json`, `dev.json` and `test1.json`; the split stands in every statement's identifier.

    Raises:
        UserError: a file cannot be read, or a line is not of this form.
    """
    for source in sources:
        for number, one in enumerate(stream.lines(source.path)):
            checked(source.path, number, one, {"identifier": str, "sentence": str})
            label = LABELS.get(str(one.get("label")).lower())
            if label is None:
                raise UserError(
                    f"{source.path}, entry {number}: 'label' should be True or False, it is {excerpt(one.get('label'))}"
                )
            if one["identifier"].count("-") < 2:
                found = f"'identifier' should be like dev-850-0-0, it is {excerpt(one['identifier'])}"
                raise UserError(f"{source.path}, entry {number}: {found}")
            pair = one["identifier"].rpartition("-")[0]
            pictures = tuple(nlvr2_places(f"{pair}-img{side}.png", one.get("directory")) for side in (0, 1))
            yield Record(source.own_split(pair), STATEMENTS, pictures, {"sentence": one["sentence"], "label": label})


def nlvr2_places(name: str, directory: int | None) -> tuple[str, ...]:
    """Where a picture may be: training pictures come in numbered folders, the others in one for each split."""
    subset = name.partition("-")[0]
    if directory is not None:
        return places(name, f"images/{subset}/{directory}", f"{subset}/{directory}", f"images/{subset}", subset)
    return places(name, subset, f"images/{subset}")
