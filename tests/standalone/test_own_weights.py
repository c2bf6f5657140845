"""What torch.save(model.state_dict()) writes loads under any wrapper; what settings give is never loaded over them."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from official_outputs import EXPERIMENTS, ROOT
from torch import Tensor, nn

from ifr.checkpoints import CheckpointError, load_weights, read_checkpoint, save_checkpoint
from ifr.checkpoints.save import published_weights
from ifr.experiment import load_experiment
from ifr.processes.workers import Worker
from ifr.runs.weights import load_trained, start_from

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.FPN.NORM": "BN",
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
}
RATIOS = {"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.2, 0.5, 1.0, 2.0, 5.0]]}
SIZES = {"MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32], [64], [128], [256]]}
Content = Callable[[nn.Module], dict[str, Any]]


def build(seed: int, settings: dict[str, Any] | None = None, experiment: str = EXPERIMENTS[0]) -> tuple[nn.Module, Any]:
    """A detector with random weights and statistics, and its config."""
    torch.manual_seed(seed)
    loaded = load_experiment(ROOT / experiment)
    pairs = {**SMALL, **(settings or {})}
    loaded.config.merge_from_list([part for pair in pairs.items() for part in pair])
    model = loaded.build_model(loaded.config)
    for name, value in model.named_buffers():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    return model, loaded.config


def values(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def load_to_train(model: nn.Module, config: Any, path: Path) -> None:
    config.merge_from_list(["MODEL.WEIGHTS", str(path)])
    start_from(model, config, None, Worker())


def load_to_test(model: nn.Module, config: Any, path: Path) -> None:
    load_trained(model, read_checkpoint(path), config)


def assert_same(model: nn.Module, want: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == want.keys()
    for key, value in want.items():
        assert torch.equal(state[key], value), key


def compiled_parts(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model of which parts were compiled or made data-parallel, as they would name it."""
    inner = {"backbone.": "backbone._orig_mod.", "roi_heads.mask_head.": "roi_heads.mask_head.module._orig_mod."}
    state = model.state_dict()
    for plain, wrapped in inner.items():
        state = {key.replace(plain, wrapped, 1) if key.startswith(plain) else key: state[key] for key in state}
    return state


def prefixed(prefix: str) -> Content:
    return lambda model: {f"{prefix}{key}": value for key, value in model.state_dict().items()}


FORMS: dict[str, Content] = {
    "own names": nn.Module.state_dict,
    "published names": published_weights,
    "data parallel": lambda model: nn.DataParallel(model).state_dict(),
    "compiled": lambda model: torch.compile(model).state_dict(),
    "compiled data parallel": lambda model: torch.compile(nn.DataParallel(model)).state_dict(),
    "many": prefixed("module._orig_mod.module._orig_mod."),
    "compiled parts": compiled_parts,
    "published names, data parallel": lambda m: {f"module.{k}": v for k, v in published_weights(m).items()},
    "model_state_dict": lambda model: {"epoch": 3, "model_state_dict": model.state_dict()},
    "state_dict": lambda model: {"epoch": 3, "state_dict": prefixed("_orig_mod.module.")(model)},
    "averaged": lambda model: torch.optim.swa_utils.AveragedModel(model).state_dict(),
}


@pytest.mark.parametrize(
    ("form", "experiment"),
    [*((form, EXPERIMENTS[0]) for form in FORMS), *(("own names", name) for name in EXPERIMENTS[1:])],
)
def test_every_form_of_the_weights_loads(tmp_path: Path, form: str, experiment: str) -> None:
    trained, _ = build(0, experiment=experiment)
    torch.save(FORMS[form](trained), tmp_path / "w.pth")
    model, _ = build(1, experiment=experiment)
    report = load_weights(model, tmp_path / "w.pth", allow_backbone_only=False)
    assert_same(model, values(trained))
    assert (report.missing, report.mismatched) == ((), ())
    assert report.unexpected == (("n_averaged",) if form == "averaged" else ())


@pytest.mark.parametrize("wrap", [torch.compile, lambda m: torch.compile(nn.DataParallel(m)), nn.DataParallel])
def test_wrapped_models_load_and_save(tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    trained, _ = build(0)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    model, _ = build(1)
    load_weights(wrap(model), tmp_path / "w.pth", allow_backbone_only=False)
    assert_same(model, values(trained))
    save_checkpoint(tmp_path / "saved.pth", wrap(trained))
    saved = torch.load(tmp_path / "saved.pth", weights_only=True)["model"]
    assert saved.keys() == published_weights(trained).keys()


def test_a_model_with_compiled_parts_loads_and_saves(tmp_path: Path) -> None:
    trained, _ = build(0)
    save_checkpoint(tmp_path / "w.pth", trained)
    model, _ = build(1)
    plain = list(model.state_dict())
    model.backbone = torch.compile(model.backbone)
    model.roi_heads.mask_head = torch.compile(model.roi_heads.mask_head)
    load_weights(model, tmp_path / "w.pth", allow_backbone_only=False)
    want = values(trained)
    assert all(torch.equal(value, want[key]) for key, value in zip(plain, model.state_dict().values(), strict=True))
    assert published_weights(model).keys() == published_weights(trained).keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (prefixed("detector."), "its names begin with 'detector.', which"),
        (prefixed("student.net."), "its names begin with 'student.net.', which"),
        (
            lambda model: {**prefixed("teacher.")(model), "step": torch.ones(1)},
            "its names begin with 'teacher.', which",
        ),
        (lambda model: {f"x.{k}": v for k, v in published_weights(model).items()}, "its names begin with 'x.', which"),
        (lambda model: model.backbone.state_dict(), "its names lack 'backbone.', with which"),
    ],
)
def test_a_wrong_prefix_is_named(tmp_path: Path, content: Content, message: str) -> None:
    model, _ = build(0)
    before = values(model)
    torch.save(content(build(1)[0]), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=f"w.pth: {message}"):
        load_weights(model, tmp_path / "w.pth")
    assert_same(model, before)


def saved(path: Path, **others: Tensor) -> dict[str, Tensor]:
    """Write the published weights of a trained model and what else is given; return its state dict."""
    trained, _ = build(0)
    torch.save({"model": {**published_weights(trained), **others}}, path)
    return values(trained)


def cell_anchors(sizes: list[float], ratios: list[float]) -> list[Tensor]:
    """Of each level: width * height = size^2 and height / width = ratio, about the origin."""
    size, ratio = torch.tensor(sizes)[:, None], torch.tensor(ratios)
    corner = torch.stack([size / ratio.sqrt(), size * ratio.sqrt()], dim=-1) / 2
    return list(torch.cat([-corner, corner], dim=-1))


def test_anchors_are_those_of_the_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    want = saved(tmp_path / "w.pth")
    for load in (load_to_train, load_to_test):
        caplog.clear()
        model, config = build(1, SIZES)
        load(model, config, tmp_path / "w.pth")
        for level, anchors in enumerate(cell_anchors([16, 32, 64, 128, 256], [0.5, 1.0, 2.0])):
            key = f"proposal_generator.anchor_generator.cell_anchors.{level}"
            torch.testing.assert_close(model.state_dict()[key], anchors)
            want[key] = model.state_dict()[key]
        assert_same(model, want)
        assert "5 values that follow from MODEL.ANCHOR_GENERATOR are not loaded" in caplog.text


def test_training_with_another_number_of_anchors_starts_with_a_new_rpn_predictor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    want = saved(tmp_path / "w.pth")
    model, config = build(1, RATIOS)
    before = values(model)
    load_to_train(model, config, tmp_path / "w.pth")
    own = [key for key in want if "objectness" in key or "anchor_deltas" in key or "cell_anchors" in key]
    assert len(own) == 4 + 5
    assert_same(model, {**want, **{key: before[key] for key in own}})
    assert "4 of another shape, which keep their initial values: proposal_generator.rpn_head" in caplog.text
    assert "follow from MODEL.ANCHOR_GENERATOR" in caplog.text
    anchors = cell_anchors([32, 64, 128, 256, 512], [0.2, 0.5, 1.0, 2.0, 5.0])
    found = model.state_dict()["proposal_generator.anchor_generator.cell_anchors.4"]
    torch.testing.assert_close(found, anchors[4])


def test_testing_with_another_number_of_anchors_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path / "w.pth")
    model, config = build(1, RATIOS)
    before = values(model)
    with pytest.raises(CheckpointError, match=r"objectness_logits\.bias is \(3,\) .*, the model has \(5,\)") as caught:
        load_to_test(model, config, tmp_path / "w.pth")
    assert "set MODEL.ANCHOR_GENERATOR as in its training" in caught.value.remedy
    assert_same(model, before)


def test_pixel_statistics_are_those_of_the_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    same, other = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1), torch.full((3, 1, 1), 58.0)
    saved(tmp_path / "w.pth", pixel_mean=same, pixel_std=other)
    model, config = build(1)
    load_to_test(model, config, tmp_path / "w.pth")
    assert model.pixel_std.flatten().tolist() == [1, 1, 1]
    assert "1 values that follow from MODEL.PIXEL_STD are not loaded" in caplog.text
    caplog.clear()
    saved(tmp_path / "w.pth", pixel_mean=same, pixel_std=torch.ones(3, 1, 1))
    load_to_test(model, config, tmp_path / "w.pth")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
