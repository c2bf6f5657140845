"""The comparison with torchvision's detector runs."""

import detector
import pytest
import torch


def test_every_stage_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(detector, "DETECTIONS", 2)
    device = torch.device("cpu")
    with torch.inference_mode():
        detector.compare(64, 96, 1, device)
        detector.time_mask_heads(device)
    lines = capsys.readouterr().out.splitlines()
    assert "detections: own (" in lines[0]
    assert [line.split()[0] for line in lines[1:7]] == list(detector.STAGES)
    assert [line.split()[2] for line in lines[8:]] == ["conv", "explicit", "implicit"]
