"""What it costs the client that we ask the store at RCPT: the time to its 250, with the store and without one."""

import generator
from generator import Load, Run
from servers import DOMAIN, Server
from store import Store, run_through

SESSIONS = (1, 20)
DISCARD, LMTP = "discard", "lmtp"
AGENTS = (DISCARD, LMTP)

Callouts = dict[tuple[int, str], list[Run]]
"""Number of sessions and agent to runs, one for each round."""


def measure(server: Server, store: Store, seconds: float, number: int, found: Callouts) -> None:
    """One round, in an order that changes; connections to the store are open, from the warm-up. NotMeasured."""
    for sessions in SESSIONS:
        load = Load(sessions=sessions, messages=100, at_recipient=True)
        for agent in AGENTS[:: 1 if number % 2 else -1]:
            if agent == LMTP:
                run = run_through(store, load, server, seconds)
            else:
                run = generator.run(load, server.port, DOMAIN, seconds, server.process)
            found.setdefault((sessions, agent), []).append(run)
