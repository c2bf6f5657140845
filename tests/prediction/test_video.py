"""Clips, and `Model.video`."""

import logging
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clips import cut, moving_square, slow_down, turn, write_clip
from PIL import Image

from ifr.errors import ImageError, RunError
from ifr.prediction import Model
from ifr.prediction.video import ClipWriter, open_clip

pytest.importorskip("cv2", reason="OpenCV, of the extra demo, makes the clips")

LOW = 0.1


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", moving_square(12))


def test_frames_have_their_times_and_pixels(clip: Path) -> None:
    opened = open_clip(clip)
    assert (opened.rate, opened.count, opened.size) == (10, 12, (64, 96))
    frames = list(opened)
    assert [frame.index for frame in frames] == list(range(12))
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(12) / 10)
    for frame, expected in zip(frames, moving_square(12), strict=True):
        assert np.abs(frame.image.astype(int) - expected).mean() < 15  # of the codec
        assert frame.image[30, expected[30, :, 2].argmax() + 9, 2] > 200  # the square is red and where it was drawn
    assert [frame.index for frame in opened] == list(range(12))  # again


def test_a_model_takes_a_clip_frame_by_frame(model: Model, clip: Path) -> None:
    found = list(model.video(clip, score=LOW))
    assert [frame.index for frame, _ in found] == list(range(12))
    for frame, result in found[::5]:
        expected = model(frame.image, bgr=True, score=LOW)
        assert len(result) == len(expected) > 0
        np.testing.assert_array_equal(result.boxes, expected.boxes)
        assert result.image is frame.image


def test_frames_are_read_when_they_are_asked_for(model: Model, clip: Path) -> None:
    frames = model.video(clip)
    next(frames)
    clip.write_bytes(b"")
    assert next(frames)[0].index == 1


def test_a_folder_of_frames_is_ordered_by_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 100):
        Image.fromarray(np.full((8, 12, 3), number, np.uint8)).save(tmp_path / f"frame {number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    opened = open_clip(tmp_path, rate=4)
    assert (opened.rate, opened.count, opened.size) == (4, 3, (8, 12))
    assert [(frame.seconds, int(frame.image[0, 0, 0])) for frame in opened] == [(0, 9), (0.25, 10), (0.5, 100)]
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "frame 11.png")
    with pytest.raises(ImageError, match=r"frame 11\.png is .*8"):
        list(open_clip(tmp_path))


@pytest.mark.parametrize(("name", "code"), [("cut.avi", "MJPG"), ("cut.mkv", "MJPG")])
def test_the_frames_before_a_cut_are_read_and_the_fault_is_said(tmp_path: Path, name: str, code: str) -> None:
    path = cut(write_clip(tmp_path / name, moving_square(40), code=code), 0.5)
    frames = []

    def read() -> None:
        for frame in open_clip(path):
            frames.append(frame.index)

    with pytest.raises(ImageError, match=r"cut\.\w+: \d+ frames could be read; the file states 40") as caught:
        read()
    assert 0 < len(frames) < 40
    assert "ffmpeg" in caught.value.remedy


def test_what_is_no_video_is_said(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"clip\.mp4: cannot be read as a video"):
        open_clip(cut(clip, 0.5))  # the index of an mp4 file is at its end
    with pytest.raises(ImageError, match=r"nothing\.mp4: no such file"):
        open_clip(tmp_path / "nothing.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="has no pictures"):
        open_clip(tmp_path / "empty")
    with pytest.raises(ValueError, match="states its rate"):
        open_clip(clip, rate=25)


def test_rotation_is_applied(clip: Path) -> None:
    before = [frame.image for frame in open_clip(clip)]
    opened = open_clip(turn(clip))
    assert opened.size == (96, 64)
    for frame, image in zip(opened, before, strict=True):
        np.testing.assert_array_equal(frame.image, np.rot90(image, -1))


def test_a_variable_rate_is_said_and_times_are_exact(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    seconds = [frame.seconds for frame in open_clip(slow_down(clip, 4))]
    np.testing.assert_allclose(seconds, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.1, 1.4, 1.7], atol=1e-3)
    (message,) = caplog.messages
    assert "variable rate" in message


@pytest.mark.parametrize("size", [(64, 96), (63, 97)])
def test_a_written_clip_can_be_read(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = moving_square(6, size)
    with ClipWriter(tmp_path / "new.mp4", 12.5) as writer:
        for frame in frames:
            writer.write(frame)
        assert not (tmp_path / "new.mp4").exists()
    opened = open_clip(tmp_path / "new.mp4")
    assert (opened.rate, opened.count, opened.size) == (12.5, 6, (64, 96 if size[1] == 96 else 98))
    for frame, expected in zip(opened, frames, strict=True):
        assert np.abs(frame.image[: size[0], : size[1]].astype(int) - expected).mean() < 15
    assert [path.name for path in tmp_path.iterdir()] == ["new.mp4"]


def test_an_error_leaves_no_partial_clip(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broadcast"), ClipWriter(tmp_path / "new.mp4", 10) as writer:
        list(map(writer.write, [moving_square(1)[0], np.zeros((2, 2), np.uint8)]))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can grow over 2000 bytes."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.usefixtures("full_disk")
def test_frames_that_the_disk_does_not_take_are_an_error(tmp_path: Path) -> None:
    written = r"new\.mp4: \d+ of 30 frames were written"
    with pytest.raises(OSError, match=written), ClipWriter(tmp_path / "new.mp4", 10) as writer:
        list(map(writer.write, moving_square(30)))
    assert list(tmp_path.iterdir()) == []


def test_without_opencv_the_error_says_what_to_install(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"pip install 'ifr\[demo\]'"):
        open_clip(clip)


def test_a_model_without_an_equilibrium_has_no_warm_start(model: Model, clip: Path) -> None:
    refinement = model.network.roi_heads.mask_head.refinement
    refinement.as_published = True
    try:
        with pytest.raises(RunError, match="broyden-published"):
            model.video(clip, warm_start=True)
    finally:
        refinement.as_published = False
    with pytest.raises(ValueError, match="tile"):
        model.video(clip, warm_start=True, tile=(32, 8))


@pytest.mark.parametrize("rate", [104.7123, 236.043, 1000.5])
def test_odd_rates_can_be_written(tmp_path: Path, rate: float) -> None:
    """MPEG-4 counts time in at most 65535 parts of a second; a name with a colon is no protocol."""
    path = tmp_path / "12:30.mp4"
    with ClipWriter(path, rate) as writer:
        for _ in range(3):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    assert open_clip(path).rate == pytest.approx(rate, rel=1e-3)
