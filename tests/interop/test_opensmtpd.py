"""The command smtp of OpenSMTPD: lock-step, without a single extension parameter."""

from collections.abc import Callable

import pytest

from tests.conftest import Server
from tests.interop.conftest import LETTER, ONLY_BOB_AND_CAROL, Peer, Ran, Serve, run, the_only_mail

Smtp = Callable[..., Ran]


@pytest.fixture
def smtp(peer: Peer) -> Smtp:
    """Send `LETTER` from eve."""
    program = peer("opensmtpd-smtp")

    def send(server: Server, scheme: str, listener: str, *words: object, expect: int | None = 0) -> Ran:
        url = f"{scheme}://127.0.0.1:{server.port(listener)}"
        envelope = ("-F", "eve@sender.test", "-H", "client.test", "-s", url)
        return run(program, "-v", *envelope, *words, letter=LETTER.replace(b"\r\n", b"\n"), expect=expect)

    return send


def test_plain_mail_to_several(serve: Serve, smtp: Smtp) -> None:
    server = serve()
    ran = smtp(server, "smtp+notls", "smtp", "bob@example.test", "carol@example.test")
    assert ran.output.count("Ok, delivered [") == 2
    for user in ("bob", "carol"):
        mail = the_only_mail(server, user)
        assert (mail.content, mail.protocol, mail.delivered_to) == (LETTER, "ESMTP", None)


def test_starttls_when_it_is_there(serve: Serve, smtp: Smtp) -> None:
    server = serve()
    smtp(server, "smtp", "alt", "-C", "bob@example.test")
    assert the_only_mail(server).protocol == "ESMTPS"


@pytest.mark.parametrize("scheme", ["smtp+tls", "smtps"])
def test_required_tls(serve: Serve, smtp: Smtp, scheme: str) -> None:
    # smtps without a login is refused there, so a listener that takes mail from strangers over TLS alone is used
    implicit = {"address": "127.0.0.1:0", "mode": "smtp", "tls": "implicit"}
    server = serve({"smtpd": {"listeners": {"wrapped": implicit}}})
    smtp(server, scheme, "wrapped" if scheme == "smtps" else "smtp", "-C", "bob@example.test")
    mail = the_only_mail(server)
    assert (mail.content, mail.protocol) == (LETTER, "ESMTPS")


def test_certificate_is_verified(serve: Serve, smtp: Smtp) -> None:
    server = serve()
    assert "Invalid server certificate" in smtp(server, "smtp+tls", "smtp", "bob@example.test", expect=1).output
    assert not server.mailbox("bob")


def test_submission_wants_a_login(serve: Serve, smtp: Smtp) -> None:
    ran = smtp(serve(), "smtp+tls", "submission", "-C", "bob@example.test", expect=None)
    assert "530 5.7.0 Log in with AUTH first" in ran.output


def test_unknown_recipient_makes_it_hang_up_and_nobody_gets_the_mail(serve: Serve, smtp: Smtp) -> None:
    server = serve(ONLY_BOB_AND_CAROL)
    ran = smtp(server, "smtp+notls", "smtp", "bob@example.test", "nobody@example.test", expect=None)
    assert "550 5.1.1 No mailbox here by the name nobody@example.test" in ran.output
    assert not server.mailbox("bob")
