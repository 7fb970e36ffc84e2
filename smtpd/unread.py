"""What was taken, while its client has not shown that it has read so."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from smtpd.outcome import Outcome


class Attempt(Protocol):
    """What a hand-over can still do when its outcome is known."""

    def confirm(self, outcome: Outcome) -> None:
        """The client knows who has the message."""

    def shrink(self) -> None:
        """Give the content back; its key is all that is needed."""

    def claim(self) -> None:
        """From now on another attempt of the same message waits until this one is over."""

    def give_way(self, key: str) -> None:
        """Let others with this key go on."""

    def remember(self, outcome: Outcome) -> Coroutine[Any, Any, None]:
        """The client was lost: whoever has the message must not get it again."""


class Unread:
    """A message that was taken by a client that has not shown yet that it knows: nothing came since our reply."""

    __slots__ = ("_attempt", "_outcome", "flushes")

    def __init__(self, attempt: Attempt, outcome: Outcome, flushes: int) -> None:
        self._attempt = attempt
        self._outcome = outcome
        self.flushes = flushes
        """`Channel.flushes` when the reply was said."""

    def confirm(self) -> None:
        """The client went on: it knows."""
        self._attempt.confirm(self._outcome)

    def shrink(self) -> None:
        """Keep a digest in the place of the content: the client goes on without waiting for our replies."""
        self._attempt.shrink()

    def claim(self) -> None:
        """The client is lost, though its conversation goes on for a while: another attempt waits for `remember`."""
        self._attempt.claim()

    def give_way(self, key: str) -> None:
        """The same client sends the same message again on purpose, which must not wait for the client to go on."""
        self._attempt.give_way(key)

    def remember(self) -> Coroutine[Any, Any, None]:
        """The client was lost, and will try again: an attempt that comes before this has run waits for it."""
        self._attempt.shrink()
        self._attempt.claim()
        return self._attempt.remember(self._outcome)
