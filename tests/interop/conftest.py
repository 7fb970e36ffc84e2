"""What the tests with real peers share: a letter to send, ways to run programs, and to read what arrived."""

import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.conftest import PATIENCE, Server

Serve = Callable[..., Server]
Peer = Callable[[str], str]

LETTER = (
    b"From: Eve <eve@sender.test>\r\n"
    b"To: Bob <bob@example.test>\r\n"
    b"Subject: folded\r\n\tover two lines\r\n"
    b"Date: Sat, 21 Nov 2026 02:00:00 +0000\r\n"
    b"Message-ID: <1@sender.test>\r\n"
    b"X-Order: first\r\n"
    b"X-Order: second\r\n"
    b"\r\n"
    b"Hello,\r\n"
    b".\r\n"
    b"..two dots, and one alone above\r\n"
    b"trailing blanks  \t\r\n" + b"x" * 990 + b"\r\n"
    b"\r\n"
    b"end\r\n"
)
"""Everything that is easily damaged on the way: order, folding, dots, blanks, a line of the greatest length."""

ONLY_BOB_AND_CAROL = {
    "smtpd": {"agents": {"mailstore": {"recipients": ["bob@example.test", "carol@example.test"]}}}
}


@dataclass(frozen=True)
class Ran:
    """A program that has ended; `output` is what it wrote to standard output and standard error."""

    code: int
    output: str


def run(*words: object, letter: bytes = b"", expect: int | None = 0, **options: object) -> Ran:
    """Run a program with `letter` as its input; `expect` is its exit status, None for any."""
    command = [str(word) for word in words]
    ended = subprocess.run(
        command, input=letter, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=2 * PATIENCE, check=False, **options,
    )  # fmt: skip
    ran = Ran(ended.returncode, ended.stdout.decode("utf-8", "backslashreplace"))
    assert expect is None or ran.code == expect, f"exit status {ran.code}: {command}\n{ran.output}"
    return ran


@dataclass(frozen=True)
class Arrived:
    """A delivered message: what our server put on top, as one line for each field, and the rest as it came."""

    return_path: str
    delivered_to: str | None
    received: str
    content: bytes = field(repr=False)

    @property
    def protocol(self) -> str:
        """The word behind "with"."""
        found = re.search(r" with (\w+)", self.received)
        assert found is not None, self.received
        return found[1]


def read(mail: bytes) -> Arrived:
    """Take our own fields off the top of a delivered message."""
    top, rest = [], mail
    while not top or not top[-1].startswith("Received:"):
        found = re.match(rb"[^\r\n]+\r\n(?:[ \t][^\r\n]*\r\n)*", rest)
        assert found is not None, mail
        top.append(re.sub(r"\r\n[ \t]+", " ", found[0].decode()).strip())
        rest = rest[found.end() :]
    named = dict(line.split(": ", 1) for line in top)
    return Arrived(named["Return-Path"], named.get("Delivered-To"), named["Received"], rest)


def the_only_mail(server: Server, user: str = "bob") -> Arrived:
    """The one message in a mailbox."""
    mails = server.mailbox(user)
    assert len(mails) == 1, f"{len(mails)} messages for {user}\n{''.join(server.output)}"
    return read(mails[0])


def metrics(server: Server) -> dict[str, float]:
    """Every sample on the metrics page, by its name with labels."""
    entry = server.wait_for("metrics")
    with urlopen(f"http://{entry['address']}{entry['path']}", timeout=PATIENCE) as page:
        lines = page.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


class Daemon:
    """A process in the foreground that writes its log to standard output; `wait_for` finds lines in it."""

    def __init__(self, *words: object, **options: object) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    def found(self, pattern: str) -> list[str]:
        """The lines so far in which a regular expression is found."""
        with self._changed:
            return [line for line in self.lines if re.search(pattern, line)]

    def wait_for(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until the expression was found in so many lines."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.found(pattern)) >= count, PATIENCE)
        found = self.found(pattern)
        assert len(found) >= count, f"{pattern!r} not found {count} times in\n{''.join(self.lines)}"
        return found

    def stop(self) -> int:
        """End it with SIGTERM, by force if need be; its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.returncode


@pytest.fixture
def daemon() -> Iterator[Callable[..., Daemon]]:
    """Start programs that run until the test is over."""
    running: list[Daemon] = []

    def start(*words: object, **options: object) -> Daemon:
        running.append(Daemon(*words, **options))
        return running[-1]

    yield start
    for process in running:
        process.stop()


@pytest.fixture
def letter_file(directory: Path) -> Path:
    """A file that holds `LETTER`."""
    path = directory / "letter.eml"
    path.write_bytes(LETTER)
    return path


def need_ports(*ports: int) -> None:
    """Skip the test where one of these ports of 127.0.0.1 cannot be had; one that is taken is no failure in CI."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except PermissionError:
                pytest.skip(f"only root can have port {port}")
            except OSError as error:
                pytest.xfail(f"port {port} of 127.0.0.1: {error.strerror}")
