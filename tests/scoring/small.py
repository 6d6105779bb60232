"""A small model for retrieval, pictures with texts for it, and a task that remembers what it judged."""

from random import Random

import torch
from torch.utils.data import Dataset

from data.loading import collate
from madtp.scoring.judged_retrieval import JudgedRetrieval
from tests.golden.fill import seeded
from tests.models.test_golden import CONFIG

SIZES = {
    "image_size": 64,
    "vit": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 16},
    "med_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 202,
        "max_position_embeddings": 64,
    },
    "config": {**CONFIG, "sd_num": 8, "sd_dim": 32},
}
WORDS = "a the red blue dog cat man car is on two left road table".split()
PRUNING = 64.0  # a temperature at which both towers of the small models prune


class Pictures(Dataset):
    """Random images with one to four random texts each."""

    collate = staticmethod(collate)

    def __init__(self, size=7):
        random = Random(0)
        self.pixels = seeded(1, size, 3, 64, 64).double()
        self.text_to_image = [image for image in range(size) for _ in range(1 + image % 4)]
        self.same_images, self.same_texts = range(size), range(len(self.text_to_image))
        self.texts = [" ".join(random.choices(WORDS, k=random.randint(1, 12))) for _ in self.text_to_image]

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        caption = self.texts[self.text_to_image.index(index)]
        return {"image": self.pixels[index], "caption": caption, "index": torch.tensor(index)}


class Recorded(JudgedRetrieval):
    """A task that remembers what it judged."""

    name = "retrieval"

    def __init__(self, k):
        self.config = {"batch_size_test": 4, "k_test": k, "alpha": 0.4}

    def metrics(self, predictions, dataset):
        self.judged = {
            image: dict(zip(found.texts.tolist(), found.scores, strict=True)) for image, found in predictions
        }
        return super().metrics(predictions, dataset)
