"""What a client leaves behind: nothing, and at once.

What is there when the server sets aside what lasts (`gc.freeze`) is never looked at by the garbage collector, until
the next reload; so what ends must not wait for it.
"""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest

from smtpd.channel import Channel
from smtpd.endings import Ended
from smtpd.memory import MemoryTransport


class Client:
    """A channel whose conversation is written in the test, and what that holds on to."""

    def __init__(self) -> None:
        self.channel = Channel(MemoryTransport(), asyncio.get_running_loop())
        self.is_over = asyncio.Event()
        self.channel.on_finished = self.is_over.set

    def begin(self, conversation: Callable[[Channel, set[int]], object]) -> weakref.ref[set[int]]:
        """Start it; what is returned is empty as soon as nothing is left."""
        memory: set[int] = set()

        async def ended() -> None:
            with suppress(Ended, OSError):
                await conversation(self.channel, memory)  # type: ignore[misc]
            memory.add(1)

        self.channel.start(ended())
        return weakref.ref(memory)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    client = Client()
    gc.disable()
    yield client
    gc.enable()


def silence(_: Channel) -> None:
    """Leave it to time."""


@pytest.mark.parametrize("end", [Channel.lost, Channel.feed_eof, Channel.interrupt, silence])
async def test_conversation_that_waited_for_its_client(client: Client, end: Callable[[Channel], None]) -> None:
    async def conversation(channel: Channel, _: set[int]) -> None:
        await channel.line(0.01, idle=True)

    memory = client.begin(conversation)
    end(client.channel)
    await client.is_over.wait()
    assert memory() is None


async def test_conversation_that_ran_something_which_failed(client: Client) -> None:
    async def fail(_: set[int]) -> None:
        await asyncio.sleep(0)
        raise ConnectionResetError

    async def conversation(channel: Channel, memory: set[int]) -> None:
        await channel.run(fail(memory))

    memory = client.begin(conversation)
    await client.is_over.wait()
    await asyncio.sleep(0)  # the turn of the event loop in which the task has ended
    assert memory() is None


async def test_client_that_was_lost_while_something_ran(client: Client) -> None:
    async def wait(_: set[int]) -> None:
        await asyncio.Event().wait()

    async def conversation(channel: Channel, memory: set[int]) -> None:
        await channel.run(wait(memory))

    memory = client.begin(conversation)
    client.channel.lost()
    await client.is_over.wait()
    await asyncio.sleep(0)
    assert memory() is None
