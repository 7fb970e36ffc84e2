"""What was taken, while its client has not shown that it has read so."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smtpd.handover import Handover
from smtpd.outcome import Outcome


class Unread:
    """A message that was taken by a client that has not shown yet that it knows: nothing came since our reply."""

    __slots__ = ("_handover", "_outcome", "flushes")

    def __init__(self, handover: Handover, outcome: Outcome, flushes: int) -> None:
        self._handover = handover
        self._outcome = outcome
        self.flushes = flushes
        """`Channel.flushes` when the reply was said."""

    def read(self) -> None:
        """The client went on: it knows."""
        self._handover.read(self._outcome)

    def shrink(self) -> None:
        """Keep a digest in the place of the content: the client goes on without waiting for our replies."""
        self._handover.shrink()

    def mark(self) -> None:
        """The client is lost, though its conversation goes on for a while: another attempt waits for `remember`."""
        self._handover.mark()

    def give_way(self, key: str) -> None:
        """The same client sends the same message again on purpose, which must not wait for the client to go on."""
        self._handover.give_way(key)

    def remember(self) -> Coroutine[Any, Any, None]:
        """The client was lost, and will try again: an attempt that comes before this has run waits for it."""
        self._handover.shrink()
        self._handover.mark()
        return self._handover.remember(self._outcome)
