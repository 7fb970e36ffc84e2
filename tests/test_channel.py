"""The channel between octets and a conversation: lines, limits, back-pressure, time, and clients that go away."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

import pytest

from smtpd import channel
from smtpd.channel import HIGH_WATER, Channel
from smtpd.content import Content, DataReceiver
from smtpd.endings import Disconnected, Draining, Overrun, TimedOut
from smtpd.limits import ContentBudget
from smtpd.memory import MemoryTransport
from smtpd.replies import Refused


class Line:
    """A channel whose conversation is written in the test; what it ended with, and what it read."""

    def __init__(self) -> None:
        self.transport = MemoryTransport()
        self.channel = Channel(self.transport, asyncio.get_running_loop())
        self.read: list[bytes | str] = []
        self.end: BaseException | None = None
        self.is_over = asyncio.Event()
        self.channel.on_finished = self.is_over.set

    def start(self, conversation: Coroutine[Any, Any, None]) -> None:
        async def caught() -> None:
            try:
                await conversation
            except (Disconnected, TimedOut, Draining, RuntimeError) as end:
                self.end = end

        self.channel.start(caught())

    async def echo(self, *, timeout: float = 0, idle: bool = True) -> None:
        """Read lines for ever; a refusal is noted as a word."""
        while True:
            try:
                self.read.append(await self.channel.line(timeout, idle=idle))
            except Refused as refusal:
                self.read.append(refusal.reply.key)
            self.channel.write(b"%d\r\n" % len(self.read))


@pytest.fixture
async def line() -> Line:
    return Line()


async def test_content_that_was_received_is_not_kept_while_the_client_is_idle(line: Line) -> None:
    async def conversation() -> None:
        await line.channel.receive(DataReceiver(Content(ContentBudget(0), 0), 0, 0, "reject"), 0, 0)
        await line.echo()

    octets = b"x" * 998 + b"\r\n.\r\n"
    before = sys.getrefcount(octets)
    line.start(conversation())
    line.channel.feed(octets)
    assert line.channel.is_listening
    assert sys.getrefcount(octets) == before


@pytest.mark.parametrize("piece", [1, 2, 3, 1000])
async def test_only_crlf_ends_a_line(line: Line, piece: int) -> None:
    octets = b"one\r\n\r\ntwo\nstill\rtwo\r\r\nthree\r\n"
    line.start(line.echo())
    for start in range(0, len(octets), piece):
        line.channel.feed(octets[start : start + piece])
    assert line.read == [b"one", b"", b"two\nstill\rtwo\r", b"three"]


@pytest.mark.parametrize("piece", [1, 7, 512, 100_000])
async def test_a_long_line_is_answered_once_and_not_kept(line: Line, piece: int) -> None:
    octets = b"NOOP " + b"x" * 50_000 + b"\r\nNOOP\r\n"
    most = 0
    line.start(line.echo())
    for start in range(0, len(octets), piece):
        line.channel.feed(octets[start : start + piece])
        most = max(most, len(line.channel.pending_octets))
    assert line.read == ["line-too-long", b"NOOP"]
    assert most <= 512


async def test_replies_of_a_burst_leave_together(line: Line) -> None:
    line.start(line.echo())
    line.channel.feed(b"a\r\nb\r\nc\r\nd")
    line.channel.feed(b"\r\n")
    assert line.transport.writes == [b"1\r\n2\r\n3\r\n", b"4\r\n"]


async def test_a_client_that_does_not_read_is_not_read(line: Line) -> None:
    """However much it pipelines: what is unread stays small, and what is unsaid stays unsaid."""
    line.start(line.echo())
    line.channel.blocked(True)
    fed = 0
    while not line.transport.is_paused:
        line.channel.feed(b"NOOP\r\n" * 1000)
        fed += 6000
        assert fed <= HIGH_WATER + 6000
    assert not line.read
    line.channel.blocked(False)
    async with asyncio.timeout(10):
        while len(line.read) < fed // 6:  # noqa: ASYNC110 - others have their turn in between
            await asyncio.sleep(0)
    assert not line.transport.is_paused
    assert not line.channel.pending


@pytest.mark.parametrize("half_closed", [False, True])
async def test_a_burst_of_commands_stops_when_its_replies_are_not_read(half_closed: bool) -> None:
    """Replies can be many times as long as commands: they must not pile up until a whole burst is done."""
    line = Line()
    line.start(line.echo())
    send = line.transport.write

    def block_when_sent(data: bytes) -> None:
        send(data)
        line.channel.blocked(True)

    line.transport.write = block_when_sent  # type: ignore[method-assign]
    line.channel.feed(b"NOOP\r\n" * 10_000)
    assert len(line.read) < 1000
    if half_closed:
        line.channel.feed(b"QUIT\r\n")
        line.channel.feed_eof()
    while line.end is None and line.channel.pending:
        line.channel.blocked(False)
        await asyncio.sleep(0)
    assert len(line.read) == 10_000 + half_closed
    assert max(map(len, line.transport.writes)) < HIGH_WATER


async def test_a_long_burst_of_commands_lets_others_have_their_turn(line: Line) -> None:
    line.start(line.echo())
    line.channel.feed(b"NOOP\r\n" * 10_000)
    assert len(line.read) < 1000
    async with asyncio.timeout(10):
        while line.channel.pending:  # noqa: ASYNC110 - it goes on by itself
            await asyncio.sleep(0)
    assert len(line.read) == 10_000


async def test_octets_wait_while_something_runs(line: Line) -> None:
    go_on = asyncio.Event()

    async def conversation() -> None:
        line.read.append(await line.channel.line(0))
        await line.channel.run(_wait_for(go_on))
        line.read.append(await line.channel.line(0))

    line.start(conversation())
    line.channel.feed(b"one\r\n")
    for _ in range(100):
        if not line.transport.is_paused:
            line.channel.feed(b"two\r\n" * 1000)
    assert len(line.channel.pending_octets) <= HIGH_WATER + 5000
    assert line.read == [b"one"]
    go_on.set()
    await line.is_over.wait()
    assert line.read == [b"one", b"two"]


async def _wait_for(event: asyncio.Event) -> str:
    await event.wait()
    return "done"


async def test_silence_times_out(line: Line) -> None:
    line.start(line.echo(timeout=0.02))
    await line.is_over.wait()
    assert isinstance(line.end, TimedOut)
    assert not line.end.too_slow


async def test_silence_times_out_when_the_timer_has_looked_before(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks every minute, and most times are longer than that."""
    monkeypatch.setattr(channel, "_LOOK", 0.005)
    line.start(line.echo(timeout=0.03))
    async with asyncio.timeout(10):
        await line.is_over.wait()
    assert isinstance(line.end, TimedOut)


async def test_content_may_take_any_time_where_that_is_not_limited(line: Line) -> None:
    line.start(line.channel.receive(DataReceiver(Content(ContentBudget(0), 0), 0, 0, "reject"), 0, 0))
    for octets in (b"x", b"y\r\n"):
        line.channel.feed(octets)
        await asyncio.sleep(0.01)
        assert line.channel.is_listening
    line.channel.feed(b".\r\n")
    assert line.is_over.is_set()
    assert line.end is None


async def test_a_line_in_many_small_pieces_has_no_more_time(line: Line) -> None:
    line.start(line.echo(timeout=0.05))
    ended = asyncio.create_task(line.is_over.wait())
    while not ended.done():
        line.channel.feed(b"x")
        await asyncio.wait([ended], timeout=0.01)
        assert len(line.channel.pending_octets) <= 512
    assert isinstance(line.end, TimedOut)


async def test_each_line_has_its_own_time(line: Line) -> None:
    line.start(line.echo(timeout=0.05))
    for _ in range(5):
        await asyncio.sleep(0.02)
        line.channel.feed(b"x\r\n")
    assert line.end is None
    assert len(line.read) == 5
    line.channel.lost()


async def test_nobody_is_timed_out_while_we_work(line: Line) -> None:
    go_on = asyncio.Event()

    async def conversation() -> None:
        await line.channel.line(0.01)
        line.read.append(await line.channel.run(_wait_for(go_on)))

    line.start(conversation())
    line.channel.feed(b"x\r\n")
    await asyncio.sleep(0.03)
    go_on.set()
    await line.is_over.wait()
    assert line.read == ["done"]


async def test_what_took_too_long_ends_without_disturbing_what_runs_then(line: Line) -> None:
    late, next_one = asyncio.Event(), asyncio.Event()

    async def conversation() -> None:
        try:
            await line.channel.run(_wait_for(late), finish=True, seconds=0.01)
        except Overrun as overrun:
            line.channel.write(b"451\r\n")
            overrun.task.add_done_callback(lambda _: next_one.set())
        line.read.append(await line.channel.run(_wait_for(next_one)))

    line.start(conversation())
    await asyncio.sleep(0.03)
    late.set()
    await line.is_over.wait()
    assert (line.read, line.end) == (["done"], None)


@pytest.mark.parametrize(("idle", "now", "ends"), [(True, False, True), (False, False, False), (False, True, True)])
async def test_draining_waits_for_a_transaction(line: Line, idle: bool, now: bool, ends: bool) -> None:
    line.start(line.echo(idle=idle))
    line.channel.interrupt(now=now)
    assert isinstance(line.end, Draining) == ends
    line.channel.lost()


async def test_draining_reaches_a_conversation_when_it_becomes_idle(line: Line) -> None:
    async def conversation() -> None:
        line.read.append(await line.channel.line(0))
        await line.channel.line(0, idle=True)

    line.start(conversation())
    line.channel.interrupt()
    line.channel.feed(b"one\r\ntwo\r\n")
    assert isinstance(line.end, Draining)
    assert line.read == [b"one"]


@pytest.mark.parametrize("finish", [False, True])
async def test_draining_now_cancels_what_is_not_a_delivery_and_says_so(line: Line, finish: bool) -> None:
    go_on = asyncio.Event()

    async def conversation() -> None:
        line.read.append(await line.channel.run(_wait_for(go_on), finish=finish))

    line.start(conversation())
    line.channel.interrupt(now=True)
    await asyncio.sleep(0)
    go_on.set()
    await line.is_over.wait()
    assert (line.read == ["done"]) == finish
    assert isinstance(line.end, Draining) != finish


async def test_what_runs_may_fail(line: Line) -> None:
    async def broken() -> None:
        await asyncio.sleep(0)
        raise RuntimeError("broken")

    line.start(line.channel.run(broken()))
    await line.is_over.wait()
    assert str(line.end) == "broken"


async def test_nothing_begins_for_a_client_that_is_gone(line: Line) -> None:
    began: list[bool] = []

    async def work() -> None:
        began.append(True)

    async def conversation() -> None:
        await line.channel.line(0)
        await line.channel.run(work())

    line.channel.feed(b"one\r\n")
    line.channel.lost()
    line.start(conversation())
    assert isinstance(line.end, Disconnected)
    assert not began


@pytest.mark.parametrize(("behind", "answered"), [(b"", False), (b"QUIT\r\n", True), (b"NOOP\r\nquit\r\n", True)])
async def test_half_closed_behind_quit_is_no_loss(line: Line, behind: bytes, answered: bool) -> None:
    go_on = asyncio.Event()

    async def conversation() -> None:
        await line.channel.line(0)
        line.read.append(await line.channel.run(_wait_for(go_on)))
        line.channel.write(b"done\r\n")
        line.channel.close()

    line.start(conversation())
    line.channel.feed(b"one\r\n" + behind)
    line.channel.feed_eof()
    go_on.set()
    await line.is_over.wait()
    assert (line.read == ["done"]) == answered
    assert line.transport.writes == ([b"done\r\n"] if answered else [])


async def test_content_is_drained_for_a_limited_time(line: Line) -> None:
    content = Content(ContentBudget(0), in_memory=1000)
    receiver = DataReceiver(content, max_size=0, max_line=1000, bare="reject")

    async def conversation() -> None:
        await line.channel.receive(receiver, 0, 0)
        line.channel.write(b"no\r\n")
        await line.channel.drain(receiver, 0.03)

    line.start(conversation())
    line.channel.feed(b"one\ntwo")
    assert line.transport.writes == [b"no\r\n"], "the refusal is said at once"
    line.channel.feed(b"more and more")
    assert not line.is_over.is_set()
    await line.is_over.wait()
    assert line.end is None


async def test_listening_sees_who_speaks_first(line: Line) -> None:
    async def conversation() -> None:
        line.read.append(str(await line.channel.listen(0.02)))
        line.read.append(str(await line.channel.listen(60)))

    line.start(conversation())
    while not line.read:  # noqa: ASYNC110 - the timer is a real one
        await asyncio.sleep(0.01)
    line.channel.feed(b"EHLO")
    assert line.read == ["False", "True"]
