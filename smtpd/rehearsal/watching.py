"""Looks over the filters' shoulders: what each was asked, looked up, found and said."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import ClassVar

from smtpd.forgeries import WithoutFields
from smtpd.generation import FilterMaker
from smtpd.model import Facts, Message, Recipient, Session, Transaction
from smtpd.options import FilterOptions, StageName
from smtpd.policy import PASS, Filter, Verdict
from smtpd.rehearsal.questions import ASKED_BY, Questions
from smtpd.services import Services

HOOKS: Mapping[StageName, str] = {
    "connect": "on_connect", "helo": "on_helo", "mail": "on_mail", "rcpt": "on_rcpt", "message": "on_message",
}  # fmt: skip

INTERRUPTED = "interrupted: nobody waited for it any longer"

Ask = Callable[..., Awaitable[Verdict]]


@dataclass(slots=True)
class Opinion:
    """One question to a filter, and all that came of it. Without `verdict` and `failure` it was not waited for."""

    filter: str
    stage: StageName
    inputs: dict[str, str]
    """What it could look at, by name."""
    questions: Questions = field(default_factory=dict)
    found: list[object] = field(default_factory=list)
    """The facts that it left."""
    verdict: Verdict | None = None
    failure: str = ""
    """How it broke: an exception and its text, or that it was interrupted."""
    seconds: float = 0.0


class Watch:
    """Everything filters said, in the order they were asked, and every transaction they could see."""

    def __init__(self) -> None:
        self.opinions: list[Opinion] = []
        self.mails: list[Transaction] = []
        self.left_out: dict[str, list[bytes]] = {}
        """Fields that pretended to be ours, by the id of the transaction, as received."""

    def maker(self, kind: type[Filter], now: Callable[[], float]) -> FilterMaker:
        """Makes filters that do as `kind` does, while they are watched; `now` is their time of day."""
        hooks = {
            name: self._watched(stage, getattr(kind, name))
            for stage, name in HOOKS.items()
            if getattr(kind, name) is not getattr(Filter, name)
        }
        watched = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__doc__": kind.__doc__, **hooks})

        def make(name: str, options: FilterOptions, services: Services) -> Filter:
            made = watched(name, options, replace(services, now=now, is_rehearsal=True))
            assert isinstance(made, Filter)
            return made

        return make

    def bystander(self) -> type[Filter]:
        """A filter that objects to nothing, and sees every transaction."""
        mails, left_out = self.mails, self.left_out

        class Bystander(Filter):
            name: ClassVar[str] = "bystander"

            async def on_mail(self, mail: Transaction) -> Verdict:
                mails.append(mail)
                return PASS

            async def on_message(self, mail: Transaction, message: Message) -> Verdict:
                if isinstance(message.content, WithoutFields):
                    left_out[mail.id] = message.content.left_out
                return PASS

        return Bystander

    def _watched(self, stage: StageName, ask: Ask) -> Ask:
        async def hook(self_: Filter, *subject: object) -> Verdict:
            opinion = Opinion(self_.table, stage, _inputs(self_, subject))
            self.opinions.append(opinion)
            ASKED_BY.set(opinion.questions)  # in the context of this one task
            started = perf_counter()
            try:
                opinion.verdict = await ask(self_, *subject)
                return opinion.verdict
            except CancelledError:
                opinion.failure = INTERRUPTED
                raise
            except BaseException as problem:
                opinion.failure = f"{type(problem).__name__}: {problem}".removesuffix(": ")
                raise
            finally:
                opinion.seconds = perf_counter() - started
                opinion.found = _found(self_, subject)

        return hook


def _facts(subject: tuple[object, ...]) -> Facts | None:
    owner = subject[0]
    return owner.facts if isinstance(owner, Session | Transaction) else None


def _found(filter: Filter, subject: tuple[object, ...]) -> list[object]:
    facts = _facts(subject)
    found = [facts.get(kind) for kind in filter.gives] if facts is not None else []
    return [fact for fact in found if fact is not None]


def _inputs(filter: Filter, subject: tuple[object, ...]) -> dict[str, str]:
    inputs: dict[str, str] = {}
    for part in subject:
        match part:
            case Session():
                inputs |= _of_session(part)
            case Transaction():
                inputs |= _of_session(part.session) | {"sender": f"<{part.sender.text}>"}
            case Recipient():
                inputs["recipient"] = f"<{part.address.text}>"
            case Message():
                inputs["message"] = f"{part.content.size} octets"
                authors = b", ".join(part.field_values("from")[:3])
                inputs["from"] = " ".join(authors.decode("utf-8", "backslashreplace").split())
    facts = _facts(subject)
    wanted = [kind for kind in (*filter.needs, *filter.uses) if facts is not None and facts.get(kind) is not None]
    if wanted:
        inputs["facts"] = ", ".join(kind.__name__ for kind in wanted)
    return inputs


def _of_session(session: Session) -> dict[str, str]:
    inputs = {"ip": session.ip_text}
    if session.helo:
        inputs["helo"] = session.helo
    if session.tls is not None:
        inputs["tls"] = session.tls.version
    if session.login is not None:
        inputs["login"] = session.login
    if session.trusted:
        inputs["trusted"] = "yes"
    return inputs
