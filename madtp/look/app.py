"""A local page to play with: drop pictures in, slide p, and see what a compressed model answers, keeps and costs.

    python -m pip install gradio
    python -m madtp app --checkpoint output/demo/nlvr_p0.5/checkpoint_best.pth

With several checkpoints, of any tasks, the page has a choice. It is served on this machine alone.
"""

import argparse
import io
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from madtp.look.closeup import draw
from madtp.look.predict import batched, closeup_of, described, pruned_at
from madtp.look.predictor import Predictor, load
from madtp.look.samples import samples_of
from madtp.method.errors import UserError
from madtp.run.scalars import check_installed

ASKS = {
    "caption": "nothing: it describes the picture",
    "vqa": "a question",
    "nlvr": "a statement about the two pictures",
    "retrieval": "texts to choose from, one in a line",
    "retrieval_clip": "texts to choose from, one in a line",
}
COLUMNS = ["model", "answer", "GFLOPs", "% of dense", "pruned at", "ms"]
HERE = "127.0.0.1"
OWN, FOR_P = "as the model was scored", "for p"


def run(args: argparse.Namespace) -> None:
    """Serves the page until it is stopped."""
    check_installed("gradio")
    check_port(args.port)
    predictors = {path: load(path, "", args.config, args.device) for path in args.checkpoint}
    build(predictors).launch(server_name=HERE, server_port=args.port, **look())


def check_port(port: int) -> None:
    """Refuses a port that another program has, or that is none, before any model is read."""
    try:
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind((HERE, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "no port has this number"
        raise UserError(f"--port {port}: {reason}; give another") from error


def ask(
    predictor: Predictor, pictures: Sequence[Path], text: str, how: str, p: float
) -> tuple[list[list], str, Image.Image | None]:
    """What the dense and the compressed model answer, a note, and a closeup of what the latter kept.

    Args:
        predictor: the model.
        pictures: files, as many as the task takes.
        text: of retrieval one in a line.
        how: `OWN` takes the checkpoint's temperature, `FOR_P` finds one.
        p: share of the GFLOPs to remove from this sample.

    Returns:
        Rows of `COLUMNS`, what is to be said of them, and the picture if anything is pruned.

    Raises:
        UserError: a picture or text is missing, or p is out of reach.
    """
    texts = [line.strip() for line in text.splitlines() if line.strip()]
    texts = [] if predictor.task.name == "caption" else texts
    (sample,) = samples_of(predictor.task.name, pictures, texts)
    ((_, batch),) = batched(predictor, [sample])
    temperature = predictor.stored.temperature if how == OWN else predictor.temperature_for([batch], p)
    predictor.run(batch, 0.0)  # the first forward pass of a shape would look slow
    rows = []
    for name, at in {"dense": 0.0, "compressed": temperature}.items():
        (said,) = described(predictor, batch, predictor.run(batch, at), at)
        numbers = [f"{said['gflops']:.4g}", f"{said['percent']:.1f}", pruned_at(said), f"{said['milliseconds']:.1f}"]
        rows.append([name, said["answer"], *numbers])
    note = predictor.prunes_at(temperature).other_company(1)
    if not temperature:
        return rows, note, None
    file, (_, answer, _, percent, *_) = io.BytesIO(), rows[-1]
    draw(file, closeup_of(predictor, sample, answer, f"{answer}   ({percent} % of dense)", temperature))
    return rows, note, Image.open(file)


def build(predictors: dict[str, Predictor]):
    """The page, a `gradio.Blocks` whose function `ask` can also be called from elsewhere."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing leaves this machine
    import gradio

    def answer(name: str, left: str | None, right: str | None, text: str, how: str, p: float):
        predictor = predictors[name]
        pictures = [left, right] if predictor.task.name == "nlvr" else [left]
        if None in pictures:
            raise gradio.Error(f"give {'two pictures' if len(pictures) == 2 else 'a picture'}", print_exception=False)
        try:
            return ask(predictor, list(map(Path, pictures)), text or "", how, p)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    def adapt(name: str):
        task = predictors[name].task.name
        return gradio.Image(visible=task == "nlvr"), gradio.Textbox(label=ASKS[task], visible=task != "caption")

    names = list(predictors)
    first = predictors[names[0]]
    labels = [(f"{predictors[name].task.name}: {Path(name).parent.name}/{Path(name).name}", name) for name in names]
    with gradio.Blocks(title="MADTP", analytics_enabled=False) as page:
        gradio.Markdown("# MADTP\nWhat a compressed model answers, which tokens it kept, and what that cost.")
        with gradio.Row():
            with gradio.Column(scale=1):
                choice = gradio.Dropdown(labels, value=names[0], label="task and model")
                file = {"type": "filepath", "image_mode": None, "height": 220}  # read as `predict` reads it
                left = gradio.Image(label="picture", **file)
                right = gradio.Image(label="second picture", visible=first.task.name == "nlvr", **file)
                text = gradio.Textbox(label=ASKS[first.task.name], lines=2, visible=first.task.name != "caption")
                how = gradio.Radio([OWN, FOR_P], value=OWN, label="how much goes")
                p = gradio.Slider(0, 0.9, value=0.5, step=0.05, label="p: share of the GFLOPs to remove")
                button = gradio.Button("Ask", variant="primary")
            with gradio.Column(scale=2):
                table = gradio.Dataframe(headers=COLUMNS, label="dense and compressed", interactive=False, wrap=True)
                note = gradio.Markdown()
                kept = gradio.Image(label="what the compressed model kept, and why", format="png", show_label=False)
        inputs, outputs = [choice, left, right, text, how, p], [table, note, kept]
        choice.change(adapt, choice, [right, text], api_visibility="private")
        p.release(lambda: FOR_P, None, how, api_visibility="private").then(
            answer, inputs, outputs, api_visibility="private"
        )
        button.click(answer, inputs, outputs, api_name="ask")
    return page


def look() -> dict:
    """How the page looks: fonts of this machine, none from the network."""
    import gradio

    return {"theme": gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])}
