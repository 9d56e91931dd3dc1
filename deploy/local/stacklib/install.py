"""Installs what is missing, and only that. Never leaves a service running.

Everything of ours goes into the state folder, under a name with its version, and becomes visible
by one rename: a folder that is there is whole. System packages come from apt.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from .common import INSTALL, Failure, locked, say, tail

KAFKA_VERSION = "4.3.1"
CLICKHOUSE_VERSION = "26.9.0"
KAFKA = INSTALL / f"kafka-{KAFKA_VERSION}"
CLICKHOUSE = INSTALL / f"clickhouse-{CLICKHOUSE_VERSION}"
CLICKHOUSE_PYTHON = CLICKHOUSE / "bin" / "python3"
MAVEN_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
# The oldest Java that this Kafka's broker runs on.
JAVA_MAJOR = 17

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version></dependency>
    <!-- Without a binding of the same line as its slf4j-api the broker logs nothing. -->
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""

POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_TEXT = "#!/bin/sh\n# Written by Sluice's deploy/local/stack for the time of one apt-get run.\nexit 101\n"


def install(build_only: bool) -> None:
    with locked("install", "another install to end"):
        INSTALL.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        _install_packages(build_only)
        if not build_only:
            _install_kafka()
            _install_clickhouse()
            say(f"everything is installed ({time.monotonic() - started:.1f} s)")


def require() -> None:
    """For the commands that start services: they never install anything themselves."""
    missing = []
    if not KAFKA.exists():
        missing.append("Kafka")
    if not CLICKHOUSE_PYTHON.exists() or clickhouse_library() is None:
        missing.append("ClickHouse")
    missing += [name for name in ("java", "redis-server") if not shutil.which(name)]
    if missing:
        raise Failure(f"not installed: {', '.join(missing)}; run deploy/local/stack install")


# --- system packages ---------------------------------------------------------------------------


def _install_packages(build_only: bool) -> None:
    wanted = _missing_packages(build_only)
    if not wanted:
        return
    if not shutil.which("apt-get"):
        names = ", ".join(choices[0] for choices in wanted)
        raise Failure(f"missing, and there is no apt-get here to install it: {names} (Debian's names)")
    root = [] if os.geteuid() == 0 else ["sudo"]
    if root and not shutil.which("sudo"):
        names = " ".join(choices[0] for choices in wanted)
        raise Failure(f"missing system packages, and this is neither root nor is sudo here: {names}")
    apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=600"]
    _run([*apt, "update"], "apt-get update")
    packages = [_available(choices) for choices in wanted]
    say(f"installing with apt-get: {' '.join(packages)}")
    with _no_services_started(root):
        _run([*apt, "install", "--no-install-recommends", *packages], "apt-get install")
    if "redis-server" in packages and Path("/run/systemd/system").is_dir():
        # It was not here before, so nobody counts on it: do not let it take 6379 at the next boot.
        _run([*root, "systemctl", "disable", "redis-server"], "systemctl disable redis-server")
    still = _missing_packages(build_only)
    if still:
        raise Failure(f"apt-get succeeded, yet this is still missing: {', '.join(c[0] for c in still)}")


def _missing_packages(build_only: bool) -> list[tuple[str, ...]]:
    """Debian packages that are needed and not there, each with its alternatives, best first."""
    missing: list[tuple[str, ...]] = []
    if not all(shutil.which(tool) for tool in ("gcc", "g++", "make")):
        missing.append(("build-essential",))
    if not shutil.which("pkg-config"):
        missing.append(("pkg-config",))
    if not _has_openssl_headers():
        missing.append(("libssl-dev",))
    if build_only:
        return missing
    if not shutil.which("redis-server"):
        missing.append(("redis-server",))
    if _java_major() < JAVA_MAJOR:
        missing.append(("openjdk-17-jre-headless", "openjdk-21-jre-headless", "default-jre-headless"))
    if not KAFKA.exists() and not shutil.which("mvn"):
        missing.append(("maven",))
    if not CLICKHOUSE_PYTHON.exists() and not _has_venv():
        missing.append(("python3-venv",))
    return missing


def _has_openssl_headers() -> bool:
    if shutil.which("pkg-config"):
        return subprocess.run(["pkg-config", "--exists", "openssl"], check=False).returncode == 0
    return Path("/usr/include/openssl/ssl.h").exists()


def _java_major() -> int:
    if not shutil.which("java"):
        return 0
    done = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(\d+)', done.stderr + done.stdout)
    return int(found.group(1)) if found else 0


def _has_venv() -> bool:
    done = subprocess.run([sys.executable, "-c", "import venv, ensurepip"], capture_output=True, check=False)
    return done.returncode == 0


def _available(choices: tuple[str, ...]) -> str:
    for name in choices[:-1]:
        done = subprocess.run(["apt-cache", "show", name], capture_output=True, check=False)
        if done.returncode == 0 and done.stdout:
            return name
    return choices[-1]


@contextlib.contextmanager
def _no_services_started(root: list[str]):
    """Debian starts a freshly installed service at once unless policy-rc.d forbids it."""
    if POLICY.exists():
        yield
        return
    with tempfile.NamedTemporaryFile("w", suffix=".policy-rc.d") as script:
        script.write(POLICY_TEXT)
        script.flush()
        _run([*root, "install", "-m", "755", script.name, str(POLICY)], f"writing {POLICY}")
    try:
        yield
    finally:
        if POLICY.read_text() == POLICY_TEXT:
            _run([*root, "rm", "-f", str(POLICY)], f"removing {POLICY}")


# --- Kafka -------------------------------------------------------------------------------------


def _install_kafka() -> None:
    if KAFKA.exists():
        broken = _broken_jars()
        if not broken:
            return
        say(f"Kafka's jars are damaged ({', '.join(broken[:3])}): installing them anew")
        shutil.rmtree(KAFKA)
    say(f"installing Kafka {KAFKA_VERSION}'s jars with maven (44 MB) into {KAFKA}")
    with tempfile.TemporaryDirectory(dir=INSTALL, prefix=".kafka-") as temporary:
        folder = Path(temporary) / "kafka"
        folder.mkdir()
        (folder / "pom.xml").write_text(POM)
        _run(["mvn", "-q", "-B", "-f", str(folder / "pom.xml"), MAVEN_GOAL,
              f"-DoutputDirectory={folder / 'lib'}"], "maven")
        digests = {}
        for jar in sorted((folder / "lib").glob("*.jar")):
            _require_whole(jar)
            digests[jar.name] = _digest(jar)
        if f"kafka_2.13-{KAFKA_VERSION}.jar" not in digests:
            raise Failure("maven succeeded without bringing Kafka's own jar")
        (folder / "jars.json").write_text(json.dumps(digests, indent=1))
        _format_template(folder)
        os.rename(folder, KAFKA)


def _broken_jars() -> list[str]:
    digests = json.loads((KAFKA / "jars.json").read_text())
    return [name for name, digest in digests.items() if _digest(KAFKA / "lib" / name) != digest]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"


def _require_whole(jar: Path) -> None:
    """Maven copies a truncated file out of its own cache without a word."""
    try:
        with zipfile.ZipFile(jar) as archive:
            bad = archive.testzip()
    except zipfile.BadZipFile as error:
        bad = str(error)
    if bad is not None:
        raise Failure(f"maven's copy of {jar.name} is damaged ({bad}); remove it from maven's local repository"
                      " (~/.m2/repository) and install again")


def _format_template(folder: Path) -> None:
    """Formats one storage folder, for its bootstrap.checkpoint.

    The checkpoint holds the release's feature levels and nothing of a node, as long as the voters
    are static; a stack copies it and writes its own meta.properties beside it. That saves every
    new broker a JVM of its own for formatting.
    """
    storage = folder / "template"
    properties = folder / "template.properties"
    properties.write_text(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:9093\n"
        "listeners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093\n"
        f"controller.listener.names=CONTROLLER\nlog.dirs={storage}\n")
    _run(["java", "-Xmx256m", "-cp", f"{folder}/lib/*", "kafka.tools.StorageTool", "format",
          "-t", "4L6g3nShT-eMCtK--X86sw", "-c", str(properties)], "formatting Kafka's storage")
    properties.unlink()


# --- ClickHouse --------------------------------------------------------------------------------


def _install_clickhouse() -> None:
    if CLICKHOUSE.exists():
        if clickhouse_library() and subprocess.run([CLICKHOUSE_PYTHON, "-c", ""], check=False).returncode == 0:
            return
        say("ClickHouse's folder is damaged: installing it anew")
        shutil.rmtree(CLICKHOUSE)
    say(f"installing ClickHouse (chdb-core {CLICKHOUSE_VERSION}, 555 MB unpacked) with pip into {CLICKHOUSE}")
    with tempfile.TemporaryDirectory(dir=INSTALL, prefix=".clickhouse-") as temporary:
        folder = Path(temporary) / "venv"
        _run([sys.executable, "-m", "venv", str(folder)], "python3 -m venv")
        # Its dependencies serve its Python side, which is never imported.
        _run([str(folder / "bin" / "python3"), "-m", "pip", "install", "-q", "--no-deps", "--no-compile",
              "--only-binary", ":all:", "--disable-pip-version-check", f"chdb-core=={CLICKHOUSE_VERSION}"], "pip")
        os.rename(folder, CLICKHOUSE)
    if not clickhouse_library():
        raise Failure(f"chdb-core {CLICKHOUSE_VERSION} holds no chdb/_chdb*.so")


def clickhouse_library() -> "Path | None":
    return next(iter(CLICKHOUSE.glob("lib/python3*/site-packages/chdb/_chdb*.so")), None)


# --- running things ----------------------------------------------------------------------------


def _run(argv: list[str], what: str) -> None:
    """Quiet when it works; the whole reason when it does not."""
    log = INSTALL / "install.log"
    with log.open("ab") as output:
        output.write(f"\n$ {' '.join(argv)}\n".encode())
        output.flush()
        try:
            code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False).returncode
        except FileNotFoundError as error:
            raise Failure(f"{what} failed: {error}") from error
    if code != 0:
        raise Failure(f"{what} failed with status {code}; the end of {log}:\n{tail(log, 30)}")
