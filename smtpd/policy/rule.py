"""The operator's side of a filter: what its verdicts do on which listener."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smtpd.options import FilterOptions, StageName

NEVER_REJECT = "never-reject"
"""A label: who has it, as a recipient, hears no refusal (5xx) of the message; deferrals are spoken."""
WOULD_REJECT = "would-reject"
"""The label that such a recipient gets instead of a refusal."""
CONDITIONS = frozenset(("authenticated", "trusted", "tls"))
"""Words of `unless` that are no labels."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What the operator decided about one filter; see `FilterOptions` for the meaning of each."""

    filter: str
    """Name of the filter's table in the configuration."""
    mode: Literal["enforce", "observe", "off"] = "enforce"
    on_error: Literal["pass", "defer"] = "pass"
    timeout: float = 30.0
    """Seconds for one question; 0 = no limit."""
    act_at: StageName | None = None
    unless: frozenset[str] = frozenset()
    listeners: frozenset[str] = frozenset()
    """Empty: all."""
    unless_is_default: bool = False
    """`unless` comes from the filter's class: a label that no configured filter gives is no mistake then."""

    @classmethod
    def from_options(cls, name: str, options: FilterOptions) -> Rule:
        """Read the rule of the table `name` from its options."""
        return cls(
            filter=name,
            mode=options.mode,
            on_error=options.on_error,
            timeout=options.timeout,
            act_at=options.act_at,
            unless=frozenset(options.unless),
            listeners=frozenset(options.listeners),
            unless_is_default="unless" not in options.model_fields_set,
        )

    def holds_on(self, listener: str) -> bool:
        """Whether the filter runs on this listener."""
        return self.mode != "off" and (not self.listeners or listener in self.listeners)
