"""What training tools wrap weights in is taken off, and said; nothing else is touched."""

import logging

import pytest
import torch
from torch import nn

from madtp.method.errors import UserError
from madtp.shared.weights import checkpoint
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


def test_safetensors_of_our_own_names(tmp_path):
    from safetensors.torch import save_file

    source, target = Tower(), Tower()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    checkpoint.load(target, tmp_path / "model.safetensors", evaluate=True)
    assert all(value.equal(source.state_dict()[name]) for name, value in target.state_dict().items())


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
