"""nodemailer, the mailer of web applications."""

import json
from collections.abc import Callable
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Certificates, Server
from tests.interop.conftest import ONLY_BOB_AND_CAROL, Peer, Serve, run, the_only_mail

PROGRAM = Path(__file__).with_name("submit.cjs")
MESSAGE = {"from": "eve@sender.test", "to": "bob@example.test", "subject": "Grüße", "text": "Hallo\n.\n"}
Submit = Callable[..., dict[str, Any]]


@pytest.fixture
def submit(peer: Peer, certificates: Certificates) -> Submit:
    """Send a message with a login; the answer is what `submit.cjs` prints."""
    node, module = peer("node"), peer("nodemailer")
    authority = Path(certificates.ca_file).read_text(encoding="ascii")

    def send(server: Server, listener: str, password: str = Server.password, **message: object) -> dict[str, Any]:
        transport = {
            "host": "localhost",
            "port": server.port(listener),
            "secure": listener == "smtps",
            "requireTLS": True,
            "tls": {"ca": authority},
            "auth": {"user": Server.login, "pass": password},
        }
        options = json.dumps({"transport": transport, "message": {**MESSAGE, **message}})
        answer: dict[str, Any] = json.loads(run(node, PROGRAM, module, letter=options.encode()).output)
        return answer

    return send


@pytest.mark.parametrize("listener", ["submission", "smtps", "alt"])
def test_login_behind_tls_with_an_attachment(serve: Serve, submit: Submit, listener: str) -> None:
    server, attachment = serve(), "0123456789abcdef" * 20_000
    answer = submit(server, listener, attachments=[{"filename": "a.txt", "content": attachment}])
    assert answer["response"].startswith("250 2.0.0 Ok, delivered [")
    mail = the_only_mail(server)
    assert mail.protocol == "ESMTPSA"
    parsed = message_from_bytes(mail.content, policy=default)
    assert parsed["subject"] == "Grüße"
    assert [part.get_content() for part in parsed.iter_attachments()] == [attachment]


def test_blind_copy_stays_blind(serve: Serve, submit: Submit) -> None:
    server = serve()
    submit(server, "submission", bcc="carol@example.test")
    mails = server.mailbox("bob") + server.mailbox("carol")
    assert len(mails) == 2
    assert all(b"carol" not in mail for mail in mails)


def test_refused_recipient_is_reported(serve: Serve, submit: Submit) -> None:
    server = serve(ONLY_BOB_AND_CAROL)
    answer = submit(server, "submission", to=["bob@example.test", "nobody@example.test"])
    assert (answer["accepted"], answer["rejected"]) == (["bob@example.test"], ["nobody@example.test"])
    assert the_only_mail(server)


def test_wrong_password_is_reported(serve: Serve, submit: Submit) -> None:
    answer = submit(serve(), "submission", password="wrong")
    assert (answer["code"], answer["responseCode"]) == ("EAUTH", 535)


def test_address_beyond_ascii(serve: Serve, submit: Submit) -> None:
    server = serve()
    answer = submit(server, "submission", to="jürgen@example.test")
    assert answer["accepted"] == ["jürgen@example.test"], answer
    assert the_only_mail(server, "j%C3%BCrgen").protocol == "UTF8SMTPSA"
