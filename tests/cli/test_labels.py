"""Labels are readable in any script, and do not hide small pictures."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from ifr import fonts, visualize
from ifr.cli import main
from ifr.visualize import Style, draw_detections

GREY = 100
BOX = (50, 40, 150, 90)


@pytest.fixture(autouse=True)
def _forget():
    """What is found and said once is found and said in each test."""
    fonts.fonts_for.cache_clear()
    visualize._say_left_out.cache_clear()
    yield
    fonts.fonts_for.cache_clear()


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """The only font folder: empty so far."""
    folder = tmp_path / "fonts"
    folder.mkdir()
    monkeypatch.setattr(fonts, "font_folders", lambda: [folder, tmp_path / "absent"])
    return folder


@pytest.fixture
def dejavu(installed) -> Path:
    """DejaVu Sans, which has Greek, Cyrillic and Arabic, but no Chinese, beside a damaged font."""
    matplotlib = pytest.importorskip("matplotlib")
    shutil.copy(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), installed)
    (installed / "A.ttf").write_text("damaged")
    return installed / "DejaVuSans.ttf"


DEFAULT = Style()


def draw(names, style=DEFAULT, size=(200, 300), boxes=(BOX,), ids=None, scores=None):
    found = {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "classes": torch.arange(len(boxes)) % len(names),
        "scores": torch.full((len(boxes),), 0.5) if scores is None else torch.tensor(scores),
    }
    return np.asarray(draw_detections(np.full((*size, 3), GREY, np.uint8), found, names, ids, style))


def test_the_font_that_has_the_characters_is_found(dejavu):
    found = fonts.fonts_for(("cat", "кошка", "γάτα", "قطة"))
    assert found == {"cat": None, "кошка": dejavu, "γάτα": dejavu, "قطة": dejavu}


def test_a_font_lacks_characters_that_it_draws_as_boxes(dejavu):
    font = ImageFont.truetype(str(dejavu), 16)
    assert fonts.characters_of(font, frozenset("aж猫\n ")) == frozenset("aж ")
    assert fonts.characters_of(ImageFont.load_default(16), frozenset("aж猫")) == frozenset("a")


def test_names_are_drawn_in_their_font(dejavu):
    """The label of a Russian name is the same as one written with the font itself."""
    mask = np.array(ImageFont.truetype(str(dejavu), 10).getmask("кошка 0.50")).reshape(-1)
    drawn = draw(["кошка"])[40 - 20 : 40, 50:150].astype(int)
    white = int((drawn.min(axis=2) == 255).sum())
    assert white == int((mask == 255).sum()) > 0


def test_without_a_font_the_category_id_is_drawn_and_said_once(installed, caplog):
    drawn = draw(["猫", "dog"], ids=[17, 18])
    np.testing.assert_array_equal(drawn, draw(["17", "dog"], ids=[17, 18]))
    assert (drawn != draw(["", "dog"], ids=[17, 18])).any()
    draw(["猫", "dog"], ids=[17, 18])
    (message,) = [text for text in caplog.messages if "no font" in text]
    assert "all characters of 1 class names (猫); pictures show their category ids" in message


def test_line_breaks_in_a_name_are_spaces(installed):
    np.testing.assert_array_equal(draw(["a\n b"]), draw(["a b"]))


def covered(drawn):
    return (drawn != GREY).any(axis=2).mean()


@pytest.mark.parametrize("side", [8, 28, 64, 160, 480])
@pytest.mark.parametrize("count", [1, 40])
def test_labels_leave_pictures_visible(installed, side, count, caplog):
    caplog.set_level(logging.INFO)
    random = np.random.default_rng(0)
    corners = random.integers(0, side // 2, (count, 2))
    boxes = np.concatenate([corners, corners + side // 3], axis=1).tolist()
    drawn = draw(["giraffe"], Style(line_width=0), (side, side), boxes, scores=np.linspace(0.9, 0.2, count).tolist())
    assert covered(drawn) <= (0.05 if count == 1 else 0.25)
    assert (covered(drawn) > 0) == (side >= 160)
    said = [text for text in caplog.messages if "--scale" in text]
    assert len(said) == (side < 160 or (side == 160 and count == 40))


def test_the_surest_keep_their_labels(installed):
    boxes = [(x, y, x + 80, y + 5) for y in range(30, 480, 28) for x in range(0, 480, 96)]
    scores = np.linspace(0.9, 0.1, len(boxes))
    drawn = draw(["giraffe"], Style(line_width=0), (480, 480), boxes, scores=scores.tolist())
    labelled = [bool((drawn[top - 5, left + 2] != GREY).any()) for left, top, _, _ in boxes]
    assert 0 < sum(labelled) < len(boxes)
    assert labelled == sorted(labelled, reverse=True)
    assert 0.2 < covered(drawn) <= 0.25


def test_options_for_labels(installed):
    np.testing.assert_array_equal(draw(["cat"], Style("full")), draw(["cat"]))
    above = {labels: draw(["cat"], Style(labels))[20:40] != GREY for labels in visualize.LABELS}
    assert not above["none"].any()
    widths = {labels: int(found.any(axis=(0, 2)).sum()) for labels, found in above.items()}
    assert 0 < widths["name"] < widths["score"] < widths["full"]


@pytest.mark.parametrize("width", [0, 1, 5])
def test_line_width(installed, width):
    drawn = draw(["cat"], Style("none", width))
    assert int((drawn[65, 40:100] != GREY).any(axis=1).sum()) == width


def test_scale_enlarges_picture_masks_and_boxes(installed):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[0, 5:15, 10:20] = True
    found = {"boxes": torch.tensor([[10.0, 5, 20, 15]]), "classes": torch.tensor([0]), "masks": mask}
    plain = np.asarray(draw_detections(image, found, ["cat"], style=Style("none", 0)))
    large = np.asarray(draw_detections(image, found, ["cat"], style=Style("none", 0, scale=3)))
    np.testing.assert_array_equal(large, plain.repeat(3, axis=0).repeat(3, axis=1))
    lines = np.asarray(draw_detections(image, {**found, "masks": mask & False}, ["cat"], style=Style("none", 1, 3)))
    assert (lines[15:46, 30] == lines[15, 30]).all()
    assert (lines[15, 30:61] == lines[15, 30]).all()


@pytest.mark.parametrize("settings", [{"labels": "all"}, {"line_width": -1}, {"scale": 0}])
def test_wrong_styles_raise(settings):
    with pytest.raises(ValueError, match="got"):
        Style(**settings)


def test_predict_has_the_options(experiment, pictures, tmp_path):
    out = tmp_path / "out"
    command = ["predict", str(experiment), "--device", "cpu", "--input", str(pictures), "--output", str(out)]
    weights = ["MODEL.WEIGHTS", str(experiment / "weights.pth")]
    options = ["--labels", "none", "--line-width", "0", "--scale", "2", "--format", "png", "--score", "1"]
    assert main([*command, *options, *weights]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["000000000139.png", "000000000285.png"]
    drawn, picture = (np.asarray(Image.open(folder / "000000000285.png")) for folder in (out, pictures))
    np.testing.assert_array_equal(drawn, picture.repeat(2, axis=0).repeat(2, axis=1))
    for wrong in (["--labels", "all"], ["--line-width", "-1"], ["--scale", "0"], ["--format", "gif"]):
        with pytest.raises(SystemExit):
            main([*command, *wrong, *weights])


def test_a_jpeg_too_long_is_refused_with_the_remedy(experiment, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ifr.cli.predict._LONGEST_JPEG", 50)
    Image.new("RGB", (60, 20)).save(tmp_path / "a.png")
    command = ["predict", str(experiment), "--device", "cpu", "--input", str(tmp_path / "a.png")]
    command += ["--output", str(tmp_path / "out"), "MODEL.WEIGHTS", str(experiment / "weights.pth")]
    assert main(command) == 1
    assert "remedy: use --format png" in capsys.readouterr().err
