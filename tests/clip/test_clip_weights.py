"""CLIPs of other libraries: on the same pixels and ids what transformers' and open_clip's own classes compute."""

import json
import logging

import open_clip
import pytest
import torch
import transformers
from torch import nn

import clip
from clip.sizes import OPENAI, hidden_sizes, sizes_of
from madtp.method.errors import UserError
from madtp.shared.weights import architecture, checkpoint
from madtp.shared.weights.transformers_models import converted
from tests.golden.fill import fill, seeded
from tests.shared.weights.theirs import clip as their_clip
from tests.shared.weights.theirs import needs_5, saved

CONFIG = {"sd_num": 6, "sd_dim": 40, "queue_size": 8}
IMAGES = seeded(1, 3, 3, 64, 64)
START, END = 49406, 49407
IDS = torch.tensor([[START, 3, 9, 20, END, 0, 0], [START, 11, END, 0, 0, 0, 0], [START, 4, 5, 6, 7, 8, END]])
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def ours(path, evaluate=True, **config):
    return clip.load(str(path), "cpu", evaluate, CONFIG | config)[0].eval()


def held(folder, state):
    """A folder whose weights are these, as old files hold them."""
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@needs_5
class TestTransformers:
    @pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
    def test_features_and_logits(self, tmp_path, caplog, activation):
        theirs = their_clip(hidden_act=activation)
        own = ours(saved(theirs, tmp_path))
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        expected = theirs(IDS, IMAGES, attention_mask=torch.ones_like(IDS))
        image, text = (nn.functional.normalize(feature, dim=-1) for feature in features(own))
        torch.testing.assert_close(image, expected.image_embeds, **CLOSE)
        torch.testing.assert_close(text, expected.text_embeds, **CLOSE)
        torch.testing.assert_close(own.logit_scale.exp() * image @ text.T, expected.logits_per_image, **CLOSE)
        assert own.sizes.vision_head_width == 12 and own.sizes.transformer_head_width == 20

    def test_numbers_of_positions_are_no_weights(self, tmp_path, caplog):
        """Old files hold them, the published ones too."""
        caplog.set_level(logging.INFO)
        numbers = {f"{tower}_model.embeddings.position_ids": torch.arange(9)[None] for tower in ("vision", "text")}
        ours(held(saved(their_clip(), tmp_path), their_clip().state_dict() | numbers))
        assert "loaded" in caplog.text and "no place" not in caplog.text

    @pytest.mark.parametrize(
        "change", [torch.Tensor.flatten, lambda weight: weight[:1], lambda weight: weight[0, 0], None]
    )
    def test_queries_of_another_form_than_keys_are_none(self, tmp_path, change):
        state, folder = their_clip().state_dict(), saved(their_clip(), tmp_path)
        queries = state.pop(name := "text_model.encoder.layers.0.self_attn.q_proj.weight")
        held(folder, state | ({name: change(queries)} if change else {}))
        with pytest.raises(UserError, match=r"transformer.resblocks.0.attn.in_proj_weight is missing"):
            ours(folder)

    def test_both_towers_have_one_activation(self, tmp_path):
        with pytest.raises(UserError, match="hidden_act gelu of images and quick_gelu of texts is not supported"):
            ours(saved(their_clip(vision={"hidden_act": "gelu"}), tmp_path))
        with pytest.raises(UserError, match="its activation is relu; those of CLIP here are quick_gelu and gelu"):
            ours(saved(their_clip(hidden_act="relu"), tmp_path / "relu"))

    @pytest.mark.parametrize(
        "width, depth, heads, patch, size, text, features",
        [
            (768, 12, 12, 32, 224, 512, 512),
            (768, 12, 12, 16, 224, 512, 512),
            (1024, 24, 16, 14, 224, 768, 768),
            (1024, 24, 16, 14, 336, 768, 768),
        ],
        ids=["B/32", "B/16", "L/14", "L/14@336"],
    )
    def test_names_and_shapes_at_the_real_sizes(self, tmp_path, width, depth, heads, patch, size, text, features):
        """Built without weights: every entry of theirs has one of ours, of its shape, and none is left over."""
        vision = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "patch_size": patch}
        vision |= {"image_size": size, "intermediate_size": 4 * width}
        words = {"hidden_size": text, "intermediate_size": 4 * text, "num_attention_heads": text // 64}
        config = transformers.CLIPConfig(vision_config=vision, text_config=words, projection_dim=features)
        config.architectures = ["CLIPModel"]
        config.save_pretrained(tmp_path)
        with torch.device("meta"):
            content = converted(transformers.CLIPModel(config).state_dict(), tmp_path)
            sizes = hidden_sizes(sizes_of(content["model"], tmp_path), content, {}, tmp_path)
            own = clip.model.CLIP(sizes, 100, 768).state_dict()
        assert (sizes.vision_head_width, sizes.transformer_head_width, sizes.image_resolution) == (64, 64, size)
        shapes = {name: value.shape for name, value in own.items() if "query" not in name and name != "space_dict"}
        assert shapes == {name: value.shape for name, value in content["model"].items()}


def features(model):
    return model.encode_image(IMAGES), model.encode_text(IDS)


def open_clip_model(quick_gelu=False, width=160, head_width=80, text=(128, 2), words=49408, **vision):
    """A small CLIP of open_clip's own class."""
    theirs = open_clip.CLIP(
        embed_dim=24,
        vision_cfg={"layers": 2, "width": width, "head_width": head_width, "patch_size": 16, "image_size": 64} | vision,
        text_cfg={"context_length": 7, "vocab_size": words, "width": text[0], "heads": text[1], "layers": 2},
        quick_gelu=quick_gelu,
    )
    return fill(theirs).eval()


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class TestOpenClip:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "open_clip.pt"

    def assert_same(self, own, theirs):
        expected = theirs.encode_image(IMAGES), theirs.encode_text(IDS)
        for one, other in zip(features(own), expected, strict=True):
            torch.testing.assert_close(one, other, **CLOSE)

    @pytest.mark.parametrize("quick_gelu", [True, False])
    def test_what_no_shape_tells_is_a_key(self, path, caplog, quick_gelu):
        theirs = open_clip_model(quick_gelu, mlp_ratio=4.3637)
        torch.save({"epoch": 3, "name": "mine", "state_dict": prefixed(theirs.state_dict(), "module.")}, path)
        chosen = {"activation": "quick_gelu" if quick_gelu else "gelu", "head_width": 80, "text_head_width": 64}
        self.assert_same(ours(path, **chosen), theirs)
        assert warnings_of(caplog) == []

    def test_the_two_tables_of_positions_of_a_long_clip(self, path, monkeypatch):
        """20 of them are CLIP's, the others lie in a table of their own; here 3 of 7."""
        monkeypatch.setattr("clip.clip.KEPT_POSITIONS", 3)
        theirs = open_clip_model(quick_gelu=True, width=128, head_width=64)
        state, positions = theirs.state_dict(), theirs.positional_embedding.detach()
        first, others = positions.clone(), positions.clone()
        first[3:], others[:3] = 9.0, 9.0
        torch.save(state | {"positional_embedding": first, "positional_embedding_res": others}, path)
        self.assert_same(ours(path), theirs)

    def test_what_is_assumed_is_said(self, path, caplog):
        theirs = open_clip_model(quick_gelu=True, width=128, head_width=64)
        torch.save(theirs.state_dict(), path)
        self.assert_same(ours(path), theirs)
        assert warnings_of(caplog) == [
            f"{path} does not say its activation or head_width or text_head_width; taken as OpenAI's, while LAION's "
            "have activation=gelu (--set activation=quick_gelu head_width=64 text_head_width=64)"
        ]

    @pytest.mark.parametrize("heads, key", [((160, 64), "head_width"), ((128, 160), "text_head_width")])
    def test_what_cannot_be_known_is_refused_with_the_way_out(self, path, heads, key):
        width, text = heads
        torch.save(open_clip_model(width=width, head_width=width // 2, text=(text, 2)).state_dict(), path)
        with pytest.raises(UserError, match=f"a tower of width 160 cannot have heads of 64; --set {key}= says"):
            ours(path)

    def test_another_vocabulary_is_said(self, path, caplog):
        torch.save({"model": open_clip_model(True, 128, 64, words=60).state_dict(), "architecture": OPENAI}, path)
        ours(path)
        assert warnings_of(caplog) == [
            f"{path} has 60 words and CLIP's tokenizer 49408: texts that it cuts are others than those that the model "
            "was trained with"
        ]

    def test_its_own_config_says_it(self, tmp_path, caplog):
        theirs = open_clip_model()
        (tmp_path / "open_clip_config.json").write_text(
            json.dumps(
                {
                    "model_cfg": {
                        "vision_cfg": {"head_width": 80, "pool_type": "tok", "act_kwargs": {}},
                        "text_cfg": {"width": 128, "heads": 2},
                    }
                }
            )
        )
        torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
        for path in (tmp_path, tmp_path / "open_clip_pytorch_model.bin"):
            self.assert_same(ours(path), theirs)
        assert warnings_of(caplog) == []

    @pytest.mark.parametrize(
        "config, said",
        [
            ({"vision_cfg": {"timm_model_name": "convnext_base"}, "text_cfg": {}}, "timm_model_name 'convnext_base'"),
            ({"vision_cfg": {}, "text_cfg": {"hf_model_name": "roberta-base"}}, "hf_model_name 'roberta-base'"),
            ({"vision_cfg": {}, "text_cfg": {}, "custom_text": True}, "custom_text True"),
            ({"vision_cfg": {"act_kwargs": {"approximate": "tanh"}}, "text_cfg": {}}, "vision_cfg act_kwargs {"),
            ({"vision_cfg": {"pool_type": "avg"}, "text_cfg": {}}, "vision_cfg pool_type 'avg' is not supported"),
            ({"vision_cfg": {}, "text_cfg": {"pool_type": "last"}}, "text_cfg pool_type 'last' is not supported"),
            ({"vision_cfg": {}, "text_cfg": {"no_causal_mask": True}}, "text_cfg no_causal_mask True"),
            ({"vision_cfg": {}, "text_cfg": {"hf_tokenizer_name": "xlm"}}, "hf_tokenizer_name 'xlm'"),
            ({"vision_cfg": 3}, "expected a model_cfg"),
            ({"vision_cfg": {}, "text_cfg": {"heads": 0}}, r"are \(64, 512, 0\), expected integers; fetch it again"),
            ({"vision_cfg": {"head_width": "80"}, "text_cfg": {}}, r"are \('80', 512, 8\), expected integers"),
        ],
    )
    def test_a_config_of_what_ours_cannot_be(self, tmp_path, config, said):
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        torch.save(open_clip_model().state_dict(), tmp_path / "open_clip_pytorch_model.bin")
        with pytest.raises(UserError, match=said):
            ours(tmp_path)

    @pytest.mark.parametrize(
        "name, said",
        [
            ("visual.trunk.blocks.0.norm1.weight", "an image tower of timm in open_clip's wrapping"),
            ("visual.transformer.resblocks.0.ls_1.gamma", "layer scale"),
            ("text.transformer.resblocks.0.ln_1.weight", "a text tower of its own class"),
            ("visual.attn_pool.query", "attention pooling"),
            ("logit_bias", "SigLIP"),
        ],
    )
    def test_other_towers_are_refused_by_name(self, path, name, said):
        torch.save(open_clip_model().state_dict() | {name: torch.zeros(2)}, path)
        with pytest.raises(UserError, match=f"has {said}.*{name}"):
            ours(path)

    @pytest.mark.parametrize(
        "name, width, head_width, mlp_ratio",
        [("ViT-H-14", 1280, 80, 4.0), ("ViT-g-14", 1408, 88, 4.3637), ("ViT-bigG-14", 1664, 104, 4.9231)],
    )
    def test_laion_s_widths_are_recognised(self, caplog, name, width, head_width, mlp_ratio):
        """By the published sizes; one layer each will do."""
        config = open_clip.get_model_config(name)
        assert (config["vision_cfg"]["width"], config["vision_cfg"]["head_width"]) == (width, head_width)
        config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 1
        with torch.device("meta"):
            theirs = open_clip.CLIP(**config)
            content = {"model": theirs.state_dict()}
            sizes = hidden_sizes(sizes_of(content["model"], name), content, {}, name)
            own = clip.model.CLIP(sizes, 100, 768)
        (said,) = warnings_of(caplog)
        assert f"taken as LAION's of this width (--set activation=gelu head_width={head_width} text_" in said
        attention = theirs.visual.transformer.resblocks[0].attn
        assert own.visual.transformer.resblocks[0].attn.num_heads == attention.num_heads == width // head_width
        assert own.transformer.resblocks[0].attn.num_heads == theirs.transformer.resblocks[0].attn.num_heads
        for key, value in content["model"].items():
            assert own.state_dict()[key].shape == value.shape, key


class TestOwnCheckpoints:
    def test_they_say_what_no_shape_tells(self, tmp_path, caplog):
        theirs = open_clip_model()
        torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
        own = ours(tmp_path / "theirs.pt", activation="gelu", head_width=80, text_head_width=64)
        checkpoint.save(tmp_path / "ours.pth", model=own.state_dict(), **architecture.entry(own))
        again = ours(tmp_path / "ours.pth")
        for one, other in zip(features(again), features(own), strict=True):
            assert one.equal(other)
        assert warnings_of(caplog) == []
        ours(tmp_path / "ours.pth", activation="quick_gelu")
        assert warnings_of(caplog) == [
            f"{tmp_path / 'ours.pth'} says activation gelu; the configuration's quick_gelu is taken"
        ]

    @pytest.mark.parametrize(
        "entry, said",
        [
            ({"activation": "gelu", "head_width": -1}, "head_width -1"),
            ({"head_width": "wide"}, "head_width 'wide'"),
            ({"norm_eps": float("nan")}, "norm_eps nan"),
        ],
    )
    def test_impossible_architectures(self, tmp_path, entry, said):
        torch.save({"model": open_clip_model().state_dict(), "architecture": entry}, tmp_path / "model.pth")
        with pytest.raises(UserError, match=f"its architecture says {said}, which no model has"):
            ours(tmp_path / "model.pth")

    def test_an_entry_of_that_name_that_is_something_else(self, tmp_path):
        for entry in ("ViT-B-32", {"depth": 3}, 7):
            torch.save({"model": open_clip_model().state_dict(), "architecture": entry}, tmp_path / "model.pth")
            assert "architecture" not in checkpoint.read(tmp_path / "model.pth")


class TestImageSize:
    @pytest.mark.parametrize("evaluate", [True, False])
    def test_another_size_than_the_files_is_said(self, tmp_path, caplog, evaluate):
        torch.save(
            open_clip_model(True, 128, 64).state_dict() | {"space_dict": torch.zeros(6, 40)}, tmp_path / "clip.pt"
        )
        with caplog.at_level(logging.INFO):
            ours(tmp_path / "clip.pt", False, image_size=64)
            assert "positions are resized" not in caplog.text
            with pytest.raises(UserError, match="image_size 72 is no multiple of the patches of 16.*own is 64: --set"):
                ours(tmp_path / "clip.pt", False, image_size=72)
            sizes = ours(tmp_path / "clip.pt", evaluate=False, image_size=96).sizes
        assert sizes.image_resolution == 96
        (record,) = [record for record in caplog.records if "positions are resized" in record.getMessage()]
        assert (
            record.getMessage()
            == f"{tmp_path / 'clip.pt'} is for images of 64 pixels and gets 96: its positions are resized"
        )


def prefixed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}
