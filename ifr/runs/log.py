"""log.txt: everything that IFR logs during a run."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from ifr.errors import Stopped

logger = logging.getLogger(__name__)

_FORMAT = "%(asctime)s %(levelname)s %(message)s"


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append to a file everything that IFR logs while the context is open, and the error that ends it."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger("ifr")
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    except Exception as error:  # only into the file: the caller shows the error to the user
        if isinstance(error, Stopped):
            record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, "stopped %s", (error,), None)
        else:
            trace = sys.exc_info()
            record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "stopped: %s", (error,), trace)
        handler.handle(record)
        raise
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


class _LogFile(logging.FileHandler):
    """A log file that reports a full disk once, on the terminal, and continues."""

    _reported = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Report that a line cannot be written, once."""
        if not self._reported:
            self._reported = True
            sys.stderr.write(f"{self.baseFilename}: cannot be written ({sys.exc_info()[1]}); training goes on\n")
