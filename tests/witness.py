"""A filter that keeps what another one found."""

from typing import Any, ClassVar

from smtpd.model import Message, Transaction
from smtpd.policy import PASS, Filter, Verdict


class Witness(Filter):
    """Keeps the one fact that it `needs`, of every message; each kind has a `seen` of its own."""

    name = "witness"
    seen: ClassVar[list[Any]]

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        (kind,) = self.needs
        found = mail.facts.get(kind)
        assert found is not None
        self.seen.append(found)
        return PASS
