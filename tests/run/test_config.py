"""Configuration: the flags and defaults users rely on, what overrides what, and one clear line for every mistake."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compress_nlvr_dtp
from madtp.run import config as configuration
from madtp.run import flags as command
from madtp.run.keys import COMMON_KEYS
from utils import UserError

NLVR = SimpleNamespace(name="nlvr", default_config="configs/nlvr.yaml")

# task, file, and from the paper's table: image, lr, weight decay, batch train and test, epochs
FILES = [
    ("nlvr", "nlvr", 384, 3e-6, 0.05, 16, 32, 15),
    ("caption", "caption_coco", 384, 1e-5, 0.05, 32, 32, 5),
    ("vqa", "vqa", 480, 2e-5, 0.05, 16, 16, 3),
    ("retrieval", "retrieval_coco", 384, 1e-7, 0.05, 32, 32, 5),
    ("retrieval_flickr", "retrieval_flickr", 384, 1e-7, 0.05, 16, 32, 10),
    ("retrieval_clip", "retrieval_coco_clip", 336, 1e-5, 0.2, 16, 32, 5),
    ("retrieval_clip", "retrieval_flickr_clip", 336, 1e-5, 0.2, 16, 32, 10),
]


@pytest.fixture
def parse(tmp_path):
    """Parses `flags` with a configuration file of the given text."""

    def parse(text="", *flags, task="nlvr"):
        path = tmp_path / "task.yaml"
        path.write_text(text)
        return command.parse([*flags, "--config", str(path)], SimpleNamespace(name=task, default_config=""))

    return parse


def test_flags_and_defaults_are_frozen():
    flags = {action.option_strings[-1]: action.default for action in command.command_line(NLVR)._actions}
    assert flags == {
        "--help": "==SUPPRESS==",
        "--config": "configs/nlvr.yaml",
        "--output_dir": "output/nlvr",
        "--pretrained": None,
        "--download": False,
        "--evaluate": False,
        "--p": 0.5,
        "--epoch": None,
        "--device": "cpu",
        "--seed": 42,
        "--amp": None,
        "--accum": 1,
        "--num_workers": 4,
        "--bad_images": "stop",
        "--temperature": None,
        "--keep": None,
        "--controller": "closed_loop",
        "--resume": None,
        "--resume_anyway": False,
        "--overwrite": False,
        "--save_steps": 0,
        "--skip_nonfinite": 0,
        "--clip_grad": None,
        "--deterministic": False,
        "--set": [],
        "--tensorboard": False,
        "--wandb": False,
        "--world_size": 1,
        "--dist_url": "env://",
        "--local-rank": None,
        "--distributed": True,
    }


def test_help_says_what_the_script_does_and_which_defaults_there_are():
    said = command.command_line(compress_nlvr_dtp.NLVR()).format_help()
    assert compress_nlvr_dtp.__doc__.strip() in said
    assert "0 is the dense model (default: 0.5)" in " ".join(said.split())
    assert not {"None", "False", "[]"} & set(re.findall(r"default: ([^)]*)", said))


def test_keys_and_defaults_are_frozen():
    defaults = {name: key.default for name, key in COMMON_KEYS.items()}
    assert defaults == {
        "image_root": "datasets/vision",
        "ann_root": "annotation",
        "pretrained": "",
        "tokenizer": "pretrained/bert-base-uncased",
        "image_size": 384,
        "vit": "base",
        "vit_grad_ckpt": False,
        "vit_ckpt_layer": 0,
        "med_config": "configs/med_config.json",
        "init_scheme": "bert",
        "drop_path": None,
        "sd_num": 100,
        "sd_dim": 768,
        "keep": "batch",
        "shape": None,
        "keep_norm": False,
        "distill": 0.0,
        "ramp": 0.5,
        "calibration_batches": 16,
        "cost_slack": 0.04,
        "batch_size_train": 16,
        "batch_size_test": 32,
        "max_epoch": 5,
        "epoch_steps": 0,
        "init_lr": 1e-5,
        "min_lr": 0.0,
        "lr_schedule": "epoch",
        "warmup_steps": 0,
        "weight_decay": 0.05,
        "betas": [0.9, 0.999],
        "clip_grad": 0.0,
        "augment": True,
        "print_freq": 50,
        "amp": "auto",
    }


@pytest.mark.parametrize("task, name, image_size, lr, weight_decay, train, test, epochs", FILES)
def test_files_hold_the_papers_values(task, name, image_size, lr, weight_decay, train, test, epochs):
    _, config = command.parse(["--config", f"configs/{name}.yaml"], SimpleNamespace(name=task, default_config=""))
    expected = {
        "image_size": image_size,
        "init_lr": lr,
        "min_lr": 0.0,
        "weight_decay": weight_decay,
        "batch_size_train": train,
        "batch_size_test": test,
        "max_epoch": epochs,
        "sd_num": 100,
        "sd_dim": 768,
    }
    assert {key: config[key] for key in expected} == expected
    assert config["pretrained"].startswith("pretrained/")
    first_lines = Path(f"configs/{name}.yaml").read_text().splitlines()[:3]
    assert first_lines[0].startswith("# python -m torch.distributed.run --nproc_per_node=8 -- compress_")
    assert f"--config ./configs/{name}.yaml" in first_lines[1] and config["pretrained"] in first_lines[1]


def test_bert_sizes():
    sizes = json.loads(Path("configs/med_config.json").read_text())
    assert sizes["vocab_size"] == 30524 and sizes["hidden_size"] == sizes["encoder_width"] == 768
    assert sizes["num_hidden_layers"] == sizes["num_attention_heads"] == 12 and sizes["intermediate_size"] == 3072


class TestOrder:
    def test_nothing_behind_the_sign_is_an_empty_text(self, parse):
        assert parse("pretrained: a", "--set", "pretrained=")[1]["pretrained"] == ""
        with pytest.raises(UserError, match="sd_num is None, expected an integer"):
            parse("", "--set", "sd_num=")

    def test_defaults_file_set_flags(self, parse):
        _, config = parse("sd_num: 5\nsd_dim: 6\nmax_epoch: 7\npretrained: a", "--set", "sd_dim=8", "--epoch", "9")
        assert (config["sd_num"], config["sd_dim"], config["max_epoch"], config["pretrained"]) == (5, 8, 9, "a")
        assert config["print_freq"] == 50
        assert parse("pretrained: a", "--set", "pretrained=b", "--pretrained", "c")[1]["pretrained"] == "c"
        assert parse("pretrained: a", "--pretrained", "")[1]["pretrained"] == ""

    def test_an_empty_file_is_all_defaults_and_calls_share_nothing(self, parse):
        _, config = parse("# nothing here\n")
        config["betas"].append(1)
        assert parse()[1]["betas"] == [0.9, 0.999]

    def test_home_is_found(self, parse, monkeypatch):
        monkeypatch.setenv("HOME", "/home/me")
        _, config = parse("image_root: ~/images", "--set", "ann_root=~/annotation", "tokenizer=~me/bert")
        assert (config["image_root"], config["ann_root"]) == ("/home/me/images", "/home/me/annotation")
        assert config["tokenizer"] == "~me/bert"

    def test_batch_size_stands_for_both(self, parse):
        def sizes(*arguments):
            config = parse(*arguments)[1]
            assert "batch_size" not in config
            return config["batch_size_train"], config["batch_size_test"]

        assert sizes("batch_size: 4") == (4, 4)
        assert sizes("batch_size_test: 8\nbatch_size: 4") == (4, 8)
        assert sizes("batch_size_train: 2\nbatch_size_test: 3", "--set", "batch_size=4") == (4, 4)
        assert sizes("", "--set", "batch_size=4", "--set", "batch_size_test=5") == (4, 5)

    def test_set_reaches_into_mappings(self, parse):
        text = "vit: {embed_dim: 32, depth: 2, num_heads: 2, patch_size: 16}\nmed_config: {hidden_size: 32}"
        _, config = parse(text, "--set", "vit.depth=3", "med_config.num_hidden_layers=1")
        assert config["vit"] == {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 16}
        assert config["med_config"] == {"hidden_size": 32, "num_hidden_layers": 1}
        assert parse("", "--set", "vit={depth: 4}")[1]["vit"] == {"depth": 4}

    def test_values_are_yaml(self, parse):
        _, config = parse(
            "drop_path: 0.2",
            "--set",
            "init_lr=1e-5",
            "weight_decay=1",
            "augment=false",
            "betas=[0.8, 0]",
            "drop_path=null",
        )
        assert config["init_lr"] == 1e-5
        assert config["weight_decay"] == 1.0 and isinstance(config["weight_decay"], float)
        assert config["augment"] is False and config["betas"] == [0.8, 0.0] and config["drop_path"] is None

    def test_resume(self, parse):
        assert parse("", "--resume")[0].resume == "auto"
        assert parse("", "--resume", "output/a.pth")[0].resume == "output/a.pth"

    def test_flags_of_old_scripts_parse(self, parse):
        args, _ = parse("", "--world_size", "8", "--dist_url", "tcp://host:1", "--distributed", "True")
        assert (args.world_size, args.dist_url) == (8, "tcp://host:1")


class TestMistakes:
    def test_an_item_of_a_list_is_one_of_its_choices(self):
        with pytest.raises(UserError, match=r"--set: metrics\[1\] is 'Meteor', expected one of Bleu, METEOR, ROUGE_L"):
            configuration.resolve("configs/caption_coco.yaml", "caption", ["metrics=[CIDEr, Meteor]"])

    def test_some_file_is_trained_on(self, parse):
        with pytest.raises(UserError, match=r"train_files is \[\], expected a list, at least 1"):
            parse("", "--set", "train_files=[]", task="vqa")
        with pytest.raises(UserError, match="num_beams is 1000000, expected an integer, at least 1, at most 1024"):
            parse("num_beams: 1000000", task="caption")

    @pytest.mark.parametrize(
        "text, message",
        [
            ("image_sise: 96", "unknown key 'image_sise', the closest known key is 'image_size'"),
            (
                "k_test: 5",
                "unknown key 'k_test', which is one of vqa, retrieval, retrieval_flickr, retrieval_clip; take",
            ),
            (
                "coco_gt_root: x",
                "unknown key 'coco_gt_root', which is one of caption; take a file of this task, or that",
            ),
            ("7: 5", "unknown key '7'"),
            ("image_size: large", "image_size is 'large', expected an integer, at least 1"),
            ("image_size: 96.5", "image_size is 96.5, expected an integer"),
            ("image_size: true", "image_size is True, expected an integer"),
            ("image_size:", "image_size is None, expected an integer"),
            ("image_size: 0", "image_size is 0, expected an integer, at least 1"),
            ("init_lr: fast", "init_lr is 'fast', expected a number, at least 0"),
            ("init_lr: .nan", "init_lr is nan, expected a number, at least 0"),
            ("init_lr: .inf", "init_lr is inf, expected a number, at least 0"),
            ("ramp: 2", "ramp is 2.0, expected a number, at least 0, at most 1"),
            ("augment: 1", "augment is 1, expected true or false"),
            ("pretrained: 3", "pretrained is 3, expected text"),
            ("vit: huge", "vit is 'huge', expected one of tiny, small, base, large or a mapping"),
            ("vit: {depht: 2}", "unknown key 'vit.depht', the closest known key is 'vit.depth'"),
            ("vit: {depth: 1.5}", "vit.depth is 1.5, expected an integer, at least 1"),
            ("betas: [0.9, high]", "betas[1] is 'high', expected a number"),
            ("betas: [0.9]", "betas is [0.9], expected a list of 2"),
            ("betas: [0.9, 1]", "betas[1] is 1.0, expected a number, at least 0, at most 0.999999"),
            ("lr_schedule: hourly", "lr_schedule is 'hourly', expected one of epoch, step"),
            ("image_size: [1", ", line 1: not YAML"),
            ("sd_num: 1\nsd_num: 2", ", line 2: not YAML: found duplicate key"),
            ("- a", "expected lines of 'key: value'"),
            ("ann_root: 2026-02-31", "not YAML"),
        ],
    )
    def test_in_the_file(self, parse, text, message):
        with pytest.raises(UserError, match=r"task\.yaml.*" + re.escape(message)) as error:
            parse(text)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "flags, message",
        [
            (["--p", "1"], "--p is 1, expected"),
            (["--p", "-0.1"], "--p is -0.1, expected"),
            (["--p", "nan"], "--p is nan, expected"),
            (["--p", "half"], "argument --p: invalid float value: 'half'"),
            (["--amp", "fp8"], "invalid choice: 'fp8'"),
            (["--evaluat"], "unrecognized arguments: --evaluat"),
            (["--output_dir", ""], "argument --output_dir: the path is empty, as by a variable of the shell"),
            (["--resume", ""], "argument --resume: the path is empty"),
            (["--epoch", "0"], "--epoch: max_epoch is 0, expected an integer, at least 1"),
            (["--accum", "0"], "--accum is 0, expected a number, at least 1"),
            (["--seed", "4294967296"], "--seed is 4294967296, expected at most 4294967295"),
            (["--num_workers", "1000000"], "--num_workers is 1000000, expected at most 1024"),
            (["--temperature", "-1"], "--temperature is -1.0, expected a number, at least 0"),
            (["--temperature", "nan"], "--temperature is nan, expected a number, at least 0"),
            (["--temperature", "inf"], "--temperature is inf, expected a number, at least 0"),
            (["--device", "gpu"], "--device is 'gpu', expected cpu, cuda or cuda:NUMBER"),
            (["--device", "meta"], "--device is 'meta', expected cpu, cuda or cuda:NUMBER"),
            (["--device", "cuda:63"], "--device is 'cuda:63', but"),
            (["--set", "sd_num"], "--set sd_num: expected KEY=VALUE"),
            (["--set", "sd_numb=3"], "--set: unknown key 'sd_numb', the closest known key is 'sd_num'"),
            (["--set", "sd_num=x"], "--set: sd_num is 'x', expected an integer, at least 1"),
            (["--set", f"sd_num={10**22}"], f"--set: sd_num is {10**22}, expected an integer, at most 2147483647"),
            (["--set", "sd_num=[1"], "--set sd_num=[1, line 1: not YAML"),
            (["--set", "vit.depth=2"], "--set vit.depth: vit is 'base', not a mapping; set all of it"),
            (["--set", "vit={depth: 2}", "vit.depht=3"], "--set: unknown key 'vit.depht'"),
        ],
    )
    def test_on_the_command_line(self, parse, flags, message):
        with pytest.raises(UserError, match=re.escape(message)):
            parse("", *flags)

    @pytest.mark.parametrize(
        "text, flags, message",
        [
            ("shape: 0.7", [], "shape is 0.7, but tokens are kept by batch, which has no shape"),
            ("keep_norm: true", [], "keep_norm is true, but tokens are kept by batch, which keeps no lengths"),
            ("keep: coverage\nshape: 0.7", ["--keep", "sample"], "shape is 0.7, but tokens are kept by sample"),
            ("vit_grad_ckpt: true", [], "vit_grad_ckpt is true, but vit_ckpt_layer 0 recomputes no layer"),
            ("min_lr: 1e-4", ["--set", "init_lr=1e-6"], "min_lr 0.0001 is above init_lr 1e-06"),
        ],
    )
    def test_keys_that_leave_each_other_without_effect(self, parse, text, flags, message):
        with pytest.raises(UserError, match=re.escape(message)) as error:
            parse(text, *flags)
        assert "\n" not in str(error.value)
        assert parse(text, *flags, "--evaluate")[0].evaluate, "whose model is what it is"

    @pytest.mark.parametrize(
        "text",
        [
            "keep: coverage\nshape: 0.7",
            "vit_grad_ckpt: true\nvit_ckpt_layer: 4",
            "vit_ckpt_layer: 4",
            "init_lr: 1e-4\nmin_lr: 1e-4",
        ],
    )
    def test_keys_that_go_together(self, parse, text):
        parse(text)

    def test_no_file(self, tmp_path):
        for path in (tmp_path / "nowhere.yaml", tmp_path):
            with pytest.raises(UserError, match=f"{path}: .*(no such file|Is a directory); --config names"):
                command.parse(["--config", str(path)], NLVR)

    def test_not_text(self, tmp_path):
        path = tmp_path / "model.pth"
        path.write_bytes(b"PK\x03\x04\xff\xfe")
        with pytest.raises(UserError, match="model.pth: cannot be read as a YAML file: no text in UTF-8; "):
            command.parse(["--config", str(path)], NLVR)


class TestWrite:
    @pytest.mark.parametrize("task, name", [file[:2] for file in FILES])
    def test_reads_back(self, tmp_path, task, name):
        task, path = SimpleNamespace(name=task, default_config=f"configs/{name}.yaml"), tmp_path / "config.yaml"
        _, config = command.parse(["--set", "vit={depth: 2}", "med_config={a: [1, 2.5, null]}"], task)
        configuration.write(config, path)
        assert command.parse(["--config", str(path)], task)[1] == config

    @settings(max_examples=40)
    @given(text=st.text(), number=st.floats(min_value=0, allow_infinity=False))
    def test_any_value_reads_back(self, tmp_path_factory, text, number):
        path = tmp_path_factory.getbasetemp() / "config.yaml"
        values = {"prompt": text, "init_lr": number}
        configuration.write(values, path)
        task = SimpleNamespace(name="caption", default_config=str(path))
        assert command.parse([], task)[1] | values == command.parse([], task)[1]
