"""What has to hold for every BLIP model, whatever its weights.

Shapes: B batch, L text tokens, S tokens of the other sequence, G rows of text per row of the other sequence.
"""

import pytest
import torch
from timm.layers import DropPath
from torch.utils.checkpoint import checkpoint

from madtp.cost.trace import Trace
from madtp.method.distillation import Teacher
from madtp.method.keep import Coverage
from madtp.method.layout import Sequences
from madtp.run.preparation import freeze_alignment
from models.blip import blip_decoder
from models.blip_nlvr import blip_nlvr
from models.blip_retrieval import blip_retrieval
from models.blip_vqa import blip_vqa
from models.med import CrossAttention
from models.nlvr_encoder import FIRST_MERGED_LAYER, TwinCrossAttention
from tests.golden.fill import seeded
from tests.tiny import BERT, CONFIG, SIZES, STATEMENTS, build, images
from utils import UserError

CAPTIONS = ["a picture of two cat", "a picture of the red circle on the left", "a picture of a man driving a car"]
ANSWERS = ["yes", "two cat", "the red car", "no", "left"]
PRUNED = 8.0


class Miniature:
    """One model with inputs of three samples, and its three ways to be called."""

    def __init__(self, name):
        self.name = name
        builders = {"nlvr": blip_nlvr, "caption": blip_decoder, "vqa": blip_vqa, "retrieval": self.retrieval}
        sizes = {"med_config": BERT | {"num_hidden_layers": FIRST_MERGED_LAYER + 2}} if name == "nlvr" else {}
        self.model = build(builders[name], sizes)
        self.image = images(6) if name == "nlvr" else images(3)

    @staticmethod
    def retrieval(**sizes):
        return blip_retrieval(embed_dim=24, queue_size=6, **sizes)

    def losses(self, temperature):
        """The losses of a training step."""
        model, image = self.model, self.image
        if self.name == "nlvr":
            return model(image, STATEMENTS, torch.tensor([1, 0, 1]), temperature)
        if self.name == "caption":
            return model(image, CAPTIONS, temperature)
        if self.name == "vqa":
            weights = torch.tensor([1.0, 0.3, 0.7, 1.0], dtype=torch.float64)
            return model(image, STATEMENTS, ANSWERS[:4], temperature, n=[1, 2, 1], weights=weights)
        torch.manual_seed(0)  # hard negatives are drawn
        return model(image, STATEMENTS, 0.4, torch.arange(3), temperature)

    def outputs(self, temperature, rows=(0, 1, 2), trace=None):
        """What is predicted for some of the samples, as one tensor with a row for each."""
        rows = list(rows)
        model, texts = self.model, [STATEMENTS[row] for row in rows]
        image = self.image[[*rows, *(3 + row for row in rows)]] if self.name == "nlvr" else self.image[rows]
        if self.name == "nlvr":
            return model(image, texts, temperature=temperature, train=False, trace=trace)
        states, _ = model.visual_encoder(image, model.space_dict, temperature, align=False, trace=trace)
        if self.name == "caption":
            return model.text_decoder(*self.encoded(ANSWERS[:1] * len(rows), "[DEC]"), states=states)[0].flatten(1)
        if self.name == "vqa":
            pruning = {"space_dict": model.space_dict, "temperature": temperature, "trace": trace}
            question = model.text_encoder(*self.encoded(texts, "[ENC]"), states=states, **pruning)
            context = {"states": question.states, "states_mask": question.mask}
            return model.text_decoder(*self.encoded(ANSWERS[:1] * len(rows), "[DEC]"), **context)[0].flatten(1)
        captions = model.encode_captions(texts)
        return model.match(*captions, states, temperature=temperature, trace=trace)

    def encoded(self, texts, first_token):
        text = self.model.tokenize(texts, first_token)
        return text.input_ids, text.attention_mask


@pytest.fixture(scope="module", params=["nlvr", "caption", "vqa", "retrieval"])
def miniature(request):
    return Miniature(request.param)


@pytest.fixture
def restored(miniature):
    """The miniature, whose queue, momentum towers and gradients a test may change."""
    state = {name: values.clone() for name, values in miniature.model.state_dict().items()}
    learned = [parameter for parameter in miniature.model.parameters() if parameter.requires_grad]
    yield miniature
    miniature.model.load_state_dict(state)
    miniature.model.zero_grad()
    torch.nn.ParameterList(learned).requires_grad_()


def test_temperature_zero_is_the_dense_model_whatever_the_learnable_tokens(restored):
    expected, expected_losses = restored.outputs(0.0), restored.losses(0.0)
    assert "loss_sim" not in expected_losses
    state = restored.model.state_dict()
    with torch.no_grad():
        for name, values in state.items():
            if "space_dict" in name or "query_model" in name:
                values.copy_(100 * seeded(9, *values.shape))
    assert restored.outputs(0.0).equal(expected)
    if restored.name != "retrieval":  # its queue has moved on
        losses = restored.losses(0.0)
        assert all(losses[name].equal(expected_losses[name]) for name in expected_losses)


def trained(miniature, temperature):
    """Names of the weights to train: those that get a gradient, and those that do not."""
    sum(miniature.losses(temperature).values()).backward()
    weights = [
        (name, value.grad is not None) for name, value in miniature.model.named_parameters() if value.requires_grad
    ]
    return [name for name, reached in weights if reached], [name for name, reached in weights if not reached]


def test_a_dense_tower_teaches_every_model(restored, monkeypatch):
    monkeypatch.setattr(restored.model, "teacher", Teacher(restored.model.image_tower), raising=False)
    assert restored.losses(0.0)["loss_distil"].abs() < 1e-6, "it is the teacher"
    monkeypatch.setattr(restored.model, "keep", Coverage(restored.model.visual_encoder.shape.depth, 1.0))
    loss = restored.losses(1.5)["loss_distil"]
    loss.backward()
    assert loss > 0 and restored.model.visual_encoder.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_temperature_zero_leaves_the_guidance_alone(restored):
    """A dense run freezes what no gradient reaches, and nothing else."""
    reached, left = trained(restored, 0.0)
    assert left and all("space_dict" in name or "query_model" in name for name in left)
    freeze_alignment(restored.model)
    assert reached == [name for name, parameter in restored.model.named_parameters() if parameter.requires_grad]


def test_training_reaches_every_weight(restored):
    """Data-parallel training waits for the gradient of each one."""
    reached, left = trained(restored, PRUNED)
    assert reached and not left


def test_every_loss_teaches_the_learnable_tokens(restored):
    """The task through the weights of the merged tokens, the similarity directly."""
    losses = {name: loss for name, loss in restored.losses(PRUNED).items() if loss.requires_grad}
    assert "loss_sim" in losses and len(losses) >= 2
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, restored.model.space_dict, retain_graph=True)
        assert gradient.isfinite().all() and gradient.any(), name


@pytest.mark.parametrize("name", ["nlvr", "vqa"])
def test_the_gradient_as_large_as_the_vocabulary_comes_when_the_images_are_done(name):
    miniature, order = Miniature(name), []
    model, words = miniature.model.train(), "text_encoder.embeddings.word_embeddings.weight"
    model.visual_encoder.blocks[0].drop_path = DropPath(0.5)  # images draw random numbers before texts do
    model.text_encoder.embeddings.dropout.p = 0.5
    for part, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, part=part: order.append(part))

    def gradients():
        model.zero_grad()
        order.clear()
        torch.manual_seed(0)
        miniature.losses(PRUNED)["loss_task"].backward()
        return {part: parameter.grad for part, parameter in model.named_parameters() if parameter.grad is not None}

    found = gradients()
    assert order.index(words) > max(order.index(part) for part in found if part.startswith("visual_encoder."))
    model.look_up = lambda text: None  # the text encoder does it when its turn comes
    torch.testing.assert_close(gradients(), found)
    assert order.index(words) < order.index("visual_encoder.cls_token")


@pytest.mark.parametrize("temperature", [0.0, PRUNED])
@torch.no_grad()
def test_permuting_the_batch_permutes_the_outputs(miniature, temperature):
    outputs = miniature.outputs(temperature)
    torch.testing.assert_close(miniature.outputs(temperature, rows=(2, 0, 1)), outputs[[2, 0, 1]])
    assert not torch.allclose(outputs[0], outputs[1])


@torch.no_grad()
def test_one_sample_alone(miniature):
    """Dense, a sample is the same in any batch; pruned, the batch decides how many tokens are kept."""
    together = miniature.outputs(0.0)
    for row in range(3):
        torch.testing.assert_close(miniature.outputs(0.0, rows=[row])[0], together[row])
        assert miniature.outputs(PRUNED, rows=[row]).isfinite().all()
    copies = miniature.outputs(PRUNED, rows=(1, 1, 1))
    torch.testing.assert_close(miniature.outputs(PRUNED, rows=[1]).expand_as(copies), copies)


def test_with_and_without_gradients_alike(miniature):
    """The attention map whole, or in blocks of queries."""
    expected = miniature.outputs(PRUNED)
    with torch.no_grad():
        torch.testing.assert_close(miniature.outputs(PRUNED), expected)


@torch.no_grad()
def test_temperature_shortens_every_tower(miniature):
    dense, trace = Trace(), Trace()
    outputs = miniature.outputs(0.0, trace=dense)
    assert dense.layers == dense.dense().layers
    assert not torch.allclose(miniature.outputs(PRUNED, trace=trace), outputs)
    assert trace.dense().layers == dense.layers
    for tower, layers in trace.layers.items():
        assert any(layer.kept is not None for layer in layers), tower


def snapshot(model):
    """Everything that a module holds, name by name."""
    return {
        f"{name}.{attribute}": dict(value) if isinstance(value, dict) else value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
    }


@torch.no_grad()
def test_nothing_is_parked_on_modules(miniature):
    state = {name: values.clone() for name, values in miniature.model.state_dict().items()}
    before = snapshot(miniature.model)
    miniature.outputs(PRUNED)
    after = snapshot(miniature.model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value, dict):
            assert value.keys() == after[name].keys(), name
            assert all(value[key] is after[name][key] for key in value), name
        else:
            assert after[name] is value, name
    for name, values in miniature.model.state_dict().items():
        assert values.equal(state[name]), name


@torch.no_grad()
def test_inputs_stay_as_they_were(miniature):
    before = miniature.image.clone()
    miniature.outputs(PRUNED)
    assert miniature.image.equal(before)


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_the_text_mask_is_pruned_with_its_tokens(batch):
    model, trace = build(blip_vqa), Trace()
    text = model.tokenize(STATEMENTS[-batch:], "[ENC]")
    mask = text.attention_mask.bool()
    assert batch == 1 or not mask.all()
    output = model.text_encoder(
        text.input_ids,
        mask,
        states=seeded(3, batch, 7, 32).double(),
        space_dict=model.space_dict,
        temperature=PRUNED,
        trace=trace,
    )
    for layer in trace.layers["text"]:
        mask = mask if layer.kept is None else layer.kept.gather(mask)
    assert output.mask.equal(mask)
    assert output.mask.shape == output.states.shape[:2] and mask.shape[1] < text.input_ids.shape[1]


@torch.no_grad()
def test_padding_changes_nothing_in_a_dense_text():
    model = build(blip_vqa)
    text, states = model.tokenize(STATEMENTS, "[ENC]"), seeded(3, 3, 7, 32).double()
    together = model.text_encoder(text.input_ids, text.attention_mask, states=states)
    for row in range(3):
        length = int(text.attention_mask[row].sum())
        ids = text.input_ids[row : row + 1, :length]
        alone = model.text_encoder(ids, torch.ones_like(ids), states=states[row : row + 1])
        torch.testing.assert_close(together.states[row : row + 1, :length], alone.states)


def test_the_word_for_padding_stays_as_it_is():
    model = build(blip_vqa)
    text, words = model.tokenize(STATEMENTS, "[ENC]"), model.text_encoder.embeddings.word_embeddings
    states = model.text_encoder(text.input_ids, text.attention_mask).states
    (states * seeded(1, *states.shape)).sum().backward()
    (padding,) = text.input_ids[text.attention_mask == 0].unique().tolist()
    learned = words.weight.grad.abs().sum(dim=1).nonzero().squeeze(1).tolist()
    assert learned == [word for word in text.input_ids.unique().tolist() if word != padding]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("twin", [False, True])
@torch.no_grad()
def test_groups_of_rows_share_their_states(groups, twin):
    model = build(blip_nlvr if twin else blip_vqa)
    layer = model.text_encoder.encoder.layer[0].crossattention
    assert isinstance(layer, TwinCrossAttention if twin else CrossAttention)
    states = seeded(1, 3, 7, 32).double(), seeded(2, 3, 7, 32).double()
    mask = torch.arange(7) < torch.tensor([[7], [2], [4]])
    hidden = Sequences.of(seeded(3, 3 * groups, 5, 48).double())

    def repeated(values):
        return values.repeat_interleave(groups, dim=0)

    keys_values = layer.keys_values(states if twin else states[0])
    expected = layer.keys_values(tuple(map(repeated, states)) if twin else repeated(states[0]))
    torch.testing.assert_close(layer(hidden, keys_values, mask), layer(hidden, expected, repeated(mask)))


@torch.no_grad()
def test_the_twin_cross_attentions_read_one_image_each():
    model = Miniature("nlvr")
    expected = model.outputs(0.0)
    swapped = model.model(model.image.roll(3, dims=0), STATEMENTS, train=False)
    assert not torch.allclose(swapped, expected)
    model.image[3:] = images(3, seed=2)
    assert not torch.allclose(model.outputs(0.0), expected)


@pytest.mark.parametrize("temperature", [0.0, PRUNED])
def test_captions_are_generated_without_the_prompt(temperature):
    model, image = build(blip_decoder), images(3)
    searched = model.generate(image, num_beams=2, max_length=12, min_length=6, temperature=temperature)
    assert len(set(searched)) > 1 and all(
        isinstance(text, str) and not text.startswith("a picture") for text in searched
    )
    assert model.generate(image, num_beams=2, max_length=12, min_length=6, temperature=temperature) == searched
    torch.manual_seed(0)
    sampled = [model.generate(image, sample=True, max_length=12, top_p=0.9, temperature=temperature) for _ in range(2)]
    assert sampled[0] != sampled[1]


@torch.no_grad()
def test_questions_are_answered_both_ways():
    model = build(blip_vqa)
    answers = model.encode_answers(ANSWERS)
    ranked = model(images(3), STATEMENTS, answers, PRUNED, train=False, inference="rank", k_test=3)
    assert ranked.shape == (3,) and set(ranked.tolist()) <= set(range(len(ANSWERS)))
    generated = model(images(3), STATEMENTS, None, PRUNED, train=False, inference="generate")
    assert len(generated) == 3 and all(isinstance(text, str) for text in generated)


@torch.no_grad()
def test_long_texts_are_cut_where_blip_cuts_them():
    long = "a dog " * 60
    assert build(blip_vqa).tokenize_questions([long]).input_ids.shape == (1, 35)
    assert build(Miniature.retrieval).encode_captions(["a dog", long])[0].shape == (2, 35)
    assert build(blip_decoder).next_words(images(1), [long]).shape[:2] == (1, 40)


def test_answers_count_by_their_weights():
    model, image = build(blip_vqa), images(3)

    def loss(weights):
        weights = torch.tensor(weights, dtype=torch.float64)
        return model(image, STATEMENTS, ANSWERS[:4], n=[1, 2, 1], weights=weights)["loss_task"].item()

    parts = [loss([float(index == answer) for index in range(4)]) for answer in range(4)]
    assert len({round(part, 9) for part in parts}) == 4
    assert loss([0.5, 2.0, 0.0, 1.0]) == pytest.approx(0.5 * parts[0] + 2 * parts[1] + parts[3])


@pytest.mark.parametrize("temperature", [0.0, PRUNED])
def test_checkpointing_of_both_towers_changes_no_gradient(monkeypatch, temperature):
    recomputed, gradients = [], []

    def counted(layer, *inputs, **kwargs):
        recomputed.append(type(layer).__module__)
        return checkpoint(layer, *inputs, **kwargs)

    monkeypatch.setattr("madtp.shared.layers.checkpoint", counted)
    for config in ({}, {"vit_grad_ckpt": True, "vit_ckpt_layer": 2}):
        assert not recomputed
        model = build(blip_vqa, **config).train()
        weights = torch.ones(4, dtype=torch.float64)
        torch.manual_seed(0)
        losses = model(images(3), STATEMENTS, ANSWERS[:4], temperature, n=[1, 2, 1], weights=weights)
        sum(losses.values()).backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert recomputed == ["models.vit"] * 2 + ["models.bert"] * 4  # the question's encoder and the answer's decoder
    torch.testing.assert_close(*gradients)


def test_a_text_tower_starts_from_the_one_that_the_file_has(tmp_path, caplog):
    """VQA from retrieval's checkpoint, whose encoder is of the decoder's width where image and text are as wide."""
    sizes = {"vit": {"embed_dim": 48, "depth": 3, "num_heads": 2, "patch_size": 16}}
    retrieval, captioner = build(Miniature.retrieval, sizes), build(blip_decoder, sizes)
    torch.save(retrieval.state_dict(), tmp_path / "retrieval.pth")
    torch.save(captioner.state_dict(), tmp_path / "captioner.pth")
    config = {"config": CONFIG, **SIZES, **sizes}
    with caplog.at_level("INFO"):
        vqa = blip_vqa(str(tmp_path / "retrieval.pth"), **config).double()
    assert "text_decoder starts from the checkpoint's text_encoder" in caplog.text
    assert "left fresh 5 prediction head" in caplog.text
    encoder = retrieval.text_encoder.state_dict()
    for tower in (vqa.text_encoder, vqa.text_decoder.bert):
        assert all(value.float().equal(encoder[name].float()) for name, value in tower.state_dict().items())
    blip_vqa(str(tmp_path / "captioner.pth"), **config)
    for file, task in (("retrieval.pth", "BLIP's retrieval"), ("captioner.pth", "captioning")):
        with pytest.raises(UserError, match=f"does not fit this model: it is of {task} and the model of VQA, check"):
            blip_vqa(str(tmp_path / file), **config, evaluate=True)
