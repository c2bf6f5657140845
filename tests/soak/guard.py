"""Limits of a process that reads hostile files: no code, no writing, no network, little memory, little time."""

import faulthandler
import resource
import signal
import sys
from pathlib import Path

_SECONDS = 10  # of computing for one file
# Audit events (docs.python.org, "Audit events table") that reading weights has no reason for.
_FORBIDDEN = (
    "builtins.input", "code.__new__", "compile", "ctypes", "exec", "ftplib", "function.__new__", "http.client",
    "import", "marshal", "os.chmod", "os.exec", "os.fork", "os.link", "os.mkdir", "os.posix_spawn", "os.putenv",
    "os.remove", "os.rename", "os.spawn", "os.startfile", "os.symlink", "os.system", "pickle.find_class", "pty.spawn",
    "shutil", "smtplib", "socket", "subprocess.Popen", "sys.addaudithook", "sys.setprofile", "sys.settrace", "urllib",
)  # fmt: skip


class Forbidden(BaseException):
    """Something was done that reading must not do; no `except Exception` hides it."""


class Guard:
    """Once it is sealed, the process can do nothing but read.

    Args:
        megabytes: of memory that it may take from then on.
    """

    def __init__(self, megabytes: int) -> None:
        self.megabytes = megabytes
        self.broken: list[str] = []
        self._sealed = False

    def seal(self) -> None:
        faulthandler.enable()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports (proc(5))
        taken = int(megabytes_of("VmSize") * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (taken + self.megabytes * 2**20,) * 2)
        signal.signal(signal.SIGPROF, _too_slow)
        sys.addaudithook(self._audit)
        self._sealed = True

    def unseal(self) -> None:
        """Until `reseal`; the limit of memory stays."""
        self._sealed = False

    def reseal(self) -> None:
        self._sealed = True

    def start_clock(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)

    def stop_clock(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._sealed:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes or event.startswith(_FORBIDDEN):
            self.broken.append(f"{event} {arguments!r:.200}")
            raise Forbidden(event)


def megabytes_of(kind: str) -> float:
    """Of this process's memory: VmSize its addresses, VmRSS what is resident, VmHWM the most of it so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def _too_slow(*_: object) -> None:
    raise Forbidden(f"a file took more than {_SECONDS} s")
