"""Hand mail to another SMTP server, while the sender is on the line: the way out for mail of your users.

The server, often called smarthost, is asked at RCPT, and its answer to the content is what the sender hears. Nothing is
kept here: when it is down, the sender hears 451. So it must have a queue of its own, such as Postfix beside this
server, or the mail service of a provider.

```toml
[smtpd.relay]
agent = "smarthost"

[smtpd.agents.smarthost]
type = "relay"
address = "smtp.example.net:587"
tls = "starttls"                                  # on port 465: "implicit"
user = "mail.example.com"
password_file = "/etc/smtpd/smarthost-password"
```

A Postfix on the same machine needs a port of its own, such as `127.0.0.1:10025` in its master.cf, with this server in
its `mynetworks`, and neither user nor password. Domains of `[smtpd.domains]` can lead to this agent, too, in front of a
server that does not speak LMTP.

- `tls` is never given up: without STARTTLS, or with a certificate that is not good for the host, no mail leaves. A
  password is said only behind TLS, on a unix socket, or to an address of this machine.
- Whether the smarthost wants us is our business, not the sender's: when it refuses the login, or asks for one, the log
  has a line `backend-failed` and the sender hears 451.
- One answer to the content stands for all recipients, unless the smarthost offers PRDR: then each has its own.
- A smarthost that goes on reading gets an hour for a message, so a slow line does not break off what is big. What takes
  longer than `[smtpd.timeouts] delivery` (4 minutes; 25 MB over 512 kbit/s take 7) ends with 451 for the sender, but is
  carried through, and the retry hears 250. Mail programs do not retry by themselves: for them raise that limit, but
  keep it below the ten minutes that senders wait.
- When the smarthost does not say whether it took the message, the sender hears 451 4.4.2, and may send it twice.
- After five failures in a row the smarthost is left in peace: mail is put off at once, and every five seconds one
  attempt is made. `/readyz` and `smtpd_relay_circuit_open` say so, and the log has a line `backend-down`.
- A smarthost that cannot take 8-bit content (no 8BITMIME), addresses beyond ASCII (no SMTPUTF8) or messages
  of that size (SIZE) gets none: the sender hears 554 5.6.3, 553 5.6.7 or 552 5.3.4. Nothing is ever rewritten.
- An address that is a listener of this server is a mistake in the configuration. Mail that comes back over another
  server is refused when it has passed too many; two servers that ask each other at RCPT both put it off with 451.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from delivery_agents.backend import parse_place
from delivery_agents.forwarding import Counted, Forwarding, ForwardingOptions
from delivery_agents.login import Login, check_credential
from delivery_agents.relay_delivery import RelayDelivery
from smtpd.metrics import Counter, Gauge
from smtpd.model import Transaction
from smtpd.services import Services

CONNECTIONS = Gauge("smtpd_relay_connections", "Open connections to the smarthost.", ("agent",))
CIRCUIT_OPEN = Gauge(
    "smtpd_relay_circuit_open",
    "1 while mail is put off at once because the smarthost has failed too often.",
    ("agent",),
)
ANSWERS = Counter(
    "smtpd_relay_answers_total",
    "What the smarthost answered for recipients. at is rcpt or content; class is 2xx, 4xx, 5xx or none.",
    ("agent", "at", "class"),
)


def _check_user(text: str) -> str:
    return check_credential(text) if text else text


def _check_password(password: SecretStr | None) -> SecretStr | None:
    if password is not None:
        check_credential(password.get_secret_value())
    return password


class RelayOptions(ForwardingOptions):
    """Options of `relay`."""

    user: Annotated[str, AfterValidator(_check_user)] = ""
    """Name to log in with (AUTH PLAIN or LOGIN); empty: no login."""
    password: Annotated[SecretStr | None, AfterValidator(_check_password)] = Field(default=None)
    """Password to log in with."""

    @model_validator(mode="after")
    def _login_is_whole_and_unheard(self) -> Self:
        if bool(self.user) != (self.password is not None):
            raise ValueError("user and password belong together")
        if self.user and self.tls == "off" and not _stays_here(self.address):
            raise ValueError('a password must not be heard on the way: tls = "starttls" or "implicit"')
        return self

    def next_hop(self) -> str:
        """The smarthost."""
        return self.address


class Relay(Forwarding):
    """The agent."""

    Options = RelayOptions
    options: RelayOptions
    hello = "EHLO"
    counted = Counted(CONNECTIONS, CIRCUIT_OPEN, ANSWERS)

    def __init__(self, name: str, options: RelayOptions, services: Services) -> None:
        self.options = options
        super().__init__(name, options, services)

    def open(self, mail: Transaction) -> RelayDelivery:
        """Begin a transaction."""
        return RelayDelivery(self, mail, self._connections, self._terms, self)

    def _login(self) -> Login | None:
        password = self.options.password
        return Login(self.options.user, password) if password is not None else None


def _stays_here(address: str) -> bool:
    place = parse_place(address)
    try:
        return bool(place.path) or place.host.lower() == "localhost" or ip_address(place.host).is_loopback
    except ValueError:
        return False
