"""Whom a From field may name to one mail program or the other."""

from __future__ import annotations

from contextlib import suppress
from email.header import decode_header, make_header
from email.utils import getaddresses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from filters.sender_authors import MAX_FIELDS, MAX_NAMED, find_authors
from smtpd.addresses import AddressError
from smtpd.content import MAX_HEAD
from smtpd.model import Message
from smtpd.octets import Octets

ME = "joe@ours.test"
THEM = "boss@their.test"


def named(*values: str | bytes) -> set[str]:
    fields = (value if isinstance(value, bytes) else value.encode() for value in values)
    head = b"".join(b"From: %b\r\n" % field for field in fields)
    return {address.key for address in find_authors(Message(Octets(b"X: y\r\n" + head + b"\r\nHello\r\n")))}


# What Thunderbird, Outlook, Apple Mail, phones, msmtp, mutt, cron, printers and sloppy scripts write.
@pytest.mark.parametrize(
    "value",
    [
        ME, f"<{ME}>", f"Joe <{ME}>", f'"Smith, Joe" <{ME}>', f"Joe Smith, Inc. <{ME}>", f"Joe Q. Smith <{ME}>",
        f'"Joe \\"the\\" Smith" <{ME}>', f"{ME} (Joe Smith)", f"{ME} <{ME}>", f"'{ME}' <{ME}>", f"\"'{ME}'\" <{ME}>",
        f'"{ME}" <{ME}>', f"=?utf-8?q?J=C3=B6?= <{ME}>", f"=?UTF-8?B?SsO2?=\r\n <{ME}>",
        f"=?utf-8?q?{ME}?= <{ME}>", f"=?iso-2022-jp?B?GyRCQDVBNU4uP00bKEI=?= <{ME}>",
        f"=?utf-8?b?!?= =?x?q?=?= <{ME}>", f'"boss@their.test" <{ME}>',
        f"J\u00f6 <{ME}>", b"J\xf6 <joe@ours.test>", f"Backup @ web1 <{ME}>", f"Backup@web1 <{ME}>", f"root: {ME};",
        "<@relay.test:joe@ours.test>", f"Joe\t<{ME}>", f"Joe <{ME}>,", f"JOE@OURS.TEST <{ME}>", f"{ME} <JOE@ours.test>",
    ],
)  # fmt: skip
def test_honest_field_names_one_author(value: str | bytes) -> None:
    assert named(value) == {ME}


@pytest.mark.parametrize(
    "value",
    [
        f"{THEM}, {ME}", f"{THEM} <{ME}>", f"The Boss {THEM} <{ME}>", f"boss @ their.test <{ME}>", f"<{ME}> <{THEM}>",
        f'"x <{THEM}>" <{ME}>', f'"\\" <{THEM}>, \\"" <{ME}>', f'"\\", {THEM}, \\"" <{ME}>', f"((a) {THEM}, ) {ME}",
        f"{ME} ({THEM})", f"(a\\) <{THEM}>) {ME}", f"A: {THEM}; , {ME}", f"{THEM}: {ME};", f"{THEM}\x01 <{ME}>",
        f"{ME}\x01<{THEM}>", f"{ME}\r\n \r\n\t,{THEM}", f'"boss"@their.test <{ME}>', f"boss@[192.0.2.1] <{ME}>",
        f"'{THEM}' <{ME}>", f"<{ME}> {THEM}", f"bo=?x?q??=ss {THEM} <{ME}>", f"=?x?q?=22?= {THEM} =?x?q?=22?= <{ME}>",
        f"=?utf-8?q?boss=40their.test?= <{ME}>", f"=?utf-8?b?PGJvc3NAdGhlaXIudGVzdD4=?= <{ME}>",
        f"=?x?q?bo?= \r\n =?x?b?c3NAdGhlaXIudGVzdA?= <{ME}>", f"=?x?q?boss?=@their.test <{ME}>",
        f'"=?x?q?=22?={THEM}, =?x?q?=22?=" <{ME}>', f'"=?x?q?=22_boss=40their.test=2C_=22?=" <{ME}>',
        f'"{THEM}", <{ME}>', f'<{ME}> "{THEM}"', f'"{THEM}" (x) <{ME}>', f'<{ME}>", {THEM}',
        f"boss. joe@ours.test <{ME}>", f"boss\r\n .joe@ours.test <{ME}>", f"joe@ours.test. their.test <{ME}>",
        f"=?x?q? boss=40their.test ?= <{ME}>", f"=?x?b? {THEM} ?= <{ME}>",
        f"=?utf-16?b?AGIAbwBzAHMAQAB0AGgAZQBpAHIALgB0AGUAcwB0?= <{ME}>",
    ],
)  # fmt: skip
def test_second_author_is_found_wherever_he_hides(value: str) -> None:
    found = named(value)
    assert ME in found
    assert len(found) == 2


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "no address"), ("Joe", "no address"), ("undisclosed:;", "no address"), (f'"Joe <{ME}>', "no address"),
        (f"{THEM}@ours.test", "no address"), (f"{ME}, boss.@ours.test", "almost"), (f"{ME}, b..s@ours.test", "almost"),
        (f"{ME}, c\u00e9o\udcff@their.test".encode("utf-8", "surrogateescape"), "almost"),
        (f"=?utf-7?q?boss+AEA-their.test?= <{ME}>", "UTF-7"),
        ("=?utf-8?b?Ym9zc0B0aGVpci50ZXN0?=@ours.test", "encoded word"), ("joe+=?utf-8?q?x?=@ours.test", "encoded word"),
        (f'{ME}, "{THEM}', "almost"), ("a@b.test, " * 101, "more than 100"), ("x" * 8200, "too much"),
    ],
)  # fmt: skip
def test_field_that_is_not_clear_is_not_guessed_about(value: str | bytes, problem: str) -> None:
    with pytest.raises(AddressError, match=problem):
        named(value)


FRAGMENTS = [
    ME, THEM, "boss", "their.test", "@", "<", ">", '"', "\\", "(", ")", ",", " ", ";", ":", ".", "'", "\r\n ",
    f" <{ME}>", f" <{THEM}>", "[192.0.2.1]", "=?utf-8?q?", "?=", "=?utf-8?q?=22?=", "=?utf-8?q?=2C?=",
    "=?utf-8?q?boss=40their.test?=", "=?utf-8?q?boss?=",
]  # fmt: skip


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join))
@example(f'<{ME}>"", ?={THEM}')
@example(f'"{THEM}", <{ME}>')
def test_whoever_another_reader_finds_is_found_here_unless_it_is_not_clear(value: str) -> None:
    unfolded = value.replace("\r\n", "")
    read = {address for _, address in getaddresses([unfolded], strict=False)}
    read |= {address for _, address in getaddresses([str(make_header(decode_header(unfolded)))], strict=False)}
    with suppress(AddressError):
        found = named(value)
        assert THEM not in read or THEM in found


@given(st.binary(max_size=200))
def test_any_octets_are_read_or_not_clear(value: bytes) -> None:
    with suppress(AddressError):
        named(value.replace(b"\r", b"").replace(b"\n", b""))


def test_all_of_several_fields_are_read_up_to_a_limit() -> None:
    assert named(ME, f"Boss <{THEM}>") == {ME, THEM}
    assert named(*[ME] * MAX_FIELDS) == {ME}
    with pytest.raises(AddressError, match="too much"):
        named(*[ME] * (MAX_FIELDS + 1))


@pytest.mark.parametrize("name", [b"From\x0b", b"\x0cfrom", b"\xef\xbb\xbfFrom", b"FROM\xa0 ", b"\x7fFrom"])
def test_field_that_some_programs_take_for_from_is_not_passed_over(name: bytes) -> None:
    with pytest.raises(AddressError, match="another field"):
        named(ME.encode() + b"\r\n" + name + b": boss@their.test")


def test_octet_0_makes_the_header_unclear() -> None:
    with pytest.raises(AddressError, match="octet 0"):
        named(ME.encode() + b"\r\nFr\0om: boss@their.test")


def test_fields_with_longer_names_are_others() -> None:
    assert named(f"{ME}\r\nX-From: {THEM}\r\nFrom-X: {THEM}\r\nSubject: From: {THEM}\r\n From: {THEM}") == {ME}


def test_message_without_from_names_nobody() -> None:
    with pytest.raises(AddressError, match="missing"):
        named()


def test_author_could_stand_behind_what_is_looked_at() -> None:
    head = b"From: joe@ours.test\r\n" + b"X: y\r\n" * (MAX_HEAD // 6)
    with pytest.raises(AddressError, match="too big"):
        find_authors(Message(Octets(head + b"From: boss@their.test\r\n\r\n")))


def test_number_of_addresses_has_a_limit_however_they_are_named() -> None:
    with pytest.raises(AddressError, match="more than 200"):
        named(f"{ME} " + "".join(f"({number}@a.test)" for number in range(MAX_NAMED)))
