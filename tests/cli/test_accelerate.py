"""`ifr accelerate`, and what every other command does with the weights that it writes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ifr.checkpoints import CheckpointFile, load_weights, read_checkpoint, save_checkpoint
from ifr.checkpoints.fetch import cache_file
from ifr.cli import main
from ifr.errors import CheckpointError
from ifr.experiment import build_model, load_experiment
from ifr.processes.workers import Worker
from ifr.refine import Implicit
from ifr.runs.weights import start_from
from ifr.solvers import Solver

PREFIX = "roi_heads.mask_head.refinement.accelerator."
USED, UNUSED = "its learned start and solver replace", "its learned start and solver are not used"
SCORE = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures."""
    folder = tmp_path_factory.mktemp("five")
    random = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(random.integers(0, 255, (50, 80, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def trained(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with what training stores beside them."""
    path = tmp_path_factory.mktemp("trained") / "model.pth"
    save_checkpoint(path, build_model(experiment, device="cpu"), iteration=41, optimizer={"state": {}})
    return path


@pytest.fixture(scope="module")
def accelerated(experiment: Path, folder: Path, trained: Path) -> Path:
    before = trained.read_bytes()
    assert accelerate(experiment, folder, "MODEL.WEIGHTS", str(trained)) == 0
    assert trained.read_bytes() == before
    return trained.with_suffix(".accelerated.pth")


def accelerate(experiment: Path, images: Path, *rest: str) -> int:
    options = ["--images", str(images), "--regions", "24", "--device", "cpu"]
    return main(["accelerate", str(experiment), *options, *rest, *SCORE])


def test_it_adds_to_the_weights_and_changes_none(trained: Path, accelerated: Path) -> None:
    before, after = read_checkpoint(trained), read_checkpoint(accelerated)
    assert after.extras == before.extras == {"iteration": 41, "optimizer": {"state": {}}}
    assert all(torch.equal(value, after.weights[name]) for name, value in before.weights.items())
    added = after.weights.keys() - before.weights.keys()
    assert added
    assert all(name.startswith(PREFIX) for name in added)
    assert any(after.weights[name].any() for name in added if name.endswith("direct.weight"))


def test_fetched_weights_stay_as_they_are(
    experiment: Path, folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accelerated file of an address lies in the working directory, not in the cache."""
    monkeypatch.setenv("IFR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    fetched = cache_file("https://example.org/model.pth")
    fetched.parent.mkdir(parents=True)
    shutil.copy(trained, fetched)
    assert accelerate(experiment, folder, "MODEL.WEIGHTS", "https://example.org/model.pth") == 0
    assert [path.name for path in fetched.parent.glob("*.pth")] == ["model.pth"]
    assert Path("model.accelerated.pth").is_file()


def test_small_networks_load(experiment: Path, folder: Path, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.pth"
    assert accelerate(experiment, folder, "--small", "--output", str(output), "MODEL.WEIGHTS", str(trained)) == 0
    names = read_checkpoint(output).weights.keys()
    assert any(name.startswith(PREFIX) for name in names)
    assert not any("direct" in name for name in names)
    head = build_model(experiment, output, device="cpu").roi_heads.mask_head
    assert head.refinement.accelerator.step.direct is None


def test_regions_are_collected_without_a_solve(
    experiment: Path, folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[int | None] = []
    solver = Implicit.solver_of

    def observed(refinement: Implicit, evaluations: int | None, start: Tensor | None) -> Solver | None:
        budgets.append(evaluations)
        return solver(refinement, evaluations, start)

    monkeypatch.setattr(Implicit, "solver_of", observed)
    assert accelerate(experiment, folder, "--output", str(tmp_path / "x.pth"), "MODEL.WEIGHTS", str(trained)) == 0
    assert set(budgets) == {1}


def test_it_compares_solvers_on_other_pictures(
    experiment: Path, folder: Path, accelerated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Accelerated weights can be accelerated again, with the same result."""
    output = tmp_path / "again.pth"
    with caplog.at_level("INFO"):
        assert accelerate(experiment, folder, "--output", str(output), "MODEL.WEIGHTS", str(accelerated)) == 0
    assert "fitting to 24 regions" in caplog.text
    assert "evaluations  published   Anderson    learned" in caplog.text
    first, second = read_checkpoint(accelerated).weights, read_checkpoint(output).weights
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("key", "value", "uses"),
    [("BUDGET", "2", True), ("ACCELERATE", "False", False), ("SOLVER", "broyden-published", False)],
)
def test_models_use_it_unless_told_not_to(
    experiment: Path,
    trained: Path,
    accelerated: Path,
    key: str,
    value: str,
    uses: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    x = torch.randn(3, 8, 14, 14, generator=torch.Generator().manual_seed(0))
    settings = [f"MODEL.ROI_MASK_HEAD.{key}", value]
    plain, fast = (
        build_model(experiment, weights=path, device="cpu", overrides=settings).roi_heads.mask_head
        for path in (trained, accelerated)
    )
    with torch.no_grad():
        assert torch.equal(fast(x), plain(x)) != uses
    assert (caplog.text.count(USED), caplog.text.count(UNUSED)) == ((1, 0) if uses else (0, 1))
    assert uses or f"{UNUSED} ({settings[0]} {value})" in caplog.text
    assert "unknown to the model" not in caplog.text


def test_predict_says_that_it_is_used(
    experiment: Path, folder: Path, accelerated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = ["predict", str(experiment), "--input", str(folder / "0.png"), "--output", str(tmp_path)]
    with caplog.at_level("INFO"):
        assert main([*command, "--device", "cpu", "MODEL.WEIGHTS", str(accelerated)]) == 0
    assert caplog.text.count(USED) == 1


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_convert_keeps_it(experiment: Path, accelerated: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"converted{suffix}"
    off = ["MODEL.ROI_MASK_HEAD.ACCELERATE", "False"]  # also where it is not used
    assert main(["convert", str(experiment), "--weights", str(accelerated), "--output", str(output), *off]) == 0
    before, after = read_checkpoint(accelerated).weights, read_checkpoint(output).weights
    added = [name for name in before if name.startswith(PREFIX)]
    assert all(torch.equal(before[name], after[name]) for name in added)


def test_weights_without_one_remove_that_of_weights_before(experiment: Path, trained: Path, accelerated: Path) -> None:
    model = build_model(experiment, device="cpu", weights=accelerated)
    head = model.roi_heads.mask_head
    assert head.refinement.accelerator is not None
    assert load_weights(model, accelerated).missing == ()
    assert load_weights(model, trained).missing == ()
    assert head.refinement.accelerator is None


def test_a_file_that_does_not_fit_leaves_the_model_as_it_was(experiment: Path, accelerated: Path) -> None:
    model = build_model(experiment, device="cpu", weights=accelerated)
    before = model.roi_heads.mask_head.refinement.accelerator
    weights = read_checkpoint(accelerated).weights
    other = {key: value for key, value in weights.items() if not key.startswith(PREFIX) and "fpn" not in key}
    with pytest.raises(CheckpointError, match="it lacks"):
        load_weights(model, CheckpointFile(Path("other.pth"), other))
    assert model.roi_heads.mask_head.refinement.accelerator is before
    wide = {**weights, f"{PREFIX}step.enter.weight": torch.zeros(1000, 0)}
    with pytest.raises(CheckpointError, match="do not fit the mask head: width must be from 1 to 32"):
        load_weights(model, CheckpointFile(Path("wide.pth"), wide))
    torn = {key: value for key, value in weights.items() if key != f"{PREFIX}start.direct.weight"}
    with pytest.raises(CheckpointError, match=r"it lacks 1 weights of the model: .*start\.direct\.weight"):
        load_weights(model, CheckpointFile(Path("torn.pth"), torn))
    assert model.roi_heads.mask_head.refinement.accelerator is before


def test_training_leaves_it_out(experiment: Path, accelerated: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build_model(experiment, device="cpu")
    config = load_experiment(experiment).config
    config.merge_from_list(["MODEL.WEIGHTS", str(accelerated)])
    with caplog.at_level("INFO"):
        start_from(model, config, None, Worker())
    assert caplog.text.count("its learned start and solver are left out, because training changes the block") == 1
    assert model.roi_heads.mask_head.refinement.accelerator is None


def test_misuse(
    experiment: Path, folder: Path, pictures: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ["MODEL.WEIGHTS", str(trained)]
    for images, rest, message in (
        (pictures, weights, "has 2 pictures, which are too few"),
        (folder, [], "there are no trained weights"),
        (folder, [*weights, "MODEL.ROI_MASK_HEAD.SOLVER", "nonsense"], "unknown solver 'nonsense'"),
        (folder, [*weights, "MODEL.ROI_MASK_HEAD.SOLVER", "broyden-published"], "does not use a learned start"),
        (folder, ["--output", "x.safetensors", *weights], "--output must name a .pth file; got x.safetensors"),
        (folder, ["--output", str(folder), *weights], "--output must name a .pth file"),
    ):
        assert accelerate(experiment, images, *rest) == 1
        assert message in capsys.readouterr().err
