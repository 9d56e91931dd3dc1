"""Processes that outlive the command that started them, and that only we may end.

A process is known by its pid and its start time, written by the process itself before it becomes
the service: so there is no moment at which it runs unrecorded, and a recycled pid never passes
for ours.
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from .common import Failure

POLL_SECONDS = 0.02


class Process:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "pid"
        self.log = folder / "log"

    def spawn(self, argv: list[str]) -> None:
        """In a session of its own, without the caller's terminal or descriptors."""

        def record() -> None:
            pid = os.getpid()
            self._file.write_text(f"{pid} {_stat(pid).started}\n")

        with self.log.open("ab") as log:
            log.write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {' '.join(argv)[:200]}\n".encode())
            log.flush()
            child = subprocess.Popen(argv, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                     start_new_session=True, preexec_fn=record)
        # Only so that the interpreter does not complain of a child left running.
        child.returncode = 0

    def pid(self) -> "int | None":
        """None when it never started or has ended; a zombie has ended, once none of its threads holds a port any more."""
        try:
            pid, started = map(int, self._file.read_text().split())
        except (FileNotFoundError, ValueError):
            return None
        stat = _stat(pid)
        if stat is None or stat.started != started:
            return None
        return None if stat.state in "ZX" and stat.threads <= 1 else pid

    def paused(self) -> bool:
        pid = self.pid()
        stat = None if pid is None else _stat(pid)
        return stat is not None and stat.state == "T"

    def seconds_up(self) -> float:
        pid = self.pid()
        stat = None if pid is None else _stat(pid)
        if stat is None:
            return 0.0
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, uptime - stat.started / os.sysconf("SC_CLK_TCK"))

    def signal(self, number: int) -> None:
        pid = self.pid()
        if pid is not None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def wait_gone(self, seconds: float) -> bool:
        return _until(lambda: self.pid() is None, seconds)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if not self.wait_gone(10):
            raise Failure(f"pid {self.pid()} ({self.folder.name}) does not end at SIGKILL")

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)
        if not _until(self.paused, 5):
            raise Failure(f"{self.folder.name} is not running, so it cannot be paused")

    def resume(self) -> None:
        self.signal(signal.SIGCONT)


def stop(processes: list[Process], seconds: float) -> None:
    """Asks all of them at once, waits for all of them, and ends those that do not listen."""
    for process in processes:
        process.signal(signal.SIGTERM)
        # A paused process sees the SIGTERM only once it runs again.
        process.resume()
    deadline = time.monotonic() + seconds
    for process in processes:
        if not process.wait_gone(max(0.0, deadline - time.monotonic())):
            process.kill()


def _until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


class Stat(NamedTuple):
    """What the kernel tells of a process: its state's letter, how many threads are left, when it started, in clock ticks
    since boot."""

    state: str
    threads: int
    started: int


def _stat(pid: int) -> "Stat | None":
    try:
        # The name in parentheses may itself hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Stat(fields[0], int(fields[17]), int(fields[19]))
