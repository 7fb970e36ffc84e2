"""What happened in a rehearsal, as plain data for machines; nothing but text, numbers, lists and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime

from smtpd.authentication_results import MethodResult
from smtpd.dns import Answer, Record, Txt
from smtpd.findings import Evidence
from smtpd.policy import Decision, Verdict
from smtpd.rehearsal.questions import Question
from smtpd.rehearsal.rehearsal import Letter, Performance, Step, unfolded
from smtpd.rehearsal.watching import Opinion

type Plain = str | int | float | bool | list[Plain] | dict[str, Plain] | None

MAX_DEPTH = 6  # of facts inside facts


def tell(performance: Performance) -> dict[str, Plain]:
    """The whole performance as one object."""
    client, session = performance.client, performance.session
    return {
        "outcome": performance.ending,
        "listener": performance.listener,
        "client": {
            "ip": str(client.ip),
            "helo": client.helo,
            "tls": session.tls is not None,
            "login": session.login,
            "trusted": session.trusted,
        },
        "time": iso_time(performance.time),
        "steps": [_step(step, performance) for step in performance.steps],
        "messages": [_letter(letter) for letter in performance.letters],
        "complaints": [_plain(complaint) for complaint in performance.complaints],
    }


def ending_of(performance: Performance) -> str:
    """What became of it all, with the last refusal."""
    refusals = [
        reply for step in performance.steps for reply in step.replies if reply >= "4" and step.moment != "other"
    ]
    return f"{performance.ending}: {refusals[-1]}" if refusals else performance.ending


def iso_time(seconds: float) -> str:
    """A time of day in UTC (RFC 3339 §5.6)."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def results_of(letter: Letter) -> list[MethodResult]:
    """What stands in Authentication-Results, or would have stood there."""
    facts = (*letter.mail.session.facts, *letter.mail.facts)
    return [result for fact in facts if isinstance(fact, Evidence) for result in fact.results()]


def added_fields(letter: Letter) -> list[str]:
    """Our header fields on the message, unfolded; the same whichever agent gets it."""
    added = letter.collected[0].added if letter.collected else ()
    return [unfolded(line) for line in added if line.strip()]


def words_of(answer: Answer | None) -> str:
    """An answer in a few words: its records, or why there are none."""
    if answer is None:
        return "(not waited for)"
    if answer.found:
        return ", ".join(map(_record, answer.records))
    return f"{answer.status} ({answer.reason})" if answer.reason else answer.status


def _record(record: Record) -> str:
    match record:
        case str():
            return record
        case Txt():
            return f'"{bytes(record).decode("utf-8", "backslashreplace")}"'
        case _:
            return " ".join(part.hex() if isinstance(part, bytes) else str(part) for part in record)


def _step(step: Step, performance: Performance) -> Plain:
    return {
        "stage": step.moment,
        "said": step.said,
        "heard": list(step.heard),
        "filters": [_opinion(opinion, performance.modes) for opinion in step.opinions],
        "decisions": [_decision(decision) for decision in step.decisions],
        "shared_dns": _questions(step.shared),
    }


def _opinion(opinion: Opinion, modes: Mapping[str, str]) -> Plain:
    return {
        "filter": opinion.filter,
        "mode": modes.get(opinion.filter, "enforce"),
        "inputs": dict(opinion.inputs),
        "dns": _questions(opinion.questions.values()),
        "found": {type(fact).__name__: _plain(fact) for fact in opinion.found},
        "verdict": _verdict(opinion.verdict) if isinstance(opinion.verdict, Verdict) else None,
        "failure": opinion.failure,
        "seconds": round(opinion.seconds, 6),
    }


def _verdict(verdict: Verdict) -> Plain:
    return {
        "reply": str(verdict.reply) if verdict.reply is not None else None,
        "reason": verdict.reply.key if verdict.reply is not None else None,
        "labels": _plain(verdict.labels | verdict.marks),
        "score": verdict.score,
        "headers": [f"{name}: {value}" for name, value in verdict.headers],
    }


def _decision(decision: Decision) -> Plain:
    return {
        "filter": decision.filter,
        "stage": decision.stage,
        "result": decision.result,
        "reason": decision.reply or None,
        "labels": _plain(decision.labels),
    }


def _questions(questions: Iterable[Question]) -> Plain:
    return [
        {
            "name": question.name,
            "type": question.kind,
            "status": answer.status if answer is not None else None,
            "reason": answer.reason if answer is not None else "",
            "records": [_record(record) for record in answer.records] if answer is not None else [],
        }
        for question in questions
        for answer in (question.answer,)
    ]


def _letter(letter: Letter) -> Plain:
    return {
        "trace": letter.mail.id,
        "sender": letter.mail.sender.text,
        "recipients": [recipient.address.text for recipient in letter.mail.recipients],
        "labels": _plain(letter.labels),
        "results": [{"method": one.method, "result": one.result, "reason": one.reason} for one in results_of(letter)],
        "authentication_results": letter.authentication_results or None,
        "headers": list(added_fields(letter)),
        "left_out": list(letter.left_out),
        "delivered": [
            {"agent": one.agent, "mailboxes": list(one.mailboxes), "folders": list(one.folders), "octets": one.size}
            for one in letter.collected
        ],
    }


def _plain(value: object, depth: int = 0) -> Plain:
    """Anything a fact may hold; what is no plain value becomes text."""
    if value is None or isinstance(value, str | int | float):  # bool is an int
        return value
    if depth >= MAX_DEPTH:
        return "..."
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), depth + 1) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((_plain(item, depth + 1) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
