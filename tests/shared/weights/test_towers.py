"""Single towers in transformers' form: what they compute, layer by layer, they compute as towers of BLIP."""

import json

import pytest
import torch
import transformers
from torch import nn

from madtp.method.errors import UserError
from madtp.shared.weights.checkpoint import resize_positions
from madtp.shared.weights.towers import Normalisation, fold_normalisation, image_tower, text_tower
from models.bert import read_config
from models.med import med_encoder
from models.vit import VisionTransformer
from tests.golden.fill import seeded
from tests.models.test_golden import GOLDEN
from tests.shared.weights.theirs import TEXT, bert, dinov2, drawn, needs_5, saved, vit
from transform.pictures import MEAN, STD

pytestmark = needs_5
OURS = Normalisation(MEAN, STD)
HALVES = Normalisation([0.5, 0.4, 0.3], [0.5, 0.25, 0.3])
WORDS, CLS = 202, 22  # of the golden tokenizer with [DEC] and [ENC]; the number of [CLS]


def watched(layers: nn.ModuleList) -> list[torch.Tensor]:
    """What every layer returns first, in a list that fills when the layers run."""
    outputs = []
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
    return outputs


def normalised(pixels, mean, std):
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


class TestImageTower:
    @pytest.mark.parametrize(
        "theirs", [dinov2(), dinov2(qkv_bias=False), vit(), vit(qkv_bias=False)], ids=lambda one: one.config.model_type
    )
    @pytest.mark.parametrize("grid", [5, 7])
    def test_every_layer_is_theirs(self, tmp_path, theirs, grid):
        tower = image_tower(saved(theirs, tmp_path), OURS, HALVES)
        size = grid * tower.sizes["vit"]["patch_size"]
        ours = loaded_image_tower(tower, size)
        pixels = seeded(3, 2, 3, size, size).sigmoid()
        layers = watched(ours.blocks)
        with torch.no_grad():
            final, _ = ours(normalised(pixels, *OURS))
            other_size = {"interpolate_pos_encoding": True} if theirs.config.model_type == "vit" else {}
            expected = theirs(normalised(pixels, *HALVES), output_hidden_states=True, **other_size)
        assert len(layers) == len(expected.hidden_states) - 1 == 3
        for own, their in zip(layers, expected.hidden_states[1:], strict=True):
            torch.testing.assert_close(own, their, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(final, expected.last_hidden_state, rtol=1e-4, atol=1e-4)
        assert ours.norm.eps == theirs.config.layer_norm_eps != 1e-6

    def test_the_folder_says_its_normalisation(self, tmp_path):
        folder = saved(vit(), tmp_path)
        with pytest.raises(UserError, match="no preprocessor_config.json says its image_mean and image_std.*--mean"):
            image_tower(folder, OURS)
        stated = {"image_mean": list(HALVES.mean), "image_std": list(HALVES.std)}
        for content in ([], *(stated | {"image_std": std} for std in (None, [0.5, 0.5], [0.5, 0.5, None]))):
            (folder / "preprocessor_config.json").write_text(json.dumps(content))
            with pytest.raises(UserError, match="no preprocessor_config.json says its image_mean and image_std"):
                image_tower(folder, OURS)
        (folder / "preprocessor_config.json").write_text(json.dumps(stated))
        assert_same(image_tower(folder, OURS).state, image_tower(folder, OURS, HALVES).state)
        (folder / "preprocessor_config.json").write_text(json.dumps(stated | {"do_normalize": False}))
        assert_same(
            image_tower(folder, OURS).state, image_tower(folder, OURS, Normalisation([0.0] * 3, [1.0] * 3)).state
        )

    def test_a_dinov2_is_imagenet_s_unless_it_says_otherwise(self, tmp_path):
        imagenet = Normalisation([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        folder = saved(dinov2(), tmp_path)
        assert_same(image_tower(folder, OURS).state, image_tower(folder, OURS, imagenet).state)

    def test_the_fold_is_exact_in_double_precision(self):
        embedding = nn.Conv2d(3, 8, 4, 4).double()
        pixels = seeded(1, 2, 3, 12, 12).double()
        expected = embedding(normalised(pixels, *HALVES))
        state = {f"patch_embed.proj.{name}": value for name, value in embedding.state_dict().items()}
        fold_normalisation(state, OURS, HALVES)
        embedding.load_state_dict({name.rpartition(".")[2]: value for name, value in state.items()})
        torch.testing.assert_close(embedding(normalised(pixels, *OURS)), expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}])
    def test_files_whole_and_in_parts(self, tmp_path, options):
        theirs = dinov2()
        expected = image_tower(saved(theirs, tmp_path / "whole"), OURS)
        folder = saved(theirs, tmp_path / "folder", **options)
        assert len(list(folder.glob("*.safetensors"))) > bool(options)
        assert_same(image_tower(folder, OURS).state, expected.state)

    @pytest.mark.parametrize("theirs", [dinov2(), vit()], ids=lambda one: one.config.model_type)
    def test_a_state_dict_with_the_modules_names(self, tmp_path, theirs):
        """As `torch.save(model.state_dict())` writes it, in half precision or behind a classifier's prefix."""
        expected = image_tower(saved(theirs, tmp_path / "safe"), OURS, HALVES)
        folder = tmp_path / "bin"
        folder.mkdir()
        theirs.config.save_pretrained(folder)
        prefix = theirs.config.model_type
        state = {f"{prefix}.{name}": value for name, value in theirs.state_dict().items()}
        torch.save({**state, "classifier.weight": torch.zeros(2, 48)}, folder / "pytorch_model.bin")
        assert_same(image_tower(folder, OURS, HALVES).state, expected.state)

    @pytest.mark.parametrize(
        "changes, found",
        [
            ({"use_swiglu_ffn": True}, "use_swiglu_ffn true"),
            ({"hidden_act": "relu"}, "hidden_act relu"),
            ({"image_size": [70, 56]}, r"a size of \[70, 56\]"),
            ({"num_channels": 1}, "num_channels 1"),
        ],
    )
    def test_what_ours_cannot_be(self, tmp_path, changes, found):
        with pytest.raises(UserError, match=f"config.json: {found}.*choose another model"):
            image_tower(saved(dinov2(**changes), tmp_path), OURS)

    @pytest.mark.parametrize("kind", [transformers.ViTForImageClassification, transformers.ViTForMaskedImageModeling])
    def test_a_head_changes_nothing(self, tmp_path, kind):
        theirs = drawn(kind, vit().config)
        bare = image_tower(saved(theirs.vit, tmp_path / "bare"), OURS, HALVES)
        assert_same(image_tower(saved(theirs, tmp_path / "whole"), OURS, HALVES).state, bare.state)

    def test_another_kind_of_model(self, tmp_path):
        with pytest.raises(UserError, match="is a model of type 'bert'; here a Dinov2Model or ViTModel is needed"):
            image_tower(saved(bert(), tmp_path), OURS)

    def test_a_weight_that_nobody_knows(self, tmp_path):
        theirs = dinov2()
        theirs.register_tokens = nn.Parameter(torch.zeros(4, 48))
        with pytest.raises(UserError, match="register_tokens has no place in our tower"):
            image_tower(saved(theirs, tmp_path), OURS)


class TestTextTower:
    @torch.no_grad()
    def test_every_layer_is_theirs(self, tmp_path):
        theirs = bert()
        tower = text_tower(saved(theirs, tmp_path), WORDS, CLS)
        sizes = read_config(tower.sizes["med_config"], encoder_width=48, sd_dim=48)
        ours = med_encoder(sizes).eval()
        report = ours.load_state_dict(stripped(tower.state, "text_encoder."), strict=False)
        assert all("crossattention" in name or name == "embeddings.position_ids" for name in report.missing_keys)
        assert not report.unexpected_keys
        ids, mask = torch.randint(5, 200, (3, 9)), torch.ones(3, 9)
        mask[1, 5:] = 0
        layers = watched(ours.encoder.layer)
        own = ours(ids, mask)
        expected = theirs(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        read = mask.bool()
        for own_layer, their_layer in zip(layers, expected.hidden_states[1:], strict=True):
            torch.testing.assert_close(own_layer[read], their_layer[read], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(own.states[read], expected.last_hidden_state[read], rtol=1e-4, atol=1e-4)

    def test_the_two_new_words_begin_as_cls(self, tmp_path):
        theirs = bert(transformers.BertForMaskedLM)
        tower = text_tower(saved(theirs, tmp_path), WORDS, CLS)
        words = tower.state["text_encoder.embeddings.word_embeddings.weight"]
        bias = tower.state["text_decoder.cls.predictions.bias"]
        for own, their in ((words, theirs.bert.embeddings.word_embeddings.weight), (bias, theirs.cls.predictions.bias)):
            assert len(own) == WORDS and own[:200].equal(their.detach())
            assert own[200].equal(their[CLS]) and own[201].equal(their[CLS])
        assert tower.sizes["med_config"]["vocab_size"] == WORDS

    @pytest.mark.parametrize(
        "kind", [transformers.BertForQuestionAnswering, transformers.BertForNextSentencePrediction]
    )
    def test_a_head_that_predicts_no_words_changes_nothing(self, tmp_path, kind):
        theirs = bert(kind)
        bare = text_tower(saved(theirs.bert, tmp_path / "bare"), WORDS, CLS)
        assert_same(text_tower(saved(theirs, tmp_path / "whole"), WORDS, CLS).state, bare.state)

    def test_padded_embeddings_keep_their_length(self, tmp_path):
        tower = text_tower(saved(bert(vocab_size=208), tmp_path), WORDS, CLS)
        words = tower.state["text_encoder.embeddings.word_embeddings.weight"]
        assert len(words) == tower.sizes["med_config"]["vocab_size"] == 208
        assert words[200].equal(words[CLS]) and words[201].equal(words[CLS]) and not words[202].equal(words[CLS])

    @pytest.mark.parametrize("words, tokens", [(201, 203), (320, WORDS)])
    def test_a_vocabulary_is_whole_or_padded(self, tmp_path, words, tokens):
        """To less than 128 words more; whole ones are of any number, BERT's own of 30522."""
        tower = text_tower(saved(bert(vocab_size=words), tmp_path), tokens, CLS)
        assert tower.sizes["med_config"]["vocab_size"] == max(words, tokens)

    @pytest.mark.parametrize("words", [190, 203, 328])
    def test_another_vocabulary(self, tmp_path, words):
        with pytest.raises(UserError, match=f"knows {words} words and the tokenizer 200.*--tokenizer"):
            text_tower(saved(bert(vocab_size=words), tmp_path), WORDS, CLS)

    def test_norms_of_old_files_and_the_position_buffer(self, tmp_path):
        theirs = bert()
        expected = text_tower(saved(theirs, tmp_path / "safe"), WORDS, CLS)
        folder = tmp_path / "bin"
        folder.mkdir()
        theirs.config.save_pretrained(folder)
        state = {f"bert.{old_norm(name)}": value for name, value in theirs.state_dict().items()}
        state |= {"bert.embeddings.position_ids": torch.arange(40)[None], "cls.seq_relationship.bias": torch.zeros(2)}
        torch.save(state, folder / "pytorch_model.bin")
        assert_same(text_tower(folder, WORDS, CLS).state, expected.state)

    @pytest.mark.parametrize(
        "change, found",
        [
            ({"hidden_act": "gelu_new"}, "hidden_act gelu_new"),
            ({"position_embedding_type": "relative_key"}, "relative"),
        ],
    )
    def test_what_ours_cannot_be(self, tmp_path, change, found):
        folder = saved(bert(), tmp_path)
        rewrite(folder / "config.json", change)
        with pytest.raises(UserError, match=f"{found}.*is not supported"):
            text_tower(folder, WORDS, CLS)


class TestFolders:
    def test_no_config(self, tmp_path):
        with pytest.raises(UserError, match="config.json: No such file"):
            image_tower(tmp_path, OURS)

    def test_a_config_of_no_model(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(UserError, match="config.json does not say the model_type; take the config.json that"):
            image_tower(tmp_path, OURS)

    @pytest.mark.parametrize("content", [{}, [torch.ones(1)], {"weight": 3}])
    def test_a_file_without_tensors_by_name(self, tmp_path, content):
        dinov2().config.save_pretrained(tmp_path)
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match="pytorch_model.bin holds no weights: expected tensors by name"):
            image_tower(tmp_path, OURS)

    def test_no_weights(self, tmp_path):
        dinov2().config.save_pretrained(tmp_path)
        with pytest.raises(UserError, match="has a config.json and no weights: expected model.safetensors or"):
            image_tower(tmp_path, OURS)

    def test_a_pointer_in_place_of_the_weights(self, tmp_path):
        dinov2().config.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        )
        with pytest.raises(UserError, match="holds no weights, it is a pointer of Git LFS: run `git lfs pull`"):
            image_tower(tmp_path, OURS)

    def test_a_part_is_missing_or_damaged(self, tmp_path):
        folder = saved(dinov2(), tmp_path, max_shard_size="20KB")
        part = sorted(folder.glob("*.safetensors"))[1]
        part.write_bytes(part.read_bytes()[:-9])
        with pytest.raises(UserError, match=f"{part.name}: is not a checkpoint or is damaged"):
            image_tower(folder, OURS)
        part.unlink()
        with pytest.raises(UserError, match=f"{tmp_path} is without its part {part.name}; fetch the folder again"):
            image_tower(folder, OURS)

    def test_an_index_that_leads_elsewhere(self, tmp_path):
        folder = saved(dinov2(), tmp_path, max_shard_size="20KB")
        index = folder / "model.safetensors.index.json"
        places = json.loads(index.read_text())["weight_map"]
        index.write_text(json.dumps({"weight_map": places | {"absent": places["layernorm.weight"]}}))
        with pytest.raises(
            UserError, match=f"{index}: absent is not in {places['layernorm.weight']}; fetch the folder"
        ):
            image_tower(folder, OURS)
        index.write_text(json.dumps({"weight_map": {"embeddings.cls_token": "../model.safetensors"}}))
        with pytest.raises(UserError, match="'../model.safetensors' is not a file beside it"):
            image_tower(folder, OURS)

    def test_a_missing_weight(self, tmp_path):
        theirs = dinov2()
        del theirs.embeddings.patch_embeddings.projection
        with pytest.raises(UserError, match="patch_embed.proj.weight is missing"):
            image_tower(saved(theirs, tmp_path), OURS)


def loaded_image_tower(tower, size):
    """Our image tower with those weights, its positions resized as any checkpoint's."""
    model = nn.Module()
    model.visual_encoder = VisionTransformer(size, **tower.sizes["vit"])
    report = model.load_state_dict(resize_positions(tower.state, model), strict=False)
    assert not report.unexpected_keys and all("query_model" in name for name in report.missing_keys)
    return model.visual_encoder.eval()


def stripped(state, prefix):
    return {name.removeprefix(prefix): value for name, value in state.items()}


def old_norm(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def rewrite(path, change):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.equal(right[name]), name


def test_the_golden_tokenizer_is_the_one_that_the_sizes_here_are_of():
    words = (GOLDEN / "tokenizer" / "vocab.txt").read_text().split()
    assert len(words) == TEXT["vocab_size"] == WORDS - 2 and words.index("[CLS]") == CLS
