"""What the header section of a message may look like, asked of the whole server."""

import pytest

from smtpd.config.problems import ConfigError
from tests.filters.conftest import Build, House

GOOD = b"From: Joe <joe@c.test>\r\nTo: ann@mx.test\r\nSubject: Hi\r\nDate: Fri, 1 Jan 2027 00:00:00 +0000\r\n"
BODY = b"\r\nHello\r\n"


async def send(build: Build, message: bytes, **options: object) -> str:
    house = await build({"headers": options})
    await house.call()
    return await house.send(message)


def problems(house: House, problem: str) -> float:
    return house.count("smtpd_headers_problems_total", filter="headers", problem=problem)


@pytest.mark.parametrize(
    "message",
    [
        GOOD + BODY,
        GOOD + b"\r\n",
        GOOD,  # RFC 5322 §2.1: the body, and with it the empty line, is optional
        GOOD + b"\r\nFrom: eve@c.test\r\nnot a header\r\n" + BODY,
        GOOD + b"X-Folded: a\r\n b\r\n\tc\r\n" + BODY,
        GOOD + b"X-Blank : obsolete\r\n" + BODY,
        GOOD + "X-Utf8: grüße\r\n".encode() + b"X-Latin: gr\xfc\xdfe\r\n" + BODY,
        GOOD + b"Received: x\r\nReceived: y\r\nTo: second@mx.test\r\n" + BODY,
        b"From: joe@c.test\r\n" + BODY,
    ],
)
async def test_ordinary_messages_pass(build: Build, message: bytes) -> None:
    assert (await send(build, message)).startswith("250 2.0.0")


@pytest.mark.parametrize("number", [0, 2, 3])
async def test_a_message_without_exactly_one_from_is_refused_in_words(build: Build, number: int) -> None:
    message = b"Subject: Hi\r\n" + b"fRoM: joe@c.test\r\n" * number + b"Resent-From: joe@c.test\r\n" + BODY
    answer = await send(build, message)
    assert answer.startswith(f"550 5.6.0 A message has exactly one From field, not {number} [headers ")


async def test_second_from_cannot_hide_behind_folding_blanks_or_case(build: Build) -> None:
    for second in (b" \r\nFROM: eve@d.test\r\n", b"X: y\r\n \r\nFrom : eve@d.test\r\n"):
        assert (await send(build, b"From: joe@c.test\r\n" + second + BODY))[:9] == "550 5.6.0"


@pytest.mark.parametrize(
    "value",
    [
        b"joe@c.test", b"a@c.test, b@c.test", b"a@c.test, b@d.test", b"Board: a@c.test, b@d.test;",
        b"Smith, Joe <joe@c.test>", b"joe@c.test <joe@c.test>", b"=?utf-8?q?J=C3=B6rg=2C?= <j@c.test>",
        "Jörg <jörg@bücher.test>".encode(), b"\r\n Joe\r\n <joe@c.test>", b"joe@[192.0.2.1]", b'"a@b, c" <joe@c.test>',
    ],
)  # fmt: skip
async def test_from_needs_an_address_with_a_domain_and_no_more(build: Build, value: bytes) -> None:
    assert (await send(build, b"From: " + value + b"\r\n" + BODY)).startswith("250")


@pytest.mark.parametrize(
    "value", [b"", b"<>", b"Joe", b"Nobody:;", b'"joe@c.test"', b"(joe@c.test)", b"joe@", b"joe@-"]
)
async def test_from_without_an_address_is_refused_unless_the_operator_takes_any(build: Build, value: bytes) -> None:
    message = b"From: " + value + b"\r\n" + BODY
    assert "The From field has no address with a domain" in await send(build, message)
    assert (await send(build, message, from_syntax="any")).startswith("250")


@pytest.mark.parametrize("value", [b"joe..x@c.test", b"Joe <joe.@c.test>", b"joe@c.test.", b".joe@c.test (Joe)"])
async def test_from_with_a_malformed_address_is_not_said_to_have_none(build: Build, value: bytes) -> None:
    answer = await send(build, b"From: " + value + b"\r\n" + BODY)
    assert answer.startswith("550 5.6.0 The address in the From field does not follow RFC 5322 [headers ")


async def test_strict_syntax_refuses_what_only_leniency_can_read(build: Build) -> None:
    sloppy = b"From: Smith, Joe <joe@c.test>\r\n" + BODY
    assert "does not follow RFC 5322" in await send(build, sloppy, from_syntax="strict")
    assert (await send(build, GOOD + BODY, from_syntax="strict")).startswith("250")


@pytest.mark.parametrize("value", [b"a@c.test," * 101, b"(" * 40_000])
async def test_a_monstrous_from_is_refused_as_a_whole(build: Build, value: bytes) -> None:
    folded = b"\r\n ".join(value[start : start + 900] for start in range(0, len(value), 900))
    assert "The From field cannot be read" in await send(build, b"From: " + folded + b"\r\n" + BODY)


@pytest.mark.parametrize("field", [b"Subject", b"Date", b"Message-ID", b"Sender"])
async def test_a_field_that_a_message_has_once_is_refused_twice(build: Build, field: bytes) -> None:
    message = b"From: joe@c.test\r\n" + (field + b": x\r\n") * 2 + BODY
    assert (await send(build, message)).startswith(f"550 5.6.0 A message has one {field.decode()} field, not 2")
    assert (await send(build, message, single=[])).startswith("250")


async def test_nothing_but_from_is_required_until_the_operator_says_so(build: Build) -> None:
    message = b"From: joe@c.test\r\n" + BODY
    assert "The Date field is missing" in await send(build, message, required=["Date"])


@pytest.mark.parametrize(
    "message",
    [
        GOOD + b"Hello\r\n",  # the body without an empty line before it
        GOOD + b"Hello",
        GOOD + b"Hello\r\n\r\nFrom: a@c.test\r\n",
        GOOD + b": nameless\r\n" + BODY,
        GOOD + b"two words: x\r\n" + BODY,
        GOOD + "Grüße: x\r\n".encode() + BODY,
    ],
)
async def test_line_that_is_no_field_is_refused_with_its_number(build: Build, message: bytes) -> None:
    assert (await send(build, message)).startswith("550 5.6.0 Line 5 is no header field")


async def test_folded_lines_count_in_the_number_of_a_line(build: Build) -> None:
    assert "Line 7 is no" in await send(build, GOOD + b"X: a\r\n b\r\n" + b"nothing\r\n" + BODY)


async def test_message_that_begins_with_blanks_or_an_mbox_line_is_refused(build: Build) -> None:
    for first in (b" folded into nothing\r\n", b"From joe@c.test Fri Jan  1 00:00:00 2027\r\n"):
        assert "Line 1 is no header field" in await send(build, first + GOOD + BODY)


async def test_empty_line_at_the_top_leaves_no_header(build: Build) -> None:
    assert "exactly one From field, not 0" in await send(build, b"\r\n" + GOOD + BODY)


async def test_octet_zero_is_refused_in_the_header_and_not_in_the_body(build: Build) -> None:
    assert "octet 0" in await send(build, GOOD + b"X: a\0b\r\n" + BODY)
    assert (await send(build, GOOD + BODY + b"\0\r\n")).startswith("250")


async def test_limits_on_fields_lines_and_size(build: Build) -> None:
    message = GOOD + b"X: y\r\n" * 10 + b"Z: " + b"z" * 997 + b"\r\n" + BODY
    assert (await send(build, message)).startswith("250")
    assert "more than 14 fields" in await send(build, message, max_fields=14)
    assert (await send(build, message, max_fields=15)).startswith("250")
    assert "longer than 999 octets" in await send(build, message, max_line=999)
    assert (await send(build, message, max_line=1000)).startswith("250")
    assert (await send(build, message, max_size=1000)).startswith("554 5.6.0 The header section is bigger than 1000")


async def test_a_header_section_may_have_256_kib_and_one_octet_more_is_counted(build: Build) -> None:
    house = await build({"headers": {}})
    await house.call()
    lines = b"X-Long: %b\r\n" % (b"y" * 900) * 287
    room = (256 << 10) - len(GOOD + lines) - len(b"X: \r\n") - len(b"\r\n")
    for octets, answer in ((room, "250 2.0.0"), (room + 1, "554 5.6.0")):
        said = await house.send(GOOD + lines + b"X: " + b"x" * octets + b"\r\n\r\nHello\r\n")
        assert said.startswith(answer)
    assert problems(house, "too-big") == 1


async def test_header_section_without_end_is_too_big_however_much_is_allowed(build: Build) -> None:
    message = GOOD + b"X: y\r\n" * 200_000 + BODY
    assert (await send(build, message, max_size="1M", max_fields=0)).startswith("554 5.6.0")


async def test_users_who_logged_in_are_looked_at_too(build: Build) -> None:
    house = await build({"headers": {}})
    await house.call(login="ann")
    assert (await house.send(BODY)).startswith("550 5.6.0")


async def test_problems_are_counted_in_observe_mode_too(build: Build) -> None:
    house = await build({"headers": {"mode": "observe"}})
    await house.call()
    assert (await house.send(BODY)).startswith("250")
    assert problems(house, "authors") == 1
    assert problems(house, "no-field") == 0


async def test_option_that_is_no_field_name_is_a_mistake(build: Build) -> None:
    with pytest.raises(ConfigError):
        await build({"headers": {"single": ["Subject:"]}})
