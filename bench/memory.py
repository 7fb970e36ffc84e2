"""Memory: of connections that are silent, and of big messages on their way to a store.

Each figure comes from a server of its own: a heap that was used before hides growth.
"""

import time
from pathlib import Path

import generator
import machine
import store as stores
from generator import Load
from servers import DOMAIN, STORE_DOMAIN, Server, ours
from works import IDLE_SESSIONS, MEMORY_LOAD

_WARM_UP = 0.3  # seconds


def idle(directory: Path, name: str, *, starttls: bool) -> float:
    """KiB that a silent connection costs; NotMeasured, TimeoutError, OSError."""
    with ours(directory, f"idle-{name}") as server:
        _warm_up(server, DOMAIN, Load(sessions=1, messages=1 - starttls, starttls=starttls))
        before = machine.memory_kib(server.process)
        with generator.held(IDLE_SESSIONS, server.port, starttls=starttls):
            time.sleep(1)  # what the handshakes needed is given back
            grown = machine.memory_kib(server.process) - before
    return grown / IDLE_SESSIONS


def big(directory: Path, family: stores.Family, pause: int, seconds: float) -> float:
    """KiB that each session has needed at the worst moment, while all hand big messages to a store that may be slow."""
    with (
        stores.lmtp_store(directory, family, pause=pause) as store,
        ours(directory, f"big-{pause}", store=store.place) as server,
    ):
        # As many sessions as are measured, so that connections to the store are not counted as content.
        _warm_up(server, STORE_DOMAIN, Load(sessions=MEMORY_LOAD.sessions, messages=1))
        machine.forget_peak(server.process)
        before = machine.memory_kib(server.process)
        stores.run_through(store, MEMORY_LOAD, server, seconds)
        grown = machine.peak_memory_kib(server.process) - before
    return grown / MEMORY_LOAD.sessions


def _warm_up(server: Server, domain: str, load: Load) -> None:
    generator.run(load, server.port, domain, _WARM_UP, server.process)
