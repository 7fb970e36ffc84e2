import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd.backtracking import LONGEST_EXPRESSION, LONGEST_TEXT, MOST_WAYS, compile_bounded


@pytest.mark.parametrize(
    "expression",
    [
        r"^(?P<user>[a-z]+)-(?P<folder>[a-z]+)@example\.com$",
        r"(?:info|sales|help)-.+@example\.com",
        r".*.*.*x",
        r"([a-z]++-)++x",
        r"(?:a*+b|c)*+[^@]++@x",
        r"(?>[a-z]+-?)x",
        r"\(a+\)+",
        r"[(a+]+b",
        r"[]a(]+b",
        r"a{2,3}b{,5}c{2}d{}",
        r"(?:ab){200}",
    ],
)
def test_expression_that_ends_soon_is_compiled_as_it_stands(expression: str) -> None:
    assert compile_bounded(expression, re.IGNORECASE) == re.compile(expression, re.IGNORECASE)


@pytest.mark.parametrize(
    "expression",
    [
        r"(a+)+b",
        r"(a|aa)*b",
        r"(?:a*?b?)*c",
        r"(?:a?){30}a{30}",
        r"(?:a{1,2}){9,}",
        "a?" * 30 + "a" * 30,
        "(?:a|ab)" * 30,
        r".*.*.*.*x",
        r"(?>(a+)+b)c",
        r"(?:(a+)+b)*+c",
        r"a{0,}b{,99}c{1,200}d{3,}",
    ],
)
def test_expression_that_could_take_too_long_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="could take too long"):
        compile_bounded(expression)


@pytest.mark.parametrize("expression", [r"(?=x)a", r"(?<!x)a", r"(?i)a", r"(?P<x>a)(?P=x)", r"(?#x)", r"(a)(?(1)b|c)"])
def test_groups_of_other_kinds_are_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="may open groups only as"):
        compile_bounded(expression)


def test_back_references_are_refused() -> None:
    with pytest.raises(ValueError, match="back references"):
        compile_bounded(r"(.)\1")


@pytest.mark.parametrize("expression", ["(", "a**", "[[a]", "a{999999999999}", r"\q", "(?P<1>a)"])
def test_what_is_no_expression_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="is no regular expression"):
        compile_bounded(expression)


@pytest.mark.parametrize("expression", ["", "a" * (LONGEST_EXPRESSION + 1)])
def test_expression_has_a_length(expression: str) -> None:
    with pytest.raises(ValueError, match=str(LONGEST_EXPRESSION)):
        compile_bounded(expression)


_PIECES = [
    "a",
    ".",
    "[ab]",
    "(",
    "(?:",
    "(?>",
    "(?P<x>",
    ")",
    "|",
    "*",
    "+",
    "?",
    "*+",
    "++",
    "+?",
    "{2}",
    "{1,3}",
    "\\",
]


@given(st.lists(st.sampled_from(_PIECES), max_size=12).map("".join))
def test_any_text_is_compiled_or_refused_with_a_value_error(expression: str) -> None:
    try:
        compiled = compile_bounded(expression)
    except ValueError:
        return
    assert compiled == re.compile(expression)


def test_three_repetitions_are_just_within_the_limit() -> None:
    assert (LONGEST_TEXT + 1) ** 3 <= MOST_WAYS < (LONGEST_TEXT + 1) ** 3 * 2
    with pytest.raises(ValueError, match="too long"):
        compile_bounded(".*.*.*(?:a|b)")
