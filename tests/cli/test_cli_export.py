"""`ifr export`: the file computes what the model computes, or is not written."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ifr.cli.export as export
from ifr.cli import main
from ifr.errors import UserError
from ifr.experiment import build_model, load_experiment
from ifr.hosts.standalone.export import ExportedDetector, model_inputs
from ifr.hosts.standalone.predictor import Predictor

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
_RESIZE = "[('ResizeShortestEdge', {'short_edge_length': 80, 'max_size': 128, 'sample_style': 'choice'})]"
FEW = ["TEST.DETECTIONS_PER_IMAGE", "6", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.2"]
FEW += ["INPUT.AUG.TEST_PIPELINES", _RESIZE]


def run(experiment: Path, output: Path, pictures: Path, *arguments: str) -> int:
    weights = ["MODEL.WEIGHTS", str(experiment / "weights.pth")]
    return main(["export", str(experiment), str(output), "--input", str(pictures), *arguments, *FEW, *weights])


def model_of(experiment: Path, *overrides: str) -> Any:
    return build_model(experiment, weights=experiment / "weights.pth", device="cpu", overrides=[*FEW, *overrides])


def shown(caplog: pytest.LogCaptureFixture) -> dict[str, float]:
    (line,) = re.findall(r"largest differences: (.*);", caplog.text)
    return {name: float(value) for name, value in (part.split() for part in line.split(", "))}


def test_an_onnx_file_and_the_page_draw_what_predict_draws(
    experiment: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="pip install 'ifr[export]'")
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        assert run(experiment, tmp_path / "model.onnx", pictures, "--dynamic") == 0
    assert all(0 <= value < 1e-3 for value in shown(caplog).values())
    source = pictures / "000000000285.png"
    with Image.open(source) as image:
        image.convert("RGB").save("photo.png")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)[:2])
    names = {"800": "80", "1333": "128", "photo.jpg": "photo.png", "score >= 0.5": "score > 0"}
    for text, ours in names.items():
        assert text in code
        code = code.replace(text, ours)
    page: dict[str, Any] = {}
    exec(code, page)
    pixels = np.asarray(Image.open(source).convert("RGB"))
    config = load_experiment(experiment).config
    config.merge_from_list(FEW)
    found = Predictor(model_of(experiment), config)(pixels[:, :, ::-1])
    count = len(found["scores"])
    assert 0 < count == (page["scores"] > 0).sum()
    np.testing.assert_allclose(page["boxes"][:count], found["boxes"], atol=0.01)
    np.testing.assert_array_equal(page["classes"][:count], found["classes"])
    touched = found["masks"].any(dim=0).numpy()
    changed = (np.asarray(Image.open("drawn.png")) != pixels).any(axis=2)
    assert touched.mean() > 0.01
    assert (changed != touched).mean() < 0.01  # a colour may stay by chance; probabilities of 0.5 round either way
    metadata = page["session"].get_modelmeta().custom_metadata_map
    assert json.loads(metadata["ifr.detections"]) == 6


def test_a_pt2_file_of_one_size(
    experiment: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "model.pt2"
    with caplog.at_level(logging.INFO):
        half = ("MODEL.ROI_MASK_HEAD.SOLVE_DTYPE", "bfloat16")
        assert run(experiment, output, pictures, "MODEL.ROI_MASK_HEAD.SOLVER", "anderson", *half) == 0
    assert "the file is in float32" in caplog.text
    assert all(0 <= value < 1e-4 for value in shown(caplog).values())
    assert "images of 3 x 128 x 128" in caplog.text
    image, size = model_inputs(np.full((70, 90, 3), 128, np.uint8), (128, 128))
    boxes, *_ = torch.export.load(output).module()(image, size)
    assert boxes.shape == (6, 4)


def test_the_padded_detections_are_the_models(experiment: Path) -> None:
    model = model_of(experiment, "TEST.DETECTIONS_PER_IMAGE", "40")
    pixels = torch.randint(0, 256, (3, 90, 150), dtype=torch.uint8)
    (found,) = model([{"image": pixels}])
    inputs = model_inputs(pixels.permute(1, 2, 0).numpy(), (96, 160))
    with torch.no_grad():
        boxes, scores, classes, masks = ExportedDetector(model)(*inputs)
    count = len(found["scores"])
    assert 0 < count < 40
    torch.testing.assert_close(boxes[:count], found["boxes"], rtol=0, atol=1e-4)
    torch.testing.assert_close(scores[:count], found["scores"], rtol=0, atol=1e-6)
    assert classes[:count].tolist() == found["classes"].tolist()
    assert not any(values[count:].any() for values in (boxes, scores, classes, masks))


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_tracing_is_refused(experiment: Path) -> None:
    model = model_of(experiment)
    inputs = model_inputs(np.zeros((96, 96, 3), np.uint8), (96, 96))
    for traced, example in ((ExportedDetector(model), inputs), (model, ([{"image": inputs[0]}],))):
        with pytest.raises(RuntimeError, match=r"this detector cannot be traced .* use torch\.export\.export"):
            torch.jit.trace(traced, example)


def test_a_file_that_differs_is_refused(experiment: Path, caplog: pytest.LogCaptureFixture) -> None:
    detector = ExportedDetector(model_of(experiment))
    inputs = [model_inputs(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8), (96, 96))]

    def blurred(image: torch.Tensor, size: torch.Tensor) -> Any:
        boxes, scores, classes, masks = detector(image, size)
        return boxes, scores, classes, masks * 0.9

    with pytest.raises(UserError, match=r"does not compute what the model computes on 1 of 1 pictures"):
        export._verify([Path("a.png")], inputs, detector, blurred)
    export._verify([Path("a.png")], inputs, detector, detector)


def test_detections_may_change_places_but_not_go_missing() -> None:
    wanted = torch.rand(3, 4), torch.tensor((0.5, 0.5, 0.4)), torch.tensor((1, 0, 1)), torch.rand(3, 28, 28)
    swapped = [values[[1, 0, 2]] for values in wanted]
    assert max(export._differences(wanted, swapped).values()) == 0
    fewer = [*swapped[:1], torch.tensor((0.5, 0.5, 0.0)), *swapped[2:]]
    assert set(export._differences(wanted, fewer).values()) == {torch.inf}
    relabelled = [*swapped[:2], torch.tensor((1, 1, 1)), swapped[3]]
    assert set(export._differences(wanted, relabelled).values()) == {torch.inf}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.999", "--format", "pt2"), "finds nothing in these pictures"),
        (("--format", "pt2", "--opset", "18"), "--opset 18 is given for a pt2 file"),
        (("MODEL.ROI_MASK_HEAD.SOLVER", "broyden-published", "--format", "pt2"), "norm of all regions"),
        (("TEST.DETECTIONS_PER_IMAGE", "-1", "--format", "pt2"), "TEST.DETECTIONS_PER_IMAGE of at least 1"),
        ((), "unknown extension"),
    ],
)
def test_what_cannot_be_exported_leaves_the_older_file(
    experiment: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    output = tmp_path / "model.file"
    output.write_text("older")
    weights = ["MODEL.WEIGHTS", str(experiment / "weights.pth")]
    assert main(["export", str(experiment), str(output), "--input", str(pictures), *weights, *arguments]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "remedy: " in said
    assert output.read_text() == "older"
    assert list(tmp_path.glob(".*")) == []


def test_missing_packages_are_named(
    experiment: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = export.importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    assert run(experiment, tmp_path / "model.onnx", pictures) == 1
    assert "pip install 'ifr[export]'" in capsys.readouterr().err
