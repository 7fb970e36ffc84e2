"""The fields that a signature is over."""

import pytest
from dkim import select_headers
from dkim.canonicalization import ALGORITHMS
from hypothesis import given
from hypothesis import strategies as st

from filters.dkim_header import Canonicalisation, HeaderSection, without_signature
from filters.dkim_keys import Unusable

names = st.sampled_from([b"A", b"a", b"B", b"From", b"x-y"])
values = st.lists(
    st.sampled_from([b" ", b"\t", b"x", b"y  z", b"\r\n ", b"\r\n\t", b":", b"\xff", b";"]), max_size=8
).map(b"".join)
fields = st.lists(st.tuples(names, values), min_size=1, max_size=8)


@given(fields, st.lists(names, max_size=8), st.sampled_from(["simple", "relaxed"]))
def test_fields_are_chosen_and_canonicalised_as_dkimpy_does(
    pairs: list[tuple[bytes, bytes]], wanted: list[bytes], how: Canonicalisation
) -> None:
    section = HeaderSection(b"".join(name + b":" + value + b"\r\n" for name, value in pairs) + b"\r\n")
    canonical = ALGORITHMS[how.encode()].canonicalize_headers([(name, value + b"\r\n") for name, value in pairs])
    expected = [name + b":" + value for name, value in select_headers(canonical, [name.lower() for name in wanted])]
    assert [section.canonical(place, how) for place in section.chosen(map(bytes.lower, wanted))] == expected


def test_rfc_6376_shows_how() -> None:
    section = HeaderSection(b"A: X\r\nB : Y\t\r\n\tZ  \r\n\r\n")  # §3.4.5
    assert [section.canonical(place, "relaxed") for place in (0, 1)] == [b"a:X\r\n", b"b:Y Z\r\n"]
    assert [section.canonical(place, "simple") for place in (0, 1)] == [b"A: X\r\n", b"B : Y\t\r\n\tZ  \r\n"]


def test_repeated_fields_are_taken_from_the_bottom_up() -> None:
    section = HeaderSection(b"A: 1\r\nB: 2\r\nA: 3\r\n")  # RFC 6376 §5.4.2
    assert section.chosen([b"a"]) == [2]
    assert section.chosen([b"a", b"b", b"a", b"a", b"c"]) == [2, 1, 0]


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (b" a=1; b=abc; d=x\r\n", b" a=1; b=; d=x\r\n"),
        (b" a=1; bh=abc; b=a\r\n\tb c==\r\n", b" a=1; bh=abc; b=\r\n"),
        (b"b=abc ;x=b=1\r\n", b"b=;x=b=1\r\n"),
        (b" a=1;\r\n b =\r\n abc ; d=x\r\n", b" a=1;\r\n b =; d=x\r\n"),
        (b" a=1\r\n", b" a=1\r\n"),
        (b" nob; B=x; b\r\n", b" nob; B=x; b\r\n"),
    ],
)
def test_value_of_b_is_taken_out_with_the_blanks_around_it(value: bytes, left: bytes) -> None:
    assert without_signature(value) == left


def test_signature_field_comes_last_and_without_its_line_end() -> None:
    section = HeaderSection(b"DKIM-Signature: b=abc\r\nFrom:  x\r\n")
    assert section.signed_octets([b"from", b"to"], "relaxed", 0) == b"from:x\r\ndkim-signature:b="
    assert section.signed_octets([b"from", b"to"], "simple", 0) == b"From:  x\r\nDKIM-Signature: b="


@pytest.mark.parametrize(
    "head", [b"no field\r\n", b" folded\r\nA: 1\r\n", b"A: 1\r\n:\r\n", b"gr\xfc: x\r\n", b"A: 1\r\n\xa0x"]
)
def test_line_that_is_no_field_makes_all_signatures_neutral(head: bytes) -> None:
    with pytest.raises(Unusable) as problem:
        HeaderSection(head)
    assert problem.value.result == "neutral"


def test_limits_are_exact() -> None:
    head = b"A: 1\r\n" * 10 + b"B: 2\r\n  3\r\n\r\n"
    HeaderSection(head, max_octets=len(head), max_fields=11)
    for limits in ({"max_octets": len(head) - 1}, {"max_fields": 10}):
        with pytest.raises(Unusable) as problem:
            HeaderSection(head, **limits)
        assert problem.value.result == "policy"


def test_each_field_is_canonicalised_once_whoever_signs_it() -> None:
    section = HeaderSection(b"From: a\r\n" + b"X: y\r\n" * 100)
    first = section.canonical(0, "relaxed")
    assert section.canonical(0, "relaxed") is first
    assert len(section.chosen([b"x"] * 4000 + [b"from"] * 4000)) == 101


@given(st.binary(max_size=60) | fields.map(lambda pairs: b"\r\n".join(b":".join(pair) for pair in pairs)))
def test_any_octets_are_a_section_or_unusable(head: bytes) -> None:
    try:
        section = HeaderSection(head)
    except Unusable:
        return
    for place in section.chosen([b"a", b"b"]):
        assert section.canonical(place, "relaxed").endswith(b"\r\n")
