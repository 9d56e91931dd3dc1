"""The command line: one function per command."""

import argparse
import signal
import sys
import time

from . import install
from .common import LOCAL, Failure, say
from .services import PortTaken
from .stack import Stack, existing, undisturbed, wait_until_serving

# A start takes about five seconds; a machine that is compiling beside it may take several times that.
READY_SECONDS = 120.0
# A port may be taken between choosing and listening; twice in a row is no accident.
CREATION_ATTEMPTS = 3

DESCRIPTION = f"""\
Runs Kafka {install.KAFKA_VERSION}, Redis and ClickHouse as ordinary processes on 127.0.0.1, without containers.
Each stack has a NAME, ports of its own and its data in one folder; several run beside each other.
All state is under .local/ of this checkout (or SLUICE_LOCAL_DIR). Needs Linux."""

EPILOG = """\
SERVICE is kafka, redis or clickhouse; in a stack of several brokers also kafka-1, kafka-2, ...

  set -a; eval "$(deploy/local/stack env NAME)"; set +a     # point `sluice` at a stack

exit status: 0 done, 1 failed (the reason is on standard error), 2 wrong usage, 130 interrupted"""


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    arguments = _parser().parse_args()
    try:
        arguments.run(arguments)
    except Failure as failure:
        print(f"stack: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stack: interrupted", file=sys.stderr)
        sys.exit(130)


def _interrupt(_number, _frame) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deploy/local/stack", description=DESCRIPTION, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = command("install", _install, "install what is missing: system packages, Kafka's jars, ClickHouse's library")
    sub.add_argument("--build-only", action="store_true", help="only what compiling the crate needs")

    sub = command("up", _up, "create a stack, or start what is down of it, and wait until it serves")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--kafka-brokers", type=_brokers, metavar="N", help="at creation: 1 (default) to 5")
    sub.add_argument("--redis-fsync", choices=("always", "everysec", "no"),
                     help="at creation: when Redis flushes its append-only file (default everysec)")
    _ready_option(sub)

    sub = command("down", _down, "stop stacks and remove their data")
    sub.add_argument("names", metavar="NAME", nargs="*")
    sub.add_argument("--all", action="store_true", help="every stack of this checkout")
    sub.add_argument("--keep", action="store_true", help="keep data and ports for the next `up`")

    sub = command("env", _env, "print a stack's addresses and pids as KEY=value lines")
    sub.add_argument("name", metavar="NAME")

    for name, run, text in (
        ("stop", _stop, "end services cleanly (SIGTERM, then SIGKILL)"),
        ("kill", _kill, "end services with SIGKILL"),
        ("start", _start, "start services on their old ports and data, and wait until they serve"),
        ("pause", _pause, "freeze services (SIGSTOP): connections stay open, nothing answers"),
        ("resume", _resume, "wake paused services (SIGCONT) and wait until they serve"),
    ):
        sub = command(name, run, text)
        sub.add_argument("name", metavar="NAME")
        sub.add_argument("services", metavar="SERVICE", nargs="+")
        if name in ("start", "resume"):
            _ready_option(sub)

    command("status", _status, "list the stacks of this checkout and the state of their services")
    return parser


def _ready_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", type=float, default=READY_SECONDS, metavar="SECONDS",
                        help="how long to wait until everything serves (default %(default).0f)")


def _brokers(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 5:
        raise ValueError
    return number


def _install(arguments) -> None:
    install.install(arguments.build_only)


def _up(arguments) -> None:
    install.require()
    begun = time.monotonic()
    with Stack(arguments.name).lock():
        # Read under the lock: another `up` or `down` may have come first.
        stack = Stack(arguments.name)
        if stack.exists():
            _require_same_shape(stack, arguments)
            stack.start(stack.services, arguments.timeout)
        else:
            _create(stack, arguments)
    say(f"{stack.name} serves ({time.monotonic() - begun:.1f} s)")


def _require_same_shape(stack: Stack, arguments) -> None:
    if arguments.kafka_brokers not in (None, stack.kafka_brokers):
        raise Failure(f"stack {stack.name} exists with {stack.kafka_brokers} brokers; `down` it first")
    if arguments.redis_fsync not in (None, stack.redis_fsync):
        raise Failure(f"stack {stack.name} exists with --redis-fsync {stack.redis_fsync}; `down` it first")


def _create(stack: Stack, arguments) -> None:
    for attempt in range(1, CREATION_ATTEMPTS + 1):
        stack.create(arguments.kafka_brokers or 1, arguments.redis_fsync or "everysec")
        try:
            stack.start(stack.services, arguments.timeout)
            return
        except PortTaken:
            with undisturbed():
                stack.remove()
            if attempt == CREATION_ATTEMPTS:
                raise
        except KeyboardInterrupt:
            with undisturbed():
                stack.remove()
            raise


def _down(arguments) -> None:
    if not arguments.all and not arguments.names:
        raise Failure("down needs a NAME or --all")
    names = [stack.name for stack in existing()] if arguments.all else arguments.names
    for name in names:
        with Stack(name).lock() as lock_file:
            stack = Stack(name)
            if not stack.exists():
                say(f"there is no stack {name}")
            else:
                if arguments.keep:
                    stack.stop(stack.services)
                    say(f"{name} is down, its data is kept")
                else:
                    stack.stop_for_good()
                    stack.remove()
                    say(f"{name} is down")
            lock_file.unlink()


def _env(arguments) -> None:
    stack = Stack(arguments.name)
    stack.require()
    print(stack.environment(), end="")


def _with_services(arguments, act) -> None:
    # Before the lock too, so that a misspelt name leaves no lock file behind.
    Stack(arguments.name).require()
    with Stack(arguments.name).lock():
        stack = Stack(arguments.name)
        stack.require()
        act(stack, stack.select(arguments.services))


def _stop(arguments) -> None:
    _with_services(arguments, lambda stack, services: stack.stop(services))


def _kill(arguments) -> None:
    _with_services(arguments, lambda _, services: [service.process.kill() for service in services])


def _start(arguments) -> None:
    install.require()
    _with_services(arguments, lambda stack, services: stack.start(services, arguments.timeout))


def _pause(arguments) -> None:
    _with_services(arguments, lambda _, services: [service.process.pause() for service in services])


def _resume(arguments) -> None:
    def act(_, services) -> None:
        for service in services:
            if service.process.pid() is None:
                raise Failure(f"{service.name} is not running; use start")
            service.process.resume()
        wait_until_serving(services, arguments.timeout)

    _with_services(arguments, act)


def _status(_arguments) -> None:
    rows = [("STACK", "SERVICE", "STATE", "PID", "UP", "PORTS")]
    for stack in existing():
        for service in stack.services:
            pid = service.process.pid()
            if pid is None:
                state = "down"
            elif service.process.paused():
                state = "paused"
            else:
                state = "serving" if service.serves() else "not answering"
            up = f"{service.process.seconds_up():.0f} s" if pid else "-"
            ports = " ".join(f"{purpose}={port}" for purpose, port in service.ports.items())
            rows.append((stack.name, service.name, state, str(pid or "-"), up, ports))
    if len(rows) == 1:
        say(f"no stacks under {LOCAL}")
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
