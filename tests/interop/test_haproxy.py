"""HAProxy in front of two servers of ours: who is behind it counts, and one of the two may die."""

import smtplib
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from proxy_headers import v2

from tests.conftest import PATIENCE, Certificates, Server
from tests.interop.conftest import LETTER, Peer, Serve, metrics, read
from tests.interop.haproxy import SMTP, Check, Haproxy

NODES = ("one", "two")
WITHOUT_CHECKS: Check = ("", "")
BY_SMTP: Check = (SMTP, "")
BY_SMTP_IN_TLS: Check = (SMTP, "check-ssl verify none")
HEADERS = 'smtpd_proxy_headers_total{{kind="{kind}",listener="{listener}"}}'
INNER, OTHER = "203.0.113.7", "203.0.113.8"
SENDERS, LETTERS = 8, 30

type Balance = Callable[..., Haproxy]


@pytest.fixture
def nodes(serve: Serve) -> dict[str, Server]:
    """Two servers with the same Maildirs."""
    balanced = {"proxy_protocol": ["127.0.0.1/32"]}
    table = {
        "listeners": {"smtp": balanced, "smtps": balanced, "submission": None, "alt": None},
        "limits": {"connections_per_ip": 1 + SENDERS},
        "log": {"connections": True},
    }
    started = {name: serve({"smtpd": table}, wait=False) for name in NODES}
    for server in started.values():
        server.wait_for("ready")
    return started


@pytest.fixture
def balance(peer: Peer, directory: Path, nodes: dict[str, Server]) -> Iterator[Balance]:
    """Start HAProxy in front of both; named are the listeners, each with its kind of check."""
    program, running = peer("haproxy"), []

    def start(**checks: Check) -> Haproxy:
        running.append(Haproxy(program, directory / "haproxy", nodes, checks))
        return running[-1]

    yield start
    for haproxy in running:
        haproxy.daemon.stop()


class Client(smtplib.SMTP):
    """A client at an address that a PROXY header names, if any; with a context TLS begins at once behind it."""

    def __init__(
        self, haproxy: Haproxy, listener: str, source: str = "", context: ssl.SSLContext | None = None
    ) -> None:
        self._header = header(source) if source else b""
        self._context = context
        port = haproxy.port(listener, believing=bool(source))
        super().__init__("127.0.0.1", port, local_hostname="client.test", timeout=PATIENCE)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        bare = socket.create_connection((host, port), timeout)
        bare.sendall(self._header)
        return self._context.wrap_socket(bare, server_hostname="localhost") if self._context else bare

    def send_letter(self, letter: bytes = LETTER) -> None:
        """A letter to bob."""
        self.sendmail("eve@sender.test", ["bob@example.test"], letter)


def header(source: str) -> bytes:
    ends = IPv4Address(source).packed + IPv4Address("192.0.2.1").packed
    return v2(0x21, 0x11, ends + struct.pack("!HH", 4321, 25))


def test_clients_are_spread_and_known_by_their_own_address(nodes: dict[str, Server], balance: Balance) -> None:
    haproxy = balance(smtp=BY_SMTP)
    for source in (INNER, INNER, "", ""):
        with Client(haproxy, "smtp", source) as client:
            client.send_letter()
    for server in nodes.values():
        server.wait_for("message", 2)
        assert [line["ip"] for line in server.events("message")] == [INNER, "127.0.0.1"]
    mails = [read(mail).received for mail in nodes["one"].mailbox("bob")]
    assert sorted(line.split("]")[0].split("[")[1] for line in mails) == ["127.0.0.1"] * 2 + [INNER] * 2


def test_limits_count_the_client_behind(nodes: dict[str, Server], balance: Balance) -> None:
    haproxy = balance(smtp=BY_SMTP)
    room = len(nodes) * (1 + SENDERS)
    clients = [Client(haproxy, "smtp", INNER) for _ in range(room)]
    with pytest.raises(smtplib.SMTPConnectError, match=f"421.*{INNER}"):
        Client(haproxy, "smtp", INNER)
    with Client(haproxy, "smtp", OTHER) as other:
        other.send_letter()
    for client in clients:
        client.close()


def test_tls_begins_at_once_behind_the_header(
    nodes: dict[str, Server], balance: Balance, certificates: Certificates
) -> None:
    haproxy = balance(smtps=BY_SMTP_IN_TLS)
    with Client(haproxy, "smtps", INNER, ssl.create_default_context(cafile=certificates.ca_file)) as client:
        client.login(Server.login, Server.password)
        client.send_letter()
    (mail,) = nodes["one"].mailbox("bob")
    assert read(mail).protocol == "ESMTPSA"
    assert f"([{INNER}])" in read(mail).received


def test_tls_begins_by_starttls(nodes: dict[str, Server], balance: Balance, certificates: Certificates) -> None:
    haproxy = balance(smtp=BY_SMTP)
    with Client(haproxy, "smtp", INNER) as client:
        client.starttls(context=ssl.create_default_context(cafile=certificates.ca_file))
        client.send_letter()
    (mail,) = nodes["one"].mailbox("bob")
    assert read(mail).protocol == "ESMTPS"
    assert f"([{INNER}])" in read(mail).received


@pytest.mark.parametrize(
    ("listener", "check"),
    [("smtp", WITHOUT_CHECKS), ("smtp", BY_SMTP), ("smtps", WITHOUT_CHECKS), ("smtps", BY_SMTP_IN_TLS)],
    ids=["connect", "EHLO", "connect where TLS begins at once", "EHLO in TLS"],
)
def test_checks_leave_no_line_in_the_log(
    nodes: dict[str, Server], balance: Balance, listener: str, check: Check
) -> None:
    before = {name: len(server.log) for name, server in nodes.items()}
    balance(**{listener: check})
    counter = HEADERS.format(kind="local", listener=listener)
    end = time.monotonic() + PATIENCE
    while not all(metrics(server).get(counter, 0) >= 3 for server in nodes.values()):
        assert time.monotonic() < end
    assert [server.log[before[name] :] for name, server in nodes.items()] == [[], []]


@dataclass
class Letter:
    """A message, how often it was tried, and whether somebody has taken the responsibility for it."""

    number: int
    attempts: int = 0
    taken: bool = False

    @property
    def octets(self) -> bytes:
        return b"Subject: %d\r\nMessage-ID: <%d@sender.test>\r\n\r\nHello\r\n" % (self.number, self.number)


def keep_sending(haproxy: Haproxy, letters: list[Letter], source: str, enough: threading.Semaphore) -> None:
    """Send every letter, many in a connection, and again what was not taken."""
    end = time.monotonic() + PATIENCE
    while waiting := [letter for letter in letters if not letter.taken]:
        assert time.monotonic() < end, waiting
        # Nothing else: a refusal is an answer that nobody may get.
        with suppress(ConnectionError, smtplib.SMTPServerDisconnected), Client(haproxy, "smtp", source) as client:
            for letter in waiting:
                letter.attempts += 1
                client.send_letter(letter.octets)
                letter.taken = True
                enough.release()


def test_one_of_two_is_killed_and_nothing_is_lost(nodes: dict[str, Server], balance: Balance) -> None:
    haproxy = balance(smtp=BY_SMTP)
    letters = [Letter(number) for number in range(SENDERS * LETTERS)]
    enough = threading.Semaphore(0)
    with ThreadPoolExecutor(SENDERS) as pool:
        sending = [
            pool.submit(keep_sending, haproxy, letters[each::SENDERS], f"203.0.113.{10 + each}", enough)
            for each in range(SENDERS)
        ]
        for _ in range(3 * SENDERS):
            assert enough.acquire(timeout=PATIENCE)
        nodes["one"].process.kill()
        for future in sending:
            future.result()
    haproxy.wait_until({("smtp", "one"): "DOWN", ("smtp", "two"): "UP"})
    copies = Counter(int(read(mail).content.split()[1]) for mail in nodes["two"].mailbox("bob"))
    assert all(server.events("message") for server in nodes.values()), "one of them had nothing to do"
    assert any(letter.attempts > 1 for letter in letters), "nobody noticed"
    assert {letter.number for letter in letters} == copies.keys()
    assert all(copies[letter.number] <= letter.attempts for letter in letters)
