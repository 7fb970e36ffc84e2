"""Exim as the sending server: MAIL, every RCPT, BDAT, the message and QUIT in a single burst."""

import re
from pathlib import Path

import pytest

from tests.conftest import Certificates, Server
from tests.interop.conftest import LETTER, ONLY_BOB_AND_CAROL, MakeExim, Serve, read, the_only_mail

LOGIN = f"""\
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  client_send = ^{Server.login}^{Server.password}
"""


def without_hop(content: bytes) -> bytes:
    """The message as Exim was given it: without the Received field of its own."""
    return re.sub(rb"\AReceived: [^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*", b"", content)


def test_burst_with_bdat_arrives_byte_for_byte(serve: Serve, exim: MakeExim) -> None:
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


def test_burst_to_several_of_whom_one_is_unknown(serve: Serve, exim: MakeExim) -> None:
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


def test_burst_of_which_nothing_is_taken(serve: Serve, exim: MakeExim) -> None:
    server = serve(ONLY_BOB_AND_CAROL)
    sender = exim(server)
    sender.send("nobody@example.test", "noone@example.test", sender="<>")
    server.wait_for("refused", 2)
    assert not server.events("message")
    assert len(server.events("refused")) == 2
    assert "550 5.1.1 No mailbox here by the name noone@example.test" in sender.log


def test_hundred_recipients_in_one_burst(serve: Serve, exim: MakeExim) -> None:
    server = serve()
    exim(server).send(*(f"user{number}@example.test" for number in range(100)))
    assert all(without_hop(the_only_mail(server, f"user{number}").content) == LETTER for number in range(100))
    server.wait_for("message")
    assert len(server.events("message")) == 1


def test_big_message_in_one_chunk(serve: Serve, exim: MakeExim) -> None:
    server = serve()
    letter = LETTER + b"".join(b"%06d" % number + b"0123456789" * 7 + b"\r\n" for number in range(50_000))
    exim(server).send("bob@example.test", letter=letter)
    assert without_hop(the_only_mail(server).content) == letter


def test_data_instead_of_bdat(serve: Serve, exim: MakeExim) -> None:
    server = serve({"smtpd": {"listeners": {"smtp": {"chunking": False}}}})
    sender = exim(server)
    sender.send("bob@example.test", "carol@example.test")
    assert without_hop(the_only_mail(server).content) == LETTER
    assert " K " not in sender.log


def test_verified_tls(serve: Serve, exim: MakeExim, certificates: Certificates) -> None:
    server = serve()
    verify = f"hosts_require_tls = *\n  tls_verify_certificates = {certificates.ca_file}\n  tls_verify_hosts = *"
    sender = exim(server, "smtp", verify)
    sender.send("bob@example.test")
    mail = the_only_mail(server)
    assert without_hop(mail.content) == LETTER
    assert mail.protocol == "ESMTPS"
    assert "CV=yes" in sender.log


@pytest.mark.parametrize("listener", ["submission", "smtps"])
def test_login_behind_tls(serve: Serve, exim: MakeExim, certificates: Certificates, listener: str) -> None:
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


def test_addresses_beyond_ascii(serve: Serve, exim: MakeExim) -> None:
    server = serve()
    letter = LETTER.replace(b"Subject: folded", "Subject: geprüft".encode())
    exim(server).send("jürgen@example.test", sender="ève@sender.test", letter=letter)
    mail = the_only_mail(server, "j%C3%BCrgen")
    assert (mail.protocol, mail.return_path) == ("UTF8SMTP", "<ève@sender.test>")
    assert without_hop(mail.content) == letter


def test_broken_disk_of_ours_leaves_the_mail_in_the_queue_of_the_sender(
    serve: Serve, exim: MakeExim, directory: Path
) -> None:
    server = serve()
    (directory / "mail" / "example.test").write_text("a file where the mailboxes should be")
    sender = exim(server)
    sender.send("bob@example.test")
    assert "451 4.3.0 The message could not be stored" in sender.log
    assert not sender.is_empty
    failure = server.wait_for("mail-not-stored")
    assert failure["problem"] == "Not a directory"
    assert "exception" not in failure
    assert failure["trace"] in sender.log
