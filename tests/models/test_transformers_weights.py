"""BLIP from transformers' folders: on the same pixels and token ids what their classes compute, the way back too."""

import json
import logging

import pytest
import torch
import transformers
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering

from madtp.method.errors import UserError
from madtp.shared.weights.transformers_models import class_of, task_of
from models.blip import blip_decoder
from models.blip_nlvr import blip_nlvr
from models.blip_retrieval import blip_retrieval
from models.blip_vqa import blip_vqa
from tests.golden.fill import seeded
from tests.shared.weights.theirs import DEC, SEP, WORDS, bert, blip, dinov2, needs_5, saved
from tests.tiny import CONFIG

pytestmark = needs_5
IMAGES = seeded(1, 3, 3, 64, 64)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
QUESTION = torch.tensor([[22, 91, 92, 93, 107, SEP], [22, 99, 100, SEP, 0, 0], [22, 101, 95, 96, SEP, 0]])
MASK = (QUESTION != 0).long()
MED = {"hidden_dropout_prob": 0.3}  # sizes are the checkpoint's, whatever the configuration says


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def ours(builder, folder, evaluate=True, **config):
    """Our model of a folder; of what decides its architecture the call says nothing right."""
    sizes = {"image_size": 64, "vit": "base", "med_config": MED}
    return builder(str(folder), **sizes, evaluate=evaluate, config=CONFIG | {"sd_dim": 48} | config).eval()


class TestCaption:
    @pytest.fixture(scope="class")
    def twins(self, tmp_path_factory):
        theirs = blip(BlipForConditionalGeneration)
        return ours(blip_decoder, saved(theirs, tmp_path_factory.mktemp("caption"))), theirs

    def test_logits(self, twins):
        own, theirs = twins
        expected = theirs(pixel_values=IMAGES, input_ids=QUESTION, attention_mask=MASK)
        states, _ = own.encode(IMAGES, 0.0)
        logits, _ = own.text_decoder(QUESTION, MASK, states=states)
        torch.testing.assert_close(states.tokens, expected.last_hidden_state, **CLOSE)
        torch.testing.assert_close(logits[MASK.bool()], expected.logits[MASK.bool()], **CLOSE)

    def test_greedy_text(self, twins):
        own, theirs = twins
        own.prompt = "a picture of "
        prompt = own.tokenize([own.prompt] * 3, "[DEC]").input_ids
        expected = theirs.generate(IMAGES, prompt, num_beams=1, do_sample=False, max_length=14, min_length=5)
        captions = own.generate(IMAGES, num_beams=1, max_length=14, min_length=5)
        assert captions == [own.decode(row[own.prompt_length :]) for row in expected]
        assert len(set(captions)) > 1

    def test_sizes_and_norms_are_the_files(self, twins):
        own, theirs = twins
        assert own.visual_encoder.norm.eps == own.visual_encoder.blocks[1].norm2.eps == 1e-4
        assert own.text_decoder.bert.embeddings.LayerNorm.eps == 1e-3
        assert own.visual_encoder.blocks[0].attn.num_heads == theirs.config.vision_config.num_attention_heads
        assert own.text_decoder.bert.embeddings.dropout.p == 0.3
        assert own.architecture["vit"]["mlp_ratio"] == 2.0


class TestVQA:
    @pytest.fixture(scope="class")
    def twins(self, tmp_path_factory):
        theirs = blip(BlipForQuestionAnswering)
        return ours(blip_vqa, saved(theirs, tmp_path_factory.mktemp("vqa"))), theirs

    def test_logits(self, twins):
        own, theirs = twins
        answer = torch.tensor([[DEC, 95, 99, SEP], [DEC, 101, SEP, 0], [DEC, 91, 92, SEP]])
        expected = capture(
            theirs.text_decoder,
            lambda: theirs(QUESTION, IMAGES, answer, (answer != 0).long(), attention_mask=MASK),
        )
        states, _ = own.encode(IMAGES, 0.0)
        question = own.text_encoder(QUESTION, MASK, states=states)
        # Their cross-attention drops the mask that it is given; ours leaves out the question's padding.
        logits, _ = own.text_decoder(answer, (answer != 0).long(), states=question.states)
        read = answer != 0
        torch.testing.assert_close(logits[read], expected.logits[read], **CLOSE)

    def test_greedy_answers(self, twins):
        """Of a question without padding."""
        own, theirs = twins
        question = QUESTION[:1].expand(3, -1)
        expected = theirs.generate(question, IMAGES, num_beams=1, do_sample=False, max_length=8, min_length=1)
        states, _ = own.encode(IMAGES, 0.0)
        answers = own._generate(
            own.text_encoder(question, torch.ones_like(question), states=states), num_beams=1, max_length=8
        )
        assert answers == own.tokenizer.batch_decode(expected, skip_special_tokens=True)


class TestRetrieval:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        return saved(blip(BlipForImageTextRetrieval), tmp_path_factory.mktemp("retrieval"))

    def test_features_and_matching(self, folder):
        theirs = blip(BlipForImageTextRetrieval)
        own = ours(blip_retrieval, folder)
        states, image = own.encode_image(IMAGES)
        text = own.encode_text(QUESTION, MASK)
        expected = theirs(QUESTION, IMAGES, use_itm_head=False, attention_mask=MASK).itm_score
        torch.testing.assert_close(image @ text.T, expected, **CLOSE)
        encoder_id = own.tokenizer.convert_tokens_to_ids("[ENC]")
        question = torch.cat([torch.full((3, 1), encoder_id), QUESTION[:, 1:]], dim=1)  # as ours begins a pair
        expected = theirs(question, IMAGES, attention_mask=MASK).itm_score
        torch.testing.assert_close(own.match(QUESTION, MASK, states), expected, **CLOSE)
        assert own.architecture["embed_dim"] == 20

    def test_training_may_start_from_it(self, folder, caplog):
        with caplog.at_level(logging.INFO):
            own = ours(blip_retrieval, folder, evaluate=False)
        assert "left fresh 1 guidance, 1 contrastive temperature" in caplog.text
        assert "converted from transformers' names" in caplog.text
        pairs = zip(*own._twins(), strict=True)
        assert all(twin.equal(online) for twin, online in pairs)


def capture(module, run):
    """What a module inside returns while `run` runs, whose own result leaves it out."""
    outputs = []
    handle = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    run()
    handle.remove()
    return outputs[0]


class TestFolders:
    @pytest.mark.parametrize("form", ["sharded", "bin", "file"])
    def test_every_form_is_the_same_model(self, tmp_path, form):
        theirs = blip(BlipForConditionalGeneration)
        expected = ours(blip_decoder, saved(theirs, tmp_path / "whole")).state_dict()
        folder = saved(theirs, tmp_path / form, **({"max_shard_size": "50KB"} if form == "sharded" else {}))
        path = folder / "model.safetensors" if form == "file" else folder
        if form == "bin":
            (folder / "model.safetensors").unlink()
            torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
        state = ours(blip_decoder, path).state_dict()
        assert all(state[name].equal(value) for name, value in expected.items() if name != "space_dict")

    def test_its_own_vocabulary_where_the_configuration_names_none(self, tmp_path):
        folder = saved(blip(BlipForConditionalGeneration), tmp_path, vocabulary=True)
        assert len(ours(blip_decoder, folder, tokenizer="nowhere").tokenizer) == WORDS

    def test_a_folder_and_a_file_of_weights_in_it_say_the_class(self, tmp_path):
        def says(classes):
            (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip", "architectures": classes}))
            return class_of(tmp_path)

        assert says(["BlipForQuestionAnswering", "Other"]) == "BlipForQuestionAnswering"
        weights = (tmp_path, tmp_path / "model.safetensors", str(tmp_path / "pytorch_model.bin"))
        assert {task_of(path) for path in weights} == {"vqa"} and task_of(tmp_path / "checkpoint_best.pth") == ""
        assert says([]) == says("BlipForQuestionAnswering") == says(None) == ""
        (tmp_path / "config.json").unlink()
        assert {class_of(path) for path in weights} == {""}

    def test_names_without_a_config(self, tmp_path):
        folder = saved(blip(BlipForConditionalGeneration), tmp_path)
        (folder / "config.json").unlink()
        with pytest.raises(UserError, match="names of its weights are transformers'.*put it beside the weights"):
            ours(blip_decoder, folder / "model.safetensors")

    @pytest.mark.parametrize("number", ["NaN", "-0.5", "Infinity"])
    def test_numbers_in_its_config_that_no_model_has(self, tmp_path, number):
        """JSON as Python writes it may hold them; every answer would be none."""
        folder = saved(blip(BlipForConditionalGeneration), tmp_path)
        text = (folder / "config.json").read_text()
        assert '"layer_norm_eps": 0.0001' in text
        (folder / "config.json").write_text(text.replace('"layer_norm_eps": 0.0001', f'"layer_norm_eps": {number}'))
        with pytest.raises(UserError, match=f"{folder}/config.json: its architecture says vit .*, which no model has"):
            ours(blip_decoder, folder)

    @pytest.mark.parametrize("tower", ["vision_config", "text_config"])
    @pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "num_hidden_layers"])
    def test_sizes_in_its_config_that_are_none(self, tmp_path, tower, name):
        folder = saved(blip(BlipForConditionalGeneration), tmp_path)
        config = json.loads((folder / "config.json").read_text())
        config[tower][name] = 0
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=f"{folder}/config.json: {name} 0 is not supported"):
            ours(blip_decoder, folder)

    def test_one_part_of_several(self, tmp_path):
        folder = saved(blip(BlipForConditionalGeneration), tmp_path, max_shard_size="50KB")
        with pytest.raises(UserError, match="is one part of several: name its folder"):
            ours(blip_decoder, sorted(folder.glob("*.safetensors"))[0])
        ours(blip_decoder, folder / "model.safetensors.index.json")

    @pytest.mark.parametrize(
        "theirs, said",
        [
            (dinov2, "is a Dinov2Model, one tower: `python -m madtp towers`"),
            (bert, "is a BertModel, one tower"),
            (lambda: blip(transformers.BlipModel), "is a BlipModel, whose parts no task trained"),
            (lambda: blip(BlipForConditionalGeneration, vision={"hidden_act": "quick_gelu"}), "hidden_act quick_gelu"),
            (lambda: blip(BlipForConditionalGeneration, text={"hidden_act": "relu"}), "hidden_act relu"),
            (
                lambda: blip(BlipForConditionalGeneration, text={"tie_word_embeddings": False}),
                "tie_word_embeddings false",
            ),
        ],
    )
    def test_what_is_no_model_of_ours(self, tmp_path, theirs, said):
        with pytest.raises(UserError, match=said):
            ours(blip_decoder, saved(theirs(), tmp_path))

    def test_another_kind_of_model(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip-2"}))
        with pytest.raises(UserError, match="a model of type 'blip-2'; of transformers' these are read: BlipForCond"):
            ours(blip_decoder, tmp_path)

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
    def test_wrappers_around_its_names(self, tmp_path, prefix):
        """Of parallel, compiled and trained models whose state dicts were put beside the library's config.json."""
        theirs = blip(BlipForConditionalGeneration)
        folder = saved(theirs, tmp_path)
        (folder / "model.safetensors").unlink()
        state = {f"{prefix}{name}": value for name, value in theirs.state_dict().items()}
        torch.save(state, folder / "pytorch_model.bin")
        own = ours(blip_decoder, folder)
        expected = theirs.state_dict()["vision_model.encoder.layers.1.mlp.fc1.weight"]
        assert own.visual_encoder.blocks[1].mlp.fc1.weight.equal(expected)

    def test_weights_without_their_config(self, tmp_path):
        folder = saved(blip(BlipForConditionalGeneration), tmp_path)
        (folder / "config.json").unlink()
        with pytest.raises(UserError, match="has a model.safetensors and no config.json, which belongs to it"):
            ours(blip_decoder, folder)

    def test_an_adapter_is_no_model(self, tmp_path):
        (tmp_path / "adapter_config.json").write_text("{}")
        with pytest.raises(UserError, match="holds an adapter of PEFT and no model: merge it"):
            ours(blip_decoder, tmp_path)

    def test_weights_that_are_no_weights_any_more(self, tmp_path):
        folder = saved(blip(BlipForConditionalGeneration), tmp_path)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_8bit": True}}))
        with pytest.raises(UserError, match="holds quantized weights; take those that they were made of"):
            ours(blip_decoder, folder)


class TestNLVR2:
    def test_there_is_none_to_evaluate(self, tmp_path):
        folder = saved(blip(BlipForImageTextRetrieval), tmp_path)
        with pytest.raises(
            UserError, match="is a BlipForImageTextRetrieval: transformers has no class with NLVR2's twin"
        ):
            ours(blip_nlvr, folder)

    def test_it_may_start_training(self, tmp_path):
        folder = saved(blip(BlipForImageTextRetrieval), tmp_path)
        own = ours(blip_nlvr, folder, evaluate=False)
        first = own.text_encoder.encoder.layer[0].crossattention
        assert first.self0.query.weight.equal(first.self1.query.weight) and first.self0.query.weight.abs().max() > 0.1


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize(
    "kind, builder",
    [
        (BlipForConditionalGeneration, blip_decoder),
        (BlipForQuestionAnswering, blip_vqa),
        (BlipForImageTextRetrieval, blip_retrieval),
    ],
)
def test_names_and_shapes_at_the_real_sizes(tmp_path, kind, builder, size):
    """Built without weights: every entry of theirs has one of ours, of its shape, and none of ours is left over."""
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    vision = large if size == "large" and kind is not BlipForQuestionAnswering else {}
    config = transformers.BlipConfig(vision_config=vision, text_config={"num_attention_heads": 12})
    config.architectures = [kind.__name__]
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        theirs = kind(config)
    state = {name: value for name, value in theirs.state_dict().items() if ".predictions.decoder." not in name}
    ours_at_real_size(tmp_path, state, builder, size if vision else "base")


def ours_at_real_size(folder, state, builder, vit):
    from madtp.shared.weights.transformers_models import converted

    content = converted(state, folder)
    assert content["architecture"]["vit"] == SIZES[vit] | {"norm_eps": 1e-5}
    with torch.device("meta"):
        own = builder(vit=vit, image_size=384, config=CONFIG | {"sd_dim": 768}).state_dict(keep_vars=True)
    named = {id(value) for name, value in own.items() if name in content["model"]}
    for name, value in content["model"].items():
        assert own[name].shape == value.shape, name
    rest = {name.replace("_m.", ".") for name, value in own.items() if id(value) not in named}
    rest = {name for name in rest if name not in content["model"]}
    assert all(
        any(part in name for part in ("query_model", "space_dict", "queue", "temp", "position_ids")) for name in rest
    )


SIZES = {
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12, "patch_size": 16},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "patch_size": 16},
}
