"""What training tools wrap weights in is taken off, and said; nothing else is touched."""

import logging
import os

import pytest
import torch
from torch import nn

from madtp.method.errors import UserError
from madtp.shared.weights import checkpoint
from madtp.shared.weights.folders import located
from madtp.shared.weights.wrappers import bare


class Tower(nn.Module):
    """A model of two parts with a layer inside another."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2)))
        self.head = nn.Linear(2, 2)


def behind(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


def compiled_within(state):
    """Where only a part was compiled and wrapped, the wrapper's name stands inside."""
    return {name.replace("encoder.1.", "encoder.1._orig_mod.module."): value for name, value in state.items()}


WRAPPED = {
    "DataParallel": lambda state: {"model": behind(state, "module.")},
    "torch.compile": lambda state: {"model": behind(state, "_orig_mod.")},
    "both": lambda state: behind(state, "module._orig_mod."),
    "a part": compiled_within,
    "FSDP": lambda state: behind(state, "_fsdp_wrapped_module._checkpoint_wrapped_module."),
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "DeepSpeed": lambda state: {"module": state, "buffer_names": []},
    "net": lambda state: {"net": state},
    "Lightning": lambda state: {"state_dict": behind(state, "model."), "global_step": 7},
    "open_clip": lambda state: {"epoch": 3, "name": "mine", "state_dict": behind(state, "module.")},
    "a class of one's own": lambda state: {"state_dict": behind(state, "net.blip.")},
    "an entry of one's own": lambda state: {"weights": state, "epoch": 3, "optimizer": {"state": {}}},
    "nested": lambda state: {"model": {"state_dict": behind(state, "net.module.")}, "epoch": 3},
}


@pytest.mark.parametrize("tool", WRAPPED)
def test_every_wrapper_comes_off_and_is_said(tmp_path, caplog, tool):
    source, target = Tower(), Tower()
    path = tmp_path / "model.pth"
    torch.save(WRAPPED[tool](source.state_dict()), path)
    with caplog.at_level(logging.INFO):
        checkpoint.load(target, path, evaluate=True)
    assert all(value.equal(source.state_dict()[name]) for name, value in target.state_dict().items())
    assert "taken from its entry" in caplog.text or "names without" in caplog.text


def test_a_plain_file_says_nothing_of_wrappers(tmp_path, caplog):
    source = Tower()
    torch.save({"model": source.state_dict(), "epoch": 3}, tmp_path / "model.pth")
    with caplog.at_level(logging.INFO):
        checkpoint.load(Tower(), tmp_path / "model.pth", evaluate=True)
    assert "entry" not in caplog.text and "names without" not in caplog.text
    assert checkpoint.read(tmp_path / "model.pth").keys() == {"model", "epoch"}


def test_what_was_taken_off_is_named():
    state = {"module._orig_mod.encoder.weight": torch.ones(1), "module._orig_mod.head.bias": torch.ones(1)}
    own, stripped = bare(state)
    assert own.keys() == {"encoder.weight", "head.bias"} and stripped == ["module.", "_orig_mod."]


def test_a_part_called_model_stays_unless_all_lie_in_it():
    state = {"model.weight": torch.ones(1), "head.bias": torch.ones(1)}
    assert bare(state) == (state, [])


class TestAClassAround:
    """Names of a real model: its image tower tells where the model begins, whatever else stands beside it."""

    OWN = {"visual_encoder.patch_embed.proj.weight": torch.ones(2), "text_encoder.weight": torch.ones(3)}

    def test_a_loss_beside_the_model_is_left(self, tmp_path, caplog):
        state = behind(self.OWN, "model.blip.") | {"loss.weight": torch.ones(1)}
        content = self.read(tmp_path, {"state_dict": state})
        assert content["model"].keys() == self.OWN.keys()
        assert "names without model.blip." in content["notes"]
        assert "left 1 others beside it, like loss.weight" in content["notes"]

    def test_momentum_beside_the_model_stays(self, tmp_path):
        state = self.OWN | {"visual_encoder_m.patch_embed.proj.weight": torch.ones(2)}
        assert self.read(tmp_path, state)["model"].keys() == state.keys()

    def test_of_two_models_none_is_chosen(self, tmp_path):
        state = behind(self.OWN, "model.") | behind(self.OWN, "ema.")
        with pytest.raises(UserError, match="holds several models, ema. and model.; save the one that is meant"):
            self.read(tmp_path, state)
        with pytest.raises(UserError, match="holds several models, params and params_ema; save the one that is meant"):
            self.read(tmp_path, {"params": self.OWN, "params_ema": self.OWN})

    def test_a_text_tower_alone_keeps_its_name(self, tmp_path):
        state = {"text_encoder.weight": torch.ones(2), "text_encoder.bias": torch.ones(2)}
        assert self.read(tmp_path, state)["model"].keys() == state.keys()

    def read(self, folder, content):
        torch.save(content, folder / "model.pth")
        return checkpoint.read(folder / "model.pth")


def test_weights_that_processes_keep_in_pieces(tmp_path):
    """DeepSpeed's ZeRO-3 writes names with nothing behind them, and the pieces beside."""
    torch.save({"module": {"weight": torch.empty(0)}, "param_shapes": [{}]}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="model.pt: weight is empty, its weights are in pieces .*: zero_to_fp32.py"):
        checkpoint.read(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "change, kind",
    [
        (torch.Tensor.to_sparse, "sparse; save all of them as plain tensors, by to_dense"),
        (lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "quantized; .*, by dequantize"),
    ],
    ids=["sparse", "quantized"],
)
@pytest.mark.filterwarnings("ignore")  # that quantized tensors are on their way out
def test_weights_in_other_forms_are_named(tmp_path, change, kind):
    state = Tower().state_dict()
    torch.save(state | {"head.weight": change(state["head.weight"])}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=f"its weight head.weight is {kind}"):
        checkpoint.read(tmp_path / "model.pth")


def test_one_weight_twice(tmp_path):
    torch.save({"weight": torch.ones(2), "module.weight": torch.zeros(2)}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="has some weights twice, with and without module."):
        checkpoint.read(tmp_path / "model.pth")


def test_wrappers_without_end(tmp_path):
    endless = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "model.pth")
    with pytest.raises(UserError, match="holds no weights"):
        checkpoint.read(tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_safetensors_of_our_own_names(tmp_path, name):
    """Whatever the file is called."""
    from safetensors.torch import save_file

    source, target = Tower(), Tower()
    save_file(source.state_dict(), tmp_path / name)
    checkpoint.load(target, tmp_path / name, evaluate=True)
    assert all(value.equal(source.state_dict()[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize("content", ["02 00 00 00 00 00 00 00 7b 78", "ff ff ff 00 00 00 00 00 7b 7d"])
def test_what_begins_as_safetensors_and_goes_on_otherwise(tmp_path, content):
    (tmp_path / "model.pth").write_bytes(bytes.fromhex(content))
    with pytest.raises(UserError, match="model.pth: is not a checkpoint or is damaged"):
        checkpoint.read(tmp_path / "model.pth")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.pth")
    with pytest.raises(UserError, match="model.pth is no regular file"):
        located(tmp_path / "model.pth")


class TestRunFolder:
    def test_its_best_checkpoint_is_taken_and_said(self, tmp_path, caplog):
        best, last = Tower(), Tower()
        checkpoint.save(tmp_path / "checkpoint_last.pth", model=last.state_dict())
        target = Tower()
        checkpoint.load(target, tmp_path, evaluate=True)
        assert target.head.bias.equal(last.head.bias)
        checkpoint.save(tmp_path / "checkpoint_best.pth", model=best.state_dict())
        with caplog.at_level(logging.INFO):
            checkpoint.load(target, tmp_path, evaluate=True)
        assert target.head.bias.equal(best.head.bias)
        assert "it is checkpoint_best.pth of this folder" in caplog.text

    def test_a_folder_with_neither(self, tmp_path):
        with pytest.raises(
            UserError, match="is a folder without checkpoint_best.pth or config.json: name the checkpoint"
        ):
            checkpoint.read(tmp_path)

    @pytest.mark.parametrize(
        "files, named",
        [
            (["checkpoint-500/config.json", "checkpoint-500/model.safetensors"], ["checkpoint-500"]),
            (["snapshots/0a1b/config.json", "blobs/7c.safetensors"], ["snapshots/0a1b"]),
            (["global_step7/mp_rank_00_model_states.pt"], ["global_step7/mp_rank_00_model_states.pt"]),
            (["a/checkpoint_best.pth", "b/checkpoint_best.pth", "b/log.txt"], ["a", "b"]),
        ],
        ids=["trainer", "cache of the hub", "DeepSpeed", "several runs"],
    )
    def test_what_lies_deeper_is_named(self, tmp_path, files, named):
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
        with pytest.raises(UserError) as error:
            checkpoint.read(tmp_path)
        assert str(error.value).endswith(f": name {' or '.join(str(tmp_path / name) for name in named)}")
