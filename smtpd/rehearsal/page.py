"""What happened in a rehearsal, for eyes: command by command, at most 100 columns, nothing of a stranger unescaped."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from smtpd.findings import Evidence
from smtpd.policy import Decision, Verdict
from smtpd.rehearsal.comparison import Difference
from smtpd.rehearsal.questions import Question
from smtpd.rehearsal.rehearsal import Letter, Performance, Step
from smtpd.rehearsal.telling import added_fields, ending_of, iso_time, words_of
from smtpd.rehearsal.watching import Opinion

WIDTH = 100  # columns
MAX_LEFT_OUT = 10  # fields shown; a hostile header section has thousands
MAX_LINE = 1000  # characters of one thing told; keys of DKIM are about 400 long

_ACTIONS = {
    "pass": "goes on",
    "refused": "refused",
    "held": "refuses, but the refusal is held until a later command",
    "observed": "would have refused, but only observes",
    "silenced": "would have refused, but `unless` or postmaster's exemption silences it",
    "error": "broke; on_error lets it pass",
    "timeout": "took too long; on_error lets it pass",
    "unanswered": "had no answer yet when the time of all filters was up",
}

_ABOUT_REFUSALS = ("refused", "held", "observed", "silenced")


def page(performance: Performance) -> str:
    """All of it; the last line says what became of the message."""
    return "\n".join(_wrapped(_lines(performance)))


def differences_page(differences: Iterable[Difference]) -> str:
    """What a policy test expected above what was, one after the other."""
    found = list(differences)
    width = max(12, *(len(printable(one.what)) for one in found)) if found else 0
    return "\n".join(line for one in found for line in _difference(one, width))


def printable(text: str) -> str:
    """Text from outside without anything a terminal would act upon."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text)


def _difference(one: Difference, width: int) -> Iterator[str]:
    for label, key, text in ((one.what, "expected", one.expected), ("", "but was ", one.was)):
        yield from _lines_of(f"{'':6}{printable(label):{width}}  {key}  ", " " * (width + 18), text)


def _wrapped(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    """Every line behind as many blanks as it says; what is too long goes on further to the right."""
    for indent, text in lines:
        room = " " * indent
        yield from _lines_of(room, f"{room}          ", text)


def _lines_of(first: str, further: str, text: str) -> list[str]:
    """A text that may come from outside, behind `first` on its first line and `further` on the others."""
    clean = printable(text)
    clean = clean if len(clean) <= MAX_LINE else clean[: MAX_LINE - 3] + "..."
    return textwrap.wrap(
        clean, WIDTH, initial_indent=first, subsequent_indent=further, drop_whitespace=True, break_on_hyphens=False
    ) or [""]


def _lines(performance: Performance) -> Iterator[tuple[int, str]]:
    client, session = performance.client, performance.session
    traits = [f"listener {performance.listener}", f"client {client.ip}", iso_time(performance.time)]
    traits += ["TLS"] if session.tls is not None else []
    traits += [f"logged in as {session.login}"] if session.login is not None else []
    traits += ["trusted"] if session.trusted else []
    yield 0, ", ".join(traits)
    for step in performance.steps:
        yield 0, ""
        yield from _step(step, performance)
    for letter in performance.letters:
        yield 0, ""
        yield from _letter(letter)
    for complaint in performance.complaints:
        named = " ".join(f"{key}={value}" for key, value in complaint.items() if key not in ("time", "level", "event"))
        yield 0, f"log: {complaint['level']}: {complaint['event']} {named}"
    yield 0, ""
    yield 0, ending_of(performance)


def _step(step: Step, performance: Performance) -> Iterator[tuple[int, str]]:
    yield 0, "(connects)" if step.moment == "connect" else f"C: {step.said}"
    told: set[int] = set()
    for opinion in step.opinions:
        yield 3, opinion.filter + (" (observes)" if performance.modes.get(opinion.filter) == "observe" else "")
        yield from _opinion(opinion)
        for number, decision in enumerate(step.decisions):
            if number not in told and _is_of(decision, opinion):
                told.add(number)
                yield 6, f"action  {_action(decision)}"
    for number, decision in enumerate(step.decisions):
        if number not in told:
            yield 3, decision.filter
            yield 6, f"action  {_action(decision)} (asked before)"
    for question in step.shared:
        yield 3, f"shared  dns {_question(question)}"
    shown = step.heard if len(step.heard) <= 2 or step.code >= "4" else (step.heard[0], "...", step.heard[-1])
    for line in shown:
        yield 0, f"S: {line}"


def _is_of(decision: Decision, opinion: Opinion) -> bool:
    """Whether this came of that; a refusal that was held until now did not, when the same filter passes here."""
    passes = isinstance(opinion.verdict, Verdict) and opinion.verdict.reply is None
    is_older = passes and decision.result in _ABOUT_REFUSALS
    return (decision.filter, decision.stage) == (opinion.filter, opinion.stage) and not is_older


def _opinion(opinion: Opinion) -> Iterator[tuple[int, str]]:
    inputs = ", ".join(f"{name} {value}" for name, value in opinion.inputs.items())
    yield 6, f"inputs  {inputs}"
    for question in opinion.questions.values():
        yield 6, f"dns     {_question(question)}"
    for fact in opinion.found:
        for words in _fact(fact):
            yield 6, f"found   {words}"
    yield 6, f"result  {_result(opinion)}"


def _question(question: Question) -> str:
    return f"{question.name} {question.kind}: {words_of(question.answer)}"


def _fact(fact: object) -> Iterator[str]:
    if not isinstance(fact, Evidence):
        yield str(fact)
        return
    for one in fact.results():
        words = [f"{one.method}={one.result}", f"({one.reason})" if one.reason else "", one.comment]
        words += [f"{kind}.{name}={value}" for kind, name, value in one.properties]
        yield " ".join(word for word in words if word)


def _result(opinion: Opinion) -> str:
    verdict = opinion.verdict
    if not isinstance(verdict, Verdict):
        return opinion.failure or ("nobody waited for it" if verdict is None else f"no verdict: {verdict!r}")
    words = [str(verdict.reply) if verdict.reply is not None else "pass"]
    words += [f"+{label}" for label in sorted(verdict.labels | verdict.marks)]
    words += [f"score {verdict.score:g}"] if verdict.score else []
    words += [f"adds {name}" for name, _ in verdict.headers]
    return " ".join(words)


def _action(decision: Decision) -> str:
    action = _ACTIONS[decision.result]
    if decision.result in ("error", "timeout") and decision.reply:
        action = f"{action.partition(';')[0]}; on_error defers"
    return f"{action} [{decision.reply}]" if decision.reply else action


def _letter(letter: Letter) -> Iterator[tuple[int, str]]:
    yield 0, f"message {letter.mail.id} from <{letter.mail.sender.text}>"
    if labels := letter.labels:
        yield 3, f"labels  {', '.join(sorted(labels))}"
    if letter.authentication_results:
        would = "" if letter.collected else "would be "
        yield 3, f"{would}{letter.authentication_results}"
    for field in added_fields(letter):
        if not field.startswith("Authentication-Results:"):
            yield 3, field
    for field in letter.left_out[:MAX_LEFT_OUT]:
        yield 3, f"left out, as it pretends to be ours: {field}"
    if len(letter.left_out) > MAX_LEFT_OUT:
        yield 3, f"left out as well: {len(letter.left_out) - MAX_LEFT_OUT} more"
    for one in letter.collected:
        for mailbox, folder in zip(one.mailboxes, one.folders, strict=True):
            yield 3, f"agent {one.agent} would get it for {mailbox}" + (f", folder {folder}" if folder else "")
