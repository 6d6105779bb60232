"""What nobody planned for: layers exchanged in a pruned model, Ctrl-C in a search, no image, models that read words."""

import copy

import pytest
import timm
import torch
import transformers

import madtp
from madtp.method.errors import UserError
from madtp.shared.library.prune import pruned_of
from tests.shared.library.theirs import CASES, PATCH, PATCHES, TOWER, WORDS, make, noise


def exchanged(layers):
    layers[1] = copy.deepcopy(layers[1])


def without_the_first(layers):
    del layers[0]


@pytest.mark.parametrize("name", ["timm", "timm-eva", "open_clip", "ViTModel"])
@pytest.mark.parametrize("change", [exchanged, without_the_first])
def test_layers_that_are_exchanged_afterwards_are_not_passed_over(name, change):
    model = madtp.prune(make(name), 0.3, noise())
    change(pruned_of(model).of.blocks)
    with pytest.raises(UserError, match="madtp.prune it anew"):
        CASES[name].ask(model, noise())
    assert abs(madtp.cost(madtp.prune(model, 0.3, noise()))["percent"] - 70) < 100 / PATCHES


def test_a_search_that_is_broken_off_leaves_the_model_dense():
    """Be it by Ctrl-C."""
    model, dense, asked = make("timm"), make("timm"), []

    def interrupt(*given):
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt

    hook = model.blocks[1].mlp.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        madtp.prune(model, 0.3, noise())
    hook.remove()
    with torch.no_grad():
        assert torch.equal(model(noise()), dense(noise()))


def test_a_shape_that_is_given_takes_one_batch():
    """Whatever a loader would go on to read."""
    batches = iter([noise(), noise(), noise()])
    assert abs(madtp.cost(madtp.prune(make("timm"), 0.3, batches, shape=1.0))["percent"] - 70) < 100 / PATCHES
    assert len(list(batches)) == 2


@pytest.mark.parametrize("name", ["timm", "timm-average-no-class"])
def test_no_image_gets_no_answer(name):
    model = make(name)
    dense = CASES[name].ask(model, noise()[:0])
    madtp.prune(model, 0.3, noise())
    assert CASES[name].ask(model, noise()[:0]).shape == dense.shape


def test_what_cannot_be_drawn_is_said():
    model = madtp.prune(make("timm"), 0.3, noise())
    for images, count in ((noise()[:0], 0), ([noise(), noise()], 2)):
        with pytest.raises(UserError, match=f"{count} batches"):
            madtp.picture(model, images)


def test_what_reads_words_too_is_pruned_by_its_tower():
    vision, words = (
        transformers.ViTConfig(**TOWER),
        transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=99),
    )
    both = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, words)
    model = transformers.VisionEncoderDecoderModel(both).double()
    with pytest.raises(UserError, match=r"madtp.prune\(model.encoder, ...\)"):
        madtp.prune(model, 0.3, noise())
    madtp.prune(model.encoder, 0.3, noise())
    assert model(noise(), WORDS).logits.shape[:2] == WORDS.shape and abs(madtp.cost(model)["percent"] - 70) < 3


def test_a_head_that_paints_is_left_aside():
    model = transformers.ViTForMaskedImageModeling(transformers.ViTConfig(**TOWER, encoder_stride=PATCH)).double()
    madtp.prune(model, 0.3, noise())
    assert model(noise()).reconstruction.shape == noise().shape


def test_an_endless_loader_is_read_in_part():
    read = []

    def endless():
        while True:
            read.append(1)
            yield noise().repeat(50, 1, 1, 1)

    model = madtp.prune(make("timm"), 0.3, endless())
    assert abs(madtp.cost(model)["percent"] - 70) < 5
    assert sum(read) == 2  # of 300 images


def with_one_logit(name):
    if name == "timm":
        model = make("timm")
        model.reset_classifier(1)
        return model.double()
    return transformers.ViTForImageClassification(transformers.ViTConfig(**TOWER, num_labels=1)).double().eval()


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_a_single_number_can_be_moved(name, monkeypatch):
    found = []
    monkeypatch.setattr("madtp.shared.library.prune.least_moved", lambda moved, share: found.append(moved) or 1.0)
    madtp.prune(with_one_logit(name), 0.3, noise())
    (moved,) = found
    assert all(value > 0 for value in moved.values())


def test_a_tower_that_gives_its_tokens_too_is_pruned():
    model = make("open_clip")
    model.visual.output_tokens = True
    madtp.prune(model, 0.3, noise())
    assert abs(madtp.cost(model)["percent"] - 70) < 100 / PATCHES
    assert isinstance(model.visual(noise()), tuple)


@pytest.mark.skipif(not timm.list_models("naflexvit*"), reason="not in this version")
def test_rotary_positions_that_are_not_there_are_no_reason():
    model = timm.create_model("naflexvit_base_patch16_gap", depth=1, embed_dim=32, num_heads=2)
    with pytest.raises(UserError, match="NaFlexVit cannot be pruned: its layers are of a kind that is not known"):
        madtp.prune(model, 0.3, noise())
