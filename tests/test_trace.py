"""The fields we put on top: the right protocol word, nobody's secrets, nothing of the client unescaped."""

import re
from email.utils import parsedate_to_datetime
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd import trace
from smtpd.addresses import Address, AddressError, parse_address, parse_path
from smtpd.model import Recipient, Session, TlsInfo, Transaction

TLS = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256)
RECEIVED = re.compile(
    r"Received: from (?P<helo>\S+) \((?P<client>\[[^\]]+\])\)\r\n"
    r"\tby mx\.test \(smtpd\) with (?P<protocol>[A-Z0-9]+)(?P<tls>\r\n\t\([^()\r\n]+\))? id (?P<id>\w+)"
    r"(?:\r\n\tfor <(?P<recipient>[^\r\n]+)>)?;\r\n\t(?P<date>[^\r\n]+)\r\n"
)
anything = st.text(st.characters(codec="utf-8"), max_size=80)


def session(**changes: object) -> Session:
    known: dict[str, object] = {"id": "S", "listener": "smtp", "ip": ip_address("192.0.2.1"), "helo": "client.test"}
    return Session(**{"esmtp": True, **known, **changes})  # type: ignore[arg-type]


def mail(of: Session, *recipients: str, utf8: bool = False) -> Transaction:
    made = Transaction(id="01M7XZ8", session=of, sender=parse_address("joe@client.test"), smtputf8=utf8)
    made.recipients = [Recipient(parse_address(text)) for text in recipients]
    return made


def received(of: Session, *recipients: str, utf8: bool = False) -> re.Match[str]:
    field = trace.received(of, mail(of, *recipients, utf8=utf8), "mx.test").decode()
    found = RECEIVED.fullmatch(field)
    assert found is not None, field
    assert all(len(line.encode()) <= 998 for line in field.split("\r\n"))
    return found


@pytest.mark.parametrize(
    ("esmtp", "tls", "login", "utf8", "word"),
    [
        (False, None, None, False, "SMTP"),
        (True, None, None, False, "ESMTP"),
        (True, TLS, None, False, "ESMTPS"),
        (True, None, "ann", False, "ESMTPA"),
        (True, TLS, "ann", False, "ESMTPSA"),
        (True, None, None, True, "UTF8SMTP"),
        (True, TLS, None, True, "UTF8SMTPS"),
        (True, None, "ann", True, "UTF8SMTPA"),
        (True, TLS, "ann", True, "UTF8SMTPSA"),
    ],
)
def test_protocol_word_says_what_was_used(
    esmtp: bool, tls: TlsInfo | None, login: str | None, utf8: bool, word: str
) -> None:
    """RFC 3848, and RFC 6531 §4.3 for the rest."""
    found = received(session(esmtp=esmtp, tls=tls, login=login), "ann@example.test", utf8=utf8)
    assert found["protocol"] == word
    assert bool(found["tls"]) == bool(tls)


def test_field_says_what_holds_for_its_message_when_the_session_goes_on() -> None:
    of = session(ip=ip_address("192.0.2.77"))
    said = []
    for change in ({}, {"helo": "other.test"}, {"tls": TLS}, {"login": "ann"}, {"esmtp": False}, {"lmtp": True}):
        for name, value in change.items():
            setattr(of, name, value)
        found = received(of)
        said.append((found["helo"], found["protocol"], bool(found["tls"])))
    assert received(of, utf8=True)["protocol"] == "UTF8LMTPSA"
    assert said == [
        ("client.test", "ESMTP", False),
        ("other.test", "ESMTP", False),
        ("other.test", "ESMTPS", True),
        ("other.test", "ESMTPSA", True),
        ("other.test", "SMTP", True),
        ("other.test", "LMTPSA", True),
    ]


def test_field_names_the_client_and_the_host_it_is_made_for() -> None:
    fields = [
        trace.received(of, mail(of), hostname).decode()
        for of in (session(), session(ip=ip_address("192.0.2.2")), session(tls=TlsInfo("TLSv1.2", "X", 128)))
        for hostname in ("mx.test", "mx2.test")
    ]
    assert len({field.partition(" id ")[0] for field in fields}) == 6


def test_date_is_one_of_rfc_5322() -> None:
    assert parsedate_to_datetime(received(session(), "ann@example.test")["date"]).tzinfo is not None


def test_single_recipient_is_named() -> None:
    assert received(session(), "ann@example.test")["recipient"] == "ann@example.test"


@pytest.mark.parametrize("count", [0, 2, 3])
def test_several_recipients_do_not_learn_of_each_other(count: int) -> None:
    """RFC 5321 §7.2: a blind copy stays blind."""
    found = received(session(), *[f"blind{number}@example.test" for number in range(count)])
    assert "blind" not in found[0]


def test_login_is_not_named() -> None:
    assert "secretive" not in received(session(login="secretive", tls=TLS), "ann@example.test")[0]


def test_version_and_cipher_are_named() -> None:
    assert received(session(tls=TLS), "a@b.test")["tls"] == "\r\n\t(TLSv1.3 TLS_AES_256_GCM_SHA384)"


@pytest.mark.parametrize(("ip", "literal"), [("192.0.2.1", "[192.0.2.1]"), ("2001:db8::1", "[IPv6:2001:db8::1]")])
def test_client_is_an_address_literal(ip: str, literal: str) -> None:
    assert received(session(ip=ip_address(ip)), "a@b.test")["client"] == literal


@pytest.mark.parametrize("helo", ["client.test", "[192.0.2.9]", "[IPv6:2001:db8::9]", "host_1-a.test", "x" * 255])
def test_name_of_the_client_stands_there_as_given(helo: str) -> None:
    assert received(session(helo=helo), "a@b.test")["helo"] == helo


@pytest.mark.parametrize(
    "helo", ["x(y", "a)b;c", "<b@c>", '"', "a\r\nBcc: x", "a\tb", "ü.test", "", "\0", "a b", "by", "x" * 256, "a@b"]
)
def test_name_that_could_be_mistaken_is_left_out(helo: str) -> None:
    expected = helo if helo == "by" else "[192.0.2.1]"
    assert received(session(helo=helo), "a@b.test")["helo"] == expected


@given(helo=anything, local=anything, utf8=st.booleans())
def test_nothing_of_the_client_breaks_the_field(helo: str, local: str, utf8: bool) -> None:
    of = session(helo=helo)
    made = mail(of, utf8=utf8)
    try:
        made.recipients = [Recipient(parse_path(f"<{local}@example.test>")[0])]
    except AddressError:
        made.recipients = [Recipient(Address(local, "example.test", f"{local}@example.test"))]
    for field in (
        trace.received(of, made, "mx.test"),
        trace.delivered_to(made.recipients[0].address.text),
        trace.return_path(made),
        trace.field("X-Note", local),
    ):
        assert_is_one_field(field)


def assert_is_one_field(field: bytes) -> None:
    field.decode("utf-8")
    lines = field.split(b"\r\n")
    assert lines.pop() == b""
    assert not re.search(rb"[\0-\x08\x0a-\x1f\x7f]", b"".join(lines)), field
    assert re.match(rb"[A-Za-z-]+: ", lines[0])
    assert all(line.startswith(b"\t") and line.strip() for line in lines[1:])


def test_addresses_beyond_ascii_arrive_as_utf8() -> None:
    found = received(session(), "grün@example.test", utf8=True)
    assert found["recipient"] == "grün@example.test"


@pytest.mark.parametrize(("sender", "line"), [("<>", b"<>"), ("<joe@a.test>", b"<joe@a.test>")])
def test_return_path_names_the_sender(sender: str, line: bytes) -> None:
    """RFC 5321 §4.4; a notification has <>."""
    made = mail(session(), "ann@example.test")
    made.sender = parse_path(sender)[0]
    assert trace.return_path(made) == b"Return-Path: " + line + b"\r\n"


def test_delivered_to_names_the_mailbox() -> None:
    assert trace.delivered_to("ann@example.test") == b"Delivered-To: ann@example.test\r\n"


def test_a_field_of_a_filter_cannot_bring_another_one() -> None:
    assert trace.field("X-Note", "a\r\nBcc: b\nc\0d\x85e") == b"X-Note: a Bcc: b c d e\r\n"


def test_a_comment_ends_where_it_is_meant_to() -> None:
    assert trace.comment('a b(c)d\\e"f\ng\x7fh\u00e9') == "a b?c?d?e?f?g?h?"


def test_a_field_of_a_filter_stays_folded() -> None:
    assert trace.field("X-Note", "a\r\n b\r\n\tc\r\n \r\n d") == b"X-Note: a\r\n b\r\n c  \r\n d\r\n"
