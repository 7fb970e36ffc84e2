"""A receive-only SMTP frontend that enforces policy while the sender is still on the line.

The names below are what an embedding program, a filter or an agent needs first; everything else is
imported from its own module. They are loaded at their first use, so that commands start quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smtpd.config import Config as Config
    from smtpd.config import ConfigError as ConfigError
    from smtpd.delivery import Delivery as Delivery
    from smtpd.delivery import DeliveryAgent as DeliveryAgent
    from smtpd.log import Log as Log
    from smtpd.model import Message as Message
    from smtpd.model import Recipient as Recipient
    from smtpd.model import Session as Session
    from smtpd.model import Transaction as Transaction
    from smtpd.options import AgentOptions as AgentOptions
    from smtpd.options import FilterOptions as FilterOptions
    from smtpd.policy import PASS as PASS
    from smtpd.policy import Filter as Filter
    from smtpd.policy import Verdict as Verdict
    from smtpd.replies import Reply as Reply
    from smtpd.server import Server as Server
    from smtpd.services import Services as Services

_HOMES = {
    "Server": "smtpd.server",
    "Config": "smtpd.config",
    "ConfigError": "smtpd.config",
    "Log": "smtpd.log",
    "Filter": "smtpd.policy",
    "FilterOptions": "smtpd.options",
    "Verdict": "smtpd.policy",
    "PASS": "smtpd.policy",
    "DeliveryAgent": "smtpd.delivery",
    "Delivery": "smtpd.delivery",
    "AgentOptions": "smtpd.options",
    "Services": "smtpd.services",
    "Session": "smtpd.model",
    "Transaction": "smtpd.model",
    "Recipient": "smtpd.model",
    "Message": "smtpd.model",
    "Reply": "smtpd.replies",
}

__all__ = [
    "PASS", "AgentOptions", "Config", "ConfigError", "Delivery", "DeliveryAgent", "Filter", "FilterOptions", "Log",
    "Message", "Recipient", "Reply", "Server", "Services", "Session", "Transaction", "Verdict",
]  # fmt: skip


if not TYPE_CHECKING:  # so that a type checker still finds names that do not exist

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_HOMES[name]), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})
