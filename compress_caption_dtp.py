"""Compresses BLIP for captions, or evaluates it: what is in an image?

    python compress_caption_dtp.py --p 0.5 --epoch 5 \\
        --pretrained pretrained/model_base_caption_capfilt_large.pth \\
        --config ./configs/caption_coco.yaml --output_dir output/caption_coco_compression_p0.5
    python compress_caption_dtp.py --evaluate --pretrained output/caption_coco_compression_p0.5/checkpoint_best.pth \\
        --config ./configs/caption_coco.yaml --output_dir output/caption_coco_compression_p0.5

On several GPUs: `python -m torch.distributed.run --nproc_per_node=8 --` in place of `python`.

The validation split steers the temperature and chooses the checkpoint, by CIDEr and SPICE; the test split is only
reported. Captions are scored against the ground truth in `coco_gt_root`, else against the annotations. METEOR and SPICE
need Java, and SPICE models that `python -m pycocoevalcap.spice.get_stanford_models` downloads once. The decoder never
prunes.
"""

import sys
from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils.data import Dataset

from data.text import clean_caption
from madtp.cost import flops
from madtp.cost.trace import Trace, dense_layers
from madtp.method.errors import UserError
from madtp.run.engine import Task, main
from madtp.scoring import metrics
from madtp.scoring.caption_metrics import caption_metrics
from utils import from_main

COUNTED_TOKENS = 15  # of a caption; the cost is that of the decoder run once over them, as the paper counts


class Caption(Task):
    """An image in, a sentence out."""

    name = "caption"
    default_config = "configs/caption_coco.yaml"
    recipe = "caption"

    def build_model(self, config: dict, evaluate: bool) -> nn.Module:
        from models.blip import blip_decoder  # only now, so that --help and a wrong flag are answered at once

        sizes = config["image_size"], config["vit"], config["med_config"]
        model = blip_decoder(config["pretrained"], *sizes, config["prompt"], evaluate, config)
        if config["max_length"] > model.most_tokens:
            allowed = f"the position embeddings allow {model.most_tokens} (max_position_embeddings of med_config)"
            raise UserError(f"max_length is {config['max_length']}, but {allowed}; lower it")
        if config["max_length"] <= model.prompt_length:
            taken = f"[DEC] and the prompt take {model.prompt_length} tokens"
            raise UserError(f"max_length is {config['max_length']}, but {taken}; raise it, or shorten the prompt")
        if config["min_length"] > config["max_length"]:
            raise UserError(f"min_length is {config['min_length']}, but max_length {config['max_length']}; lower it")
        return model

    def losses(self, model: nn.Module, batch: dict, temperature: float, progress: float) -> dict[str, Tensor]:
        return model(batch["image"], batch["caption"], temperature)

    def predict(self, model: nn.Module, batch: dict, temperature: float, trace: Trace) -> list[dict]:
        limits = {name: self.config[name] for name in ("num_beams", "max_length", "min_length")}
        captions = model.generate(batch["image"], **limits, temperature=temperature, trace=trace)
        columns = zip(batch["image_id"], captions, strict=True)
        return [{"image_id": image, "caption": caption} for image, caption in columns]

    def answered(self, result: dict) -> str:
        return result["caption"]

    def answered_by(self, model: nn.Module, batch: dict) -> dict:
        said = model.generate(batch["image"], num_beams=1, max_length=self.config["max_length"])
        return {**batch, "caption": [f"{self.config['prompt']}{caption}" for caption in said]}

    def outputs(self, model: nn.Module, batch: dict, temperature: float) -> Tensor:
        return model.next_words(batch["image"], batch["caption"], temperature)

    def probe(self, model: nn.Module, batch: dict, temperature: float, trace: Trace) -> None:
        model.encode(batch["image"], temperature, trace=trace)

    def remarks(self, split: str, dataset: Dataset) -> Iterator[str]:
        if split == "train":
            return
        if not dataset.truth.exists():
            yield f"captions are scored against the annotations, there is no {dataset.truth}"
        if isinstance(dataset.ids[0], str):
            yield "not every image has a number of its own at the end of its name: results are filed by whole names"
        silent = sum(not any(map(clean_caption, those)) for those in dataset.references)
        if silent:
            yield f"{silent} of {len(dataset)} images have no reference with a word in it; the scores leave them out"

    def metrics(self, predictions: list, dataset: Dataset) -> dict:
        results = [result for _, result in predictions]
        captions, references = [one["caption"] for one in results], dataset.references
        exact = metrics.exact_match(captions, [[clean_caption(text) for text in those] for those in references])
        # Java takes gigabytes of memory and seconds to start: once will do, however many processes there are.
        scores = from_main(lambda: caption_metrics(captions, references, self.config["metrics"]))
        return {**exact, **scores, "results": results}

    def score(self, metrics: dict) -> float:
        """CIDEr, and SPICE where it could be computed."""
        return metrics["CIDEr"] + metrics.get("SPICE", 0.0) if "CIDEr" in metrics else metrics["exact_match"]

    def cost(self, model: nn.Module, trace: Trace) -> flops.Cost:
        image, text = model.visual_encoder.shape, model.text_decoder.bert.shape
        layers = {**trace.layers, "decoder": dense_layers(text.depth, COUNTED_TOKENS)}
        return flops.caption(image, text, layers, model.num_learnable) / flops.GIGA


if __name__ == "__main__":
    sys.exit(main(Caption()))
