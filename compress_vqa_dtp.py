"""Compresses BLIP for visual question answering, or evaluates it.

    python compress_vqa_dtp.py --p 0.5 --epoch 3 --pretrained pretrained/model_base_vqa_capfilt_large.pth \\
        --config ./configs/vqa.yaml --output_dir output/vqa_vqa2_compression_p0.5
    python compress_vqa_dtp.py --evaluate --pretrained output/vqa_vqa2_compression_p0.5/checkpoint_best.pth \\
        --config ./configs/vqa.yaml --output_dir output/vqa_vqa2_compression_p0.5

On several GPUs: `python -m torch.distributed.run --nproc_per_node=8 --` in place of `python`.

The validation split steers the temperature and chooses the checkpoint, although the paper's `train_files` train on it
too. --evaluate also answers the test split, for the server: `result/vqa_result.json`.
"""

import sys
from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from madtp.cost import flops
from madtp.cost.trace import Trace, dense_layers
from madtp.run.engine import Task, main
from madtp.scoring.vqa_accuracy import FEW, attainable, vqa_accuracy

COUNTED_TOKENS = 5  # of an answer; the cost is that of the decoder run once over them, the question's is the traced one


class VQA(Task):
    """An image and a question in, an answer out."""

    name = "vqa"
    default_config = "configs/vqa.yaml"
    recipe = "vqa"
    epoch_splits = ("val",)

    def build_model(self, config: dict, evaluate: bool) -> nn.Module:
        from models.blip_vqa import blip_vqa  # only now, so that --help and a wrong flag are answered at once

        return blip_vqa(
            config["pretrained"], config["image_size"], config["vit"], config["med_config"], evaluate, config
        )

    def losses(self, model: nn.Module, batch: dict, temperature: float, progress: float) -> dict[str, Tensor]:
        answers = {name: batch[name] for name in ("answer", "n", "weights")}
        return model(batch["image"], batch["question"], **answers, temperature=temperature)

    def remarks(self, split: str, dataset: Dataset) -> Iterator[str]:
        if split == "train":
            return
        given = [answers for entry in dataset.entries if (answers := entry.get("answer"))]
        if 0 < len(given) < len(dataset):
            yield f"{len(dataset) - len(given)} of {len(dataset)} questions lack an answer, so there is no accuracy"
        if few := sum(len(people) <= FEW for people in given):
            yield f"{few} questions have at most {FEW} answers, of which accuracy counts the share that agrees"
        if given and dataset.answer_list:
            questions, best = attainable(dataset.answer_list, given)
            yield f"answer_list.json can answer {questions:.1f} % of the questions, for an accuracy of {best:.1f}"

    def choose_from(self, answers: list[str], model: nn.Module) -> None:
        """Gives a model, which is on its device, the answers that `predict` ranks; none where it makes its own."""
        self.answers, self.encoded_answers = answers, model.encode_answers(answers) if answers else None

    def evaluate(self, model: nn.Module, loader: DataLoader, temperature: float) -> dict:
        self.choose_from(loader.dataset.dataset.answer_list, model)
        return super().evaluate(model, loader, temperature)

    def predict(self, model: nn.Module, batch: dict, temperature: float, trace: Trace) -> list[dict]:
        how = {name: self.config[name] for name in ("inference", "k_test")}
        asked = batch["image"], batch["question"], self.encoded_answers
        answers = model(*asked, temperature, train=False, trace=trace, **how)
        if how["inference"] == "rank":
            answers = [self.answers[index] for index in answers.tolist()]
        given = batch["answers"] or [None] * len(answers)
        columns = zip(batch["question_id"], answers, given, strict=True)
        return [{"question_id": question, "answer": answer, "given": people} for question, answer, people in columns]

    def probe(self, model: nn.Module, batch: dict, temperature: float, trace: Trace) -> None:
        one_answer = model.encode_answers(["yes"])
        model(batch["image"], batch["question"], one_answer, temperature, train=False, k_test=1, trace=trace)

    def outputs(self, model: nn.Module, batch: dict, temperature: float) -> Tensor:
        return model.first_word(batch["image"], batch["question"], temperature)

    def asked(self, batch: dict, row: int) -> str:
        return batch["question"][row]

    def answered(self, result: dict) -> str:
        return result["answer"]

    def metrics(self, predictions: list, dataset: Dataset) -> dict:
        results = [result for _, result in predictions]
        answers = [{name: one[name] for name in ("question_id", "answer")} for one in results]
        if any(one["given"] is None for one in results):
            return {"results": answers}
        scores = vqa_accuracy([one["answer"] for one in results], [one["given"] for one in results])
        return {**scores, "results": answers}

    def result_file(self, split: str) -> str:
        return "vqa_result" if split == "test" else super().result_file(split)

    def score(self, metrics: dict) -> float:
        return metrics["accuracy"]

    def cost(self, model: nn.Module, trace: Trace) -> flops.Cost:
        image, text = model.visual_encoder.shape, model.text_encoder.shape
        layers = {**trace.layers, "decoder": dense_layers(text.depth, COUNTED_TOKENS)}
        return flops.vqa(image, text, layers, model.num_learnable) / flops.GIGA


if __name__ == "__main__":
    sys.exit(main(VQA()))
