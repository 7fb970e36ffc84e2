"""Our Authentication-Results says what was found and nothing else; and nobody else's passes for ours."""

import re
from typing import Any

import authres  # type: ignore[import-untyped]
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd.authentication_results import MethodResult, SpfResult, authentication_results, claims, received_spf

OURS = "mx.example.com"

# RFC 8601 §2.2 as it is written, for what we write: comments are not nested, and folds are gone.
ATOM = r"[\w!#$%&'*+\-/=?^`{|}~\x80-\U0010ffff]+"
LABEL = r"[A-Za-z0-9\x80-\U0010ffff](?:[A-Za-z0-9\x80-\U0010ffff-]*[A-Za-z0-9\x80-\U0010ffff])?"
DOMAIN = rf"{LABEL}(?:\.{LABEL})+"
QUOTED = r'"(?:[^"\\]|\\.)*"'
LOCAL = rf"(?:{ATOM}(?:\.{ATOM})*|{QUOTED})"
TOKEN = r"[!#$%&'*+\-.0-9A-Z^_`a-z{|}~]+"
KEYWORD = r"[A-Za-z0-9-]*[A-Za-z0-9]"
FIELD = re.compile(rf"Authentication-Results:[ \t]({TOKEN}|{QUOTED})((?:;[ \t].*)+)")
STATEMENT = re.compile(
    rf";[ \t]({KEYWORD})=({KEYWORD})(?: \(([^()\\]*)\))?(?: reason=({TOKEN}|{QUOTED}))?"
    rf"((?: {KEYWORD}\.{KEYWORD}=(?:(?:{LOCAL}?@)?{DOMAIN}|{TOKEN}|{QUOTED})(?=[ ;]|\Z))*)"
)
PROPERTY = re.compile(rf" ({KEYWORD})\.({KEYWORD})=((?:{LOCAL}?@)?{DOMAIN}(?=[ ;]|\Z)|{TOKEN}|{QUOTED})")

keywords = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
anything = st.text(max_size=60) | st.text(st.sampled_from('"\\ ()@.;=\r\n\t\0aü\ud800\u2028'), max_size=60)
ascii_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=120)
visible = st.text(st.characters(codec="utf-8").filter(str.isprintable), max_size=60)
ascii_values = st.sampled_from([
    "joe@example.org", "@example.org", "example.org", "prvs=1=joe@example.org", '"a b"@example.org', "a@[192.0.2.1]",
    '"a\\"b"@example.org', '"a\\ b"@example.org', "joe@localhost", "a@b@example.org", "@", "a@", "<>",
    "", " ", "2001:db8::1", "ab/c+d=", "a" * 254, "example.org.", ".example.org", "a..b@example.org", "-a.example.org",
])  # fmt: skip


values = ascii_values | st.sampled_from(["grün@grün.example", "@grün.example", '"ü b"@grün.example', "ü.example.org"])


def results(texts: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> st.SearchStrategy[list[MethodResult]]:
    properties = st.lists(st.tuples(keywords, keywords, texts | values), max_size=5).map(tuple)
    return st.lists(st.builds(MethodResult, keywords, keywords, texts, texts, properties), max_size=4)


def unfold(field: bytes) -> str:
    """The field on one line, after a look at its octets."""
    assert field.endswith(b"\r\n")
    lines = field[:-2].split(b"\r\n")
    assert not re.search(rb"[\0-\x08\x0a-\x1f\x7f]", b"".join(lines)), field
    assert all(line[:1] in b" \t" and line.strip() for line in lines[1:]), field
    assert all(len(line) <= 998 for line in lines)
    return b"".join(lines).decode()


def unquote(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if re.fullmatch(QUOTED, text) else text


def read(field: bytes) -> tuple[str, list[MethodResult]]:
    """What the field says, by the grammar alone; comments as they are written."""
    found = FIELD.fullmatch(unfold(field))
    assert found is not None, field
    identifier, rest = found.groups()
    if rest == ";\tnone":
        return unquote(identifier), []
    statements = []
    position = 0
    while position < len(rest):
        statement = STATEMENT.match(rest, position)
        assert statement is not None, rest[position:]
        method, result, comment, reason, properties = statement.groups()
        pairs = tuple((ptype, name, unquote(value)) for ptype, name, value in PROPERTY.findall(properties))
        statements.append(MethodResult(method, result, unquote(reason or ""), comment or "", pairs))
        position = statement.end()
    return unquote(identifier), statements


def without_comments(statements: list[MethodResult]) -> list[MethodResult]:
    return [MethodResult(one.method, one.result, one.reason, "", one.properties) for one in statements]


def test_field_looks_like_this() -> None:
    dkim = (
        ("header", "d", "example.org"),
        ("header", "s", "may"),
        ("header", "a", "rsa-sha256"),
        ("header", "b", "ab/+"),
    )
    field = authentication_results(
        OURS,
        [
            MethodResult("spf", "pass", properties=(("smtp", "mailfrom", "joe@example.org"),)),
            MethodResult("dkim", "fail", reason="body changed", comment="RSA (2048)", properties=dkim),
        ],
    )
    assert field == (
        b"Authentication-Results: mx.example.com;\r\n"
        b"\tspf=pass smtp.mailfrom=joe@example.org;\r\n"
        b'\tdkim=fail (RSA [2048]) reason="body changed" header.d=example.org\r\n'
        b' header.s=may header.a=rsa-sha256 header.b="ab/+"\r\n'
    )


def test_without_results_it_says_none() -> None:
    assert authentication_results(OURS, []) == b"Authentication-Results: mx.example.com;\r\n\tnone\r\n"


@given(results(ascii_text, ascii_values))
@example([MethodResult("dkim", "pass", '"; dkim=pass', "", (("header", "i", 'a" (b) ; x=y\\'),))])
def test_what_goes_in_comes_out(given: list[MethodResult]) -> None:
    for found in (given, without_comments(given)):
        identifier, statements = read(authentication_results(OURS, found))
        assert (identifier, without_comments(statements)) == (OURS, without_comments(given))


@given(results(visible, values))
def test_text_beyond_ascii_comes_out_with_smtputf8(given: list[MethodResult]) -> None:
    identifier, statements = read(authentication_results(OURS, given, utf8=True))
    assert (identifier, without_comments(statements)) == (OURS, without_comments(given))


@given(anything, results(anything, values), st.booleans())
def test_nothing_breaks_the_field(authserv_id: str, given: list[MethodResult], utf8: bool) -> None:
    field = authentication_results(authserv_id, given, utf8=utf8)
    assert utf8 or field.isascii()
    _, found = read(field)
    assert [(one.method, one.result) for one in found] == [(one.method, one.result) for one in given]
    assert [[name[:2] for name in one.properties] for one in found] == [
        [name[:2] for name in one.properties] for one in given
    ]


@given(st.text(st.sampled_from('()\\"a \r\n;=ü'), max_size=40))
def test_comment_stays_a_comment(text: str) -> None:
    bare = MethodResult("spf", "none", properties=(("smtp", "helo", "a.example"),))
    field = authentication_results(OURS, [MethodResult("spf", "none", comment=text, properties=bare.properties)])
    assert without_comments(read(field)[1]) == [bare]
    assert field.count(b"(") == field.count(b")") == bool(text)


@given(
    st.sampled_from(["spf", "dkim", "dmarc", "arc", "iprev", "auth", "dnswl"]),
    st.sampled_from(["pass", "fail", "temperror"]),
    ascii_text.filter(lambda text: not re.search(r'["\\]', text)),
    ascii_text,
    st.lists(st.tuples(st.sampled_from(["smtp", "header", "policy"]), keywords, st.sampled_from([
        "joe@example.org", "@example.org", "example.org", "192.0.2.1", "prvs=1=joe@example.org", "a~b",
    ])), max_size=3),
    ascii_text.filter(lambda text: not re.search(r'["\\]', text)),
)  # fmt: skip
def test_authres_reads_the_same(
    method: str, result: str, reason: str, comment: str, properties: list[tuple[str, str, str]], last: str
) -> None:
    """It loses a quoted value with something behind it, and keeps the backslashes of quoted pairs."""
    found = MethodResult(method, result, reason, comment, (*properties, ("policy", "last", last)))
    parsed: Any = authres.AuthenticationResultsHeader.parse(unfold(authentication_results(OURS, [found, found])))
    assert parsed.authserv_id == OURS
    for one in parsed.results:
        read_properties = tuple((name.type, name.name, str(name.value or "")) for name in one.properties)
        assert (one.method, one.result, one.reason or "") == (method, result, reason)
        assert read_properties == found.properties
    assert len(parsed.results) == 2


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("joe@example.org", b"joe@example.org"),
        ("@example.org", b"@example.org"),
        ('"a b"@example.org', b'"a b"@example.org'),
        ('"a\\ b"@example.org', b'"\\"a\\\\ b\\"@example.org"'),
        ("joe@localhost", b'"joe@localhost"'),
        ("joe@[192.0.2.1]", b'"joe@[192.0.2.1]"'),
        ("2001:db8::1", b'"2001:db8::1"'),
        ("", b'""'),
        ('a"b\\c', b'"a\\"b\\\\c"'),
        ("a\r\nBcc: b", b'"a??Bcc: b"'),
        ("joe@grün.example", b"joe@xn--grn-ioa.example"),
        ("grün.example", b"xn--grn-ioa.example"),
        ("grün", b'"gr?n"'),
        ("a\u202eb\ud800", b'"a?b?"'),
    ],
)
def test_value_is_quoted_when_it_must_be(value: str, written: bytes) -> None:
    field = authentication_results(OURS, [MethodResult("x", "pass", properties=(("policy", "y", value),))])
    assert field.partition(b"policy.y=")[2] == written + b"\r\n"


@pytest.mark.parametrize(("utf8", "written"), [(True, "joe@grün.example"), (False, "joe@xn--grn-ioa.example")])
def test_domain_is_a_u_label_only_with_smtputf8(utf8: bool, written: str) -> None:
    found = MethodResult("spf", "pass", properties=(("smtp", "mailfrom", "joe@grün.example"),))
    assert authentication_results(OURS, [found], utf8=utf8).endswith(f"smtp.mailfrom={written}\r\n".encode())


@pytest.mark.parametrize("value", ["a" * 401, "é" * 201, '"' * 5000, "\\" * 401])
def test_long_value_is_cut_and_says_so(value: str) -> None:
    found = MethodResult("x", "pass", properties=(("policy", "y", value),))
    ((_, _, text),) = read(authentication_results(OURS, [found], utf8=True))[1][0].properties
    assert text.endswith("...")
    assert value.startswith(text[:-3])
    assert len(text.encode()) == 403


@pytest.mark.parametrize("bad", ["", "a b", "a=b", "a;", "a\r\nb", "a-", "ü", "a.b", "a/1", "a" * 64, "a\n"])
def test_what_is_no_keyword_is_an_error_of_the_caller(bad: str) -> None:
    for arguments in ((bad, "pass"), ("spf", bad)):
        with pytest.raises(ValueError, match="keyword"):
            MethodResult(*arguments)
    for names in ((bad, "a"), ("a", bad)):
        with pytest.raises(ValueError, match="keyword"):
            MethodResult("spf", "pass", properties=((*names, "x"),))


def test_received_spf_looks_like_this() -> None:
    field = received_spf(
        "softfail", receiver=OURS, identity="mailfrom", client_ip="2001:db8::1", envelope_from="joe@example.org",
        helo="client.example", mechanism="~all", comment="not (really)",
    )  # fmt: skip
    assert field == (
        b"Received-SPF: softfail (not [really]) receiver=mx.example.com;\r\n"
        b' identity=mailfrom; client-ip="2001:db8::1";\r\n'
        b' envelope-from="joe@example.org"; helo=client.example; mechanism=~all\r\n'
    )


@given(anything, anything, anything, anything, st.booleans())
def test_nothing_breaks_received_spf(sender: str, helo: str, problem: str, comment: str, utf8: bool) -> None:
    field = received_spf(
        "pass", receiver=OURS, identity="helo", client_ip="192.0.2.1", envelope_from=sender, helo=helo,
        problem=problem, comment=comment, utf8=utf8,
    )  # fmt: skip
    atom = rf"{ATOM}(?:\.{ATOM})*"
    pair = rf"(?:receiver|identity|client-ip|envelope-from|helo|problem)=(?:{atom}|{QUOTED})"
    assert re.fullmatch(rf"Received-SPF: pass(?: \([^()\\\"]*\))? {pair}(?:; {pair})+", unfold(field))


def test_spf_has_no_other_results() -> None:
    wrong: Any = "pass\r\nBcc: x"
    with pytest.raises(ValueError, match="no result"):
        received_spf(wrong, receiver=OURS, identity="helo", client_ip="192.0.2.1")


@pytest.mark.parametrize(
    "value",
    [
        " other.example; spf=pass", "other.example;none", " other.example", "\r\n\tother.example\r\n ; x=y",
        " other.example 1; spf=pass", " (mx.example.com) other.example; x=y", " other.example (mx.example.com); x=y",
        ' "other.example"; x=y', ' "other (mx.example.com"; x=y', " (a (b) c) other.example (d) 01 (e); x=y",
        " mx.example.com.evil.example; x=y", " amx.example.com; x=y", " example.com; x=y", " mx-example.com; x=y",
        " other.example; mx.example.com; spf=pass", " other.example; spf=pass (open", " xn--grn-ioa.example; x=y",
        " grün.example; x=y", " other_host.example; x=y", " example-auth; x=y", " xn--" + "9" * 300 + ".example; x=y",
        " " + "a" * 3000 + ".example; x=y",
    ],
)  # fmt: skip
def test_fields_of_others_stay(value: str) -> None:
    assert not claims(value.encode(), OURS)


@pytest.mark.parametrize(
    "value",
    [
        '"other.example"1; none', " other.example (\0); none", " other.example (open",
        " other.example" + " " * 5000 + "2;",
        " other.example (" + "x" * 5000 + "); none", ' "other.example" x', " other.example\x0b; none", " ;", "", " (a)",
        r" \mx.example.com; none", r" \x other.example; none", r" other.example \1; none", r" other.example\ ; none",
    ],
)  # fmt: skip
def test_doubt_is_enough(value: str) -> None:
    assert claims(value.encode(), OURS)


@pytest.mark.parametrize("found", ["grün.example", "GRÜN.example", "xn--grn-ioa.example", "XN--GRN-IOA.example"])
@pytest.mark.parametrize("ours", ["grün.example", "xn--grn-ioa.example"])
def test_a_labels_and_u_labels_are_the_same(found: str, ours: str) -> None:
    """RFC 8601 §5."""
    assert claims(f" {found}; spf=pass".encode(), ours)
    assert claims(f' "{found}"; spf=pass'.encode(), ours)
    assert not claims(f" other.{found}; spf=pass".encode(), ours)


@pytest.mark.parametrize("ours", ["MX.Example.com", "mx.example.com.", "example-auth", "Example_Auth"])
def test_our_own_id_may_be_written_in_any_way(ours: str) -> None:
    assert claims(f" {ours.lower()}; none".encode(), ours)
    assert not claims(b" other.example; none", ours)


@pytest.mark.parametrize("label", ["xn--\x7f", "xn--99999999999", "xn--a-ÿ", "xn--0000000zzzz"])
def test_a_label_that_cannot_be_decoded_is_in_doubt(label: str) -> None:
    assert claims(f" {label}.example; none".encode(), OURS)


@given(results(anything, values), st.booleans())
def test_whatever_we_write_claims_to_be_ours(given: list[MethodResult], utf8: bool) -> None:
    value = (
        authentication_results(OURS, given, utf8=utf8).removeprefix(b"Authentication-Results:").removesuffix(b"\r\n")
    )
    assert claims(value, OURS)
    assert not claims(value, "other.example")


@given(
    st.binary(max_size=60) | st.text(st.sampled_from('mx.example.com()"\\; 1\t\r\nü\0'), max_size=60).map(str.encode)
)
def test_any_value_has_an_answer(value: bytes) -> None:
    assert claims(value, OURS) in (True, False)


blanks = st.lists(st.sampled_from([" ", "\t", "\r\n ", "(a)", "(a(b)c)", "(a\\)b)", "(;)", '(")', "(ü)"])).map("".join)
names = st.sampled_from(
    ["mx.example.com", '"mx.example.com"', "MX.EXAMPLE.COM", '"mx\\.example.com"', "mx.example.com."]
)


@given(
    blanks,
    names,
    blanks,
    st.sampled_from(["", " 1", "\t1", "(a)01"]),
    blanks,
    st.sampled_from(["", ";", "; none", ";\r\n x=y"]),
)
def test_our_id_is_found_in_any_dress(before: str, name: str, behind: str, version: str, more: str, end: str) -> None:
    value = f"{before}{name}{behind}{version}{more}{end}"
    assert claims(value.encode(), OURS)
    other = value.replace("example.com", "example.org").replace("EXAMPLE.COM", "EXAMPLE.ORG").encode()
    assert claims(other, "mx.example.org")
    assert not claims(other, OURS)


@pytest.mark.parametrize(
    "octets", [b"(", b")", b"\\", b'"', b"a", b" ", b"(\\", b"()", b'"("', b".", b"\r\n ", b"\xc3"]
)
def test_a_huge_value_is_in_doubt_unless_its_id_is_at_its_start(octets: bytes) -> None:
    huge = octets * ((1 << 20) // len(octets))
    assert claims(huge, OURS) is (octets != b"a")
    assert claims(b" mx.example.com; " + huge, OURS)
    assert not claims(b" other.example; " + huge, OURS)


def test_every_result_of_spf_has_its_field() -> None:
    every: list[SpfResult] = ["pass", "fail", "softfail", "neutral", "none", "temperror", "permerror"]
    for result in every:
        field = received_spf(result, receiver=OURS, identity="helo", client_ip="192.0.2.1")
        assert unfold(field) == f"Received-SPF: {result} receiver=mx.example.com; identity=helo; client-ip=192.0.2.1"
