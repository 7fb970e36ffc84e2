"""Looks over the resolver's shoulder: who asked for which name, and what was the answer."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from smtpd.dns import Answer, Resolver, Type

MAX_QUESTIONS = 10_000  # written down; our own choice


@dataclass(frozen=True, slots=True)
class Question:
    """One name asked for, and the answer."""

    name: str
    kind: Type
    answer: Answer


Questions = list[Question]

ASKED_BY: ContextVar[Questions] = ContextVar("ASKED_BY")
"""Where the questions of the filter go that is being asked now; tasks that it starts inherit it."""


class WatchedResolver:
    """Passes every lookup on, and writes it down for the filter that asked, or as `shared` when nobody knows who."""

    def __init__(self, inner: Resolver) -> None:
        self._inner = inner
        self._written = 0
        self.shared: Questions = []

    def peek(self, name: str, kind: Type) -> Answer | None:
        """See Resolver."""
        answer = self._inner.peek(name, kind)
        return answer if answer is None else self._note(name, kind, answer)

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        """See Resolver."""
        return self._note(name, kind, await self._inner.resolve(name, kind, timeout))

    async def start(self) -> None:
        """See Resolver."""
        await self._inner.start()

    async def stop(self) -> None:
        """See Resolver."""
        await self._inner.stop()

    async def health(self) -> str | None:
        """See Resolver."""
        return await self._inner.health()

    def _note(self, name: str, kind: Type, answer: Answer) -> Answer:
        questions = ASKED_BY.get(self.shared)
        question = Question(name, kind, answer)
        if self._written < MAX_QUESTIONS and question not in questions:
            self._written += 1
            questions.append(question)
        return answer
