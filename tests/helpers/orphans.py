"""Starts one worker as `launch` does, in a new interpreter, and waits to be killed.

    python tests/helpers/orphans.py early|late FOLDER

The worker leaves its process id in FOLDER/pid. One that is `early` ties itself to its parent first and then stays in a
call that no handler of Python's interrupts. One that is `late` does so only once its parent is dead; it is started
without torch, whose own watch for the parent begins a little earlier and has the same gap.
"""

import hashlib
import multiprocessing
import os
import sys
import time
from pathlib import Path

from ifr.processes.signals import die_with_parent


def work(moment: str, folder: Path) -> None:
    """The worker; it leaves FOLDER/survived if it is still there in the end."""
    parent = os.getppid()
    if moment == "early":
        die_with_parent()
    (folder / "part").write_text(str(os.getpid()))
    (folder / "part").rename(folder / "pid")
    if moment == "early":
        hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)
    else:
        while os.getppid() == parent:
            time.sleep(0.01)
        die_with_parent()
    (folder / "survived").touch()


if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=work, args=(sys.argv[1], Path(sys.argv[2])))
    worker.start()
    worker.join()
