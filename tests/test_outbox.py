"""What is said in one turn of the event loop leaves at its end."""

import asyncio
from contextlib import suppress

from smtpd.channel import Channel
from smtpd.endings import Disconnected
from smtpd.memory import MemoryTransport
from smtpd.outbox import Outbox


class Peer:
    """A conversation that repeats every line, and whose replies go through an outbox."""

    def __init__(self, outbox: Outbox) -> None:
        self.transport = MemoryTransport()
        self.channel = Channel(self.transport, asyncio.get_running_loop(), outbox)
        self.channel.start(self._repeat())

    async def _repeat(self) -> None:
        with suppress(Disconnected):
            while True:
                self.channel.write(await self.channel.line(0) + b"\r\n")


async def test_replies_wait_for_the_end_of_the_turn_and_leave_in_order() -> None:
    outbox, order = Outbox(), list[tuple[int, bytes]]()
    peers = [Peer(outbox) for _ in range(3)]
    for number, peer in enumerate(peers):
        peer.transport.write = lambda data, number=number: order.append((number, data))  # type: ignore[misc]
    for number in (2, 0, 1):
        peers[number].channel.feed(b"NOOP\r\n")
    assert not order
    await asyncio.sleep(0)
    assert order == [(2, b"NOOP\r\n"), (0, b"NOOP\r\n"), (1, b"NOOP\r\n")]


async def test_what_comes_twice_in_one_turn_is_answered_in_one_write() -> None:
    peer = Peer(Outbox())
    peer.channel.feed(b"NOOP\r\n")
    peer.channel.feed(b"RSET\r\n")
    await asyncio.sleep(0)
    assert peer.transport.writes == [b"NOOP\r\nRSET\r\n"]


async def test_what_waits_in_the_outbox_is_not_read_by_a_client_that_goes_on() -> None:
    """At-most-once forgets a message when the client has read of its fate, and no earlier."""
    peer = Peer(Outbox())
    before = peer.channel.flushes
    peer.channel.feed(b"NOOP\r\n")
    peer.channel.feed(b"RSET\r\n")
    assert not peer.channel.was_read(before)
    await asyncio.sleep(0)
    assert not peer.channel.was_read(before)
    peer.channel.feed(b"QUIT\r\n")
    assert peer.channel.was_read(before)


async def test_last_words_do_not_wait() -> None:
    peer = Peer(Outbox())
    peer.channel.feed(b"NOOP\r\n")
    peer.channel.close()
    assert peer.transport.writes == [b"NOOP\r\n"]
    assert peer.transport.is_closed
    await asyncio.sleep(0)
    assert peer.transport.writes == [b"NOOP\r\n"]


async def test_who_is_lost_before_the_end_of_the_turn_hears_nothing() -> None:
    peer = Peer(Outbox())
    peer.channel.feed(b"NOOP\r\n")
    peer.channel.lost()
    await asyncio.sleep(0)
    assert not peer.transport.writes


async def test_one_that_breaks_takes_no_other_with_it() -> None:
    def broken(data: bytes) -> None:
        raise OSError("no socket any more")

    outbox, problems = Outbox(), list[Exception]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context["exception"]))
    peers = [Peer(outbox) for _ in range(3)]
    peers[1].transport.write = broken  # type: ignore[method-assign]
    for peer in peers:
        peer.channel.feed(b"NOOP\r\n")
    for _ in range(3):
        await asyncio.sleep(0)
    assert [peer.transport.writes for peer in peers] == [[b"NOOP\r\n"], [], [b"NOOP\r\n"]]
    assert [str(problem) for problem in problems] == ["no socket any more"]
    peers[0].channel.feed(b"RSET\r\n")
    await asyncio.sleep(0)
    assert peers[0].transport.writes == [b"NOOP\r\n", b"RSET\r\n"]
