"""swaks, the tool that most people reach for first."""

from collections.abc import Callable

import pytest

from tests.conftest import Server
from tests.interop.conftest import LETTER, ONLY_BOB_AND_CAROL, Peer, Ran, Serve, metrics, read, run, the_only_mail

Swaks = Callable[..., Ran]
BY_LOGIN = ("--auth-user", Server.login, "--auth-password", Server.password)
WRONG = ("--auth-user", Server.login, "--auth-password", "wrong")


@pytest.fixture
def swaks(peer: Peer) -> Swaks:
    """Send `LETTER` from eve to bob through a listener."""
    program = peer("swaks")

    def send(server: Server, listener: str, *words: str, to: str = "bob@example.test", expect: int = 0) -> Ran:
        where = ("--server", "127.0.0.1", "--port", server.port(listener))
        envelope = ("--ehlo", "client.test", "--from", "eve@sender.test", "--to", to)
        data = ("--data", LETTER.decode().replace("\r\n", "\n").rstrip("\n"))
        return run(program, *where, *envelope, *data, *words, expect=expect)

    return send


def test_plain_mail_arrives_byte_for_byte(serve: Serve, swaks: Swaks) -> None:
    server = serve()
    swaks(server, "smtp")
    mail = the_only_mail(server)
    assert mail.content == LETTER
    assert mail.return_path == "<eve@sender.test>"
    assert mail.delivered_to == "bob@example.test"
    assert mail.received.startswith("from client.test ([127.0.0.1]) by mx.test (smtpd) with ESMTP id ")


def test_pipelined_mail_to_several_arrives_at_each_without_naming_the_others(serve: Serve, swaks: Swaks) -> None:
    server = serve()
    swaks(server, "smtp", "--pipeline", to="bob@example.test,carol@example.test,dave@example.test")
    for user in ("bob", "carol", "dave"):
        mail = the_only_mail(server, user)
        assert mail.content == LETTER
        assert mail.delivered_to is None
        assert " for " not in mail.received


@pytest.mark.parametrize(("listener", "how"), [("smtp", "--tls"), ("alt", "--tls"), ("alt", "--tls-optional-strict")])
def test_starttls_without_a_login(serve: Serve, swaks: Swaks, listener: str, how: str) -> None:
    server = serve()
    swaks(server, listener, how)
    assert the_only_mail(server).protocol == "ESMTPS"
    assert metrics(server)[f'smtpd_tls_connections_total{{listener="{listener}",version="TLSv1.3"}}'] == 1


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize(
    ("listener", "how"), [("submission", "--tls"), ("alt", "--tls"), ("smtps", "--tls-on-connect")]
)
def test_login_behind_tls(serve: Serve, swaks: Swaks, listener: str, how: str, mechanism: str) -> None:
    server = serve()
    swaks(server, listener, how, "--auth", mechanism, *BY_LOGIN)
    mail = the_only_mail(server)
    assert mail.protocol == "ESMTPSA"
    assert mail.content == LETTER
    assert server.wait_for("message")["login"] == Server.login
    sample = f'smtpd_auth_attempts_total{{listener="{listener}",mechanism="{mechanism}",result="ok"}}'
    assert metrics(server)[sample] == 1
    assert Server.password not in "".join(server.output)


def test_wrong_password_is_refused_and_logged_with_the_address(serve: Serve, swaks: Swaks) -> None:
    server = serve()
    ran = swaks(server, "submission", "--tls", "--auth", "PLAIN", *WRONG, expect=28)
    assert "535 5.7.8 Wrong user name or password" in ran.output
    login = server.wait_for("login")
    assert (login["result"], login["ip"], login["level"]) == ("failed", "127.0.0.1", "warning")
    assert not server.mailbox("bob")


def test_auth_is_offered_only_where_the_password_is_safe(serve: Serve, swaks: Swaks) -> None:
    server = serve()
    before = swaks(server, "submission", "--quit-after", "EHLO").output
    assert "STARTTLS" in before
    assert "AUTH" not in before
    after = swaks(server, "submission", "--tls", "--quit-after", "EHLO").output
    assert "250 AUTH PLAIN LOGIN" in after
    assert after.count("250 STARTTLS") == 1  # not again behind TLS
    assert "250 AUTH PLAIN LOGIN" in swaks(server, "smtps", "--tls-on-connect", "--quit-after", "EHLO").output
    assert "AUTH" not in swaks(server, "smtp", "--tls", "--quit-after", "EHLO").output


def test_submission_without_tls_or_without_a_login_is_refused(serve: Serve, swaks: Swaks) -> None:
    server = serve()
    assert "530 5.7.0 Say STARTTLS first" in swaks(server, "submission", expect=23).output
    assert "530 5.7.0 Log in with AUTH first" in swaks(server, "submission", "--tls", expect=23).output
    assert "530 5.7.0 Log in with AUTH first" in swaks(server, "smtps", "--tls-on-connect", expect=23).output
    assert not server.mailbox("bob")


def test_unknown_recipient_is_refused_and_the_known_get_the_mail(serve: Serve, swaks: Swaks) -> None:
    server = serve(ONLY_BOB_AND_CAROL)
    ran = swaks(server, "smtp", "--pipeline", to="bob@example.test,nobody@example.test,carol@example.test")
    refused = server.wait_for("refused")
    assert f"550 5.1.1 No mailbox here by the name nobody@example.test [{refused['trace']}]" in ran.output
    assert (refused["recipient"], refused["reason"]) == ("nobody@example.test", "no-such-user")
    assert read(server.mailbox("bob")[0]).content == read(server.mailbox("carol")[0]).content == LETTER
    sample = 'smtpd_messages_rejected_total{listener="smtp",reason="no-such-user",recipient_domain="example.test"}'
    assert metrics(server)[sample] == 1


def test_only_unknown_recipients_end_the_transaction(serve: Serve, swaks: Swaks) -> None:
    server = serve(ONLY_BOB_AND_CAROL)
    ran = swaks(server, "smtp", "--pipeline", to="nobody@example.test", expect=24)
    assert "550 5.1.1" in ran.output
    assert not server.events("message")


def test_nobody_relays_from_the_own_machine(serve: Serve, swaks: Swaks) -> None:
    server = serve()
    ran = swaks(server, "smtp", to="bob@elsewhere.test", expect=24)
    assert "550 5.7.1" in ran.output
    assert server.wait_for("refused")["reason"] == "relay-denied"
    ran = swaks(server, "alt", to="bob@elsewhere.test", expect=24)
    assert "550 5.7.1" in ran.output


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize(
    ("family", "source", "destination"),
    [("4", "203.0.113.50", "192.0.2.1"), ("6", "2001:db8::50", "2001:db8::1")],
    ids=["IPv4", "IPv6"],
)
@pytest.mark.parametrize(("listener", "how"), [("smtp", "--tls"), ("smtps", "--tls-on-connect")])
def test_load_balancer_names_the_client(
    serve: Serve, swaks: Swaks, version: str, family: str, source: str, destination: str, listener: str, how: str
) -> None:
    balanced = {name: {"proxy_protocol": ["127.0.0.1"]} for name in ("smtp", "smtps")}
    server = serve({"smtpd": {"listeners": {**balanced, "smtps": {**balanced["smtps"], "auth": "off"}}}})
    ports = ("--proxy-source-port", "5555", "--proxy-dest-port", "25")
    addresses = ("--proxy-source", source, "--proxy-dest", destination, *ports)
    names = {"1": f"TCP{family}", "2": "AF_INET6" if family == "6" else "AF_INET"}
    kind = ("--proxy-protocol", "STREAM", "--proxy-command", "PROXY") if version == "2" else ()
    swaks(server, listener, how, "--proxy-version", version, "--proxy-family", names[version], *kind, *addresses)
    shown = f"IPv6:{source}" if family == "6" else source
    assert the_only_mail(server).received.startswith(f"from client.test ([{shown}]) by mx.test ")
    assert server.wait_for("message")["ip"] == source


def test_program_in_front_names_the_client(serve: Serve, swaks: Swaks) -> None:
    server = serve({"smtpd": {"listeners": {"smtp": {"xclient": ["127.0.0.1"]}}}})
    swaks(server, "smtp", "--xclient-addr", "203.0.113.50", "--xclient-name", "[UNAVAILABLE]", "--tls")
    assert the_only_mail(server).received.startswith("from client.test ([203.0.113.50]) by mx.test ")
    assert server.wait_for("message")["ip"] == "203.0.113.50"
