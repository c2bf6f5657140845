"""A folder's pictures: every format that training reads, and a reason for each that cannot be read."""

import json
import logging
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ifr.cli import main
from ifr.cli.pictures import find_pictures
from ifr.data.images import picture_suffixes, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 32, 3), np.uint8)  # RGB
EXACT = ["a.png", "a.apng", "a.bmp", "a.dib", "a.ppm", "a.pnm", "a.tif", "a.TIFF", "a.pcx", "a.qoi", "a.tga", "a.rgb"]
LOSSY = ["a.jpg", "a.JPEG", "a.jfif", "a.gif", "a.webp", "a.avif", "a.jp2", "a.j2k"]


@pytest.mark.parametrize("name", [*EXACT, *LOSSY])
def test_the_folder_has_every_format_that_training_reads(tmp_path, name):
    Image.fromarray(PIXELS).save(tmp_path / name)
    assert find_pictures([str(tmp_path)]) == [tmp_path / name]
    found = read_image(tmp_path / name)
    assert found.shape == PIXELS.shape
    if name in EXACT:
        np.testing.assert_array_equal(found, PIXELS[:, :, ::-1])


def test_suffixes_are_those_of_bitmap_formats():
    assert {".jpg", ".png", ".pgm", ".avif", ".jp2", ".ico", ".mpo"} <= picture_suffixes()
    assert not {".eps", ".pdf", ".mpg", ".txt"} & picture_suffixes()


def test_what_is_not_named_as_a_picture_is_counted_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    for name in ("._a.png", *(f"{number}.txt" for number in range(6)), "no suffix"):
        (tmp_path / name).write_text("no picture")
    (tmp_path / "deep").mkdir()
    assert find_pictures([str(tmp_path)]) == [tmp_path / "a.png"]
    (message,) = caplog.messages
    assert "left out 8 files that are not named as images (._a.png, 0.txt, 1.txt, 2.txt, 3.txt and 3 more)" in message
    assert "a quoted glob as --input takes any" in message


def test_every_unreadable_picture_is_named_with_its_reason(experiment, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(PIXELS).save(folder / "good.gif")
    Image.fromarray(np.full((4, 4), 999, np.uint16)).save(folder / "deep.png")
    whole = BytesIO()
    Image.fromarray(PIXELS).save(whole, "PNG")
    (folder / "cut.png").write_bytes(whole.getvalue()[:400])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    (folder / "drawing.svg").write_text("<svg/>")
    (folder / "link.png").symlink_to("nowhere.png")
    (folder / "notes.txt").write_text("no picture")
    command = ["predict", str(experiment), "--device", "cpu", "--input", str(folder), "--output", str(tmp_path / "out")]
    command += ["--json", str(tmp_path / "r.json"), "MODEL.WEIGHTS", str(experiment / "weights.pth")]
    assert main(command) == 1
    error, remedy = capsys.readouterr().err.splitlines()[-2:]
    assert "6 of 7 images could not be read or drawn" in error
    for reason in (
        "cut.png: the picture is damaged (image file is truncated)",
        "deep.png: mode I;16 is not supported; convert the picture to 8 bits per channel, or set INPUT.INTENSITY",
        "drawing.svg: not a picture in a supported format",
        "empty.jpg: the file is empty, not a picture",
        "link.png: no such file",
        "phone.heic: not a picture in a supported format",
    ):
        assert f"{folder}/{reason}" in error
    assert "notes.txt" not in error
    assert "results of the others are written" in remedy
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.jpg"]
    assert {result["file_name"] for result in json.loads((tmp_path / "r.json").read_text())} <= {"good.gif"}
