"""Lines that say how far a long step is."""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_SECONDS = 5.0


def progress(items: Sequence[_Item], what: str) -> Iterator[_Item]:
    """Iterate over items, and log every 5 seconds how many are done.

    Args:
        items: the items.
        what: what is done with them, such as "checking annotations".
    """
    last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last > _SECONDS:
            logger.info("%s: %d of %d done", what, done, len(items))
            last = now
        yield item
