"""SOLVER.EMA in cvpods: the moving average of the weights is what is tested and saved, as in the standalone host."""

from typing import Any

from ifr.checkpoints.load import unwrapped
from ifr.hosts.cvpods.framework import HookBase
from ifr.hosts.standalone.engine.ema import MovingAverage


def keep_average(runner: Any, decay: float) -> MovingAverage:
    """Let a runner that has not started yet keep a moving average; returns it, for resuming."""
    average = MovingAverage(unwrapped(runner.model), decay)
    save, test = runner.checkpointer.save, runner.test

    def save_average(name: str, **extras: Any) -> None:
        with average.in_model() as own:
            ema = {"updates": average.updates, "own": {key: value.cpu() for key, value in own.items()}}
            save(name, ema=ema, **extras)

    def test_average(*arguments: Any, **settings: Any) -> Any:
        with average.in_model():
            return test(*arguments, **settings)

    runner.checkpointer.save, runner.test = save_average, test_average
    runner.register_hooks([_Update(average)])
    runner._hooks.insert(1, runner._hooks.pop())  # after the optimizer's hook, before those that save and test
    return average


class _Update(HookBase):  # type: ignore[misc]  # whatever cvpods has
    """Takes in the weights after each iteration."""

    def __init__(self, average: MovingAverage) -> None:
        self._average = average

    def after_step(self) -> None:
        """Called by the runner."""
        self._average.update()
