"""What the tests with real peers share, besides `letter.py` and `programs.py`: fixtures, and looks at what arrived."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.conftest import PATIENCE, Server
from tests.interop.dovecot import Dovecot, private_dovecot
from tests.interop.exim import PLAIN, Exim
from tests.interop.letter import LETTER as LETTER
from tests.interop.letter import Arrived as Arrived
from tests.interop.letter import read as read
from tests.interop.postfix import Postfix, prepare
from tests.interop.programs import Daemon as Daemon
from tests.interop.programs import Ran as Ran
from tests.interop.programs import run as run

Serve = Callable[..., Server]
Peer = Callable[[str], str]
MakeExim = Callable[..., Exim]
StartPostfix = Callable[..., Postfix]

ONLY_BOB_AND_CAROL = {"smtpd": {"agents": {"mailstore": {"recipients": ["bob@example.test", "carol@example.test"]}}}}


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


@pytest.fixture(scope="module")
def store(peer: Peer) -> Iterator[Dovecot]:
    """A running Dovecot, for all tests of a file."""
    with private_dovecot(peer) as dovecot:
        dovecot.start()
        yield dovecot


@pytest.fixture
def exim(peer: Peer, directory: Path) -> MakeExim:
    """An Exim that sends everything to one listener; `transport` is more lines of its smtp transport."""
    program = peer("exim4")
    if os.geteuid() != 0:
        pytest.skip("Exim reads our configuration only as root")

    def make(server: Server, listener: str = "smtp", transport: str = PLAIN, more: str = "") -> Exim:
        return Exim(program, directory / "exim", server.port(listener), transport, more)

    return make


@pytest.fixture
def postfix(peer: Peer, directory: Path, daemon: Callable[..., Daemon]) -> StartPostfix:
    """Start Postfix with a server of ours as its only way out; further settings are lines of main.cf.

    `listen`: a port of 127.0.0.1 on which it takes mail itself.
    """
    program, sendmail, queue = peer("postfix"), peer("sendmail"), peer("postqueue")
    if os.geteuid() != 0:
        pytest.skip("only root can start Postfix")

    def start(server: Server, listener: str = "smtp", *settings: str, listen: int | None = None) -> Postfix:
        home = directory / "postfix"
        prepare(home, program, server.port(listener), *settings, listen=listen)
        running = daemon("/usr/lib/postfix/sbin/master", "-c", home / "conf", "-s")
        running.wait_for("daemon started")
        return Postfix(home, running, sendmail, queue)

    return start


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
