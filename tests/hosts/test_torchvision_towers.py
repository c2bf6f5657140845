"""The refinement as the towers of torchvision's RetinaNet and FCOS."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision_models import LEVELS, fcos, mask_rcnn, pictures, retinanet

from ifr.checkpoints import load_weights, read_checkpoint, save_checkpoint
from ifr.contraction import Contraction
from ifr.hosts.torchvision import follow_training, replace_towers
from ifr.refine import Explicit, Implicit, Refiner
from ifr.solvers import GMRES, Broyden, Solution, Status

Dense = Callable[[], RetinaNet | FCOS]
each_detector = pytest.mark.parametrize("build", [retinanet, fcos])


def implicit(max_steps: int = 8, **settings: object) -> Implicit:
    return Implicit(Broyden(max_steps), GMRES(max_steps), **settings)


@each_detector
@pytest.mark.parametrize("phase", ["explicit", "implicit"])
def test_training_lowers_the_loss(build: Dense, phase: str) -> None:
    model, (images, targets) = build(), pictures(2)
    solves: list[str] = []
    towers = replace_towers(model, implicit(observe=lambda name, solution: solves.append(name)))
    follow_training(model.head, explicit_iterations=100 if phase == "explicit" else 0, iteration=lambda: 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        for tower in towers:
            for name, parameter in tower.named_parameters():
                assert parameter.grad.isfinite().all(), name
                assert parameter.grad.any(), name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses
    wanted = {} if phase == "explicit" else {"forward": 2 * len(LEVELS) * 12, "backward": 2 * len(LEVELS) * 12}
    assert {name: solves.count(name) for name in solves} == wanted


@each_detector
def test_every_image_and_level_is_solved_on_its_own(build: Dense) -> None:
    """The outputs at a level depend on no other image or level, whose features may be NaN."""
    model = build()
    solved: list[Solution] = []
    replace_towers(model, implicit(30, observe=lambda _, solution: solved.append(solution)))
    model = model.double().eval()
    features = [torch.randn(3, 32, *size, dtype=torch.float64) for size in ((16, 12), (8, 6), (4, 3))]
    with torch.no_grad():
        together = model.head(features)
        assert [len(solution.status) for solution in solved] == [3] * 6
        for image in range(3):
            alone = model.head([level[image : image + 1] for level in features])
            for name, value in alone.items():
                torch.testing.assert_close(value[0], together[name][image], rtol=0, atol=1e-9)
        damaged = [level.clone() for level in features]
        damaged[1][2] = torch.nan
        solved.clear()
        for name, value in model.head(damaged).items():
            anchors = value.shape[1] // (16 * 12 + 8 * 6 + 4 * 3)
            level = slice(16 * 12 * anchors, (16 * 12 + 8 * 6) * anchors)
            sound = torch.ones(value.shape[:2], dtype=torch.bool)
            sound[2, level] = False
            assert torch.equal(value[sound], together[name][sound]), name
    failed = [(solution.status == Status.NONFINITE).tolist() for solution in solved]
    assert failed == [[False] * 3, [False, False, True], [False] * 3] * 2  # levels of each head


@each_detector
def test_parameters_have_the_published_form(build: Dense, tmp_path: Path) -> None:
    model = build()
    before = {key: value.clone() for key, value in model.state_dict().items() if ".conv." not in key}
    towers = replace_towers(model, implicit())
    state = model.state_dict()
    heads = ("head.classification_head.conv.", "head.regression_head.conv.")
    assert state.keys() - before.keys() == {
        f"{head}{key}" for head in heads for key in Refiner(8, implicit()).state_dict()
    }
    assert all(torch.equal(state[key], value) for key, value in before.items())
    assert towers[0].repeat_block is not towers[1].repeat_block
    save_checkpoint(tmp_path / "dense.pth", model)
    for head in heads:  # with the published code's second registration
        assert f"{head}deq.func.conv1.weight_g" in read_checkpoint(tmp_path / "dense.pth").weights
    other = build()
    replace_towers(other, implicit())
    report = load_weights(other, tmp_path / "dense.pth")
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


def test_detections_come_out(tmp_path: Path) -> None:
    images, _ = pictures(2)
    for build in (retinanet, fcos):
        model = build().eval()
        model.score_thresh = 0.0
        replace_towers(model, Explicit())
        with torch.no_grad():
            found: list[dict[str, Tensor]] = model(images)
        assert [found[i]["boxes"].shape[1] for i in range(2)] == [4, 4]
        assert all(len(each["scores"]) > 0 for each in found)


def test_a_penalty_is_refused() -> None:
    with pytest.raises(ValueError, match="dense heads have no loss for a penalty; got Contraction"):
        replace_towers(retinanet(), Implicit(Broyden(6), GMRES(6), penalty=Contraction(1.0)))


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match="model must be a torchvision RetinaNet or FCOS; got MaskRCNN"):
        replace_towers(mask_rcnn(), implicit())
    model = retinanet()
    model.head.regression_head = nn.Identity()
    with pytest.raises(TypeError, match=r"the heads must have their tower in `conv`.*; got Identity"):
        replace_towers(model, implicit())
    assert not isinstance(model.head.classification_head.conv, Refiner)
