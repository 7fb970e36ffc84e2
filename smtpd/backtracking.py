"""How much work a regular expression can be made to do by a text that nearly fits.

Python's `re` tries every way to split a text before it gives up, and whoever sends the text picks the worst one.
So an expression is weighed before it is used: the ways its repetitions and alternatives can be combined are
multiplied, and above `MOST_WAYS` it is refused. What is possessive ("++", "*+") or atomic ("(?>...)") never gives
anything back, so it counts as one way. Look-around, back references and flags are not understood here, and addresses
do not need them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from math import prod

LONGEST_TEXT = 254  # octets of a mailbox: RFC 5321 §4.5.3.1.3 without the angle brackets
LONGEST_EXPRESSION = 500
# Three open repetitions, which take about 20 ms of one core at worst; a fourth makes it seconds.
MOST_WAYS = (LONGEST_TEXT + 1) ** 3

_TOKEN = re.compile(
    r"(?P<escape>\\.)"
    r"|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*+\])"
    r"|(?P<extension>\(\?(?![:>]|P<))"
    r"|(?P<open>\((?:\?(?:[:>]|P<\w+>))?)"
    r"|(?P<close>\))"
    r"|(?P<bar>\|)"
    r"|(?P<repeat>(?:[*+?]|\{(?P<low>\d*)(?P<comma>,?)(?P<high>\d*)(?<!\{)\})(?P<manner>[?+]?))"
    r"|(?P<one>.)",
    re.DOTALL,
)


def compile_bounded(expression: str, flags: int = 0) -> re.Pattern[str]:
    """Compile an expression for texts of at most `LONGEST_TEXT` characters.

    ValueError when it is none, when it is not understood here, or when it could take too long.
    """
    if not 0 < len(expression) <= LONGEST_EXPRESSION:
        raise ValueError(f"a regular expression has 1 to {LONGEST_EXPRESSION} characters")
    try:
        with warnings.catch_warnings(action="error"):
            compiled = re.compile(expression, flags)
    except (re.error, Warning, OverflowError, RecursionError) as error:
        raise ValueError(f"is no regular expression: {error}") from None
    _ways(_TOKEN.finditer(expression))
    return compiled


def _ways(tokens: Iterator[re.Match[str]]) -> int:
    """Ways to match up to the parenthesis that closes this group, or to the end; ValueError for too many."""
    branches, pieces = 0, [1]
    for token in tokens:
        match token.lastgroup:
            case "extension":
                raise ValueError("may open groups only as (...), (?:...), (?>...) and (?P<name>...)")
            case "escape" if token[0][1] in "123456789":
                raise ValueError("may hold no back references")
            case "open":
                inside = _ways(tokens)
                pieces.append(1 if token[0] == "(?>" else inside)
            case "close":
                break
            case "bar":
                branches += _bounded(prod(pieces))
                pieces = [1]
            case "repeat":
                pieces.append(_repeated(pieces.pop(), token))
            case _:
                pieces.append(1)
    return _bounded(branches + prod(pieces))


def _repeated(ways: int, token: re.Match[str]) -> int:
    if token["manner"] == "+":
        return 1
    low, high = _limits(token)
    return _bounded((high - low + 1) * ways**high)


def _limits(token: re.Match[str]) -> tuple[int, int]:
    sign = token[0][0]
    if sign != "{":
        return int(sign == "+"), 1 if sign == "?" else LONGEST_TEXT
    low = min(int(token["low"] or 0), LONGEST_TEXT)
    high = min(int(token["high"] or LONGEST_TEXT), LONGEST_TEXT) if token["comma"] else low
    return low, high


def _bounded(ways: int) -> int:
    if ways > MOST_WAYS:
        raise ValueError(_TOO_MANY)
    return ways


_TOO_MANY = (
    "could take too long: at most three repetitions, and no repetition or alternative inside another; "
    'more only if they give nothing back, such as "[^-]++"'
)
