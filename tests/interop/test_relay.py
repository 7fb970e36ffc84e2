"""A user's program logs in on 587 and sends to another domain; the relay hands it on to a smarthost.

The smarthost is a server of ours, which has the mailboxes itself, or Postfix, which queues the mail and brings it to a
third server, where the mailboxes are.
"""

import re
import smtplib
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.conftest import PATIENCE, Certificates, Server, Table
from tests.interop.conftest import LETTER, ONLY_BOB_AND_CAROL, Serve, StartPostfix, metrics, the_only_mail
from tests.interop.dovecot import free_port
from tests.interop.letter import without_hops

ANSWERS = 'smtpd_relay_answers_total{agent="smarthost",at="%s",class="%s"}'

type Front = Callable[..., Server]


@pytest.fixture
def front(serve: Serve, certificates: Certificates) -> Front:
    """Start the server that users log in at; `options` are those of the agent."""

    def start(address: str, **options: object) -> Server:
        smarthost = {"type": "relay", "address": address, "ca_file": certificates.ca_file, **options}
        table: Table = {
            "postmaster": "postmaster@front.test",
            "domains": {"example.test": None, "front.test": "mailstore"},
            "relay": {"agent": "smarthost"},
            "agents": {"smarthost": smarthost},
        }
        return serve({"smtpd": table})

    return start


@pytest.fixture
def program(certificates: Certificates) -> Callable[[Server], smtplib.SMTP]:
    """Log in as Thunderbird does: its address as its name, STARTTLS, AUTH PLAIN."""

    def connect(server: Server) -> smtplib.SMTP:
        client = smtplib.SMTP("127.0.0.1", server.port("submission"), "[127.0.0.1]", timeout=PATIENCE)
        client.starttls(context=ssl.create_default_context(cafile=certificates.ca_file))
        client.login(Server.login, Server.password)
        return client

    return connect


type Program = Callable[[Server], smtplib.SMTP]


@contextmanager
def refused(code: int, text: str) -> Iterator[None]:
    with pytest.raises(smtplib.SMTPException) as caught:
        yield
    found = caught.value.args[0] if isinstance(caught.value, smtplib.SMTPRecipientsRefused) else caught.value.args[:2]
    said = next(iter(found.values())) if isinstance(found, dict) else found
    assert said[0] == code, said
    assert text in said[1].decode()


@pytest.mark.parametrize(("listener", "tls"), [("submission", "starttls"), ("smtps", "implicit")])
def test_our_own_server_is_the_smarthost(
    serve: Serve, front: Front, program: Program, directory: Path, listener: str, tls: str
) -> None:
    out = serve(ONLY_BOB_AND_CAROL)
    (directory / "secret").write_text(f"{Server.password}\n")
    secret = {"user": Server.login, "password_file": str(directory / "secret")}
    server = front(f"127.0.0.1:{out.port(listener)}", tls=tls, **secret)
    with program(server) as client:
        assert client.sendmail("alice@front.test", ["bob@example.test", "carol@example.test"], LETTER) == {}
        with refused(550, "5.1.1 No mailbox here by the name nobody@example.test"):
            client.sendmail("alice@front.test", ["nobody@example.test"], LETTER)
    for user in ("bob", "carol"):
        mail = the_only_mail(out, user)
        assert without_hops(mail.content) == LETTER
        assert (mail.protocol, mail.return_path) == ("ESMTPSA", "<alice@front.test>")
    assert out.wait_for("message")["login"] == Server.login
    samples = metrics(server)
    assert samples[ANSWERS % ("rcpt", "2xx")] == samples[ANSWERS % ("content", "2xx")] == 2
    assert samples[ANSWERS % ("rcpt", "5xx")] == 1
    assert Server.password not in "".join(server.output + out.output)


def test_wrong_password_at_the_smarthost_is_our_trouble(serve: Serve, front: Front, program: Program) -> None:
    out = serve()
    server = front(f"127.0.0.1:{out.port('submission')}", tls="starttls", user=Server.login, password="not this one")
    assert server.wait_for("backend-failed")["problem"].endswith("it answers AUTH PLAIN with 535 5.7.8")
    with program(server) as client, refused(451, "4.4.1 "):
        client.sendmail("alice@front.test", ["bob@example.test"], LETTER)
    page = server.wait_for("metrics")
    with pytest.raises(HTTPError, match="503"):
        urlopen(f"http://{page['address']}/readyz", timeout=PATIENCE)
    assert "not this one" not in "".join(server.output)


def test_postfix_is_the_smarthost(
    serve: Serve, front: Front, program: Program, postfix: StartPostfix, certificates: Certificates
) -> None:
    sink, port = serve(), free_port()
    queue = postfix(
        sink, "smtp",
        "smtputf8_enable = yes", "message_size_limit = 20000",
        "smtpd_tls_security_level = encrypt", f"smtpd_tls_cert_file = {certificates.cert_file}",
        f"smtpd_tls_key_file = {certificates.key_file}",
        "smtpd_recipient_restrictions = check_recipient_access inline:{nobody@example.test=REJECT}, permit",
        listen=port,
    )  # fmt: skip
    server = front(f"127.0.0.1:{port}", tls="starttls")
    with program(server) as client:
        client.mail("alice@front.test", ["BODY=8BITMIME"])
        for recipient in ("bob@example.test", "carol@example.test"):
            assert client.rcpt(recipient)[0] == 250
        code, said = client.data(LETTER)
        assert code == 250
        assert re.match(rb"2\.0\.0 Ok: \d+ bytes queued as \w+ \[", said)  # in the words of Postfix
        with refused(554, "5.7.1 <nobody@example.test>: Recipient address rejected"):
            client.sendmail("alice@front.test", ["nobody@example.test"], LETTER)
        with refused(552, "5.3.4 Message bigger than 20000 octets"):
            client.sendmail("alice@front.test", ["bob@example.test"], LETTER * 20)
        assert client.sendmail("jörg@front.test", ["bøb@example.test"], LETTER, ["SMTPUTF8", "BODY=8BITMIME"]) == {}
    queue.wait_until_empty()
    for user in ("bob", "carol"):
        mail = the_only_mail(sink, user)
        assert without_hops(mail.content) == LETTER
        assert mail.return_path == "<alice@front.test>"
    assert the_only_mail(sink, "b%C3%B8b").return_path == "<jörg@front.test>"


def test_postfix_that_is_down_puts_mail_off(front: Front, program: Program) -> None:
    server = front(f"127.0.0.1:{free_port()}")
    with program(server) as client, refused(451, "4.4.1 "):
        client.sendmail("alice@front.test", ["bob@example.test"], LETTER)


def test_servers_that_lead_to_each_other_put_mail_off(serve: Serve) -> None:
    ports = [free_port(), free_port()]
    for ours, theirs in (ports, ports[::-1]):
        agent = {
            "type": "relay", "address": f"127.0.0.1:{theirs}", "path": None, "recipients": None,
            "connections": 3, "reply_timeout": "1s",
        }  # fmt: skip
        table = {"listeners": {"smtp": {"address": f"127.0.0.1:{ours}"}}, "agents": {"mailstore": agent}}
        serve({"smtpd": table})
    for port in ports:
        with smtplib.SMTP("127.0.0.1", port, "sender.test", timeout=PATIENCE) as client, refused(451, "4.4.2 "):
            client.sendmail("eve@sender.test", ["bob@example.test"], LETTER)
