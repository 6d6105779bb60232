"""Amount and shape from some inputs, against searches by hand; what is refused, and by what name; cost and picture."""

import math

import numpy as np
import pytest
import timm
import torch
import transformers
from fvcore.nn import FlopCountAnalysis
from open_clip.model import CLIP, CLIPVisionCfg
from timm.layers import set_fused_attn
from torch import nn

import madtp
from madtp.cost.schedule import SHAPES, planned
from madtp.cost.trace import Trace
from madtp.method.errors import UserError
from madtp.method.keep import Coverage
from madtp.shared.layers import Guidance
from madtp.shared.library.layer import part
from madtp.shared.library.picture import BORDER, draw
from madtp.shared.library.prune import amounts_at, inference, pruned_of
from madtp.shared.library.replacement import replaced
from models.vit import VisionTransformer
from tests.golden.fill import fill
from tests.shared.library.theirs import (
    CASES,
    DEPTH,
    PATCH,
    PATCHES,
    SHORT,
    WIDTH,
    WORDS,
    make,
    noise,
    repeated,
    without_positions,
)


@pytest.mark.parametrize("keep_norm", [False, True])
def test_it_is_our_own_tower(keep_norm):
    """timm's ViT with the weights of the project's, which its own tests hold to a calculation by hand."""
    ours = fill(VisionTransformer(32, PATCH, WIDTH, DEPTH, 4, sd_dim=WIDTH)).eval().double()
    theirs, images = make("timm"), noise()
    theirs.load_state_dict(ours.state_dict() | {k: v for k, v in theirs.state_dict().items() if "head" in k})
    with torch.no_grad():
        states, _ = ours.encode(images, Guidance(torch.ones(1, WIDTH), 1.3), Trace(), Coverage(DEPTH, 0.6, keep_norm))
        madtp.prune(theirs, amount=1.3, shape=0.6, keep_norm=keep_norm)
        features = theirs.forward_features(images)
    torch.testing.assert_close(features[:, 0], states.first, rtol=1e-6, atol=1e-6)
    for patches, merged in zip(features[:, 1:], states.tokens[:, 1:], strict=True):
        distance = torch.cdist(patches, merged)
        assert distance.min(dim=1).values.max() < 1e-6 and distance.min(dim=0).values.max() < 1e-6


@pytest.mark.parametrize("name", ["timm", "timm-map", "timm-registers"])
def test_what_the_layers_do_is_what_was_planned(name):
    model, images = make(name), noise()
    madtp.prune(model, amount=1.1, shape=0.8)
    seen = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda module, given, output: seen.append(output.shape[1]))
    with torch.no_grad():
        model(images)
    pruned = pruned_of(model)
    layers = planned(pruned.of.schedule(PATCHES + CASES[name].prefix, 0.8), 1.1)
    assert [layer.left for layer in layers] == seen == madtp.cost(model)["tokens"]
    assert [layer.entered for layer in layers] == [PATCHES + CASES[name].prefix, *seen[:-1]]


def test_the_shape_is_that_which_moves_the_answers_least():
    model, batches = make("timm"), [noise(4, seed=1), noise(4, seed=2)]
    with torch.no_grad():
        dense = [model(images).softmax(dim=-1) for images in batches]
        madtp.prune(model, 0.4, batches)
        found, moved = madtp.cost(model), {}
        for shape, amount in amounts_at(pruned_of(model), 0.6, SHAPES).items():
            madtp.prune(model, amount=amount, shape=shape)
            answers = [model(images).softmax(dim=-1) for images in batches]
            moved[shape, amount] = sum(float((a - b).square().sum()) for a, b in zip(answers, dense, strict=True))
    assert (found["shape"], found["amount"]) == min(moved, key=moved.get)
    assert len({*moved.values()}) > 3


def test_amount_and_shape_prune_another_model_alike():
    model, other, images = make("timm"), make("timm"), noise()
    madtp.prune(model, 0.4, images, keep_norm=True)
    found = madtp.cost(model)
    madtp.prune(other, **{name: found[name] for name in ("amount", "shape", "keep_norm")})
    with torch.no_grad():
        assert torch.equal(model(images), other(images))
    assert madtp.cost(other) == found


def test_pruning_anew_forgets_what_was():
    model, other, images = make("open_clip"), make("open_clip"), noise()
    madtp.prune(madtp.prune(model, 0.2, images), 0.5, images)
    madtp.prune(other, 0.5, images)
    with torch.no_grad():
        assert torch.equal(model.encode_image(images), other.encode_image(images))


def test_batches_come_in_any_form_and_a_shape_may_be_given():
    images = noise()
    forms = [
        images,
        [images],
        ((images, torch.zeros(6)) for _ in range(1)),
        {"pixel_values": images, "input_ids": WORDS},
    ]
    costs = [madtp.cost(madtp.prune(make("ViTModel"), 0.3, form)) for form in forms]
    assert costs[1:] == costs[:-1]
    assert madtp.cost(madtp.prune(make("timm"), 0.3, images, shape=1.7))["shape"] == 1.7


def test_search_leaves_modes_and_precision_alone():
    model = make("timm").float().train()
    model.blocks[1].eval()
    madtp.prune(model, 0.3, noise())
    assert model.training and model.blocks[0].training and not model.blocks[1].training
    assert all(weight.grad is None for weight in model.parameters())


def test_images_of_another_size_lose_the_same_share():
    model = fill(
        timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, dynamic_img_size=True)
    ).eval()
    madtp.prune(model, 0.4, noise().float())
    before = madtp.cost(model)
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    after = madtp.cost(model)
    assert after["tokens"][0] > 2 * before["tokens"][0] and abs(after["percent"] - before["percent"]) < 5


def test_the_dense_cost_is_what_fvcore_counts():
    set_fused_attn(False)
    try:
        model = fill(CASES["timm-registers"].build()).eval()
    finally:
        set_fused_attn(True)
    model.head = nn.Identity()
    counted = FlopCountAnalysis(model, noise(1).float()).unsupported_ops_warnings(False)
    counted = counted.uncalled_modules_warnings(False).by_operator()
    head_norms = 2 * 5 * DEPTH * (PATCHES + 5) * WIDTH  # of queries and keys, which the formula leaves out
    madtp.prune(model, 0)
    with torch.no_grad():
        model(noise(1).float())
    assert 1e9 * madtp.cost(model)["gflops"] == pytest.approx(sum(counted.values()) - head_norms, rel=1e-6)


def train(model, ask, images):
    model.zero_grad()
    ask(model, images).square().sum().backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


START = {
    "timm": lambda model: model.set_grad_checkpointing(),
    "timm-eva": lambda model: model.set_grad_checkpointing(),
    "open_clip": lambda model: model.set_grad_checkpointing(),
    "open_clip-timm": lambda model: model.visual.set_grad_checkpointing(),
    "CLIPModel": lambda model: model.gradient_checkpointing_enable({"use_reentrant": False}),
    "ViTModel": lambda model: model.gradient_checkpointing_enable({"use_reentrant": False}),
}


@pytest.mark.parametrize("name", list(START))
@pytest.mark.parametrize("first", ["prune", "recompute"])
def test_recomputing_layers_changes_no_gradient(name, first):
    model, images = make(name).train(), noise()
    madtp.prune(model, amount=1.2, shape=0.7)
    plain = train(model, CASES[name].ask, images)
    if first == "recompute":
        START[name](madtp.restore(model))
        madtp.prune(model, amount=1.2, shape=0.7)
    else:
        START[name](model)
    runs = []
    layer = pruned_of(model).of.layers[1]
    part(layer.block, layer.names.norm).register_forward_hook(lambda *given: runs.append(1))
    recomputed = train(model, CASES[name].ask, images)
    assert len(runs) == 2
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["timm", "timm-eva"])
def test_a_restored_model_recomputes_as_it_was_told_last(name):
    model = make(name)
    model.set_grad_checkpointing()
    madtp.prune(madtp.prune(model, 0), 0)
    assert not model.grad_checkpointing and madtp.restore(model).grad_checkpointing
    madtp.prune(model, 0).set_grad_checkpointing(False)
    assert not madtp.restore(model).grad_checkpointing


def test_parts_that_are_exchanged_afterwards_are_heard():
    """As those who tune a few weights do."""
    model, images = make("timm"), noise()
    madtp.prune(model, amount=1.2, shape=0.7)
    with torch.no_grad():
        before = model(images)
        model.blocks[1].attn.qkv = nn.Sequential(model.blocks[1].attn.qkv, nn.Linear(96, 96).double())
        assert not torch.allclose(model(images), before)


def test_captions_and_answers_are_generated_from_merged_tokens():
    images = repeated(3)
    for name, words in (("BlipForConditionalGeneration", {}), ("BlipForQuestionAnswering", {"input_ids": WORDS[:3]})):
        model = without_positions(make(name))
        for beams in (1, 3):
            madtp.restore(model)
            asked = {"pixel_values": images, "num_beams": beams, "max_length": 9, **words}
            dense = model.generate(**asked)
            madtp.prune(model, amount=math.log(4), shape=1e-9)
            assert torch.equal(model.generate(**asked), dense)


REFUSED = {
    "windows": lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1), embed_dim=12, num_heads=(2, 2)),
    "relative positions": lambda: timm.create_model("vit_relpos_small_patch16_224", depth=1),
    "rotary positions": lambda: timm.create_model("eva02_tiny_patch14_224", depth=1),
    "convolutional stages": lambda: timm.create_model("resnet18"),
    "not known": lambda: transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, vocab_size=9)),
    "CLIP": lambda: CLIP(16, CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, head_width=8, image_size=32), SHORT),
    "Linear": lambda: nn.Linear(2, 2),
    "madtp.prune.model._orig_mod": lambda: torch.compile(make("timm"), backend="eager"),
    "madtp.prune.model.module": lambda: nn.DataParallel(make("ViTModel")),
    "Swin": lambda: transformers.SwinModel(transformers.SwinConfig(depths=[1], num_heads=[2], embed_dim=8)),
}


@pytest.mark.parametrize("why", list(REFUSED))
def test_what_cannot_be_pruned_is_refused_by_name(why):
    model = REFUSED[why]()
    with pytest.raises(UserError, match=why) as error:
        madtp.prune(model, 0.5, noise())
    assert "cannot be pruned" in str(error.value) and "\n" not in str(error.value)
    assert not list(replaced(model))


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({}, "give p"),
        ({"p": 0.5, "amount": 1.0}, "give p"),
        ({"p": 1.0, "batches": noise()}, "p is 1.0, expected a share of the GFLOPs to remove"),
        ({"p": "half", "batches": noise()}, "p is 'half', expected a share"),
        ({"p": 0.5, "batches": noise(), "shape": -1}, "shape is -1, expected a number above 0"),
        ({"p": 0.5, "batches": noise(), "keep_norm": 1}, "keep_norm is 1, expected True or False"),
        ({"amount": math.nan, "shape": 1.0}, "amount is nan, expected a number from 0"),
        ({"p": 0.5, "batches": 4}, "batches are 4, expected images"),
        ({"p": 0.5, "batches": noise()[:0]}, "no image in batches"),
        ({"p": 0.5, "batches": noise() * math.nan}, "numbers that are infinite or none"),
        ({"p": 0.5}, "needs batches"),
        ({"p": 0.5, "batches": []}, "no image in batches"),
        ({"p": 0.5, "batches": [WORDS]}, "batches are of images"),
        ({"p": 0.5, "batches": noise()[0]}, r"batches are of images .*, not a tensor \[3, 32, 32\] of float64"),
        ({"p": 0.5, "batches": noise().byte()}, r"batches are of images .*, not a tensor \[6, 3, 32, 32\] of uint8"),
        ({"p": 0.999, "batches": noise()}, "p 0.999 is out of reach: pruned as far as it goes"),
        ({"amount": 1.0}, "needs the shape"),
        ({"p": 0.5, "tower": "sound"}, "tower 'sound' is none"),
        ({"p": 0.5, "tower": ["text"]}, r"tower \['text'\] is none"),
        ({"p": 0.5, "tower": None}, "tower None is none"),
    ],
)
def test_mistakes_are_said_and_leave_the_model_dense(arguments, says):
    model = make("timm")
    with pytest.raises(UserError, match=says):
        madtp.prune(model, **arguments)
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_is_no_model_is_said():
    with pytest.raises(UserError, match="model is None, expected one of timm"):
        madtp.prune(None, 0.5, noise())


def test_what_a_pruned_tower_cannot_do_is_said():
    model = madtp.prune(make("Dinov2Model"), 0.3, noise())
    with pytest.raises(UserError, match="output_hidden_states"):
        model(noise(), output_hidden_states=True)
    model = madtp.prune(make("ViTModel"), 0.3, noise())
    with pytest.raises(UserError, match="output_attentions"):
        model(noise(), output_attentions=True)
    model = make("timm")
    model.blocks.forward = lambda x: x
    with pytest.raises(UserError, match="replaced by somebody else"):
        madtp.prune(model, 0.3, noise())
    with pytest.raises(UserError, match="let the model see one"):
        madtp.cost(madtp.prune(make("timm"), 0))


TOKENS = torch.ones(5, 5, WIDTH).double()


@pytest.mark.parametrize(
    "name, asked, says",
    [
        ("timm", lambda model: model.forward_intermediates(noise()), "no intermediate states"),
        ("timm-eva", lambda model: model.forward_intermediates(noise()), "no intermediate states"),
        ("timm", lambda model: model.get_intermediate_layers(noise()), "no intermediate states"),
        ("timm", lambda model: model.blocks[1](TOKENS), "no answer layer by layer"),
        ("open_clip", lambda model: model.visual.forward_intermediates(noise()), "no answer layer by layer"),
        (
            "open_clip",
            lambda model: model.visual.transformer(TOKENS, attn_mask=0 * TOKENS[:, :, 0]),
            "takes no attn_mask",
        ),
    ],
)
def test_what_would_go_past_the_pruned_tower_is_refused(name, asked, says):
    model = make(name)
    try:
        asked(model)
    except AttributeError as error:
        pytest.skip(f"not in this version: {error}")
    madtp.prune(model, 0.3, noise())
    with pytest.raises(UserError, match=says):
        asked(model)
    asked(madtp.restore(model))


@pytest.mark.parametrize(
    "name", ["CLIPModel", "SiglipModel", "ViTModel", "Dinov2Model", "BlipForConditionalGeneration"]
)
@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions"])
def test_what_a_configuration_asks_for_is_not_left_out(name, option):
    model = madtp.prune(make(name), 0.3, noise())
    config = getattr(model.config, "vision_config", model.config)
    config._attn_implementation = "eager"  # of which attentions could be had
    setattr(config, option, True)
    with pytest.raises(UserError, match=option):
        CASES[name].ask(model, noise())
    with pytest.raises(UserError, match=option):
        madtp.prune(madtp.restore(model), 0.3, noise())


@pytest.mark.parametrize("name", ["timm", "ViTModel"])
def test_hooks_on_layers_are_refused_those_on_parts_are_heard(name):
    model, heard = madtp.prune(make(name), 0.3, noise()), []
    layer = pruned_of(model).of.layers[1]
    part(layer.block, layer.names.norm).register_forward_hook(lambda *given: heard.append(1))
    CASES[name].ask(model, noise())
    assert heard
    layer.block.register_forward_hook(lambda *given: None)
    with pytest.raises(UserError, match="hook these"):
        CASES[name].ask(model, noise())


def test_packed_weights_cost_what_they_did():
    model = make("timm").float()
    madtp.prune(model, amount=1.2, shape=0.7)
    with torch.no_grad():
        model(noise().float())
        whole = madtp.cost(model)
        packed = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        packed(noise().float())
    assert madtp.cost(packed) == whole


def test_inference_is_left_as_it_was_found_when_something_fails():
    model = make("timm").train()
    with pytest.raises(RuntimeError), inference(model):
        raise RuntimeError
    assert model.training


def test_the_picture_shows_groups_in_their_mean_colour():
    place = torch.tensor([[[0, 1], [0, 2]]])
    image = torch.tensor([[0.0, 0.25], [1.0, 0.75]]).repeat_interleave(3, 0).repeat_interleave(3, 1).expand(1, 3, 6, 6)
    drawn = draw(image, place, (3, 3))
    assert drawn.shape == (1, 6, 6, 3) and drawn.dtype == np.uint8
    assert (drawn[0, :, :3] == 128).all()  # one token of 0 and 1, and no border within
    assert (drawn[0, 0:3, 4:] == 64).all() and (drawn[0, 4:, 4:] == 191).all()
    assert (drawn[0, :3, 3] == round(255 * 0.25 * BORDER)).all()


@pytest.mark.parametrize(
    "name", ["timm-registers", "timm-map", "open_clip", "ViTModel", "BlipForConditionalGeneration"]
)
def test_a_picture_of_copies_shows_the_copies(name):
    model, images = without_positions(make(name)), repeated(2)
    madtp.prune(model, amount=math.log(4), shape=1e-9)
    drawn = madtp.picture(model, images)
    centres = drawn[:, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].reshape(2, PATCHES, 3)
    for colours in centres:
        _, counts = np.unique(colours, axis=0, return_counts=True)
        assert counts.tolist() == [4] * 4


def test_pruned_by_nothing_its_cost_is_known_at_once():
    """As whoever goes through several p expects."""
    model = make("timm")
    assert madtp.cost(madtp.prune(model, 0, noise()))["percent"] == 100
    assert madtp.cost(madtp.prune(model, 0.5, noise()))["percent"] < 60
