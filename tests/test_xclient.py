"""XCLIENT: what it says, and what is left of the session it was said in."""

import contextlib
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd import commands, replies
from smtpd.model import Session, TlsInfo
from smtpd.replies import Refused
from smtpd.xclient import ATTRIBUTES, XclientCommand, parse_xclient, successor

V4, V6 = ip_address("192.0.2.7"), ip_address("2001:db8::7")


@pytest.mark.parametrize(
    ("argument", "command"),
    [
        (b"ADDR=192.0.2.7", XclientCommand(V4)),
        (b"addr=192.0.2.7", XclientCommand(V4)),
        (b"ADDR=IPV6:2001:db8::7", XclientCommand(V6)),
        (b"ADDR=ipv6:2001:DB8::7", XclientCommand(V6)),
        (b"ADDR=IPv6:::ffff:192.0.2.7", XclientCommand(V4)),
        (b"ADDR=192.0.2.7 PORT=4321", XclientCommand(V4, 4321)),
        (b"ADDR=192.0.2.7  PORT=0 ", XclientCommand(V4, 0)),
        (b"ADDR=[UNAVAILABLE] NAME=[TEMPUNAVAIL]", XclientCommand()),
        (b"NAME=[unavailable]", XclientCommand()),
        (b"NAME=mail.example.org LOGIN=alice+40example.test", XclientCommand()),
        (b"LOGIN=[UNAVAILABLE] HELO=[UNAVAILABLE] PORT=[UNAVAILABLE]", XclientCommand()),
        (b"HELO=client.test PROTO=ESMTP", XclientCommand(helo="client.test", esmtp=True)),
        (b"HELO=client.test PROTO=smtp", XclientCommand(helo="client.test", esmtp=False)),
        (b"HELO=[192.0.2.7]", XclientCommand(helo="[192.0.2.7]")),
        (b"HELO=a+2Bb+3Dc", XclientCommand(helo="a+b=c")),
        (b"DESTADDR=192.0.2.7 DESTPORT=65535", XclientCommand(destination=V4, destination_port=65535)),
        (b"DESTADDR=[UNAVAILABLE] DESTPORT=[UNAVAILABLE]", XclientCommand()),
    ],
)
def test_attributes_are_read(argument: bytes, command: XclientCommand) -> None:
    assert parse_xclient(argument) == command


BAD = [
    b"", b" ", b"ADDR", b"ADDR=", b"=192.0.2.7", b"HUGO=1", b"192.0.2.7", b"ADDR =192.0.2.7", b"ADDR= 192.0.2.7",
    b"ADDR=2001:db8::7", b"ADDR=[192.0.2.7]", b"ADDR=192.0.2", b"ADDR=192.0.2.07", b"ADDR=192.0.2.7/32",
    b"ADDR=IPV6:192.0.2.7", b"ADDR=IPV6:", b"ADDR=IPV6:fe80::1%eth0", b"ADDR=IPV6:[2001:db8::7]", b"ADDR=client.test",
    b"ADDR=[TEMPUNAVAIL]", b"ADDR=192.0.2.7 ADDR=192.0.2.8", b"ADDR=192.0.2.7=", b"ADDR=192.0.2.7\tPORT=1",
    b"PORT=65536", b"PORT=-1", b"PORT=smtp", b"PORT=+3", b"PORT=123456", b"PORT=1.0", b"PORT=\xb2",
    b"PROTO=LMTP", b"PROTO=", b"PROTO=[UNAVAILABLE]", b"PROTO=ESMTPS",
    b"HELO=a+20b", b"HELO=a+0D+0Ab", b"HELO=a+00", b"HELO=+C3+A4", b"HELO=" + b"a" * 256, b"HELO=a+2", b"HELO=a+GG",
    b"NAME=a+20b", b"NAME=a+7F", b"NAME=+ff", b"NAME=" + b"a" * 256, b"LOGIN=a+0Ab", b"LOGIN=\xff", b"HEL\xd6=a",
    b"DESTADDR=mx.test", b"DESTPORT=x",
]  # fmt: skip


@pytest.mark.parametrize("argument", BAD)
def test_anything_else_is_refused(argument: bytes) -> None:
    with pytest.raises(Refused) as refused:
        parse_xclient(argument)
    assert (refused.value.reply.code, refused.value.reply.status) == (501, "5.5.4")


@given(st.binary(max_size=100) | st.lists(st.sampled_from(ATTRIBUTES).map(str.encode)).map(b"=+41 ".join))
def test_no_octets_break_it(argument: bytes) -> None:
    with contextlib.suppress(Refused):
        assert isinstance(parse_xclient(argument), XclientCommand)


def old() -> Session:
    session = Session(
        id="old", listener="smtp", ip=ip_address("127.0.0.1"), port=9, local_ip="127.0.0.2", local_port=25
    )
    session.helo, session.esmtp, session.login, session.mechanism = "proxy.test", True, "alice", "PLAIN"
    session.lmtp = True
    session.trusted, session.tls = True, TlsInfo("TLSv1.3", "X", 256)
    session.errors, session.auth_failures, session.messages, session.transactions = 1, 2, 3, 4
    session.labels, session.early = frozenset({"junk"}), True
    session.facts.add("a fact")
    return session


def test_only_tls_is_left_of_the_session_before() -> None:
    before = old()
    session = successor(before, XclientCommand(V4, 4321), lambda ip: ip != V4)
    assert (session.ip, session.ip_text, session.port) == (V4, "192.0.2.7", 4321)
    assert (session.local_ip, session.local_port) == ("127.0.0.2", 25)
    assert session.tls == before.tls
    assert not session.trusted, "trust belongs to an address, and is looked up anew"
    assert session.id != before.id
    fresh = Session(id=session.id, listener="smtp", ip=V4, port=4321, local_ip="127.0.0.2", local_port=25)
    fresh.tls, fresh.lmtp, fresh.facts = session.tls, True, session.facts
    assert session == fresh
    assert not list(session.facts)


def test_what_is_not_named_stays_as_it_is() -> None:
    session = successor(old(), XclientCommand(destination=V6, destination_port=465), lambda ip: True)
    assert (session.ip_text, session.port) == ("127.0.0.1", 9)
    assert (session.local_ip, session.local_port) == ("2001:db8::7", 465)
    assert session.trusted


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (XclientCommand(V4), ("", False)),
        (XclientCommand(V4, esmtp=True), ("", False)),
        (XclientCommand(V4, helo="client.test"), ("client.test", False)),
        (XclientCommand(V4, helo="client.test", esmtp=True), ("client.test", True)),
    ],
)
def test_helo_is_forgotten_unless_it_is_named(command: XclientCommand, expected: tuple[str, bool]) -> None:
    session = successor(old(), command, lambda ip: False)
    assert (session.helo, session.esmtp) == expected


def test_login_is_never_earned_by_a_name() -> None:
    session = successor(old(), parse_xclient(b"LOGIN=root"), lambda ip: False)
    assert (session.login, session.mechanism) == (None, "")


def test_line_may_be_longer_than_others() -> None:
    assert commands.limit_for(b"XCLIENT ADDR=") == commands.limit_for(b"xcli") == 1024


def test_refusal_names_the_attribute_and_repeats_nothing_else() -> None:
    with pytest.raises(Refused) as refused:
        parse_xclient(b"PORT=evil")
    assert refused.value.reply == replies.BAD_PARAMETER
    assert refused.value.reply.message == "Bad value of PORT"
