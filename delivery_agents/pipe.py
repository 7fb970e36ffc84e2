"""Hand each message to a program, such as procmail, maildrop, a mailing list manager or a script of yours.

With `protocol = "message"` the program reads the message from its standard input and says by its exit code what became
of it; the client hears that at once.

```toml
[smtpd.agents.lists]
type = "pipe"
command = ["/usr/lib/mailman/mail/mailman", "post", "{user}"]
```

- There is no shell: words are given as they stand. `{sender}`, `{recipient}`, `{user}`, `{detail}`, `{domain}` and
  `{trace}` are filled in, inside a word as well. `{sender}` is empty for the empty sender.
- An address that could be taken for an option or a path is refused at RCPT: a local part that holds a "/", or begins
  (as its detail) with "-" or "."; and a sender that begins with "-" when a word begins with `{sender}`. A sender may
  hold a "/" and whatever else addresses can hold; never make a path or a shell command of it.
- The environment holds `environment` and SENDER, RECIPIENT (with one recipient), CLIENT_ADDRESS, CLIENT_HELO and
  TRACE_ID, and nothing of the server's own.
- Exit codes are those of sysexits.h: 0 is 250; 75 (EX_TEMPFAIL) and everything that is a failure rather than a decision
  is 451: other codes, signals, a program that is not there. 65, 67, 68, 69 and 77 refuse. The end of what the
  program writes stands in the log; with `say_output` its last line is what the client hears.
- Success is success, also when the program has not read everything.
- Keep the program and `directory` on a local disk: on a filesystem that hangs it cannot start, and everybody waits.

A program that overruns its time is ended with all of its process group: SIGTERM, two seconds later SIGKILL. If it had
the whole message by then nobody knows what it did with it, and the client sends it again. A program that goes on in
the background is left alone.

With `protocol = "lmtp"` the program speaks LMTP (RFC 2033) on its standard input, which is a socket, as inetd would
start it. It is asked at RCPT and answers for each recipient, and adds Return-Path itself. A program is started for
each message and knows nothing of the client; only when there are no more places, that of a client who takes its time
between RCPT and the message is told RSET and serves another, and its own message starts one later. Options for the
form of a message mean nothing then.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from delivery_agents.child import GRACE, Child
from delivery_agents.command_line import check_command, check_for_several, fill, is_safe, placeholders, takes_sender
from delivery_agents.exit_codes import describe, is_meant, reply_for
from delivery_agents.lmtp_program import LmtpProgram, LmtpPrograms
from smtpd import replies, trace
from smtpd.delivery import Delivery, DeliveryAgent
from smtpd.metrics import Counter, Gauge
from smtpd.model import Message, Recipient, Transaction
from smtpd.options import AgentOptions, Bytes, Seconds, as_tuple
from smtpd.plugins import BrokenPlugin
from smtpd.replies import MAX_VALUE, Reply, clean
from smtpd.services import Services

RESULTS = Counter(
    "smtpd_pipe_results_total",
    "What came of mail given to a program. result is delivered, deferred, refused, failed or timeout.",
    ("agent", "result"),
)
PROGRAMS = Gauge("smtpd_pipe_programs", "Programs that run.", ("agent",))
CONVERSATIONS = Gauge("smtpd_pipe_conversations", "Programs that speak LMTP with us.", ("agent",))

CONNECTING = 20.0  # seconds for the greeting of a program that speaks LMTP

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _check_environment(environment: dict[str, str]) -> dict[str, str]:
    for name, value in environment.items():
        if not name or "=" in name or "\0" in name + value:
            raise ValueError('needs names without "=", and nothing may hold NUL')
    return environment


class PipeOptions(AgentOptions):
    """Options of `pipe`."""

    command: Annotated[tuple[str, ...], BeforeValidator(as_tuple), AfterValidator(check_command)]
    """The program with its whole path, and its arguments, which may hold {user} and the like."""
    protocol: Literal["message", "lmtp"] = "message"
    """Whether the program reads a message, or speaks LMTP."""
    environment: Annotated[dict[str, str], AfterValidator(_check_environment)] = {}
    """More variables of its environment; PATH is the usual one unless it stands here."""
    directory: str = "/"
    """Directory it is started in."""
    per_recipient: bool = True
    """Whether it is started for each recipient; false: once, and {recipient} becomes as many words as there are."""
    timeout: Annotated[Seconds, Field(gt=0)] = 60.0
    """Longest time for one message, the wait for a free place included."""
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 10
    """How many may run at the same time."""
    max_output: Annotated[Bytes, Field(ge=1, le=1 << 20)] = 4096
    """How much of the end of what it writes is kept to choose from, bytes; the log shows 200 characters."""
    say_output: bool = False
    """Whether the client hears the last line that the program has written, when it refuses or puts off."""
    return_path: bool = True
    """Whether a Return-Path field with the sender is put on top."""
    sender_line: bool = False
    """Whether a line "From SENDER DATE" is put on top, for programs that write mbox files."""
    line_ends: Literal["lf", "crlf"] = "lf"
    """How lines end; most programs want "lf"."""
    separator: Annotated[str, Field(max_length=1, pattern=r"^[!-~]?$")] = "+"
    """Character that starts the detail of `user+detail@domain`; empty: there are no details."""

    def obstacles(self) -> Iterable[tuple[str, str]]:
        """A program that cannot be run."""
        if problem := _missing(self.command[0], self.directory):
            yield "command", problem

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.protocol == "lmtp" and (found := placeholders(self.command)):
            raise ValueError(f"a program that speaks LMTP hears all addresses there, so {{{min(found)}}} is not known")
        if not self.per_recipient:
            check_for_several(self.command)
        return self


class Pipe(DeliveryAgent):
    """Runs the program."""

    Options = PipeOptions
    options: PipeOptions

    def __init__(self, name: str, options: PipeOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self.options = options
        self._places = asyncio.Semaphore(options.concurrency)
        self._children: set[Child] = set()
        self._results = services.metrics.counter(RESULTS)
        self._programs = services.metrics.gauge(PROGRAMS).labels(name)
        self._lmtp: LmtpPrograms | None = None

    async def start(self) -> None:
        """Look whether the program is there; BrokenPlugin if not."""
        if problem := await self.health():
            raise BrokenPlugin(f"agent {self.name}: {problem}")
        if self.options.protocol == "lmtp":
            await self._start_lmtp()

    async def stop(self) -> None:
        """Wait for the programs that run; their time is limited."""
        if self._lmtp is not None:
            await self._lmtp.pool.close(self.options.timeout)
        if self._children:
            running = [child.exited for child in self._children]
            await asyncio.wait(running, timeout=self.options.timeout + 2 * GRACE)

    async def health(self) -> str | None:
        """Whether the program can be run."""
        return _missing(self.options.command[0], self.options.directory)

    def open(self, mail: Transaction) -> Delivery:
        """Begin a delivery; a program that speaks LMTP is asked at once."""
        return Delivery(self, mail) if self._lmtp is None else self._lmtp.open(mail)

    async def verify(self, recipient: Recipient, mail: Transaction) -> Reply | None:
        """Refuse addresses that a program could mistake for something else."""
        if not is_safe(recipient.destination, self.options.separator):
            return replies.NO_SUCH_USER(address=recipient.address)
        if not takes_sender(self.options.command, mail.sender):
            return replies.DENIED_SENDER(address=mail.sender)
        return None

    async def deliver(self, mail: Transaction, message: Message) -> Reply | Mapping[Recipient, Reply]:
        """Run the program, once or for each recipient."""
        if not self.options.per_recipient:
            return await self._deliver(mail, mail.recipients, message)
        answers = await asyncio.gather(*(self._deliver(mail, [each], message) for each in mail.recipients))
        return dict(zip(mail.recipients, answers, strict=True))

    async def _deliver(self, mail: Transaction, recipients: Sequence[Recipient], message: Message) -> Reply:
        deadline = asyncio.get_running_loop().time() + self.options.timeout
        try:
            async with asyncio.timeout_at(deadline):
                await self._places.acquire()
        except TimeoutError:
            self._timed_out(mail, f"all {self.options.concurrency} programs were busy")
            return replies.BACKEND_TIMEOUT
        try:
            return await self._run(mail, recipients, message, deadline)
        finally:
            self._places.release()

    async def _run(
        self, mail: Transaction, recipients: Sequence[Recipient], message: Message, deadline: float
    ) -> Reply:
        words = fill(self.options.command, mail, recipients, self.options.separator)
        try:
            child = self._start(words, self._environment(mail, recipients))
        except OSError as error:
            self._failed(mail, str(error))
            return replies.STORE_FAILED
        try:
            async with asyncio.timeout_at(deadline):
                await child.feed(self._pieces(mail, message))
                code = await child.wait()
        except TimeoutError:
            if not child.has_ended():  # it may have long ago, when we were stopped for a while ourselves
                await child.end()
                self._timed_out(mail, "the program did not end in time", child.output)
                return replies.OUTCOME_UNKNOWN if child.was_fed else replies.BACKEND_TIMEOUT
            code = child.exited.result()
        except BaseException:
            child.signal(signal.SIGKILL)  # before its input ends: half a message must not look like a whole one
            raise
        finally:
            child.close()
        return self._judge(code, child.output, mail, recipients[0])

    def _start(self, words: Sequence[str], environment: Mapping[str, str], socket: int | None = None) -> Child:
        child = Child(
            words,
            environment=environment,
            directory=self.options.directory,
            keep=self.options.max_output,
            socket=socket,
        )
        self._children.add(child)
        self._programs.inc()
        child.exited.add_done_callback(lambda _: self._ended(child))
        return child

    def _ended(self, child: Child) -> None:
        self._children.discard(child)
        self._programs.inc(-1)

    async def _start_lmtp(self) -> None:
        """See whether the program can be talked to, and what it offers."""
        options = self.options
        environment = {"PATH": PATH, **options.environment}
        backend = LmtpProgram(
            address=options.command[0],
            hello="LHLO",
            hostname=self.services.hostname,
            tls="off",
            context=None,
            timeout=min(options.timeout, CONNECTING),
            start=lambda socket: self._start(options.command, environment, socket),
            ended=self._lmtp_ended,
        )
        self._lmtp = LmtpPrograms(
            self,
            backend,
            limit=options.concurrency,
            timeout=options.timeout,
            count=self._count,
            gauge=self.services.metrics.gauge(CONVERSATIONS).labels(self.name),
        )
        self.carries_utf8 = False  # until it has said so
        if problem := await self._lmtp.pool.problem():
            self.services.log.warning("backend-failed", agent=self.name, problem=problem)

    def _lmtp_ended(self, child: Child) -> None:
        code = child.exited.result() if child.exited.done() else -signal.SIGKILL
        log = self.services.log.info if code else self.services.log.debug
        log("program-ended", agent=self.name, problem=describe(code), output=_shown(child.output))

    def _judge(self, code: int, output: str, mail: Transaction, recipient: Recipient) -> Reply:
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
        reply = reply_for(code, address=recipient.address.text, said=last if self.options.say_output else "")
        if is_meant(code):
            self._count("refused" if reply.is_permanent else "deferred" if reply.is_temporary else "delivered")
            log = self.services.log.info if code else self.services.log.debug
            log("program-ended", agent=self.name, trace=mail.id, problem=describe(code), output=_shown(output))
        else:
            self._failed(mail, describe(code), output)
        return reply

    def _failed(self, mail: Transaction, problem: str, output: str = "") -> None:
        self._count("failed")
        shown = _shown(output)
        self.services.log.error("program-failed", agent=self.name, trace=mail.id, problem=problem, output=shown)

    def _timed_out(self, mail: Transaction, problem: str, output: str = "") -> None:
        self._count("timeout")
        shown = _shown(output)
        self.services.log.error("delivery-timed-out", agent=self.name, trace=mail.id, problem=problem, output=shown)

    def _count(self, result: str) -> None:
        self._results.labels(self.name, result).inc()

    def _environment(self, mail: Transaction, recipients: Sequence[Recipient]) -> dict[str, str]:
        about = {
            "SENDER": mail.sender.text,
            "CLIENT_ADDRESS": mail.session.ip_text,
            "CLIENT_HELO": mail.session.helo,
            "TRACE_ID": mail.id,
        }
        if len(recipients) == 1:
            about["RECIPIENT"] = recipients[0].destination.text
        return {"PATH": PATH, **self.options.environment, **about}

    def _pieces(self, mail: Transaction, message: Message) -> Iterator[bytes]:
        top = b""
        if self.options.sender_line:
            sender = mail.sender.text.replace(" ", "_") or "MAILER-DAEMON"  # as mbox readers expect it
            top += f"From {sender} {time.asctime()}\r\n".encode()
        if self.options.return_path:
            top += trace.return_path(mail)
        pieces = chain((top,) if top else (), message.chunks())
        return pieces if self.options.line_ends == "crlf" else with_lf(pieces)


def with_lf(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same lines, ending in LF alone; a CR at the end of a piece waits for its LF."""
    held = b""
    for piece in pieces:
        piece = held + piece
        held = b"\r" if piece.endswith(b"\r") else b""
        yield piece[: len(piece) - len(held)].replace(b"\r\n", b"\n")
    if held:
        yield held


def _missing(program: str, directory: str) -> str | None:
    if not os.access(program, os.X_OK, effective_ids=True) or os.path.isdir(program):
        return f"{program} is no program that can be run"
    return None if os.path.isdir(directory) else f"{directory} is no directory"


def _shown(output: str) -> str:
    """The end of what a program wrote, on one line."""
    line = " / ".join(filter(None, map(str.strip, output.splitlines())))
    return clean(line[-MAX_VALUE:])
