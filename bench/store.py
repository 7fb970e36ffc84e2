"""The mailstore behind LMTP: one smtp-sink, which every server hands its mail to, and which counts it."""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import generator
import machine
from generator import Load, NotMeasured, Run
from postfix import MAX_BACKLOG_SECONDS, wait_for_deliveries
from servers import SINK_PATHS, STORE_DOMAIN, Server

Family = Literal["inet", "unix"]

_CONNECTIONS = 1024  # Postfix and we open 20 each
_COUNTERS = 200  # octets at the end of its output: "sess=1 quit=0 mesg=1\r", once more for every message


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """An LMTP server that runs."""

    place: str
    """127.0.0.1:PORT or unix:PATH, as our configuration wants it."""
    process: int
    output: Path

    @property
    def transport(self) -> str:
        """The same as Postfix wants it."""
        return f"lmtp:{self.place}" if self.place.startswith("unix:") else f"lmtp:inet:{self.place}"

    def messages(self) -> int:
        """How many it has taken so far; it counts each before it says so."""
        with self.output.open("rb") as output:
            output.seek(max(0, output.seek(0, os.SEEK_END) - _COUNTERS))
            counts = re.findall(rb"mesg=(\d+)\r", output.read())
        return int(counts[-1]) if counts else 0


@contextlib.contextmanager
def lmtp_store(directory: Path, family: Family = "inet", *, pause: int = 0) -> Iterator[Store]:
    """smtp-sink on the generator's core; it does not read before it has paused for so many seconds after each DATA."""
    program = shutil.which("smtp-sink", path=SINK_PATHS)
    if program is None:
        raise NotMeasured("smtp-sink (a part of Postfix) is not installed")
    path, port = directory / f"lmtp-{pause}", machine.free_port()
    place = f"unix:{path}" if family == "unix" else f"127.0.0.1:{port}"
    command = [program, "-L", "-c", "-m", str(_CONNECTIONS), *(("-H", str(pause)) if pause else ())]
    command += [*(("-u", "nobody") if os.getuid() == 0 else ()), place, str(_CONNECTIONS)]
    output = directory / f"lmtp-{pause}.count"
    complaints = directory / f"lmtp-{pause}.log"  # it complains of every client that does not wait after QUIT
    with output.open("wb") as counters, complaints.open("wb") as log:
        process = machine.start(command, machine.cores()[1], cwd=directory, stdout=counters, stderr=log)
    try:
        machine.wait_until(
            lambda: process.poll() is not None or (path.exists() if family == "unix" else machine.is_listening(port)),
            "the store does not start",
        )
        if process.poll() is not None:
            raise NotMeasured(f"the store ended with {process.returncode}: {complaints.read_text().strip()}")
        yield Store(place=place, process=process.pid, output=output)
    finally:
        machine.stop(process)


def run_through(store: Store, load: Load, server: Server, seconds: float) -> Run:
    """Load a server that answers when the store has answered; NotMeasured when a message is missing, or came twice."""
    return _run(store, load, server, seconds)[0]


def run_queued(store: Store, load: Load, server: Server, seconds: float, directory: Path) -> tuple[Run, Run]:
    """Load Postfix: until it has accepted everything, and until everything has reached the store."""
    return _run(store, load, server, seconds, directory)


def _run(store: Store, load: Load, server: Server, seconds: float, queues: Path | None = None) -> tuple[Run, Run]:
    before, sink_before = store.messages(), machine.processor_seconds(store.process)
    server_before = machine.processor_seconds(server.process)
    run = generator.run(load, server.port, STORE_DOMAIN, seconds, server.process)
    accepted = replace(run, cpu_seconds=run.cpu_seconds + machine.processor_seconds(store.process) - sink_before)
    if queues is not None:
        with contextlib.suppress(TimeoutError):  # what is missing is told below
            machine.wait_until(lambda: store.messages() - before >= run.accepted, "", MAX_BACKLOG_SECONDS)
    emptied = replace(
        run,
        seconds=time.monotonic() - run.begun,
        cpu_seconds=run.cpu_seconds + machine.processor_seconds(store.process) - sink_before,
        server_cpu_seconds=machine.processor_seconds(server.process) - server_before,
    )
    if queues is not None:
        wait_for_deliveries(queues)
    if (handed_over := store.messages() - before) != run.accepted:
        raise NotMeasured(f"{run.accepted} messages were acknowledged, but the store has {handed_over}")
    return accepted, emptied
