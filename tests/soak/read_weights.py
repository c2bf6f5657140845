"""Reads hostile checkpoints under guard and writes what came of it as JSON; started by the tests, one process a chunk.

python read_weights.py SCRATCH mutated KIND FIRST COUNT
python read_weights.py SCRATCH files FILE ...
"""

import codecs
import json
import shutil
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

from guard import Forbidden, Guard, megabytes_of
from mutations import KINDS, corpus, mutate, seeded
from torch.utils._python_dispatch import _disable_current_modes

from ifr.checkpoints import read_checkpoint
from ifr.errors import CheckpointError

_MEGABYTES = 1024


def main(scratch: Path, way: str, *arguments: str) -> None:
    marker = scratch / "executed"
    target = scratch / "file.pth"
    for kind in KINDS:  # whatever is imported or compiled on first use
        for content in corpus(kind, str(marker)):
            target.write_bytes(content)
            read(target)
    for codec in ("ascii", "cp437", "latin1", "raw_unicode_escape", "unicode_escape", "utf-8"):
        codecs.lookup(codec)  # which Python imports when they are first asked for
    with _disable_current_modes():  # for which torch imports modules of its own on some errors
        pass
    guard = Guard(_MEGABYTES)
    guard.seal()
    before = megabytes_of("VmRSS")
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    by_file: dict[str, str] = {}
    slowest = 0.0
    for name, path in files(guard, scratch, way, arguments):
        started = time.process_time()
        guard.start_clock()
        try:
            outcome = read(path)
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"[:300]
            wrong.append(f"{name}: {outcome}")
            outcome = "wrong"
            guard.unseal()  # torch names storages by addresses, so that no seed alone brings a file back
            shutil.copy(path, scratch / f"wrong-{len(wrong)}")
            guard.reseal()
        guard.stop_clock()
        slowest = max(slowest, time.process_time() - started)
        outcomes[outcome] += 1
        if way == "files":
            by_file[name] = outcome
    guard.unseal()
    result = {
        "outcomes": outcomes,
        "by_file": by_file,
        "wrong": wrong + guard.broken,
        "executed": marker.exists(),
        "slowest": slowest,
        "megabytes": megabytes_of("VmHWM") - before,
    }
    (scratch / "result.json").write_text(json.dumps(result))


def files(guard: Guard, scratch: Path, way: str, arguments: tuple[str, ...]):
    """Names and paths of the files to read."""
    if way == "files":
        yield from ((argument, Path(argument)) for argument in arguments)
        return
    kind, first, count = arguments
    originals = corpus(kind, str(scratch / "executed"))
    path = scratch / ("file.safetensors" if kind == "safetensors" else "file.pth")
    for number in range(int(first), int(first) + int(count)):
        generator = seeded(kind, number)
        guard.unseal()
        path.write_bytes(mutate(kind, generator.choice(originals), originals, generator))
        guard.reseal()
        yield f"{kind} {number}", path


def read(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, (MemoryError, Forbidden)):
                    raise RuntimeError(f"{type(cause).__name__} behind {error}") from error
                cause = cause.__cause__ or cause.__context__
            if "\n" in str(error) or str(path) not in str(error) or len(str(error)) > 2500:
                raise RuntimeError(f"not one line that names the file: {error}") from error
            return "refused"
        return "read"


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
