"""Values of the reference implementation's BLIP retrieval model (tests/golden/README.md says how they were made)."""

import numpy as np
import pytest
import torch

from madtp.cost.trace import Trace
from models.blip_retrieval import blip_retrieval
from tests.golden.fill import fill
from tests.models.test_golden import BERT, CONFIG, GOLDEN, TEMPERATURES, VIT, close, image_of, texts


@pytest.fixture(scope="module", params=["a", "b"])
def golden(request):
    return dict(np.load(GOLDEN / f"{request.param}.npz"))


def build(golden):
    sizes = {"image_size": int(golden["retrieval/image_shape"][-1]), "vit": VIT, "med_config": BERT}
    queue_size = golden["retrieval/T0.0/idx_queue"].shape[1]
    model = fill(blip_retrieval(**sizes, queue_size=queue_size, config=CONFIG)).eval().double()
    model.copy_params()
    return model


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_losses(golden, temperature):
    model, prefix = build(golden), f"retrieval/T{temperature}"
    image, idx = image_of(golden, "retrieval"), torch.as_tensor(golden["retrieval/idx"])
    with torch.no_grad():
        losses = model(image, texts(golden, "retrieval/caption"), 0.4, idx, temperature)
    names = ["loss_ita", "loss_itm", *(["loss_sim", "loss_sim_m"] if temperature > 0 else [])]
    assert sorted(losses) == names
    for name in names:
        close(losses[name], golden[f"{prefix}/{name}"])
    assert model.idx_queue.tolist() == golden[f"{prefix}/idx_queue"].tolist()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@torch.no_grad()
def test_inference(golden, temperature):
    model, prefix, trace = build(golden), f"retrieval/T{temperature}", Trace()
    text = model.encode_captions(texts(golden, "retrieval/caption"))
    states, image_feat = model.encode_image(image_of(golden, "retrieval"), temperature)
    close(image_feat, golden[f"{prefix}/image_feat"])
    close(model.encode_text(*text, temperature, trace), golden[f"{prefix}/text_feat"])
    assert trace.layers["text"][-1].left == golden[f"{prefix}/text_len"]
    logits = model.match(*text, states, temperature=temperature, trace=trace)
    close(logits, golden[f"{prefix}/itm_logits"])
    assert set(trace.layers) == {"text", "multimodal"}


def test_state_dict_keys(golden):
    assert sorted(build(golden).state_dict()) == sorted(golden["retrieval/keys"])
