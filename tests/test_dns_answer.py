import sys

import pytest

from smtpd.dns import INVALID, TYPES, Answer, Mx, Record, Txt, normal_name
from smtpd.dns.answer import format_record, parse_record, size_of, text_record


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("Example.ORG.", "example.org"),
        (".", "."),
        ("_dmarc.example.org", "_dmarc.example.org"),
        ("back\\slash.example", "back\\slash.example"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
        ("a" * 64 + ".example", None),
        (".".join(["a" * 49] * 5) + ".abcd", None),
        (".".join(["a" * 49] * 5) + ".abc", ".".join(["a" * 49] * 5) + ".abc"),
        ("", None),
        ("..", None),
        ("a..b", None),
        (".a", None),
        ("a b.example", "a b.example"),
        ("a\r\nb.example", None),
        ("müller.example", None),
        ("a\x00.example", None),
    ],
)
def test_name_is_compared_in_lower_case_without_its_last_dot_if_it_can_be_one(name: str, normal: str | None) -> None:
    assert normal_name(name) == normal


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("A", "192.0.2.1"),
        ("AAAA", "2001:db8::1"),
        ("PTR", "mx.example.org"),
        ("CNAME", "a.example"),
        ("NS", "ns.example"),
        ("MX", "10 mx.example.org"),
        ("MX", "0 ."),
        ("TXT", "v=spf1 -all"),
        ("TXT", "x" * 600),
        ("TXT", ""),
        ("SOA", "ns.example host.example 1 2 3 4 5"),
        ("TLSA", "3 1 1 abcdef"),
    ],
)
def test_record_is_written_as_it_was_read(kind: str, text: str) -> None:
    known = next(known for known in TYPES if known == kind)
    assert format_record(parse_record(known, text)) == text


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("A", "2001:db8::1"),
        ("A", "192.0.2.256"),
        ("AAAA", "192.0.2.1"),
        ("MX", "mx.example.org"),
        ("MX", "65536 mx.example.org"),
        ("MX", "-1 mx.example.org"),
        ("MX", "10 mx..example.org"),
        ("PTR", "a b"),
        ("SOA", "ns.example host.example 1 2 3 4"),
        ("TLSA", "3 1 1 xyz"),
        ("TLSA", "256 1 1 ab"),
    ],
)
def test_what_is_no_record_of_its_type_is_an_error(kind: str, text: str) -> None:
    known = next(known for known in TYPES if known == kind)
    with pytest.raises(ValueError):
        parse_record(known, text)


def test_mail_hosts_come_in_the_order_of_their_preference() -> None:
    answer = Answer("ok", (Mx(20, "b.example"), Mx(10, "c.example"), Mx(10, "a.example")))
    assert [mx.host for mx in answer.mx] == ["a.example", "c.example", "b.example"]


def test_strings_of_one_text_record_are_joined_and_records_are_not() -> None:
    answer = Answer("ok", (Txt((b"v=spf1 ", b"-all")), Txt((b"other",))))
    assert answer.txt == (b"v=spf1 -all", b"other")
    assert answer.texts == ()


def test_long_text_becomes_strings_of_at_most_255_octets() -> None:
    assert [len(part) for part in text_record(b"x" * 600).parts] == [255, 255, 90]


def test_only_found_has_records_and_only_failed_is_worth_a_retry() -> None:
    assert [(Answer(status).found, Answer(status).failed) for status in ("ok", "nodata", "nxdomain", "tempfail")] == [
        (True, False),
        (False, False),
        (False, False),
        (False, True),
    ]
    assert not INVALID.failed


def test_size_counts_what_strangers_can_make_long() -> None:
    assert 5000 <= size_of(Answer("ok", (text_record(b"x" * 5000),))) <= 6500
    assert 200 <= size_of(Answer("ok", (Mx(10, "x" * 200),))) <= 400
    assert 200 <= size_of(Answer("ok", ("x" * 200,))) <= 300


@pytest.mark.parametrize("record", [Txt((b"",)), Mx(10, ""), "::"])
def test_size_counts_records_that_are_as_good_as_empty(record: Record) -> None:
    each = sys.getsizeof(tuple(record)) if not isinstance(record, str) else sys.getsizeof(record)
    assert size_of(Answer("ok", (record,) * 4000)) >= 4000 * each * 3 / 4
