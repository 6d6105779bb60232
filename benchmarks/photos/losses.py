"""What a model learns by when its image tower is trained too: its task, and what goes with the rule or the lesson.

By MADTP that is the similarity loss, as it was published. A lesson can be the tokens of a dense tower, which has
learned the task for as many steps.

Shapes: B photos, G texts of each, T captions of all training photos, E width of a feature.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.photos.dense import text_features
from benchmarks.photos.subject import Subject
from benchmarks.photos.training import Batch
from benchmarks.photos.world import Photo, texts_of
from madtp.method.alignment import similarity_loss
from madtp.method.distillation import Teacher

SIMILARITY = 0.1  # weight of the similarity loss
DISTILLATION = 10.0  # weight of the distance to a dense tower's tokens


class Losses:
    """The losses of a captioner or a VQA model, its own.

    Args:
        subject: whose model is trained, by the rule on trial.
        photos: the training split.

    Attributes:
        teacher: a dense tower, whose tokens those of the pruned one are to come near; None where only the task counts.
    """

    teacher: Teacher | None = None

    def __init__(self, subject: Subject, photos: Sequence[Photo]):
        self.subject, self.model = subject, subject.model

    def loss(self, image: Tensor, batch: Batch, amount: float, similar: bool) -> Tensor:
        """Of B photos and B * G texts.

        Args:
            image: [B, 3, H, W].
            batch: the photos' numbers, their texts, and answers where there are any.
            amount: how much goes.
            similar: whether the similarity loss is part of it.
        """
        align = similar and amount > 0
        states, aligned = self.model.encode(image, amount, align)
        with self.subject.encoded_as(states, aligned):
            parts = self.parts(batch, amount if align else 0.0)
        loss = parts["loss_task"] + SIMILARITY * parts["loss_sim"] if align else parts["loss_task"]
        return loss if self.teacher is None else loss + DISTILLATION * self.teacher.distance(image, states)

    def parts(self, batch: Batch, amount: float) -> dict[str, Tensor]:
        """`loss_task` and, where the amount is above 0, `loss_sim` of photos whose tokens are known."""
        photos, texts, answers = batch
        numbers = torch.arange(len(photos)).repeat_interleave(len(texts) // len(photos))
        if not answers:
            return self.model(numbers, texts, amount)
        once = torch.ones(len(answers), device=self.model.space_dict.device)
        return self.model(numbers, texts, answers, amount, n=once.long(), weights=once)


class RetrievalLosses(Losses):
    """The contrastive loss against captions whose features stay as they are.

    No rule prunes texts here, so that the text side needs no repair and stays as the dense model has it. Every photo
    looks for its captions among those of all training photos, whose features are computed once, and every caption of
    the batch for its photo in the batch.
    """

    @torch.no_grad()
    def __init__(self, subject: Subject, photos: Sequence[Photo]):
        super().__init__(subject, photos)
        with subject.machine.mixed():
            self.texts = text_features(self.model, photos).float()  # [T, E]
        self.owners = torch.tensor(texts_of(photos)[1], device=self.texts.device)  # [T]

    def parts(self, batch: Batch, amount: float) -> dict[str, Tensor]:
        photos, captions, _ = batch
        numbers, photos = torch.arange(len(photos)), torch.tensor(photos, device=self.owners.device)
        if not amount:
            return {"loss_task": self.contrast(self.model.encode_image(numbers)[1], photos)}
        one_each = self.model.tokenize(captions[:: len(captions) // len(photos)], "[CLS]", max_length=35)
        views = self.model.views(numbers, (one_each.input_ids, one_each.attention_mask), amount)
        similarity = similarity_loss(views.image_aligned, views.text_aligned)
        return {"loss_task": self.contrast(views.image, photos), "loss_sim": similarity}

    def contrast(self, features: Tensor, photos: Tensor) -> Tensor:
        """The mean of both ways.

        Args:
            features: [B, E] of photos.
            photos: [B], their numbers.
        """
        with torch.autocast(features.device.type, enabled=False):
            similarity = features @ self.texts.T / self.model.temp  # [B, T]
        own = photos.unsqueeze(1) == self.owners
        to_text = (similarity.log_softmax(dim=1) * own).sum(dim=1) / own.sum(dim=1)
        there = own.any(dim=0)
        to_photo = F.cross_entropy(similarity[:, there].T, own[:, there].float().argmax(dim=0))
        return (to_photo - to_text.mean()) / 2


def losses_of(subject: Subject, photos: Sequence[Photo]) -> Losses:
    """The losses of a subject's task."""
    return (RetrievalLosses if subject.task == "retrieval" else Losses)(subject, photos)
