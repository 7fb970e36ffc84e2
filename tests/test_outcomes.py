"""Every mix of outcomes, every kind of retry: what the sender hears, who has the message, and that both agree."""

from collections.abc import AsyncIterator
from itertools import product
from typing import Literal

import pytest
from outcomes import FATES, ROUNDS, Fate, Guarantee, Mailstore, Model, Protocol, Sender, names
from stage import Stage

Resend = Literal["again", "neighbour", "neighbour-v6", "elsewhere"]

# Where the first attempt comes from, and where the others do.
PLACES: dict[Resend, tuple[str, str]] = {
    "again": ("192.0.2.1", "192.0.2.1"),
    "neighbour": ("192.0.2.1", "192.0.2.200"),
    "neighbour-v6": ("2001:db8::1", "2001:db8::ff:1"),
    "elsewhere": ("192.0.2.1", "198.51.100.1"),
}
PROTOCOLS: tuple[Protocol, ...] = ("smtp", "prdr", "lmtp")
GUARANTEES: tuple[Guarantee, ...] = ("at-least-once", "at-most-once")
MIXES = [mix for count in (2, 3) for mix in product(FATES, repeat=count)]


class Case:
    """One message to recipients whose fate is known; `words` are the last ones that its sender has heard of each."""

    def __init__(self, stage: Stage, store: Mailstore, model: Model, number: int) -> None:
        self.store = store
        self.model = model
        self.number = number
        self.sender = Sender(stage, model.protocol, f"joe{number}@client.test")
        self.words = dict.fromkeys(model.fates, "4")

    async def send(self, first: str, then: str) -> None:
        """Try until every recipient has a final word."""
        await self.attempt("one", first)
        for _ in range(ROUNDS - 1):
            await self.attempt("one", then)

    async def attempt(self, message: str, place: str) -> None:
        """Try once, for those whose last word was to try again."""
        recipients = [name for name, word in self.words.items() if word == "4"]
        if not recipients:
            return
        content = f"From: joe@client.test\r\nMessage-ID: <{message}.{self.number}@client.test>\r\n\r\nHi\r\n".encode()
        expected = self.model.attempt(recipients, network(place))
        heard = await self.sender.attempt(recipients, content, place)
        assert heard == expected, self
        self.words |= {name: heard.word(name) for name in recipients}
        assert self.store.copies == {name: self.model.copies.get(name, 0) for name in self.words}, self

    def begin_anew(self) -> None:
        """The author has heard nothing good, and writes the same to the same people again."""
        self.model.other_message()
        self.words = dict.fromkeys(self.words, "4")

    def __repr__(self) -> str:
        return f"{self.model.fates} {self.words} {self.store.copies}"


async def every_mix(protocol: Protocol, guarantee: Guarantee) -> AsyncIterator[Case]:
    """Every case, one after another, on one server."""
    store = Mailstore()
    listener = {"mode": "lmtp"} if protocol == "lmtp" else None
    async with Stage(answer=store.answer, listener=listener, tables={"delivery": {"guarantee": guarantee}}) as stage:
        for number, mix in enumerate(MIXES):
            store.open(mix)
            yield Case(stage, store, Model(protocol, guarantee, dict(zip(names(mix), mix, strict=True))), number)


def network(place: str) -> str:
    return place.rpartition(".")[0] or place.partition("::")[0]


def agrees(word: str, fate: Fate, copies: int, guarantee: Guarantee) -> bool:
    """Whether what the sender heard last is what is true, as far as anybody knows."""
    if fate in ("nobody", "full", "spam"):
        return word == "5" and copies == 0
    if fate not in ("kept", "lost"):
        return word == "2" and copies == 1
    if guarantee == "at-most-once":
        return word == "5" and copies == (fate == "kept")
    return word == "2" and copies == (2 if fate == "kept" else 1)


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("resend", PLACES)
async def test_everybody_gets_one_copy_and_the_sender_learns_the_truth(
    resend: Resend, protocol: Protocol, guarantee: Guarantee
) -> None:
    async for case in every_mix(protocol, guarantee):
        await case.send(*PLACES[resend])
        for name, fate in case.model.fates.items():
            assert agrees(case.words[name], fate, case.store.copies[name], guarantee), case


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_message_that_its_author_sends_again_is_delivered_again(protocol: Protocol, guarantee: Guarantee) -> None:
    async for case in every_mix(protocol, guarantee):
        await case.attempt("one", "192.0.2.1")
        case.begin_anew()
        await case.attempt("two", "192.0.2.1")
        await case.attempt("two", "192.0.2.1")
        for name, fate in case.model.fates.items():
            copies = {"taken": 2, "kept": 2, "later": 1, "lost": 1}.get(fate, 0)
            assert (case.words[name], case.store.copies[name]) == ("2" if copies else "5", copies), case
