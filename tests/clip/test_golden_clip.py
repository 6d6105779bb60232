"""Values of the reference implementation's CLIP (tests/golden/README.md says how they were made)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip import tokenize
from clip.model import Sizes
from clip.retrieval import ClipRetrieval
from madtp.method.distillation import Teacher
from tests.golden.fill import fill
from tests.models.test_golden import GOLDEN, TEMPERATURES, close, image_of, texts


@pytest.fixture(scope="module", params=["a", "b"])
def golden(request):
    return dict(np.load(GOLDEN / f"{request.param}.npz"))


@pytest.fixture(scope="module")
def model(golden):
    sizes = Sizes(
        embed_dim=64,
        image_resolution=int(golden["clip/image_shape"][-1]),
        vision_layers=5,
        vision_width=128,
        vision_patch_size=16,
        context_length=77,
        vocab_size=49408,
        transformer_width=128,
        transformer_layers=4,
    )
    model = fill(ClipRetrieval(sizes, sd_num=16, sd_dim=96, queue_size=4 * len(golden["clip/idx"])))
    model.copy_params()
    return model.eval().double()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@torch.no_grad()
def test_features(golden, model, temperature):
    ids = tokenize(texts(golden, "clip/caption"))
    assert ids.tolist() == golden["clip/ids"].tolist()
    close(model.encode_image(image_of(golden, "clip"), temperature), golden[f"clip/T{temperature}/image_feat"])
    close(model.encode_text(ids, temperature), golden[f"clip/T{temperature}/text_feat"])


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_losses(golden, model, temperature):
    queues = {name: queue.clone() for name, queue in model.named_buffers()}
    image, idx = image_of(golden, "clip"), torch.as_tensor(golden["clip/idx"])
    losses = model(image, texts(golden, "clip/caption"), 0.4, idx, temperature)
    model.load_state_dict(queues, strict=False)
    names = ["loss_ita", *(["loss_sim", "loss_sim_m"] if temperature > 0 else [])]
    assert sorted(losses) == names
    for name in names:
        close(losses[name], golden[f"clip/T{temperature}/{name}"])


def test_a_dense_tower_teaches_by_its_features(golden, model, monkeypatch):
    monkeypatch.setattr(model, "teacher", Teacher(model.image_tower), raising=False)
    queues = {name: queue.clone() for name, queue in model.named_buffers()}
    image, idx = image_of(golden, "clip"), torch.as_tensor(golden["clip/idx"])
    dense, pruned = (model(image, texts(golden, "clip/caption"), 0.4, idx, T)["loss_distil"] for T in (0.0, 30.0))
    model.load_state_dict(queues, strict=False)
    features = (model.encode_image(image, T) for T in (0.0, 30.0))
    assert dense.abs() < 1e-6
    torch.testing.assert_close(pruned.double(), 1 - F.cosine_similarity(*features).mean(), atol=1e-6, rtol=1e-5)


def test_state_dict_keys(golden, model):
    assert sorted(model.state_dict()) == sorted(golden["clip/keys"])
