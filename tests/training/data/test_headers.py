"""Headers of image files."""

import io

import pytest
from PIL import ExifTags, Image
from rednet.training.data.headers import read_header
from rednet.training.data.transforms import open_image


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "TIFF", "WEBP", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_headers_have_the_size_of_what_is_read(suffix, orientation):
    exif, content = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (30, 20)).save(content, suffix, exif=exif)
    picture = {"bytes": content.getvalue(), "path": None}
    header = read_header(picture)
    assert header.size == open_image(picture).size and header.stored_size == (30, 20)
    assert header.has_hidden_rotation is (orientation in (2, 3, 4))
