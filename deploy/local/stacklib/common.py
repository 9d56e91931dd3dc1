"""Where things live, how failures are told, and the locks. Nothing here knows a service."""

import contextlib
import fcntl
import os
import sys
from pathlib import Path

HOST = "127.0.0.1"
REPO = Path(__file__).resolve().parents[3]
LOCAL = Path(os.environ.get("SLUICE_LOCAL_DIR") or REPO / ".local").resolve()
INSTALL = LOCAL / "install"
STACKS = LOCAL / "stacks"
LOCKS = LOCAL / "locks"


class Failure(Exception):
    """Something the person at the terminal has to know; printed as it is, exit status 1."""


def say(message: str) -> None:
    print(f"stack: {message}", flush=True)


def warn(message: str) -> None:
    print(f"stack: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(name: str, waiting_for: str = ""):
    """Holds the named lock against every other process with the same state folder.

    Waits as long as it takes; says what it is waiting for, if that is given.

    The kernel drops it when the holder dies, however it dies. The file may be removed by a
    holder (`unlink` on the yielded path), so a lock won on a removed file is no lock: try again.
    """
    LOCKS.mkdir(parents=True, exist_ok=True)
    path = LOCKS / f"{name}.lock"
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting_for:
                warn(f"waiting for {waiting_for}")
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            except BaseException:
                os.close(fd)
                raise
        try:
            current = os.stat(path).st_ino == os.fstat(fd).st_ino
        except FileNotFoundError:
            current = False
        if current:
            break
        os.close(fd)
    try:
        yield path
    finally:
        os.close(fd)


def write_atomically(path: Path, text: str) -> None:
    """A reader, or a run after a crash, sees the old text or the new one and never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def tail(path: Path, lines: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 64 * 1024))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return "    (no log)"
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (empty log)"
