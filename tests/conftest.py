"""The rules of a test run, and fixtures that start the real server as a process of its own.

`serve` starts `smtpd serve` on free ports and returns a `Server`. `peer` gives the path of a real
mail program, and skips the test where it is not installed; under CI=true a skipped interop test is
a failure. `directory` is short and open to everybody, unlike `tmp_path`: peers that drop their
privileges can work in it, and the path of a unix socket fits.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import argon2
import pytest
import trustme
from hypothesis import HealthCheck, settings

TOP = Path(__file__).resolve().parent.parent
PEERS = TOP / ".venv" / "peers"
PATIENCE = 30.0  # seconds; for a process on a busy machine, no test waits that long when all is well

# No example has a deadline, and a busy machine may take its time to make them up.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fuzz", settings.get_profile("default"), max_examples=20_000)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-rounds", type=int, default=50, help="how often a soak test repeats")


@pytest.fixture
def soak_rounds(request: pytest.FixtureRequest) -> int:
    """How often a test marked `soak` repeats: 50, more in `task soak`."""
    rounds: int = request.config.getoption("--soak-rounds")
    return rounds


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "interop" in item.path.relative_to(TOP).parts:
            item.add_marker("interop")


def nothing_may_be_skipped() -> bool:
    return os.environ.get("CI", "").lower() in ("true", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    interop = item.get_closest_marker("interop") is not None
    if report.skipped and not hasattr(report, "wasxfail") and interop and nothing_may_be_skipped():
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    if report.skipped and "interop" in collector.path.parts and nothing_may_be_skipped():
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report


@pytest.fixture
def directory() -> Iterator[Path]:
    """A fresh directory with a short path that every user may enter."""
    path = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Workshop:
    """Builds and installs distributions, without a network and away from the checkout."""

    def __init__(self, folder: Path) -> None:
        self.dependencies = folder / "dependencies"
        self.dependencies.mkdir()
        ours = ("smtpd", "__editable__")
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if not entry.name.startswith(ours):
                (self.dependencies / entry.name).symlink_to(entry)

    def copy(self, folder: Path, *names: str) -> None:
        """Copy files and folders of the checkout: building leaves things behind."""
        folder.mkdir(parents=True, exist_ok=True)
        for source in (TOP / name for name in names):
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
                shutil.copytree(source, folder / source.name, ignore=ignored)
            else:
                shutil.copy(source, folder)

    def run(self, *command: str | Path, folder: Path) -> str:
        """Run a program to its good end; what it printed."""
        words = [str(word) for word in command]
        result = subprocess.run(words, cwd=folder, text=True, capture_output=True, timeout=300, check=False)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def environment(self, folder: Path, *installed: str | Path) -> Path:
        """A virtual environment with our dependencies and `installed` (pip's arguments), but not us; its Python.

        The dependencies are links to those of this environment.
        """
        venv.create(folder, with_pip=False, symlinks=True)
        purelib = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
        Path(purelib, "dependencies.pth").write_text(f"{self.dependencies}\n", encoding="utf-8")
        python = folder / "bin" / "python"
        quietly = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation")
        pip = (sys.executable, "-m", "pip", "--python", python, "install", *quietly)
        self.run(*pip, *installed, folder=folder)
        return python


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


PLACES = {
    "exim4": PEERS / "exim4-daemon-heavy/usr/sbin/exim4",
    "opensmtpd-smtp": PEERS / "opensmtpd/usr/bin/smtp",
    "nodemailer": PEERS / "node/node_modules/nodemailer",
}


@pytest.fixture(scope="session")
def peer() -> Callable[[str], str]:
    """Ask for a real program by its name; the answer is its path, or the test is skipped.

    Besides everything on PATH and in the sbin directories: "exim4", "opensmtpd-smtp", and
    "nodemailer", which is a directory to `require` from node.
    """

    def find(name: str) -> str:
        places = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
        found = shutil.which(name, path=places) if name not in PLACES else str(PLACES[name])
        if found is None or not os.path.exists(found):
            pytest.skip(f"{name} is not installed (scripts/peers does it)")
        return found

    return find


@dataclass(frozen=True)
class Certificates:
    """A certificate for mx.test, localhost and 127.0.0.1, and the authority that signed it; PEM files."""

    cert_file: str
    key_file: str
    ca_file: str


@pytest.fixture(scope="session")
def certificates() -> Iterator[Certificates]:
    path = Path(tempfile.mkdtemp(prefix="t-ca-", dir="/tmp"))
    path.chmod(0o755)
    authority = trustme.CA()
    issued = authority.issue_cert("mx.test", "localhost", "127.0.0.1", "::1")
    made = Certificates(str(path / "mx.crt"), str(path / "mx.key"), str(path / "ca.pem"))
    for index, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(made.cert_file, append=index > 0)
    issued.private_key_pem.write_to_path(made.key_file)
    authority.cert_pem.write_to_path(made.ca_file)
    yield made
    shutil.rmtree(path, ignore_errors=True)


Table = dict[str, Any]


def default_tables(directory: Path, certificates: Certificates) -> Table:
    """All four modes on free ports, one user, any recipient at example.test into Maildirs below mail/."""
    modes = ("smtp", "smtps", "submission", "alt")
    return {
        "smtpd": {
            "hostname": "mx.test",
            "postmaster": "postmaster@example.test",
            "spool": str(directory),
            "drain_timeout": 5,
            "listeners": {mode: {"address": "127.0.0.1:0", "mode": mode} for mode in modes},
            "tls": {"cert_file": certificates.cert_file, "key_file": certificates.key_file},
            "domains": {"example.test": "mailstore"},
            "agents": {"mailstore": {"type": "maildir", "path": str(directory / "mail"), "recipients": "any"}},
            "auth": {"providers": ["users"], "users": {"type": "file", "path": str(directory / "users")}},
            "metrics": {"address": "127.0.0.1:0"},
        }
    }


def merge(table: Table, tweaks: Mapping[str, Any]) -> Table:
    """Lay `tweaks` over a table, key by key; None takes a key away."""
    result = dict(table)
    for key, value in tweaks.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            result[key] = merge(result.get(key, {}), value)
        else:
            result[key] = value
    return result


def toml_lines(table: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[str]:
    """Write a table as TOML: one header per table, then plain keys; a JSON scalar or list is TOML, too."""
    if prefix:
        yield f"[{'.'.join(json.dumps(part) for part in prefix)}]"
    tables = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    for key in table.keys() - tables.keys():
        yield f"{json.dumps(key)} = {json.dumps(table[key], ensure_ascii=False)}"
    for key, value in tables.items():
        yield from toml_lines(value, (*prefix, key))


def cheap_hash(password: str) -> str:
    return argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(password)


class Server:
    """A running `smtpd serve`; `config` is its file, `log` what it said, one dict per line."""

    login = "alice@example.test"
    password = "correct horse"

    def __init__(self, config: Path, python: str, environment: Mapping[str, str]) -> None:
        self.config = config
        self.log: list[dict[str, Any]] = []
        self.output: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            [python, "-m", "smtpd", "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=config.parent, env={**os.environ, **environment},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # A killed server may leave half a line behind.
            entry = json.loads(line) if line.startswith("{") and line.endswith("\n") else {}
            with self._changed:
                self.output.append(line)
                if entry:
                    self.log.append(entry)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def events(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """Log lines with this event, and with these fields, in order."""
        wanted = {"event": event, **fields}.items()
        with self._changed:
            return [entry for entry in self.log if wanted <= entry.items()]

    def wait_for(self, event: str, count: int = 1, **fields: object) -> dict[str, Any]:
        """Wait until `count` lines with this event, and with these fields, are in the log; the last of them."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self.events(event, **fields)) >= count, PATIENCE)
        seen = self.events(event, **fields)
        assert len(seen) >= count, f"no {event!r} in the log:\n{''.join(self.output)}"
        return seen[count - 1]

    def addresses(self, listener: str) -> list[str]:
        """What a listener is bound to, as "127.0.0.1:PORT", "[::1]:PORT" or "unix:PATH"."""
        return [entry["address"] for entry in self.events("listening") if entry["listener"] == listener]

    def port(self, listener: str) -> int:
        """The port of a listener's first address."""
        return int(self.addresses(listener)[0].rpartition(":")[2])

    def mailbox(self, user: str, domain: str = "example.test") -> list[bytes]:
        """The messages in a mailbox of the default configuration, oldest first."""
        folder = self.config.parent / "mail" / domain / user / "new"

        def arrival(path: Path) -> tuple[int, int]:
            return path.stat().st_mtime_ns, int(path.name.partition("Q")[2].partition(".")[0])

        return [path.read_bytes() for path in sorted(folder.glob("*"), key=arrival)]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code, negative for a signal as in `subprocess`."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@contextmanager
def servers(directory: Path, certificates: Certificates) -> Iterator[Callable[..., Server]]:
    """Start servers in a directory, and stop them at the end; see `serve`."""
    started: list[Server] = []

    def start(
        config: str | Table | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        python: str = sys.executable,
        wait: bool = True,
    ) -> Server:
        if not isinstance(config, str):
            config = "\n".join(toml_lines(merge(default_tables(directory, certificates), config or {}))) + "\n"
        path = directory / f"config{len(started) or ''}.toml"
        path.write_text(config, encoding="utf-8")
        write_users(directory)
        server = Server(path, python, environment or {})
        started.append(server)
        if wait:
            server.wait_for("ready")
        return server

    try:
        yield start
    finally:
        for server in started:
            server.stop()


def python_behind(command: str, directory: Path) -> str:
    """A Python that the shell runs after a command of its own."""
    wrapper = directory / "python"
    wrapper.write_text(f'#!/bin/sh\n{command} && exec "{sys.executable}" "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    return str(wrapper)


def write_users(directory: Path) -> None:
    """The users file of the default configuration; all servers of a directory share it."""
    users = directory / "users"
    if not users.exists():
        users.touch(mode=0o600)
        users.write_text(f"{Server.login}:{cheap_hash(Server.password)}\n")


@pytest.fixture
def serve(directory: Path, certificates: Certificates) -> Iterator[Callable[..., Server]]:
    """Start servers: `serve()`, `serve({"smtpd": {"max_recipients": 5}})` or `serve("whole TOML text")`.

    A table is laid over the default configuration, and None takes a key away. `environment` is added
    to that of the process, `python` runs it; `wait=False` returns before the server is ready.
    """
    with servers(directory, certificates) as start:
        yield start


@pytest.fixture(scope="session")
def serve_all(certificates: Certificates) -> Iterator[Callable[[Table], Server]]:
    """Like `serve`, but the server lives as long as the test run and is shared by all who ask for the same table."""
    with ExitStack() as stack:
        running: dict[str, Server] = {}

        def start(table: Table) -> Server:
            key = json.dumps(table, sort_keys=True)
            if key not in running:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t-", dir="/tmp")))
                running[key] = stack.enter_context(servers(directory, certificates))(table)
            return running[key]

        yield start


@pytest.fixture
def tables(directory: Path, certificates: Certificates) -> Callable[[Table], Table]:
    """What stands below `[smtpd]` in the default configuration, with a table laid over it; for `from_tables`."""

    def make(tweaks: Table) -> Table:
        write_users(directory)
        return merge(default_tables(directory, certificates)["smtpd"], tweaks)

    return make
