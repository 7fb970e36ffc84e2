"""What is read from a record, and that nothing a stranger publishes does harm."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.dmarc_record import MAX_RECORD, MAX_URIS, find_record, parse_record


def test_all_tags_of_a_record() -> None:
    record = parse_record(
        b"v=DMARC1; p=reject; sp=quarantine; np=none; adkim=s; aspf=s; t=y; psd=n; pct=30; fo=1:d; "
        b"rua=mailto:a@b.example!10m,https://c.example/d"
    )
    assert record is not None
    assert (record.p, record.sp, record.np) == ("reject", "quarantine", "none")
    assert (record.strict_dkim, record.strict_spf, record.testing) == (True, True, True)
    assert (record.psd, record.percent, record.failure_options) == ("n", 30, "1:d")
    assert record.reports_to == ("mailto:a@b.example", "https://c.example/d")


def test_case_makes_no_difference_behind_the_version() -> None:
    lower = b"adkim=s; aspf=s; t=y; psd=n; p=reject; sp=none; fo=d"
    assert parse_record(b"V=DMARC1; " + lower.upper()) == parse_record(b"v=DMARC1; " + lower)
    assert parse_record(b"v=DMARC1; psd=Y; p=none") == parse_record(b"v=DMARC1; psd=y; p=none")


def test_defaults_of_a_record() -> None:
    record = parse_record(b"v=DMARC1; p=none")
    assert record is not None
    assert (record.sp, record.np, record.psd, record.percent, record.failure_options) == (None, None, "u", 100, "0")
    assert (record.strict_dkim, record.strict_spf, record.testing) == (False, False, False)
    assert record.reports_to == ()


@pytest.mark.parametrize(
    ("value", "percent"),
    [("0", 0), ("7", 7), ("100", 100), ("101", 100), ("-1", 100), ("", 100), ("٣", 100), ("1e1", 100), ("007", 100)],
)
def test_a_percentage_that_is_none_means_all(value: str, percent: int) -> None:
    record = parse_record(f"v=DMARC1; p=none; pct={value}".encode())
    assert record is not None
    assert record.percent == percent


@pytest.mark.parametrize(
    ("value", "options"),
    [
        ("1", "1"), ("d", "d"), ("0:d", "0:d"), ("D : s:1", "d:s:1"), ("s:0:d", "s:0:d"), ("d:s", "d:s"),
        ("0:1", "0"), ("1:0", "0"), ("1:d:0", "0"), ("1:1", "0"), ("d:d", "0"), ("1:s:d:s", "0"), ("d:s:1:0", "0"),
        ("1:x", "0"), ("1:", "0"), ("", "0"), ("1,d", "0"), ("1d", "0"), ("1" + ":d" * 1000, "0"),
    ],
)  # fmt: skip
def test_options_for_failure_reports_that_contradict_each_other_mean_the_default(value: str, options: str) -> None:
    record = parse_record(f"v=DMARC1; p=none; fo={value}".encode())
    assert record is not None
    assert record.failure_options == options


@pytest.mark.parametrize(
    "uri",
    [
        "d@example.com", "mailto:", "mailto:d", "mailto:a@b@c", "mailto: a@b", "mailto:@b", "mailto:\xe9@b", "://x",
        "https:a b", "",
    ],
)  # fmt: skip
def test_what_is_no_address_for_reports_is_left_out(uri: str) -> None:
    record = parse_record(f"v=DMARC1; p=none; rua={uri}, mailto:good@example.com".encode())
    assert record is not None
    assert record.reports_to == ("mailto:good@example.com",)


def test_number_of_addresses_and_size_of_a_record_are_limited() -> None:
    record = parse_record(b"v=DMARC1; p=none; rua=" + b",".join([b"mailto:a@b.example"] * 50))
    assert record is not None
    assert len(record.reports_to) == MAX_URIS
    longest = b"v=DMARC1; p=reject;".ljust(MAX_RECORD)
    assert parse_record(longest) is not None
    assert parse_record(longest + b" ") is None
    assert find_record([longest + b" "]) == (None, 0)


def test_a_record_is_read_once() -> None:
    assert parse_record(b"v=DMARC1; p=reject; x=once") is parse_record(bytes(bytearray(b"v=DMARC1; p=reject; x=once")))


@given(st.binary(max_size=80), st.sampled_from([b"", b"v=DMARC1;", b"v=DMARC1; p=reject;", b"v=DMARC1; rua="]))
def test_any_octets_are_a_record_or_none(octets: bytes, start: bytes) -> None:
    record = parse_record(start + octets)
    if record is not None:
        assert record.p in ("none", "quarantine", "reject")
        assert 0 <= record.percent <= 100
        assert all(uri.isascii() and uri.isprintable() for uri in record.reports_to)


@given(st.lists(st.sampled_from(["p=reject", "sp=none", "x=1", " ", "", "adkim=s", "t=y"]), unique=True), st.data())
def test_order_and_blanks_make_no_difference(tags: list[str], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(tags))
    plain = parse_record(f"v=DMARC1;{';'.join(tags)}".encode())
    assert parse_record(f"v = DMARC1 ; {' ; '.join(shuffled)} ;".encode()) == plain
