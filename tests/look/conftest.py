"""A small model of every task, made here, with pictures to ask it about."""

import pytest
import torch

from madtp.look.predictor import task_named
from madtp.run import config as configuration
from madtp.shared.weights.checkpoint import save
from tests.look.small import CLIP, KEYS, TEMPERATURE
from tests.miniature import make_data, write_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("look")
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(data):
    return sorted(map(str, (data / "images" / "test").glob("*.png")))


@pytest.fixture(scope="module")
def checkpoint(data):
    """Writes a run's folder with a model that nobody trained, and returns its checkpoint."""

    def checkpoint(name, keep="sample", temperature=TEMPERATURE):
        folder = data / f"{name}_{keep}_{temperature:g}"
        path = folder / "checkpoint_best.pth"
        if not path.exists():
            folder.mkdir()
            vit = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 12}
            keys = {"clip": CLIP} if name == "retrieval_clip" else {"vit": vit}
            write_config(data, folder / "config.yaml", name, keep=keep, **keys, **KEYS[name])
            task = task_named(name)
            task.config = configuration.resolve(str(folder / "config.yaml"), name)
            torch.manual_seed(1)
            model = task.build_model(task.config, evaluate=False)
            shape = {"shape": 0.7} if keep == "coverage" else {}
            save(path, model=model.state_dict(), temperature=temperature, keep=keep, batch_size=25, **shape)
        return str(path)

    return checkpoint
