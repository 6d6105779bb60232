"""One static page about one or several runs: scores, cost, temperature, tokens, pictures. No server, no network.

    python -m madtp report output/demo
    python -m madtp report output/nlvr_nlvr2_compression_p0.5 output/nlvr_nlvr2_compression_p0.7 --out nlvr.html

A folder may hold a run or, right below it, several. Pictures are those in the folders and in their `pictures`, which
`python -m madtp visualize` writes; where there are none of the best model they are drawn, if it and its data are there.
"""

import argparse
import base64
import io
import os
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from madtp.look import charts, paper, runs
from madtp.look.runs import PastRun
from madtp.method.errors import UserError
from madtp.method.rules import COVERAGE
from madtp.shared.files import prepare_output, write_atomic
from madtp.shared.run_files import BEST, CONFIG, ENVIRONMENT

PICTURES = 6  # of a folder
KNOBS = {COVERAGE: "amount"}  # what other rules have in place of T
STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { margin-top: 2em; border-bottom: 1px solid #ddd; } h3 { margin-top: 1.6em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .35em .7em; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th { background: #f5f5f5; } th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; } img { max-width: 100%; }
figure { margin: 1em 0; } figcaption, .note { color: #666; font-size: .9em; }
details { margin: 1em 0; } summary { cursor: pointer; } pre { background: #f5f5f5; padding: .8em; overflow-x: auto; }
"""


def run(args: argparse.Namespace) -> None:
    """Writes the page."""
    found = runs.read(args.folders)
    path = Path(args.out or Path(args.folders[0]) / "report.html")
    prepare_output(path.parent)
    if not args.no_drawing:
        for one in found:
            draw_pictures(one)
    write_atomic(path, page(found, list(map(Path, args.folders))))
    print(path)


def page(found: Sequence[PastRun], folders: Sequence[Path]) -> str:
    """The whole page."""
    names = names_of(found)
    tasks = list(dict.fromkeys(run.task for run in found))
    body = [f"<h1>MADTP: {escape(', '.join(map(str, folders)))}</h1>"]
    for task in tasks:
        body += about_task(task, [(name, run) for name, run in zip(names, found, strict=True) if run.task == task])
    for folder in folders:
        if folder not in [run.folder for run in found]:
            body += pictures(folder)
    for name, run in zip(names, found, strict=True):
        body += about_run(name, run)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{escape(', '.join(names))}</title><style>{STYLE}</style>"
    lines = ["<!doctype html>", f'<html lang="en"><head>{head}</head>', "<body>", *body, "</body></html>"]
    return "".join(f"{line}\n" for line in lines)


def names_of(found: Sequence[PastRun]) -> list[str]:
    """Names of runs: their folders' paths, without what all have in common."""
    folders = [run.folder.resolve() for run in found]
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    return [str(folder.relative_to(common)) for folder in folders]


def about_task(task: str, found: Sequence[tuple[str, PastRun]]) -> list[str]:
    """The table of a task's runs, and their scores against their costs."""
    points = next(filter(None, (paper.points_for(task, run.config) for _, run in found)), [])
    parts = [f"<h2>{task.replace('_', ' ')}</h2>", table(found)]
    plotted = list(dict.fromkeys(next(iter(run.scores)) for _, run in found if run.scores))
    for metric in plotted:
        shown = [(name, run.cost("percent"), run.scores[metric]) for name, run in found if metric in run.scores]
        where = " and ".join(sorted({run.split for _, run in found}))
        note = "What the paper reports is not ours, and was measured on its own data." if points else ""
        chart = charts.score_against_cost(metric, shown, points, where)
        parts.append(figure(chart, f"Score against cost of each run's best epoch. {note}"))
    return parts


def table(found: Sequence[tuple[str, PastRun]]) -> str:
    """Scores, cost, rule, temperature and speed of the best epochs."""
    scores = list(dict.fromkeys(name for _, run in found for name in run.scores))
    knobs = " or ".join(dict.fromkeys(KNOBS.get(run.keep, "T") for _, run in found))
    shaped = ["shape"] * any(run.best.get("shape") is not None for _, run in found)
    costs = ["GFLOPs", "% of dense", "10th-90th percentile"]
    heads = ["run", "split", *scores, *costs, "keep", knobs, *shaped, "samples/s"]
    rows = [
        [
            escape(name),
            run.split,
            *(number(run.scores.get(score), ".2f") for score in scores),
            number(run.cost("gflops"), ".4g"),
            number(run.cost("percent"), ".1f"),
            "-".join(filter(None, (number(run.cost(f"percent_p{rank}"), ".1f") for rank in (10, 90)))),
            run.keep + ", lengths kept" * bool(run.best.get("keep_norm")),
            number(run.best.get("temperature"), ".4g"),
            *(number(run.best.get(name), "g") for name in shaped),
            number(run.cost("samples_per_second"), ".0f"),
        ]
        for name, run in found
    ]
    cells = ["".join(f"<th>{head.replace('_', ' ')}</th>" for head in heads)]
    cells += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return '<div class="wide"><table>\n' + "\n".join(f"<tr>{row}</tr>" for row in cells) + "\n</table></div>"


def number(value: float | None, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else format(value, form)


def about_run(name: str, run: PastRun) -> list[str]:
    """How a run went, epoch by epoch, its pictures and what it was."""
    parts = [f"<h2>{escape(name)}</h2>"]
    if run.records:
        layers = {statistic: run.cost(statistic) for statistic in ("tokens", "tokens_p10", "tokens_p90")}
        chart = charts.course(run.records, next(iter(run.scores), None), layers)
        parts.append(figure(chart, "From epoch to epoch; tokens left by the best epoch's model, layer by layer."))
    parts += pictures(run.folder)
    for file in (ENVIRONMENT, CONFIG):
        if (run.folder / file).is_file():
            text = escape((run.folder / file).read_text(encoding="utf-8", errors="backslashreplace"))
            parts.append(f"<details><summary>{file}</summary><pre>{text}</pre></details>")
    return parts


def draw_pictures(run: PastRun) -> None:
    """Draws test samples of a run that has no pictures of its best model, where it pruned and left a checkpoint."""
    checkpoint = run.folder / BEST
    if not checkpoint.is_file() or not run.best.get("temperature"):
        return
    if any(file.stat().st_mtime >= checkpoint.stat().st_mtime for file in picture_files(run.folder)):
        return  # older ones are of a model that was trained on, or replaced
    from madtp.look import predictor, visualize  # models and data are needed only where something is drawn

    try:
        visualize.draw_split(predictor.load(str(checkpoint)), "test", 3)
    except UserError as error:
        print(f"note: no pictures of {run.folder}: {' '.join(str(error).split())}", file=sys.stderr)


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder and its `pictures`, overviews before single samples."""
    files = [*folder.glob("*.png"), *(folder / "pictures").glob("*.png")]
    return sorted(files, key=lambda file: (len(file.stem), file.stem))[:PICTURES]


def pictures(folder: Path) -> list[str]:
    """The pictures of a folder, inlined; those of single samples are folded away."""
    parts = []
    for file in picture_files(folder):
        source = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
        caption = escape(str(file.relative_to(folder)))
        image = f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        single = file.stem.rpartition("-")[2].isdigit()
        parts.append(f"<details><summary>a sample: {caption}</summary>{image}</details>" if single else image)
    return parts


def figure(chart: charts.Figure, caption: str) -> str:
    """A chart, inlined."""
    text = io.StringIO()
    chart.savefig(text, format="svg")
    charts.plt.close(chart)
    source = f"data:image/svg+xml;base64,{base64.b64encode(text.getvalue().encode()).decode()}"
    return f'<figure><img src="{source}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
