"""The way back to transformers: its classes load what is written, and compute what ours does densely."""

import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from PIL import Image

import clip
from clip.model import Sizes
from madtp.__main__ import main
from madtp.look.export import config_of, left_behind
from madtp.shared.weights import architecture, checkpoint
from madtp.shared.weights.stored import Stored
from madtp.shared.weights.transformers_export import CLASSES
from models.blip import blip_decoder
from models.blip_nlvr import blip_nlvr
from models.blip_retrieval import blip_retrieval
from models.blip_vqa import blip_vqa
from tests.golden.fill import fill, seeded
from tests.shared.weights.theirs import needs_5
from tests.tiny import BERT, CONFIG, VIT
from transform.pictures import evaluation_transform, normalised

pytestmark = needs_5
IMAGES = seeded(1, 3, 3, 64, 64)
IDS = torch.tensor([[22, 91, 92, 93, 107, 23], [22, 99, 100, 23, 0, 0], [22, 101, 95, 96, 23, 0]])
MASK = (IDS != 0).long()
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
BUILDERS = {"caption": blip_decoder, "vqa": blip_vqa, "retrieval": blip_retrieval, "nlvr": blip_nlvr}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def exported(tmp_path, capsys):
    """A model of ours with every weight drawn, and the folder written from its checkpoint."""

    def exported(task, status=0, temperature=0.0, **sizes):
        sizes = {"image_size": 64, "vit": VIT | {"embed_dim": 48}, "med_config": BERT} | sizes
        queue = {"queue_size": 6, "embed_dim": 20} if task == "retrieval" else {}
        ours = fill(BUILDERS[task](**sizes, **queue, config=CONFIG | {"sd_dim": 48})).eval()
        return ours, written(task, ours, status, temperature)

    def written(task, ours, status=0, temperature=0.0, **keys):
        path = tmp_path / "model.pth"
        checkpoint.save(path, model=ours.state_dict(), temperature=temperature, **architecture.entry(ours))
        keys |= {} if task == "retrieval_clip" else {"sd_dim": 48, "tokenizer": CONFIG["tokenizer"]}
        keys |= {"queue_size": 6} if task.startswith("retrieval") else {}
        chosen = [f"{name}={value}" for name, value in ({"sd_num": 6} | keys).items()]
        folder = tmp_path / "theirs"
        flags = ["--checkpoint", str(path), "--task", task, "--output_dir", str(folder), "--set", *chosen]
        assert main(["export", *flags]) == status
        exported.said = capsys.readouterr()
        return folder

    exported.written = written
    return exported


def encoded(model, text, first):
    ids = model.tokenize([text] * 3, first).input_ids
    return ids, torch.ones_like(ids)


def test_captions(exported):
    ours, folder = exported("caption", temperature=3.5)
    theirs = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    states, _ = ours.encode(IMAGES, 0.0)
    logits, _ = ours.text_decoder(IDS, MASK, states=states)
    expected = theirs(pixel_values=IMAGES, input_ids=IDS, attention_mask=MASK).logits
    torch.testing.assert_close(logits[MASK.bool()], expected[MASK.bool()], **CLOSE)
    prompt, _ = encoded(ours, ours.prompt, "[DEC]")
    generated = theirs.generate(IMAGES, prompt, num_beams=1, do_sample=False, max_length=14, min_length=5)
    captions = ours.generate(IMAGES, num_beams=1, max_length=14, min_length=5)
    assert captions == [ours.decode(row[ours.prompt_length :]) for row in generated]
    assert "a BlipForConditionalGeneration" in exported.said.out
    assert "the pruning stays behind" in exported.said.out and "was scored at T 3.5, and dense" in exported.said.out


def test_of_coverage_its_amount_stays_behind():
    assert "was scored at amount 1.2, shape 0.7, and dense" in left_behind(Stored(1.2, "coverage", shape=0.7))
    assert "shape 0.7, lengths kept, and dense" in left_behind(Stored(1.2, "coverage", shape=0.7, keep_norm=True))


def test_answers(exported):
    ours, folder = exported("vqa")
    theirs = transformers.BlipForQuestionAnswering.from_pretrained(folder).eval()
    question = IDS[:1].expand(3, -1)
    generated = theirs.generate(question, IMAGES, num_beams=1, do_sample=False, max_length=8, min_length=1)
    states, _ = ours.encode(IMAGES, 0.0)
    answers = ours._generate(ours.text_encoder(question, torch.ones_like(question), states=states), 1, 8)
    assert answers == ours.tokenizer.batch_decode(generated, skip_special_tokens=True)


def test_retrieval(exported):
    ours, folder = exported("retrieval")
    theirs = transformers.BlipForImageTextRetrieval.from_pretrained(folder).eval()
    states, image = ours.encode_image(IMAGES)
    similarity = image @ ours.encode_text(IDS, MASK).T
    expected = theirs(IDS, IMAGES, use_itm_head=False, attention_mask=MASK).itm_score
    torch.testing.assert_close(similarity, expected, **CLOSE)
    pair = torch.cat([torch.full((3, 1), ours.tokenizer.convert_tokens_to_ids("[ENC]")), IDS[:, 1:]], dim=1)
    expected = theirs(pair, IMAGES, attention_mask=MASK).itm_score
    torch.testing.assert_close(ours.match(IDS, MASK, states), expected, **CLOSE)
    assert "the pruning stays behind" in exported.said.out and "was scored" not in exported.said.out, "it is dense"


@pytest.mark.parametrize("task", ["caption", "vqa", "retrieval"])
def test_there_and_back(exported, task):
    """Every dense weight comes back bit for bit, under the architecture that config.json says."""
    ours, folder = exported(task)
    content = checkpoint.read(folder)
    state, own = content["model"], ours.state_dict()
    tied = {name for name in own if ".predictions.decoder." in name}
    dense = {name for name in own if not any(part in name for part in ("query_model", "space_dict", "position_ids"))}
    momentum = {name for name in own if "_m." in name or "queue" in name or name == "temp"}
    assert state.keys() == dense - tied - momentum
    assert all(value.equal(own[name]) for name, value in state.items())
    assert content["architecture"]["vit"] == VIT | {"embed_dim": 48, "norm_eps": 1e-6}
    assert content["architecture"]["image_size"] == 64
    _, loading = getattr(transformers, CLASSES[task]).from_pretrained(folder, output_loading_info=True)
    assert not loading["unexpected_keys"] and not loading["missing_keys"]


def test_a_tower_of_other_proportions_says_so(exported):
    vit = VIT | {"embed_dim": 48, "mlp_ratio": 2.5, "norm_eps": 1e-3}
    ours, folder = exported("caption", vit=vit)
    assert checkpoint.read(folder)["architecture"]["vit"] == vit
    theirs = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    states, _ = ours.encode(IMAGES, 0.0)
    torch.testing.assert_close(theirs.vision_model(IMAGES).last_hidden_state, states.tokens, **CLOSE)


def test_towers_by_name_have_the_sizes_of_their_papers():
    tokenizer = SimpleNamespace(convert_tokens_to_ids={"[DEC]": 8, "[SEP]": 9}.get)
    papers = {"tiny": (192, 12, 3, 768), "small": (384, 12, 6, 1536)}
    papers |= {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}
    for name, sizes in papers.items():
        model = SimpleNamespace(tokenizer=tokenizer, architecture={"vit": name, "image_size": 384, "med_config": BERT})
        vision = config_of("caption", model)["vision_config"]
        assert (vision["hidden_size"], vision["num_hidden_layers"]) == sizes[:2]
        assert (vision["num_attention_heads"], vision["intermediate_size"]) == sizes[2:]
        assert (vision["patch_size"], vision["layer_norm_eps"], vision["image_size"]) == (16, 1e-6, 384)


def test_their_preprocessing_is_our_evaluations(exported):
    ours, folder = exported("caption")
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert_seen_alike(processor.image_processor)
    words = processor(text="a picture of two cat", return_tensors="pt").input_ids
    assert words.tolist() == ours.tokenizer(["a picture of two cat"]).input_ids


def assert_seen_alike(processor):
    """In colour and in gray."""
    picture = Image.fromarray((seeded(4, 50, 80, 3).sigmoid() * 255).byte().numpy())
    for given in (picture, picture.convert("L")):
        theirs = processor(images=given, return_tensors="pt").pixel_values
        own = normalised(evaluation_transform(64)(given.convert("RGB"))[None])
        assert theirs.shape == own.shape and (theirs - own).abs().mean() < 0.02


class TestClip:
    SIZES = Sizes(
        embed_dim=24,
        image_resolution=64,
        vision_layers=2,
        vision_width=60,
        vision_patch_size=16,
        context_length=7,
        vocab_size=49408,
        transformer_width=48,
        transformer_layers=3,
        vision_mlp_ratio=2.5,
        activation="gelu",
        vision_head_width=20,
        transformer_head_width=16,
        norm_eps=1e-4,
    )

    def test_features(self, exported):
        ours = fill(clip.retrieval.ClipRetrieval(self.SIZES, 6, 40, queue_size=6)).eval()
        folder = exported.written("retrieval_clip", ours, sd_dim=40)
        theirs, loading = transformers.CLIPModel.from_pretrained(folder, output_loading_info=True)
        assert not loading["unexpected_keys"] and not loading["missing_keys"] and not theirs.training
        ids = clip.tokenize(["a dog", "two red cars", "the sea"], context_length=7)
        expected = theirs(ids, IMAGES)
        image, text = (
            feature / feature.norm(dim=-1, keepdim=True)
            for feature in (ours.encode_image(IMAGES), ours.encode_text(ids))
        )
        torch.testing.assert_close(image, expected.image_embeds, **CLOSE)
        torch.testing.assert_close(text, expected.text_embeds, **CLOSE)
        processor, sentences = transformers.AutoProcessor.from_pretrained(folder), ["in a bin", "Two!", "the sea's"]
        assert isinstance(processor, transformers.CLIPProcessor) and processor.tokenizer.model_max_length == 7
        assert processor.tokenizer(sentences).input_ids == [row[row > 0].tolist() for row in clip.tokenize(sentences)]
        marks, words = theirs.config.text_config, processor.tokenizer
        assert (marks.bos_token_id, marks.eos_token_id) == (words.bos_token_id, words.eos_token_id)
        assert_seen_alike(processor.image_processor)
        again, _ = clip.load(str(folder), "cpu", True, {"sd_num": 6, "sd_dim": 40, "queue_size": 6})
        assert again.sizes == self.SIZES
        assert all(
            value.equal(again.state_dict()[name])
            for name, value in ours.state_dict().items()
            if "visual." in name and "query" not in name
        )


class TestRefused:
    def test_nlvr2_by_name(self, exported):
        _, folder = exported("nlvr", status=2, med_config=BERT | {"num_hidden_layers": 7})
        assert "transformers has no class for nlvr: NLVR2's text encoder has two cross-attentions" in exported.said.err
        assert not folder.exists()

    def test_vqa_with_towers_of_two_widths(self, exported):
        _, folder = exported("vqa", status=2, vit=VIT)
        assert "questions as wide as images, and here they are 48 and 32 wide" in exported.said.err
        assert not folder.exists()

    def test_a_model_that_is_there(self, exported):
        _, folder = exported("caption")
        before = (folder / "model.safetensors").read_bytes()
        exported("caption", status=2)
        assert "config.json is there already; remove it or name another folder" in exported.said.err
        (folder / "config.json").unlink()
        exported("caption", status=2)
        assert "model.safetensors is there already" in exported.said.err
        assert (folder / "model.safetensors").read_bytes() == before

    def test_no_folder_to_write(self, exported, tmp_path):
        (tmp_path / "theirs").write_text("a file")
        exported("caption", status=2)
        assert "cannot write to" in exported.said.err


def test_the_config_is_plain(exported):
    """Its classes of other versions read it too: nothing but what both config classes know."""
    _, folder = exported("caption")
    written = json.loads((folder / "config.json").read_text())
    known = transformers.BlipConfig().to_dict()
    for name in ("text_config", "vision_config"):
        assert written[name].keys() <= known[name].keys() | {"model_type"}
