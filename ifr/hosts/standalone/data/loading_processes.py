"""How a data loader starts its processes."""

import sys
from typing import Any


def loading_processes(count: int) -> dict[str, Any]:
    """Arguments of DataLoader for `count` processes, 0 for none.

    On Linux they are forked, whatever Python's default is (since 3.14 it is another), because `kept_from_children`
    covers forked ones alone. macOS does not fork safely: there they are started afresh, and a signal to all processes
    of a run also ends those that load its data.
    """
    forks = count > 0 and sys.platform.startswith("linux")
    return {"num_workers": count, "multiprocessing_context": "fork" if forks else None}
