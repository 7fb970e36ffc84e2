"""What a trusted host wrote about DMARC, in many hands; and what strangers may try to make it say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.arc_results import MAX_FIELD, dmarc_passes


def passes(results: str) -> set[str]:
    return set(dmarc_passes(f" i=1; mx.one.test; {results}\r\n".encode()))


@pytest.mark.parametrize(
    "results",
    [
        "dmarc=pass header.from=a.test",
        "DMARC=Pass Header.From=A.TEST",
        "dmarc=pass (p=REJECT sp=REJECT dis=NONE) header.from=a.test",
        "dmarc=pass action=none header.from=a.test;compauth=pass reason=100",
        'dmarc/1 = pass\r\n\t(why (not)\\)) reason="a; b (c" header.from = (x) a.test (y)',
        'dmarc=pass header.from="a.test"',
        "dmarc=pass header.from=joe@a.test",
        "spf=pass smtp.mailfrom=bounce+x=y=z@list.test; dkim=pass header.b=ab/+c=; dmarc=pass header.from=a.test",
        'spf=pass smtp.mailfrom="joe; dmarc=fail header.from=a.test"@c.test; dmarc=pass header.from=a.test',
        "none; dmarc=pass header.from=a.test",
        "spf=pass smtp.mailfrom=b.test;dmarc=pass header.from=a.test",
        "dmarc=pass header.from=a.test;",
        "dmarc=pass header.from=a.test; dmarc=fail header.from=b.test",
    ],
)
def test_pass_is_found(results: str) -> None:
    assert passes(results) == {"a.test"}


@pytest.mark.parametrize(
    "results",
    [
        "none",
        "",
        "dmarc=fail header.from=a.test",
        "dmarc=none header.from=a.test",
        "dmarc=pass",
        "dmarc=pass smtp.from=a.test",
        "xdmarc=pass header.from=a.test",
        "dkim=pass header.from=a.test",
        "dmarc=pass header.from=a.test header.from=b.test",
        "dmarc=pass header.from=a.test; dmarc=fail header.from=a.test",
        "dmarc=fail (; dmarc=pass header.from=a.test)",
        "dmarc=fail (\\); dmarc=pass header.from=a.test)",
        "dmarc=fail ((x); dmarc=pass header.from=a.test)",
        'spf=pass smtp.mailfrom="; dmarc=pass header.from=a.test "',
        'spf=pass smtp.mailfrom="\\"; dmarc=pass header.from=a.test "',
        'spf=pass smtp.mailfrom="; dmarc=pass header.from=a.test',  # nobody knows where it ends
        "spf=pass (; dmarc=pass header.from=a.test",
        "spf=pass ); dmarc=pass header.from=a.test",
        "spf=pass \0; dmarc=pass header.from=a.test",
        "dmarc=pass header.from=a.test x",
        "dmarc=pass header.from= a.test b.test",
        "dmarc=pass header.from=[192.0.2.1",
        "dmarc pass header.from=a.test",
    ],
)
def test_no_pass_is_found_where_nobody_said_so(results: str) -> None:
    assert passes(results) == set()


def test_name_of_the_host_is_no_result() -> None:
    assert dmarc_passes(b" i=1; dmarc=pass header.from=a.test") == frozenset()


def test_domain_is_an_a_label() -> None:
    assert passes("dmarc=pass header.from=bücher.example") == {"xn--bcher-kva.example"}


def test_endless_field_says_nothing() -> None:
    assert passes("dmarc=pass header.from=a.test" + " " * MAX_FIELD) == set()


@given(st.binary(max_size=200) | st.text(alphabet='dmarc=ps;() "\\.\r\n').map(str.encode))
def test_nothing_makes_it_fail(value: bytes) -> None:
    assert isinstance(dmarc_passes(value), frozenset)
    assert dmarc_passes(b" i=1; x; dmarc=fail header.from=a.test; " + value) <= frozenset(
        dmarc_passes(b"i; x;" + value)
    )
