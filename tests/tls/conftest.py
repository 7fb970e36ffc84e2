"""A server's certificates and their clients; handshakes are real ones, over memory instead of a network."""

import re
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from log_lines import Lines
from manual_clock import ManualClock

from smtpd.config import LogOptions, TlsOptions
from smtpd.log import Log
from smtpd.metrics import Metrics
from smtpd.tls import Certificates

AUTHORITY = trustme.CA()
OFF = {"session_tickets": False, "client_certificates": "off"}


class Server:
    """Certificates with everything around them, in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.metrics = Metrics()
        self.clock = ManualClock(datetime.now(UTC).timestamp())
        self._lines = Lines()
        self._log = Log(LogOptions(), sink=self._lines)

    def issue(self, stem: str, *names: str, expires: datetime | None = None) -> dict[str, str]:
        leaf = AUTHORITY.issue_cert(*names, not_after=expires)
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        return self.write(stem, chain, leaf.private_key_pem.bytes())

    def write(self, stem: str, chain: bytes, key: bytes) -> dict[str, str]:
        cert_file, key_file = self.directory / f"{stem}.crt", self.directory / f"{stem}.key"
        for file, content in ((cert_file, chain), (key_file, key)):
            draft = file.with_suffix(".new")
            draft.write_bytes(content)
            draft.rename(file)
        return {"cert_file": str(cert_file), "key_file": str(key_file)}

    def certificates(self, options: TlsOptions) -> Certificates:
        return Certificates(options, self._log, self.metrics, now=self.clock)

    def events(self, event: str) -> list[dict[str, object]]:
        self._log.flush()
        return [line for line in self._lines.entries if line["event"] == event]

    def seconds_left(self) -> dict[str, float]:
        text = self.metrics.exposition()[0].decode()
        pattern = r'^smtpd_tls_certificate_expiry_seconds\{certificate="([^"]*)"\} (\S+)$'
        return {label: float(value) for label, value in re.findall(pattern, text, re.MULTILINE)}


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@dataclass
class Pair:
    """Both ends of a connection after the handshake."""

    client: ssl.SSLObject
    server: ssl.SSLObject
    move: Callable[[], None]

    @property
    def names(self) -> set[str]:
        """What the certificate of the server says it is called."""
        certificate = self.client.getpeercert()
        assert certificate is not None
        return {str(value) for _, value in certificate["subjectAltName"]}


def shake_hands(
    server: ssl.SSLContext, *, client: ssl.SSLContext | None = None, name: str | None = "mail.example.com"
) -> Pair:
    client = client or trusting()
    pipes = [ssl.MemoryBIO(), ssl.MemoryBIO()]
    ours = server.wrap_bio(pipes[0], pipes[1], server_side=True)
    theirs = client.wrap_bio(pipes[1], pipes[0], server_hostname=name)
    waiting = [theirs, ours]
    for _ in range(10):
        for end in tuple(waiting):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
                waiting.remove(end)

    def move() -> None:
        for end in (theirs, ours):
            with suppress(ssl.SSLWantReadError):
                end.read(0 if end.pending() else 1)

    assert not waiting
    move()
    return Pair(theirs, ours, move)


def trusting(**changes: object) -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    context.check_hostname = False
    for name, value in changes.items():
        setattr(context, name, value)
    return context


def context_of(certificates: Certificates, **changes: object) -> ssl.SSLContext:
    return certificates.context(**{**OFF, **changes})


def with_client_authority(server: Server) -> Certificates:
    authority = server.directory / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(authority)
    return server.certificates(TlsOptions(**server.issue("mail", "mail.example.com"), client_ca_file=str(authority)))
