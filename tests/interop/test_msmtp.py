"""msmtp, the sendmail of machines without a mail server."""

from collections.abc import Callable

import pytest

from tests.conftest import Certificates, Server
from tests.interop.conftest import LETTER, ONLY_BOB_AND_CAROL, Peer, Ran, Serve, run, the_only_mail

Msmtp = Callable[..., Ran]


@pytest.fixture
def msmtp(peer: Peer, certificates: Certificates) -> Msmtp:
    """Send `LETTER` with a login."""
    program = peer("msmtp")

    def send(server: Server, listener: str, *words: str, password: str = Server.password, expect: int = 0) -> Ran:
        where = ("-C", "/dev/null", "--host=localhost", f"--port={server.port(listener)}")
        secure = ("--tls=on", f"--tls-trust-file={certificates.ca_file}")
        login = (f"--user={Server.login}", f"--passwordeval=echo {password}")
        return run(program, *where, *secure, *login, "-f", "eve@sender.test", *words, letter=LETTER, expect=expect)

    return send


@pytest.mark.parametrize("mechanism", ["plain", "login"])
@pytest.mark.parametrize(("listener", "starttls"), [("submission", "on"), ("alt", "on"), ("smtps", "off")])
def test_login_behind_tls(serve: Serve, msmtp: Msmtp, listener: str, starttls: str, mechanism: str) -> None:
    server = serve()
    msmtp(server, listener, f"--tls-starttls={starttls}", f"--auth={mechanism}", "bob@example.test")
    mail = the_only_mail(server)
    assert mail.protocol == "ESMTPSA"
    assert mail.content == LETTER


def test_mechanism_is_found_without_being_named(serve: Serve, msmtp: Msmtp) -> None:
    server = serve()
    msmtp(server, "submission", "--auth=on", "bob@example.test", "carol@example.test")
    assert the_only_mail(server, "bob").content == the_only_mail(server, "carol").content == LETTER


def test_wrong_password_ends_with_the_reply_of_the_server(serve: Serve, msmtp: Msmtp) -> None:
    server = serve()
    ran = msmtp(server, "submission", "--auth=plain", "bob@example.test", password="wrong", expect=77)
    assert "535 5.7.8 Wrong user name or password" in ran.output
    assert not server.mailbox("bob")


def test_unknown_recipient_is_reported_and_nobody_gets_the_mail(serve: Serve, msmtp: Msmtp) -> None:
    server = serve(ONLY_BOB_AND_CAROL)
    ran = msmtp(server, "submission", "--auth=plain", "bob@example.test", "nobody@example.test", expect=65)
    assert "550 5.1.1 No mailbox here by the name nobody@example.test" in ran.output
    assert not server.mailbox("bob")


def test_server_information_is_understood(serve: Serve, msmtp: Msmtp) -> None:
    ran = msmtp(serve(), "submission", "--serverinfo")
    for words in ("mx.test ESMTP", "SIZE 26214400", "PIPELINING", "AUTH", "PLAIN LOGIN"):
        assert words in ran.output
