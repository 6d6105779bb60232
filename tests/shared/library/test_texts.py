"""Texts of SigLIP: pruned by nothing, by copies, under masks; beside images; and why those of CLIP are not."""

import math

import pytest
import torch
import transformers
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

import madtp
from madtp.method.errors import UserError
from madtp.shared.library.prune import pruned_of
from madtp.shared.library.tower import seen_by_all
from tests.golden.fill import fill
from tests.shared.library.theirs import CASES, DEPTH, PATCH, WIDTH, close, make, noise

LENGTH = 17  # the last of which is read
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = transformers.SiglipTextConfig(vocab_size=99, max_position_embeddings=LENGTH, **SIZES)
IMAGE = {"layers": 1, "width": WIDTH, "head_width": 8, "patch_size": PATCH, "image_size": 32}
COPIES = {"amount": math.log(4), "shape": 1e-9, "tower": "text"}  # each of four words stands four times


def of_open_clip(pool, **more):
    text = CLIPTextCfg(LENGTH, 99, width=WIDTH, heads=4, layers=DEPTH, no_causal_mask=True, pool_type=pool, **more)
    return CustomTextCLIP(WIDTH, CLIPVisionCfg(**IMAGE), text)


MODELS = {
    "open_clip-last": lambda: of_open_clip("last", proj_bias=True),
    "open_clip-first": lambda: of_open_clip("first"),
    "SiglipTextModel": lambda: transformers.SiglipTextModel(TEXT),
    "SiglipModel": CASES["SiglipModel"].build,
}
every_model = pytest.mark.parametrize("name", list(MODELS))


def build(name):
    model = fill(MODELS[name](), gain=1.0).eval().double()
    if name == "SiglipModel":
        model.text_model = build("SiglipTextModel")
        model.text_model = getattr(model.text_model, "text_model", model.text_model)  # until version 5
    return model


@torch.no_grad()
def ask(model, words, mask=None):
    if hasattr(model, "encode_text"):
        return model.encode_text(words)
    named = {"input_ids": words, "attention_mask": mask}
    output = (model.get_text_features if hasattr(model, "get_text_features") else model)(**named)
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def words(number=6):
    return torch.randint(3, 90, (number, LENGTH), generator=torch.Generator().manual_seed(0))


def repeated(name):
    """Four words, four times each, around the one that is read."""
    order = torch.randperm(LENGTH - 1, generator=torch.Generator().manual_seed(1))
    read, others = words()[:, :1], words()[:, 1:5].repeat(1, 4)[:, order]
    return torch.cat([read, others] if name.endswith("first") else [others, read], dim=1)


@torch.no_grad()
def without_positions(model):
    """Words that are alike stay alike."""
    for name, weight in model.named_parameters():
        if "position" in name and weight.shape[0] == LENGTH:
            weight.zero_()
    return model


@every_model
def test_pruned_by_nothing_it_is_the_model(name):
    model = build(name)
    dense = ask(model, words())
    madtp.prune(model, 0, tower="text")
    torch.testing.assert_close(ask(model, words()), dense, **close(name))
    assert madtp.cost(model)["tokens"] == [LENGTH] * DEPTH


@every_model
def test_merging_equal_words_changes_nothing(name):
    model = without_positions(build(name))
    dense = ask(model, repeated(name))
    madtp.prune(model, **COPIES)
    torch.testing.assert_close(ask(model, repeated(name)), dense, **close(name))
    assert madtp.cost(model)["tokens"] == [5] * DEPTH


@every_model
def test_it_costs_what_was_asked_and_is_restored(name):
    model = build(name)
    dense = ask(model, words())
    madtp.prune(model, 0.3, [{"input_ids": words(4)}, {"input_ids": words(6)}], tower="text")
    cost = madtp.cost(model)
    assert abs(cost["percent"] - 70) <= 100 / (DEPTH * (LENGTH - 1))
    assert not torch.allclose(ask(model, words()), dense, rtol=1e-4)
    torch.testing.assert_close(ask(model, words()[:1]), ask(model, words())[:1], **close(name))
    assert torch.equal(ask(madtp.restore(model), words()), dense)


def test_the_cost_is_that_of_the_layers_and_the_last_norm():
    model = madtp.prune(build("SiglipTextModel"), 0, tower="text")
    ask(model, words())
    layer = 4 * LENGTH * WIDTH**2 + 2 * LENGTH**2 * WIDTH + 2 * LENGTH * WIDTH * 64 + 2 * 5 * LENGTH * WIDTH
    assert 1e9 * madtp.cost(model)["gflops"] == pytest.approx(DEPTH * layer + 5 * LENGTH * WIDTH)


def padded():
    """Words of every length, the places of those that a mask hides, and the mask."""
    hidden = torch.arange(LENGTH) >= torch.arange(6).unsqueeze(1) + 9
    return words(), hidden, (~hidden).long()


@pytest.mark.parametrize("name", ["SiglipTextModel", "SiglipModel"])
def test_a_mask_hides_words_from_what_is_merged(name):
    model = build(name)
    some, hidden, mask = padded()
    dense = ask(model, some, mask)
    madtp.prune(model, 0, tower="text")
    torch.testing.assert_close(ask(model, some, mask), dense, **close(name))
    madtp.prune(model, amount=1.0, shape=0.5, tower="text")
    pruned = ask(model, some, mask)
    hidden = hidden & (torch.arange(LENGTH) < LENGTH - 1)  # the last is read, hidden or not
    torch.testing.assert_close(ask(model, some.masked_fill(hidden, 1), mask), pruned, **close(name))
    assert not torch.allclose(pruned, dense, rtol=1e-4)


def test_a_mask_of_copies_changes_nothing():
    """Three of four words are hidden wherever they stand: four copies of one are left."""
    model, some = without_positions(build("SiglipTextModel")), repeated("SiglipTextModel")
    mask = (some == some[:, :1]).long()
    dense = ask(model, some, mask)
    madtp.prune(model, **COPIES)
    torch.testing.assert_close(ask(model, some, mask), dense, **close("SiglipTextModel"))


def test_masks_in_every_form_say_the_same():
    seen = torch.tensor([[True, True, False], [True, False, False]])
    whole = seen[:, None, None, :].expand(-1, 1, 3, -1)
    added = torch.zeros(2, 1, 3, 3).masked_fill(~whole, torch.finfo(torch.float32).min)
    assert seen_by_all(None) is None
    for mask in (seen, seen.long(), whole, added):
        assert torch.equal(seen_by_all(mask), seen)
    with pytest.raises(UserError, match="all tokens see the same"):
        seen_by_all(torch.ones(2, 1, 3, 3, dtype=torch.bool).tril())
    with pytest.raises(UserError, match="takes masks"):
        seen_by_all(torch.ones(2, 3, 3))


def test_both_towers_are_pruned_and_each_is_restored_alone():
    model, images = build("SiglipModel"), noise()
    image = CASES["SiglipModel"].ask
    dense = image(model, images), ask(model, words())
    madtp.prune(madtp.prune(model, 0.3, images), 0.4, words(), tower="text")
    assert madtp.cost(model) == madtp.cost(model, "image") and madtp.cost(model, "text")["percent"] < 65
    assert pruned_of(model, "text").entered == LENGTH
    madtp.restore(model, "image")
    assert torch.equal(image(model, images), dense[0]) and not torch.equal(ask(model, words()), dense[1])
    assert madtp.cost(model) == madtp.cost(model, "text")
    assert torch.equal(ask(madtp.restore(model), words()), dense[1])


@pytest.mark.parametrize("asked", [madtp.cost, madtp.restore])
def test_a_name_that_is_no_tower_s_is_said(asked):
    model = madtp.prune(build("SiglipTextModel"), 0.3, words(), tower="text")
    with pytest.raises(UserError, match="tower 'txt' is none: 'image' and 'text' are"):
        asked(model, "txt")
    assert pruned_of(model, "text")


def test_gradients_of_copies_are_those_of_all():
    model, some = without_positions(build("open_clip-last")).train(), repeated("open_clip-last")

    def gradients():
        model.zero_grad()
        model.encode_text(some).square().sum().backward()
        return {name: weight.grad for name, weight in model.text.named_parameters() if "position" not in name}

    dense = gradients()
    madtp.prune(model, **COPIES)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, dense[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "model, says",
    [
        (lambda: make("CLIPModel"), "CLIPModel's text tower cannot be pruned: every word sees another past"),
        (lambda: make("open_clip"), "CLIP's text tower cannot be pruned: every word sees another past"),
        (lambda: of_open_clip("argmax"), "has no text tower that is known here"),
        (lambda: of_open_clip("last", embed_cls=True), "has no text tower that is known here"),
        (lambda: make("ViTModel"), "has no text tower"),
        (lambda: make("BlipForQuestionAnswering"), "has no text tower that is known here"),
        (lambda: make("timm"), "has no text tower"),
    ],
)
def test_other_texts_are_refused_by_name(model, says):
    with pytest.raises(UserError, match=says):
        madtp.prune(model(), 0.5, words(), tower="text")
