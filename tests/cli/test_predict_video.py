"""`ifr predict` on videos: the drawn clip, the results by frame, and what stops them."""

import itertools
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clips import cut, moving_square, write_clip
from PIL import Image
from pycocotools import mask as coco_mask

import ifr
from ifr.cli import main
from ifr.prediction import Model
from ifr.prediction.video import open_clip

pytest.importorskip("cv2", reason="OpenCV, of the extra demo, makes the clips")
ROOT = Path(__file__).parents[2]
# pycocotools 2.0.11 has an outdated __array__ signature; numpy 2 warns about it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def run(experiment, tmp_path, capsys):
    """Run `ifr predict` with trained weights; return the exit code and the lines on stderr."""

    def run(*arguments):
        what = [*map(str, arguments), "--score", "0.1", "--output", str(tmp_path / "out"), "--device", "cpu"]
        code = main(["predict", str(experiment), *what, "MODEL.WEIGHTS", str(experiment / "weights.pth")])
        return code, capsys.readouterr().err.splitlines()

    return run


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", moving_square(8))


def test_draws_a_clip_and_writes_its_results_by_frame(run, clip, experiment, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert run(clip) == (0, [])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip.json", "clip.mp4"]
    drawn = open_clip(tmp_path / "out/clip.mp4")
    assert (drawn.rate, drawn.count, drawn.size) == (10, 8, (64, 96))
    results = json.loads((tmp_path / "out/clip.json").read_text())
    assert any("frames a second" in message for message in caplog.messages)

    model = ifr.load(experiment / "weights.pth", experiment=experiment, device="cpu")
    expected = dict(enumerate(result for _, result in model.video(clip, score=0.1)))
    assert [entry["image_id"] for entry in results] == [i for i, found in expected.items() for _ in found]
    assert {entry["image_id"] for entry in results} == set(range(8))
    for entry, item in zip(results, [item for found in expected.values() for item in found], strict=True):
        assert entry["seconds"] == pytest.approx(entry["image_id"] / 10)
        assert entry["score"] == item.score
        np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), np.asarray(item.mask))
    plot = np.asarray(expected[3].plot(), dtype=int)[:, :, ::-1]
    plain = list(open_clip(clip))[3].image.astype(int)
    written = list(drawn)[3].image.astype(int)
    assert np.abs(written - plot).mean() < np.abs(plain - plot).mean()  # the codec loses less than the drawing adds


def test_a_folder_of_frames_is_a_video_with_a_rate(run, tmp_path):
    folder = tmp_path / "my frames"
    folder.mkdir()
    for index, frame in enumerate(moving_square(11, (51, 75))):
        Image.fromarray(frame[:, :, ::-1]).save(folder / f"{index}.png")
    assert run(folder, "--fps", 5, "--scale", 3, "--json", tmp_path / "r.json")[0] == 0
    drawn = open_clip(tmp_path / "out/my frames.mp4")
    assert (drawn.rate, drawn.count, drawn.size) == (5, 11, (154, 226))
    times = {entry["image_id"]: entry["seconds"] for entry in json.loads((tmp_path / "r.json").read_text())}
    assert times == {index: index / 5 for index in range(11)}
    assert run(folder)[0] == 0  # without a rate they are pictures
    assert (tmp_path / "out/10.jpg").exists()


def test_a_cut_clip_is_written_as_far_as_it_goes(run, clip, tmp_path):
    broken = cut(write_clip(tmp_path / "cut.avi", moving_square(30), code="MJPG"), 0.5)
    unreadable = tmp_path / "text.mkv"
    unreadable.write_text("no video")
    code, errors = run(broken, clip, unreadable)
    assert code == 1
    assert "2 of 3 videos could not be read to the end" in errors[-2]
    assert "the file states 30" in errors[-2]
    assert "text.mkv: cannot be read as a video" in errors[-2]
    assert "the frames before are written" in errors[-1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("clip.json", "clip.mp4", "cut.json", "cut.mp4")
    ]
    count = open_clip(tmp_path / "out/cut.mp4").count
    assert 0 < count < 30
    results = json.loads((tmp_path / "out/cut.json").read_text())
    assert {entry["image_id"] for entry in results} == set(range(count))


def test_an_interrupt_keeps_the_frames_before(run, clip, tmp_path, monkeypatch):
    video = Model.video

    def interrupted(self, *arguments, **options):
        yield from itertools.islice(video(self, *arguments, **options), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "video", interrupted)
    assert run(clip) == (130, [])
    assert open_clip(tmp_path / "out/clip.mp4").count == 3
    assert {entry["image_id"] for entry in json.loads((tmp_path / "out/clip.json").read_text())} == {0, 1, 2}


def test_arguments_that_do_not_fit_are_errors(run, clip, tmp_path):
    picture = tmp_path / "a.png"
    Image.fromarray(moving_square(1)[0]).save(picture)
    for arguments, text in (
        ((clip, picture), "a.png is not"),
        ((picture, "--warm-start"), "--warm-start is for videos"),
        ((clip, "--fps", "5"), "video files state their rate"),
        ((clip, "--format", "png"), "--format is for images"),
        ((clip, "--dataset", "a:b.json"), "--dataset is for images"),
        ((clip, "--warm-start", "--tile", "32"), "--warm-start and --tile"),
    ):
        code, errors = run(*arguments)
        assert code == 1
        assert text in errors[-2]
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    code, errors = run(clip.rename(tmp_path / "out/clip.mp4"))
    assert (code, "clip.mp4 would be overwritten" in errors[-2]) == (1, True)


def test_without_opencv_it_says_what_to_install(run, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    code, errors = run(clip)
    assert code == 1
    assert "videos need OpenCV" in errors[-2]
    assert "pip install 'ifr[demo]'" in errors[-1]


def test_the_warm_start_stays_within_the_tolerance(run, clip, tmp_path):
    exact = ("MODEL.ROI_MASK_HEAD.F_THRES", "60", "MODEL.ROI_MASK_HEAD.F_TOL", "1e-5")

    def results(*arguments):
        code, _ = run(clip, "--json", tmp_path / "r.json", *arguments, *exact)
        assert code == 0
        return json.loads((tmp_path / "r.json").read_text())

    cold, warm = results(), results("--warm-start")
    assert len(cold) == len(warm) > 8
    for one, other in zip(cold, warm, strict=True):
        assert (one["bbox"], one["score"]) == (other["bbox"], other["score"])
        masks = [coco_mask.decode(entry["segmentation"]) for entry in (one, other)]
        assert np.count_nonzero(masks[0] != masks[1]) <= 0.002 * masks[0].size


MEMORY = """
import sys
from ifr.cli import main
assert main(sys.argv[1:]) == 0
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_memory_does_not_grow_with_the_clip(experiment, tmp_path):
    peaks = []
    for count in (10, 60):
        clip = write_clip(tmp_path / f"{count}.mp4", moving_square(count, (480, 640)))
        arguments = ["predict", str(experiment), str(clip), "--output", str(tmp_path / "out")]
        arguments += ["--device", "cpu", "MODEL.WEIGHTS", str(experiment / "weights.pth")]
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 25  # MB; 50 frames are 46 MB, and the drawn ones as much
