"""The first worker may take longer to write and to score than torch's timeout: the others wait for it."""

from pathlib import Path

from tiny_experiment import metrics
from workers import run_with_slow_first_worker


def test_a_slow_checkpoint_and_slow_scoring_do_not_end_the_run(tiny: Path, tmp_path: Path) -> None:
    output = run_with_slow_first_worker(tiny, tmp_path, "cpu")
    step, results = metrics(output)
    assert step["iteration"] == 1
    assert any(name.endswith("segm/AP") for name in results)
    assert (output / "model_final.pth").exists()
