"""Pictures as cameras, scanners and microscopes write them: upright, of 8 bits, or refused with the way out."""

import builtins
import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from data import decoding
from data.decoding import UnfitImage, decode_image, eight_bits, readable_formats


def scene() -> Image.Image:
    """A picture all of whose turns differ: four patches of grey, 96 x 64."""
    return Image.fromarray(np.array([[0, 80], [160, 240]], np.uint8)).resize((96, 64), 0).convert("RGB")


def save(path, image, orientation, **options):
    exif = Image.Exif()
    exif[0x112] = orientation
    image.save(path, exif=exif, **options)
    return path


def levels(image) -> np.ndarray:
    """The grey in the middle of each quarter."""
    width, height = image.size
    places = [(x * width // 4, y * height // 4) for y in (1, 3) for x in (1, 3)]
    return np.array([image.getpixel(place)[0] for place in places])


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(tmp_path, ending, orientation):
    path = save(tmp_path / f"p.{ending}", scene(), orientation)
    plain = Image.new("RGB", scene().size)
    plain.paste(scene())
    plain.getexif()[0x112] = orientation
    expected = ImageOps.exif_transpose(plain)
    decoded = decode_image(path)
    assert decoded.size == expected.size == ((64, 96) if orientation > 4 else (96, 64))
    assert abs(levels(decoded).astype(int) - levels(expected)).max() < 12


def test_a_large_photo_is_turned_after_it_is_decoded_smaller(tmp_path):
    path = save(tmp_path / "p.jpg", scene().resize((1200, 800)), 6)
    assert decode_image(path, 160).size == (400, 600)


@pytest.mark.parametrize(
    "name", ["COCO_val2014_000000000042.jpg", "dev-850-0-img0.png", "flickr30k-images/1000092795.jpg"]
)
def test_published_pictures_are_decoded_as_they_are_stored(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    assert decode_image(save(tmp_path / name, scene(), 6)).size == (96, 64)
    own = tmp_path / name.replace("COCO", "own").replace("dev", "own").replace("flickr30k", "own")
    own.parent.mkdir(exist_ok=True)
    assert decode_image(save(own, scene(), 6)).size == (64, 96)


def test_published_pictures_of_16_bits_stay_what_they_were(tmp_path):
    """White, where anything is above a 256th: so they were when the published numbers were taken."""
    Image.fromarray(np.full((4, 4), 5000, np.uint16)).save(tmp_path / "dev-850-0-img0.png")
    assert decode_image(tmp_path / "dev-850-0-img0.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_is_none_is_ignored(tmp_path, orientation):
    assert decode_image(save(tmp_path / "p.jpg", scene(), orientation)).size == (96, 64)


def test_broken_exif_loses_no_picture(tmp_path):
    content = io.BytesIO()
    scene().save(content, "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x05\x01\x12")
    (tmp_path / "p.jpg").write_bytes(content.getvalue())
    assert decode_image(tmp_path / "p.jpg").size == (96, 64)


def test_several_pictures_in_one_file(tmp_path):
    """As phones write them: the photo, and a smaller one or a depth map behind it."""
    scene().save(tmp_path / "p.jpg", "MPO", save_all=True, append_images=[scene().resize((24, 16))])
    assert decode_image(tmp_path / "p.jpg").size == (96, 64)


RAMP = np.linspace(0, 1, 256).reshape(16, 16)


@pytest.mark.parametrize(
    "values, ending",
    [
        ((RAMP * 65535).astype(np.uint16), "png"),
        ((RAMP * 65535).astype(np.uint16), "tif"),
        ((RAMP * 65535).astype(np.int32), "tif"),
        ((RAMP * 255).astype(np.int32), "tif"),
        (RAMP.astype(np.float32), "tif"),
        ((RAMP * 255).astype(np.float32), "tif"),
        ((RAMP * 65535).astype(np.float32), "tif"),
    ],
    ids=lambda value: getattr(value, "dtype", value),
)
def test_other_numbers_than_8_bits_keep_their_grey(tmp_path, values, ending):
    path = tmp_path / f"p.{ending}"
    Image.fromarray(values).save(path)
    decoded = np.asarray(decode_image(path), dtype=int)
    assert decoded.shape == (16, 16, 3) and abs(decoded - np.rint(RAMP * 255)[..., None]).max() <= 1


@pytest.mark.parametrize("ending", ["png", "pgm"])
def test_a_dark_picture_of_16_bits_stays_dark(tmp_path, ending):
    path = tmp_path / f"p.{ending}"
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(path)
    assert decode_image(path).getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize("values", [[-1.0, 1.0], [0.0, 1e6], [0.0, float("nan")]])
def test_numbers_of_no_known_range_are_refused_with_the_way_out(tmp_path, values):
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "p.tif")
    with pytest.raises(UnfitImage, match="its values go from .* to .*; save it with 8 bits"):
        decode_image(tmp_path / "p.tif")


def test_every_8_bit_value_comes_back():
    values = np.arange(256)
    assert (eight_bits(values.astype(np.uint16) * 257, sixteen=True) == values).all()
    assert (eight_bits(values) == values).all() and (eight_bits(values / 255) == values).all()


def test_photos_of_many_pixels(tmp_path, monkeypatch):
    """A JPEG counts as it is decoded; others are refused above the limit, with the way out, and none is a bomb."""
    monkeypatch.setattr(decoding, "MOST_PIXELS", 10_000)
    scene().resize((400, 300)).save(tmp_path / "p.jpg")
    scene().resize((400, 300)).save(tmp_path / "p.png")
    assert decode_image(tmp_path / "p.jpg", 20).size == (100, 75)
    for path in ("p.jpg", "p.png"):
        with pytest.raises(UnfitImage, match="400 x 300 pixels, more than the .* save it smaller"):
            decode_image(tmp_path / path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(UnfitImage, match="save it smaller"):
        decode_image(tmp_path / "p.png")


def test_108_megapixels_are_read(tmp_path):
    Image.new("L", (12000, 9000), 128).save(tmp_path / "p.jpg", quality=20)
    assert decode_image(tmp_path / "p.jpg", 384).size == (1500, 1125)


def test_what_takes_another_package_says_which(tmp_path, monkeypatch):
    def absent(name, *arguments, **named):
        if name == "pillow_heif":
            raise ImportError(name)
        return imported(name, *arguments, **named)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", absent)
    readable_formats.cache_clear()
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\x00\x00\x00\x18ftypheic")
    with pytest.raises(UnfitImage, match="pip install pillow-heif; or save it as JPEG"):
        decode_image(tmp_path / "IMG_1.HEIC")
    readable_formats.cache_clear()


class TestTransparency:
    """Pictures one can see through stand in front of white, as viewers show them: dark signs stay readable."""

    def sign(self, mode="RGBA"):
        """Black on nothing, whose own colour is black as well."""
        image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
        image.paste((0, 0, 0, 255), (4, 4, 12, 12))
        return image.convert(mode)

    def assert_readable(self, path):
        decoded = decode_image(path)
        assert decoded.mode == "RGB"
        assert decoded.getpixel((0, 0)) == (255, 255, 255) and decoded.getpixel((8, 8)) == (0, 0, 0)

    @pytest.mark.parametrize("mode, ending", [("RGBA", "png"), ("LA", "png"), ("RGBA", "webp"), ("RGBA", "tif")])
    def test_a_channel_of_its_own(self, tmp_path, mode, ending):
        options = {"lossless": True} if ending == "webp" else {}
        self.sign(mode).save(tmp_path / f"sign.{ending}", **options)
        self.assert_readable(tmp_path / f"sign.{ending}")

    @pytest.mark.parametrize("transparency, ending", [(0, "png"), (bytes([0, 255]), "png"), (0, "gif")])
    def test_a_colour_of_the_palette(self, tmp_path, transparency, ending):
        image = Image.new("P", (16, 16), 0)
        image.putpalette([9, 9, 9, 0, 0, 0])
        image.paste(1, (4, 4, 12, 12))
        image.save(tmp_path / f"sign.{ending}", transparency=transparency)
        self.assert_readable(tmp_path / f"sign.{ending}")

    def test_half_of_it(self, tmp_path):
        Image.new("RGBA", (4, 4), (200, 0, 0, 51)).save(tmp_path / "veil.png")
        assert decode_image(tmp_path / "veil.png").getpixel((1, 1)) == (244, 204, 204)

    def test_opaque_pictures_stay_what_they_are(self, tmp_path):
        scene().convert("RGBA").save(tmp_path / "p.png")
        assert np.array_equal(np.asarray(decode_image(tmp_path / "p.png")), np.asarray(scene()))


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "there is nothing in the file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "it is a pointer of Git LFS: run `git lfs pull`",
        ),
        (b"\n<!DOCTYPE HTML><title>403</title>", "it is a web page, as servers send"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is a drawing of lines, save it as PNG"),
        (b"\x00\x01", "cannot identify image file"),
    ],
)
def test_what_is_there_in_place_of_a_picture_is_named(tmp_path, content, said):
    (tmp_path / "p.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        decode_image(tmp_path / "p.jpg")


def test_long_texts_in_a_png_lose_no_picture(tmp_path):
    """Programs that make pictures write all their settings into them."""
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "step " * 2**20, zip=True)
    scene().save(tmp_path / "p.png", pnginfo=text)
    assert decode_image(tmp_path / "p.png").size == scene().size


def test_a_folder_in_place_of_a_picture_is_not_to_be_fetched_again(tmp_path):
    with pytest.raises(UnfitImage, match="^it is a folder$"):
        decode_image(tmp_path)


@pytest.mark.skipif(not Path(os.devnull).is_char_device(), reason="there is no such device")
def test_what_is_no_file_is_not_opened():
    """A pipe would be waited for, for ever."""
    with pytest.raises(UnfitImage, match="^it is no file$"):
        decode_image(Path(os.devnull))


def test_an_image_that_may_not_be_read_need_not_be_fetched_again(tmp_path, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.setattr(decoding.Image, "open", refuse)
    with pytest.raises(UnfitImage, match="^it may not be read; change its permissions$"):
        decode_image(tmp_path / "a.png")
