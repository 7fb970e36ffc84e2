"""What the server hands to every filter, agent and provider: nothing is global."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smtpd.log import Log
    from smtpd.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Services:
    """The surroundings of a plug-in; later rooms (resolver, store) join here."""

    hostname: str
    log: Log
    metrics: Metrics
