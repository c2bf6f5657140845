"""Pictures are read upright, in BGR with 8 bits per channel, or raise one clear error."""

import numpy as np
import pytest
from PIL import Image

from ifr.data.images import check_header, read_image
from ifr.errors import ImageError

_PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10


def test_channels_are_bgr(tmp_path):
    Image.fromarray(_PIXELS).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), _PIXELS[:, :, ::-1])


# How a viewer transforms the stored rows and columns (EXIF 2.3, tag 274).
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: x.transpose(1, 0, 2)[:, ::-1]),
        (7, lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda x: x.transpose(1, 0, 2)[::-1]),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(_PIXELS).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright(_PIXELS)[:, :, ::-1])


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_a_tiff_is_turned_too(tmp_path, mode, compression):
    """Pillow 13.0 mixes up the pixels of uncompressed grey ones."""
    stored = Image.fromarray(_PIXELS).convert(mode)
    exif = Image.Exif()
    exif[274] = 6
    stored.save(tmp_path / "a.tif", exif=exif, compression=compression)
    upright = np.asarray(stored.convert("RGB")).transpose(1, 0, 2)[:, ::-1, ::-1]
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", (3, 2)), upright)
    check_header(tmp_path / "a.tif", (3, 2))
    with pytest.raises(ImageError, match="2 x 3 pixels, but the annotations say 3 x 2 \\(its size before EXIF"):
        check_header(tmp_path / "a.tif", (2, 3))


def test_damaged_exif_only_warns(tmp_path, caplog):
    Image.fromarray(_PIXELS).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), _PIXELS[:, :, ::-1])
    assert "EXIF" in caplog.text


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "CMYK", "YCbCr"])
def test_other_modes_become_three_channels(tmp_path, mode):
    Image.fromarray(_PIXELS).convert(mode).save(tmp_path / "a.tiff", compression="packbits")
    image = read_image(tmp_path / "a.tiff")
    assert (image.shape, image.dtype) == ((2, 3, 3), np.uint8)


def test_palettes_with_transparency(tmp_path):
    image = Image.fromarray(_PIXELS).convert("P")
    image.save(tmp_path / "a.png", transparency=b"\0\x80\xff")
    assert read_image(tmp_path / "a.png").shape == (2, 3, 3)


def _cut(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:900])


@pytest.mark.parametrize(
    ("write", "cause"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("text"), "not a picture"),
        (lambda path: path.mkdir(), "a folder"),
        (_cut, "damaged"),
        (lambda path: Image.fromarray(np.zeros((2, 2), np.uint16)).save(path, "PNG"), "8 bits"),
    ],
)
def test_errors_name_the_unreadable_file(tmp_path, write, cause):
    path = tmp_path / "a.jpg"
    write(path)
    with pytest.raises(ImageError, match=cause) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_running_out_of_memory_is_not_reported_as_damage(tmp_path, monkeypatch):
    def convert(*_):
        raise MemoryError

    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    monkeypatch.setattr("ifr.data.images._rgb", convert)
    with pytest.raises(MemoryError, match=r"a\.png: not enough memory"):
        read_image(tmp_path / "a.png")


def test_decompression_bombs_raise(tmp_path, monkeypatch):
    Image.fromarray(_PIXELS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(ImageError, match="too large"):
        read_image(tmp_path / "a.png")
