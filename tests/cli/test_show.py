"""What `ifr show` says of the equilibrium."""

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from tiny_experiment import write_tiny

from ifr.cli import main
from ifr.cli.show import describe_equilibrium
from ifr.refine import RefinementBlock
from ifr.solvers import Anderson, Picard
from ifr.visualize import plot_residuals

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def block() -> RefinementBlock:
    """A contraction: the last normalisation scales everything down."""
    block = RefinementBlock(8)
    torch.nn.init.constant_(block.gn3.weight, 0.1)
    return block


def test_the_description_of_a_contraction(block: RefinementBlock) -> None:
    x = torch.randn(5, 8, 7, 7)
    few, many = (describe_equilibrium(block, solver, x) for solver in (Picard(1, 1e-5), Picard(60, 1e-5)))
    assert (few["regions"], few["converged"], many["converged"]) == (5, 0, 1)
    assert many["residual"]["largest"] < 1e-3 < few["residual"]["median"]
    assert many["distance"]["largest"] < 1e-3 < few["distance"]["median"]
    radius = few["equilibrium"]["spectral_radius"]
    assert radius == many["equilibrium"]["spectral_radius"]
    assert 0 < radius["median"] <= radius["decile"] <= radius["largest"] < 1
    assert few["equilibrium"]["converged"] == 1
    # The error of plain iteration shrinks by the spectral radius.
    z, f = torch.zeros_like(x), block.at(x)
    sizes = []
    with torch.no_grad():
        for _ in range(12):
            z = f(z)
            sizes.append(float((f(z) - z).norm()))
    assert (sizes[5] / sizes[1]) ** 0.25 < 1.2 * radius["largest"]


def test_regions_that_are_not_finite_are_left_out(block: RefinementBlock) -> None:
    x = torch.randn(3, 8, 7, 7)
    alone = describe_equilibrium(block, Anderson(5), x[:2])
    x[2] = math.nan
    both = describe_equilibrium(block, Anderson(5), x)
    assert both["residual"] == pytest.approx(alone["residual"], rel=1e-4)
    assert both["converged"] == pytest.approx(alone["converged"] * 2 / 3)


def test_show_writes_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny = write_tiny(tmp_path)
    settings = ["OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "cpu"]
    assert main(["train", str(tiny), *settings, "SOLVER.LR_SCHEDULER.MAX_ITER", "1"]) == 0
    with caplog.at_level(logging.INFO):
        assert main(["show", str(tiny), "--score", "0", "--samples", "3", *settings]) == 0
    found = json.loads((tmp_path / "run/pictures/equilibrium.json").read_text())
    assert 0 < found["regions"] <= 64
    assert found["solver"].startswith("Anderson(max_steps=3")
    assert found["equilibrium"]["spectral_radius"]["median"] > 0
    assert "equilibrium of" in caplog.text
    lowest = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0"]  # in place of --score
    for budget, solver in ((1, "Picard(max_steps=1"), (2, "Anderson(max_steps=1"), (9, "Anderson(max_steps=8")):
        given = [*settings, *lowest, "MODEL.ROI_MASK_HEAD.BUDGET", str(budget)]
        assert main(["show", str(tiny), "--samples", "1", *given]) == 0
        described = json.loads((tmp_path / "run/pictures/equilibrium.json").read_text())
        assert described["solver"].startswith(solver)


def test_residuals_that_are_not_finite_are_left_out_of_the_plot(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    sound, not_finite = torch.rand(4, 3), torch.full((4, 3), float("inf"))
    sound[2] = float("nan")
    assert plot_residuals({"all": not_finite, "some": sound}).size == (1050, 675)
    assert plot_residuals({"all": not_finite}).size == (1050, 675)
    assert caplog.messages == ["all: no residual is finite, so it is not drawn"] * 2
