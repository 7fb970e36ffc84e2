import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd.address_list import MAX_ADDRESSES, MAX_OCTETS, parse_address_list
from smtpd.addresses import AddressError


def found(text: str) -> list[str]:
    return [address.key for address in parse_address_list(text.encode("utf-8", "surrogateescape")).addresses]


def is_clean(text: str) -> bool:
    return parse_address_list(text.encode("utf-8", "surrogateescape")).is_clean


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (" joe@a.example", ["joe@a.example"]),
        ("Joe <joe@a.example>", ["joe@a.example"]),
        ('"Smith, Joe" <joe@a.example>, b@b.example', ["joe@a.example", "b@b.example"]),
        ("joe@a.example (Joe (the) man, <eve@e.example>)", ["joe@a.example"]),
        ("(a\\)b) joe@a.example", ["joe@a.example"]),
        ('Group: a@b.example, "x y"@c.example;, d@e.example', ["a@b.example", "x y@c.example", "d@e.example"]),
        ("=?utf-8?q?a=2C_=3Cb=40c=3E?= <a@b>", ["a@b"]),
        (" joe . x @ a\r\n . example", ["joe.x@a.example"]),
        ("<@r,@s:u@d>", ["u@d"]),
        ("a@b, , c@d,", ["a@b", "c@d"]),
        ("Jörg <jörg@bücher.example>", ["jörg@xn--bcher-kva.example"]),
        ('"<a@b>" <c@d>', ["c@d"]),
        ("Joe <joe@[192.0.2.1]>", ["joe@[192.0.2.1]"]),
        ('J. R. "Bob" Smith <a@b>', ["a@b"]),
        ('"a\\"b"@c', ['a"b@c']),
        ("Joe <a@b> (home)\r\n ", ["a@b"]),
    ],
)
def test_the_grammar_is_read_with_its_obsolete_forms(text: str, keys: list[str]) -> None:
    assert found(text) == keys
    assert is_clean(text)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("Smith, Joe <joe@a.example>", ["joe@a.example"]),
        ("a@b <c@d>", ["c@d"]),
        ("Foo [Bar] <a@b>", ["a@b"]),
        ("Foo: Bar <a@b>", ["a@b"]),
        ("x <a@b>, y <c@d> ;", ["a@b", "c@d"]),
        ("<a@b> behind", ["a@b"]),
        ("<a@b", ["a@b"]),
        ("<a@b> <c@d>", ["a@b", "c@d"]),
        ("<<a@b>", ["a@b"]),
        ("<a@b>: <c@d>;", ["a@b", "c@d"]),
        ("a@b: c@d;", ["a@b", "c@d"]),
        ("One: a@b, Two: c@d;", ["a@b", "c@d"]),
        ("x\x00 <a@b>", ["a@b"]),
        ("a\\b <a@b>", ["a@b"]),
        ("gr\udcfc\udcdfe <a@b>", ["a@b"]),
        ("(open <a@b>", []),
        ('"open <a@b>', []),
        ("Joe x@a", []),
        ("joe", []),
        ("<>", []),
        ("", []),
        ("Nobody:;", []),
        ("a@b>c@d", []),
        ("a@b>", ["a@b"]),
        ("a@b, (open", ["a@b"]),
        ("a@b, (open (deeper)", ["a@b"]),
    ],
)
def test_what_is_not_clean_is_read_as_far_as_it_is_plain(text: str, keys: list[str]) -> None:
    assert found(text) == keys
    assert not is_clean(text)


def test_a_group_ends_with_its_semicolon_also_where_no_comma_follows() -> None:
    assert found("One: a@b; Two: c@d; e@f") == ["a@b", "c@d", "e@f"]


@pytest.mark.parametrize("value", [b"a" * (MAX_OCTETS + 1), b"a@b," * (MAX_ADDRESSES + 1)])
def test_too_much_is_an_error_and_never_half_an_answer(value: bytes) -> None:
    with pytest.raises(AddressError):
        parse_address_list(value)


@given(st.one_of(st.binary(), st.text(alphabet='ab@.,:;<>()[]"\\ \r\n').map(str.encode)))
def test_whatever_comes_is_answered_and_every_address_has_a_domain(value: bytes) -> None:
    assert all(address.domain and address.local for address in parse_address_list(value).addresses)


@given(st.text(alphabet='ab@.,:;<>()[]"\\ '))
def test_a_comment_in_front_changes_nothing(text: str) -> None:
    assert found("(x)" + text) == found(text)


def test_a_field_that_is_there_to_cost_time_is_not_read() -> None:
    with pytest.raises(AddressError):
        parse_address_list(b"a@" * 4500)
