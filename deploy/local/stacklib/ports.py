"""Ports: choosing free ones, and whose a listening one is."""

import os
import random
import socket
from pathlib import Path
from typing import Iterable

from .common import HOST, Failure

# Where the kernel hands out ports for outgoing connections. A service that is down for a while must
# find its port again, so all of ours lie below.
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
SPAN = 12_000


def choose(count: int, reserved: set[int]) -> list[int]:
    """`count` ports that nobody listens on. At random, so that two checkouts that know nothing of
    each other hardly ever choose the same; `reserved` are those of our own stopped stacks."""
    first_ephemeral = int(EPHEMERAL.read_text().split()[0])
    candidates = range(max(1024, first_ephemeral - SPAN), first_ephemeral)
    chosen: list[int] = []
    for port in random.sample(candidates, len(candidates)):
        if port not in reserved and is_free(port):
            chosen.append(port)
            if len(chosen) == count:
                return chosen
    raise Failure(f"no {count} free ports from {candidates.start} to {candidates.stop - 1}")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do it: connections that linger from before are no obstacle, a listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def listens(pid: int, wanted: Iterable[int]) -> bool:
    sockets = _sockets(pid)
    return all(_listeners(port) & sockets for port in wanted)


def owner(port: int) -> str:
    inodes = _listeners(port)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _sockets(int(entry.name)) & inodes:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            return f"pid {entry.name} ({command.strip()[:80]})"
    return "another process"


def _listeners(port: int) -> set[str]:
    """Inodes of the sockets that listen on the port, on whatever address."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            fields = line.split()
            # 0A is LISTEN.
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes


def _sockets(pid: int) -> set[str]:
    inodes = set()
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            target = os.readlink(entry.path)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    except OSError:
        # Gone meanwhile, or another user's.
        pass
    return inodes
