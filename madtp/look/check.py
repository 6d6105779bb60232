"""Looks at all data of a configuration, so that no run of hours stumbles over it.

    python -m madtp check --config configs/nlvr.yaml

Every entry of every annotation file is checked and every image decoded, as the run does it; the model is built, and the
texts are measured in its tokens. The exit status is 1 if training would fail.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path

from torch import nn
from tqdm import tqdm

from data import splits
from data.annotated import AnnotatedDataset, respelled
from data.decoding import Exhausted, decode_image
from data.files import correction, image_folder, namesake, read_entries
from data.forms import form_of
from data.loading import REPLACEMENTS, BatchSampler
from data.text import clean_caption
from madtp.look.scripts import task_named
from madtp.method.errors import UserError
from madtp.run import config as configuration
from madtp.run.preparation import refuse_no_teacher
from madtp.run.texts import lengths

NAMED = 10  # faults of a kind; the others are only counted
MISSING, UNREADABLE = "missing images", "unreadable images"
DUPLICATES, RESPELLED, WORDLESS = "duplicate entries", "images of another spelling", "texts without a word"
HARMLESS = (DUPLICATES, RESPELLED, WORDLESS)  # kinds of faults that training does not mind
NEGLIGIBLE = 0.01  # samples in a whole run that may draw nothing but bad images in their place


@dataclass
class Findings:
    """What a split holds, or what is beside all of them.

    Attributes:
        entries: how many there are.
        images: those that they name, each with the first entry that does.
        named: for each entry the images that it names.
        bad: those that cannot be read.
        faults: by kind, what is wrong and where.
        remarks: what is worth knowing.
    """

    entries: int = 0
    images: dict[Path, str] = field(default_factory=dict)
    named: list[list[Path]] = field(default_factory=list)
    bad: set[Path] = field(default_factory=set)
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    remarks: list[str] = field(default_factory=list)

    @property
    def fatal(self) -> bool:
        """Whether training would fail."""
        return any(kind not in HARMLESS for kind in self.faults)

    def lines(self, name: str) -> Iterator[str]:
        """The findings for people to read."""
        yield f"{name}: {self.entries} entries, {len(self.images)} images" if self.entries else f"{name}:"
        for kind, faults in self.faults.items():
            yield f"  {kind}: {len(faults)}"
            yield from (f"    {' '.join(fault.split())}" for fault in faults[:NAMED])
            if len(faults) > NAMED:
                yield f"    and {len(faults) - NAMED} more"
        yield from (f"  {remark}" for remark in self.remarks)

    def attempt(self, check: Callable, *arguments):
        """Returns what `check` does, or keeps its error and returns None."""
        try:
            return check(*arguments)
        except UserError as error:
            self.faults["files"].append(str(error))


def check(name: str, config: dict, threads: int) -> dict[str, Findings]:
    """Checks all data of a task; the findings by split, and "other files"."""
    task, other = task_named(name), Findings()
    task.config = config
    other.attempt(refuse_no_teacher, config)
    readable = other.attempt(task.adopt) is not None
    config["image_size"] = config["image_size"] or task.fresh_image_size
    parts = splits(name, config)
    found = {split: check_entries(*part, config) for split, part in parts.items()}
    datasets = {
        split: dataset
        for split, (kind, files) in parts.items()
        if not found[split].fatal and (dataset := found[split].attempt(kind, None, files, config))
    }
    check_images(found.values(), config["image_size"], threads)
    if found["train"].entries:
        other.attempt(BatchSampler, found["train"].entries, config["batch_size_train"], True)
    model = None
    if readable or name != "retrieval_clip":  # whose sizes no configuration says
        model = other.attempt(task.build_model, config if readable else config | {"pretrained": ""}, False)
    for split, dataset in datasets.items():
        if model:
            measure_texts(found[split], model, dataset)
        found[split].remarks += task.remarks(split, dataset)
    return {**found, "other files": other}


def check_entries(dataset: type[AnnotatedDataset], files: list[Path], config: dict) -> Findings:
    """Checks every entry of a split's annotation files, and that the folders of their images exist."""
    found, first, images, named = Findings(), {}, {}, []
    for file in files:
        for number, entry in enumerate(found.attempt(read_entries, file) or ()):
            where = f"{file}, entry {number}"
            found.entries += 1
            if fault := dataset.wrong_form(entry):
                found.faults["entries of a wrong form"].append(f"{where}: {fault}")
                continue
            check_content(found, dataset, entry, where, first)
            named.append(dataset.images_of(entry))
            images |= {image: images.get(image, where) for image in named[-1]}
        if "entries of a wrong form" in found.faults and form_of(file):
            found.faults["files"].append(f"{file}: {correction(file)}")
    folders = {key: found.attempt(image_folder, config[key], key) for key in sorted({key for key, _ in images})}
    spellings = respelled(images, folders)
    for (_, name), spelling in spellings.items():
        found.faults[RESPELLED].append(f"{name!r} is read as {spelling!r}")
    paths = {
        (key, name): folders[key] / spellings.get((key, name), name) for key, name in images if folders[key] is not None
    }
    found.images = {paths[image]: where for image, where in images.items() if image in paths}
    found.named = [[paths[image] for image in some if image in paths] for some in named]
    return found


def check_content(
    found: Findings, dataset: type[AnnotatedDataset], entry: dict, where: str, first: dict[str, str]
) -> None:
    """Looks at an entry of the right form: its label, its words, and whether it was in `first` before."""
    if fault := dataset.wrong_label(entry):
        found.faults["wrong labels"].append(f"{where}: {fault}")
    texts = [entry[name] for name in ("caption", "question", "sentence") if name in entry]
    if not all(clean_caption(text) for some in texts for text in ([some] if isinstance(some, str) else some)):
        found.faults[WORDLESS].append(where)
    identity = json.dumps([entry[name] for name in dataset.identity])
    if identity in first:
        same = " and ".join(dataset.identity)
        found.faults[DUPLICATES].append(f"{where}: the same {same} as in {first[identity]}")
    first.setdefault(identity, where)


def check_images(found: Iterable[Findings], wanted: int, threads: int) -> None:
    """Decodes every image as the run does, and writes down those that cannot be read."""
    bad = bad_images({path for split in found for path in split.images}, wanted, threads)
    for split in found:
        for path, where in split.images.items():
            if path in bad:
                kind, reason = bad[path]
                split.bad.add(path)
                split.faults[kind].append(f"{path} ({where}){reason}")


def bad_images(paths: Iterable[Path], wanted: int, threads: int) -> dict[Path, tuple[str, str]]:
    """Decodes images and returns those that cannot be: the kind of the fault, and the reason."""
    paths = sorted(paths)
    with ThreadPool(max(1, min(threads, len(paths)))) as pool:
        faults = pool.imap(lambda path: image_fault(path, wanted), paths, chunksize=8)
        bar = tqdm(faults, desc="images", total=len(paths), leave=False, disable=not sys.stderr.isatty())
        return {path: fault for path, fault in zip(paths, bar, strict=True) if fault}


def image_fault(path: Path, wanted: int) -> tuple[str, str] | None:
    """What keeps an image from being read, if anything."""
    try:
        decode_image(path, wanted)
    except FileNotFoundError:
        return MISSING, f": {other} is there" if (other := namesake(path)) else ""
    except Exhausted:
        raise
    except ValueError as error:
        return UNREADABLE, f": {error}"
    return None


def measure_texts(found: Findings, model: nn.Module, dataset: AnnotatedDataset) -> None:
    """Counts the tokens of every text: those the model cannot read stop a run, those that it cuts do not."""
    longest, cut = Counter(), Counter()
    for length in lengths(model, dataset.all_texts()):
        longest[length.kind] = max(longest[length.kind], length.tokens)
        cut[length.kind] += length.tokens > length.read
        if fault := length.fault(model):
            found.faults["texts too long"].append(fault)
    for kind, most in longest.items():
        shortened = f", {cut[kind]} are cut after {model.text_limits[kind]}" if cut[kind] else ""
        found.remarks.append(f"{kind}: at most {most} tokens{shortened}")


def verdict(found: dict[str, Findings], epochs: int) -> str:
    """What will become of a training."""
    faulty = {name for name, findings in found.items() if findings.fatal}
    if not faulty:
        return "training has all that it needs"
    train = found["train"]
    if faulty != {"train"} or not {MISSING, UNREADABLE, *HARMLESS}.issuperset(train.faults):
        return "training would fail"
    share = sum(not train.bad.isdisjoint(paths) for paths in train.named) / train.entries
    if train.entries * epochs * share ** (1 + REPLACEMENTS) < NEGLIGIBLE:
        return "training would fail, but not with --bad_images skip"
    return f"training would fail, also with --bad_images skip: {share:.0%} of the entries are without their images"


def run(args: argparse.Namespace) -> int:
    """Checks what the command line names; the exit status, 1 if training would fail."""
    if args.num_workers < 0:
        raise UserError(f"--num_workers is {args.num_workers}, expected at least 0")
    task = args.task or configuration.task_of(args.config)
    config = configuration.resolve(args.config, task, args.set)
    configuration.refuse_contradictions(config)
    found = check(task, config, args.num_workers)
    print(f"{args.config}: {task}")
    for name, findings in found.items():
        if findings.entries or findings.faults:
            print(*findings.lines(name), sep="\n")
    print(verdict(found, config["max_epoch"]))
    return int(any(findings.fatal for findings in found.values()))
