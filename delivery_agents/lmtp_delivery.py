"""One transaction at an LMTP server, while the one of our client goes on.

MAIL and RCPT are said when our client says RCPT. At the end the recipients may be fewer than the server has
accepted, they may have got details by labels, or the connection is gone: then MAIL and RCPT are said once more. Until
the last octet of the content has left, nothing is handed over, and what fails is tried once more on another connection;
afterwards a missing answer means that nobody knows.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Literal, Protocol

from delivery_agents.answers import CLOSING, Answer, as_reply, check_verdict
from delivery_agents.connection import Connection
from delivery_agents.failures import Failure, Lost, Nonsense, TimedOut
from delivery_agents.framing import dot_stuffed, in_blocks, in_one_chunk
from delivery_agents.pool import Pool
from smtpd import replies
from smtpd.delivery import AgentAnswer, Delivery, DeliveryAgent
from smtpd.model import Message, Recipient, Transaction
from smtpd.replies import Refused, Reply

type Stage = Literal["rcpt", "content"]
type Path = str
"""An address as it stands between the angle brackets of RCPT."""

_DATA = b"DATA\r\n"
_GO_ON = 354
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SIZE_DIGITS = 20  # RFC 1870 §3: no message has a size with more


class Account(Protocol):
    """Where it is counted and logged what the server said."""

    def answered(self, at: Stage, answer: Answer) -> None:
        """The server said something about a recipient."""

    def failed(self, at: Stage, failure: Failure, mail: Transaction) -> None:
        """It said nothing, or nothing of use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How messages are handed over; times in seconds."""

    reply_timeout: float
    delivery_timeout: float
    """For each step: until the server has read some more of the content, and from its last octet to the answer."""
    longest: float
    """For all of these."""
    chunking: bool
    path: Callable[[Transaction, Recipient], Path]
    header: Callable[[Transaction], bytes]
    """A header field to put on top, or b""."""
    has_login: bool = False
    """Whether we have logged in at the server."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message with our header field on top."""

    header: bytes
    message: Message

    @property
    def size(self) -> int:
        """Octets."""
        return len(self.header) + self.message.size

    def pieces(self) -> Iterator[bytes]:
        """All octets in order."""
        return chain((self.header,) if self.header else (), self.message.chunks())

    def is_ascii(self) -> bool:
        """Whether 7BIT is enough."""
        return all(piece.isascii() for piece in self.pieces())


class LmtpDelivery(Delivery):
    """Our half of the transaction."""

    def __init__(self, agent: DeliveryAgent, mail: Transaction, pool: Pool, terms: Terms, account: Account) -> None:
        super().__init__(agent, mail)
        self._pool = pool
        self._terms = terms
        self._account = account
        self._connection: Connection | None = None  # parked, unless somebody took it
        self._taken: list[Path] = []  # what the server has accepted in the transaction that is open there
        self._has_utf8 = False  # that transaction
        self._is_handed_over = False

    async def recipient(self, recipient: Recipient) -> Reply | None:
        """Ask the server; what it says is what the client hears."""
        path = self._terms.path(self.mail, recipient)
        try:
            answer = await self._ask(path)
        except Refused as refusal:
            return refusal.reply(address=recipient.address)
        except Failure as failure:
            self._account.failed("rcpt", failure, self.mail)
            return self._unavailable(failure)
        if answer is None:
            return None
        self._account.answered("rcpt", answer)
        return None if answer.is_positive else as_reply(answer)

    async def deliver(self, message: Message) -> AgentAnswer:
        """Hand the message over for exactly the recipients that are left."""
        paths = {recipient: self._terms.path(self.mail, recipient) for recipient in self.mail.recipients}
        parcel = Parcel(self._terms.header(self.mail), message)
        said: dict[Path, Answer] = {}
        missing = self._named(replies.OUTCOME_UNKNOWN)
        try:
            await self._hand_over(list(dict.fromkeys(paths.values())), parcel, said)
        except Refused as refusal:
            return {recipient: refusal.reply(address=recipient.address) for recipient in paths}
        except Failure as failure:
            self._account.failed("content", failure, self.mail)
            if not self._is_handed_over:
                missing = self._unavailable(failure)
        for answer in said.values():
            self._account.answered("content", answer)
        return {recipient: as_reply(said[path]) if path in said else missing for recipient, path in paths.items()}

    async def abandon(self) -> None:
        """Give the connection back; what is open on it is reset."""
        connection = self._resume()
        if connection is not None:
            self._pool.release(connection)

    async def _ask(self, path: Path) -> Answer | None:
        """What the server says about one recipient; None when it has said yes before."""
        connection = self._resume()
        if connection is not None and (self._has_utf8 or path.isascii()):
            if path in self._taken:
                self._pool.park(connection, self)
                return None
            try:
                with self._using(connection):
                    connection.wait_until(self._deadline())
                    answer = check_verdict((await connection.exchange([_rcpt(path)]))[0], "RCPT")
                    _check_still_open(answer)
            except Lost:
                connection = None
            else:
                return self._park(connection, path, answer)
        connection, mail, verdicts = await self._begin(connection, [path], self.mail.size)
        if mail.is_positive:
            return self._park(connection, path, verdicts[path])
        self._leave(connection)
        return mail

    def _park(self, connection: Connection, path: Path, answer: Answer) -> Answer:
        if answer.is_positive:
            self._taken.append(path)
        self._pool.park(connection, self)
        return answer

    async def _hand_over(self, wanted: list[Path], parcel: Parcel, said: dict[Path, Answer]) -> None:
        connection = self._resume()
        if connection is not None and self._taken == wanted:
            try:
                await self._send(connection, wanted, parcel, said, may_chunk=self._terms.chunking)
                return
            except Lost:
                if self._is_handed_over:
                    raise
                connection = None
        connection, mail, verdicts = await self._begin(connection, wanted, parcel.size)
        taken = [path for path, verdict in verdicts.items() if verdict.is_positive]
        said.update({path: verdicts.get(path, mail) for path in wanted if path not in taken})
        if taken:
            # Should more answers come than there were commands, 354 is none of them; what BDAT is answered may be.
            await self._send(connection, taken, parcel, said, may_chunk=False)
        else:
            self._leave(connection)

    async def _begin(
        self, connection: Connection | None, paths: Sequence[Path], size: int | None
    ) -> tuple[Connection, Answer, dict[Path, Answer]]:
        """Say MAIL and RCPT: the connection, what MAIL was answered, and, if it was accepted, what each RCPT was.

        A connection that has served or waited may have been closed meanwhile, or has served enough, so another one is
        tried, once.
        """
        deadline = self._deadline()
        if connection is None:
            connection = await self._pool.acquire(deadline)
        was_used = connection.is_used
        try:
            return connection, *await self._say_envelope(connection, paths, size, deadline)
        except Lost:
            if not was_used:
                raise
        connection = await self._pool.acquire(deadline, fresh=True)
        return connection, *await self._say_envelope(connection, paths, size, deadline)

    async def _say_envelope(
        self, connection: Connection, paths: Sequence[Path], size: int | None, deadline: float
    ) -> tuple[Answer, dict[Path, Answer]]:
        mail = self.mail
        has_utf8 = mail.smtputf8 or not mail.sender.is_ascii or not all(map(str.isascii, paths))
        if misfit := _misfit(connection, mail, has_utf8, size):
            self._leave(connection)
            raise Refused(misfit)
        with self._using(connection):
            begin = f"MAIL FROM:<{mail.sender.text}>{self._parameters(connection, has_utf8, size)}"
            commands = [_command(begin), *map(_rcpt, paths)]
            connection.wait_until(deadline)
            was_used = connection.is_used
            answer, *answers = await connection.exchange(commands, anew=True)
            if was_used:
                _check_still_open(answer, *answers)
            if check_verdict(answer, "MAIL").is_positive:
                verdicts = {path: check_verdict(each, "RCPT") for path, each in zip(paths, answers, strict=True)}
            elif any(each.is_positive for each in answers):
                raise Nonsense("RCPT was accepted, but MAIL was not")
            else:
                verdicts = {}
        self._connection, self._taken, self._has_utf8 = connection, [], has_utf8
        self._pool.answered()
        return answer, verdicts

    async def _send(
        self, connection: Connection, paths: list[Path], parcel: Parcel, said: dict[Path, Answer], *, may_chunk: bool
    ) -> None:
        """Hand the content over, and hear an answer for each recipient (RFC 2033 §4.2, §4.3)."""
        misfit = _misfit(connection, self.mail, self._has_utf8, parcel.size)
        if not misfit and "8BITMIME" not in connection.extensions and not parcel.is_ascii():
            misfit = replies.CANNOT_CARRY_8BIT  # RFC 6152 §3; a downgrade would break signatures
        if misfit:
            self._leave(connection)
            raise Refused(misfit)
        with self._using(connection):
            ends = asyncio.get_running_loop().time() + self._terms.longest
            self._wait(connection, ends)
            if may_chunk and "CHUNKING" in connection.extensions:
                pieces = in_one_chunk(parcel.pieces(), parcel.size)
            elif refusal := await _say_data(connection):
                said.update(dict.fromkeys(paths, refusal))
                pieces = None
            else:
                pieces = dot_stuffed(parcel.pieces())
            if pieces is not None:
                await self._write(connection, pieces, len(paths), ends)
                await self._hear(connection, paths, said)
                connection.is_dirty = False
        self._pool.answered()
        self._leave(connection)

    async def _write(self, connection: Connection, pieces: Iterator[bytes], recipients: int, ends: float) -> None:
        waiting = b""
        for block in in_blocks(pieces):
            if waiting:
                connection.send(waiting)
                await connection.drained()
                self._wait(connection, ends)
            waiting = block
        self._send_last(connection, waiting, recipients)
        self._is_handed_over = True

    def _wait(self, connection: Connection, ends: float) -> None:
        """Give the server time for one more step."""
        connection.wait_until(min(asyncio.get_running_loop().time() + self._terms.delivery_timeout, ends))

    # What another protocol does in another way

    def _parameters(self, connection: Connection, has_utf8: bool, size: int | None) -> str:
        """What stands behind the sender in MAIL, with a blank in front of each."""
        offers = connection.extensions
        parameters = f" SIZE={size}" if size is not None and "SIZE" in offers else ""
        if "8BITMIME" in offers:
            parameters += " BODY=8BITMIME"  # whatever our client announced: most do not look into what they send
        return f"{parameters} SMTPUTF8" if has_utf8 else parameters

    def _send_last(self, connection: Connection, octets: bytes, recipients: int) -> None:
        """Send the end of the content, and say how many answers there will be."""
        connection.send(octets, recipients, last=True)

    async def _hear(self, connection: Connection, paths: list[Path], said: dict[Path, Answer]) -> None:
        """Hear the answers to the content, and note what is final as soon as it is."""
        for path in paths:
            said[path] = check_outcome(await connection.answer())

    def _named(self, reply: Reply) -> Reply:
        """One of our own replies about the server, with what it is called."""
        return reply

    # Back to both

    def _resume(self) -> Connection | None:
        connection = self._connection
        if connection is not None and self._pool.resume(connection, self):
            return connection
        self._connection, self._taken = None, []
        return None

    def _leave(self, connection: Connection) -> None:
        self._connection, self._taken = None, []
        self._pool.release(connection)

    @contextmanager
    def _using(self, connection: Connection) -> Iterator[None]:
        """Whatever interrupts an exchange ends the connection: nobody knows what is still to come on it."""
        try:
            yield
        except BaseException as error:
            self._connection, self._taken = None, []
            self._pool.discard(connection)
            if isinstance(error, TimedOut):  # anything else may be due to this mail, and strangers send mail
                self._pool.failed(error)
            raise

    def _unavailable(self, failure: Failure) -> Reply:
        if isinstance(failure, TimedOut):
            return self._named(replies.BACKEND_TIMEOUT)
        return self._named(replies.BACKEND_LOST if isinstance(failure, Lost) else replies.BACKEND_DOWN)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._terms.reply_timeout


async def _say_data(connection: Connection) -> Answer | None:
    """None when the server waits for the content, else why it does not want it."""
    connection.send(_DATA, 1)
    answer = await connection.answer()
    if answer.code == _GO_ON:
        return None
    if check_verdict(answer, "DATA").is_positive:
        raise Nonsense(f"DATA was answered with {answer}")
    return answer


def _check_still_open(*answers: Answer) -> None:
    # RFC 5321 §3.8: it is about the connection, and nothing of the mail was said yet that a fresh one cannot repeat.
    # Exim says it to the MAIL behind the thousandth message on one (smtp_accept_max_per_connection).
    for answer in answers:
        if answer.code == CLOSING:
            raise Lost(f"closed by the server: {answer}")


def check_outcome(answer: Answer) -> Answer:
    """What can be said about a message; Lost for 421, which says nothing about it."""
    if answer.code == CLOSING:  # RFC 5321 §3.8; Dovecot 2.3 says it when it stops, and stores the mail
        raise Lost(f"closed by the server: {answer}")
    return check_verdict(answer, "the message")


def _misfit(connection: Connection, mail: Transaction, has_utf8: bool, size: int | None) -> Reply | None:
    """Why the server cannot take this mail, by what it offers; `address` in the reply is still to be filled in."""
    offers = connection.extensions
    if has_utf8 and "SMTPUTF8" not in offers:
        return replies.CANNOT_CARRY_UTF8  # RFC 6531 §3.1
    if mail.body == "8BITMIME" and "8BITMIME" not in offers:
        return replies.CANNOT_CARRY_8BIT  # RFC 6152 §3
    limit = offers.get("SIZE", "")[:_SIZE_DIGITS]
    if size is not None and limit.isdecimal() and 0 < int(limit) < size:  # RFC 1870 §4: 0 is no limit
        return replies.TOO_BIG(limit=int(limit))
    return None


def _rcpt(path: Path) -> bytes:
    return _command(f"RCPT TO:<{path}>")


def _command(line: str) -> bytes:
    if _CONTROL.search(line) is not None:
        raise ValueError("an address with a control character")
    return f"{line}\r\n".encode()
