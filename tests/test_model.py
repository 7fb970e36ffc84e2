import re
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest

from smtpd.addresses import Address, parse_address
from smtpd.commands import MailCommand
from smtpd.content import Content
from smtpd.limits import ContentBudget
from smtpd.model import Message, Recipient, Session, Transaction, new_id

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def fields(head: bytes) -> list[tuple[str, bytes]]:
    content = Content(ContentBudget(0), in_memory=1 << 24)
    content.write(head)
    return Message(content).fields


def test_fields_keep_their_folding_and_end_at_the_empty_line() -> None:
    assert fields(b"A: x\r\n y\r\n \r\nb-C : z\r\n\r\nD: w\r\n") == [("a", b" x\r\n y\r\n "), ("b-c", b" z")]


@pytest.mark.parametrize("line", [b" leading: x", b"no colon", b": nameless", b"two words: x", "ü: x".encode()])
def test_line_that_is_no_field_has_no_name(line: bytes) -> None:
    assert fields(line + b"\r\nA: x\r\n\r\n") == [("", line), ("a", b" x")]


def test_header_section_may_end_with_the_message() -> None:
    assert fields(b"A: x\r\nB: y") == [("a", b" x"), ("b", b" y")]
    assert fields(b"") == fields(b"\r\nA: x\r\n") == []


def test_values_of_one_field_are_found_without_splitting_all() -> None:
    content = Content(ContentBudget(0), 1 << 20)
    content.write(b"A: x\r\n y\r\nb: z\r\na :\r\n\r\nA: w\r\n")
    message = Message(content)
    assert message.field_values("a") == [b" x\r\n y", b""]
    assert message._fields is None  # what it would cost: a microsecond for each of 200,000 fields
    assert len(message.fields) == 3
    assert message.field_values("a") == [b" x\r\n y", b""]


def moment(trace: str) -> int:
    """The time in a trace id, milliseconds."""
    value = 0
    for letter in trace[:10]:
        value = value * 32 + ALPHABET.index(letter)
    return value


def test_trace_id_begins_with_its_time() -> None:
    times: set[int] = set()
    while len(times) < 3:
        before = time.time_ns() // 1_000_000
        trace = new_id()
        assert before <= moment(trace) <= time.time_ns() // 1_000_000
        assert re.fullmatch(f"[{ALPHABET}]{{16}}", trace)
        times.add(moment(trace))


def test_no_trace_id_comes_twice() -> None:
    with ThreadPoolExecutor(4) as threads:
        made = [one for many in threads.map(lambda _: [new_id() for _ in range(5000)], range(8)) for one in many]
    assert len({one[10:] for one in made}) == len(made)


@pytest.mark.parametrize(
    ("of_mail", "of_session", "of_recipients", "shared"),
    [
        ("", "", [], ""),
        ("", "", ["", ""], ""),
        ("a", "b", [], "ab"),
        ("a", "b", ["", "c"], "ab"),
        ("a", "", ["cd", "dc"], "acd"),
        ("", "b", ["cd", "d"], "bd"),
        ("", "", ["c", ""], ""),
    ],
)
def test_labels_that_hold_for_every_recipient_are_shared(
    of_mail: str, of_session: str, of_recipients: list[str], shared: str
) -> None:
    session = Session("S", "smtp", ip_address("192.0.2.1"), labels=frozenset(of_session))
    mail = Transaction("T", session, Address.null, labels=frozenset(of_mail))
    mail.recipients = [Recipient(Address.null, labels=frozenset(labels)) for labels in of_recipients]
    assert mail.shared_labels == frozenset(shared)
    assert mail.all_labels == frozenset(of_mail + of_session)


@pytest.mark.parametrize(
    ("login", "trusted", "said", "believed"),
    [
        (None, False, "joe@a.test", ""),
        (None, False, "", ""),
        (None, False, None, None),
        ("joe", False, "joe@a.test", "joe@a.test"),
        (None, True, "joe@a.test", "joe@a.test"),
        (None, True, None, None),
    ],
)
def test_author_counts_from_those_only_who_may_name_one(
    login: str | None, trusted: bool, said: str | None, believed: str | None
) -> None:
    """RFC 4954 §5: for all others AUTH= means <>."""
    session = Session("S", "smtp", ip_address("192.0.2.1"), login=login, trusted=trusted)
    sender = parse_address("joe@client.test")
    mail = Transaction.begin(MailCommand(sender, 7, "8BITMIME", True, said, True), session)
    assert (mail.session, mail.sender, mail.size, mail.body) == (session, sender, 7, "8BITMIME")
    assert (mail.smtputf8, mail.prdr, mail.auth) == (True, True, believed)
    assert (mail.recipients, mail.labels, mail.held, mail.pending, mail.trace) == ([], frozenset(), None, None, None)
    session.facts.add("of the session")
    assert mail.facts.get(str) == "of the session"
