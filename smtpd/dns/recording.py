"""Writes down what was asked, to explain a decision or to replay it later from a Zone."""

from __future__ import annotations

from collections.abc import Mapping

from smtpd.dns.answer import Answer, Type, normal_name
from smtpd.dns.resolver import Resolver

MAX_QUESTIONS = 10_000


class RecordingResolver:
    """Passes every lookup on, and keeps the last answer to each question, in the order they were first put.

    `Zone.from_answers(recording.answers)` makes a zone that gives the same answers for ever.
    """

    def __init__(self, inner: Resolver) -> None:
        self._inner = inner
        self._answers: dict[tuple[str, Type], Answer] = {}

    @property
    def answers(self) -> Mapping[tuple[str, Type], Answer]:
        """What was answered by name (lower case, no last dot) and type; at most `MAX_QUESTIONS`."""
        return self._answers

    def peek(self, name: str, kind: Type) -> Answer | None:
        """See Resolver."""
        answer = self._inner.peek(name, kind)
        return answer if answer is None else self._record(name, kind, answer)

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        """See Resolver."""
        return self._record(name, kind, await self._inner.resolve(name, kind, timeout))

    async def start(self) -> None:
        """See Resolver."""
        await self._inner.start()

    async def stop(self) -> None:
        """See Resolver."""
        await self._inner.stop()

    async def health(self) -> str | None:
        """See Resolver."""
        return await self._inner.health()

    def _record(self, name: str, kind: Type, answer: Answer) -> Answer:
        normal = normal_name(name)
        if normal is not None and (len(self._answers) < MAX_QUESTIONS or (normal, kind) in self._answers):
            self._answers[normal, kind] = answer
        return answer
