"""curl, as scripts and monitoring use it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Certificates, Server
from tests.interop.conftest import LETTER, ONLY_BOB_AND_CAROL, Peer, Ran, Serve, run, the_only_mail

Curl = Callable[..., Ran]
LOGIN = ("--user", f"{Server.login}:{Server.password}")


@pytest.fixture
def curl(peer: Peer, certificates: Certificates, letter_file: Path) -> Curl:
    """Send `LETTER` from eve to bob."""
    program = peer("curl")

    def send(
        server: Server, listener: str, *words: str, scheme: str = "smtp", to: str = "bob@example.test", expect: int = 0
    ) -> Ran:
        url = f"{scheme}://localhost:{server.port(listener)}/client.test"
        quietly = ("--silent", "--show-error", "--verbose", "--cacert", certificates.ca_file)
        envelope = ("--mail-from", "eve@sender.test", "--mail-rcpt", to, "--upload-file", letter_file)
        return run(program, url, *quietly, *envelope, *words, expect=expect)

    return send


def test_plain_mail_announces_its_size_and_arrives(serve: Serve, curl: Curl) -> None:
    server = serve()
    ran = curl(server, "smtp")
    assert f"MAIL FROM:<eve@sender.test> SIZE={len(LETTER)}" in ran.output
    assert the_only_mail(server).content == LETTER


def test_starttls_with_a_login(serve: Serve, curl: Curl) -> None:
    server = serve()
    curl(server, "submission", "--ssl-reqd", *LOGIN)
    mail = the_only_mail(server)
    assert mail.protocol == "ESMTPSA"
    assert mail.content == LETTER


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_from_the_first_byte_with_a_login(serve: Serve, curl: Curl, version: str) -> None:
    server = serve()
    curl(server, "smtps", f"--tlsv{version}", "--tls-max", version, *LOGIN, scheme="smtps")
    assert f"TLSv{version}" in the_only_mail(server).received
    assert server.wait_for("message")["tls"] == f"TLSv{version}"


def test_old_tls_is_not_spoken(serve: Serve, curl: Curl) -> None:
    server = serve()
    old = ("--tlsv1.0", "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0")
    curl(server, "smtp", "--ssl-reqd", *old, expect=35)
    curl(server, "smtps", *old, *LOGIN, scheme="smtps", expect=35)
    assert not server.mailbox("bob")


def test_mixed_up_ports_leave_a_line_in_the_log(serve: Serve, curl: Curl) -> None:
    server = serve()
    curl(server, "smtp", scheme="smtps", expect=35)
    assert server.wait_for("dropped")["reason"] == "tls-on-plain-port"
    curl(server, "smtps", "--max-time", "0.5", expect=28)
    assert server.wait_for("tls-failed")["problem"] == "the client hung up"


def test_several_recipients(serve: Serve, curl: Curl) -> None:
    server = serve()
    curl(server, "smtp", "--mail-rcpt", "carol@example.test")
    assert the_only_mail(server, "bob").content == the_only_mail(server, "carol").content == LETTER


def test_unknown_recipient_among_others_can_be_passed_over(serve: Serve, curl: Curl) -> None:
    server = serve(ONLY_BOB_AND_CAROL)
    curl(server, "smtp", to="nobody@example.test", expect=55)
    curl(server, "smtp", "--mail-rcpt-allowfails", "--mail-rcpt", "nobody@example.test")
    assert the_only_mail(server).content == LETTER


def test_address_beyond_ascii_needs_no_more_than_smtputf8(serve: Serve, curl: Curl) -> None:
    server = serve()
    ran = curl(server, "smtp", to="jürgen@example.test")
    assert "SMTPUTF8" in ran.output
    mail = the_only_mail(server, "j%C3%BCrgen")
    assert mail.delivered_to == "jürgen@example.test"
    assert mail.protocol == "UTF8SMTP"


def test_vrfy_and_help_are_answered(serve: Serve, peer: Peer) -> None:
    url = f"smtp://127.0.0.1:{serve().port('smtp')}/client.test"
    ask = (peer("curl"), "--silent", "--show-error", "--verbose", url)
    assert "252 2.5.2" in run(*ask, "--mail-rcpt", "bob", "--request", "VRFY").output
    assert "214 2.0.0" in run(*ask, "--request", "HELP").output
