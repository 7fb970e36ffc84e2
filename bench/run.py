"""Measure us beside other servers on this machine, and print the ratios: see README.md."""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import generator
import hotspots
import machine
import report
from generator import Load, NotMeasured, Run
from postfix import postfix, wait_for_deliveries
from servers import DOMAIN, Server, aiosmtpd, make_certificate, ours, smtp_sink
from works import (
    AIOSMTPD,
    IDLE,
    IDLE_FIGURES,
    IDLE_SESSIONS,
    NAMES,
    OURS,
    POSTFIX,
    SMTP_SINK,
    WORKS,
    Work,
)

STARTERS: dict[str, Callable[[Path], AbstractContextManager[Server]]] = {
    OURS: ours,
    AIOSMTPD: aiosmtpd,
    SMTP_SINK: smtp_sink,
    POSTFIX: postfix,
}
PEERS = (AIOSMTPD, SMTP_SINK, POSTFIX)
WARM_UP = 0.3  # seconds of W2 before anything counts
NEEDED_SPACE = 4 << 30  # octets; Maildirs are kept to the end, because freed inodes slow the next ones down


class Bench:
    """The servers that run, and what was measured so far."""

    def __init__(self, directory: Path, seconds: float, peers: tuple[str, ...]) -> None:
        self.directory = directory
        self.seconds = seconds
        self.peers = peers
        self.servers: dict[str, Server] = {}
        self.cells: dict[tuple[str, str], list[Run]] = {}
        self.idle: dict[str, float] = {}
        self.problems: list[str] = []

    def start(self, works: list[Work], stack: ExitStack) -> None:
        """Start and warm up the servers that these kinds of work need."""
        for name in (OURS, *self.peers):
            if name != OURS and not any(name in work.peers for work in works):
                continue
            try:
                server = stack.enter_context(STARTERS[name](self.directory))
                work = next(work for work in WORKS if name in (OURS, *work.peers) and work.name in ("W2", "D2"))
                generator.run(work.load, server.port, work.domain, WARM_UP, server.process)
            except (NotMeasured, TimeoutError, OSError) as error:
                self.problems.append(f"{name}: {error}")
            else:
                self.servers[name] = server

    def round(self, works: list[Work], number: int) -> None:
        """Each kind of work once on each server, in an order that changes from round to round."""
        for work in works:
            names = [name for name in (OURS, *work.peers) if name in self.servers]
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                self._measure(work, name)

    def _measure(self, work: Work, name: str) -> None:
        server = self.servers[name]
        try:
            run = generator.run(work.load, server.port, work.domain, self.seconds, server.process)
            if name == POSTFIX and work.load.messages:
                wait_for_deliveries(self.directory)
        except (NotMeasured, TimeoutError) as error:
            self.problems.append(f"{work.name} {name}: {error}")
        else:
            self.cells.setdefault((work.name, name), []).append(run)

    def measure_idle(self) -> None:
        """KiB that a silent connection costs, in a server of its own: a heap that was used hides growth."""
        for name, starttls in IDLE_FIGURES.items():
            try:
                with ours(self.directory, f"idle-{name}") as server:
                    warm_up = Load(sessions=1, messages=1 - starttls, starttls=starttls)
                    generator.run(warm_up, server.port, DOMAIN, WARM_UP, server.process)
                    before = machine.memory_kib(server.process)
                    with generator.held(IDLE_SESSIONS, server.port, starttls=starttls):
                        time.sleep(1)  # what the handshakes needed is given back
                        grown = machine.memory_kib(server.process) - before
                self.idle[name] = grown / IDLE_SESSIONS
            except (NotMeasured, TimeoutError, OSError) as error:
                self.problems.append(f"idle {name}: {error}")


def main() -> int:
    """0: measured; 1: below a floor, with --check; 2: something could not be measured."""
    options = read_options()
    try:
        generator.build()
        with work_directory(options.directory) as directory:
            if options.profile:
                return hotspots.show(directory, options.profile, options.seconds, native=options.native)
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
    parser.add_argument("--directory", default="/var/tmp", help="for Maildirs and queues, on a real disk")
    profiled = tuple(work.name for work in WORKS)
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
    bench = Bench(directory, options.seconds, options.peers)
    works = [work for work in WORKS if work.name in options.only]
    if IDLE in options.only:
        say("idle connections")
        bench.measure_idle()
    with ExitStack() as stack:
        if works:
            bench.start(works, stack)
        for number in range(options.rounds if OURS in bench.servers else 0):
            say(f"round {number + 1} of {options.rounds}")
            bench.round(works, number)
    return bench


def show(bench: Bench) -> list[tuple[str, ...]]:
    """Print the tables; the rows of the second."""
    for work in WORKS:
        if (work.name, OURS) in bench.cells:
            print(f"{work.name:4} {work.title}")
    if bench.cells:
        print("", *report.figures(bench.cells), "", sep="\n")
    rows = list(report.verdicts(bench.cells, bench.idle))
    print(*report.ratios(rows), sep="\n")
    for problem in bench.problems:
        print(f"not measured: {problem}")
    return rows


def save(bench: Bench) -> None:
    """Every single run as JSON, in out/result.json."""
    runs = [
        {"work": work, "server": server, **asdict(run)} for (work, server), cell in bench.cells.items() for run in cell
    ]
    result = {"runs": runs, "idle_kib": bench.idle, "not_measured": bench.problems}
    (generator.OUT / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
