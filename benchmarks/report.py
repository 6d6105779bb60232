"""Writes docs/performance.md and docs/library.md: words come from templates, every table from lines of results.

python -m benchmarks.report [--results benchmarks/results] [--docs docs]
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from benchmarks.comparison.reporting import NONE, fill, named, table
from benchmarks.library_tables import features, photo_models
from benchmarks.lines import Lines
from benchmarks.timing import told
from utils import prepare_output, write_atomic

WORDS = {"performance.md": "words.md", "library.md": "library_words.md"}  # the template of every page
RESULTS, DOCS = Path("benchmarks/results"), Path("docs")
AMP = {"off": "float32", "bf16": "bf16", "fp16": "fp16"}
SIDES = {"pruned": "MADTP", "plain": "MADTP, whole map"}  # rows of bench_model, for readers
NOT_MEASURED = "not measured"
NLVR2 = {"task": "nlvr", "plain": "amax"}  # of `bench_model`
DEMO = {"width": 96, "patches": 49, "p": 0.5}  # of `bench_single`: about the size of the model of the demo


def summary(lines: Lines) -> str:
    """At half the cost, of each pruned model: how many times as fast as dense, and the memory of both."""
    rows = []
    for what, file in (("inference", "inference"), ("training step", "training")):
        dense = {
            (row["amp"], row["batch"]): peak(lines, row) for row in lines.of(f"speed_{file}", **NLVR2, name="dense")
        }
        for row in pruned(lines, file):
            name = f"NLVR2, {what}, {AMP[row['amp']]}, batch {row['batch']}"
            peaks = f"{peak(lines, row):.0f} of {dense[row['amp'], row['batch']]:.0f}"
            rows.append([name, side(row), f"{row['percent']:.1f}", f"{row['speedup']:.2f} x", peaks])
    for row in lines.of("speed_single", **DEMO):
        rule = f"MADTP, `{row['rule']}`" if row["rule"] != "coverage" else row["rule"]
        cost, faster = f"{row['percent']:.1f}", f"{row['speedup']:.2f} x"
        rows.append(["the demo's size, float32, batch 1", rule, cost, faster, NONE])
    return table(["", "rule", "% of dense GFLOPs", "times as fast as dense", "peak memory, MiB, of dense"], rows)


def speedups(lines: Lines, file: str) -> str:
    """From how many to how many times as fast as dense NLVR2 is at half the cost."""
    found = [row["speedup"] for row in pruned(lines, file)]
    ends = [f"{end:.1f}" for end in (min(found), max(found))]
    return " to ".join(dict.fromkeys(ends))


def pruned(lines: Lines, file: str) -> list[dict]:
    """NLVR2 at half the cost, without the whole attention map."""
    rows = lines.of(f"speed_{file}", **NLVR2, p=0.5)
    return [row for row in rows if row["name"] not in ("dense", "plain")]


def models(lines: Lines, file: str, task: str) -> str:
    """Dense and pruned, also with the whole attention map: cost, rate, memory and, where measured, the bound."""
    rows = [
        [
            f"{AMP[row['amp']]}, batch {row['batch']}, {side(row)}",
            f"{row['percent']:.1f}",
            f"{row['samples_per_second']:.3g}",
            f"{row['speedup']:.2f}",
            f"{row['efficiency']:.2f}",
            f"{row['percent_of_bound']:.0f}" if "percent_of_bound" in row else NOT_MEASURED,
            f"{peak(lines, row):.0f}",
        ]
        for row in lines.of(f"speed_{file}", plain="amax", task=task)
    ]
    head = ["", "% of dense GFLOPs", "samples/s", "speed-up", "efficiency", "% of the matmul bound", "peak MiB"]
    return table(head, rows)


def side(row: dict) -> str:
    """The name of a row, for readers."""
    return SIDES.get(row["name"], row["name"])


def peak(lines: Lines, row: dict) -> float:
    """A row's peak of memory in MiB; what `bench_model --memory` found last counts where it has been run."""
    same = {key: row.get(key) for key in ("task", "train", "amp", "batch", "plain", "name", "p")}
    return (lines.of("speed_memory", **same) or [row])[-1]["peak_mib"]


def over_plain(lines: Lines, file: str) -> str:
    """How many times as fast the pruned model is as with the whole map, by how that finds its maximum."""
    rows = [
        [f"{AMP[row['amp']]}, batch {row['batch']}", row["plain"], f"{row['plain_over_own']:.2f}"]
        for row in lines.of(f"speed_{file}", name="pruned", task="nlvr")
    ]
    return table(["", "maximum over the heads", "times as fast without the map"], rows)


def memory(lines: Lines, file: str, name: str, other: str) -> str:
    """How much of the memory that another side peaks at a side does, by precision."""
    peaks = {(row["amp"], row["name"]): peak(lines, row) for row in lines.of(f"speed_{file}", **NLVR2)}
    shares = [f"{peaks[amp, name] / peaks[amp, other]:.2f} ({AMP[amp]})" for amp, side in peaks if side == name]
    return " and ".join(shares)


def own_parts(lines: Lines) -> str:
    """What coverage itself takes, part by part, in percent of the dense time."""
    found = lines.of("speed_coverage")
    parts = [part for part in (found[0]["shares"] if found else ()) if any(row["shares"][part] for row in found)]
    rows = [
        [
            f"{AMP[row['amp']]}, batch {row['batch']}, p {row['p']:g}",
            f"{row['speedup']:.2f}",
            *(f"{row['shares'][part]:.1f}" for part in parts),
            f"{row['sum']:.1f}",
        ]
        for row in found
    ]
    return table(["", "speed-up", *parts, "sum"], rows) if rows else NOT_MEASURED


def attention(lines: Lines) -> str:
    """One layer's attention, forward and back: fused, by its whole map, by its blocks, and ours."""
    found = {(row["direction"], row["name"], row["dtype"]): row for row in lines.of("speed_attention")}
    names = {
        "fused": "PyTorch's fused, no scores",
        "own": "no scores",
        "ours": "with scores",
        "blocks": "with scores, block by block",
        "plain": "with scores, whole map",
    }
    dtypes, rows = list(dict.fromkeys(dtype for _, _, dtype in found)), []
    for direction in ("forward", "backward"):
        for name, title in names.items():
            own = [found.get((direction, name, dtype)) for dtype in dtypes]
            if any(own):
                values = (f"{row['median_ms']:.0f} ({row['ratio']:.2f})" if row else NONE for row in own)
                rows.append([f"{direction}, {title}", *values])
    heads = (f"{dtype}, ms (over fused), {found['forward', 'fused', dtype]['hardware']}" for dtype in dtypes)
    return table(["", *heads], rows)


def keep(lines: Lines) -> str:
    """The rule `sample` beside `batch`, where images differ and where they do not."""
    rows = []
    for images in dict.fromkeys(row["images"] for row in lines.of("speed_keep")):
        (batch,), (sample,) = (lines.of("speed_keep", images=images, name=name) for name in ("pruned", "sample"))
        pairs = [f"{batch[key]:.3g} / {sample[key]:.3g}" for key in ("gflops", "samples_per_second")]
        faster = sample["batch_over_own"]
        promised = faster / sample["batch_gflops_over_own"]
        rows.append([f"{batch['batch']}, `--images {images}`", *pairs, f"{faster:.2f} x", f"{promised:.2f}"])
    head = ["images of the batch", "GFLOPs `batch` / `sample`", "samples/s `batch` / `sample`"]
    return table([*head, "faster", "of what the costs promise"], rows)


def batches(lines: Lines) -> str:
    """What one T costs at other batch sizes: MADTP at p 0.5 in the experiment, the mean over the seeds."""
    costs: dict[int, list[float]] = {}
    for row in lines.of("nlvr", method="madtp", p=0.5):
        for batch, score in row.get("scores", {}).items():
            costs.setdefault(int(batch), []).append(score["percent"])
    cells = [f"{mean(costs[batch]):.1f}" for batch in sorted(costs)]
    return table(["evaluated at batch", *map(str, sorted(costs))], [["% of dense GFLOPs", *cells]])


def decoding(lines: Lines) -> str:
    """Captions, answers and re-ranking against their plain forms."""
    names = {"caption": "captions, 3 beams", "vqa": "answers, the best 128 of 3128"}
    names["retrieval"] = "re-ranking, 256 texts"
    rows = [
        [
            f"{names[row['task']]}, batch {row['batch']}",
            f"{row['ours']:.1f}",
            f"{row['plain']:.1f}",
            f"{row['factor']:.1f} x",
            f"{row['whole_factor']:.1f} x",
        ]
        for row in lines.of("speed_decoding")
    ]
    return table(["", "ours, s", "plain, s", "faster", "whole prediction"], rows)


def prepared(lines: Lines) -> str:
    """A forward pass with linear layers as training leaves them, and as inference makes them."""
    rows = [
        [
            f"{AMP[row['amp']]}, batch {row['batch']}, {side(row)}",
            f"{row['plain_seconds']:.2f}",
            f"{row['seconds']:.2f}",
            f"{row['faster']:.2f} x",
            f"{row['load']:.0f}",
        ]
        for row in lines.of("speed_prepared")
    ]
    return table(["", "as they are, processor s", "prepared, processor s", "faster", "load"], rows)


def small_model(row: dict) -> list[str]:
    """Which model answered a request, and by which rule: two cells."""
    rule = f"{row['rule']}, p {row['p']:g}" if row["rule"] else row["name"]
    return [f"{row['width']} wide, {row['patches']} patches", rule]


def single(lines: Lines) -> str:
    """One request at a time: what it takes, how many operators, and the share of the bound, by width and patches."""
    rows = [
        [
            *small_model(row),
            f"{row['percent']:.1f}",
            f"{row['milliseconds']:.2f}",
            f"{row['speedup']:.2f}",
            f"{row['steps']}",
            f"{row['percent_of_bound']:.0f}",
        ]
        for row in lines.of("speed_single")
    ]
    head = ["", "", "% of dense GFLOPs", "ms", "speed-up", "operators", "% of the matmul bound"]
    return table(head, rows) if rows else ""


def compiled(lines: Lines) -> str:
    """One request at a time, with the layers of the image tower compiled: over the same ones as they are."""
    rows = [
        [
            *small_model(row),
            f"{row['milliseconds']:.2f}",
            f"{row['speedup']:.2f}",
            f"{row['seconds_to_compile']:.0f}",
        ]
        for row in lines.of("speed_compiled")
    ]
    return table(["", "", "ms, compiled", "times as fast as not compiled", "seconds to compile"], rows)


def profile(lines: Lines) -> str:
    """Where a training step's time goes, by kind of work."""
    found = lines.of("speed_profile", train=True)
    kinds = list(dict.fromkeys(kind for row in found for kind in row["ms"]))
    rows = [
        [
            f"{AMP[row['amp']]}, batch {row['batch']}, {side(row)}",
            *(f"{row['ms'].get(kind, 0):.0f}" for kind in kinds),
            f"{sum(row['ms'].values()):.0f}",
        ]
        for row in found
    ]
    return table(["ms", *kinds, "in all"], rows) if rows else "Not measured yet."


def feeding(lines: Lines) -> str:
    """Pictures a second, and how many times as many as with floats made by the worker; at which load."""
    rows = [
        [
            f"{row['step']}, {row['name']}",
            str(row["workers"]),
            f"{row['images_per_second']:.0f}",
            f"{row['faster']:.2f}" if row["step"] == "load" else "",
            f"{row['load']:.0f}",
        ]
        for row in lines.of("speed_data", photos="640 x 480")
    ]
    return table(["640 x 480", "workers", "pictures/s", "over floats", "load"], rows)


def machines(lines: Lines, *files: str) -> str:
    """Where and when lines were made."""
    return made_on(row for file in files for row in lines.of(f"speed_{file}"))


def timed_on(lines: Lines, task: str, amp: str) -> str:
    """Where and when a model's inference was timed in one type, off for float32."""
    return made_on(lines.of("speed_inference", task=task, amp=amp, plain="amax"))


def made_on(rows: Iterable[dict]) -> str:
    """The machines of some lines."""
    return "; ".join(dict.fromkeys(machine(row) for row in rows if "hardware" in row)) or NOT_MEASURED


def machine(row: dict) -> str:
    """Where and when a line was made."""
    threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    return f"{row['hardware']}, {threads}, torch {row['torch'].partition('+')[0]}, {row['date']}"


def gpu(lines: Lines) -> str:
    """What `benchmarks/gpu.sh` found on a GPU; that it has not been run on one, where it has not."""
    found, section_machine, on_gpu = lines.of("gpu"), "", []
    for row in found:
        if row["part"] == "machine":
            section_machine = row["hardware"] if row["device"] == "cuda" else ""
        elif section_machine:
            on_gpu.append({**row, "hardware": section_machine})
    if not on_gpu:
        return "No GPU has run it yet, so no number of one stands here."
    return "\n\n".join([gpu_summary(on_gpu), gpu_speed(on_gpu)])


def gpu_summary(rows: list[dict]) -> str:
    """Which parts ran, failed, were skipped or disagreed, by section."""
    head = ["section", "parts that ran", "failed", "skipped", "kernels that disagree"]
    cells = []
    for section in dict.fromkeys(row["section"] for row in rows):
        own = [row for row in rows if row["section"] == section]
        wrong = [row["part"] for row in own if row.get("agrees") is False]
        failed, skipped = ({row["part"] for row in own if word in row} for word in ("failed", "skipped"))
        ran = {row["part"] for row in own} - failed - skipped
        cells.append([section, str(len(ran)), ", ".join(sorted(failed)), ", ".join(sorted(skipped)), ", ".join(wrong)])
    hardware = ", ".join(dict.fromkeys(row["hardware"] for row in rows))
    return f"{hardware}:\n\n{table(head, cells)}"


def gpu_speed(rows: list[dict]) -> str:
    """Time and memory of every side of the grid."""
    cells = [
        [
            f"{row['task']} {'training' if row['train'] else 'inference'}, {row['batch']}",
            f"{side(row)}{', compiled' if row['compiled'] else ''}",
            f"{row['p']:g}",
            f"{row['percent']:.1f}",
            f"{row['samples_per_second']:.4g}",
            f"{row['speedup']:.2f}",
            f"{row['peak_mib']:.0f}",
        ]
        for row in rows
        if "samples_per_second" in row
    ]
    return table(["", "", "p", "% of dense GFLOPs", "samples/s", "speed-up", "peak MiB"], cells)


BLOCKS = named(
    summary,
    speedups,
    models,
    over_plain,
    memory,
    own_parts,
    attention,
    keep,
    batches,
    decoding,
    prepared,
    single,
    compiled,
    profile,
    feeding,
    machines,
    timed_on,
    gpu,
    features,
    photo_models,
)


def write_report(results: Path, docs: Path) -> None:
    """Writes the pages."""
    prepare_output(docs)
    for page, words in WORDS.items():
        write_atomic(docs / page, fill(Path(__file__).parent / words, BLOCKS, Lines(results)))


def main(argv: list[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the lines")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages")
    args = parser.parse_args(argv)
    write_report(args.results, args.docs)


if __name__ == "__main__":
    told(main)
