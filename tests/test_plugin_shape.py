"""Slips in the class of a plug-in are seen before mail comes."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from smtpd import PASS, DeliveryAgent, Filter, Recipient, Reply, Session, Transaction, Verdict
from smtpd.plugin_shape import oddities


def logged(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    def call(*arguments: Any) -> Awaitable[Any]:
        return method(*arguments)

    return call


class Sound(Filter):
    """Calls things as it likes, as long as they are its own."""

    async def on_connect(self, session: Session, *, again: bool = False) -> Verdict:
        return PASS

    @logged
    async def on_mail(self, mail: Transaction) -> Verdict:
        return PASS

    async def on_rcpt(self, *arguments: Any) -> Verdict:
        return PASS

    def judge(self) -> None: ...


class Careless(Filter):
    async def on_data(self, mail: Transaction) -> Verdict:
        return PASS

    async def on_mesage(self, mail: Transaction) -> Verdict:
        return PASS

    def on_mail(self, mail: Transaction) -> Verdict:  # type: ignore[override]
        return PASS

    async def on_rcpt(self, recipient: Recipient) -> Verdict:  # type: ignore[override]
        return PASS


class Agent(DeliveryAgent):
    def on_data(self) -> None:
        """Nothing here is called by such a name, so it may be anything."""

    async def verify(self, recipient: Recipient) -> Reply | None:  # type: ignore[override]
        return None


def test_sound_plug_in_has_no_oddities() -> None:
    assert list(oddities(Sound, Filter)) == []


@pytest.mark.parametrize(
    "sentence",
    [
        "on_data is called by nobody",
        "on_mesage is called by nobody, did you mean on_message?",
        "on_mail is no async def, and has to be awaited",
        "on_rcpt cannot be called with (self, mail, recipient): too many positional arguments",
    ],
)
def test_slip_of_a_filter_is_told(sentence: str) -> None:
    assert any(oddity.startswith(sentence) for oddity in oddities(Careless, Filter)), list(oddities(Careless, Filter))


def test_slip_of_an_agent_is_told() -> None:
    assert [oddity.partition(":")[0] for oddity in oddities(Agent, DeliveryAgent)] == [
        "verify cannot be called with (self, recipient, mail)"
    ]
