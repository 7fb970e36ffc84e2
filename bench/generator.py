"""Runs `load.c`, and builds it when it is new: one run, one `Run`."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import machine

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
SOURCE = HERE / "load.c"
PROGRAM = OUT / "load"
PATIENCE = 120.0  # seconds beyond the length of a run; the program itself gives up earlier


class NotMeasured(Exception):  # noqa: N818 - a result, too
    """What a figure is missing for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the generator does: so many sessions at once, so many messages in each, of so many octets."""

    sessions: int
    messages: int
    octets: int = 4096
    pipelined: bool = False
    starttls: bool = False
    at_recipient: bool = False
    """Latency runs from RCPT to its reply, instead of from DATA to the last one."""
    letters: str = ""
    """File with the messages to send, see letters.py."""

    def arguments(self, seconds: float) -> list[str]:
        """The command line, without domain and port."""
        numbers = {"-c": self.sessions, "-n": self.messages, "-s": self.octets, "-t": seconds}
        switches = ["-p"] * self.pipelined + ["-T"] * self.starttls + ["-r"] * self.at_recipient
        switches += ["-f", self.letters] if self.letters else []
        return [str(part) for pair in numbers.items() for part in pair] + switches


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run of the generator has seen."""

    accepted: int
    """Messages; connections when no messages were to be sent."""
    begun: float
    """On the clock of time.monotonic()."""
    seconds: float
    octets: int
    cpu_seconds: float
    """The generator's own, and of the store behind the server, which shares its core."""
    p50_ms: float
    p99_ms: float
    """From the DATA line to the reply behind the content, or as the load wants it."""
    server_cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.accepted / self.seconds

    @property
    def megabytes(self) -> float:
        """MB of content per second."""
        return self.rate * self.octets / 1e6

    @property
    def generator_share(self) -> float:
        """How busy the generator was; near 1 it is the generator that was measured."""
        return self.cpu_seconds / self.seconds

    @property
    def server_share(self) -> float:
        """How busy the server was; below 1 it waited, for the disk or for somebody else on its core."""
        return self.server_cpu_seconds / self.seconds

    @property
    def cpu_per_message(self) -> float:
        """Processor time of the server per message, microseconds."""
        return self.server_cpu_seconds / self.accepted * 1e6


def build() -> None:
    """Compile the generator unless that was done."""
    OUT.mkdir(exist_ok=True)
    if PROGRAM.exists() and PROGRAM.stat().st_mtime > SOURCE.stat().st_mtime:
        return
    command = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(PROGRAM), str(SOURCE), "-lssl", "-lcrypto"]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotMeasured(f"bench/load.c needs a C compiler and OpenSSL's headers: {error}") from error


def run(load: Load, port: int, domain: str, seconds: float, server: int) -> Run:
    """Load a server, given its process id, for a while; NotMeasured when it did not take everything."""
    before = machine.processor_seconds(server)
    command = [str(PROGRAM), *load.arguments(seconds), "-d", domain, str(port)]
    process = machine.start(command, machine.cores()[1], stdout=subprocess.PIPE, text=True)
    try:
        output, _ = process.communicate(timeout=seconds + PATIENCE)
    finally:
        machine.stop(process)
    if process.returncode != 0:
        raise NotMeasured(f"the generator ended with {process.returncode}")
    seen = json.loads(output)
    if seen["refused"] or seen["failed"] or not seen["accepted"]:
        trouble = f"{seen['refused']} refused, {seen['failed']} failed, the last at {seen['problem']}"
        raise NotMeasured(trouble)
    return Run(
        accepted=seen["accepted"],
        begun=seen["begun"],
        seconds=seen["seconds"],
        octets=seen["octets"],
        cpu_seconds=seen["cpu_seconds"],
        p50_ms=seen["p50_ms"],
        p99_ms=seen["p99_ms"],
        server_cpu_seconds=machine.processor_seconds(server) - before,
    )


@contextmanager
def held(sessions: int, port: int, *, starttls: bool) -> Iterator[None]:
    """Keep sessions open behind EHLO."""
    load = Load(sessions=sessions, messages=0, starttls=starttls)
    command = [str(PROGRAM), *load.arguments(60), "-i", str(port)]
    process = machine.start(command, machine.cores()[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if (said := process.stdout.readline()) != "open\n":
            raise NotMeasured(f"no {sessions} sessions could be held: {said}")
        yield
    finally:
        process.stdin.close()
        process.stdout.read()
        process.stdout.close()
        machine.stop(process)
