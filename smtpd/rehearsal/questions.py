"""Looks over the resolver's shoulder: who asked for which name, and what was the answer."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from smtpd.dns import Answer, Resolver, Type

MAX_QUESTIONS = 10_000  # written down; our own choice


@dataclass(slots=True)
class Question:
    """One name asked for, and the answer; None when nobody waited for it."""

    name: str
    kind: Type
    answer: Answer | None = None


Questions = dict[tuple[str, Type], Question]
"""In the order in which they were first put."""

ASKED_BY: ContextVar[Questions] = ContextVar("ASKED_BY")
"""Where the questions of the filter go that is being asked now; tasks that it starts inherit it."""


class WatchedResolver:
    """Passes every lookup on, and writes it down for the filter that asked, or as `shared` when nobody knows who."""

    def __init__(self, inner: Resolver) -> None:
        self._inner = inner
        self._written = 0
        self.shared: Questions = {}

    def peek(self, name: str, kind: Type) -> Answer | None:
        """See Resolver."""
        answer = self._inner.peek(name, kind)
        if answer is not None:
            self._note(name, kind).answer = answer
        return answer

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        """See Resolver."""
        question = self._note(name, kind)  # before it is answered: the order of answers differs from run to run
        question.answer = await self._inner.resolve(name, kind, timeout)
        return question.answer

    async def start(self) -> None:
        """See Resolver."""
        await self._inner.start()

    async def stop(self) -> None:
        """See Resolver."""
        await self._inner.stop()

    async def health(self) -> str | None:
        """See Resolver."""
        return await self._inner.health()

    def _note(self, name: str, kind: Type) -> Question:
        questions = ASKED_BY.get(self.shared)
        question = questions.get((name, kind))
        if question is None:
            question = Question(name, kind)
            if self._written < MAX_QUESTIONS:
                self._written += 1
                questions[name, kind] = question
        return question
