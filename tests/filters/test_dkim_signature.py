"""DKIM-Signature fields: every tag that can be wrong, and what is said then."""

import base64
from contextlib import suppress

import pytest
from dkim_house import JOE, only
from hypothesis import given
from hypothesis import strategies as st
from signer import LETTER

from filters.dkim_keys import Unusable
from filters.dkim_signature import claimed_domain, described, read_signature, read_tags


@pytest.mark.parametrize(
    ("tags", "result", "reason"),
    [
        ({}, "pass", ""),
        ({"c": "simple/simple"}, "pass", ""),
        ({"c": "relaxed"}, "pass", ""),
        ({"c": None}, "pass", ""),
        ({"i": "joe@news.a.test"}, "pass", ""),
        ({"t": "1700000000", "x": "4000000000"}, "pass", ""),
        ({"x": "9" * 70}, "pass", ""),
        ({"q": "http/key:dns/txt"}, "pass", ""),
        ({"h": "From : To: SUBJECT:\r\n Date:from:reply-to"}, "pass", ""),
        ({"x": "1700000000"}, "fail", "the signature has expired"),
        ({"t": "4000000000"}, "fail", "the signature is from the future"),
        ({"t": "9" * 70}, "fail", "the signature is from the future"),
        ({"bh": base64.b64encode(bytes(32)).decode()}, "fail", "the body was changed"),
        ({"b": base64.b64encode(bytes(256)).decode()}, "fail", "the signature does not match"),
        ({"b": base64.b64encode(b"short").decode()}, "fail", "the signature does not match"),
        ({"a": "rsa-sha1"}, "policy", "rsa-sha1 proves nothing"),
        ({"h": "to:subject"}, "permerror", "the From field is not signed"),
        ({"i": "joe@b.test"}, "permerror", "the domain of i= is not below that of d="),
        ({"i": "joe@xa.test"}, "permerror", "the domain of i= is not below that of d="),
        ({"i": "a.test"}, "permerror", "the domain of i= is not below that of d="),
        ({"s": "unknown"}, "permerror", "there is no key"),
        ({"s": "x" * 64}, "permerror", "there is no key"),
        ({"a": "ed25519-sha256", "b": "AAAA"}, "permerror", "the key is of another kind than the signature"),
        ({"v": "2"}, "neutral", "the signature is of another version than 1"),
        ({"v": None}, "neutral", "the signature has no v="),
        ({"bh": None}, "neutral", "the signature has no bh="),
        ({"h": None}, "neutral", "the signature has no h="),
        ({"a": "rsa-md5"}, "neutral", "the algorithm is unknown"),
        ({"c": "nowsp/simple"}, "neutral", "the canonicalisation is unknown"),
        ({"c": "simple/nowsp"}, "neutral", "the canonicalisation is unknown"),
        ({"b": "?!"}, "neutral", "b= is not base64"),
        ({"b": "AAAAA"}, "neutral", "b= is not base64"),
        ({"bh": "A"}, "neutral", "bh= is not base64"),
        ({"l": "ten"}, "neutral", "l= is no number"),
        ({"t": "-1"}, "neutral", "t= is no number"),
        ({"x": "9" * 5000}, "neutral", "x= is no number"),
        ({"t": "1700000001", "x": "4000000000", "l": "9" * 70}, "neutral", "l= is more than the body has"),
        ({"d": "a..test", "i": None}, "neutral", "d= or s= is no name"),
        ({"d": "[192.0.2.1]"}, "neutral", "d= or s= is no name"),
        ({"s": "two words"}, "neutral", "d= or s= is no name"),
        ({"q": "http/key"}, "neutral", "the signature breaks the rules of RFC 6376"),
        ({"z": "x" * 9000}, "policy", "the signature field is longer than 8192 octets"),
    ],
)  # fmt: skip
async def test_signature_gets_a_result_and_a_reason(tags: dict[str, str | None], result: str, reason: str) -> None:
    signature = await only(JOE.sign(**tags))
    assert (signature.result, signature.reason) == (result, reason)
    assert signature.counts


@pytest.mark.parametrize(
    ("selector", "key_name"),
    [
        ("New", "new._domainkey.a.test"),
        ("bücher", "xn--bcher-kva._domainkey.a.test"),
        ("a\x01b", ""),
        ("a\x7fb", ""),
        ("ü b", ""),
    ],
)
def test_key_is_looked_up_by_names_that_dns_has(selector: str, key_name: str) -> None:
    tags = {**read_tags(JOE.field().partition(b":")[2]), b"s": selector.encode()}
    if key_name:
        assert read_signature(tags, 1_700_000_000).key_name == key_name
    else:
        with pytest.raises(Unusable, match="d= or s= is no name"):
            read_signature(tags, 1_700_000_000)


@pytest.mark.parametrize("field", [b"v=1; v=1", b"", b";;;", b"no tags", b"1=2", b"=;="])
async def test_field_that_cannot_be_read_is_neutral(field: bytes) -> None:
    assert (await only(b"DKIM-Signature: " + field + b"\r\n" + LETTER)).result == "neutral"


def test_signature_that_expires_before_it_was_made_is_neutral() -> None:
    tags = read_tags(JOE.field(t="1700000001", x="1700000000").partition(b":")[2])
    with pytest.raises(Unusable) as problem:
        read_signature(tags, 1_700_000_000)
    assert problem.value.reason == "the signature expires before it was made"


def test_clocks_may_differ_by_ten_hours() -> None:
    tags = read_tags(JOE.field(t="1700000000", x="1700000001").partition(b":")[2])
    for now in (1_699_964_000, 1_700_036_001):
        assert read_signature(tags, now).domain == "a.test"
    for now in (1_699_963_999, 1_700_036_002):
        with pytest.raises(Unusable):
            read_signature(tags, now)


@pytest.mark.parametrize(
    ("value", "domain"),
    [
        (b" v=1; d=A.test; s=x", "a.test"),
        (b"d = a.test", "a.test"),
        (b" bd=x;\r\n d=\r\n a.test\r\n", "a.test"),
        (b" v=1", ""),
        (b" z=d=x", ""),
        (b" d=\xff", "\ufffd"),
    ],
)
def test_domain_is_seen_at_a_glance(value: bytes, domain: str) -> None:
    assert claimed_domain(value) == domain


tag_names = st.sampled_from([b"v", b"a", b"b", b"bh", b"c", b"d", b"h", b"i", b"l", b"q", b"s", b"t", b"x", b"z"])
tag_values = st.binary(max_size=12) | st.sampled_from(
    [
        b"1",
        b"rsa-sha256",
        b"AAAA",
        b"simple",
        b"a.test",
        b"@a.test",
        b"from",
        b"a.test:",
        b"dns/txt",
        b"9" * 76,
        b" \r\n ",
    ]
)


@given(st.dictionaries(tag_names, tag_values))
def test_any_tags_are_a_signature_or_unusable(pairs: dict[bytes, bytes]) -> None:
    good = {b"v": b"1", b"a": b"rsa-sha256", b"b": b"AAAA", b"bh": b"AAAA", b"d": b"a.test", b"h": b"from", b"s": b"s"}
    value = b";".join(name + b"=" + text for name, text in (good | pairs).items())
    with suppress(Unusable):
        tags = read_tags(value)
        assert described(tags).result == "neutral"
        assert read_signature(tags, 1_700_000_000).key_name


def test_of_a_signature_the_first_400_characters_are_kept_without_blanks() -> None:
    value = b"\r\n\t".join([b"abcdefghi "] * 100)
    assert described({b"b": value}).signature == ("abcdefghi" * 45)[:400]


def test_what_reports_show_of_a_broken_signature_is_what_it_says_and_no_more_than_255_characters() -> None:
    shown = described({b"d": b"a..test", b"s": b"s" * 300, b"i": b"@" * 300})
    assert (shown.domain, shown.selector, shown.identity) == ("a..test", "s" * 255, "@" * 255)
