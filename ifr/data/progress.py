"""Lines that say how far a long step is."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
SECONDS = 5.0
"""Between two lines."""


def progress(items: Iterable[_Item], count: int, what: str) -> Iterator[_Item]:
    """Iterate over items, and log every 5 seconds how many are done.

    Args:
        items: the items.
        count: their number.
        what: what is done with them, such as "checking annotations".
    """
    last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last > SECONDS:
            logger.info("%s: %d of %d done", what, done, count)
            last = now
        yield item
