"""The three services: what each writes before it starts, how it is run, how it is asked.

A service owns one folder of its stack. `prepare` may be called before every start: it writes
configuration again and never touches data that is there.
"""

import base64
import shutil
import socket
import struct
import uuid
from pathlib import Path

from . import ports
from .common import HOST, Failure, write_atomically
from .install import CLICKHOUSE_PYTHON, KAFKA, clickhouse_library
from .process import Process

# How long one probe may take before it counts as "not yet".
PROBE_SECONDS = 1.0


class PortTaken(Failure):
    pass


class Service:
    """One process of a stack. `ports` are the ones it listens on, by purpose."""

    # What a clean stop may take before SIGKILL.
    stop_seconds = 15.0

    def __init__(self, name: str, folder: Path, own_ports: dict[str, int]) -> None:
        self.name = name
        self.folder = folder
        self.ports = own_ports
        self.process = Process(folder)

    def prepare(self) -> None:
        raise NotImplementedError

    def argv(self) -> list[str]:
        raise NotImplementedError

    def probe(self) -> bool:
        """True when it answered a real request; OSError and False both mean not yet."""
        raise NotImplementedError

    def serves(self) -> bool:
        """Answers, and it is this process that answers, not another one on the same port."""
        pid = self.process.pid()
        try:
            return pid is not None and self.probe() and ports.listens(pid, self.ports.values())
        except (OSError, struct.error):
            return False

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prepare()
        self.require_ports()
        self.process.spawn(self.argv())

    def require_ports(self) -> None:
        for port in self.ports.values():
            if not ports.is_free(port):
                raise PortTaken(
                    f"{self.name} cannot start: its port {port} is taken by {ports.owner(port)}; end that, or"
                    " `down` this stack and make it again with other ports")


class Redis(Service):
    def __init__(self, folder: Path, own_ports: dict[str, int], fsync: str) -> None:
        super().__init__("redis", folder, own_ports)
        self._fsync = fsync

    def prepare(self) -> None:
        write_atomically(self.folder / "redis.conf", "\n".join([
            f"bind {HOST}",
            f"port {self.ports['main']}",
            f'dir "{self.folder}"',
            "daemonize no",
            # The append-only file alone is the durability; no snapshots beside it.
            'save ""',
            "appendonly yes",
            f"appendfsync {self._fsync}",
            "set-proc-title no",
            "",
        ]))

    def argv(self) -> list[str]:
        return ["redis-server", str(self.folder / "redis.conf")]

    def probe(self) -> bool:
        with connect(self.ports["main"]) as link:
            link.sendall(b"PING\r\n")
            # -LOADING while it reads its append-only file.
            return link.recv(64).startswith(b"+PONG")


class ClickHouse(Service):
    def __init__(self, folder: Path, own_ports: dict[str, int]) -> None:
        super().__init__("clickhouse", folder, own_ports)

    def prepare(self) -> None:
        # The pools: the library's own defaults are those of a one-shot command, too few for merges
        # and the Kafka engine beside each other. The memory: several stacks share one machine.
        write_atomically(self.folder / "config.xml", f"""<clickhouse>
  <listen_host>{HOST}</listen_host>
  <http_port>{self.ports['http']}</http_port>
  <tcp_port>{self.ports['native']}</tcp_port>
  <logger><console>1</console><console_log_level>warning</console_log_level></logger>
  <background_pool_size>4</background_pool_size>
  <background_merges_mutations_concurrency_ratio>2</background_merges_mutations_concurrency_ratio>
  <background_common_pool_size>4</background_common_pool_size>
  <background_schedule_pool_size>16</background_schedule_pool_size>
  <background_message_broker_schedule_pool_size>8</background_message_broker_schedule_pool_size>
  <max_server_memory_usage>{4 << 30}</max_server_memory_usage>
  <mark_cache_size>{256 << 20}</mark_cache_size>
  <primary_index_cache_size>{256 << 20}</primary_index_cache_size>
</clickhouse>
""")

    def argv(self) -> list[str]:
        program = Path(__file__).resolve().parents[1] / "clickhouse_server.py"
        return [str(CLICKHOUSE_PYTHON), "-B", str(program), str(self.folder / "data"), str(clickhouse_library())]

    def probe(self) -> bool:
        with connect(self.ports["http"]) as link:
            link.sendall(b"GET /?query=SELECT%201%20FORMAT%20TSV HTTP/1.0\r\n\r\n")
            answer = b""
            while part := link.recv(4096):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        return b" 200 " in head.partition(b"\r\n")[0] and body.strip() == b"1"


class Kafka(Service):
    # A broker hands its partitions over and closes its logs before it ends.
    stop_seconds = 30.0

    def __init__(self, node: int, brokers: int, folder: Path, own_ports: dict[str, int],
                 voters: dict[int, int], cluster_id: str) -> None:
        super().__init__(f"kafka-{node}", folder, own_ports)
        self._node = node
        self._brokers = brokers
        self._voters = voters
        self._cluster_id = cluster_id

    def prepare(self) -> None:
        self._format()
        replicas = min(3, self._brokers)
        in_sync = min(2, self._brokers)
        listeners = f"PLAINTEXT://{HOST}:{self.ports['main']}"
        roles = "broker"
        if self._node in self._voters:
            listeners += f",CONTROLLER://{HOST}:{self._voters[self._node]}"
            roles = "broker,controller"
        voters = ",".join(f"{node}@{HOST}:{port}" for node, port in self._voters.items())
        write_atomically(self.folder / "server.properties", f"""\
process.roles={roles}
node.id={self._node}
controller.quorum.voters={voters}
listeners={listeners}
advertised.listeners=PLAINTEXT://{HOST}:{self.ports['main']}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={self.folder / 'data'}

num.partitions=8
auto.create.topics.enable=false
default.replication.factor={replicas}
min.insync.replicas={in_sync}
message.max.bytes={8 << 20}
replica.fetch.max.bytes={8 << 20}

offsets.topic.num.partitions=8
offsets.topic.replication.factor={replicas}
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
share.coordinator.state.topic.num.partitions=4
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}

# Tests lose members on purpose and must not wait 45 seconds for it to be noticed.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=200
group.consumer.heartbeat.interval.ms=1000

# A broker killed and started at once may not register before its old lease has run out.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500

# The cleaner's map alone would take a quarter of the heap.
log.cleaner.dedupe.buffer.size={16 << 20}
log.cleaner.threads=1
# Tests await compaction.
log.cleaner.backoff.ms=500
num.network.threads=2
num.io.threads=4
""")

    def _format(self) -> None:
        data = self.folder / "data"
        if (data / "meta.properties").exists():
            return
        # Not formatted, or not to the end: there is no data in it yet.
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        shutil.copy(KAFKA / "template" / "bootstrap.checkpoint", data)
        write_atomically(data / "meta.properties",
                         f"version=1\ncluster.id={self._cluster_id}\nnode.id={self._node}\n"
                         f"directory.id={new_kafka_id()}\n")

    def argv(self) -> list[str]:
        return ["java", "-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:-UsePerfData",
                "-Djava.awt.headless=true", "-Djava.net.preferIPv4Stack=true",
                "-Dorg.slf4j.simpleLogger.showDateTime=true",
                "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
                # The dump of every default is half of the log.
                "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn",
                "-cp", f"{KAFKA}/lib/*", "kafka.Kafka", str(self.folder / "server.properties")]

    def probe(self) -> bool:
        """The cluster's metadata, asked of this broker: does it count itself among the living?"""
        # Metadata version 4: no topics, none created; the client's name is "stack".
        request = struct.pack(">hhih5sib", 3, 4, 1, 5, b"stack", 0, 0)
        with connect(self.ports["main"]) as link:
            link.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", receive(link, 4))
            answer = receive(link, size)
        (count,) = struct.unpack_from(">i", answer, 8)
        at = 12
        for _ in range(count):
            node, length = struct.unpack_from(">ih", answer, at)
            if node == self._node:
                return True
            at += 6 + length + 4
            (rack,) = struct.unpack_from(">h", answer, at)
            at += 2 + max(0, rack)
        return False


def new_kafka_id() -> str:
    """A random UUID as Kafka writes it; its tools take one with a leading dash for an option."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


def connect(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=PROBE_SECONDS)


def receive(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = link.recv(size - len(data))
        if not part:
            raise ConnectionResetError("closed in the middle of an answer")
        data += part
    return data
