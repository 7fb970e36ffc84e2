"""Complete mail of users who logged in: add the Date and Message-ID fields that it lacks.

Printers, scripts and some phones leave them out. Without a Date a message is none (RFC 5322 §3.6), and large providers
refuse mail without a Message-ID, so whoever takes mail from programs may add both (RFC 6409 §8.2, §8.3).

- `Date` is the time at which the message came, with the offset of this machine.
- `Message-ID` is made of the trace id, under which the message is in the log, and of `[smtpd] hostname`.

A field that is there stays as it is, even if it is empty or makes no sense. Mail of clients that did not log in is left
alone: what another server sends may be signed, and what it lacks may tell something to who reads it later.

The fields are put on top, so a signature of the sender stays good, unless it says that there was no such field. Other
filters see the message as it was received; `required` in `headers` refuses what would be added here. To a message
without a Message-ID the retry after a lost connection may be a new one, so it can be delivered twice; the one that is
added here comes too late for that. `smtpd_missing_fields_added_total` counts what was added.
"""

from __future__ import annotations

from email.utils import formatdate

from smtpd.header_fields import all_values_of
from smtpd.metrics import Counter
from smtpd.model import Message, Transaction
from smtpd.options import FilterOptions
from smtpd.policy import PASS, Filter, Verdict
from smtpd.services import Services

ADDED = Counter(
    "smtpd_missing_fields_added_total",
    "Header fields added to mail of users who logged in. field is date or message-id.",
    ("filter", "field"),
)


class MissingFieldsOptions(FilterOptions):
    """Options of `missing_fields`."""

    date: bool = True
    """Whether a missing Date field is added."""
    message_id: bool = True
    """Whether a missing Message-ID field is added."""


class MissingFields(Filter):
    """Looks at the header section of what users send."""

    name = "missing_fields"
    Options = MissingFieldsOptions

    def __init__(self, name: str, options: MissingFieldsOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self._adds_date = options.date
        self._adds_message_id = options.message_id
        self._added = services.metrics.counter(ADDED)

    def can_refuse(self) -> bool:
        """Never."""
        return False

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        """What the message lacks."""
        if not mail.session.authenticated:
            return PASS
        head = message.content.head()
        added: list[tuple[str, str]] = []
        if self._adds_date and not all_values_of(head, "date"):
            added.append(("Date", formatdate(self.services.now(), localtime=True)))
        if self._adds_message_id and not all_values_of(head, "message-id"):
            added.append(("Message-ID", f"<{mail.id}@{self.services.hostname}>"))
        for field, _ in added:
            self._added.labels(self.table, field.lower()).inc()
        return Verdict(headers=added) if added else PASS
