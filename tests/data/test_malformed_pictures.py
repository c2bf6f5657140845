"""Every picture is decoded correctly or raises one error with file and image, before it takes much memory."""

import os
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from small_set import HEIGHT, PIXELS, WIDTH, image, sound_content, use_all, write

from ifr.data.check import check_dataset
from ifr.data.images import read_image
from ifr.data.transforms import ResizeShortestEdge
from ifr.errors import ImageError

GREY = np.asarray(Image.fromarray(PIXELS).convert("L"))
GREY_RGB = np.repeat(GREY[:, :, None], 3, axis=2)


def save(pixels=PIXELS, mode=None, format="PNG", **settings):
    def make(path: Path) -> None:
        picture = Image.fromarray(pixels)
        (picture if mode is None else picture.convert(mode)).save(path, format, **settings)

    return make


def orientation(number):
    exif = Image.Exif()
    exif[274] = number
    return exif


def animated(path):
    frames = [Image.fromarray(PIXELS), Image.new("RGB", (WIDTH, HEIGHT))]
    frames[0].save(path, "PNG", save_all=True, append_images=frames[1:])


def pages(path):
    frames = [Image.fromarray(PIXELS), Image.new("RGB", (9, 9))]
    frames[0].save(path, "TIFF", save_all=True, append_images=frames[1:])


def transparent(path):
    alpha = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    Image.fromarray(np.concatenate((PIXELS, alpha), axis=2)).save(path, "PNG")


def palette(path):
    picture = Image.fromarray(GREY).convert("P")
    picture.save(path, "PNG", transparency=0)


def sixteen_bits_a_colour(path):
    """Write a PNG whose 16-bit channels hold the picture in their high bytes."""
    rows = np.zeros((HEIGHT, 1 + 6 * WIDTH), np.uint8)
    rows[:, 1::2] = PIXELS.reshape(HEIGHT, -1)
    path.write_bytes(png(WIDTH, HEIGHT, bits=16, data=zlib.compress(rows.tobytes())))


def png(width, height, bits=8, data=b""):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# Name of the case: (how to write the picture, its RGB pixels).
RIGHT = {
    "PNG": (save(), PIXELS),
    "1 bit": (save(np.full((HEIGHT, WIDTH), 255, np.uint8), "1"), np.full_like(PIXELS, 255)),
    "grey": (save(GREY), GREY_RGB),
    "grey with transparency": (save(GREY, "LA"), GREY_RGB),
    "palette with transparency": (palette, GREY_RGB),
    "RGBA, all transparent": (transparent, PIXELS),
    "CMYK": (save(mode="CMYK", format="TIFF"), PIXELS),
    "16 bits a colour": (sixteen_bits_a_colour, PIXELS),
    "BMP": (save(format="BMP"), PIXELS),
    "TIFF of two pages": (pages, PIXELS),
    "animated PNG": (animated, PIXELS),
    "lossless WebP": (save(format="WEBP", lossless=True), PIXELS),
    "EXIF-rotated by 90 degrees": (save(np.rot90(PIXELS), exif=orientation(6)), PIXELS),
    "EXIF-rotated by 180 degrees": (save(np.rot90(PIXELS, 2), exif=orientation(3)), PIXELS),
    "EXIF orientation 99": (save(exif=orientation(99)), PIXELS),
    "a wrong suffix": (save(format="GIF"), np.asarray(Image.fromarray(PIXELS).convert("P").convert("RGB"))),
}


@pytest.mark.parametrize("name", RIGHT)
def test_pixels_are_correct(tmp_path, name):
    make, pixels = RIGHT[name]
    source = write(tmp_path, sound_content())
    make(source.images / "a.png")
    assert list(check_dataset(source)) == list(check_dataset(source, decode=False)) == []
    found = use_all(source)[0]["image"].numpy().transpose(1, 2, 0)[:, :, ::-1]
    if name == "a wrong suffix":  # Pillow chooses the palette of a GIF
        assert np.abs(found.astype(int) - pixels).mean() < 60
    else:
        np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 10_000), (10_000, 1)])
def test_extreme_shapes(tmp_path, height, width):
    content = sound_content()
    content["images"][0].update(height=height, width=width)
    box = [0, 0, width, height]
    content["annotations"][0].update(bbox=box, segmentation=[[0, 0, width, 0, width, height, 0, height]])
    source = write(tmp_path, content)
    save(np.full((height, width, 3), 7, np.uint8))(source.images / "a.png")
    assert list(check_dataset(source)) == []
    sample = use_all(source)[0]
    assert sample["image"].shape == (3, height, width)
    assert sample["instances"].boxes.tolist() == [box]
    resized = ResizeShortestEdge(800, 1333, "choice")(np.full((height, width, 3), 7, np.uint8))
    assert min(resized.shape[:2]) >= 1
    assert max(resized.shape[:2]) <= 1333
    assert (resized == 7).all()


@pytest.mark.parametrize(
    "name", ["ein Straßenbild.png", "図 1.png", "a  b\t.png", "-rf.png", "*.png", "a:b.png", "x/y/.png"]
)
def test_file_names_may_contain_any_character(tmp_path, name):
    content = sound_content()
    image("file_name", name)(content)
    source = write(tmp_path, content)
    (source.images / name).parent.mkdir(parents=True, exist_ok=True)
    save()(source.images / name)
    assert list(check_dataset(source)) == []
    assert use_all(source)[0]["file_name"] == str(source.images / name)


def test_symbolic_links_are_followed(tmp_path):
    """Users make subsets as folders of links; an annotation file cannot create a link."""
    source = write(tmp_path, sound_content())
    (source.images / "a.png").rename(tmp_path / "elsewhere.png")
    (source.images / "a.png").symlink_to(tmp_path / "elsewhere.png")
    assert list(check_dataset(source)) == []
    np.testing.assert_array_equal(use_all(source)[0]["image"].numpy().transpose(1, 2, 0)[:, :, ::-1], PIXELS)


def noise(path):
    random = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(random).save(path, "JPEG", quality=95)


def cut(make, share):
    def make_cut(path: Path) -> None:
        make(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return make_cut


def flipped(path):
    save()(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def link_to(target):
    def make(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return make


def folder(path):
    path.unlink()
    path.mkdir()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n%%EndComments\n(executed) (w) file closefile\n"
WRONG = {
    "an image that is missing": (lambda path: path.unlink(), r"a\.png: no such file \(image 3\)"),
    "a link to nothing": (link_to("nowhere.png"), r"a\.png: no such file"),
    "a link to itself": (link_to("a.png"), r"a\.png: "),
    "a folder": (folder, r"a\.png: a folder, not a picture"),
    "a pipe": (pipe, r"a\.png: neither a file nor a link to one"),
    "a link to an endless device": (link_to("/dev/zero"), r"a\.png: neither a file nor a link to one"),
    "zero bytes": (lambda path: path.write_bytes(b""), r"a\.png: the file is empty, not a picture"),
    "text": (lambda path: path.write_text("no picture"), r"a\.png: not a picture in a supported"),
    "PostScript, a program": (lambda path: path.write_bytes(POSTSCRIPT), r"a\.png: not a picture in a supported"),
    "a PNG cut in its header": (cut(save(), 0.004), r"a\.png: "),
    "a PNG cut short": (cut(save(), 0.6), r"a\.png: the picture is damaged"),
    "a JPEG cut in its header": (cut(noise, 0.05), r"a\.png: "),
    "a JPEG cut short": (cut(noise, 0.6), r"a\.png: the picture is damaged"),
    "a PNG with a flipped bit": (flipped, r"a\.png: the picture is damaged"),
    "a size other than the json says": (save(PIXELS[:, :-1]), r"a\.png is 59 x 40 pixels, .* say 60 x 40 \(image 3\)"),
    "a size as stored, turned by EXIF": (save(exif=orientation(6)), r"a\.png is 40 x 60 .* 60 x 40 \(its size before"),
    "a gigapixel header": (lambda path: path.write_bytes(png(40_000, 40_000)), r"a\.png: the picture is too large"),
    "a header of 2^62 pixels": (lambda path: path.write_bytes(png(2**31 - 1, 2**31 - 1)), r"a\.png: "),
    "16-bit grey": (save(np.full((HEIGHT, WIDTH), 999, np.uint16)), r"a\.png: mode I;16 is not supported; convert"),
    "32-bit floating point": (save(np.ones((HEIGHT, WIDTH), np.float32), format="TIFF"), r"mode F is not supported"),
}  # fmt: skip
BEHIND_THE_HEADER = {"a PNG cut short", "a JPEG cut short", "a PNG with a flipped bit"}


@pytest.mark.parametrize("name", WRONG)
def test_one_error_names_file_and_image(tmp_path, name):
    make, cause = WRONG[name]
    source = write(tmp_path, sound_content())
    make(source.images / "a.png")
    with pytest.raises(ImageError, match=cause) as caught:
        use_all(source)
    message = str(caught.value)
    assert message.startswith(str(source.images))
    assert message.endswith("(image 3)")
    assert "\n" not in message
    assert [finding.text for finding in check_dataset(source)] == [message]
    by_header = [finding.text for finding in check_dataset(source, decode=False)]
    assert len(by_header) == (0 if name in BEHIND_THE_HEADER else 1)
    if by_header:
        assert by_header == [message]


def test_no_picture_starts_a_program(tmp_path, monkeypatch):
    """Pillow recognizes PostScript by its content, not its suffix, and has ghostscript execute it."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **_: started.append(arguments))
    monkeypatch.setattr(subprocess, "check_call", lambda *arguments, **_: started.append(arguments))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    path = tmp_path / "a.jpg"
    path.write_bytes(POSTSCRIPT)
    with Image.open(path) as image:
        assert image.format == "EPS"
    with pytest.raises(ImageError, match="not a picture"):
        read_image(path)
    assert started == []


def test_a_gigapixel_header_with_matching_annotations_is_not_decoded(tmp_path):
    """The annotations themselves are refused, so Pillow never decodes the picture."""
    content = sound_content()
    content["images"][0].update(height=40_000, width=40_000)
    source = write(tmp_path, content)
    (source.images / "a.png").write_bytes(png(40_000, 40_000))
    (finding,) = check_dataset(source)
    assert "40000 x 40000 pixels exceed the limit of 178956970" in finding.text
