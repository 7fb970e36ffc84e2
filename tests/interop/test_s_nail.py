"""s-nail, the mail command."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.conftest import Certificates, Server
from tests.interop.conftest import Peer, Ran, Serve, run, the_only_mail

Nail = Callable[..., Ran]


@pytest.fixture
def nail(peer: Peer, certificates: Certificates, directory: Path) -> Nail:
    """Write a mail to bob, with a login."""
    program = peer("s-nail")

    def send(
        server: Server, listener: str, *settings: str, password: str = Server.password, expect: int | None = 0
    ) -> Ran:
        scheme = "smtps" if listener == "smtps" else "smtp"
        where = f"{scheme}://{quote(Server.login, safe='')}:{quote(password)}@localhost:{server.port(listener)}"
        chosen = ("v15-compat", f"mta={where}", f"tls-ca-file={certificates.ca_file}", "from=eve@sender.test")
        flags = [word for setting in (*chosen, *settings) for word in ("-S", setting)]
        words = (program, "-:/", "-v", *flags, "-s", "A word", "bob@example.test")
        return run(*words, letter=b"Hello, Bob.\n.\nend\n", expect=expect, env={"HOME": str(directory)})

    return send


@pytest.mark.parametrize("mechanism", ["plain", "login"])
@pytest.mark.parametrize(("listener", "settings"), [("submission", ["smtp-use-starttls"]), ("smtps", [])])
def test_login_behind_tls(serve: Serve, nail: Nail, listener: str, settings: list[str], mechanism: str) -> None:
    server = serve()
    nail(server, listener, f"smtp-auth={mechanism}", *settings)
    mail = the_only_mail(server)
    assert mail.protocol == "ESMTPSA"
    assert b"Subject: A word\r\n" in mail.content
    assert mail.content.endswith(b"\r\n\r\nHello, Bob.\r\n.\r\nend\r\n")


def test_wrong_password_sends_nothing(serve: Serve, nail: Nail) -> None:
    server = serve()
    ran = nail(server, "submission", "smtp-auth=plain", "smtp-use-starttls", password="wrong", expect=None)
    assert ran.code != 0
    assert "535 5.7.8" in ran.output
    assert not server.mailbox("bob")
