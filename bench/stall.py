"""How long others wait while big messages are verified: a session that says NOOP every millisecond.

Only waits count that fall between a final dot and its reply. Messages arrive at a pace that real networks have:
a sender on the same machine keeps the server busy with reading alone. Who asks is a process of its own: beside the
senders it would wait for their interpreter, too. Whatever else runs on the machine makes waits longer, never shorter,
and every verification does the same; so the quietest round counts.
"""

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import machine
from filtered import ours_filtered
from generator import NotMeasured
from nameserver import Nameserver
from servers import DOMAIN

OCTETS = 10 << 20
SESSIONS = 3
LIMIT_MS = 20.0
_PAUSE = 0.001  # seconds
_IDLE = 0.5  # seconds of questions before anything is sent
_PIECE = 1 << 16  # octets between two pauses of a sender


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """What the session has seen."""

    longest_ms: float
    p99_ms: float
    questions: int
    """Those that were under way while something was verified."""
    messages: int
    verification_ms: float
    """From a final dot to its reply, on average."""
    idle_ms: float
    """The longest wait before anything was sent: how quiet the machine was."""


Interval = tuple[float, float]
"""From and to, on the clock of time.perf_counter()."""


def measure(directory: Path, nameserver: Nameserver, letters: Path, seconds: float, rounds: int) -> list[Stall]:
    """All rounds, the quietest one first; NotMeasured, TimeoutError, OSError."""
    with ours_filtered(directory, nameserver, name="stall") as server:
        found = [_Trial(server.port, letters, seconds).run() for _ in range(rounds)]
    return sorted(found, key=lambda stall: stall.longest_ms)


class _Trial:
    """Threads that send, one that asks, and when they did."""

    def __init__(self, port: int, letters: Path, seconds: float) -> None:
        with letters.open("rb") as file:
            sender, size = file.readline().split()
            self._sender, self._content = sender, file.read(int(size))
        self._port = port
        self._seconds = seconds
        self._begun = self._end = 0.0
        self._questions: list[Interval] = []
        self._verifications: list[Interval] = []
        self._problems: list[BaseException] = []

    def run(self) -> Stall:
        """Until the time is over, and each session has sent one message at least; NotMeasured."""
        processes = multiprocessing.get_context("spawn")
        is_ready, is_over, (end, other_end) = processes.Event(), processes.Event(), processes.Pipe(duplex=False)
        questioner = processes.Process(target=_ask, args=(self._port, is_ready, is_over, other_end))
        senders = [threading.Thread(target=self._noting, args=(self._send,)) for _ in range(SESSIONS)]
        questioner.start()
        other_end.close()
        if not is_ready.wait(machine.PATIENCE):
            raise NotMeasured("nobody asks")
        time.sleep(_IDLE)
        self._begun = time.perf_counter()
        self._end = self._begun + self._seconds
        for thread in senders:
            thread.start()
        for thread in senders:
            thread.join()
        is_over.set()
        try:
            self._questions = end.recv()
        except EOFError:
            raise NotMeasured("who asks has ended") from None
        questioner.join()
        if self._problems:
            raise NotMeasured(repr(self._problems[0]))
        waits = sorted(end - begun for begun, end in self._questions if self._is_beside(begun, end))
        if not waits:
            raise NotMeasured("nobody asked while something was verified")
        idle = [end - begun for begun, end in self._questions if end < self._begun]
        return Stall(
            longest_ms=waits[-1] * 1000,
            p99_ms=waits[int(0.99 * (len(waits) - 1))] * 1000,
            questions=len(waits),
            messages=len(self._verifications),
            verification_ms=sum(end - begun for begun, end in self._verifications) / len(self._verifications) * 1000,
            idle_ms=max(idle, default=0.0) * 1000,
        )

    def _is_beside(self, begun: float, end: float) -> bool:
        return any(begun < done and start < end for start, done in self._verifications)

    def _noting(self, work: Callable[[], None]) -> None:
        os.sched_setaffinity(0, {machine.cores()[1]})  # of this thread alone
        try:
            work()
        except (OSError, NotMeasured) as error:
            self._problems.append(error)

    def _send(self) -> None:
        with _connect(self._port) as session:
            is_first = True
            while is_first or time.perf_counter() < self._end:
                is_first = False
                _say(session, b"MAIL FROM:<" + self._sender + b">", b"250")
                _say(session, b"RCPT TO:<user@" + DOMAIN.encode() + b">", b"250")
                _say(session, b"DATA", b"354")
                for start in range(0, len(self._content) - 3, _PIECE):
                    session.sendall(self._content[start : min(start + _PIECE, len(self._content) - 3)])
                    time.sleep(_PAUSE)
                begun = time.perf_counter()
                session.sendall(self._content[-3:])
                _hear(session, b"250")
                self._verifications.append((begun, time.perf_counter()))


def _ask(port: int, is_ready: Event, is_over: Event, answers: Connection) -> None:
    """A process: NOOP until it is over, then all intervals."""
    os.sched_setaffinity(0, {machine.cores()[1]})
    questions: list[Interval] = []
    with _connect(port) as session:
        is_ready.set()
        while not is_over.wait(_PAUSE):
            begun = time.perf_counter()
            _say(session, b"NOOP", b"250")
            questions.append((begun, time.perf_counter()))
    answers.send(questions)


def _connect(port: int) -> socket.socket:
    session = socket.create_connection(("127.0.0.1", port), timeout=machine.PATIENCE)
    session.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _hear(session, b"220")
    _say(session, b"HELO client.test", b"250")
    return session


def _say(session: socket.socket, line: bytes, hoped: bytes) -> None:
    session.sendall(line + b"\r\n")
    _hear(session, hoped)


def _hear(session: socket.socket, hoped: bytes) -> None:
    """One reply of one line; NotMeasured when it is another one."""
    reply = b""
    while not reply.endswith(b"\r\n"):
        octets = session.recv(4096)
        if not octets:
            raise NotMeasured("connection lost")
        reply += octets
    if not reply.startswith(hoped):
        raise NotMeasured(reply.decode(errors="replace").strip())
