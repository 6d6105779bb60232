"""From a forward pass to closeups of its samples: which tokens each layer kept, with pictures, words and importance."""

from collections.abc import Sequence

from madtp.look.closeup import Closeup, Fate
from madtp.look.pictures import readable_image
from madtp.look.predictor import Forward, Predictor
from madtp.look.survival import follow
from transform.pictures import MEAN, STD

NAMES = {"text": "text", "multimodal": "text, read with the picture"}


def closeups(predictor: Predictor, batch: dict, forward: Forward, titles: Sequence[str]) -> list[Closeup]:
    """The samples of a batch, one for each title; `forward` was recorded.

    A tower is shown that ran once for every sample: not the pairs of retrieval, unless each picture has one text.
    """
    samples = len(batch["index"])
    towers = dict(zip(forward.trace.layers, forward.towers, strict=False))  # the decoder, last, records nothing
    pictures = [batch[name] for name in ("image", "image0", "image1") if name in batch]
    words = predictor.words(batch)

    def fate(tower: str, row: int) -> Fate:
        importance = [layer.of(row) for layer in towers[tower]]
        return Fate(NAMES.get(tower, tower), follow(forward.trace.layers[tower], row), importance)

    def of_one_text_each(tower: str) -> bool:
        return tower in towers and len(words) == samples == len(towers[tower][0].total)

    return [
        Closeup(
            title,
            [
                (readable_image(images[row], MEAN, STD), fate("image", row + number * samples))
                for number, images in enumerate(pictures)
            ],
            [(words[row], fate(tower, row)) for tower in NAMES if of_one_text_each(tower)],
        )
        for row, title in enumerate(titles)
    ]
