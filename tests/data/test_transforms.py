"""From images to tensors, and the cleaning of texts."""

import string

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import affine

import clip.model as clip
from data.text import clean_caption, clean_question
from models.vit import VisionTransformer
from tests.golden.fill import fill
from transform.pictures import evaluation_transform, normalised, training_transform
from transform.randaugment import GEOMETRIC, OPERATIONS, SHIFT, RandAugment, augment

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
FIXED_AT_MIDDLE = ("identity", "brightness", "sharpness")
MIDDLE = 5


def picture(width: int = 60, height: int = 40) -> Image.Image:
    """A picture in which everything matters: a ramp of colors with noise, nowhere black or white."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(60, 180, width)[None, :, None] + np.array([0.0, 10.0, 20.0])
    return Image.fromarray((ramp + rng.integers(0, 20, (height, width, 3))).astype(np.uint8))


@pytest.mark.parametrize("side", [24, 40, 90])
@pytest.mark.parametrize("size", [(60, 40), (40, 71), (24, 24), (640, 480)])
def test_evaluation_squares_as_pillow_does(size, side):
    rng = np.random.default_rng(1)
    noisy = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    for image in (picture(*size), noisy):  # noise makes the overshoot beyond black and white
        expected = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        found = evaluation_transform(side)(image)
        assert found.dtype == torch.uint8
        difference = np.abs(found.numpy().astype(int) - expected)
        assert difference.max() <= 2 and difference.mean() < 0.05
        assert size != (side, side) or difference.max() == 0


def test_integers_are_normalised_and_floats_left_alone():
    pixels = torch.randint(256, (2, 3, 5, 7), dtype=torch.uint8)
    expected = (pixels.double().permute(0, 2, 3, 1) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    found = normalised(pixels)
    torch.testing.assert_close(found, expected.permute(0, 3, 1, 2).float(), rtol=1e-5, atol=1e-6)
    assert normalised(found) is found


@pytest.mark.parametrize("side", [24, 60])
def test_training_crops_as_torchvision_does(side):
    """The same parts of the image, resized within two levels of 255 of what Pillow makes of them."""
    ours = training_transform(side).transforms[0]
    theirs = RandomResizedCrop(side, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC)
    for seed in range(20):
        torch.manual_seed(seed)
        found = np.asarray(ours(picture(90, 70))).astype(int)
        torch.manual_seed(seed)
        assert np.abs(found - np.asarray(theirs(picture(90, 70)))).max() <= 2


@pytest.mark.parametrize("level", [-10, -3, 0, 1, 5, 10])
def test_translation_is_an_affine_map(level):
    for name, side in (("translate_x", (1, 0)), ("translate_y", (0, 1))):
        image = picture(192, 131)
        pixels = [round(SHIFT * level / 10 * size) * along for size, along in zip(image.size, side, strict=True)]
        expected = affine(image, 0.0, pixels, 1.0, [0, 0], InterpolationMode.BILINEAR, [128] * 3)
        assert augment(image, name, level).tobytes() == expected.tobytes()


def test_models_see_the_same_in_integers_and_in_floats():
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    vit = VisionTransformer(32, 16, 16, 1, 2, 16).eval()
    tower = clip.VisionTransformer(clip.Sizes(24, 32, 1, 64, 16, 12, 100, 64, 1), 16).eval()
    for model in map(fill, (vit, tower)):  # CLIP's parameters are whatever was in memory before
        assert torch.equal(model(pixels)[0], model(normalised(pixels))[0])


@pytest.mark.parametrize("size", [(60, 40), (40, 70), (24, 24)])
def test_training_gives_other_squares_each_time(size):
    transform = training_transform(24)
    torch.manual_seed(0)
    first, second = transform(picture(*size)), transform(picture(*size))
    torch.manual_seed(0)
    assert first.shape == (3, 24, 24) and first.dtype == torch.uint8
    assert not torch.equal(first, second) and torch.equal(first, transform(picture(*size)))


def test_training_crops_half_of_the_image_or_more():
    """In a picture whose red is its column, a crop of at least half spans 0.6 of the width (aspect 3:4) on average."""
    columns = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    crop = training_transform(64).transforms[0]
    torch.manual_seed(0)
    spans = [np.ptp(np.asarray(crop(Image.fromarray(columns.copy())))[..., 0].astype(int)) for _ in range(50)]
    assert min(spans) > 0.6 * 200 and len(set(spans)) > 5


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_keep_the_size_and_their_argument(operation):
    image = picture()
    for level in (0, MIDDLE, 10):
        result = augment(image, operation, level)
        assert result.size == image.size and result.mode == "RGB"
    assert image.tobytes() == picture().tobytes()


def test_where_operations_change_nothing():
    image = picture()
    for operation in OPERATIONS:
        neutral = 0 if operation in GEOMETRIC else MIDDLE
        same = augment(image, operation, neutral).tobytes() == image.tobytes()
        assert same == (operation in GEOMETRIC or operation in FIXED_AT_MIDDLE), operation


@pytest.mark.parametrize("level", [4, -4, 10])
def test_translation_moves_by_a_part_of_the_side(level):
    pixels = np.asarray(picture(384, 192))
    shift = level  # pixels at 384, half of them at 192
    across = np.full_like(pixels, 128)
    down = np.full_like(pixels, 128)
    for row in range(192):
        for column in (0, 5, 200, 380):
            if 0 <= column + shift < 384:
                across[row, column + shift] = pixels[row, column]
            if 0 <= row + shift // 2 < 192:
                down[row + shift // 2, column] = pixels[row, column]
    moved_across = np.asarray(augment(picture(384, 192), "translate_x", level))
    moved_down = np.asarray(augment(picture(384, 192), "translate_y", level))
    for column in (0, 5, 200, 380):
        if 0 <= column + shift < 384:
            assert (moved_across[:, column + shift] == across[:, column + shift]).all()
        assert (moved_down[:, column] == down[:, column]).all()


@pytest.mark.parametrize(("operation", "axis"), [("shear_x", 0), ("shear_y", 1)])
def test_shear_moves_lines_in_proportion(operation, axis):
    """At full strength the line `n` pixels from the top left corner moves back by 0.3 n."""
    pixels = np.zeros((400, 400, 3), dtype=np.uint8)
    pixels[240:242, 250:252] = 255
    for level in (10, 5, -10):
        moved = np.asarray(augment(Image.fromarray(pixels), operation, level))[..., 0].astype(float)
        moved[moved == 128] = 0
        center = np.argwhere(moved > 60).mean(0)
        distance = (241, 251)[axis]  # of the square from the edge that stays
        expected = np.array([240.5, 250.5])
        expected[1 - axis] -= 0.03 * level * distance
        np.testing.assert_allclose(center, expected, atol=1.0)


def test_rotation_turns_by_thirty_degrees_at_most():
    pixels = np.zeros((101, 101, 3), dtype=np.uint8)
    pixels[48:53, 85:90] = 255  # to the right of the middle
    for level in (10, 5, -5):
        turned = np.asarray(augment(Image.fromarray(pixels), "rotate", level))[..., 0].astype(float)
        turned[turned == 128] = 0
        row, column = np.argwhere(turned > 100).mean(0) - 50
        assert np.degrees(np.arctan2(-row, column)) == pytest.approx(3 * level, abs=1)


@pytest.mark.parametrize("operation", GEOMETRIC)
def test_gray_shows_where_the_image_was_moved_away_and_edges_stay_smooth(operation):
    pixels = np.zeros((60, 60, 3), dtype=np.uint8)
    pixels[20:40, 20:40] = 255
    moved = np.asarray(augment(Image.fromarray(pixels), operation, 10))
    light = np.asarray(augment(Image.new("RGB", (60, 60), (200, 200, 200)), operation, 10))
    assert light.min() == 128 and light.max() == 200
    between = {*moved.flatten().tolist()} - {0, 128, 255}
    assert bool(between) == (not operation.startswith("translate"))  # which goes by whole pixels


def test_brightness_scales():
    pixels = np.asarray(picture()).astype(int)
    bright = np.asarray(augment(picture(), "brightness", 10)).astype(int)
    assert abs(bright - np.minimum(pixels * 1.9, 255)).max() <= 1


def test_sharpness_goes_away_from_the_blurred_picture():
    pixels = np.asarray(picture()).astype(int)
    around = sum(pixels[row : row + 38, column : column + 58] for row in range(3) for column in range(3))
    inner = pixels[1:-1, 1:-1]
    blurred = (around + 4 * inner) / 13
    for level, factor in ((0, 0.1), (10, 1.9)):
        found = np.asarray(augment(picture(), "sharpness", level)).astype(int)[1:-1, 1:-1]
        assert abs(found - np.clip(blurred + factor * (inner - blurred), 0, 255)).max() <= 2


def test_contrast_is_stretched_and_brightness_shared_out_channel_by_channel():
    dark = picture().point([value**2 // 255 for value in range(256)] * 3)
    pixels = np.asarray(dark).astype(float)
    least, most = pixels.min(axis=(0, 1)), pixels.max(axis=(0, 1))
    stretched = np.asarray(augment(dark, "autocontrast", MIDDLE))
    assert abs(stretched - 255 * (pixels - least) / (most - least)).max() <= 1
    equal = np.asarray(augment(dark, "equalize", MIDDLE)).astype(float)
    for own, found in zip(pixels.reshape(-1, 3).T, equal.reshape(-1, 3).T, strict=True):
        darker = (own < own[:, None]).mean(axis=1)
        assert abs(found - 255 * darker).max() <= 20  # it counts in whole steps


def test_half_of_the_draws_are_applied():
    image = picture()
    torch.manual_seed(0)
    unchanged = sum(RandAugment()(image).tobytes() == image.tobytes() for _ in range(600)) / 600
    once = 1 - 0.5 * (len(OPERATIONS) - len(FIXED_AT_MIDDLE)) / len(OPERATIONS)
    assert unchanged == pytest.approx(once**2, abs=0.06)
    assert RandAugment(probability=0)(image).tobytes() == image.tobytes()
    drawn = [RandAugment(1, 5, 1.0)(image).tobytes() for _ in range(600)]
    possible = {augment(image, operation, MIDDLE).tobytes() for operation in OPERATIONS}
    backwards = {augment(image, operation, -MIDDLE).tobytes() for operation in GEOMETRIC}
    assert set(drawn) == possible | backwards
    share = sum(one in backwards for one in drawn) / len(drawn)
    assert share == pytest.approx(len(GEOMETRIC) / len(OPERATIONS) / 2, abs=0.04)


def test_training_augments_up_to_twice():
    """In a plain picture, which crops and flips leave as it is, only geometric operations show."""
    torch.manual_seed(0)
    plain, training = Image.new("RGB", (40, 40), (60, 60, 60)), training_transform(40)
    drawn = [training(plain).permute(1, 2, 0).numpy().tobytes() for _ in range(400)]
    once = {augment(plain, operation, level).tobytes() for operation in GEOMETRIC for level in (-MIDDLE, MIDDLE)}
    images = [Image.frombytes("RGB", plain.size, one) for one in once]
    twice = {augment(image, name, level).tobytes() for image in images for name in OPERATIONS for level in (-5, 5)}
    assert once < {*drawn} - {plain.tobytes()} <= once | twice
    untouched = (1 - 0.5 * len(GEOMETRIC) / len(OPERATIONS)) ** 2
    assert drawn.count(plain.tobytes()) / len(drawn) == pytest.approx(untouched, abs=0.06)


def test_every_other_picture_is_flipped():
    pixels = np.zeros((24, 24, 3), dtype=np.uint8)
    pixels[:, 12:] = 255
    torch.manual_seed(0)
    training = training_transform(24)
    drawn = [training(Image.fromarray(pixels)).float() for _ in range(200)]
    flipped = [one[..., :6].mean() > one[..., -6:].mean() for one in drawn]
    assert sum(flipped) / len(flipped) == pytest.approx(0.5, abs=0.1)


def test_captions_are_cleaned():
    assert clean_caption('  Two DOGS,\t(one "brown")... run!  \n') == "two dogs, one brown run"
    assert clean_caption("t-shirt #1: a*b;c~d") == "t-shirt 1 a b c d"
    assert clean_caption(" ".join(["word"] * 99)) == " ".join(["word"] * 50)
    assert clean_caption("one two three. four", max_words=3) == "one two three"


def test_questions_are_cleaned():
    assert clean_question('Is this (the) "U.S.A."?  ') == "is this the usa?"
    assert clean_question(" ".join(["word"] * 99)) == " ".join(["word"] * 50)


@given(st.text(alphabet=string.ascii_letters + string.punctuation + " \n\t", max_size=60), st.integers(1, 8))
def test_cleaning_letter_by_letter(text, most):
    def slow(replacement: str) -> str:
        spelled = "".join(replacement if letter in '.!"()*#:;~' else letter.lower() for letter in text)
        return " ".join([word for word in spelled.split() if word][:most])

    assert clean_caption(text, most) == slow(" ")
    assert clean_question(text, most) == slow("")
    assert clean_caption(clean_caption(text, most), most) == clean_caption(text, most)
