"""Checkpoints: what is written comes back, what fits is fitted, and every other file is refused by name."""

import logging
import os
import resource

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from madtp.shared.weights import architecture, checkpoint
from utils import UserError


class Tower(nn.Module):
    """A few entries of each kind that a BLIP model has."""

    def __init__(self, width=8, grid=4):
        super().__init__()
        self.visual_encoder = nn.Module()
        self.visual_encoder.pos_embed = nn.Parameter(torch.randn(1, 1 + grid**2, width))
        self.space_dict = nn.Parameter(torch.randn(3, width))
        self.query_model = nn.Linear(width, width)
        self.cls_head = nn.Linear(width, 2)
        self.register_buffer("position_ids", torch.arange(5))


def dense_state(model):
    """The state dict of `model` as a file from before MADTP has it."""
    return {key: value for key, value in model.state_dict().items() if not key.startswith(("space", "query"))}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


class TestRead:
    @pytest.mark.parametrize("legacy", [False, True])
    def test_round_trip(self, path, legacy):
        entries = {"model": Tower().state_dict(), "epoch": 3, "temperature": 1.5}
        if legacy:
            torch.save(entries, path, _use_new_zipfile_serialization=False)
        else:
            checkpoint.save(path, **entries)
        content = checkpoint.read(path)
        assert same(content.pop("model"), entries.pop("model"))
        assert content == entries

    def test_bare_state_dict_is_wrapped(self, path):
        state = Tower().state_dict()
        torch.save(state, path)
        content = checkpoint.read(path)
        assert content.keys() == {"model"} and same(content["model"], state)

    def test_missing_file_and_folder(self, tmp_path):
        with pytest.raises(UserError, match="nowhere.pth: no such checkpoint"):
            checkpoint.read(tmp_path / "nowhere.pth")
        with pytest.raises(UserError, match="is a folder"):
            checkpoint.read(tmp_path)

    def test_an_address_is_none_of_a_file(self):
        """BLIP's own configurations name such ones."""
        with pytest.raises(UserError, match="^https://host/model_base.pth is an address, .*: download it"):
            checkpoint.read("https://host/model_base.pth")

    @pytest.mark.parametrize("junk", [b"", b"<html>quota exceeded</html>", bytes(range(256)) * 8])
    def test_junk(self, path, junk):
        path.write_bytes(junk)
        with pytest.raises(UserError, match="model.pth: is not a checkpoint or is damaged"):
            checkpoint.read(path)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_cut_short(self, path, legacy):
        torch.save({"model": Tower().state_dict()}, path, _use_new_zipfile_serialization=not legacy)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(UserError, match="damaged"):
            checkpoint.read(path)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_code_is_not_run(self, path, legacy):
        class Attack:
            def __reduce__(self):
                return os.mkdir, (str(path.parent / "attacked"),)

        torch.save({"model": Attack()}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match=r"would run code \(\w+.mkdir\)"):
            checkpoint.read(path)
        assert not (path.parent / "attacked").exists()

    @pytest.mark.parametrize("temperature", ["hot", None, -1.0, float("nan"), [2.0], torch.ones(3), 10**400])
    def test_a_temperature_that_is_none(self, path, temperature):
        torch.save({"model": {"weight": torch.ones(2)}, "temperature": temperature}, path)
        with pytest.raises(UserError, match="model.pth: its temperature is .*, expected a number") as error:
            checkpoint.read(path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400

    @pytest.mark.parametrize("keep_norm", [1, "yes", None])
    def test_lengths_that_are_neither_kept_nor_not(self, path, keep_norm):
        torch.save({"model": {"weight": torch.ones(2)}, "keep_norm": keep_norm}, path)
        with pytest.raises(UserError, match="model.pth: its keep_norm is .*, expected true or false"):
            checkpoint.read(path)

    @pytest.mark.parametrize("shape", [0.0, -1.0, float("inf"), float("nan"), 1, "early"])
    def test_a_shape_that_no_schedule_has(self, path, shape):
        torch.save({"model": {"weight": torch.ones(2)}, "shape": shape}, path)
        with pytest.raises(UserError, match="model.pth: its shape is .*, expected a number above 0"):
            checkpoint.read(path)

    @pytest.mark.parametrize(
        "content", [[torch.ones(2)], {}, {"model": {}}, {"model": {"width": 3}}, {"epoch": 3}, {3: torch.ones(2)}]
    )
    def test_no_weights(self, path, content):
        torch.save(content, path)
        with pytest.raises(UserError, match="holds no weights"):
            checkpoint.read(path)


class TestSave:
    def test_full_disk_leaves_the_old_file(self, path):
        """A limit on the size of files fails a write midway, as a full disk does."""
        checkpoint.save(path, model={"weight": torch.ones(3)})
        old = path.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(UserError, match=r"cannot write .*model.pth \(1.0 MiB\)"):
                checkpoint.save(path, model={"weight": torch.ones(2**18)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == old
        assert os.listdir(path.parent) == [path.name]

    def test_failure_at_the_last_step_leaves_the_old_file(self, path, monkeypatch):
        checkpoint.save(path, model={"weight": torch.ones(3)})
        old = path.read_bytes()

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device; free some space"):
            checkpoint.save(path, model={"weight": torch.zeros(3)})
        assert path.read_bytes() == old
        assert os.listdir(path.parent) == [path.name]

    def test_no_folder(self, path):
        with pytest.raises(UserError, match="No such file or directory; choose another folder"):
            checkpoint.save(path.parent / "nowhere" / "model.pth", model={})


class TestLoad:
    def test_fills_the_model_and_reports(self, path, caplog):
        source, target = Tower(), Tower()
        torch.save({"model": {**source.state_dict(), "itm_head.bias": torch.ones(2)}, "temperature": 2.0}, path)
        with caplog.at_level(logging.INFO):
            report = checkpoint.load(target, path, evaluate=True)
        assert same(target.state_dict(), source.state_dict())
        assert report.loaded == list(target.state_dict())
        assert report.missing == [] and report.unexpected == ["itm_head.bias"]
        assert report.entries == {"temperature": 2.0}
        assert "loaded 7, no place for 1 (itm_head.bias)" in caplog.text

    @pytest.mark.parametrize("evaluate", [True, False])
    @pytest.mark.parametrize("odd", ["1.0.gamma", "1.1.weight"])
    def test_weights_that_layers_of_ours_do_not_have_are_another_model_s(self, path, caplog, evaluate, odd):
        """Layer scale, or one layer more: without it the others make another model, which nothing else would tell."""
        source = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
        torch.save(source.state_dict() | {odd: torch.ones(2), "2.bias": torch.ones(2)}, path)
        checkpoint.load(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))), path, evaluate=evaluate)
        warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        said = f"{path} has layers, or in them weights, that this model has not, so this is another one: {odd}"
        assert warned == ([said] if evaluate else [])

    def test_alignment_guidance_may_be_absent(self, path):
        source, target = Tower(), Tower()
        guidance = target.space_dict.clone()
        state = dense_state(source)
        del state["position_ids"]
        torch.save(state, path)
        report = checkpoint.load(target, path, evaluate=True)
        assert report.missing == ["space_dict", "position_ids", "query_model.weight", "query_model.bias"]
        assert torch.equal(target.space_dict, guidance)
        assert torch.equal(target.cls_head.weight, source.cls_head.weight)

    @pytest.mark.parametrize("other_shape", [False, True])
    def test_fresh_heads_only_before_training(self, path, other_shape):
        target, state = Tower(), Tower().state_dict()
        if other_shape:
            state.update({"cls_head.weight": torch.ones(5, 8), "cls_head.bias": torch.ones(5)})
        else:
            del state["cls_head.weight"], state["cls_head.bias"]
        torch.save(state, path)
        head = target.cls_head.weight.clone()
        with pytest.raises(UserError, match="cls_head.weight"):
            checkpoint.load(target, path, fresh=["cls_head"], evaluate=True)
        report = checkpoint.load(target, path, fresh=["cls_head"])
        assert report.missing == ["cls_head.weight", "cls_head.bias"]
        assert torch.equal(target.cls_head.weight, head)

    def test_another_width_names_both_shapes_and_touches_nothing(self, path):
        target = Tower(width=8)
        before = {key: value.clone() for key, value in target.state_dict().items()}
        torch.save(Tower(width=6).state_dict(), path)
        with pytest.raises(UserError, match=r"space_dict is \[3, 6\] in the file and \[3, 8\] in the model"):
            checkpoint.load(target, path, convert=[checkpoint.resize_positions])
        assert same(target.state_dict(), before)

    def test_other_guidance_is_not_taken_for_absent(self, path):
        """A pruned model whose learnable tokens do not fit would otherwise be evaluated with random ones."""
        source, target = Tower(), Tower()
        torch.save({**source.state_dict(), "space_dict": torch.ones(7, 8)}, path)
        with pytest.raises(UserError, match=r"space_dict is \[7, 8\]"):
            checkpoint.load(target, path, evaluate=True)

    def test_missing_keys_are_named(self, path):
        state = Tower().state_dict()
        del state["cls_head.bias"]
        torch.save(state, path)
        with pytest.raises(UserError, match=r"model.pth does not fit .*: 1 \(cls_head.bias is missing\)"):
            checkpoint.load(Tower(), path)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
    def test_quantized_weights_do_not_become_real_numbers(self, path, dtype):
        state = Tower().state_dict()
        torch.save({**state, "cls_head.weight": torch.ones(2, 8).to(dtype)}, path)
        with pytest.raises(UserError, match=f"cls_head.weight is {dtype} in the file and torch.float32 in the model"):
            checkpoint.load(Tower(), path)

    @pytest.mark.parametrize("emptied", [lambda weight: weight.to("meta"), lambda weight: weight[:0]])
    def test_weights_that_are_elsewhere_are_missed(self, path, emptied):
        state = Tower().state_dict()
        torch.save({**state, "cls_head.weight": emptied(state["cls_head.weight"])}, path)
        with pytest.raises(UserError, match="cls_head.weight is empty, its weights are in pieces elsewhere"):
            checkpoint.load(Tower(), path)

    @pytest.mark.parametrize("value", [float("nan"), float("-inf")])
    def test_weights_that_are_no_numbers_are_not_run(self, path, value):
        state, model = Tower().state_dict(), Tower()
        state["query_model.bias"][3], before = value, {key: one.clone() for key, one in model.state_dict().items()}
        torch.save(state, path)
        with pytest.raises(UserError, match=r"model.pth has weights that .* no numbers, 1 \(query_model.bias\)"):
            checkpoint.load(model, path)
        assert same(model.state_dict(), before)

    def test_an_adapter_that_is_not_merged(self, path):
        torch.save({**Tower().state_dict(), "cls_head.lora_A.default.weight": torch.ones(2, 8)}, path)
        with pytest.raises(
            UserError, match=r"has an adapter beside its weights \(cls_head.lora_A.default.weight\): merge"
        ):
            checkpoint.load(Tower(), path)

    def test_another_model_altogether(self, path):
        torch.save(nn.Conv2d(3, 4, 2).state_dict(), path)
        with pytest.raises(UserError, match=r"nothing of this model: it holds 2 \(weight, bias\); .*space_dict"):
            checkpoint.load(Tower(), path, fresh=["cls_head"])


def test_a_ratio_gives_back_the_width_that_it_was_made_of():
    """Also 15 of 11, whose quotient is rounded down."""
    pairs = [(hidden, width) for width in range(1, 100) for hidden in range(1, 5 * width)]
    assert all(int(width * architecture.mlp_ratio(hidden, width)) == hidden for hidden, width in pairs)


class TestConvert:
    @pytest.mark.parametrize("new", [2, 6])
    def test_positions_follow_the_image_size(self, path, new):
        source, target = Tower(grid=4), Tower(grid=new)
        torch.save(source.state_dict(), path)
        checkpoint.load(target, path, convert=[checkpoint.resize_positions])
        old, resized = source.visual_encoder.pos_embed[0], target.visual_encoder.pos_embed[0]
        assert torch.equal(resized[0], old[0])
        for channel in range(8):
            image = old[1:, channel].reshape(1, 1, 4, 4)
            expected = F.interpolate(image, size=(new, new), mode="bicubic", align_corners=False)
            torch.testing.assert_close(resized[1:, channel].reshape(1, 1, new, new), expected)

    @pytest.mark.parametrize("positions", [torch.ones(()), torch.ones(8), torch.ones(1, 1, 8)])
    def test_positions_of_no_grid_are_named(self, path, positions):
        torch.save(Tower().state_dict() | {"visual_encoder.pos_embed": positions}, path)
        with pytest.raises(UserError, match=r"visual_encoder.pos_embed is \[[\d, ]*\] in the file and \[1, 17, 8\]"):
            checkpoint.load(Tower(), path, convert=[checkpoint.resize_positions])
        table, patches = "visual_encoder.pos_embed", "visual_encoder.patch_embed.proj.weight"
        assert architecture.image_size({table: positions, patches: torch.ones(8, 3, 4, 4)}) == {}
        assert architecture.image_size({table: torch.ones(1, 17, 8), patches: positions}) == {}
        assert architecture.image_size({table: torch.ones(1, 17, 8), patches: torch.ones(8, 3, 4, 4)}) == {
            "image_size": 16
        }

    def test_positions_of_momentum_towers_are_resized_as_well(self):
        source, target = nn.Module(), nn.Module()
        for model, grid in ((source, 4), (target, 6)):
            model.visual_encoder = model.visual_encoder_m = Tower(grid=grid).visual_encoder
        resized = checkpoint.resize_positions(source.state_dict(), target)
        online, twin = (resized[f"{name}.pos_embed"] for name in ("visual_encoder", "visual_encoder_m"))
        assert twin.shape == (1, 37, 8) and twin.equal(online)

    def test_constant_positions_stay_constant_in_half_precision(self):
        state = {"visual_encoder.pos_embed": torch.full((1, 17, 8), 0.25, dtype=torch.half)}
        resized = checkpoint.resize_positions(state, Tower(grid=7))["visual_encoder.pos_embed"]
        assert resized.dtype == torch.half and torch.equal(resized, torch.full((1, 50, 8), 0.25, dtype=torch.half))

    def test_same_grid_is_untouched(self):
        state = Tower().state_dict()
        assert same(checkpoint.resize_positions(state, Tower()), state)

    def test_only_positions_of_images_are_resized(self):
        class Clip(nn.Module):
            def __init__(self, grid, context):
                super().__init__()
                self.positional_embedding = nn.Parameter(torch.randn(context, 8))
                for name in ("visual", "visual_m"):
                    tower = nn.Module()
                    tower.positional_embedding = nn.Parameter(torch.randn(1 + grid**2, 8))
                    self.add_module(name, tower)

        state = checkpoint.resize_positions(Clip(grid=3, context=10).state_dict(), Clip(grid=4, context=17))
        assert state["visual.positional_embedding"].shape == state["visual_m.positional_embedding"].shape == (17, 8)
        assert state["positional_embedding"].shape == (10, 8)

    def test_a_grid_that_is_not_square_is_an_error_with_shapes(self, path):
        state = Tower().state_dict()
        torch.save({**state, "visual_encoder.pos_embed": torch.ones(1, 13, 8)}, path)
        with pytest.raises(UserError, match=r"pos_embed is \[1, 13, 8\] in the file and \[1, 17, 8\] in the model"):
            checkpoint.load(Tower(), path, convert=[checkpoint.resize_positions])

    def test_twins_are_copies_of_the_single_cross_attention(self):
        layer = "text_encoder.encoder.layer.0."
        single = {
            layer + "crossattention.self.query.weight": torch.ones(2),
            layer + "crossattention.output.dense.bias": torch.zeros(2),
            layer + "crossattention.output.LayerNorm.bias": torch.full((2,), 3.0),
            layer + "attention.self.query.weight": torch.full((2,), 4.0),
        }
        twins = checkpoint.copy_cross_attention_to_twins(single, nn.Module())
        expected = {
            layer + "crossattention.self0.query.weight": torch.ones(2),
            layer + "crossattention.self1.query.weight": torch.ones(2),
            layer + "crossattention.output.dense0.bias": torch.zeros(2),
            layer + "crossattention.output.dense1.bias": torch.zeros(2),
            layer + "crossattention.output.LayerNorm.bias": torch.full((2,), 3.0),
            layer + "attention.self.query.weight": torch.full((2,), 4.0),
        }
        assert same(twins, expected)
        assert same(checkpoint.copy_cross_attention_to_twins(twins, nn.Module()), twins)
        own = {layer + "crossattention.self0.query.weight": torch.full((2,), 5.0)}  # whose place no copy takes
        for state in (own | single, single | own):
            assert same(checkpoint.copy_cross_attention_to_twins(state, nn.Module()), expected | own)


class Tied(nn.Module):
    """An embedding that is the output matrix too, and one bias under two names, as BLIP's decoder has them."""

    def __init__(self):
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.decoder.weight, self.bias = self.embedding.weight, self.decoder.bias
        self.crossattention = nn.Linear(4, 4)


class TestParts:
    @pytest.mark.parametrize("kept", [("embedding.weight", "bias"), ("decoder.weight", "decoder.bias")])
    def test_a_tied_weight_may_stand_under_one_of_its_names(self, path, kept):
        source, target = Tied(), Tied()
        state = {name: source.state_dict()[name] for name in (*kept, "crossattention.weight", "crossattention.bias")}
        torch.save(state, path)
        report = checkpoint.load(target, path, evaluate=True)
        assert report.missing == [] and same(target.state_dict(), source.state_dict())

    def test_tied_weights_count_once_and_buffers_not_at_all(self):
        model = Tower()
        model.tied = Tied()
        names = list(model.state_dict())
        assert checkpoint.by_parts(names, model) == (
            "3 guidance, 2 classifier, 2 tied, 2 cross-attention, 1 visual_encoder"
        )
        assert checkpoint.by_parts(["position_ids"], model) == ""
