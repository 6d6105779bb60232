"""Converts a data set from the files in which its authors published it to those that the tasks read.

    python -m madtp convert vqav2 v2_*.json --out annotation --images datasets/vision/coco
    python -m madtp convert karpathy dataset_coco.json --out annotation

Files may be larger than memory. With --images the pictures are looked for, and those that are not there are listed.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from data.forms import form_of
from data.official import FORMS
from data.official.captions import COCO, FLICKR, caption_rows
from data.official.conversion import Converted, Draw, convert
from data.official.records import SPLITS, LeftOut, Record, Source
from data.official.statements import STATEMENTS
from madtp.look.command_line import FORMS as FILES
from madtp.method.errors import UserError
from madtp.shared.files import write_atomic

NAMED = 10  # missing pictures; all of them stand in a file
LIST = "missing_{}.txt"


def run(args: argparse.Namespace) -> None:
    """Converts what the command line names.

    Raises:
        UserError: a flag that this form has no use for, a file that is not of the form, or nothing to convert.
    """
    refuse_without_effect(args)
    out, form = Path(args.out), FORMS[args.form]
    sources = [source_of(name, args.form) for name in args.files]
    refuse_twice(sources)
    draw = Draw({name: text for name in ("val", "test") if (text := getattr(args, name))})
    records = renamed(form.read(sources), args.name)
    bar = tqdm(records, desc=args.form, unit=" records", leave=False, disable=not sys.stderr.isatty())
    images = Path(args.images) if args.images else None
    done = convert(bar, form.rows, out, images, draw, args.drop_missing)
    if not done.files:
        raise UserError(f"nothing in {', '.join(args.files)} to convert")
    absent_list = out / LIST.format(args.form)
    if missing := done.looked_for.missing:
        write_atomic(absent_list, "".join(f"{name}\n" for name in missing))
    print(*summary(done, absent_list, args.images, draw), sep="\n")


def refuse_without_effect(args: argparse.Namespace) -> None:
    """Raises a UserError about a flag that would change nothing."""
    form = FORMS[args.form]
    if args.drop_missing and not args.images:
        raise UserError("--drop_missing needs to know where pictures should be: --images FOLDER")
    if args.name and form.rows is not caption_rows:
        raise UserError(f"--name is for files with captions, and {args.form} has none; leave it out")
    if (args.val or args.test) and not form.draws:
        raise UserError(f"all of {args.form} is for training; leave out --val and --test")


def source_of(text: str, form: str) -> Source:
    """The file that a word of the command line names, perhaps with its split.

    Raises:
        UserError: there is no such file, it is of another form, or the form's files say their splits themselves.
    """
    split, equals, name = text.partition("=")
    if not equals or split not in SPLITS or Path(text).exists():
        split, name = "", text
    if split and FORMS[form].has_splits:
        raise UserError(f"{text}: the files of {form} say themselves what is for {split}; name the file alone")
    if not Path(name).is_file():
        raise UserError(f"{name}: no such file; give the files of {form}: {FILES[form]}")
    if (seems := form_of(Path(name))) not in ("", form):
        raise UserError(f"{name} is a file of {seems}, not of {form}: python -m madtp convert {seems} ...")
    return Source(Path(name), split)


def refuse_twice(sources: Iterable[Source]) -> None:
    """Raises a UserError about a file that is given twice, whose entries would all be there twice."""
    seen = set()
    for source in sources:
        if (place := source.path.resolve()) in seen:
            raise UserError(f"{source.path} is given twice; name every file once")
        seen.add(place)


def renamed(records: Iterable[Record | LeftOut], name: str | None) -> Iterable[Record | LeftOut]:
    """The same records, those of captions bound for files of another name."""
    for record in records:
        other = name and isinstance(record, Record) and record.files in (COCO, FLICKR)
        yield record._replace(files=name) if other else record


def summary(done: Converted, absent_list: Path, images: str | None, draw: Draw) -> list[str]:
    """What was done, for people to read."""
    said = []
    for file in done.files.values():
        pictures = file.pictures
        said.append(f"{file.path}: {file.entries} entries, {len(pictures)} pictures like {next(iter(pictures))}")
    said += [f"left out: {count} {reason}" for reason, count in done.left_out.items()]
    said += [
        f"{path}: {len(names)} of its pictures are none of these, one is {min(names)}"
        for path, names in draw.unmet.items()
        if names
    ]
    missing, total = list(done.looked_for.missing), len(done.looked_for.found)
    if missing:
        said.append(f"not in {images}: {len(missing)} of {total} pictures, all named in {absent_list}, the first are")
        said += [f"  {name}" for name in missing[:NAMED]]
    elif images:
        said.append(f"all {total} pictures are in {images}")
    drawn = ", or draw its pictures with --val and --test"
    return said + [f"still to come: {path}{'' if path.stem.endswith('_train') else drawn}" for path in absent(done)]


def absent(done: Converted) -> list[Path]:
    """What a task reads beside the files that were written, but is not there."""
    siblings = {}
    for name, file in done.files.items():
        files, _, split = name.rpartition("_")
        if split != "qa":  # Visual Genome's, all for training
            splits = ("train", "dev", "test") if files == STATEMENTS else SPLITS
            siblings |= dict.fromkeys(file.path.with_name(f"{files}_{one}.json") for one in splits)
    return [path for path in siblings if not path.exists()]
