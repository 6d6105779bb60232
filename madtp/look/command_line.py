"""The flags of every command. Nothing slow is imported here: help is answered at once."""

import os
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from madtp.look.scripts import SCRIPTS
from madtp.look.stages import DEMOS
from madtp.run.clone import named_path, own_file
from madtp.run.keys import TASK_KEYS

PATH = {"type": named_path}
FOLDER = PATH | {"metavar": "FOLDER"}
KEYS = {"nargs": "+", "action": "extend", "default": [], "metavar": "KEY=VALUE"}
WEIGHTS = "file of weights, folder of a run or of transformers, or name of a published CLIP"
# What `towers` writes anew: BLIP's tasks.
CONFIGS = [own_file(f"configs/{name}.yaml") for name in "nlvr caption_coco vqa retrieval_coco retrieval_flickr".split()]
# What `convert` reads, and what the files are called.
FORMS = {
    "vqav2": "v2_OpenEnded_mscoco_*_questions.json, v2_mscoco_*_annotations.json",
    "visual_genome": "question_answers.json",
    "vizwiz": "train.json, val.json, test.json",
    "daquar": "qa.894.raw.train.txt, qa.894.raw.test.txt",
    "karpathy": "dataset_coco.json, dataset_flickr30k.json or dataset_flickr8k.json",
    "coco": "captions_train2014.json, captions_val2014.json",
    "flickr8k": "Flickr8k.token.txt, Flickr_8k.trainImages.txt, ...",
    "flickr30k": "results_20130124.token or results.csv, lists like train.txt, ...",
    "nlvr2": "train.json, dev.json, test1.json",
}


def predict(parser: ArgumentParser) -> None:
    """Which model is asked about which pictures, and what is to be seen."""
    which_model(parser)
    flag = parser.add_argument
    flag(
        "--image",
        nargs="+",
        **PATH,
        required=True,
        metavar="PATH",
        help="pictures, folders of any number; NLVR2: pairs in turn",
    )
    flag("--text", nargs="+", default=[], help="VQA: question; NLVR2: statement; retrieval: texts to choose from")
    flag("--batch_size", type=int, default=1, help="samples that go through the model together")
    flag(
        "--compare", nargs="?", const="", metavar="CHECKPOINT", help="answer densely too, by the same model or another"
    )
    flag(
        "--visualize",
        **PATH,
        metavar="PNG",
        help="file to draw what every layer kept; of several samples X-1.png, X-2.png, ... for X.png",
    )
    flag("--json", action="store_true", help="print a JSON list instead")


def which_checkpoint(parser: ArgumentParser) -> None:
    """Which weights, and of what model."""
    flag = parser.add_argument
    flag("--checkpoint", **PATH, required=True, help=WEIGHTS)
    flag("--task", choices=list(SCRIPTS), default="", help="what the checkpoint is for, if no configuration says it")
    flag("--config", default="", help="YAML file; the one beside the checkpoint, or else the task's own")


def which_model(parser: ArgumentParser) -> None:
    """Which model is asked, and how it prunes."""
    which_checkpoint(parser)
    flag = parser.add_argument
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--temperature", type=float, help="or coverage's amount, instead of the checkpoint's; 0 is dense")
    how.add_argument(
        "--p", type=float, help="share of the GFLOPs to remove; the temperature is found for the first samples"
    )
    flag("--device", default="", help="cpu, cuda or cuda:NUMBER; the GPU if there is one")
    flag("--set", **KEYS, help="override keys of the configuration")


def visualize(parser: ArgumentParser) -> None:
    """Which samples of the data set are drawn, and where to."""
    which_model(parser)
    flag = parser.add_argument
    flag("--split", choices=("val", "test"), default="test", help="of the data set")
    flag("--number", type=int, default=4, help="of samples; at most one batch of the evaluation")
    flag("--out", **PATH, help="folder for the pictures; by default `pictures` beside the checkpoint")


def report(parser: ArgumentParser) -> None:
    """Which runs."""
    flag = parser.add_argument
    flag("folders", nargs="+", **PATH, metavar="OUTPUT_DIR", help="folder of a run, or of several")
    flag("--out", **PATH, help="the page; by default report.html in the first folder")
    flag("--no_drawing", action="store_true", help="show only the pictures that are there already")


def app(parser: ArgumentParser) -> None:
    """Which models, and where the page is."""
    flag = parser.add_argument
    flag("--checkpoint", nargs="+", **PATH, required=True, help=f"{WEIGHTS}; one or several")
    flag("--config", default="", help="YAML file of all; the one beside each checkpoint if not given")
    flag("--device", default="", help="cpu, cuda or cuda:NUMBER; the GPU if there is one")
    flag("--port", type=int, default=7860, help="of the page on this machine")


def demo(parser: ArgumentParser) -> None:
    """Which task, and how thoroughly."""
    parser.add_argument("task", nargs="?", default="nlvr", choices=sorted(DEMOS))
    parser.add_argument("--quick", action="store_true", help="few steps, to see that everything works")


def demo_data(parser: ArgumentParser) -> None:
    """How much is made of what."""
    flag = parser.add_argument
    flag("--out", **PATH, default="datasets/demo", help="folder to write")
    flag("--seed", type=int, default=0)
    flag("--train", type=int, default=6000, help="training images")
    flag("--val", type=int, default=512, help="validation images")
    flag("--test", type=int, default=1000, help="test images")
    flag("--pairs", type=int, default=15000, help="statements about two images to train on")
    flag("--objects", type=int, default=3, help="things in an image, at most")
    flag("--grid", type=int, default=7, help="side of an image in cells of 12 pixels")


def convert(parser: ArgumentParser) -> None:
    """Which files become which."""
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["forms and their files:", *(f"  {name:14s} {files}" for name, files in FORMS.items())])
    flag = parser.add_argument
    flag("form", choices=list(FORMS), metavar="FORM", help="one of those below")
    flag("files", nargs="+", metavar="FILE", help="unpacked; where its name tells no split: train=FILE, val=, test=")
    flag("--out", **FOLDER, required=True, help="where the tasks will read them, their ann_root")
    flag("--images", **FOLDER, help="look for every picture in it; the image_root (or vqa_root) of the task")
    flag("--drop_missing", action="store_true", help="leave out what speaks of pictures that are not there")
    flag("--val", metavar="SHARE|LIST", help="training pictures to validate on: a part like 0.1, or a file of names")
    flag("--test", metavar="SHARE|LIST", help="the same to test on")
    flag(
        "--name",
        choices=("coco_karpathy", "flickr30k"),
        help="of the files with captions: captioning reads the first, retrieval both",
    )


def towers(parser: ArgumentParser) -> None:
    """Which towers, and where they go."""
    flag = parser.add_argument
    flag("--image", **FOLDER, required=True, help="config.json and weights of a Dinov2Model or a ViTModel")
    flag("--text", **FOLDER, required=True, help="config.json and weights of a BertModel, with its vocabulary")
    flag("--download", action="store_true", help="fetch them from the hub, where OWNER/NAME is given for a folder")
    flag("--tokenizer", metavar="FOLDER", help="of the text tower, where its own folder has no vocabulary")
    flag("--mean", nargs=3, type=float, help="that the image tower's pixels had; its preprocessor_config.json says it")
    flag("--std", nargs=3, type=float, help="likewise")
    flag("--image_size", type=int, help="pixels on a side, instead of the image tower's own")
    flag("--config", nargs="+", default=CONFIGS, metavar="YAML", help="configurations to write anew for these towers")
    flag("--output_dir", **FOLDER, default="pretrained/towers", help="where the files go")


def export(parser: ArgumentParser) -> None:
    """Which model, and where it goes."""
    which_checkpoint(parser)
    flag = parser.add_argument
    flag("--set", **KEYS, help="override keys of the configuration")
    flag("--output_dir", **FOLDER, required=True, help="where the files go")


def check(parser: ArgumentParser) -> None:
    """Which data."""
    flag = parser.add_argument
    flag("--config", **PATH, required=True, help="YAML file")
    flag("--set", **KEYS, help="override its keys")
    flag("--task", choices=["nlvr", *TASK_KEYS], help="that the file is for, where its keys do not tell")
    flag("--num_workers", type=int, default=4 * (os.cpu_count() or 1), help="threads to read images")


def answers(parser: ArgumentParser) -> None:
    """Whose answers count, and where the list goes."""
    flag = parser.add_argument
    flag("--config", **PATH, default=own_file("configs/vqa.yaml"), help="names ann_root and train_files")
    flag("--set", **KEYS, help="override its keys")
    flag("--out", **PATH, help="file to write, instead of answer_list.json in ann_root")
    flag("--least", type=int, default=9, help="questions that an answer needs (9)")
