"""Mistakes in a set of filters, found before the first connection, and the order they run in."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from smtpd.options import StageName
from smtpd.policy.checks import Check, Hook
from smtpd.policy.decision import STAGES
from smtpd.policy.filter import Filter
from smtpd.policy.rule import CONDITIONS, Rule

NEVER = 10_000
_PLACES: dict[StageName, int] = {"connect": 0, "helo": 1, "mail": 2, "rcpt": 3, "message": 5}
_KNOWN_RECIPIENT = 4
_CHANGES = 6


class PolicyError(ValueError):
    """The filters do not fit together; `problems` are sentences, each begins with the key of the configuration."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


def find_order(entries: Sequence[tuple[Filter, Rule]], checks: Sequence[Check], listener: str) -> list[Check]:
    """Put every filter behind those whose facts it needs, else keep the order; PolicyError with all mistakes.

    `entries` are all configured filters, `checks` those that run on this listener.
    """
    problems: list[str] = []
    sorter: TopologicalSorter[Check] = TopologicalSorter(dict.fromkeys(checks, ()))
    for check in checks:
        problems += _missing_facts(check, checks, entries, listener)
        problems += _bad_act_at(check)
        problems += _bad_unless(check, checks, entries)
        check.fact_givers = _fact_givers(check, checks)
        check.label_givers = _label_givers(check, checks)
        sorter.add(check, *check.fact_givers)
    try:
        ordered = list(sorter.static_order())
    except CycleError as cycle:
        raise PolicyError([*problems, _circle(cycle.args[1])]) from None
    if problems:
        raise PolicyError(problems)
    return ordered


def _fact_givers(check: Check, checks: Sequence[Check]) -> tuple[Check, ...]:
    needed = {*check.filter.needs, *check.filter.uses}
    return tuple(other for other in checks if other is not check and needed.intersection(other.filter.gives))


def _label_givers(check: Check, checks: Sequence[Check]) -> tuple[Check, ...]:
    # The labels of a filter in observe mode have no effect, so nobody waits for them.
    return tuple(
        other for other in checks
        if other is not check and not other.observes and other.filter.labels & check.unless_labels
    )  # fmt: skip


def _missing_facts(
    check: Check, checks: Sequence[Check], entries: Sequence[tuple[Filter, Rule]], listener: str
) -> list[str]:
    problems = []
    key = f"smtpd.filters.{check.name}"
    last = max((_asked_at(hook) for hook in check.hooks), default=NEVER)
    for fact in check.filter.needs:
        givers = [other for other in checks if fact in other.filter.gives]
        absent = [rule for filter, rule in entries if fact in filter.gives and not rule.holds_on(listener)]
        if not givers and absent:
            why = 'its mode is "off"' if absent[0].mode == "off" else f"it does not run on listener {listener}"
            problems.append(f"{key}: needs {fact.__name__} of {absent[0].filter}, but {why}")
        elif not givers:
            package, _, module = fact.__module__.rpartition(".")
            table = getattr(fact, "given_by", "") or (module if package == "filters" else "")
            advice = f", add [smtpd.filters.{table}]" if table else " of the configuration"
            problems.append(f"{key}: {fact.__name__} is needed by {check.name} and given by no filter{advice}")
        elif check not in givers and all(_first_asked_at(giver) > last for giver in givers):
            names = " and ".join(giver.name for giver in givers)
            problems.append(f"{key}: needs {fact.__name__}, but {names} gives it only later")
    return problems


def _bad_act_at(check: Check) -> list[str]:
    act_at = check.rule.act_at
    if act_at is None or not check.hooks or STAGES.index(act_at) >= STAGES.index(check.hooks[0].stage):
        return []
    first = check.hooks[0].stage
    return [f'smtpd.filters.{check.name}.act_at: "{act_at}" is before {check.name} is asked, the earliest is "{first}"']


def _bad_unless(check: Check, checks: Sequence[Check], entries: Sequence[tuple[Filter, Rule]]) -> list[str]:
    problems = []
    known = CONDITIONS.union(*(filter.labels for filter, _ in entries))
    spoken = min((_spoken_at(hook) for hook in check.hooks), default=NEVER)
    for word in sorted(check.rule.unless - CONDITIONS):
        key = f"smtpd.filters.{check.name}.unless"
        if word not in known:
            if not check.rule.unless_is_default:
                problems.append(f'{key}: "{word}" is no condition and no label of a filter{_suggestion(word, known)}')
            continue
        givers = [other for other in checks if word in other.filter.labels]
        if givers and all(_given_at(word, giver) > spoken for giver in givers):
            names = " and ".join(giver.name for giver in givers)
            problems.append(f'{key}: {names} gives the label "{word}" only after {check.name} has refused')
    return problems


def _suggestion(word: str, known: frozenset[str]) -> str:
    close = get_close_matches(word, sorted(known), n=1)
    return f', did you mean "{close[0]}"?' if close else f"; there are {', '.join(sorted(known))}"


def _circle(circle: Sequence[Check]) -> str:
    # graphlib names each one before the one that waits for it
    needs = []
    for giver, needy in pairwise(circle):
        wanted = (*needy.filter.needs, *needy.filter.uses)
        facts = sorted(fact.__name__ for fact in wanted if fact in giver.filter.gives)
        needs.append(f"{needy.name} needs {', '.join(facts)} of {giver.name}")
    return f"smtpd.filters.{circle[0].name}: filters wait for each other: {', and '.join(reversed(needs))}"


def _first_asked_at(check: Check) -> int:
    return min((_asked_at(hook) for hook in check.hooks), default=NEVER)


def _given_at(label: str, check: Check) -> int:
    stage = check.filter.labels_at.get(label)
    return min((_asked_at(hook) for hook in check.hooks if stage is None or hook.stage == stage), default=NEVER)


def _asked_at(hook: Hook) -> int:
    """When it runs, finer than the stage: early filters, known recipients and filters that change have their own."""
    filter = hook.check.filter
    if hook.stage == "message" and filter.changes:
        return _CHANGES + hook.check.index
    if hook.stage == "rcpt" and not filter.early:
        return _KNOWN_RECIPIENT
    return _PLACES[hook.stage]


def _spoken_at(hook: Hook) -> int:
    """When a refusal of it is spoken, on the same scale."""
    return _asked_at(hook) if hook.act_at == hook.stage else _PLACES[hook.act_at]
