"""What a policy test expected beside what happened."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from smtpd.rehearsal.cases import Expectation
from smtpd.rehearsal.rehearsal import Letter, Moment, Performance
from smtpd.rehearsal.telling import added_fields, ending_of, results_of

NEVER = "(never came to it)"

_BLANKS = r"\s+"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be."""

    what: str
    expected: str
    was: str


def compare(expected: Expectation, performance: Performance) -> list[Difference]:
    """Everything that is different; empty: the case passes."""
    differences = list(_replies(expected, performance))
    if expected.outcome is not None and expected.outcome != performance.ending:
        differences.append(Difference("outcome", expected.outcome, ending_of(performance)))
    letter = performance.letters[-1] if performance.letters else None
    differences += _fields(expected.headers, letter)
    differences += _results(expected, letter)
    labels = performance.labels
    for label in expected.labels:
        if (label.removeprefix("!") in labels) is label.startswith("!"):
            differences.append(Difference("labels", label, ", ".join(sorted(labels)) or "none"))
    return differences + list(_filters(expected, performance))


def matches(pattern: str, text: str) -> bool:
    """Whether text begins with the words of a pattern, in which `...` stands for anything, and a blank for many."""
    expression = ".*".join(_BLANKS.join(map(re.escape, re.split(_BLANKS, part))) for part in pattern.split("..."))
    return re.match(f"{expression}(?![A-Za-z0-9])", text, re.DOTALL) is not None


def _replies(expected: Expectation, performance: Performance) -> Iterator[Difference]:
    wanted: tuple[tuple[Moment, str | None], ...] = (
        ("connect", expected.connect), ("helo", expected.helo), ("mail", expected.mail)
    )  # fmt: skip
    for moment, pattern in wanted:
        if pattern is not None:
            yield from _each(moment, (pattern,), _heard(performance, moment))
    replies = _heard(performance, "rcpt")
    yield from _each("rcpt", _as_many(expected.rcpt, replies), replies)
    ends = _heard(performance, "message") or [reply for reply in _heard(performance, "data") if reply >= "4"]
    yield from _each("data", _as_many(expected.data, ends), ends)


def _as_many(patterns: Sequence[str], replies: Sequence[str]) -> Sequence[str]:
    return patterns if len(patterns) != 1 else [*patterns] * max(1, len(replies))


def _heard(performance: Performance, moment: Moment) -> list[str]:
    return [reply for step in performance.steps if step.moment == moment for reply in step.replies]


def _each(what: str, patterns: Sequence[str], replies: Sequence[str]) -> Iterator[Difference]:
    for number, pattern in enumerate(patterns):
        name = f"{what}[{number}]" if len(patterns) > 1 else what
        reply = replies[number] if number < len(replies) else NEVER
        if not matches(pattern, reply):
            yield Difference(name, pattern, reply)
    if patterns and len(replies) > len(patterns):
        yield Difference(what, f"{len(patterns)} replies", " / ".join(replies))


def _fields(patterns: Sequence[str], letter: Letter | None) -> Iterator[Difference]:
    fields = added_fields(letter) if letter is not None else []
    for pattern in patterns:
        wanted = _with_plain_name(pattern.removeprefix("!"))
        found = any(matches(wanted, _with_plain_name(field)) for field in fields)
        if found is pattern.startswith("!"):
            name = wanted.partition(":")[0] + ":"
            namesakes = [field for field in fields if _with_plain_name(field).startswith(name)]
            yield Difference("headers", pattern, " / ".join(namesakes or fields) or NEVER)


def _with_plain_name(field: str) -> str:
    """Names of fields are the same in any case."""
    name, colon, words = field.partition(":")
    return name.lower() + colon + words


def _results(expected: Expectation, letter: Letter | None) -> Iterator[Difference]:
    everything = results_of(letter) if letter is not None else []
    for method, wanted in expected.results.items():
        those = [one for one in everything if one.method == method]
        found = [one.result for one in those]
        if len(wanted) == 1 and wanted[0] in found:
            continue
        if sorted(wanted) != sorted(found):
            was = [f"{one.result} ({one.reason})" if one.reason else one.result for one in those]
            yield Difference(f"results.{method}", ", ".join(wanted), ", ".join(was) or "none")


def _filters(expected: Expectation, performance: Performance) -> Iterator[Difference]:
    for name, wanted in expected.filters.items():
        if name not in performance.modes:  # "not asked" would be true of it for ever
            known = ", ".join(performance.modes) or "none"
            yield Difference(f"filters.{name}", ", ".join(wanted), f"no such filter; there is {known}")
            continue
        decisions = [
            [one.stage, one.result, one.reply, *(f"+{label}" for label in sorted(one.labels))]
            for step in performance.steps for one in step.decisions if one.filter == name
        ]  # fmt: skip
        asked = any(opinion.filter == name for step in performance.steps for opinion in step.opinions)
        for words in wanted:
            if words == "not asked" and not asked:
                continue
            if not any(set(words.split()) <= set(decision) for decision in decisions):
                was = "; ".join(" ".join(filter(None, decision)) for decision in decisions)
                yield Difference(f"filters.{name}", words, was or ("asked" if asked else "not asked"))
