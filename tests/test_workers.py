"""Threads for logins: what does not fit may try again, and no client keeps the others out."""

import asyncio
import gc
import os
import select
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from smtpd.users import Options
from smtpd.workers import CLIENT, Busy, Workers

PATIENCE = 10.0


async def of[T](client: str, workers: Workers, work: Callable[[], T]) -> T:
    CLIENT.set(client)  # every task has a context of its own
    return await workers.run(work)


class Crowd:
    """Clients in front of workers that are all held up until they may go on."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.begun = threading.Event()
        self.done: list[str] = []
        self._turns = threading.Semaphore(0)
        self._entered: set[asyncio.Task[None]] = set()

    async def enter(self, client: str) -> bool:
        """Whether one more piece of this client's work is taken."""

        def work() -> None:
            self.begun.set()
            self._turns.acquire()
            self.done.append(client)

        task = asyncio.create_task(of(client, self.workers, work))
        await asyncio.sleep(0)
        if task.done():
            assert isinstance(task.exception(), Busy)
            return False
        self._entered.add(task)
        return True

    async def enter_all(self, client: str) -> int:
        """How many pieces of work of this client are taken."""
        count = 0
        while await self.enter(client):
            count += 1
        return count

    async def go_on(self) -> None:
        """Finish the work that is first."""
        self._turns.release()
        _, self._entered = await asyncio.wait(self._entered, return_when=asyncio.FIRST_COMPLETED)

    async def leave(self) -> None:
        """Finish all work."""
        self.hold_up_nobody()
        await asyncio.gather(*self._entered)

    def hold_up_nobody(self) -> None:
        self._turns.release(1000)


@pytest.fixture
def crowds() -> Iterator[Callable[..., Crowd]]:
    """Make crowds; nobody is held up any more in the end."""
    made: list[Crowd] = []

    def make(**sizes: int) -> Crowd:
        made.append(Crowd(Workers("test", **sizes)))
        return made[-1]

    yield make
    for crowd in made:
        crowd.hold_up_nobody()
        crowd.workers.close()


Crowds = Callable[..., Crowd]


async def test_one_client_leaves_a_quarter_of_the_places_to_others(crowds: Crowds) -> None:
    crowd = crowds(threads=2, waiting=64)
    assert await crowd.enter_all("192.0.2.1") == 49
    assert await crowd.enter_all("192.0.2.2") == 12
    assert await crowd.enter("192.0.2.3")


@pytest.mark.parametrize(("waiting", "taken"), [(0, 1), (1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (7, 6)])
async def test_the_last_place_is_for_who_has_none(crowds: Crowds, waiting: int, taken: int) -> None:
    crowd = crowds(threads=1, waiting=waiting)
    assert await crowd.enter_all("192.0.2.1") == taken
    assert await crowd.enter("192.0.2.2") is (waiting > 0)


async def test_place_that_comes_free_is_for_who_has_none(crowds: Crowds) -> None:
    crowd = crowds(threads=1, waiting=15)
    greedy = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert [await crowd.enter_all(client) for client in greedy] == [12, 3, 1]
    await crowd.go_on()
    assert not any([await crowd.enter(client) for client in greedy])
    assert await crowd.enter("198.51.100.1")


async def test_a_hundred_clients_at_once_keep_nobody_out(crowds: Crowds) -> None:
    options = Options(type="file")
    crowd = crowds(threads=options.threads, waiting=options.waiting)
    for number in range(100):
        assert await crowd.enter(f"198.51.100.{number}")
    assert await crowd.enter("192.0.2.1")


@pytest.mark.parametrize(
    ("other", "is_the_same"), [("2001:db8::2:1", True), ("2001:db8:0:1::1", False), ("192.0.2.1", False)]
)
async def test_ipv6_client_is_its_network(crowds: Crowds, other: str, is_the_same: bool) -> None:
    crowd = crowds(threads=1, waiting=3)
    await crowd.enter_all("2001:db8::1")
    assert await crowd.enter(other) is not is_the_same


async def test_places_are_given_back(crowds: Crowds) -> None:
    crowd = crowds(threads=1, waiting=3)
    assert await crowd.enter_all("192.0.2.1") == 3
    await crowd.leave()
    again = Crowd(crowd.workers)
    assert await again.enter_all("192.0.2.1") == 3
    await again.leave()


async def test_turns_go_round(crowds: Crowds) -> None:
    crowd = crowds(threads=1, waiting=9)
    await crowd.enter("192.0.2.9")
    await asyncio.to_thread(crowd.begun.wait)
    for client in ("192.0.2.1",) * 3 + ("192.0.2.2",) * 2 + ("192.0.2.3",):
        assert await crowd.enter(client)
    await crowd.leave()
    assert [client[-1] for client in crowd.done] == ["9", "1", "2", "3", "1", "2", "1"]


@pytest.fixture
def go() -> Iterator[threading.Event]:
    """What work waits for, and gets in the end."""
    event = threading.Event()
    yield event
    event.set()


async def test_work_for_nobody_in_particular_may_take_all_places_and_no_more(go: threading.Event) -> None:
    workers = Workers("test", threads=1, waiting=3)
    running = [asyncio.ensure_future(workers.run(go.wait)) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await workers.run(lambda: True)
    go.set()
    assert await asyncio.gather(*running) == [True] * 4
    assert await workers.run(lambda: "room") == "room"
    workers.close()


async def test_all_threads_work() -> None:
    workers = Workers("test", threads=3, waiting=0)
    together = threading.Barrier(3)
    async with asyncio.timeout(PATIENCE):
        for _ in range(3):
            await asyncio.gather(*(workers.run(together.wait) for _ in range(3)))
    workers.close()


async def test_what_work_raises_is_raised_and_the_thread_goes_on() -> None:
    workers = Workers("test", threads=1, waiting=0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await workers.run(lambda: 1 // 0)
    assert await workers.run(lambda: "alive") == "alive"
    workers.close()


async def test_work_that_waits_is_dropped_with_its_caller(go: threading.Event) -> None:
    workers = Workers("test", threads=1, waiting=1)
    done = threading.Event()
    running = asyncio.ensure_future(workers.run(go.wait))
    await asyncio.sleep(0)
    for _ in range(3):  # its place is free again at once
        waiting = asyncio.ensure_future(workers.run(done.set))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
    go.set()
    await running
    assert await workers.run(done.is_set) is False
    workers.close()


async def test_nothing_is_kept_of_work_that_was_dropped(go: threading.Event) -> None:
    """A stranger who logs in and hangs up, over and over, must not fill our memory."""

    class Work:
        def __call__(self) -> None: ...

    workers = Workers("test", threads=1, waiting=1)
    running = asyncio.ensure_future(workers.run(go.wait))
    await asyncio.sleep(0)
    work = Work()
    kept, waiting = weakref.ref(work), asyncio.ensure_future(workers.run(work))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    del work, waiting
    gc.collect()
    assert kept() is None
    go.set()
    await running
    workers.close()


async def test_work_that_waits_when_the_workers_close_is_busy_not_cancelled(go: threading.Event) -> None:
    workers = Workers("test", threads=1, waiting=1)
    begun = threading.Event()

    def work() -> bool:
        begun.set()
        return go.wait()

    running = asyncio.ensure_future(workers.run(work))
    waiting = asyncio.ensure_future(workers.run(work))
    await asyncio.to_thread(begun.wait)
    workers.close()
    with pytest.raises(Busy):
        await waiting
    with pytest.raises(Busy):
        await workers.run(work)
    go.set()
    assert await running is True


PROVIDER = """
from functools import partial
from pathlib import Path
from smtpd.auth import CredentialProvider
from smtpd.workers import Workers

class Slow(CredentialProvider):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.workers = Workers("slow", threads=1, waiting=3)

    async def check_password(self, user, password):
        return await self.workers.run(partial(self.check, user, password))

    def check(self, user, password):
        Path("turn").read_text()
        return user if password == "right" else None

    async def stop(self):
        self.workers.close()
"""


def connect(source: str, port: int, trust: ssl.SSLContext) -> ssl.SSLSocket:
    """A client on port 465 that has said EHLO."""
    plain = socket.create_connection(("127.0.0.1", port), PATIENCE, source_address=(source, 0))
    client = trust.wrap_socket(plain, server_hostname="mx.test")
    client.sendall(b"EHLO client.test\r\n")
    heard = b""
    while b"\r\n250 " not in heard:
        heard += client.recv(4096)
    return client


def test_one_attacker_does_not_lock_others_out(serve: Callable[..., Any], directory: Path, certificates: Any) -> None:
    (directory / "slow.py").write_text(PROVIDER)
    (directory / "slow-1.dist-info").mkdir()
    (directory / "slow-1.dist-info" / "entry_points.txt").write_text("[smtpd.auth_providers]\nslow = slow:Slow\n")
    os.mkfifo(directory / "turn")
    os.link(directory / "turn", directory / "held")
    path = os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))
    auth = {"providers": ["slow"], "users": None, "slow": {"type": "slow"}}
    server = serve({"smtpd": {"auth": auth}}, environment={"PYTHONPATH": path})
    trust, port = ssl.create_default_context(cafile=certificates.ca_file), server.port("smtps")
    with ExitStack() as stack:
        attackers = [stack.enter_context(connect("127.0.0.1", port, trust)) for _ in range(4)]
        user = stack.enter_context(connect("127.0.0.2", port, trust))
        for attacker in attackers:
            attacker.sendall(b"AUTH PLAIN AGEAd3Jvbmc=\r\n")
        answered, _, _ = select.select(attackers, [], [], PATIENCE)  # so the others are waiting
        assert [client.recv(4096)[:3] for client in answered] == [b"454"]
        user.sendall(b"AUTH PLAIN AGEAcmlnaHQ=\r\n")
        (directory / "free").touch()
        (directory / "free").rename(directory / "turn")
        os.close(os.open(directory / "held", os.O_RDWR))  # does not wait for a reader, should there be none yet
        assert user.recv(4096)[:3] == b"235"
        assert {client.recv(4096)[:3] for client in attackers if client not in answered} == {b"535"}
