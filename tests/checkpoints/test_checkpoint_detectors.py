"""The experiments' detectors against the key lists of the published checkpoints."""

import json
from pathlib import Path

import pytest
import torch

import ifr.experiment
from ifr.checkpoints import load_weights, save_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = REPOSITORY.parent / "shared" / "reference"
EXPERIMENTS = (
    "mask_rcnn.ifr.res50.fpn.coco.multiscale.1x",
    "mask_rcnn.res50.fpn.coco.multiscale.weight_sharing.1x",
    "cascade_rcnn.ifr.res50.fpn.coco.800size.1x",
)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_saved_files_have_the_published_keys_and_load_back_bit_equal(tmp_path, experiment):
    if not REFERENCE.is_dir():
        pytest.skip(f"the reference data of the published code is not at {REFERENCE}")
    spec = json.loads((REFERENCE / f"{experiment}.a.json").read_text())
    stored = torch.load(REFERENCE / f"{experiment}.a.tensors.pt", weights_only=True)
    path = tmp_path / "model.pth"
    model = ifr.experiment.build_model(REPOSITORY / experiment, device="cpu")
    save_checkpoint(path, model, iteration=1)

    saved = torch.load(path, weights_only=True, mmap=True)["model"]
    assert set(saved) == {*spec["formula"], *stored, *spec["aliased"]}
    for key, value in stored.items():
        assert saved[key].shape == value.shape, key
    for key, entry in spec["formula"].items():
        assert list(saved[key].shape) == entry["shape"], key

    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if "cell_anchors" not in key:  # never loaded
                value.zero_()
    report = load_weights(model, path)
    assert report.missing + report.unexpected + report.mismatched == ()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    path.unlink()  # 170 to 300 MB
