"""How many connections there are to a server that takes fewer than we would like."""

import asyncio

from lmtp_store import CLOSE, LmtpStore, until

from delivery_agents.forwarding import FAILURES
from delivery_agents.lmtp import Lmtp
from smtpd.memory import MemoryServer, Talk

TOO_MANY = b"421 4.7.0 Too many connections\r\n" + CLOSE


def server(store: LmtpStore) -> MemoryServer:
    return MemoryServer(agents={"store": (Lmtp, {"address": store.address})})


async def answer(talk: Talk) -> str:
    """The last answer to one message."""
    return (await talk.send("Subject: x\n\nbody\n"))[-1]


async def test_mail_waits_for_its_turn_where_the_store_takes_no_further_connection() -> None:
    async with LmtpStore() as store, server(store) as front:
        store.say["greeting"] = TOO_MANY
        store.may_read = asyncio.Event()
        first = asyncio.create_task(answer(await front.connect()))
        await until(lambda: store.visits[0].verbs[-1] == "BDAT")
        others = [asyncio.create_task(answer(await front.connect())) for _ in range(FAILURES + 1)]
        await until(lambda: len(store.visits) > 1)
        store.may_read.set()
        for each in (first, *others):
            assert (await each).startswith("250 ")
        assert not any(visit.verbs for visit in store.visits[1:])
        assert not [line for line in front.log if line["event"].startswith("backend")]


async def test_store_that_has_just_taken_no_further_connection_is_not_asked_for_one_with_every_mail() -> None:
    async with LmtpStore() as store, server(store) as front:
        store.say["greeting"] = TOO_MANY
        store.may_read = asyncio.Event()
        first, second = [asyncio.create_task(answer(await front.connect())) for _ in range(2)]
        await until(lambda: len(store.visits) == 2)
        store.may_read.set()
        await first, await second
        store.may_read.clear()
        talks = [asyncio.create_task(answer(await front.connect())) for _ in range(2)]
        await until(lambda: store.visits[0].verbs.count("BDAT") + store.visits[0].verbs.count("DATA") == 3)
        store.may_read.set()
        for each in talks:
            assert (await each).startswith("250 ")
        assert len(store.visits) == 2


async def test_store_that_takes_no_connection_at_all_is_down() -> None:
    async with LmtpStore() as store:
        store.say["greeting"] = TOO_MANY
        async with server(store) as front:
            talks = [await front.connect() for _ in range(FAILURES)]
            said = await asyncio.gather(*[talk.send("Subject: x\n\nbody\n") for talk in talks])
            assert {each[1][:10] for each in said} == {"451 4.4.1 "}
            assert [line["event"] for line in front.log].count("backend-down") == 1
