"""What each filter costs: processor time per message of servers that have one filter more each."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import generator
from filtered import FILTERS, ours_filtered
from generator import Load, Run
from nameserver import Nameserver
from servers import DOMAIN, Server

STEPS = tuple(FILTERS[:number] for number in range(len(FILTERS) + 1))
"""No filter, the first one, the first two ..."""
_WARM_UP = 0.3  # seconds

Costs = dict[tuple[str, ...], list[Run]]
"""Runs by the filters that were there."""


def measure(directory: Path, nameserver: Nameserver, letters: Path, seconds: float, rounds: int) -> Costs:
    """All steps in each round, in an order that changes; NotMeasured, TimeoutError, OSError."""
    load = Load(sessions=20, messages=100, letters=str(letters))
    costs: Costs = {step: [] for step in STEPS}
    with ExitStack() as stack:
        servers: dict[tuple[str, ...], Server] = {}
        for step in STEPS:
            server = stack.enter_context(_started(directory, nameserver)(step))
            generator.run(load, server.port, DOMAIN, _WARM_UP, server.process)
            servers[step] = server
        for number in range(rounds):
            for step in STEPS[:: 1 if number % 2 else -1]:
                server = servers[step]
                costs[step].append(generator.run(load, server.port, DOMAIN, seconds, server.process))
    return costs


def _started(directory: Path, nameserver: Nameserver) -> Callable[[tuple[str, ...]], AbstractContextManager[Server]]:
    return lambda step: ours_filtered(directory, nameserver, step, f"costs-{len(step)}")
