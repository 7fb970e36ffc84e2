"""What comes of verdicts: refusals that wait, the trace of decisions, and the judgement of a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from smtpd.model import Recipient
from smtpd.options import StageName
from smtpd.replies import Reply

STAGES: tuple[StageName, ...] = ("connect", "helo", "mail", "rcpt", "message")

Result = Literal["pass", "refused", "held", "observed", "error", "timeout", "silenced", "unanswered"]


@dataclass(frozen=True, slots=True)
class Held:
    """A verdict that is decided and waits: a refusal for its `act_at`, headers for the message."""

    filter: str
    reply: Reply | None
    """The refusal; None when only labels or headers are kept."""
    recipients: frozenset[Recipient] | None = None
    stage: StageName = "connect"
    """Where it was decided."""
    act_at: StageName = "rcpt"
    """Where it is spoken."""
    labels: frozenset[str] = frozenset()
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    """How long the filter took."""
    over_tls: bool = False
    """Decided after the handshake: a second EHLO there leaves what was held before it alone."""
    failed: bool = False
    """The filter broke, and `on_error` is "defer"."""

    def concerns(self, recipient: Recipient | None) -> bool:
        """Whether it holds for this recipient; None asks whether it holds for everybody."""
        return self.recipients is None or recipient in self.recipients


@dataclass(frozen=True, slots=True)
class Decision:
    """One line of the trace: what a filter decided, or what became of it.

    "held": refused, spoken later; "refused": spoken, or spoken by a heavier one; "silenced": refused, but
    `unless` or postmaster's exemption kept it quiet; "observed": would have refused; "unanswered": it had no answer
    yet when the time of all filters together was up.
    """

    filter: str
    stage: StageName
    result: Result
    reply: str = ""
    """Key of the reply, empty when there is none."""
    seconds: float = 0.0
    labels: frozenset[str] = frozenset()
    score: float = 0.0

    def __str__(self) -> str:
        """As in "spf mail held spf-fail 12ms +forged"."""
        words = [self.filter, self.stage, self.result, self.reply, f"{self.seconds * 1000:.0f}ms"]
        return " ".join([word for word in words if word] + [f"+{label}" for label in sorted(self.labels)])


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the filters say of a whole message.

    `reply` speaks for all recipients, None lets it pass but for those in `refused`. `headers` are complete
    (name, value) pairs to put on top, the first one topmost.
    """

    reply: Reply | None = None
    refused: Mapping[Recipient, Reply] = field(default_factory=dict)
    headers: tuple[tuple[str, str], ...] = ()
