"""How workers tell the process that started them what they raised."""

import contextlib
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

from torch import multiprocessing

from ifr.hosts.standalone.portable_errors import PortableError

_PATIENCE = 5.0  # seconds, for the end of a pipe that a dying process still holds


class Mailboxes:
    """A pipe from each worker, read by a thread of its own.

    A message may be longer than a pipe holds, and a worker may be killed in the middle of one; neither keeps another
    worker or this process waiting.
    """

    def __init__(self, count: int) -> None:
        pipes = [multiprocessing.Pipe(duplex=False) for _ in range(count)]
        self.writers = [writer for _, writer in pipes]
        """For the workers, each of which takes its own by `send`."""
        self._found: list[tuple[float, int, PortableError]] = []
        self._threads = [
            threading.Thread(target=self._read, args=(index, reader), daemon=True)
            for index, (reader, _) in enumerate(pipes)
        ]

    def open(self) -> None:
        """Read from now on; the workers have been started."""
        for writer in self.writers:
            writer.close()
        for thread in self._threads:
            thread.start()

    def errors(self) -> list[tuple[int, Exception]]:
        """What the workers raised, by index, the first first; they have all ended."""
        for thread in self._threads:
            thread.join(_PATIENCE)
        return [(index, error.restored()) for _, index, error in sorted(self._found, key=lambda item: item[:2])]

    def _read(self, index: int, reader: Connection) -> None:
        with reader, contextlib.suppress(EOFError, OSError):  # it ended without a message, or in the middle of one
            moment, error = reader.recv()
            self._found.append((moment, index, error))


def send(writers: Sequence[Connection], index: int, error: PortableError) -> None:
    """In a worker: say what was raised, into the pipe of its index."""
    writers[index].send((time.monotonic(), error))
