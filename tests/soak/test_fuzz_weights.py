"""No mutated checkpoint runs code, breaks the interpreter, takes memory that it does not have or raises anything odd.

The long form, 10,000 files of each format: sh tests/run.sh tests/soak/test_fuzz_weights.py -m soak
"""

import os
import subprocess
import sys
import time
from collections import Counter

import pytest
from mutations import KINDS
from readers import READER, ROOT, guarded

_CHUNK = 2500  # files of one process
_MOST_MEGABYTES = 100


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_refused(tmp_path, kind, count, capsys):
    started = time.monotonic()
    outcomes: Counter[str] = Counter()
    slowest = most = 0.0
    for first in range(0, count, _CHUNK):
        result = guarded(tmp_path, "mutated", kind, str(first), str(min(_CHUNK, count - first)))
        assert result["wrong"] == []
        assert not result["executed"]
        assert result["megabytes"] < _MOST_MEGABYTES
        outcomes.update(result["outcomes"])
        slowest, most = max(slowest, result["slowest"]), max(most, result["megabytes"])
    assert sum(outcomes.values()) == count
    assert outcomes["refused"] > count / 10  # otherwise the mutations would change nothing of interest
    assert outcomes["read"] > 0
    with capsys.disabled():
        seconds = time.monotonic() - started
        sys.stdout.write(
            f"\n{kind}: {count} files, {outcomes['read']} read, {outcomes['refused']} refused, {seconds:.0f} s, "
            f"slowest {slowest:.2f} s, {most:.1f} MB more\n"
        )


def test_the_guard_sees_what_it_should(tmp_path):
    """A reader that unpickles is caught: the check of the check."""
    program = tmp_path / "bad.py"
    program.write_text(
        "import os, pickle, sys\n"
        f"import site; site.addsitedir({str(READER.parent)!r})\n"
        "from guard import Guard\n"
        "from mutations import payloads\n"
        f"data = [pickle.dumps(payload) for payload in payloads({str(tmp_path / 'executed')!r})]\n"
        "guard = Guard(512)\n"
        "guard.seal()\n"
        "for item in data:\n"
        "    try:\n"
        "        pickle.loads(item)\n"
        "    except BaseException as error:\n"
        "        assert type(error).__name__ == 'Forbidden', error\n"
        "assert len(guard.broken) == len(data), guard.broken\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "executed").exists()
