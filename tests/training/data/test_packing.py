"""Packed pictures, compared with what Pillow decodes and resizes in full."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps
from rednet.training.data.packing import fitted, num_shards, pack_picture
from rednet.training.data.transforms import TrainingTransform, open_image
from rednet.training.options.scripts import TrainingConfig
from sklearn.datasets import load_sample_images


def photograph(width: int, height: int) -> Image.Image:
    return Image.fromarray(load_sample_images().images[1]).resize((width, height))


def saved(picture: Image.Image, format: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of the pixels, from 0 to 255."""
    assert one.size == other.size
    return np.abs(np.asarray(one.convert("RGB"), int) - np.asarray(other.convert("RGB"), int)).mean()


def test_a_picture_is_resized_once():
    """Between one and two times as large: decoded in full, so that the file is that of Pillow."""
    content = saved(photograph(360, 281), quality=95)
    expected = opened(content).resize((256, 200), Image.Resampling.LANCZOS)
    assert pack_picture(content, 200, 90) == saved(expected, quality=90)
    assert len(pack_picture(content, 200, 50)) < len(pack_picture(content, 200, 90))


def test_a_large_picture_is_decoded_at_reduced_scale():
    """At half its size here, which is still 1.5 times as large as the packed picture."""
    content = saved(photograph(1201, 899), quality=95)
    half, packed = opened(content), pack_picture(content, 200, 95)
    half.draft(None, (600, 449))
    assert half.size == (601, 450)
    assert packed == saved(half.resize((267, 200), Image.Resampling.LANCZOS), quality=95)
    assert difference(opened(packed), opened(content).resize((267, 200), Image.Resampling.LANCZOS)) < 3


@pytest.mark.parametrize("size", [(200, 300), (300, 150), (20, 900)])
def test_a_small_jpeg_file_is_unchanged(size):
    content = saved(photograph(*size), quality=100, comment=b"kept")
    assert pack_picture(content, 200, 90) is content


def test_a_small_png_file_is_unchanged_if_it_is_smaller():
    icon = Image.new("RGBA", (40, 30), (200, 0, 0, 0))
    content = saved(icon, "PNG")
    assert pack_picture(content, 200, 90) is content
    content = saved(photograph(200, 150), "PNG")
    packed = pack_picture(content, 200, 90)
    assert len(packed) < len(content) and packed == saved(photograph(200, 150), quality=90)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(150, 100), (700, 500)])
def test_pictures_are_upright(orientation, size):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = saved(photograph(*size), quality=95, exif=exif)
    expected = ImageOps.exif_transpose(opened(content))
    packed = opened(pack_picture(content, 125, 95))
    assert ExifTags.Base.Orientation not in packed.getexif() or orientation == 1
    scale = min(125 / min(size), 1)
    expected = expected.resize([round(side * scale) for side in expected.size], Image.Resampling.LANCZOS)
    assert difference(packed, expected) < 4


def test_transparent_gray_and_cmyk_pictures_look_as_in_training():
    picture = photograph(300, 200)
    gradient = Image.linear_gradient("L").resize(picture.size)
    transparent = picture.copy()
    transparent.putalpha(gradient)
    palette = picture.quantize(64)
    contents = [saved(transparent, "PNG"), saved(transparent.convert("LA"), "PNG"), saved(picture.convert("L"), "PNG")]
    contents += [
        saved(palette, "PNG", transparency=3),
        saved(palette, "GIF"),
        saved(transparent, "WEBP", lossless=True),
    ]
    contents += [saved(picture.convert("CMYK"), quality=95), saved(picture.convert("L"), quality=95)]
    contents += [saved(picture.convert("1"), "PNG")]
    for edge in (150, 500):
        for content in contents:
            expected = opened(content).convert("RGB")  # as training does before it resizes
            if edge == 150:
                expected = expected.resize((225, 150), Image.Resampling.LANCZOS)
            packed = opened(pack_picture(content, edge, 95))
            assert difference(packed, expected) < 4, (edge, opened(content).mode)
            assert packed.mode == "L" or opened(content).mode != "L"


def test_a_damaged_picture_is_an_error():
    content = saved(photograph(200, 150), quality=95)
    with pytest.raises(OSError, match="truncated"):
        pack_picture(content[: len(content) // 2], 200, 90)
    with pytest.raises(OSError, match="cannot identify"):
        pack_picture(b"not a picture", 200, 90)
    with pytest.raises(ValueError, match="mode I;16, expected 8 bits"):
        pack_picture(saved(Image.new("I;16", (20, 20)), "PNG"), 200, 90)


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 1000))
def test_sizes(width, height, edge):
    """The shorter edge is exact, none is enlarged, and the aspect ratio stays but for the rounding to pixels."""
    size = fitted((width, height), edge)
    assert min(size) == min(width, height, edge)
    assert abs(max(size) - max(width, height) * min(size) / min(width, height)) <= 0.5


@given(st.integers(0, 2_000_000), st.integers(1, 2000))
def test_numbers_of_shards(pictures, maximum):
    count = num_shards(pictures, maximum)
    assert pictures <= count * maximum < pictures + maximum * 65
    assert count <= 8 or count % 8 == 0


def test_a_crop_of_most_of_a_packed_picture_is_decoded_at_half_its_size():
    """From crops of 448 pixels on. Smaller ones need all pixels that the picture has."""
    content = saved(photograph(667, 500), quality=90)
    config = TrainingConfig(random_crop_min_scale=0.7)
    transform, decoded = TrainingTransform(config, config.image_mean), set()
    for key in range(40):
        image = open_image({"bytes": content, "path": None})
        transform(image, (key,), 224)
        decoded.add(image.size)
    assert decoded == {(667, 500), (334, 250)}
