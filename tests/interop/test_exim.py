"""Exim as the sending server: MAIL, every RCPT, BDAT, the message and QUIT in a single burst."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Certificates, Server
from tests.interop.conftest import LETTER, ONLY_BOB_AND_CAROL, Peer, Serve, read, run, the_only_mail

SETTINGS = """\
exim_path = {program}
exim_user = Debian-exim
exim_group = Debian-exim
spool_directory = {directory}/spool
log_file_path = {directory}/log/%slog
primary_hostname = sender.test
trusted_users = root
keep_environment =
accept_8bitmime = true
smtputf8_advertise_hosts = *
prdr_enable = true
host_lookup =
log_selector = +all
begin routers
all:
  driver = manualroute
  route_list = * 127.0.0.1::{port}
  self = send
  transport = remote
begin transports
remote:
  driver = smtp
  allow_localhost
  hosts_try_prdr = *
  hosts_try_fastopen =
  {transport}
begin retry
* * F,1h,5s
{more}
"""
PLAIN = "hosts_avoid_tls = *"
LOGIN = f"""\
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  client_send = ^{Server.login}^{Server.password}
"""


class Exim:
    """Delivers in the foreground; what it thinks of it stands in `log`."""

    def __init__(self, program: str, home: Path) -> None:
        self._program = program
        self._home = home

    def send(self, *recipients: str, letter: bytes = LETTER, sender: str = "eve@sender.test") -> None:
        """Deliver one message at once."""
        words = (self._program, "-C", self._home / "exim.conf", "-odf", "-oi", "-f", sender, *recipients)
        run(*words, letter=letter.replace(b"\r\n", b"\n"))

    @property
    def log(self) -> str:
        """The main log."""
        return (self._home / "log" / "mainlog").read_text(encoding="utf-8")

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits in the queue."""
        return not any(name.is_file() for name in (self._home / "spool" / "input").rglob("*"))


@pytest.fixture
def exim(peer: Peer, directory: Path) -> Callable[..., Exim]:
    """An Exim that sends everything to one listener; `transport` is more lines of its smtp transport."""
    program = peer("exim4")
    if os.geteuid() != 0:
        pytest.skip("Exim reads our configuration only as root")

    def make(server: Server, listener: str = "smtp", transport: str = PLAIN, more: str = "") -> Exim:
        home = directory / "exim"
        for name in ("spool", "log"):
            (home / name).mkdir(parents=True, mode=0o755)
            run("chown", "Debian-exim:", home / name)
        port = server.port(listener)
        text = SETTINGS.format(program=program, directory=home, port=port, transport=transport, more=more)
        (home / "exim.conf").write_text(text, encoding="ascii")
        return Exim(program, home)

    return make


Make = Callable[..., Exim]


def without_hop(content: bytes) -> bytes:
    """The message as Exim was given it: without the Received field of its own."""
    return re.sub(rb"\AReceived: [^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*", b"", content)


def test_burst_with_bdat_arrives_byte_for_byte(serve: Serve, exim: Make) -> None:
    server = serve()
    sender = exim(server)
    sender.send("bob@example.test")
    mail = the_only_mail(server)
    assert without_hop(mail.content) == LETTER
    assert (mail.protocol, mail.return_path) == ("ESMTP", "<eve@sender.test>")
    trace = server.wait_for("message")["trace"]
    taken = rf'=> bob@example\.test .* L K C="250 2\.0\.0 Ok, delivered \[{trace}\]"'
    assert re.search(taken, sender.log), sender.log  # L: pipelined, K: by BDAT
    assert sender.is_empty


def test_burst_to_several_of_whom_one_is_unknown(serve: Serve, exim: Make) -> None:
    server = serve(ONLY_BOB_AND_CAROL)
    sender = exim(server)
    sender.send("bob@example.test", "nobody@example.test", sender="carol@example.test")
    assert without_hop(the_only_mail(server).content) == LETTER
    refused = server.wait_for("refused")
    assert f"[{refused['trace']}]" in sender.log
    bounce = read(server.mailbox("carol")[0])
    assert bounce.return_path == "<>"
    assert b"No mailbox here by the name nobody@example.test" in bounce.content
    assert sender.is_empty


def test_burst_of_which_nothing_is_taken(serve: Serve, exim: Make) -> None:
    server = serve(ONLY_BOB_AND_CAROL)
    sender = exim(server)
    sender.send("nobody@example.test", "noone@example.test", sender="<>")
    server.wait_for("refused", 2)
    assert not server.events("message")
    assert len(server.events("refused")) == 2
    assert "550 5.1.1 No mailbox here by the name noone@example.test" in sender.log


def test_hundred_recipients_in_one_burst(serve: Serve, exim: Make) -> None:
    server = serve()
    exim(server).send(*(f"user{number}@example.test" for number in range(100)))
    assert all(without_hop(the_only_mail(server, f"user{number}").content) == LETTER for number in range(100))
    server.wait_for("message")
    assert len(server.events("message")) == 1


def test_big_message_in_one_chunk(serve: Serve, exim: Make) -> None:
    server = serve()
    letter = LETTER + b"".join(b"%06d" % number + b"0123456789" * 7 + b"\r\n" for number in range(50_000))
    exim(server).send("bob@example.test", letter=letter)
    assert without_hop(the_only_mail(server).content) == letter


def test_data_instead_of_bdat(serve: Serve, exim: Make) -> None:
    server = serve({"smtpd": {"listeners": {"smtp": {"chunking": False}}}})
    sender = exim(server)
    sender.send("bob@example.test", "carol@example.test")
    assert without_hop(the_only_mail(server).content) == LETTER
    assert " K " not in sender.log


def test_verified_tls(serve: Serve, exim: Make, certificates: Certificates) -> None:
    server = serve()
    verify = f"hosts_require_tls = *\n  tls_verify_certificates = {certificates.ca_file}\n  tls_verify_hosts = *"
    sender = exim(server, "smtp", verify)
    sender.send("bob@example.test")
    mail = the_only_mail(server)
    assert without_hop(mail.content) == LETTER
    assert mail.protocol == "ESMTPS"
    assert "CV=yes" in sender.log


@pytest.mark.parametrize("listener", ["submission", "smtps"])
def test_login_behind_tls(serve: Serve, exim: Make, certificates: Certificates, listener: str) -> None:
    server = serve()
    lines = [
        "hosts_require_tls = *",
        "hosts_require_auth = *",
        f"tls_verify_certificates = {certificates.ca_file}",
        f"protocol = {'smtps' if listener == 'smtps' else 'smtp'}",
    ]
    exim(server, listener, "\n  ".join(lines), LOGIN).send("bob@example.test")
    mail = the_only_mail(server)
    assert mail.protocol == "ESMTPSA"
    assert without_hop(mail.content) == LETTER


def test_addresses_beyond_ascii(serve: Serve, exim: Make) -> None:
    server = serve()
    letter = LETTER.replace(b"Subject: folded", "Subject: geprüft".encode())
    exim(server).send("jürgen@example.test", sender="ève@sender.test", letter=letter)
    mail = the_only_mail(server, "j%C3%BCrgen")
    assert (mail.protocol, mail.return_path) == ("UTF8SMTP", "<ève@sender.test>")
    assert without_hop(mail.content) == letter


def test_broken_disk_of_ours_leaves_the_mail_in_the_queue_of_the_sender(
    serve: Serve, exim: Make, directory: Path
) -> None:
    server = serve()
    (directory / "mail" / "example.test").write_text("a file where the mailboxes should be")
    sender = exim(server)
    sender.send("bob@example.test")
    assert "451 4.3.0 The message could not be stored" in sender.log
    assert not sender.is_empty
    failure = server.wait_for("mail-not-stored")
    assert failure["problem"].startswith("[Errno 20] Not a directory: ")
    assert "exception" not in failure
    assert failure["trace"] in sender.log
