"""Files made to exhaust or to deceive a reader are refused at once, in little memory; each is small itself."""

from pathlib import Path

import pytest
from bombs import BOMBS, READ, sound
from readers import guarded


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Of every bomb by its name and of every sound file, all read by one guarded process."""
    folder: Path = tmp_path_factory.mktemp("bombs")
    paths = {}
    for number, (name, write) in enumerate({**BOMBS, **READ}.items()):
        write(folder / f"{number}.pth")
        (paths[name],) = folder.glob(f"{number}.*")
    expected = sound(folder)
    result = guarded(folder, "files", *paths.values(), *expected)
    assert result["megabytes"] < 200
    by_name = {name: result["by_file"][str(path)] for name, path in paths.items()}
    details = {name: line for line in result["wrong"] for name, path in paths.items() if str(path) in line}
    return {**by_name, **details}, [result["by_file"][str(path)] for path in expected]


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(outcomes, name):
    assert outcomes[0][name] == "refused"


@pytest.mark.parametrize("name", READ)
def test_what_torch_reads_does_no_harm_here(outcomes, name):
    assert outcomes[0][name] == "read"


def test_what_claims_nothing_wrong_is_read(outcomes):
    assert outcomes[1] == ["read"] * 5
