"""Hand mail to a mailstore such as Dovecot or Cyrus by LMTP (RFC 2033), while the sender is on the line.

The store is asked at RCPT, so unknown, full and disabled mailboxes are refused there, in the store's own words.
After the content it answers for each recipient; what it says is what the sender hears. Nothing is kept here: when
the store is down, the sender hears 451 and tries again.

```toml
[smtpd.agents.mailstore]
type = "lmtp"
address = "unix:/run/dovecot/lmtp"
```

For Dovecot, add `lmtp` to its `protocols`. Its socket is `/run/dovecot/lmtp`, and this server's user must be allowed to
connect to it (`service lmtp { unix_listener lmtp { mode = 0660 user = smtpd } }`). With `lmtp_rcpt_check_quota = yes`
full mailboxes are refused at RCPT already. For Cyrus it is `unix:/run/cyrus/socket/lmtp`. A store on another machine
is `"store.example.com:24"`; put `tls` on, or the network in between must be yours. Port 25 is for SMTP, never for LMTP.

- Connections are kept and shared: while a client takes its time between RCPT and the message, its connection may
  serve another one, and MAIL and RCPT are said anew. So 20 connections do for many more clients, and no client can keep
  one from the others.
- When the store does not say whether it took the message (it hangs, closes, or talks nonsense after the
  content), the sender hears 451 4.4.2 and comes again.
- After five failures in a row the store is left in peace: mail is put off at once, and every five seconds one
  attempt is made. `/readyz` and `smtpd_lmtp_circuit_open` say so, and the log has a line `backend-down`.
- A store that cannot take 8-bit content (no 8BITMIME), addresses beyond ASCII (no SMTPUTF8) or messages
  of that size (SIZE) gets none: the sender hears 554 5.6.3, 553 5.6.7 or 552 5.3.4. SMTPUTF8 is offered to clients
  as long as the store offers it.

A folder that the recipient map names becomes the detail, too: `user+Folder@domain`.

Labels that filters gave can reach the store in two ways. `details = { junk = "Junk" }` delivers what has the
label `junk` to `user+Junk@domain`; a detail that the sender wrote gives way to it, and the store must know details
(Dovecot: `recipient_delimiter` and `lmtp_save_to_detail_mailbox = yes`). `labels_field = "X-Labels"` puts a header
field of that name on top of every message; its value is "none" without labels, so that nobody can write it himself:
rules in the store should look at the topmost one.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from delivery_agents.backend import parse_place
from delivery_agents.forwarding import Counted, Forwarding, ForwardingOptions
from delivery_agents.lmtp_delivery import LmtpDelivery, Path
from smtpd import trace
from smtpd.metrics import Counter, Gauge
from smtpd.model import Recipient, Transaction
from smtpd.services import Services

CONNECTIONS = Gauge("smtpd_lmtp_connections", "Open connections to the store.", ("agent",))
CIRCUIT_OPEN = Gauge(
    "smtpd_lmtp_circuit_open", "1 while mail is put off at once because the store has failed too often.", ("agent",)
)
ANSWERS = Counter(
    "smtpd_lmtp_answers_total",
    "What the store answered for recipients. at is rcpt or content; class is 2xx, 4xx, 5xx or none.",
    ("agent", "at", "class"),
)

_FIELD_NAME = re.compile(r"[!-9;-~]{1,70}")  # RFC 5322 §3.6.8
_DETAIL = re.compile(r"[A-Za-z0-9!#$%&'*/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*/=?^_`{|}~-]+)*")  # RFC 5321 §4.1.2
_SMTP_PORT = 25


def _check_port(text: str) -> str:
    if parse_place(text).port == _SMTP_PORT:
        raise ValueError("LMTP must not be spoken on port 25, that is for SMTP")  # RFC 2033 §5
    return text


def _check_details(details: dict[str, str]) -> dict[str, str]:
    for detail in details.values():
        if _DETAIL.fullmatch(detail) is None:
            raise ValueError('a detail is made of what needs no quotes in an address: no blanks, no "@"')
    return details


def _check_field(name: str) -> str:
    if name and _FIELD_NAME.fullmatch(name) is None:
        raise ValueError("is no name of a header field")
    return name


class LmtpOptions(ForwardingOptions):
    """Options of `lmtp`."""

    address: Annotated[str, AfterValidator(_check_port)]
    """Where the store listens: "unix:PATH", "host:port" or "[v6 address]:port"."""
    details: Annotated[dict[str, str], AfterValidator(_check_details)] = {}
    """Detail of recipients for messages with a label, such as { junk = "Junk" }; the first label that fits counts."""
    separator: Annotated[str, Field(min_length=1, max_length=1, pattern=r"^[!#$%&'*+./=?^_`{|}~-]$")] = "+"
    """Character between user and detail, as the store wants it."""
    labels_field: Annotated[str, AfterValidator(_check_field)] = ""
    """Name of a header field that tells the store the labels; empty: none is added."""


class Lmtp(Forwarding):
    """The agent."""

    Options = LmtpOptions
    options: LmtpOptions
    hello = "LHLO"
    counted = Counted(CONNECTIONS, CIRCUIT_OPEN, ANSWERS)

    def __init__(self, name: str, options: LmtpOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self.options = options

    def open(self, mail: Transaction) -> LmtpDelivery:
        """Begin a transaction."""
        return LmtpDelivery(self, mail, self._connections, self._terms, self)

    def _path(self, mail: Transaction, recipient: Recipient) -> Path:
        path, detail = recipient.destination.text, recipient.folder
        if self.options.details:
            labels = mail.labels_for(recipient)
            detail = next((found for label, found in self.options.details.items() if label in labels), detail)
        return _with_detail(path, self.options.separator, detail) if detail else path

    def _header(self, mail: Transaction) -> bytes:
        name = self.options.labels_field
        if not name:
            return b""
        shared = frozenset.intersection(*map(mail.labels_for, mail.recipients))
        return trace.field(name, ", ".join(sorted(shared)) or "none")


def _with_detail(path: Path, separator: str, detail: str) -> Path:
    """Put the detail into user@domain, in the place of one that is there."""
    local, _, domain = path.rpartition("@")
    name = local[1:-1] if local.startswith('"') else local
    user = name.partition(separator)[0] or name
    quote = "" if name is local and _DETAIL.fullmatch(detail) else '"'
    return f"{quote}{user}{separator}{detail}{quote}@{domain}"
