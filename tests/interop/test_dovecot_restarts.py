"""Dovecot behind us is restarted or killed under load, and so are we: what was acknowledged is in the mailboxes."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import cycle, islice
from typing import Any, Literal

import pytest

from tests.conftest import Server
from tests.interop.conftest import Peer, Serve
from tests.interop.dovecot import Dovecot, free_port, private_dovecot, read
from tests.interop.senders import SENDERS, Post

USERS = 6
LONGEST_ROUND = 0.2  # seconds
PATIENCE = 5  # times the rounds, for what is left to chance

type Victim = Literal["deliveries", "store", "us", "both"]
# What is killed round by round. When the store as a whole was away, nobody asks it for five seconds.
STORE: tuple[Victim, ...] = ("deliveries",) * 24 + ("store",)
OURS: tuple[Victim, ...] = ("deliveries", "us", "deliveries", "deliveries", "both", "deliveries")
EVERYTHING: tuple[Victim, ...] = (*OURS, "deliveries", "deliveries") * 3 + ("store",)


@pytest.fixture
def store(peer: Peer) -> Iterator[Dovecot]:
    """A running Dovecot."""
    with private_dovecot(peer) as dovecot:
        dovecot.start()
        yield dovecot


class House:
    """Our server and the store behind it, either of which may be killed and comes back."""

    def __init__(self, serve: Serve, store: Dovecot, socket: str = "unix", guarantee: str = "at-least-once") -> None:
        self.store = store
        self.port = free_port()
        self.lines: dict[str, dict[str, Any]] = {}
        """The log lines of messages that were not just taken, by trace id."""
        self.down = 0
        """How often the store was given up."""
        agent = {"type": "lmtp", "address": store.addresses[socket], "path": None, "recipients": None}
        listeners: dict[str, object] = dict.fromkeys(("smtps", "submission", "alt"))
        self._table = {
            "smtpd": {
                "listeners": listeners | {"smtp": {"address": f"127.0.0.1:{self.port}"}},
                "limits": {"connections_per_ip": 0, "messages_per_session": 0},
                "agents": {"mailstore": agent},
                "delivery": {"guarantee": guarantee},
                "state": {"url": "sqlite:state.db"},
            }
        }
        self._serve = serve
        self._server: Server = serve(self._table)

    def kill(self, victim: Victim) -> None:
        """kill -9, and start again what is not started again by somebody else."""
        if victim == "deliveries":
            self.store.kill_deliveries()
        if victim in ("us", "both"):
            self._server.process.kill()
        if victim in ("store", "both"):
            self.store.kill()
            self.store.start()
        if victim in ("us", "both"):
            self.stop()
            self._server = self._serve(self._table)

    def stop(self) -> None:
        """Stop our server, and keep of its log what is needed."""
        self._server.stop()
        assert not self._server.events("our-fault")
        assert not self._server.events("delivery-failed")
        self.down += len(self._server.events("backend-down"))
        self.lines |= {line["trace"]: line for line in self._server.events("message") if "reason" in line}
        self._server.log.clear()
        self._server.output.clear()

    def found(self, users: list[str]) -> Counter[tuple[str, bytes]]:
        """How often each message, by its digest, is in each mailbox."""
        mails = ((user, read(mail).content) for user in users for mail in self.store.mails(user))
        return Counter((user, sha256(content).digest()) for user, content in mails)


async def under_load(house: House, victims: Sequence[Victim], rounds: int, *, uncertain: int = 0) -> Post:
    """Kill something in every round; the senders go on until all they have begun is settled.

    There are more rounds while there are fewer than so many letters whose senders heard that nobody knows.
    """
    post = Post([house.store.user() for _ in range(USERS)], house.port)
    async with post.under_way():
        for number, victim in enumerate(islice(cycle(victims), PATIENCE * rounds)):
            if number >= rounds and len(post.uncertain) >= uncertain:
                break
            await post.progress(SENDERS)
            await asyncio.sleep(random.uniform(0, LONGEST_ROUND))
            await asyncio.to_thread(house.kill, victim)
    await asyncio.to_thread(house.stop)
    return post


@pytest.mark.soak
@pytest.mark.slow
async def test_at_least_once_loses_nothing_and_doubles_only_what_nobody_could_know(
    serve: Serve, store: Dovecot, soak_rounds: int, record_property: Callable[[str, object], None]
) -> None:
    house = await asyncio.to_thread(House, serve, store)
    post = await under_load(house, EVERYTHING, soak_rounds)
    found = await asyncio.to_thread(house.found, post.users)
    interrupted = sum(letter.interrupted(user, house.lines) for letter in post.letters for user in letter.users)
    record_property("interrupted", interrupted)
    record_property("copies too many", sum(found.values()) - len(found))
    assert not post.unaccounted(found, house.lines)
    assert {letter.end[:9] for letter in post.letters} == {"250 2.0.0"}
    assert not post.refusals
    assert interrupted >= soak_rounds, "nothing was cut between dot and answer"


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("victims", [pytest.param(STORE, id="store"), pytest.param(OURS, id="us")])
async def test_at_most_once_doubles_nothing_and_says_when_nobody_can_know(
    serve: Serve, store: Dovecot, soak_rounds: int, victims: Sequence[Victim]
) -> None:
    house = await asyncio.to_thread(House, serve, store, guarantee="at-most-once")
    wanted = soak_rounds // 5 + 1
    post = await under_load(house, victims, soak_rounds, uncertain=wanted)
    found = await asyncio.to_thread(house.found, post.users)
    assert not post.unaccounted(found, house.lines)
    assert all(end.startswith(("554 5.4.2", "550 5.0.0")) for end in post.uncertain)
    assert all("may have been delivered already" in end for end in post.uncertain)
    assert len(post.uncertain) >= wanted, "hardly anything was cut between dot and answer"
    assert not post.refusals
    assert [copies for copies in found.values() if copies > 1] == []


@pytest.mark.slow
@pytest.mark.parametrize(("socket", "guarantee"), [("tcp", "at-least-once"), ("unix", "at-most-once")])
async def test_orderly_restart_of_the_store_under_load_loses_nothing(
    serve: Serve, store: Dovecot, socket: str, guarantee: str
) -> None:
    house = await asyncio.to_thread(House, serve, store, socket, guarantee)
    post = Post([store.user() for _ in range(USERS)], house.port)
    async with post.under_way():
        await post.progress(5 * SENDERS)
        await asyncio.to_thread(store.stop)
        await asyncio.to_thread(store.start)
        for _ in range(5):
            await post.progress(2 * SENDERS)
            await asyncio.to_thread(store.end_deliveries)
        await post.progress(SENDERS)
    await asyncio.to_thread(house.stop)
    found = await asyncio.to_thread(house.found, post.users)
    assert not post.unaccounted(found, house.lines)
    assert not post.refusals
    assert house.down, "nobody noticed"
    ends = {letter.end[:9] for letter in post.letters}
    if guarantee == "at-least-once":
        assert ends == {"250 2.0.0"}
    else:
        assert ends <= {"250 2.0.0", "554 5.4.2", "550 5.0.0"}
        assert found.total() == len(found)
