"""Starts one worker as `launch` does, in a new interpreter, and waits to be killed.

    python tests/helpers/orphans.py early|late FOLDER

The worker writes its process id to FOLDER/pid. An `early` worker calls `die_with_parent` first and then blocks in a
call that no Python handler interrupts. A `late` worker calls it only after its parent is dead. It is started without
torch, whose own watch for the parent starts a little earlier and has the same gap.
"""

import hashlib
import multiprocessing
import os
import sys
import time
from pathlib import Path

from ifr.processes.signals import die_with_parent


def work(moment: str, folder: Path) -> None:
    """Run the worker; it creates FOLDER/survived if nothing killed it."""
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
