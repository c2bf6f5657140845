"""The long cases run only when they are asked for by name: `sh tests/run.sh -m soak`."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "soak" in str(config.getoption("-m")):
        return
    skip = pytest.mark.skip(reason="takes long; run with -m soak")
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(skip)
