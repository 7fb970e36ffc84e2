"""smtplib of the standard library, as countless scripts use it."""

import smtplib
import ssl
from collections.abc import Callable
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8

import pytest

from tests.conftest import PATIENCE, Certificates, Server
from tests.interop.conftest import LETTER, ONLY_BOB_AND_CAROL, Serve, the_only_mail


@pytest.fixture
def secure(certificates: Certificates) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificates.ca_file)


@pytest.fixture
def connect(secure: ssl.SSLContext) -> Callable[[Server, str], smtplib.SMTP]:
    def open_connection(server: Server, listener: str) -> smtplib.SMTP:
        port = server.port(listener)
        if listener == "smtps":
            return smtplib.SMTP_SSL("localhost", port, "client.test", timeout=PATIENCE, context=secure)
        client = smtplib.SMTP("localhost", port, "client.test", timeout=PATIENCE)
        if listener == "submission":
            client.starttls(context=secure)
        return client

    return open_connection


Connect = Callable[[Server, str], smtplib.SMTP]


def letter(to: str, subject: str = "Grüße") -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "Eve <eve@sender.test>", to, subject
    message.set_content("Schöne Grüße\n.\n")
    message.add_attachment(bytes(range(256)) * 40, maintype="application", subtype="octet-stream", filename="all")
    return message


@pytest.mark.parametrize("listener", ["submission", "smtps"])
def test_login_behind_tls(serve: Serve, connect: Connect, listener: str) -> None:
    server, message = serve(), letter("bob@example.test")
    sent = message.as_bytes(policy=SMTP)  # chooses the boundary
    with connect(server, listener) as client:
        client.login(Server.login, Server.password)
        assert client.send_message(message) == {}
    mail = the_only_mail(server)
    assert mail.protocol == "ESMTPSA"
    assert mail.content == sent


def test_third_failed_login_ends_the_connection(serve: Serve, connect: Connect) -> None:
    server = serve()
    client = connect(server, "submission")
    with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
        client.login(Server.login, "wrong")  # tries PLAIN, then LOGIN
    assert refused.value.smtp_code == 535
    client.user, client.password = Server.login, "wrong"
    with pytest.raises(smtplib.SMTPAuthenticationError):
        client.auth("PLAIN", client.auth_plain)
    with pytest.raises((smtplib.SMTPServerDisconnected, smtplib.SMTPAuthenticationError)):
        client.auth("PLAIN", client.auth_plain)
    client.close()
    assert server.wait_for("left")["reason"] == "too-many-auth-failures"


def test_many_messages_in_one_connection(serve: Serve, connect: Connect) -> None:
    server = serve()
    with connect(server, "smtp") as client:
        for number in range(20):
            client.sendmail("eve@sender.test", ["bob@example.test"], b"Subject: %d\r\n\r\n.\r\n" % number)
    assert [mail.rpartition(b"Subject: ")[2] for mail in server.mailbox("bob")] == [
        b"%d\r\n\r\n.\r\n" % number for number in range(20)
    ]


def test_smtputf8_is_spoken_to_and_from_addresses_beyond_ascii(serve: Serve, connect: Connect) -> None:
    server, message = serve(), letter("jürgen@example.test")
    sent = message.as_bytes(policy=SMTPUTF8)
    with connect(server, "smtp") as client:
        client.send_message(message, "ève@sender.test", ["jürgen@example.test"])
    mail = the_only_mail(server, "j%C3%BCrgen")
    assert (mail.protocol, mail.return_path) == ("UTF8SMTP", "<ève@sender.test>")
    assert mail.content == sent


def test_refused_recipients_are_told_apart(serve: Serve, connect: Connect) -> None:
    server = serve(ONLY_BOB_AND_CAROL)
    with connect(server, "smtp") as client:
        refused = client.sendmail("eve@sender.test", ["bob@example.test", "nobody@example.test"], LETTER)
        assert refused.keys() == {"nobody@example.test"}
        assert refused["nobody@example.test"][0] == 550
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            client.sendmail("eve@sender.test", ["nobody@example.test"], LETTER)
        client.sendmail("eve@sender.test", ["carol@example.test"], LETTER)
    assert the_only_mail(server, "bob").content == the_only_mail(server, "carol").content == LETTER


def test_message_over_the_announced_size_is_refused_before_it_is_sent(serve: Serve, connect: Connect) -> None:
    server = serve({"smtpd": {"max_message_size": 1000}})
    with connect(server, "smtp") as client, pytest.raises(smtplib.SMTPSenderRefused) as refused:
        client.sendmail("eve@sender.test", ["bob@example.test"], LETTER)
    assert refused.value.smtp_code == 552
    assert b"5.3.4" in refused.value.smtp_error
    assert not server.mailbox("bob")
