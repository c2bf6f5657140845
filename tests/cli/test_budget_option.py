"""--budget of `ifr test` and `ifr predict`."""

import json
from pathlib import Path

import pytest

from ifr.checkpoints import save_checkpoint
from ifr.cli import main
from ifr.experiment import build_model

KEY = "MODEL.ROI_MASK_HEAD.BUDGET"

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # pycocotools 2.0.11 has an outdated __array__ signature; numpy 2 warns about it.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.mark.parametrize("given", [["--budget", "2"], [KEY, "2"]], ids=["option", "setting"])
def test_predict(
    given: list[str], experiment: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    common = ["predict", str(experiment), "--input", str(pictures), "--output", str(tmp_path), "--device", "cpu"]
    common += ["--score", "0", "MODEL.WEIGHTS", str(experiment / "weights.pth")]
    with caplog.at_level("INFO"):
        assert main([*common, *given]) == 0
    assert caplog.text.count("for a mask: 2 (MODEL.ROI_MASK_HEAD.BUDGET)") == 1


def test_test(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = tmp_path / "weights.pth"
    save_checkpoint(weights, build_model(tiny, device="cpu"))
    found = {}
    for name, given in {"option": ["--budget", "1"], "setting": [KEY, "1"], "none": []}.items():
        caplog.clear()
        with caplog.at_level("INFO"):
            settings = ["MODEL.WEIGHTS", str(weights), "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / name)]
            threshold = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
            assert main(["test", str(tiny), *given, *settings, *threshold]) == 0
        assert caplog.text.count("for a mask: 1 (MODEL.ROI_MASK_HEAD.BUDGET)") == (name != "none")
        found[name] = json.loads((tmp_path / name / "inference" / "coco_instances_results.json").read_text())
    assert found["option"] == found["setting"] != found["none"]


@pytest.mark.parametrize("command", ["test", "predict"])
def test_misuse(command: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--input", str(tmp_path), "--output", str(tmp_path)] if command == "predict" else []
    (tmp_path / "picture.png").touch()
    assert main([command, str(tiny), *where, "--budget", "3", KEY, "4"]) == 1
    assert "--budget 3 and MODEL.ROI_MASK_HEAD.BUDGET are both given" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([command, str(tiny), *where, "--budget", "0"])
    assert "expected a whole number of at least 1, got 0" in capsys.readouterr().err
