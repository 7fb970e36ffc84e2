"""The conversation where dialog files cannot look: mistakes of ours, clients that vanish, limits, memory, one write."""

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import pytest
from stage import CONTENT, ENVELOPE, GREETING, Answer, Stage, codes

from smtpd import replies
from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.options import FilterOptions, StageName
from smtpd.policy import PASS, Filter, Verdict
from smtpd.replies import Reply

TRACE = re.compile(rb" \[[0-9A-Z]{16}\]\r\n$")
SENT = b"DATA\r\n" + CONTENT + b".\r\n"


class Waiting:
    """Something of ours that takes its time: it says when it has begun, and goes on when it is let."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.was_cancelled = False

    async def wait(self) -> None:
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


def slow_agent(waiting: Waiting) -> Answer:
    async def answer(mail: Transaction, message: Message) -> Reply:
        await waiting.wait()
        return replies.ACCEPTED

    return answer


def slow_filter(waiting: Waiting) -> type[Filter]:
    class Slow(Filter):
        name = "slow"

        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            await waiting.wait()
            return PASS

    return Slow


class BrokenAtRcpt(Filter):
    name = "broken"

    async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
        raise RuntimeError("filter bug")


async def test_agent_that_breaks_is_451_and_the_connection_lives_on() -> None:
    async def broken(mail: Transaction, message: Message) -> Reply:
        raise RuntimeError("agent bug")

    async with Stage(answer=broken) as server:
        talk = await server.ready()
        await talk.say(b"DATA\r\n")
        said = await talk.say(CONTENT + b".\r\n")
        assert said.startswith(b"451 4.3.0 ")
        assert TRACE.search(said)
        assert b"agent bug" not in said
        assert await talk.say(b"NOOP\r\n") == b"250 2.0.0 Ok\r\n"
        (failure,) = server.events("delivery-failed")
    assert "agent bug" in failure["exception"]


async def test_filter_that_breaks_never_refuses() -> None:
    async with Stage(filters={"broken": BrokenAtRcpt}) as server:
        await server.ready()
        (failure,) = server.events("filter-failed")
    assert "filter bug" in failure["exception"]


class Broken:
    """A part of ours with a bug, whatever it is asked."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("our bug")


class BrokenBudget:
    def take(self, octets: int) -> bool:
        raise RuntimeError("our bug")

    def give(self, octets: int) -> None: ...


@pytest.mark.parametrize(
    ("part", "before", "line"),
    [
        ("authenticator", b"HELO client.test\r\n", b"EHLO client.test\r\n"),
        ("router", b"EHLO client.test\r\nMAIL FROM:<joe@client.test>\r\n", b"RCPT TO:<ann@example.test>\r\n"),
    ],
)
async def test_bug_of_ours_is_451_with_a_trace_and_one_traceback(part: str, before: bytes, line: bytes) -> None:
    async with Stage() as server:
        talk = server.talk(**{part: Broken()})
        await talk.say(before)
        said = await talk.say(line)
        assert said.startswith(b"451 4.3.0 Something went wrong here")
        assert TRACE.search(said)
        assert b"our bug" not in said
        (failure,) = server.events("our-fault")
        assert failure["trace"].encode() in said
        assert failure["exception"].count("RuntimeError: our bug") == 1
        assert await talk.say(b"NOOP\r\n") == b"250 2.0.0 Ok\r\n"


@pytest.mark.parametrize("framed", [b"DATA\r\n%b.\r\n", b"BDAT %d LAST\r\n%b"])
async def test_content_is_not_taken_for_commands_after_a_bug(framed: bytes) -> None:
    content = b"x" * 100 + b"\r\nMAIL FROM:<evil@client.test>\r\n"
    octets = framed % content if b"%d" not in framed else framed % (len(content), content)
    async with Stage() as server:
        talk = server.talk(budget=BrokenBudget())
        await talk.say(ENVELOPE)
        said = await talk.say(octets[:50])
        said += await talk.say(octets[50:])
        assert codes(said)[-1] == "451"
        assert talk.is_over


@pytest.mark.parametrize("politely", [False, True], ids=["lost", "half-closed"])
async def test_client_that_vanishes_during_filtering_gets_nothing_delivered(politely: bool) -> None:
    waiting = Waiting()
    async with Stage(filters={"slow": slow_filter(waiting)}) as server:
        talk = await server.ready()
        sending = asyncio.create_task(talk.say(SENT))
        await waiting.begun.wait()
        await talk.hang_up(politely=politely)
        assert waiting.was_cancelled
        assert not server.kept
        await sending
        assert server.events("client-lost")
        assert not server.events("our-fault") + server.events("filter-failed")


async def test_client_that_vanishes_at_mail_cancels_what_nobody_waited_for() -> None:
    early, late = Waiting(), Waiting()

    class AtMail(FilterOptions):
        act_at: StageName | None = "mail"

    class AwaitedNow(Filter):
        Options = AtMail

        async def on_mail(self, mail: Transaction) -> Verdict:
            await early.wait()
            return PASS

    class AwaitedLater(Filter):
        async def on_mail(self, mail: Transaction) -> Verdict:
            await late.wait()
            return PASS

    async with Stage(filters={"now": AwaitedNow, "later": AwaitedLater}) as server:
        talk = server.talk()
        asking = asyncio.create_task(talk.say(ENVELOPE))
        await early.begun.wait()
        await talk.hang_up()
        await asking
        await asyncio.sleep(0)
        assert early.was_cancelled
        assert late.was_cancelled


@pytest.mark.parametrize("politely", [False, True], ids=["lost", "half-closed"])
async def test_delivery_that_has_begun_is_finished(politely: bool) -> None:
    waiting = Waiting()
    async with Stage(answer=slow_agent(waiting)) as server:
        talk = await server.ready()
        sending = asyncio.create_task(talk.say(SENT + b"RSET\r\n" + ENVELOPE.partition(b"\r\n")[2] + SENT))
        await waiting.begun.wait()
        ending = asyncio.create_task(talk.hang_up(politely=politely))
        await asyncio.sleep(0)
        assert not waiting.was_cancelled
        waiting.go_on.set()
        await ending
        await sending
        assert len(server.kept) == 1, "what was sent behind it must not be delivered: nobody hears the answer"


async def test_transaction_of_a_vanished_client_is_told_to_filters() -> None:
    told: list[object] = []

    class Watching(Filter):
        name = "watching"

        async def on_end(self, mail: Transaction, outcome: Reply | None) -> None:
            told.append(outcome)

        async def on_close(self, session: Session) -> None:
            told.append("closed")

    async with Stage(filters={"watching": Watching}) as server:
        talk = await server.ready()
        await talk.hang_up()
    assert told == [None, "closed"]


async def test_client_that_leaves_after_a_lone_line_end_has_heard_its_refusal() -> None:
    told: list[Reply | None] = []

    class Watching(Filter):
        name = "watching"

        async def on_end(self, mail: Transaction, outcome: Reply | None) -> None:
            told.append(outcome)

    async with Stage(filters={"watching": Watching}) as server:
        talk = await server.ready()
        await talk.say(b"DATA\r\none\ntwo\r\n")
        await talk.hang_up()
    assert told == [replies.BARE_LINE_END]


async def test_smtputf8_is_offered_only_while_the_agents_can_carry_it() -> None:
    """An agent learns from the server behind it whether that takes such mail, at its start or later."""
    async with Stage() as server:
        agent = server.service.agents["keeper"]
        talk = server.talk()
        for carries in (True, False, True):
            agent.carries_utf8 = carries
            assert (b"SMTPUTF8" in await talk.say(b"EHLO client.test\r\n")) is carries
            said = await talk.say("MAIL FROM:<jürgen@client.test> SMTPUTF8\r\n".encode())
            assert said.startswith(b"250 " if carries else b"555 ")
        agent.carries_utf8 = False
        assert (await talk.say(b"RCPT TO:<ann@example.test>\r\n")).startswith(b"553 5.6.7 ")


async def test_replies_of_a_burst_leave_in_one_write() -> None:
    async with Stage() as server:
        talk = server.talk()
        await talk.hear()
        said = talk.say(ENVELOPE + b"RCPT TO:<bob@example.test>\r\nDATA\r\n")
        writes: list[bytes] = []
        talk.transport.write = writes.append  # type: ignore[method-assign]
        await said
        assert len(writes) == 1
        assert codes(writes[0]) == ["250", "250", "250", "250", "354"]
        writes.clear()
        await talk.say(CONTENT + b".\r\n" + b"NOOP\r\n" * 3 + b"QUIT\r\n")
        assert len(writes) == 1
        assert codes(writes[0]) == ["250", "250", "250", "250", "221"]


async def test_big_content_spills_to_disk_and_leaves_nothing_there(tmp_path: Path) -> None:
    big = b"From: joe@client.test\r\n\r\n" + (b"x" * 98 + b"\r\n") * 20
    tables = {"spool": str(tmp_path), "limits": {"content_in_memory": 1000}}
    async with Stage(tables=tables) as server:
        descriptors = len(os.listdir("/proc/self/fd"))
        talk = await server.ready()
        await talk.say(b"DATA\r\n")
        await talk.say(big + b".\r\n", piece=100)
        assert [(kept.received, kept.spilled) for kept in server.kept] == [(big, True)]
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert not os.listdir(tmp_path)


async def test_all_sessions_share_the_memory_for_content() -> None:
    tables = {"limits": {"memory_for_content": 100}}
    async with Stage(tables=tables) as server:
        first, second, third = await server.ready(), await server.ready(), await server.ready()
        for talk in (first, second):
            await talk.say(b"DATA\r\n" + b"x" * 58 + b"\r\n")
        await second.say(b".\r\n")
        await first.say(b".\r\n")
        await third.say(b"DATA\r\n" + b"x" * 58 + b"\r\n.\r\n")
        assert [kept.spilled for kept in server.kept] == [True, False, False]


async def test_memory_for_content_comes_back_however_it_ends() -> None:
    tables = {"limits": {"memory_for_content": 1000, "content_in_memory": 1000}, "max_message_size": 300}
    async with Stage(tables=tables) as server:
        for ending in (b".\r\n", b"lone\nend\r\n.\r\n", b"x" * 400 + b"\r\n.\r\n", None):
            talk = await server.ready()
            await talk.say(b"DATA\r\n" + b"y" * 200 + b"\r\n")
            assert server.service.budget.used  # type: ignore[attr-defined]
            await (talk.hang_up() if ending is None else talk.say(ending))
            assert not server.service.budget.used  # type: ignore[attr-defined]
        talk = await server.ready()
        await talk.say(b"BDAT 100\r\n" + b"z" * 100)
        assert server.service.budget.used == 100  # type: ignore[attr-defined]
        await talk.say(b"RSET\r\n")
        assert not server.service.budget.used  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("octets", "kind"), [(b"", "command"), (b"NOO", "command"), (b"DATA\r\n", "data"), (b"BDAT 5\r\nabc", "data")]
)
async def test_silence_ends_in_421(octets: bytes, kind: str) -> None:
    async with Stage(tables={"timeouts": {kind: 0.02}}) as server:
        talk = await server.ready()
        said = await talk.say(octets)
        while not talk.is_over:  # noqa: ASYNC110 - the timer is a real one
            await asyncio.sleep(0.01)
        said += await talk.hear()
    assert re.search(rb"421 4\.4\.2 mx\.test waited too long for you \[\w+\]\r\n$", said)


async def test_greeting_counts_neither_as_time_nor_as_talk() -> None:
    async with Stage() as server:
        talk = server.talk()
        assert await talk.hear() == GREETING
        assert not talk.session.early


async def test_content_that_trickles_in_is_421() -> None:
    async with Stage(tables={"limits": {"min_data_rate": 1000}}) as server:
        talk = await server.ready()
        await talk.say(b"DATA\r\n")
        loop = asyncio.get_running_loop()
        started = loop.time()
        later = iter([started + 1, started + 62, started + 63, started + 64])
        loop.time = lambda: next(later)  # type: ignore[method-assign]
        try:
            said = await talk.say(b"x") + await talk.say(b"y")
        finally:
            del loop.time
        assert said.startswith(b"421 4.4.2 mx.test Data arrived too slowly")
        assert talk.is_over


async def test_only_a_message_that_is_safe_counts_as_received() -> None:
    async with Stage() as server:
        talk = await server.ready()
        said = await talk.say(SENT)
        (entry,) = server.events("message")
        assert entry["trace"].encode() in said
        assert (entry["sender"], entry["recipients"]) == ("joe@client.test", ["ann@example.test"])
        assert server.count("smtpd_messages_received_total", listener="smtp", recipient_domain="example.test") == 1


async def test_refusal_is_logged_with_its_trace() -> None:
    async with Stage() as server:
        talk = await server.ready()
        said = await talk.say(b"RCPT TO:<bob@elsewhere.test>\r\n")
        (entry,) = server.events("refused")
    assert entry["trace"].encode() in said
    assert (entry["reason"], entry["at"], entry["recipient"]) == ("relay-denied", "RCPT", "bob@elsewhere.test")


async def test_identical_input_gives_filters_the_same_by_data_and_by_bdat() -> None:
    seen: list[bytes] = []

    class Reader(Filter):
        name = "reader"

        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            seen.append(b"".join(message.content.chunks()))
            return PASS

    content = b"From: a@b.test\r\n\r\n.dot\r\n..two\r\n"
    async with Stage(filters={"reader": Reader}) as server:
        await (await server.ready()).say(b"DATA\r\n" + content.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        await (await server.ready()).say(b"BDAT %d LAST\r\n%b" % (len(content), content))
    assert seen == [content, content]


async def test_tls_that_is_not_there_now_is_neither_offered_nor_refused_for_good() -> None:
    """RFC 3207 §4."""
    async with Stage(listener={"tls": "starttls"}) as server:
        talk = server.talk(can_start_tls=False)
        assert b"STARTTLS" not in await talk.say(b"EHLO client.test\r\n")
        assert await talk.say(b"STARTTLS\r\n") == b"454 4.7.0 TLS is not available now\r\n"


async def test_full_spool_is_put_off() -> None:
    """RFC 1870 §6.1, RFC 3463 X.3.1."""
    async with Stage(tables={"spool": "/nowhere/at/all", "limits": {"content_in_memory": 10}}) as server:
        talk = await server.ready()
        await talk.say(b"DATA\r\n")
        reply = await talk.say(CONTENT + b".\r\n")
        assert reply.startswith(b"452 4.3.1 ")
        assert b"nowhere" not in reply
        assert await talk.say(b"NOOP\r\n") == b"250 2.0.0 Ok\r\n"
        (line,) = server.events("content-not-spooled")
    assert (line["level"], line["problem"]) == ("error", "/nowhere/at/all: No such file or directory")
    assert f"[{line['trace']}]" in reply.decode()
