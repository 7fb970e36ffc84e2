"""Append every message to one file in mbox format.

An example of a delivery agent that lives in a distribution of its own: one class, one entry point
in the group `smtpd.delivery_agents`. It takes `path`, the file, and `users`, the local parts it knows.
"""

import asyncio
import mailbox

from smtpd.delivery import DeliveryAgent
from smtpd.model import Message, Recipient, Transaction
from smtpd.options import AgentOptions, Strings
from smtpd.replies import ACCEPTED, NO_SUCH_USER, Reply


class Options(AgentOptions):
    """Options of the agent `mbox`."""

    path: str
    """The file; it is made when it is not there."""
    users: Strings
    """Local parts that have a mailbox."""


class Mbox(DeliveryAgent):
    """Keeps everybody's mail in one file."""

    Options = Options
    options: Options

    async def verify(self, recipient: Recipient, mail: Transaction) -> Reply | None:
        """Take mail for the users of the options."""
        if recipient.destination.local in self.options.users:
            return None
        return NO_SUCH_USER(address=recipient.address)

    async def deliver(self, mail: Transaction, message: Message) -> Reply:
        """Append the message once, whoever it is for, and say so when it is on the disk."""
        await asyncio.to_thread(self._append, bytes(message))
        return ACCEPTED

    def _append(self, content: bytes) -> None:
        box = mailbox.mbox(self.options.path)
        box.lock()
        try:
            box.add(content)
            box.flush()
        finally:
            box.close()
