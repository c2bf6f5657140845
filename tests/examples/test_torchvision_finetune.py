"""The example as a user runs it, on a tiny data set and without a download."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from tiny_experiment import make_dataset
from torchvision.models.detection import maskrcnn_resnet50_fpn

from ifr.checkpoints import read_checkpoint
from ifr.hosts.torchvision import load_mask_head, replace_mask_head
from ifr.refine import Implicit
from ifr.solvers import GMRES, Broyden

ROOT = Path(__file__).parents[2]


def test_the_example_trains_a_mask_head(tmp_path: Path) -> None:
    images, _, annotations = make_dataset(tmp_path / "data", 4, 0).rpartition(":")
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=8)  # the last category id is 7
    torch.save(model.state_dict(), tmp_path / "detector.pth")
    command = [sys.executable, ROOT / "examples/torchvision_finetune.py", images, annotations]
    command += ["--model", "maskrcnn_resnet50_fpn", "--weights", "detector.pth"]
    command += ["--iterations", "22", "--size", "64", "--batch-size", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = re.findall(r"^iteration (\d+): (\w+), loss_mask ([\d.]+)(.*)$", done.stdout, re.M)
    assert [line[:2] for line in lines] == [("0", "explicit"), ("20", "implicit")]
    assert float(lines[1][2]) < float(lines[0][2])
    assert [", loss_equilibrium " in line[3] for line in lines] == [False, True]
    assert read_checkpoint(tmp_path / "head.pth").extras["iteration"] == 22
    replace_mask_head(model, Implicit(Broyden(), adjoint=GMRES()))
    report = load_mask_head(model, tmp_path / "head.pth")
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    command[command.index("--batch-size") + 1] = "5"
    refused = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert (refused.returncode, "4 images have objects, fewer than --batch-size 5" in refused.stderr) == (2, True)
