"""A stack: three services under one name, its ports and its data in one folder.

`stack.json` is written once, when the ports are chosen, so a stack comes back on the same ports
with the same data. Whoever changes a stack holds its lock.
"""

import contextlib
import json
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

from . import ports
from .common import HOST, STACKS, Failure, locked, tail, write_atomically
from .process import stop
from .services import ClickHouse, Kafka, Redis, Service, new_kafka_id

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
POLL_SECONDS = 0.03
LOG_LINES = 40
# Brokers that leave together wait for a quorum that is no more.
REMOVAL_GRACE_SECONDS = 2.0


class Stack:
    def __init__(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise Failure(f"a stack's name is lower-case letters, digits, '.', '_' and '-', not {name!r}")
        self.name = name
        self.folder = STACKS / name
        self.services: list[Service] = []
        if self.exists():
            self._load()

    def exists(self) -> bool:
        return self._file.exists()

    @property
    def _file(self) -> Path:
        return self.folder / "stack.json"

    def lock(self):
        """Held while the stack is changed; what is on disk may differ from before the wait."""
        return locked(f"stack-{self.name}", f"another command on stack {self.name} to end")

    def create(self, kafka_brokers: int, redis_fsync: str) -> None:
        # An even number of voters survives no more losses than the odd one below it.
        voters = kafka_brokers - 1 + kafka_brokers % 2
        with locked("ports"):
            free = iter(ports.choose(kafka_brokers + voters + 3, _reserved_ports()))
            chosen = {"redis": {"main": next(free)}, "clickhouse": {"http": next(free), "native": next(free)}}
            for node in range(1, kafka_brokers + 1):
                chosen[f"kafka-{node}"] = {"main": next(free)}
                if node <= voters:
                    chosen[f"kafka-{node}"]["controller"] = next(free)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps({
                "kafka_brokers": kafka_brokers,
                "redis_fsync": redis_fsync,
                "cluster_id": new_kafka_id(),
                "ports": chosen,
            }, indent=2) + "\n")
        self._load()

    def _load(self) -> None:
        state = json.loads(self._file.read_text())
        self.kafka_brokers: int = state["kafka_brokers"]
        self.redis_fsync: str = state["redis_fsync"]
        own = state["ports"]
        nodes = range(1, self.kafka_brokers + 1)
        voters = {node: own[f"kafka-{node}"]["controller"] for node in nodes if "controller" in own[f"kafka-{node}"]}
        self.services = [
            *(Kafka(node, self.kafka_brokers, self.folder / f"kafka-{node}", own[f"kafka-{node}"], voters,
                    state["cluster_id"]) for node in nodes),
            Redis(self.folder / "redis", own["redis"], self.redis_fsync),
            ClickHouse(self.folder / "clickhouse", own["clickhouse"]),
        ]

    def require(self) -> None:
        if not self.exists():
            raise Failure(f"there is no stack {self.name}; make it with: deploy/local/stack up {self.name}")

    def select(self, names: list[str]) -> list[Service]:
        """`kafka` names every broker; in a stack of one broker it is that one."""
        chosen = []
        for name in names:
            found = [s for s in self.services if s.name == name or (name == "kafka" and isinstance(s, Kafka))]
            if not found:
                known = ", ".join(s.name for s in self.services)
                raise Failure(f"stack {self.name} has no service {name!r}; it has {known}, and kafka for all brokers")
            chosen += found
        return chosen

    def start(self, services: list[Service], seconds: float) -> None:
        """Starts those that do not run, wakes those that are paused, and waits for all of them.

        When it fails or is interrupted, whatever it started is ended again.
        """
        started = []
        try:
            for service in services:
                if service.process.pid() is None:
                    started.append(service)
                    service.start()
                else:
                    service.process.resume()
            wait_until_serving(services, seconds)
        except BaseException:
            with undisturbed():
                for service in started:
                    service.process.kill()
            raise

    def stop(self, services: list[Service]) -> None:
        stop([s.process for s in services], max((s.stop_seconds for s in services), default=0.0))

    def stop_for_good(self) -> None:
        """What is about to be removed need not be put away tidily."""
        stop([s.process for s in self.services], REMOVAL_GRACE_SECONDS)

    def remove(self) -> None:
        """The services must have ended. The record goes last: an interrupted removal is repeated."""
        for entry in self.folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry != self._file:
                entry.unlink()
        self._file.unlink(missing_ok=True)
        self.folder.rmdir()

    def environment(self) -> str:
        by_name = {s.name: s for s in self.services}
        brokers = [s for s in self.services if isinstance(s, Kafka)]
        values = {
            "SLUICE_KAFKA__BROKERS": ",".join(f"{HOST}:{s.ports['main']}" for s in brokers),
            "SLUICE_REDIS__URL": f"redis://{HOST}:{by_name['redis'].ports['main']}",
            "SLUICE_CLICKHOUSE__URL": f"http://{HOST}:{by_name['clickhouse'].ports['http']}",
            "STACK_NAME": self.name,
            "STACK_DIR": str(self.folder),
        }
        for service in self.services:
            label = service.name.upper().replace("-", "_")
            if len(brokers) == 1:
                label = label.replace("KAFKA_1", "KAFKA")
            values[f"STACK_{label}_PID"] = str(service.process.pid() or "")
        return "".join(f"{key}={shlex.quote(value) if value else ''}\n" for key, value in values.items())


def existing() -> list[Stack]:
    return [Stack(file.parent.name) for file in sorted(STACKS.glob("*/stack.json"))]


def wait_until_serving(services: list[Service], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    waiting = list(services)
    while waiting:
        for service in list(waiting):
            if service.serves():
                waiting.remove(service)
            elif service.process.pid() is None:
                service.require_ports()
                raise Failure(f"{service.name} ended while it was starting; {_log_of(service)}")
        if waiting and time.monotonic() >= deadline:
            logs = "\n".join(_log_of(service) for service in waiting)
            names = ", ".join(service.name for service in waiting)
            raise Failure(f"not serving after {seconds:.0f} s: {names}\n{logs}")
        if waiting:
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def undisturbed():
    """Cleaning up is short and bounded; a second Ctrl-C must not cut it off."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_of(service: Service) -> str:
    return f"the end of {service.process.log}:\n{tail(service.process.log, LOG_LINES)}"


def _reserved_ports() -> set[int]:
    reserved = set()
    for file in STACKS.glob("*/stack.json"):
        with contextlib.suppress(FileNotFoundError):
            for own in json.loads(file.read_text())["ports"].values():
                reserved.update(own.values())
    return reserved
