"""The commands as a user runs them: scripts run from another directory, and errors with a remedy."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_experiment import make_dataset, metrics

from ifr.checkpoints import read_checkpoint
from ifr.cli import main

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")

ROOT = Path(__file__).parents[2]
# Shrinks a COCO experiment for tests; a schedule given on the command line is not rescaled.
SMALL = shlex.split("""
    MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.RESNETS.NORM GN
    MODEL.BACKBONE.FREEZE_AT 0 MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 16
    MODEL.RPN.PRE_NMS_TOPK_TRAIN 50 MODEL.RPN.POST_NMS_TOPK_TRAIN 20 MODEL.RPN.PRE_NMS_TOPK_TEST 50
    MODEL.RPN.POST_NMS_TOPK_TEST 20
""")
SCHEDULE = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.LR_SCHEDULER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0"]
SCHEDULE += ["MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS", "1", "SOLVER.LR_SCHEDULER.WARMUP_ITERS", "0", "SEED", "1"]
PIPELINE = "[('ResizeShortestEdge', {'short_edge_length': 64, 'max_size': 64, 'sample_style': 'choice'})]"
INPUT = ["INPUT.AUG.TRAIN_PIPELINES", PIPELINE, "INPUT.AUG.TEST_PIPELINES", PIPELINE]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The parts of the repository that the scripts need, in a folder with a space in its path."""
    root = tmp_path / "a check out"
    name = "mask_rcnn.ifr.res50.fpn.coco.multiscale.1x"
    for part in (name, "ifr", "scripts"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__", "output"))
    return root


def sh(cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(["sh", *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=170)


def test_the_scripts_train_test_and_predict_from_another_directory(checkout: Path, tmp_path: Path) -> None:
    """A custom data set with its own classes and category ids, given on the command line."""
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    experiment = checkout / "mask_rcnn.ifr.res50.fpn.coco.multiscale.1x"
    entry = make_dataset(elsewhere / "my set", 2, 0)
    images, annotations = entry.split(":")
    relative = f"{Path(images).relative_to(elsewhere)}:{Path(annotations).relative_to(elsewhere)}"
    sets = ["DATASETS.TRAIN", relative, "DATASETS.TEST", relative]

    trained = sh(elsewhere, str(experiment / "pods_train.sh"), *SMALL, *SCHEDULE, *INPUT, *sets, "MODEL.WEIGHTS", "")
    assert trained.returncode == 0, trained.stderr
    output = experiment / "output"
    assert [line["iteration"] for line in metrics(output)] == [2]
    extras = read_checkpoint(output / "model_final.pth").extras
    assert extras["classes"] == {"names": ["square", "bar"], "category_ids": [3, 7]}

    weights = tmp_path / "w e i g h t s.pth"
    shutil.copy(output / "model_final.pth", weights)
    score = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    chosen = ["MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", "out put", *score]
    tested = sh(elsewhere, str(experiment / "pods_test.sh"), *SMALL, *INPUT, *sets, *chosen)
    assert tested.returncode == 0, tested.stderr
    assert f"testing {weights}" in tested.stderr
    assert "AP-square" in tested.stderr
    results = json.loads((elsewhere / "out put" / "inference" / "coco_instances_results.json").read_text())
    assert {result["category_id"] for result in results} <= {3, 7}
    assert results

    predict = [str(checkout / "scripts" / "ifr.sh"), "predict", str(experiment), "--score", "0", "--device", "cpu"]
    files = ["--input", images, "--output", "pic tures", "--json", "found.json"]
    predicted = sh(elsewhere, *predict, *files, *SMALL, *INPUT, "MODEL.WEIGHTS", str(weights))
    assert predicted.returncode == 0, predicted.stderr
    assert {result["category_id"] for result in json.loads((elsewhere / "found.json").read_text())} <= {3, 7}
    with Image.open(elsewhere / "pic tures" / "0001.jpg") as picture:
        assert picture.size == (64, 64)


def test_the_scripts_pass_the_exit_code_and_the_error_on(checkout: Path, tmp_path: Path) -> None:
    script = checkout / "mask_rcnn.ifr.res50.fpn.coco.multiscale.1x" / "pods_train.sh"
    failed = sh(tmp_path, str(script), "SOLVER.BASE_LR", "0.1")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-2:] == [
        "error: there is no setting 'SOLVER.BASE_LR'; did you mean 'SOLVER.OPTIMIZER.BASE_LR'?",
        f"remedy: {script.parent / 'config.py'} has some settings, and `ifr settings` lists all",
    ]


def test_every_experiment_has_the_same_two_scripts() -> None:
    folders = [path.parent for path in ROOT.glob("*/config.py")]
    assert len(folders) >= 4
    for name in ("pods_train.sh", "pods_test.sh"):
        assert len({(folder / name).read_text() for folder in folders}) == 1


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["SOLVER.LR_SCHEDULER.MAX_ITERS", "5"], "did you mean 'SOLVER.LR_SCHEDULER.MAX_ITER'"),
        (["SOLVER.MAX_ITR", "5"], "did you mean 'SOLVER.LR_SCHEDULER.MAX_ITER'"),
        (["SEED"], "'SEED' has no value"),
        (["SEED", "x"], "SEED must be of type int, such as -1; got 'x'"),
        (["--num-gpus", "0"], "--num-gpus must be at least 1, got 0"),
        (["--num-machines", "2"], "--dist-url tcp://HOST:PORT"),
        (["--machine-rank", "1"], "--machine-rank must be from 0 to --num-machines - 1 = 0, got 1"),
        (["DATASETS.TRAIN", "coco_2018"], "unknown data set 'coco_2018'; did you mean 'coco_2017_val'?"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "5"], "NUM_CLASSES is 5, but"),
        (["MODEL.WEIGHTS", "nothing.pth"], "nothing.pth: no such file"),
        (["TEST.AUG.ENABLED", "True"], "TEST.AUG.ENABLED = True is not supported by the standalone host, only False"),
        (["DATALOADER.REPEAT_THRESHOLD", "0.1"], "DATALOADER.REPEAT_THRESHOLD = 0.1 is not supported"),
        (["GLOBAL.LOG_INTERVAL", "0"], "GLOBAL.LOG_INTERVAL must be at least 1, got 0"),
        (["SOLVER.LR_SCHEDULER.MAX_EPOCH", "5"], "SOLVER.LR_SCHEDULER.MAX_EPOCH = 5 is not supported"),
    ],
)
def test_errors_of_train_are_a_cause_and_a_remedy(
    tiny: Path, tmp_path: Path, arguments: list[str], cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["OUTPUT_DIR", str(tmp_path)] if len(arguments) != 1 else []
    assert main(["train", str(tiny), *arguments, *common]) == 1
    *_, error, remedy = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert cause in error
    assert remedy.startswith("remedy: ")


def test_debug_shows_the_traceback(tiny: Path) -> None:
    with pytest.raises(Exception, match="no setting"):
        main(["train", str(tiny), "--debug", "X", "1"])


def test_more_gpus_than_the_machine_has(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert main(["train", str(tiny), "--num-gpus", "4"]) == 1
    assert "--num-gpus 4, but this machine has 2 GPUs" in capsys.readouterr().err


def test_cuda_without_a_gpu(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["train", str(tiny), "MODEL.DEVICE", "cuda"]) == 1
    assert "torch finds no GPU" in capsys.readouterr().err


def test_torchrun(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "ifr"]
    settings = ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu", "SOLVER.LR_SCHEDULER.MAX_ITER", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "train", str(tiny), *settings], env=environment, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stderr
    assert "on 2 x cpu" in (tmp_path / "log.txt").read_text()
    assert len(metrics(tmp_path)) == 1


def test_convert_writes_only_the_weights(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["MODEL.DEVICE", "cpu", "SOLVER.LR_SCHEDULER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "1"]
    assert main(["train", str(tiny), "OUTPUT_DIR", str(tmp_path), *settings]) == 0
    trained = tmp_path / "model_final.pth"
    for name in ("small.pth", "small.safetensors"):
        assert main(["convert", str(tiny), "--weights", str(trained), "--output", str(tmp_path / name)]) == 0
    weights, small = read_checkpoint(trained), read_checkpoint(tmp_path / "small.pth")
    assert set(small.extras) == {"classes", "description"}
    assert read_checkpoint(tmp_path / "small.safetensors").extras == small.extras
    assert set(small.weights) == set(weights.weights)
    assert all(torch.equal(small.weights[key], weights.weights[key]) for key in small.weights)
    assert (tmp_path / "small.pth").stat().st_size < 0.6 * trained.stat().st_size  # the momentum is as large
    single = load_file(tmp_path / "small.safetensors")
    assert all(torch.equal(single[key], weights.weights[key]) for key in single)
    back = ["--weights", str(tmp_path / "small.safetensors"), "--output", str(tmp_path / "back.pth")]
    assert main(["convert", str(tiny), *back]) == 0
    restored = read_checkpoint(tmp_path / "back.pth").weights
    assert all(torch.equal(restored[key], weights.weights[key]) for key in weights.weights)
    other = ["--weights", str(trained), "--output", str(tmp_path / "other.pth"), "MODEL.ROI_HEADS"]
    assert main(["convert", str(tiny), *other, "{'NUM_CLASSES': 5}"]) == 1
    assert main(["convert", str(tiny), "--weights", str(trained), "--output", str(tmp_path / "x.bin")]) == 1
    assert "x.bin has an unknown extension" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="torch uses GNU OpenMP only on Linux")
@pytest.mark.parametrize(("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77")])
def test_waiting_threads_spin_only_briefly(given: dict[str, str], spins: str) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "ifr", "info"]
    environment = {**kept, "OMP_DISPLAY_ENV": "verbose", **given}
    shown = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert f"GOMP_SPINCOUNT = '{spins}'" in shown.stderr


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
@pytest.mark.parametrize(
    ("command", "given", "compiled"),
    [
        (["info"], {}, 120),
        (["info"], {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}, 60),
        (["train", "/nonexistent"], {}, 60),
    ],
)
def test_all_commands_but_train_keep_little_compiled_code(
    command: list[str], given: dict[str, str], compiled: int
) -> None:
    """Images of 60 sizes, twice, each with a convolution and two conversions: more than 128, fewer than 200."""
    script = """
import sys
from ifr.cli import main
main(sys.argv[1:])
import torch
for width in 2 * [*range(60)]:
    torch.nn.functional.conv2d(torch.zeros(2, 16, 64, 64 + width), torch.zeros(16, 16, 3, 3))
"""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ONEDNN_")}
    environment = {**kept, "ONEDNN_VERBOSE": "2", **given}
    done = subprocess.run(
        [sys.executable, "-c", script, *command], env=environment, check=True, capture_output=True, text=True
    )
    misses = [line for line in done.stdout.splitlines() if "cache_miss" in line and "convolution" in line]
    assert len(misses) == compiled


def test_info_prints_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line[0] != " ")
    assert facts["torch"] == torch.__version__.split("+")[0] or facts["torch"] == torch.__version__
    assert facts["host"] == "standalone"
    assert str(ROOT) in facts["ifr"]
    assert {"python", "CPU", "pycocotools"} <= set(facts)


@pytest.mark.parametrize("command", ["train", "test", "predict", "convert", "info"])
def test_help_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 150
