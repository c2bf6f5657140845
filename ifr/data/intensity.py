"""Scale pictures with more than 8 bits per channel, such as those from microscopes, to 8 bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SETTING = "INPUT.INTENSITY.BOUNDS or INPUT.INTENSITY.PERCENTILES"


@dataclass(frozen=True)
class Intensity:
    """Maps intensities linearly so that two bounds become 0 and 255; values outside are clipped.

    Args:
        low: the lower bound, or its percentile.
        high: the upper bound, or its percentile.
        percentiles: compute the bounds of each picture as percentiles of its finite values.
    """

    low: float
    high: float
    percentiles: bool = False

    def scale(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Scale numbers of any shape to uint8 0-255; NaN and pictures with equal percentiles become 0.

        Raises:
            ValueError: no value is finite.
        """
        values = values.astype(np.float64)
        finite = np.isfinite(values)
        if not finite.any():
            raise ValueError("no value is finite")
        low, high = self.low, self.high
        if self.percentiles:
            low, high = np.percentile(values[finite], (low, high)).tolist()
        share = np.clip((values - low) / ((high - low) or np.inf), 0, 1)
        return np.rint(np.nan_to_num(255 * share)).astype(np.uint8)


def build_intensity(bounds: Sequence[float], percentiles: Sequence[float]) -> Intensity | None:
    """Build the scaling from INPUT.INTENSITY.BOUNDS and INPUT.INTENSITY.PERCENTILES; None if both are empty.

    Raises:
        ValueError: both are given, the bounds are not two ascending numbers, or percentiles are not from 0 to 100.
    """
    if bounds and percentiles:
        raise ValueError("give either INPUT.INTENSITY.BOUNDS or INPUT.INTENSITY.PERCENTILES, not both")
    if not bounds and not percentiles:
        return None
    name, pair = ("BOUNDS", bounds) if bounds else ("PERCENTILES", percentiles)
    numbers = [value for value in pair if isinstance(value, int | float) and np.isfinite(value)]
    if len(pair) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"INPUT.INTENSITY.{name} takes [low, high] with low < high, got {list(pair)}")
    if percentiles and not 0 <= numbers[0] < numbers[1] <= 100:
        raise ValueError(f"INPUT.INTENSITY.PERCENTILES must be from 0 to 100, got {list(pair)}")
    return Intensity(float(numbers[0]), float(numbers[1]), percentiles=bool(percentiles))
