"""Whom a message is from."""

from email import policy
from email.parser import BytesParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.dmarc_authors import MAX_DOMAINS, Authors, find_authors
from smtpd.content import MAX_HEAD, Content
from smtpd.limits import ContentBudget
from smtpd.model import Message


def authors(*fields: bytes, padding: int = 0) -> Authors:
    content = Content(ContentBudget(0), in_memory=1 << 24)
    content.write(b"Subject: x\r\n" + b"X: y\r\n" * padding)
    content.write(b"".join(b"From:" + field + b"\r\n" for field in fields) + b"\r\nFrom: b@body.example\r\n")
    return find_authors(Message(content))


@pytest.mark.parametrize(
    ("field", "domains"),
    [
        (b" joe@a.example", ["a.example"]),
        (b" Joe <joe@A.Example>", ["a.example"]),
        (b" joe@a.example, eve@a.example", ["a.example"]),
        (b" joe@a.example, eve@b.example", ["a.example", "b.example"]),
        (b' "joe@trap.example" <joe@a.example>', ["a.example"]),
        (b" joe@trap.example <joe@a.example>", ["a.example"]),
        (b" joe@a.example (not eve@trap.example)", ["a.example"]),
        (b" =?utf-8?q?eve=40trap=2Eexample=2C?= <joe@a.example>", ["a.example"]),
        (b" Team: joe@a.example, eve@b.example;", ["a.example", "b.example"]),
        (b" <@relay.example:joe@a.example>", ["a.example"]),
        (b"\r\n joe\r\n @\r\n a.example", ["a.example"]),
        (b' "joe@trap.example"@a.example', ["a.example"]),
        ("joe@bücher.example".encode(), ["xn--bcher-kva.example"]),
        ("joe@BÜCHER.example".encode(), ["xn--bcher-kva.example"]),
        (b" gr\xfc\xdfe <joe@a.example>", ["a.example"]),
        (b" joe@[192.0.2.1]", ["[192.0.2.1]"]),
    ],
)
def test_domains_of_a_from_field(field: bytes, domains: list[str]) -> None:
    assert authors(field) == Authors(tuple(domains))


@pytest.mark.parametrize(
    "address",
    [
        b"boss.@bank.example", b".boss@bank.example", b"the..boss@bank.example", b"boss@bank.example.",
        b"b\xf6ss@bank.example", b"bo\xa0ss@bank.example", b"<boss\xe2\x80\xa8@bank.example>", b"bo[ss@bank.example",
        b"<mailto:boss@bank.example>", b"boss@x@bank.example", b"<boss@@bank.example>", b'"the"boss@bank.example',
        b"\\boss@bank.example", b"Boss <.boss@bank.example>", b"boss. @ bank . example", b"b" * 1100 + b"@bank.example",
    ],
)  # fmt: skip
def test_what_is_almost_an_address_names_its_author_and_hides_nobody(address: bytes) -> None:
    assert authors(b" " + address).domains == ("bank.example",)
    assert authors(b" eve@evil.example, " + address).domains == ("evil.example", "bank.example")
    assert authors(b" " + address + b", eve@evil.example").domains == ("bank.example", "evil.example")


@pytest.mark.parametrize("last", [b"boss@bank.example (", b'"boss@bank.example', b"<boss@bank.example\0>"])
def test_what_was_not_closed_hides_nobody(last: bytes) -> None:
    assert authors(b" eve@evil.example, " + last).domains == ("evil.example", "bank.example")


@pytest.mark.parametrize("name", [b"Sales @ Foo Bar", b"joe@bank.example via Team", b"Joe", b'"joe@bank.example"'])
def test_a_name_with_a_comma_that_nobody_quoted_is_no_author(name: bytes) -> None:
    assert authors(b" " + name + b", Inc <news@foo.example>").domains == ("foo.example",)


@pytest.mark.parametrize(
    "field",
    [
        b"", b" ", b" joe", b" undisclosed:;", b" <>", b" (joe@a.example)", b' "joe@a.example"',
        b" joe@gr\xfc.example", b" joe@a..example", b" joe@-a.example",
    ],
)  # fmt: skip
def test_from_with_nobody_who_has_a_domain(field: bytes) -> None:
    found = authors(field)
    assert (found.kind, found.domains) == ("nobody", ())


@pytest.mark.parametrize("number", [0, 2, 5])
def test_not_one_from_field(number: int) -> None:
    found = authors(*[b" joe@a.example"] * number)
    assert found.kind == "count"
    assert found.problem == f"A message has exactly one From field, not {number}"


def test_too_much_is_never_half_an_answer() -> None:
    many = b",".join(b" joe@a%d.example" % number for number in range(MAX_DOMAINS))
    assert len(authors(many).domains) == MAX_DOMAINS
    assert authors(many + b", joe@b.example").kind == "count"
    assert authors(b" joe@a.example" + b", joe@a.example" * 1000).kind == "count"
    assert authors(b" joe@a.example", padding=MAX_HEAD // 6).problem == "The header section is too big"


_WORD = st.from_regex(r"\A[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,8}\Z")
_QUOTED = st.from_regex(r"\A[A-Za-z0-9 @,<>();:.]{1,12}\Z").map(lambda text: f'"{text}"')
_COMMENT = st.from_regex(r"\A[A-Za-z0-9 @,<>;:.]{0,12}\Z").map(lambda text: f"({text})")
_DOMAIN = st.sampled_from(["a.example", "b.example", "xn--bcher-kva.example", "Mail.A.example"])
_LOCAL = _WORD | _QUOTED.filter(lambda text: text.strip('" '))
_ADDRESS = st.builds(lambda local, domain: f"{local}@{domain}", _LOCAL, _DOMAIN)
_MAILBOX = st.one_of(
    _ADDRESS,
    st.builds(lambda name, address: f"{name} <{address}>", _WORD | _QUOTED, _ADDRESS),
    st.builds(lambda address, comment: f"{address} {comment}", _ADDRESS, _COMMENT),
)


@given(st.lists(_MAILBOX, min_size=1, max_size=4))
def test_the_standard_library_finds_the_same_domains_in_good_fields(mailboxes: list[str]) -> None:
    field = ",\r\n ".join(mailboxes)
    header = BytesParser(policy=policy.default).parsebytes(f"From: {field}\r\n\r\n".encode())["from"]
    theirs = [address.domain.lower() for address in header.addresses]
    assert list(authors(f" {field}".encode()).domains) == list(dict.fromkeys(theirs))


@given(st.binary(max_size=60))
def test_any_field_gives_domains_or_a_problem(field: bytes) -> None:
    found = authors(b" " + field.replace(b"\r", b"").replace(b"\n", b""))
    assert bool(found.domains) != bool(found.problem)
