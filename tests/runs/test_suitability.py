"""Settings are compared with the data: each warning names a setting and a value that silences it."""

import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_experiment import SIZE

from ifr.data.loader import open_training_sets
from ifr.experiment import load_experiment
from ifr.hosts.standalone.engine.test import test as run_test
from ifr.hosts.standalone.engine.train import train
from ifr.hosts.standalone.supported import check_run
from ifr.processes.layout import Layout
from ifr.runs.start import TestOptions, TrainOptions, start
from ifr.runs.suitability import examine, other_scale

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")


def warnings(experiment: Path, *overrides: Any) -> list[str]:
    """All but the one about rare classes: the set has 8 images with an object of each class."""
    config = load_experiment(experiment).config
    config.merge_from_list(overrides)
    found = examine(config, open_training_sets(config))
    return [text for text in found.warnings() if "classes" not in text]


def test_settings_that_suit_the_data_are_not_warned_about(tiny: Path) -> None:
    assert warnings(tiny) == []


def test_the_anchors_of_a_warning_cover_the_objects(tiny: Path) -> None:
    far = ["MODEL.ANCHOR_GENERATOR.SIZES", [[512]]]
    (text,) = warnings(tiny, *far)
    assert "covers only 0% of the objects" in text
    remedy = shlex.split(re.search(r"MODEL\..*$", text)[0])
    assert remedy[::2] == [
        "MODEL.RPN.IN_FEATURES",
        "MODEL.ANCHOR_GENERATOR.SIZES",
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    ]
    assert warnings(tiny, *far, *remedy) == []


def test_pictures_too_small_for_any_anchor_are_to_be_enlarged(tiny: Path) -> None:
    def edge(length: int) -> list[Any]:
        resize = {"short_edge_length": length, "max_size": 512, "sample_style": "choice"}
        return ["INPUT.AUG.TRAIN_PIPELINES", [["ResizeShortestEdge", resize]], "MODEL.RPN.IN_FEATURES", ["p2"]]

    sizes = ["MODEL.ANCHOR_GENERATOR.SIZES", [[3, 4, 5]]]
    (text,) = warnings(tiny, *edge(12), *sizes)
    assert re.search(r"set short_edge_length 32 in INPUT.AUG.TRAIN_PIPELINES", text)
    (text,) = [text for text in warnings(tiny, *edge(48)[:2]) if "narrower" in text]
    assert text.startswith("8 of 8 images are narrower")
    assert "coarsest level in MODEL.RPN.IN_FEATURES, 64 pixels: set short_edge_length 256 " in text


@pytest.mark.parametrize("key", ["TEST.DETECTIONS_PER_IMAGE", "MODEL.RPN.POST_NMS_TOPK_TEST"])
def test_a_cap_below_the_objects_of_an_image(tiny: Path, key: str) -> None:
    (text,) = warnings(tiny, key, 1)
    assert text == f"{key} is 1, but 8 of 8 images have more objects, up to 2: set it to 100"
    assert warnings(tiny, key, 100) == []


def test_rare_classes_are_named(tiny: Path) -> None:
    config = load_experiment(tiny).config
    found = examine(config, open_training_sets(config))
    assert [text for text in found.warnings() if "square (8), bar (8)" in text]
    config.merge_from_list(["DATASETS.TRAIN", [*config.DATASETS.TRAIN, *config.DATASETS.TRAIN]])
    assert list(examine(config, open_training_sets(config)).warnings()) == []


def run(work: Any, experiment: Path, output: Path, options: type, *overrides: Any) -> None:
    settings = ("OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", *overrides)
    start(work, check_run, load_experiment(experiment), options(Layout(num_gpus=1), overrides=settings))


def test_training_begins_with_the_report_and_testing_compares_sizes(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(train, tiny, tmp_path, TrainOptions, "TEST.DETECTIONS_PER_IMAGE", 1)
    said = caplog.messages
    report = next(
        place for place, text in enumerate(said) if text.startswith(f"at network size ({SIZE} x {SIZE} pixels)")
    )
    assert report < next(place for place, text in enumerate(said) if text.startswith("iteration "))
    assert any(text.startswith("TEST.DETECTIONS_PER_IMAGE is 1") for text in said)
    with Image.open(tmp_path / "pictures" / "objects.png") as picture:
        assert np.asarray(picture).std() > 0
    caplog.clear()
    run(run_test, tiny, tmp_path, TestOptions)
    assert not any("were 18 in training" in text for text in caplog.messages)
    resize = {"short_edge_length": 2 * SIZE, "max_size": 2 * SIZE, "sample_style": "choice"}
    run(run_test, tiny, tmp_path, TestOptions, "INPUT.AUG.TEST_PIPELINES", [["ResizeShortestEdge", resize]])
    (text,) = [text for text in caplog.messages if "in training" in text]
    assert "objects are 36 pixels large, and were 18 in training" in text
    assert text.endswith("INPUT.AUG.TEST_PIPELINES by 0.5")


@pytest.mark.parametrize(
    ("trained", "tested", "factor"),
    [
        ([1, 2, 30, 60, 90], [1, 2, 59, 70, 80], None),
        ([1, 2, 30, 60, 90], [1, 2, 60, 70, 80], "0.5"),
        ([1, 2, 30, 60, 90], [1, 2, 10, 70, 80], "3"),
        (None, [1, 2, 10, 70, 80], None),
        ([1, 2, 30, 60, 90], None, None),
    ],
)
def test_a_twofold_difference_of_the_medians(
    trained: Sequence[float] | None, tested: Sequence[float] | None, factor: str | None
) -> None:
    text = other_scale(trained, tested)
    assert (text is None) == (factor is None)
    assert factor is None or str(text).endswith(f"by {factor}")
