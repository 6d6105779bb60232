"""Looks at all data of a configuration, so that no run of hours stumbles over it.

    python -m madtp check --config configs/nlvr.yaml

Every entry of every annotation file is checked and every image decoded, and what else the data folders have to hold is
looked for. The exit status is 1 if training would fail.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

from data import splits
from data.annotated import AnnotatedDataset
from data.caption_dataset import read_ground_truth
from data.files import decode_image, image_folder, read_entries
from data.loading import BatchSampler
from data.vqa_dataset import read_answer_list
from madtp.method.errors import UserError
from madtp.run import config as configuration

NAMED = 10  # faults of a kind; the others are only counted
MISSING, UNREADABLE = "missing images", "unreadable images"
DUPLICATES, NO_TRUTH = "duplicate entries", "no ground truth"
HARMLESS = (DUPLICATES, NO_TRUTH)  # kinds of faults that training does not mind


@dataclass
class Findings:
    """What a split holds, or what is beside all of them.

    Attributes:
        entries: how many there are.
        images: those that they name, each with the first entry that does.
        faults: by kind, what is wrong and where.
    """

    entries: int = 0
    images: dict[Path, str] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

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

    def attempt(self, check: Callable, *arguments):
        """Returns what `check` does, or keeps its error and returns None."""
        try:
            return check(*arguments)
        except UserError as error:
            self.faults["files"].append(str(error))


def check_entries(dataset: type[AnnotatedDataset], files: list[Path], config: dict) -> Findings:
    """Checks every entry of a split's annotation files, and that the folders of their images exist."""
    found, first, images = Findings(), {}, {}
    for file in files:
        for number, entry in enumerate(found.attempt(read_entries, file) or ()):
            where = f"{file}, entry {number}"
            found.entries += 1
            if fault := dataset.wrong_form(entry):
                found.faults["entries of a wrong form"].append(f"{where}: {fault}")
                continue
            if fault := dataset.wrong_label(entry):
                found.faults["wrong labels"].append(f"{where}: {fault}")
            identity = json.dumps([entry[name] for name in dataset.identity])
            if identity in first:
                same = " and ".join(dataset.identity)
                found.faults[DUPLICATES].append(f"{where}: the same {same} as in {first[identity]}")
            first.setdefault(identity, where)
            for image in dataset.images_of(entry):
                images.setdefault(image, where)
    folders = {key: found.attempt(image_folder, config[key], key) for key in sorted({key for key, _ in images})}
    found.images = {folders[key] / name: where for (key, name), where in images.items() if folders[key]}
    return found


def bad_images(paths: Iterable[Path], threads: int) -> dict[Path, tuple[str, str]]:
    """Decodes images and returns those that cannot be: the kind of the fault, and the reason."""
    paths = sorted(paths)
    with ThreadPool(threads) as pool:
        faults = pool.imap(image_fault, paths, chunksize=8)
        bar = tqdm(faults, desc="images", total=len(paths), leave=False, disable=not sys.stderr.isatty())
        return {path: fault for path, fault in zip(paths, bar, strict=True) if fault}


def image_fault(path: Path) -> tuple[str, str] | None:
    """What keeps an image from being read, if anything."""
    try:
        decode_image(path)
    except FileNotFoundError:
        return MISSING, ""
    except ValueError as error:
        return UNREADABLE, f": {error}"
    return None


def check_other_files(task: str, config: dict, found: dict[str, Findings]) -> Findings:
    """Checks what no entry names: the tokenizer, VQA's answers, the truth for captions; and that a batch gets full."""
    other = Findings()
    if found["train"].entries:
        other.attempt(BatchSampler, found["train"].entries, config["batch_size_train"], True)
    if task != "retrieval_clip":  # whose tokenizer comes in a package
        from models.blip import init_tokenizer

        other.attempt(init_tokenizer, config["tokenizer"])
    if task == "vqa" and config["inference"] == "rank":
        other.attempt(read_answer_list, config["ann_root"])
    if task == "caption":
        for split in ("val", "test"):
            truth = Path(config["coco_gt_root"]) / f"coco_karpathy_{split}_gt.json"
            if truth.exists():
                other.attempt(read_ground_truth, truth, [path.name for path in found[split].images])
            else:
                other.faults[NO_TRUTH].append(f"{truth}: captions are scored against the annotations instead")
    return other


def check(task: str, config: dict, threads: int) -> dict[str, Findings]:
    """Checks all data of a task; the findings by split, and "other files"."""
    found = {name: check_entries(*split, config) for name, split in splits(task, config).items()}
    bad = bad_images({path for split in found.values() for path in split.images}, threads)
    for split in found.values():
        for path, where in split.images.items():
            if path in bad:
                kind, reason = bad[path]
                split.faults[kind].append(f"{path} ({where}){reason}")
    return {**found, "other files": check_other_files(task, config, found)}


def run(args: argparse.Namespace) -> int:
    """Checks what the command line names; the exit status, 1 if training would fail."""
    task = args.task or configuration.task_of(args.config)
    config = configuration.resolve(args.config, task, args.set)
    found = check(task, config, max(1, args.num_workers))
    print(f"{args.config}: {task}")
    for name, findings in found.items():
        if findings.entries or findings.faults:
            print(*findings.lines(name), sep="\n")
    if not any(findings.fatal for findings in found.values()):
        print("training has all that it needs")
        return 0
    skippable = {MISSING, UNREADABLE, *HARMLESS}.issuperset(found["train"].faults)
    others = any(findings.fatal for name, findings in found.items() if name != "train")
    print("training would fail" + (", but not with --bad_images skip" if skippable and not others else ""))
    return 1
