"""Seal messages that are forwarded (ARC, RFC 8617), so that the next server can see what was found here.

Mail that goes on to another server comes from our address then, so SPF of its sender breaks, and DKIM may. With this
filter it takes along what we found, signed: our results as `ARC-Authentication-Results`, a signature over the message,
and a seal over the chain. The public key is published as one for DKIM, at `selector._domainkey.domain`.

Only messages whose recipients all go to agents in `agents` are sealed: fields of a message are the same for all who get
it. Where a chain came with the message that does not pass, the seal says so (`cv=fail`), and is over nothing but our
own set (RFC 8617 §5.1.2): the next server need not look for itself, and knows where the chain broke. Nothing is sealed

- when a host before us has said so already, when a key of the chain could not be looked up, or when `arc` is not
  switched on;
- when 50 hosts have sealed it, or its header section is beyond the limits of `arc`, or 256 KiB and 1000 fields, or has
  a line that is no field.

It stands behind filters that change messages: they are asked in the order of the file, so put it last. It never
refuses anything. `smtpd_arc_seals_total` counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from filters.arc_sealer import CannotSeal, Sealer, SealingKeyError, read_key
from filters.dkim_turns import Turns
from smtpd import metrics
from smtpd.addresses import AddressError, normalise_domain
from smtpd.findings import ArcResult, DkimResults, DmarcResult, SpfResults, results_field
from smtpd.model import Message, Transaction
from smtpd.options import FilterOptions, InputFile, Strings
from smtpd.plugins import BrokenPlugin
from smtpd.policy import PASS, Filter, Verdict
from smtpd.services import Services

SEALS = metrics.Counter(
    "smtpd_arc_seals_total",
    "Messages for agents that are to be sealed; result is sealed, failed (sealed with cv=fail), unknown (not sealed: "
    "nobody knows whether its chain passes) or impossible (too many sets, a chain that others have said to have "
    "failed, or a header section that cannot be read).",
    ("filter", "result"),
)

_RESULTS = ("sealed", "failed", "unknown", "impossible")
_MAX_KEY = 1 << 16  # octets of a key file


class ArcSealOptions(FilterOptions):
    """Options of `arc_seal`."""

    domain: str
    """The domain that seals (d=)."""
    selector: str
    """Where its key is published (s=)."""
    key_file: InputFile
    """File with the private RSA key (PEM, 2048 bits or more)."""
    agents: Strings
    """Agents that forward; a message is sealed when all of its recipients go to them."""

    def obstacles(self) -> Iterable[tuple[str, str]]:
        """A file that holds no key we can seal with."""
        try:
            with suppress(OSError):  # said elsewhere
                read_key(_read(self.key_file))
        except SealingKeyError as problem:
            yield "key_file", f"{self.key_file}: {problem}"


class ArcSeal(Filter):
    """Adds a set to chains."""

    name = "arc_seal"
    Options = ArcSealOptions
    uses = (ArcResult, DkimResults, DmarcResult, SpfResults)
    changes: ClassVar[bool] = True  # it does not; but what it signs must not change any more

    def __init__(self, name: str, options: ArcSealOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self._wishes = options
        self._agents = frozenset(options.agents)
        counter = services.metrics.counter(SEALS)
        self._seals = {result: counter.labels(name, result) for result in _RESULTS}
        self._sealer: Sealer | None = None
        self._turns = Turns()

    def can_refuse(self) -> bool:
        """Never."""
        return False

    async def start(self) -> None:
        """Read the key; OSError or BrokenPlugin when that cannot be done."""
        wishes = self._wishes
        pem = await asyncio.to_thread(_read, wishes.key_file)
        try:
            self._sealer = Sealer(normalise_domain(wishes.domain), wishes.selector, read_key(pem))
        except SealingKeyError as problem:
            raise BrokenPlugin(f"filter {self.table}: {wishes.key_file}: {problem}") from None
        except AddressError:
            raise BrokenPlugin(f"filter {self.table}: domain is no domain") from None

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        """Seal it, when it is for agents that forward."""
        if self._sealer is None or not {recipient.agent for recipient in mail.recipients} <= self._agents:
            return PASS
        arc = mail.facts.get(ArcResult)
        if arc is None or arc.status == "temperror":
            return self._leave("unknown")
        if arc.is_unread:
            return self._leave("impossible")
        has_failed = arc.status == "fail"
        results = results_field(self.services.authserv_id or self.services.hostname, mail).decode("utf-8", "replace")
        value = results.partition(":")[2].strip()
        steps = self._sealer.steps(message.content, value, self.services.now(), has_failed=has_failed)
        try:
            fields = await self._turns.finish(steps)
        except CannotSeal:
            return self._leave("impossible")
        self._seals["failed" if has_failed else "sealed"].inc()
        return Verdict(headers=fields)

    def _leave(self, result: str) -> Verdict:
        self._seals[result].inc()
        return PASS


def _read(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(_MAX_KEY)
