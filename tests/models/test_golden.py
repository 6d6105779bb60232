"""Values of the reference implementation, at two sizes (tests/golden/README.md says how they were made)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from madtp.cost.trace import Trace
from models.blip import blip_decoder
from models.blip_nlvr import blip_nlvr
from models.blip_vqa import blip_vqa
from models.vit import VisionTransformer
from tests.golden.fill import fill, seeded

GOLDEN = Path(__file__).parents[1] / "golden"
TEMPERATURES = (0.0, 1.0, 4.0, 16.0)
VIT = {"embed_dim": 192, "depth": 6, "num_heads": 3, "patch_size": 16}
BERT = {
    "hidden_size": 192,
    "num_hidden_layers": 8,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "max_position_embeddings": 64,
    "vocab_size": 202,
    "layer_norm_eps": 1e-12,
}
CONFIG = {"sd_num": 16, "sd_dim": 192, "tokenizer": str(GOLDEN / "tokenizer"), "drop_path": 0.0}


@pytest.fixture(scope="module", params=["a", "b"])
def golden(request):
    return dict(np.load(GOLDEN / f"{request.param}.npz"))


def close(ours, theirs, tolerance: float = 5e-6):
    theirs = torch.as_tensor(theirs, dtype=torch.float64)
    assert ours.shape == theirs.shape
    assert (ours.detach() - theirs).abs().max() <= tolerance * theirs.abs().max()


def image_of(golden, task: str, name: str = "image"):
    return seeded(golden[f"{task}/{name}_seed"], *golden[f"{task}/{name}_shape"].tolist()).double()


def texts(golden, key: str) -> list[str]:
    return [str(text) for text in golden[key]]


def build(builder, golden, task: str):
    size = int(golden[f"{task}/image{'s' if task == 'nlvr' else ''}_shape"][-1])
    return fill(builder(image_size=size, vit=VIT, med_config=BERT, config=CONFIG)).eval().double()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_vision_transformer(golden, temperature):
    model = VisionTransformer(int(golden["vit/image_shape"][-1]), sd_dim=192, **VIT)
    model = fill(model).eval().double()
    space_dict = image_of(golden, "vit", "space_dict")
    trace = Trace()
    tokens, aligned = model(image_of(golden, "vit"), space_dict=space_dict, temperature=temperature, trace=trace)
    prefix = f"vit/T{temperature}"
    close(tokens, golden[f"{prefix}/tokens"])
    close(aligned, golden[f"{prefix}/aligned"])
    if temperature > 0:
        rows = trace.layers["image"]
        assert [row.left - 1 for row in rows] == golden[f"{prefix}/counts"].tolist()
        for layer, row in enumerate(rows):
            assert (row.kept is not None) == (f"{prefix}/kept{layer}" in golden)
            if row.kept is not None:
                assert row.kept.indices.tolist() == golden[f"{prefix}/kept{layer}"].tolist()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nlvr(golden, temperature):
    model = build(blip_nlvr, golden, "nlvr")
    image, text = image_of(golden, "nlvr", "images"), texts(golden, "nlvr/text")
    targets = torch.as_tensor(golden["nlvr/targets"])
    prefix = f"nlvr/T{temperature}"
    with torch.no_grad():
        close(model(image, text, targets, temperature=temperature, train=False), golden[f"{prefix}/logits"])
    losses = model(image, text, targets, temperature=temperature)
    close(losses["loss_task"], golden[f"{prefix}/loss_task"])
    assert ("loss_sim" in losses) == (temperature > 0)
    if temperature > 0:
        close(losses["loss_sim"], golden[f"{prefix}/loss_sim"])


def test_nlvr_gradients(golden):
    model = build(blip_nlvr, golden, "nlvr")
    targets = torch.as_tensor(golden["nlvr/targets"])
    losses = model(image_of(golden, "nlvr", "images"), texts(golden, "nlvr/text"), targets, temperature=4.0)
    (losses["loss_task"] + 0.1 * losses["loss_sim"]).backward()
    names = [key.removeprefix("nlvr/grad_norm/") for key in golden if key.startswith("nlvr/grad_norm/")]
    assert names
    for name in names:
        close(model.get_parameter(name).grad.norm(), golden[f"nlvr/grad_norm/{name}"], tolerance=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_caption(golden, temperature):
    model = build(blip_decoder, golden, "caption")
    image = image_of(golden, "caption")
    losses = model(image, texts(golden, "caption/caption"), temperature=temperature)
    close(losses["loss_task"], golden[f"caption/T{temperature}/loss_task"])
    generated = model.generate(image, num_beams=3, max_length=20, min_length=5, temperature=temperature)
    assert generated == texts(golden, f"caption/T{temperature}/generated")


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_vqa(golden, temperature):
    model = build(blip_vqa, golden, "vqa")
    image, question = image_of(golden, "vqa"), texts(golden, "vqa/question")
    weights = torch.as_tensor(golden["vqa/weights"], dtype=torch.float64)
    prefix = f"vqa/T{temperature}"
    losses = model(
        image, question, texts(golden, "vqa/answers"), temperature, n=golden["vqa/n"].tolist(), weights=weights
    )
    close(losses["loss_task"], golden[f"{prefix}/loss_task"])
    if temperature > 0:
        close(losses["loss_sim"], golden[f"{prefix}/loss_sim"])
    with torch.no_grad():
        answers = model.encode_answers(texts(golden, "vqa/answer_list"))
        ranks = model(image, question, answers, temperature, train=False, inference="rank", k_test=4)
        assert ranks.tolist() == golden[f"{prefix}/rank"].tolist()
        generated = model(image, question, None, temperature, train=False, inference="generate")
        assert generated == texts(golden, f"{prefix}/generated")


@pytest.mark.parametrize("task, builder", [("nlvr", blip_nlvr), ("caption", blip_decoder), ("vqa", blip_vqa)])
def test_state_dict_keys(golden, task, builder):
    model = builder(image_size=96, vit=VIT, med_config=BERT, config=CONFIG)
    assert sorted(model.state_dict()) == sorted(golden[f"{task}/keys"])
