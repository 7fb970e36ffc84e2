"""Prints what was measured: a table of figures, and a table of ratios beside floors and goals."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

from callout import AGENTS, SESSIONS, Callouts
from checks import Checks
from generator import Run
from hostile import LIMIT_SECONDS
from stall import LIMIT_MS
from works import (
    EMPTIED,
    IDLE_LIMITS,
    IDLE_SESSIONS,
    MEMORY_LIMIT,
    MEMORY_LOAD,
    OURS,
    REQUIREMENTS,
    WORKS,
    Requirement,
)

Cells = Mapping[tuple[str, str], Sequence[Run]]

_HEAD = (
    *("work", "server", "per second", "slowest-fastest", "MB/s"),
    *("p50 ms", "p99 ms", "CPU us", "server busy", "generator busy"),
)
BUSY = 0.9
"""A generator busier than this may be what was measured; a server that discards should be busier than this."""


def figures(cells: Cells) -> Iterator[str]:
    """One line per work and server: medians, with the slowest and the fastest round."""
    rows = [_HEAD, *(_figures(name, server, runs) for (name, server), runs in cells.items())]
    yield from _table(rows, left=2)
    if any(_middle(runs, "generator_share") > BUSY for runs in cells.values()):
        yield ""
        yield "generator near 100%: that server is faster than what was measured"
    discarding = [runs for (name, _), runs in cells.items() if name.startswith("W")]
    if any(_middle(runs, "server_share") < BUSY for runs in discarding):
        yield ""
        yield "server below 90% with nothing to wait for: something else ran on its core, compare by CPU or run again"


def _figures(name: str, server: str, runs: Sequence[Run]) -> tuple[str, ...]:
    rates = sorted(run.rate for run in runs)
    has_messages = next(work.load.messages for work in WORKS if work.name == name) > 0
    has_latency = has_messages and server != EMPTIED
    return (
        name,
        server,
        _number(median(rates)),
        f"{_number(rates[0])}-{_number(rates[-1])}",
        _number(_middle(runs, "megabytes")) if has_messages else "",
        f"{_middle(runs, 'p50_ms'):.2f}" if has_latency else "",
        f"{_middle(runs, 'p99_ms'):.2f}" if has_latency else "",
        _number(_middle(runs, "cpu_per_message")),
        f"{_middle(runs, 'server_share'):.0%}",
        f"{_middle(runs, 'generator_share'):.0%}",
    )


def callouts(found: Callouts) -> Iterator[str]:
    """How long the reply to RCPT takes without and with a question to the store, milliseconds, and the difference."""
    rows: list[tuple[str, ...]] = [("RCPT to its 250", "", "p50 ms", "p99 ms")]
    for sessions in SESSIONS:
        if any((sessions, agent) not in found for agent in AGENTS):
            continue
        title = "one session" if sessions == 1 else f"{sessions} at once"
        times = [[_middle(found[sessions, agent], figure) for figure in ("p50_ms", "p99_ms")] for agent in AGENTS]
        rows += [(title, agent, *(f"{time:.3f}" for time in each)) for agent, each in zip(AGENTS, times, strict=True)]
        rows.append((title, "added", *(f"{asked - alone:+.3f}" for alone, asked in zip(*times, strict=True))))
    yield from _table(rows, left=2)


def filters(checks: Checks) -> Iterator[Iterator[str]]:
    """Tables: what each filter adds to the cost of a message, and what hostile messages cost."""
    if checks.costs:
        rows: list[tuple[str, ...]] = [("filters", "CPU us per message", "added by the last one")]
        before = 0.0
        for step, runs in checks.costs.items():
            cost = _middle(runs, "cpu_per_message")
            rows.append((" + ".join(step) or "none", _number(cost), f"{cost - before:+.0f}" if step else ""))
            before = cost
        yield _table(rows, left=1)
    if checks.hostile:
        rows = [("hostile message", "what became of it", "CPU ms")]
        rows += [(name, found.outcome, f"{found.seconds * 1000:.1f}") for name, found in checks.hostile.items()]
        yield _table(rows, left=2)


def stalls(checks: Checks) -> Iterator[tuple[str, ...]]:
    """Lines for `ratios`: the longest wait of others, and the dearest hostile message."""
    if checks.stalls:
        quietest = checks.stalls[0]
        verdict = "floor" if quietest.longest_ms <= LIMIT_MS else "below floor"
        beside = f"p99 {quietest.p99_ms:.1f}; {quietest.idle_ms:.1f} when idle"
        title = f"longest wait, ms, while 10 MiB are verified ({beside})"
        yield (title, "", f"{quietest.longest_ms:.1f}", f"{LIMIT_MS:g}", "", verdict, "")
    if checks.hostile:
        dearest = max(checks.hostile.values(), key=lambda found: found.seconds)
        verdict = "goal" if dearest.seconds <= LIMIT_SECONDS else "below goal"
        title = "CPU ms of the dearest hostile message"
        yield (title, "", f"{dearest.seconds * 1000:.1f}", "", f"{LIMIT_SECONDS * 1000:g}", verdict, "")


def verdicts(cells: Cells) -> Iterator[tuple[str, ...]]:
    """One line per requirement that was measured: what, beside whom, value, floor, goal, verdict, by CPU."""
    for wanted in REQUIREMENTS:
        ours, theirs = cells.get((wanted.work, OURS)), cells.get((wanted.work, wanted.peer))
        if ours and theirs:
            value = _value(wanted, ours) / _value(wanted, theirs)
            by_cpu = ""
            if wanted.measure == "rate":
                by_cpu = f"{_middle(theirs, 'cpu_per_message') / _middle(ours, 'cpu_per_message'):.2f}x"
            floor = "" if wanted.floor is None else f"{wanted.floor:g}x"
            title = {"rate": "messages/s", "p99": "p99 to 250", "cpu": "CPU"}[wanted.measure]
            goal = "" if wanted.goal is None else f"{wanted.goal:g}x"
            row = (f"{wanted.work} {title}", wanted.peer, f"{value:.2f}x", floor, goal)
            yield (*row, wanted.verdict(value), by_cpu)


def memory(idle: Mapping[str, float], big: Mapping[str, float]) -> Iterator[tuple[str, ...]]:
    """The same of memory: of silent connections, and of sessions that hand big messages over."""
    for name, kib in idle.items():
        floor, goal = IDLE_LIMITS[name]
        verdict = "goal" if kib <= goal else "floor" if kib <= floor else "below floor"
        title = f"KiB per idle connection, {name}, {IDLE_SESSIONS} open"
        yield (title, "", f"{kib:.1f}", f"{floor:g}", f"{goal:g}", verdict, "")
    for name, kib in big.items():
        verdict = "floor" if kib <= MEMORY_LIMIT else "below floor"
        title = f"KiB per session of {MEMORY_LOAD.octets >> 20} MiB, {name}, {MEMORY_LOAD.sessions} at once"
        yield (title, "", f"{kib:.1f}", f"{MEMORY_LIMIT:g}", "", verdict, "")


def ratios(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """The table of `verdicts` and `memory`."""
    head = ("work", "beside", "value", "floor", "goal", "reached", "by CPU")
    yield from _table([head, *rows], left=2)


def _value(wanted: Requirement, runs: Sequence[Run]) -> float:
    return _middle(runs, {"rate": "rate", "p99": "p99_ms", "cpu": "cpu_per_message"}[wanted.measure])


def _middle(runs: Sequence[Run], attribute: str) -> float:
    return median(getattr(run, attribute) for run in runs)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _table(rows: Sequence[tuple[str, ...]], left: int) -> Iterator[str]:
    """Columns as wide as they need to be; the first `left` begin at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            text.ljust(width) if index < left else text.rjust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
