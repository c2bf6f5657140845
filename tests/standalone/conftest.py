"""The official models' checkpoints and outputs, and the marker of slow tests."""

from collections.abc import Iterator

import pytest
import torch
from official import Reference, sample_evenly, threads
from official_outputs import EXPERIMENTS, REFERENCE, ROOT, load_official, write_official_checkpoint

from ifr.experiment import load_experiment


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes long; runs only when -m asks for it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("-m"):
        skip = pytest.mark.skip(reason="slow; run with -m slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    """Use two threads, like the official outputs; another summation order changes one gradient by 4e-2."""
    with threads(2):
        yield


@pytest.fixture(scope="session", params=EXPERIMENTS)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    name = request.param
    checkpoint = tmp_path_factory.mktemp("reference") / "official.pth"  # 175 to 300 MB, deleted after loading
    write_official_checkpoint(name, checkpoint)
    experiment = load_experiment(ROOT / name)
    experiment.config.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_MASK_HEAD.SOLVER", "broyden-published"])
    model = experiment.build_model(experiment.config)
    load_official(model, checkpoint)
    checkpoint.unlink()
    model.proposal_generator.sampler = model.roi_heads.sampler = sample_evenly
    io = torch.load(REFERENCE / f"{name}.a.io.pt", weights_only=True)
    return Reference(name, model.eval(), io)
