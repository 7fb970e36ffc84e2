"""Dovecot as the mailstore behind us, by LMTP over TCP and over a unix socket; mail is read back by IMAP."""

import re
import smtplib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.conftest import PATIENCE, Certificates, Server, Table, servers
from tests.interop.conftest import LETTER, Peer, Serve, metrics
from tests.interop.dovecot import DOMAIN, Dovecot, Kind, private_dovecot

SENDER = "eve@sender.test"
RECEIVED = f'smtpd_messages_received_total{{listener="smtp",recipient_domain="{DOMAIN}"}}'
REJECTED = f'smtpd_messages_rejected_total{{listener="smtp",reason="%s",recipient_domain="{DOMAIN}"}}'
ANSWERS = 'smtpd_lmtp_answers_total{agent="mailstore",at="%s",class="%s"}'
BIG = LETTER + b"more than fits into a small mailbox\r\n" * 200
OVER_QUOTA = pytest.mark.parametrize(
    ("kind", "refusal"), [("small", "552 5.2.2"), ("patient", "452 4.2.2")], ids=["for good", "for now"]
)


@pytest.fixture
def own_store(peer: Peer) -> Iterator[Dovecot]:
    """A Dovecot for one test, not yet started."""
    with private_dovecot(peer) as dovecot:
        yield dovecot


def behind(store: Dovecot, socket: str = "tcp", **options: object) -> Table:
    """The configuration of a server that hands its mail to Dovecot."""
    agent = {"type": "lmtp", "address": store.addresses[socket], "path": None, "recipients": None, **options}
    return {"smtpd": {"agents": {"mailstore": agent}}}


@pytest.fixture(scope="module", params=["tcp", "unix"])
def server(request: pytest.FixtureRequest, store: Dovecot, certificates: Certificates) -> Iterator[Server]:
    """A server of ours in front of it."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as name, servers(Path(name), certificates) as start:
        yield start(behind(store, request.param))


def connect(server: Server) -> smtplib.SMTP:
    client = smtplib.SMTP("127.0.0.1", server.port("smtp"), local_hostname="sender.test", timeout=PATIENCE)
    client.ehlo()
    return client


def heard(answer: tuple[int, bytes]) -> str:
    return f"{answer[0]} {answer[1].decode()}"


def send(server: Server, *users: str, letter: bytes = LETTER, options: tuple[str, ...] = ()) -> list[str]:
    """Send a message; what was said to each RCPT, and to the message if any recipient was taken."""
    with connect(server) as client:
        assert client.mail(SENDER, options)[0] == 250
        answers = [heard(client.rcpt(f"{user}@{DOMAIN}")) for user in users]
        if any(answer.startswith("250") for answer in answers):
            answers.append(heard(client.data(letter)))
        return answers


def trace(answer: str) -> str:
    """The trace id in a reply."""
    found = re.search(r"\[(\w+)\]$", answer)
    assert found is not None, answer
    return found[1]


class Risen:
    """How much metrics have risen since it was made."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = metrics(server)

    def __getitem__(self, name: str) -> float:
        return metrics(self._server).get(name, 0.0) - self._before.get(name, 0.0)


def test_letter_is_read_back_byte_for_byte(server: Server, store: Dovecot) -> None:
    user, risen = store.user(), Risen(server)
    taken, answer = send(server, user)
    assert taken.startswith("250 2.1.5")
    assert answer.startswith("250 2.0.0")
    mail = store.the_only_mail(user)
    assert mail.content == LETTER
    assert mail.received.startswith("Received: from sender.test ([127.0.0.1]) by mx.test (smtpd) with ESMTP ")
    assert f"Return-Path: <{SENDER}>\r\nDelivered-To: {user}@{DOMAIN}\r\nReceived: from mx.test" in mail.hop
    line = server.wait_for("message", trace=trace(answer))
    assert line["reply"] == answer.rpartition(" [")[0]
    assert (risen[RECEIVED], risen[ANSWERS % ("rcpt", "2xx")], risen[ANSWERS % ("content", "2xx")]) == (1, 1, 1)


def test_every_recipient_gets_a_copy(server: Server, store: Dovecot) -> None:
    users = [store.user() for _ in range(30)]
    assert send(server, *users)[-1].startswith("250 2.0.0")
    for user in users:
        assert store.the_only_mail(user).content == LETTER


def test_unknown_user_is_refused_at_rcpt_in_the_words_of_the_store(server: Server, store: Dovecot) -> None:
    risen = Risen(server)
    (answer,) = send(server, "nobody")
    assert answer.startswith(f"550 5.1.1 <nobody@{DOMAIN}> User doesn't exist")
    line = server.wait_for("refused", trace=trace(answer))
    assert (line["at"], line["recipient"], line["reason"]) == ("RCPT", f"nobody@{DOMAIN}", "store-said")
    assert (risen[REJECTED % "store-said"], risen[ANSWERS % ("rcpt", "5xx")], risen[RECEIVED]) == (1, 1, 0)


def test_unknown_user_does_not_keep_others_from_their_mail(server: Server, store: Dovecot) -> None:
    user = store.user()
    refused, taken, answer = send(server, "nobody", user)
    assert refused.startswith("550 5.1.1")
    assert (taken[:3], answer[:3]) == ("250", "250")
    assert store.the_only_mail(user).content == LETTER


@OVER_QUOTA
def test_full_mailbox_is_refused_at_rcpt(server: Server, store: Dovecot, kind: Kind, refusal: str) -> None:
    user, risen = store.user(kind), Risen(server)
    store.plant(user, b"Subject: there before\n\n" + b"x" * 4000)
    (answer,) = send(server, user)
    assert answer.startswith(refusal)
    assert "Mailbox full" in answer
    assert server.wait_for("refused", trace=trace(answer))["at"] == "RCPT"
    assert risen[ANSWERS % ("rcpt", f"{refusal[0]}xx")] == 1
    assert len(store.mails(user)) == 1


@OVER_QUOTA
def test_message_that_does_not_fit_is_refused_after_the_dot(
    server: Server, store: Dovecot, kind: Kind, refusal: str
) -> None:
    user, risen = store.user(kind), Risen(server)
    taken, answer = send(server, user, letter=BIG)
    assert taken.startswith("250 2.1.5")
    assert answer.startswith(refusal)
    assert "Mailbox full" in answer
    line = server.wait_for("message", trace=trace(answer))
    assert (line["reason"], line["reply"][:9]) == ("store-said", refusal)
    assert (risen[REJECTED % "store-said"], risen[ANSWERS % ("content", f"{refusal[0]}xx")]) == (1, 1)
    assert not store.mails(user)


def test_retry_of_a_mixed_outcome_tells_the_truth_and_doubles_nothing(server: Server, store: Dovecot) -> None:
    user, full = store.user(), store.user("small")
    first = send(server, user, full, letter=BIG)
    assert [answer[:9] for answer in first] == ["250 2.1.5", "250 2.1.5", "451 4.3.0"]
    second = send(server, user, full, letter=BIG)
    assert [answer[:9] for answer in second] == ["250 2.1.5", "552 5.2.2", "250 2.0.0"]
    assert store.the_only_mail(user).content == BIG
    assert not store.mails(full)


def test_retry_reaches_who_was_full_for_now_and_nobody_twice(server: Server, store: Dovecot) -> None:
    user, full = store.user(), store.user("patient")
    store.plant(full, b"Subject: there before\n\n" + b"x" * 2500)
    assert send(server, user, full)[-1].startswith("451 4.3.0")
    store.empty(full)
    assert send(server, user, full)[-1].startswith("250 2.0.0")
    for each in (user, full):
        assert store.the_only_mail(each).content == LETTER


def test_client_with_prdr_hears_what_the_store_says_about_each(server: Server, store: Dovecot) -> None:
    user, full = store.user(), store.user("small")
    with connect(server) as client:
        assert client.has_extn("prdr")
        client.mail(SENDER, ["PRDR"])
        for each in (user, full):
            assert client.rcpt(f"{each}@{DOMAIN}")[0] == 250
        client.putcmd("DATA")
        assert client.getreply()[0] == 354
        client.send(BIG.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        answers = [heard(client.getreply()) for _ in range(4)]
    assert [answer[:9] for answer in answers[1:]] == ["250 2.0.0", "552 5.2.2", "250 2.0.0"]
    assert answers[0].startswith("353")


def test_mailbox_that_cannot_be_written_puts_the_message_off(server: Server, store: Dovecot) -> None:
    user = store.user()
    send(server, user)
    tmp = store.mailbox(user) / "tmp"
    tmp.chmod(0o500)
    taken, answer = send(server, user, letter=b"Subject: second\r\n\r\n")
    assert taken.startswith("250 2.1.5")
    assert answer.startswith("451 4.2.0")
    assert server.wait_for("message", trace=trace(answer))["reason"] == "store-said"
    tmp.chmod(0o700)
    assert send(server, user, letter=b"Subject: second\r\n\r\n")[-1].startswith("250 2.0.0")
    assert len(store.mails(user)) == 2


def test_mailbox_that_cannot_be_made_puts_the_recipient_off(server: Server, store: Dovecot) -> None:
    user, mailboxes = store.user(), store.mailbox("").resolve()
    mailboxes.chmod(0o500)
    try:
        (answer,) = send(server, user)
    finally:
        mailboxes.chmod(0o755)
    assert answer.startswith(f"451 4.3.0 <{user}@{DOMAIN}> Temporary internal error")
    assert server.wait_for("refused", trace=trace(answer))["at"] == "RCPT"
    assert send(server, user)[-1].startswith("250 2.0.0")


def test_detail_of_the_address_is_a_folder(server: Server, store: Dovecot) -> None:
    user = store.user()
    assert send(server, f"{user}+Junk", user)[-1].startswith("250 2.0.0")
    assert store.the_only_mail(user, "Junk").content == LETTER
    assert store.the_only_mail(user).content == LETTER


@pytest.mark.parametrize("size", [0, 1, 100_000, 1 << 20, 10 << 20])
def test_message_of_any_size_arrives_whole(server: Server, store: Dovecot, size: int) -> None:
    user = store.user()
    lines = (b".%d " % number + b"abcdefghij" * 7 + b"\r\n" for number in range(size // 70 + 1))
    letter = b"Subject: size\r\n\r\n" + b"".join(lines)[:size].rstrip(b"\r\n") + b"\r\n"
    assert send(server, user, letter=letter)[-1].startswith("250 2.0.0")
    assert store.the_only_mail(user).content == letter


DIFFICULT = {
    "8-bit body": b"Subject: 8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + bytes(range(128, 256)) + b"\r\n",
    "UTF-8 header": "Subject: Grüße aus Köln\r\nFrom: Jürgen <eve@sender.test>\r\n\r\nSchön.\r\n".encode(),
    "dots": b"Subject: dots\r\n\r\n.\r\n..\r\n...\r\n.x\r\n\r\n.\r\n",
    "no header": b"\r\nonly a body\r\n",
    "no body": b"Subject: none\r\n",
    "control characters": b"Subject: control\r\n\r\n\x01\x07\x08\t\x0b\x0c\x1b\x7f\r\n",
    "lines that look like an mbox": b"Subject: mbox\r\n\r\nFrom eve Sat Nov 21 02:00:00 2026\r\n>From bob\r\n",
}


@pytest.mark.parametrize("letter", DIFFICULT.values(), ids=DIFFICULT)
def test_difficult_content_arrives_as_it_was_sent(server: Server, store: Dovecot, letter: bytes) -> None:
    user = store.user()
    assert send(server, user, letter=letter)[-1].startswith("250 2.0.0")
    assert store.the_only_mail(user).content == letter


def test_addresses_beyond_ascii_are_not_offered_as_dovecot_cannot_carry_them(server: Server, store: Dovecot) -> None:
    user = store.user()
    with connect(server) as client:
        assert client.has_extn("8bitmime")
        assert not client.has_extn("smtputf8")
        assert heard(client.docmd("MAIL", f"FROM:<{SENDER}> SMTPUTF8")).startswith("555 5.5.4")
        assert client.mail(SENDER)[0] == 250
        assert client.docmd("RCPT", f"TO:<{user}@{DOMAIN}>")[0] == 250
        client.sock.sendall("RCPT TO:<jürgen@example.test>\r\n".encode())
        assert client.getreply()[0] // 100 == 5
    assert not store.mails(user)


@pytest.mark.parametrize("chunking", [True, False])
@pytest.mark.parametrize("letter", [LETTER, DIFFICULT["dots"]], ids=["letter", "dots"])
def test_content_is_the_same_by_bdat_and_by_data(serve: Serve, store: Dovecot, chunking: bool, letter: bytes) -> None:
    user = store.user()
    assert send(serve(behind(store, chunking=chunking)), user, letter=letter)[-1].startswith("250 2.0.0")
    assert store.the_only_mail(user).content == letter


def test_label_and_recipient_map_choose_the_folder(serve: Serve, store: Dovecot) -> None:
    marked, mapped = store.user(), store.user()
    table = behind(store, details={"allowed_recipient": "Junk"}, labels_field="X-Labels")
    table["smtpd"]["filters"] = {"access": {"allow_recipients": [f"{marked}@{DOMAIN}"]}}
    table["smtpd"]["recipients"] = {f"sales@{DOMAIN}": {"mailbox": f"{mapped}@{DOMAIN}", "folder": "Sales"}}
    server = serve(table)
    assert send(server, marked)[-1].startswith("250 2.0.0")
    assert send(server, "sales")[-1].startswith("250 2.0.0")
    (mail,) = store.mails(marked, "Junk")
    assert b"\r\nX-Labels: allowed_recipient\r\n" in mail
    (mail,) = store.mails(mapped, "Sales")
    assert b"\r\nX-Labels: none\r\n" in mail
    assert not store.mails(marked)
    assert not store.mails(mapped)


def readiness(server: Server) -> tuple[int, str]:
    try:
        with urlopen(f"http://{server.wait_for('metrics')['address']}/readyz", timeout=PATIENCE) as page:
            return page.status, page.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("socket", ["tcp", "unix"])
def test_store_that_starts_later_than_we_do(serve: Serve, own_store: Dovecot, socket: str) -> None:
    user, server = own_store.user(), serve(behind(own_store, socket))
    status, problems = readiness(server)
    assert status == 503
    assert "mailstore" in problems
    (answer,) = send(server, user)
    assert answer.startswith("451 4.4.1")
    assert server.events("backend-failed")
    own_store.start()
    assert readiness(server) == (200, "ok\n")
    assert send(server, user)[-1].startswith("250 2.0.0")
    assert own_store.the_only_mail(user).content == LETTER


@pytest.mark.parametrize("socket", ["tcp", "unix"])
def test_restart_between_messages_or_before_the_content_is_not_noticed(
    serve: Serve, own_store: Dovecot, socket: str
) -> None:
    own_store.start()
    user, server = own_store.user(), serve(behind(own_store, socket))
    assert send(server, user)[-1].startswith("250 2.0.0")
    own_store.kill()
    own_store.start()
    with connect(server) as client:
        client.mail(SENDER)
        assert client.rcpt(f"{user}@{DOMAIN}")[0] == 250
        own_store.kill()
        own_store.start()
        assert heard(client.data(LETTER)).startswith("250 2.0.0")
    assert len(own_store.mails(user)) == 2
    assert not server.events("backend-failed")
