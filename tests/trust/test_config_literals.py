"""A setting on the command line is a literal: nothing in it is called, looked up or computed."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifr.errors import ConfigError
from ifr.hosts.standalone.config import RCNNFPNConfig

TEXT_KEYS = ("OUTPUT_DIR", "MODEL.WEIGHTS", "DATASETS.TRAIN")
OTHER_KEYS = ("SEED", "SOLVER.OPTIMIZER.BASE_LR", "MODEL.MASK_ON", "SOLVER.LR_SCHEDULER.STEPS", "MODEL.ROI_MASK_HEAD")


def value_of(key, text):
    config = RCNNFPNConfig()
    config.merge_from_list([key, text])
    node = config
    for part in key.split("."):
        node = getattr(node, part)
    return node


def code(marker):
    return [
        f"__import__('os').system('touch {marker}')",
        f"open({str(marker)!r}, 'w')",
        f"(lambda: open({str(marker)!r}, 'w'))()",
        f"[open(name, 'w') for name in ({str(marker)!r},)]",
        f"f\"{{open({str(marker)!r}, 'w')}}\"",
        "().__class__.__base__.__subclasses__()",
        "1 if print else 2",
        "2 ** 2 ** 100",
        "'a' * 10 ** 10",
        "!!python/object/apply:os.system ['true']",
        "$(touch x)",
        "`touch x`",
    ]


@pytest.mark.parametrize("number", range(len(code("x"))))
def test_code_stays_text_or_is_rejected(tmp_path, number, monkeypatch):
    marker = tmp_path / "executed"
    monkeypatch.chdir(tmp_path)
    text = code(marker)[number]
    for key in TEXT_KEYS:
        assert value_of(key, text) == ([text] if key == "DATASETS.TRAIN" else text)
    for key in OTHER_KEYS:
        with pytest.raises(ConfigError, match=key):
            value_of(key, text)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    ["${oc.env:HOME}", "a/${MODEL.DEVICE}", "${oc.create:{a: 1}}", "['${oc.env:HOME}']", "{'a': '${oc.env:X}'}", "${"],
)
def test_interpolation_is_rejected(text):
    """OmegaConf would look up environment variables or other settings when the value is read."""
    for key in ("OUTPUT_DIR", "DATASETS.TRAIN", "INPUT.AUG.TRAIN_PIPELINES"):
        with pytest.raises(ConfigError, match=rf"{key}.* must (not contain|be of type)"):
            value_of(key, text)
    config = RCNNFPNConfig()
    with pytest.raises(ConfigError, match="OUTPUT_DIR must not contain"):
        config._register_configuration({"OUTPUT_DIR": "${oc.env:HOME}"})


@pytest.mark.parametrize("text", ["(" * 5000, "-" * 100_000 + "1", "1" * 5000, "[" * 99_999])
def test_text_that_the_parser_cannot_handle_stays_text(text):
    assert value_of("OUTPUT_DIR", text) == text
    with pytest.raises(ConfigError, match="SEED must be of type int"):
        value_of("SEED", text)


def test_braces_are_never_text():
    """Whoever writes a mapping means one, even if the parser cannot handle it."""
    text = "{'a':" * 300 + "1" + "}" * 300
    for key, kind in (("OUTPUT_DIR", "str"), ("SEED", "int")):
        with pytest.raises(ConfigError, match=f"{key} must be of type {kind}"):
            value_of(key, text)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(max_size=40))
def test_any_text_is_kept_or_rejected(text):
    try:
        value = value_of("OUTPUT_DIR", text)
    except ConfigError:
        return
    assert isinstance(value, str) or value is None
