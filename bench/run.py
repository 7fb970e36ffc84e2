"""Measure us beside other servers on this machine, and print the ratios: see README.md."""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import callout
import checks
import filtered
import generator
import hotspots
import machine
import memory
import report
import store as stores
from callout import Callouts
from checks import Checks, Material
from generator import Load, NotMeasured, Run
from postfix import postfix, wait_for_deliveries
from servers import STORE_DOMAIN, Server, aiosmtpd, make_certificate, ours, smtp_sink
from store import Store
from works import (
    AIOSMTPD,
    COSTS,
    EMPTIED,
    HOSTILE,
    IDLE,
    IDLE_FIGURES,
    MEMORY,
    MEMORY_FIGURES,
    NAMES,
    OURS,
    OURS_FILTERED,
    POSTFIX,
    POSTFIX_FILTERS,
    POSTFIX_LMTP,
    RCPT,
    SMTP_SINK,
    STALL,
    WORKS,
    Work,
)

PEERS = (AIOSMTPD, SMTP_SINK, POSTFIX, POSTFIX_LMTP, POSTFIX_FILTERS)
WARM_UP = 0.3  # seconds of W2, D2, L2 or F2 before anything counts
WARMING = ("W2", "D2", "L2", "F2")
NEEDED_SPACE = 4 << 30  # octets; Maildirs are kept to the end, because freed inodes slow the next ones down


class Bench:
    """The servers that run, and what was measured so far."""

    def __init__(self, directory: Path, seconds: float, peers: tuple[str, ...], family: stores.Family) -> None:
        self.directory = directory
        self.seconds = seconds
        self.peers = peers
        self.family = family
        self.store: Store | None = None
        self.material: Material | None = None
        self.checks = Checks()
        self.servers: dict[str, Server] = {}
        self.cells: dict[tuple[str, str], list[Run]] = {}
        self.callouts: Callouts = {}
        self.idle: dict[str, float] = {}
        self.memory: dict[str, float] = {}
        self.problems: list[str] = []

    def start(self, works: list[Work], stack: ExitStack, *, has_store: bool) -> None:
        """Start and warm up the servers that these kinds of work need, and the store behind them."""
        if has_store:
            with self._noting("the store"):
                self.store = stack.enter_context(stores.lmtp_store(self.directory, self.family))
        if any(work.letters for work in works):
            with self._noting("the nameserver"):
                self.material = stack.enter_context(checks.material(self.directory))
        for name, starter in self._starters().items():
            if name == OURS or any(name in (work.ours, *work.peers) for work in works):
                with self._noting(name):
                    server = stack.enter_context(starter(self.directory))
                    self._warm_up(name, server)
                    self.servers[name] = server

    def round(self, works: list[Work], number: int) -> None:
        """Each kind of work once on each server, in an order that changes from round to round."""
        for work in works:
            names = [name for name in (work.ours, *work.peers) if name in self.servers]
            shift = number % max(1, len(names))
            for name in names[shift:] + names[:shift]:
                with self._noting(f"{work.name} {name}"):
                    self._measure(work, name)

    def measure_callouts(self, number: int) -> None:
        """One round of the time that RCPT takes."""
        with self._noting(RCPT):
            callout.measure(self.servers[OURS], self._store(), self.seconds, number, self.callouts)

    def measure_checks(self, names: tuple[str, ...], rounds: int) -> None:
        """What filters cost, and how well others are kept from it."""
        wanted = [name for name in (COSTS, STALL, HOSTILE) if name in names]
        with self._noting("the filters"), checks.material(self.directory) as material:
            for name in wanted:
                say(name.lower())
                with self._noting(name):
                    self.checks.measure(name, self.directory, material, self.seconds, rounds)

    def measure_memory(self, names: tuple[str, ...]) -> None:
        """What needs servers of its own."""
        for name, starttls in IDLE_FIGURES.items() if IDLE in names else ():
            with self._noting(f"{IDLE} {name}"):
                self.idle[name] = memory.idle(self.directory, name, starttls=starttls)
        for name, pause in MEMORY_FIGURES.items() if MEMORY in names else ():
            with self._noting(f"{MEMORY} {name}"):
                self.memory[name] = memory.big(self.directory, self.family, pause, self.seconds)

    def _starters(self) -> Mapping[str, Callable[[Path], AbstractContextManager[Server]]]:
        starters: dict[str, Callable[[Path], AbstractContextManager[Server]]] = {
            OURS: partial(ours, store=self.store.place if self.store else ""),
            AIOSMTPD: aiosmtpd,
            SMTP_SINK: smtp_sink,
            POSTFIX: postfix,
        }
        if self.store:
            starters[POSTFIX_LMTP] = partial(postfix, transport=self.store.transport)
        if self.material:
            starters[OURS_FILTERED] = partial(filtered.ours_filtered, nameserver=self.material.nameserver)
            starters[POSTFIX_FILTERS] = partial(filtered.postfix_filtered, nameserver=self.material.nameserver)
        return {name: starter for name, starter in starters.items() if name in (OURS, OURS_FILTERED, *self.peers)}

    def _warm_up(self, name: str, server: Server) -> None:
        for work in WORKS:
            has_all = (self.store or work.domain != STORE_DOMAIN) and (self.material or not work.letters)
            if work.name in WARMING and name in (work.ours, *work.peers) and has_all:
                generator.run(self._load(work), server.port, work.domain, WARM_UP, server.process)
        if name.startswith(POSTFIX):
            wait_for_deliveries(self.directory)
        if name in (OURS_FILTERED, POSTFIX_FILTERS):
            filtered.check_work(self.directory, name)

    def _load(self, work: Work) -> Load:
        if work.letters is None:
            return work.load
        if self.material is None:
            raise NotMeasured("there are no signed messages")
        return replace(work.load, letters=str(self.material.file(work.letters, self.seconds)))

    def _measure(self, work: Work, name: str) -> None:
        server = self.servers[name]
        runs: dict[str, Run] = {}
        if work.domain != STORE_DOMAIN:
            asked = self.material.nameserver.questions() if self.material else 0
            runs[name] = generator.run(self._load(work), server.port, work.domain, self.seconds, server.process)
            if work.letters and self.material:
                asked = self.material.nameserver.questions() - asked
                filtered.check_questions(work.letters, name, asked / runs[name].accepted)
            if name in (POSTFIX, POSTFIX_FILTERS) and work.load.messages:
                wait_for_deliveries(self.directory)
        elif name == POSTFIX_LMTP:
            queued = stores.run_queued(self._store(), work.load, server, self.seconds, self.directory)
            runs[name], runs[EMPTIED] = queued
        else:
            runs[name] = stores.run_through(self._store(), work.load, server, self.seconds)
        for column, run in runs.items():
            self.cells.setdefault((work.name, OURS if column == work.ours else column), []).append(run)

    def _store(self) -> Store:
        if self.store is None:
            raise NotMeasured("there is no store")
        return self.store

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """One figure that cannot be had does not keep the others from being measured."""
        try:
            yield
        except (NotMeasured, TimeoutError, OSError) as error:
            self.problems.append(f"{what}: {error}")


def main() -> int:
    """0: measured; 1: below a floor, with --check; 2: something could not be measured."""
    options = read_options()
    try:
        generator.build()
        with work_directory(options.directory) as directory:
            if options.profile:
                return hotspots.show(
                    directory, options.profile, options.seconds, family=options.store, native=options.native
                )
            bench = measure(directory, options)
    except NotMeasured as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 2
    rows = show(bench)
    save(bench)
    if bench.problems:
        return 2
    return int(options.check and any("below floor" in row for row in rows))


def read_options() -> argparse.Namespace:
    """The command line; see README.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=names_of(NAMES), default=NAMES, help=f"out of {','.join(NAMES)}")
    parser.add_argument("--peers", type=names_of(PEERS), default=PEERS, help=f"out of {','.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many counts (3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one run (3)")
    parser.add_argument("--quick", action="store_true", help="runs of 0.7 seconds; less exact")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a floor is not reached")
    parser.add_argument("--store", choices=("inet", "unix"), default="inet", help="how LMTP reaches the store (inet)")
    parser.add_argument("--directory", default="/var/tmp", help="for Maildirs and queues, on a real disk")
    profiled = tuple(work.name for work in WORKS if not work.letters)
    parser.add_argument("--profile", type=names_of(profiled), help="instead: where the time goes in our server")
    parser.add_argument("--native", action="store_true", help="with --profile: in C code, too")
    options = parser.parse_args()
    if options.quick:
        options.seconds = 0.7
    return options


def names_of(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """Reads names with commas between them; empty: none."""

    def names(text: str) -> tuple[str, ...]:
        wanted = tuple(name for name in text.split(",") if name)
        for name in wanted:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(known)}")
        return wanted

    return names


@contextmanager
def work_directory(parent: str) -> Iterator[Path]:
    """A directory that every user can enter; it goes at the very end, whatever happens."""
    if shutil.disk_usage(parent).free < NEEDED_SPACE:
        raise NotMeasured(f"{parent} has less than {NEEDED_SPACE >> 30} GiB free")
    directory = Path(tempfile.mkdtemp(prefix="smtpd-bench-", dir=parent))
    try:
        directory.chmod(0o755)
        machine.keep_apart(directory)
        make_certificate(directory)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def measure(directory: Path, options: argparse.Namespace) -> Bench:
    """Everything that was asked for."""
    bench = Bench(directory, options.seconds, options.peers, options.store)
    works = [work for work in WORKS if work.name in options.only]
    if {IDLE, MEMORY} & {*options.only}:
        say("memory")
        bench.measure_memory(options.only)
    if {COSTS, STALL, HOSTILE} & {*options.only}:
        bench.measure_checks(options.only, options.rounds)
    with ExitStack() as stack:
        if works or RCPT in options.only:
            has_store = RCPT in options.only or any(work.domain == STORE_DOMAIN for work in works)
            bench.start(works, stack, has_store=has_store)
        for number in range(options.rounds if OURS in bench.servers else 0):
            say(f"round {number + 1} of {options.rounds}")
            bench.round(works, number)
            if RCPT in options.only:
                bench.measure_callouts(number)
    return bench


def show(bench: Bench) -> list[tuple[str, ...]]:
    """Print the tables; the rows of the second."""
    for work in WORKS:
        if (work.name, OURS) in bench.cells:
            print(f"{work.name:4} {work.title}")
    if bench.cells:
        print("", *report.figures(bench.cells), "", sep="\n")
    if bench.callouts:
        print(*report.callouts(bench.callouts), "", sep="\n")
    for lines in report.filters(bench.checks):
        print(*lines, "", sep="\n")
    rows = [*report.verdicts(bench.cells), *report.memory(bench.idle, bench.memory), *report.stalls(bench.checks)]
    print(*report.ratios(rows), sep="\n")
    for problem in bench.problems:
        print(f"not measured: {problem}")
    return rows


def save(bench: Bench) -> None:
    """Every single run as JSON, in out/result.json."""
    runs = [
        {"work": work, "server": server, **asdict(run)} for (work, server), cell in bench.cells.items() for run in cell
    ]
    runs += [
        {"work": RCPT, "sessions": sessions, "agent": agent, **asdict(run)}
        for (sessions, agent), cell in bench.callouts.items()
        for run in cell
    ]
    result = {"runs": runs, "idle_kib": bench.idle, "memory_kib": bench.memory, "not_measured": bench.problems}
    result |= bench.checks.as_json()
    (generator.OUT / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
