"""Settings: cvpods' keys, strictness, and overrides that are parsed but never evaluated."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from official_outputs import EXPERIMENTS, ROOT

from ifr.errors import ConfigError, RunError
from ifr.experiment import load_experiment
from ifr.hosts.standalone import RCNNFPNConfig
from ifr.hosts.standalone.defaults import DEFAULTS
from ifr.hosts.standalone.supported import check_run, check_supported


def test_defaults_match_cvpods() -> None:
    config = RCNNFPNConfig()
    assert config.MODEL.RPN.POST_NMS_TOPK_TRAIN == 1000
    assert config.MODEL.ROI_HEADS.NUM_CLASSES == 80
    assert config.SOLVER.OPTIMIZER.MOMENTUM == 0.9
    assert list(config.MODEL.PIXEL_MEAN) == [103.53, 116.28, 123.675]


def test_values_have_the_types_of_the_defaults() -> None:
    """In a config.py, too, so that 0 in it does not make a whole number of a rate."""

    class Config(RCNNFPNConfig):
        def __init__(self) -> None:
            super().__init__()
            self._register_configuration({"SOLVER": {"EPOCHS": 12, "LR_SCHEDULER": {"MAX_ITER": 9e4}}})

    config = Config()
    assert (config.SOLVER.EPOCHS, config.SOLVER.LR_SCHEDULER.MAX_ITER) == (12.0, 90000)
    config.merge_from_list(["SOLVER.EPOCHS", "0.5", "SOLVER", "{'OPTIMIZER': {'WEIGHT_DECAY': 0}}"])
    config.merge_from_list(["SOLVER.OPTIMIZER.WEIGHT_DECAY", "1e-4"])
    assert (config.SOLVER.EPOCHS, config.SOLVER.OPTIMIZER.WEIGHT_DECAY) == (0.5, 1e-4)
    config.DATASETS = {"TRAIN": "photos:photos.json"}
    config.OUTPUT_DIR = Path("out")
    assert (config.DATASETS.TRAIN, config.OUTPUT_DIR) == (["photos:photos.json"], "out")
    for section in ({"IMS_PER_BATCH": "abc"}, {"OPTIMIZER": {"BASE_LR": True}}, {"LR_SCHEDULER": {"STEPS": 3}}):
        with pytest.raises(ConfigError, match=r"^SOLVER\..* must be of type "):
            config.SOLVER = section
        with pytest.raises(ConfigError, match=r"^SOLVER\..* must be of type "):
            config.merge_from_list(["SOLVER", repr(section)])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_changes_only_its_own_settings(name: str) -> None:
    config = load_experiment(ROOT / name).config
    assert (config.MODEL.RESNETS.DEPTH, config.SOLVER.LR_SCHEDULER.MAX_ITER) == (50, 90000)
    assert list(config.SOLVER.LR_SCHEDULER.STEPS) == [60000, 80000]
    assert config.SOLVER.LR_SCHEDULER.GAMMA == 0.1
    assert ("implicit" if ".ifr." in name else "explicit") == config.MODEL.ROI_MASK_HEAD.REFINEMENT
    edges = config.INPUT.AUG.TRAIN_PIPELINES[0][1].short_edge_length
    assert list(edges) == ([800] if "800size" in name else [640, 672, 704, 736, 768, 800])


def test_configs_do_not_share_state() -> None:
    first, second = RCNNFPNConfig(), RCNNFPNConfig()
    first.merge_from_list(["MODEL.RESNETS.DEPTH", "18"])
    first.MODEL.PIXEL_STD[0] = 7.0
    assert second.MODEL.RESNETS.DEPTH is None
    assert second.MODEL.PIXEL_STD[0] == 1.0


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("SOLVER.IMS_PER_BATCH", "4", 4),
        ("SOLVER.IMS_PER_BATCH", "4.0", 4),
        ("SOLVER.OPTIMIZER.BASE_LR", "1", 1.0),
        ("MODEL.MASK_ON", "True", True),
        ("MODEL.MASK_ON", "0", False),
        ("MODEL.RESNETS.DEPTH", "101", 101),
        ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "(0.4, 0.5)", [0.4, 0.5]),
        ("DATASETS.TRAIN", "('a', 'b')", ["a", "b"]),
        ("OUTPUT_DIR", "out/run 1", "out/run 1"),
        ("OUTPUT_DIR", "2024", "2024"),
        ("OUTPUT_DIR", "'quoted'", "quoted"),
        ("MODEL.ROI_MASK_HEAD.SOLVER", "anderson", "anderson"),
        ("MODEL.WEIGHTS", Path("a.pth").as_posix(), "a.pth"),
        ("MODEL.RPN", "{'NMS_THRESH': 0.6}", 0.6),
    ],
)
def test_overrides_are_converted_to_the_type_of_the_old_value(key: str, text: str, value: object) -> None:
    config = RCNNFPNConfig()
    config.merge_from_list([key, text])
    node = config
    for part in key.split("."):
        node = getattr(node, part)
    if key == "MODEL.RPN":
        own, other = node.NMS_THRESH, node.LOSS_WEIGHT
        assert own == value
        assert other == 1.0
    else:
        assert node == value
        assert type(node) is type(value) or isinstance(value, list)


def test_an_override_is_not_evaluated(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    config = RCNNFPNConfig()
    config.merge_from_list(["OUTPUT_DIR", f"__import__('pathlib').Path({str(trap)!r}).touch()"])
    assert not trap.exists()
    assert config.OUTPUT_DIR.startswith("__import__")
    with pytest.raises(ConfigError, match=r"SOLVER\.IMS_PER_BATCH"):
        config.merge_from_list(["SOLVER.IMS_PER_BATCH", "2 * 8"])


def test_a_single_data_set_needs_no_list() -> None:
    config = RCNNFPNConfig()
    config.merge_from_list(["DATASETS.TRAIN", "my images:my annotations.json", "DATASETS.TEST", "('a', 'b')"])
    assert list(config.DATASETS.TRAIN) == ["my images:my annotations.json"]
    assert list(config.DATASETS.TEST) == ["a", "b"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.MASK_OM", "True"], "did you mean 'MODEL.MASK_ON'"),
        (["MODEL.ROI_MASK_HEAD.F_THRESH", "3"], "did you mean 'MODEL.ROI_MASK_HEAD.F_THRES'"),
        (["IMS_PER_BATCH", "3"], "did you mean 'SOLVER.IMS_PER_BATCH'"),
        (["MODEL.MASK_ON.X", "3"], "there is no setting 'MODEL.MASK_ON.X'"),
        (["MODEL.MASK_ON"], "has no value"),
        (["SOLVER.IMS_PER_BATCH", "2.5"], "must be of type int, such as 16; got 2.5"),
        (["MODEL.MASK_ON", "maybe"], "must be of type bool, such as False; got 'maybe'"),
        (["SOLVER.LR_SCHEDULER.STEPS", "soon"], r"must be of type list, such as \[30000\]; got 'soon'"),
        (["MODEL.RPN", "3"], "MODEL.RPN is a section; it takes a dict, got 3"),
        (["MODEL.RPN", "{'NMS_TRESH': 0.6}"], "did you mean 'MODEL.RPN.NMS_THRESH'"),
    ],
)
def test_an_invalid_override_names_the_remedy(overrides: list[str], message: str) -> None:
    config = RCNNFPNConfig()
    before = config.as_dict()
    with pytest.raises(ConfigError, match=message):
        config.merge_from_list(overrides)
    assert config.as_dict() == before


def test_an_unknown_key_in_an_experiment_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'MODEL\.ROI_MASK_HEAD'"):
        RCNNFPNConfig()._register_configuration({"MODEL": {"ROI_MASK_HEADS": {}}})
    with pytest.raises(ConfigError, match=r"MODEL\.RPN is a section"):
        RCNNFPNConfig()._register_configuration({"MODEL": {"RPN": 3}})


def test_reading_or_setting_an_unknown_key_is_an_error() -> None:
    config = RCNNFPNConfig()
    with pytest.raises(AttributeError, match="did you mean 'MODEL'"):
        _ = config.MODELS
    with pytest.raises(AttributeError):
        _ = config.MODEL.MASKS_ON
    with pytest.raises(ConfigError, match="did you mean 'OUTPUT_DIR'"):
        config.OUTPUTDIR = "x"
    with pytest.raises(AttributeError):
        config.MODEL.MASKS_ON = True
    config.OUTPUT_DIR = "x"
    assert config.as_dict()["OUTPUT_DIR"] == "x"


def leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_boundary_ap_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RCNNFPNConfig()
    config.merge_from_list(["TEST.BOUNDARY", True])
    with pytest.raises(RunError, match=r"MODEL\.MASK_ON is False"):
        check_run(config)
    config.merge_from_list(["MODEL.MASK_ON", True])
    check_run(config)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(RunError, match="faster-coco-eval") as caught:
        check_run(config)
    assert caught.value.remedy == "pip install 'ifr[boundary]'"


def refused(key: str) -> bool:
    """Check whether building a detector or starting a run refuses any value but the default."""
    config = RCNNFPNConfig()
    config.merge_from_list(["MODEL.RESNETS.DEPTH", 50])
    default = dict(leaves(DEFAULTS))[key]
    other = {bool: not default, int: 7, float: 0.7, str: "other", list: ["other"]}.get(type(default), "other")
    config.merge_from_list([key, other])
    for check in (check_supported, check_run):
        try:
            check(config)
        except ValueError as error:
            if str(error).startswith(f"{key} = ") and "only" in str(error):
                return True
    return False


def test_every_setting_is_read_or_fixed_at_its_default() -> None:
    own = [path for path in (ROOT / "ifr").rglob("*.py") if "cvpods" not in path.parts]
    code = "\n".join(path.read_text() for path in own if path.name not in ("defaults.py", "supported.py", "recipes.py"))
    read = set(re.findall(r"\.([A-Z][A-Z0-9_]+)\b", code))
    ignored = [key for key, _ in leaves(DEFAULTS) if key.rpartition(".")[2] not in read and not refused(key)]
    assert ignored == ["MODEL.RESNETS.RES2_OUT_CHANNELS"]  # determined by the depth, which `supported` checks
