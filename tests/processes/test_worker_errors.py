"""An error with an image in a loading process reaches the user as one line that names the image."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_set import sound_content, write
from torch.utils.data import DataLoader, Dataset

from ifr.data.coco import CocoDataset
from ifr.data.loader import (
    Batches,
    Watched,
    build_train_loader,
    evaluation_loader,
    open_test_set,
    open_training_sets,
)
from ifr.data.samples import named
from ifr.errors import DatasetError, ImageError, UserError
from ifr.hosts.standalone.config import RCNNFPNConfig
from ifr.processes.remote_errors import RemoteTraceback

ROOT = Path(__file__).parents[2]


@pytest.fixture
def entry(tmp_path):
    """A data set of two images; the second is truncated."""
    content = sound_content()
    content["images"].append({**content["images"][0], "id": 5, "file_name": "cut.png"})
    content["annotations"].append({**content["annotations"][0], "id": 8, "image_id": 5})
    source = write(tmp_path, content)
    (source.images / "cut.png").write_bytes((source.images / "a.png").read_bytes()[:2000])
    return f"{source.images}:{source.json}"


def settings(entry, workers):
    config = RCNNFPNConfig()
    overrides = {
        "MODEL.DEVICE": "cpu",
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "DATASETS.TRAIN": [entry],
        "DATASETS.TEST": [entry],
        "DATALOADER.NUM_WORKERS": workers,
        "SOLVER.IMS_PER_BATCH": 2,
        "SEED": 0,
    }
    config.merge_from_list([part for item in overrides.items() for part in item])
    return config


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("training", [True, False])
def test_one_line_names_the_image_and_the_cause_has_the_traceback(entry, workers, training):
    config = settings(entry, workers)
    if training:
        loader = build_train_loader(config, open_training_sets(config))
    else:
        loader = evaluation_loader(config, open_test_set(entry))
    with pytest.raises(ImageError, match=r"cut\.png: the picture is damaged \(.*\) \(image 5\)$") as caught:
        list(loader)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "in read_image" in str(caught.value.__cause__)


class Fails(Dataset):
    """A data set whose sample 1 raises `error`."""

    def __init__(self, record, error):
        self.record, self.error = record, error

    def __getitem__(self, index):
        with named(self.record):
            if index == 1:
                raise self.error
            return {"position": index}


@pytest.mark.parametrize("error", [RuntimeError("two\nlines"), KeyError("key")])
@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_any_kind_name_the_image(tmp_path, error, workers):
    record = CocoDataset(write(tmp_path, sound_content()))[0]
    samples = Watched(Fails(record, error))
    batches = iter(Batches(DataLoader(samples, sampler=range(3), num_workers=workers, collate_fn=list)))
    assert next(batches) == [{"position": 0}]
    with pytest.raises(DatasetError, match=rf"a\.png \(image 3\): {type(error).__name__}"):
        next(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_running_out_of_memory_is_not_a_data_set_error(tmp_path, workers):
    record = CocoDataset(write(tmp_path, sound_content()))[0]
    samples = Watched(Fails(record, MemoryError("1 GB")))
    batches = iter(Batches(DataLoader(samples, sampler=range(1, 3), num_workers=workers, collate_fn=list)))
    with pytest.raises(UserError, match=r"^1 GB$") as caught:
        next(batches)
    assert not isinstance(caught.value, DatasetError)
    assert "lower SOLVER.IMS_PER_BATCH" in caught.value.remedy


def test_the_command_prints_one_line_of_cause_and_one_of_remedy(entry, tmp_path):
    overrides = {
        "DATASETS.TRAIN": f"({entry!r},)",
        "DATASETS.TEST": f"({entry!r},)",
        "MODEL.ROI_HEADS.NUM_CLASSES": "1",
        "MODEL.DEVICE": "cpu",
        "SOLVER.IMS_PER_BATCH": "2",
        "SOLVER.LR_SCHEDULER.MAX_ITER": "1",
        "DATALOADER.NUM_WORKERS": "2",
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    settings = [part for item in overrides.items() for part in item]
    command = [sys.executable, "-m", "ifr", "train", str(ROOT / "mask_rcnn.ifr.res18.fpn.digits"), *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    *_, cause, remedy = done.stderr.splitlines()
    assert cause.startswith("error: ")
    assert "cut.png: the picture is damaged" in cause
    assert cause.endswith("(image 5)")
    assert remedy.startswith("remedy: replace the picture")


SCRIPT = """
from ifr.processes.launch import launch
from ifr.processes.layout import Layout
launch(print, Layout(2), "cpu", "worked")
"""


@pytest.mark.parametrize(
    ("stdin", "said"), [(False, '__name__ == "__main__":`'), (True, "from <stdin>; write it to a file")]
)
def test_a_script_that_workers_cannot_import(tmp_path, stdin, said):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-" if stdin else tmp_path / "script.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    given = {"input": SCRIPT} if stdin else {}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False, **given
    )
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert done.stdout == ""
