"""Messages for tests of the end of data: content with a Message-ID, an envelope, and an agent that waits to be let."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from stage import Stage

from smtpd import replies
from smtpd.config import Config
from smtpd.delivery import AgentAnswer
from smtpd.memory import Talk
from smtpd.model import Message, Recipient, Transaction
from smtpd.replies import Reply

ANN, BOB, EVE = "ann@example.test", "bob@example.test", "eve@example.test"
LATER = replies.MAILBOX_FULL(address="x@example.test")
NOBODY = replies.NO_SUCH_USER(address="x@example.test")
SPAM = Reply("spam", 550, "5.7.1", "No")
LMTP = {"mode": "lmtp"}
AT_MOST_ONCE = {"delivery": {"guarantee": "at-most-once"}}
EARLIER = b"250 2.0.0 Ok, delivered at an earlier attempt ["
TIMED_OUT = b"451 4.4.2 The mail system did not answer in time"


def letter(name: str = "one", size: int = 0) -> bytes:
    """Content with a Message-ID of its own, at least `size` octets."""
    head = b"From: joe@client.test\r\nMessage-ID: <%b@client.test>\r\n\r\n" % name.encode()
    return head + b"x" * 70 + b"\r\n" + (b"y" * 98 + b"\r\n") * (size // 100)


def envelope(*recipients: str, prdr: bool = False) -> bytes:
    """MAIL and RCPT commands."""
    mail = b"MAIL FROM:<joe@client.test>" + (b" PRDR" if prdr else b"") + b"\r\n"
    return mail + b"".join(b"RCPT TO:<%b>\r\n" % recipient.encode() for recipient in recipients or (ANN,))


def chunk(content: bytes) -> bytes:
    """The content as the last chunk, so that commands may stand behind it in the same burst."""
    return b"BDAT %d LAST\r\n%b" % (len(content), content)


async def greeted(talk: Talk) -> Talk:
    """A client that has introduced itself."""
    hello = b"LHLO" if talk.session.lmtp else b"EHLO"
    assert b"\r\n250 " in await talk.say(hello + b" client.test\r\n")
    return talk


async def send(talk: Talk, content: bytes, *recipients: str, prdr: bool = False) -> bytes:
    """Send a message on a new connection; what is said behind the data."""
    await greeted(talk)
    await talk.say(envelope(*recipients, prdr=prdr))
    return await talk.say(chunk(content))


class Mailboxes:
    """An agent that counts copies, and answers by a script: all answers for a recipient in order, then 250.

    With `holds` it waits for `go_on` before it answers.
    """

    def __init__(self, script: Mapping[str, Sequence[Reply]] | None = None, *, holds: bool = False) -> None:
        self.copies: Counter[str] = Counter()
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self._script = {name: list(answers) for name, answers in (script or {}).items()}
        if not holds:
            self.go_on.set()

    async def answer(self, mail: Transaction, message: Message) -> AgentAnswer:
        self.begun.set()
        recipients = list(mail.recipients)
        await self.go_on.wait()
        return {recipient: self._take(recipient) for recipient in recipients}

    def _take(self, recipient: Recipient) -> Reply:
        name = recipient.address.text
        script = self._script.get(name)
        reply = script.pop(0) if script else replies.ACCEPTED
        self.copies[name] += reply.is_positive
        return reply


def impatient(stage: Stage, **seconds: float) -> Config:
    """The configuration with other time limits; for `Stage.talk(config=...)`."""
    config = stage.service.config
    return config.model_copy(update={"timeouts": config.timeouts.model_copy(update=seconds)})
