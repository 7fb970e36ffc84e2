"""What comes in one turn of the event loop is handled behind all reading, and answered behind all handling."""

import asyncio
from contextlib import suppress

from smtpd.channel import Channel
from smtpd.endings import Disconnected, TimedOut
from smtpd.memory import MemoryTransport
from smtpd.turn import Turn


class Peer:
    """A conversation that repeats every line until QUIT, and waits for the end of a turn."""

    def __init__(self, turn: Turn, seconds: float = 0.0) -> None:
        self.transport = MemoryTransport()
        self.heard: list[bytes] = []
        self.channel = Channel(self.transport, asyncio.get_running_loop(), turn)
        self.channel.start(self._repeat(seconds))

    async def _repeat(self, seconds: float) -> None:
        with suppress(Disconnected, TimedOut):
            while self.heard[-1:] != [b"QUIT"]:
                self.heard.append(await self.channel.line(seconds))
                self.channel.write(self.heard[-1] + b"\r\n")
            self.channel.close()


async def test_what_came_is_handled_when_everything_was_read_and_answered_when_everything_was_handled() -> None:
    turn, order = Turn(), list[tuple[int, bytes, int]]()
    peers = [Peer(turn) for _ in range(3)]
    for number, peer in enumerate(peers):
        peer.transport.write = lambda data, number=number: order.append(  # type: ignore[misc]
            (number, data, sum(len(peer.heard) for peer in peers))
        )
    for number in (2, 0, 1):
        peers[number].channel.feed(b"NOOP\r\n")
        assert not peers[number].heard
    assert not order
    await asyncio.sleep(0)
    assert order == [(2, b"NOOP\r\n", 3), (0, b"NOOP\r\n", 3), (1, b"NOOP\r\n", 3)]


async def test_what_comes_twice_in_one_turn_is_answered_in_one_write() -> None:
    peer = Peer(Turn())
    peer.channel.feed(b"NOOP\r\n")
    peer.channel.feed(b"RSET\r\n")
    await asyncio.sleep(0)
    assert peer.transport.writes == [b"NOOP\r\nRSET\r\n"]


async def test_what_waits_for_the_end_of_a_turn_is_not_read_by_a_client_that_goes_on() -> None:
    """At-most-once forgets a message when the client has read of its fate, and no earlier."""
    peer = Peer(Turn())
    before = peer.channel.flushes
    peer.channel.feed(b"NOOP\r\n")
    peer.channel.feed(b"RSET\r\n")
    assert not peer.channel.was_read(before)
    await asyncio.sleep(0)
    assert not peer.channel.was_read(before)
    peer.channel.feed(b"NOOP\r\n")
    assert peer.channel.was_read(before)


async def test_much_content_at_once_does_not_wait_in_memory_for_others() -> None:
    peer = Peer(Turn())
    peer.channel.feed(b"NOOP\r\n")
    assert not peer.heard
    peer.channel.feed(b"NOOP\r\n" + b"RSET\r\n" * 4000)
    assert peer.heard[:3] == [b"NOOP", b"NOOP", b"RSET"]


async def test_last_words_do_not_wait_for_others() -> None:
    turn, order = Turn(), list[int]()
    peers = [Peer(turn) for _ in range(3)]
    for number, peer in enumerate(peers):
        peer.transport.write = lambda data, number=number: order.append(number)  # type: ignore[misc]
    for peer, line in zip(peers, (b"NOOP\r\n", b"QUIT\r\n", b"NOOP\r\n"), strict=True):
        peer.channel.feed(line)
    await asyncio.sleep(0)
    assert order == [1, 0, 2]
    assert peers[1].transport.is_closed


async def test_what_came_before_the_end_of_a_client_is_handled_before_it() -> None:
    peer = Peer(Turn())
    peer.channel.feed(b"NOOP\r\nQUIT\r\n")
    peer.channel.feed_eof()
    await asyncio.sleep(0)
    assert peer.heard == [b"NOOP", b"QUIT"]
    assert peer.transport.writes == [b"NOOP\r\nQUIT\r\n"]


async def test_a_client_that_ends_behind_half_a_line_is_gone() -> None:
    peer = Peer(Turn())
    ends = list[bool]()
    peer.channel.on_finished = lambda: ends.append(True)
    peer.channel.feed(b"NOOP\r\nNO")
    peer.channel.feed_eof()
    await asyncio.sleep(0)
    assert (peer.heard, ends) == ([b"NOOP"], [True])


async def test_of_a_client_that_is_lost_before_the_end_of_the_turn_nothing_is_handled() -> None:
    """It heard nothing, and will say everything again: what is delivered now would be delivered twice."""
    peer = Peer(Turn())
    peer.channel.feed(b"NOOP\r\n")
    peer.channel.lost()
    await asyncio.sleep(0)
    assert not peer.heard
    assert not peer.transport.writes


async def test_a_client_that_reads_nothing_is_not_handled_until_it_does() -> None:
    channel, heard = Channel(MemoryTransport(), asyncio.get_running_loop(), Turn()), list[bool]()

    async def listen() -> None:
        heard.append(await channel.listen(60.0))

    channel.start(listen())
    channel.feed(b"NOOP\r\n")
    channel.blocked(True)
    await asyncio.sleep(0)
    assert not heard
    channel.blocked(False)
    assert heard == [True]


async def test_a_client_that_never_reads_is_late_although_it_spoke_in_time() -> None:
    peer = Peer(Turn(), 0.001)
    over = asyncio.Event()
    peer.channel.on_finished = over.set
    peer.channel.feed(b"NOOP\r\n")
    peer.channel._on_timer()
    peer.channel.blocked(True)
    await asyncio.wait_for(over.wait(), 10.0)
    assert not peer.heard


async def test_who_spoke_in_time_is_not_late_because_others_are_read_first() -> None:
    peer = Peer(Turn(), 0.001)  # as good as over
    peer.channel.feed(b"NOOP\r\n")
    peer.channel._on_timer()
    await asyncio.sleep(0)
    assert peer.heard == [b"NOOP"]


async def test_one_that_breaks_takes_no_other_with_it() -> None:
    def broken(data: bytes) -> None:
        raise OSError("no socket any more")

    turn, problems = Turn(), list[Exception]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context["exception"]))
    peers = [Peer(turn) for _ in range(3)]
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
