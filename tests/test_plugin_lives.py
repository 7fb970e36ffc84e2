"""Plug-ins that leave, or want everybody to leave: the server stays, and says whose doing it was."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from smtpd import (
    PASS,
    AgentOptions,
    Config,
    DeliveryAgent,
    Filter,
    FilterOptions,
    Message,
    Reply,
    Server,
    Transaction,
    Verdict,
)
from smtpd.config import ConfigError
from smtpd.memory import MemoryServer
from smtpd.plugins import BrokenPlugin, describe
from smtpd.replies import ACCEPTED


class Panic(BaseException):
    """What a library in another language may raise."""


class Leaving(DeliveryAgent):
    """Raises what `problem` holds, where `where` says."""

    where = ""
    problem: BaseException | None = None

    def __init__(self, *arguments: Any) -> None:
        self._leave("__init__")
        super().__init__(*arguments)

    def _leave(self, where: str) -> None:
        if self.problem is not None and self.where == where:
            raise self.problem

    async def start(self) -> None:
        self._leave("start")

    async def health(self) -> str | None:
        self._leave("health")
        return None


@pytest.fixture
def leaving() -> type[Leaving]:
    """An agent of the test's own."""
    return type("OwnLeaving", (Leaving,), {})


def config() -> Config:
    return Config.model_validate({
        "hostname": "mx.test",
        "listeners": {"one": {"address": "127.0.0.1:0", "mode": "smtp", "tls": "off"}},
        "domains": {"example.test": "inbox"},
        "metrics": {"enabled": False},
        "log": {"to": "stderr", "level": "error"},
    })  # fmt: skip


@pytest.mark.parametrize("where", ["__init__", "start"])
@pytest.mark.parametrize("problem", [SystemExit(3), asyncio.CancelledError(), Panic("oh"), OSError("no disk")])
async def test_part_that_leaves_while_it_begins_is_an_error_that_names_it(
    where: str, problem: BaseException, leaving: type[Leaving]
) -> None:
    async with Server(config(), agents={"inbox": leaving}) as server:
        leaving.where, leaving.problem = where, problem
        with pytest.raises((BrokenPlugin, OSError)) as caught:
            await server.reload(config())
        assert describe(caught.value).startswith("agent inbox: ")
        leaving.problem = None
        await server.reload(config())


async def test_start_that_is_cancelled_stays_cancelled(leaving: type[Leaving]) -> None:
    class Slow(leaving):  # type: ignore[misc,valid-type]
        async def start(self) -> None:
            await asyncio.Event().wait()

    task = asyncio.create_task(Server(config(), agents={"inbox": Slow}).start())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "problem", [SystemExit("no license"), asyncio.CancelledError("no license"), Panic("no license")]
)
async def test_part_that_leaves_when_it_is_asked_how_it_is_cannot_work(
    problem: BaseException, leaving: type[Leaving]
) -> None:
    server = Server(config(), agents={"inbox": leaving})
    generation = await server.start_quietly()
    leaving.where, leaving.problem = "health", problem
    assert await generation.problems() == ["agent inbox: no license"]
    await server.stop()


async def test_part_that_did_not_begin_as_it_should_says_what_is_missing() -> None:
    class Hasty(DeliveryAgent):
        def __init__(self, name: str, options: AgentOptions, services: object) -> None:
            self.files: list[str] = []

    with pytest.raises(BrokenPlugin, match=r"Hasty.__init__ does not call super\(\).__init__"):
        await Server(config(), agents={"inbox": Hasty}).start()


async def test_maker_that_makes_something_else_is_named() -> None:
    with pytest.raises(BrokenPlugin, match="dict is no DeliveryAgent") as caught:
        await Server(config(), agents={"inbox": lambda *_: {}}).start()  # type: ignore[arg-type,return-value]
    assert describe(caught.value) == "agent inbox: dict is no DeliveryAgent"


@pytest.mark.parametrize("problem", [SystemExit(3), KeyError("words"), ValueError("odd")])
@pytest.mark.parametrize("method", ["next_hop", "recipient_domains"])
async def test_options_that_cannot_be_examined_are_a_mistake_in_the_configuration(
    method: str, problem: BaseException
) -> None:
    def leave(self: object) -> object:
        raise problem

    class Odd(Filter):
        Options = type("OddOptions", (FilterOptions,), {"recipient_domains": leave})

    agents = type("OddOptions", (AgentOptions,), {"next_hop": leave})
    tables: dict[str, Any] = {"agents": {"inbox": agents(type="x")}} if method == "next_hop" else {
        "filters": {"odd": Odd.Options()}
    }  # fmt: skip
    server = Server(
        config().model_copy(update=tables),
        agents={"inbox": DeliveryAgent},
        filters={"odd": Odd} if tables.get("filters") else {},
    )
    with pytest.raises(ConfigError, match="cannot be examined: "):
        await server.start()


async def test_agent_stores_no_empty_message_when_a_filter_has_closed_the_content() -> None:
    class Closing(Filter):
        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            message.content.close()
            return PASS

    stored: list[bytes] = []

    class Storing(DeliveryAgent):
        async def deliver(self, mail: Transaction, message: Message) -> Reply:
            stored.append(bytes(message))
            return ACCEPTED

    async with MemoryServer(filters={"closing": Closing}, agents={"inbox": Storing}) as server:
        assert (await (await server.connect()).send("Subject: x\n\nHello\n"))[-1].startswith("451 4.3.0")
        server.forget("delivery-failed")
    assert stored == []


async def test_agent_that_reads_after_it_has_answered_hears_that_it_is_too_late() -> None:
    late: list[asyncio.Task[bytes]] = []
    over = asyncio.Event()

    class Later(DeliveryAgent):
        async def deliver(self, mail: Transaction, message: Message) -> Reply:
            async def read() -> bytes:
                await over.wait()
                return bytes(message)

            late.append(asyncio.create_task(read()))
            return ACCEPTED

    async with MemoryServer(agents={"inbox": Later}) as server:
        talk = await server.connect()
        await talk.send("Subject: x\n\nHello\n")
        await talk.say(b"NOOP\r\n")
        over.set()
        with pytest.raises(OSError, match="content is gone"):
            await late[0]


def deaf(is_asked: asyncio.Event, may_end: asyncio.Event) -> type[Filter]:
    """A filter that goes on until it may end, cancelled or not."""

    class Deaf(Filter):
        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            is_asked.set()
            while not may_end.is_set():
                with suppress(asyncio.CancelledError):
                    await may_end.wait()
            return PASS

    return Deaf


def complaints_heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the event loop's handler is told from now on; nobody's patience lasts long."""
    monkeypatch.setattr("smtpd.waiting.DEAF_SECONDS", 0.01)
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    return complaints


async def test_client_of_a_filter_that_cannot_be_cancelled_does_not_count_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_asked, may_end = asyncio.Event(), asyncio.Event()

    filter_class, complaints = deaf(is_asked, may_end), complaints_heard(monkeypatch)
    async with asyncio.timeout(10), MemoryServer(filters={"deaf": filter_class}) as server:
        talk = await server.connect()
        sending = asyncio.create_task(talk.send("Hello\n"))
        await is_asked.wait()
        await talk.hang_up()
        assert talk.is_over
        may_end.set()
        await sending
    assert len(complaints) == 1
    assert "Deaf.on_message > Event.wait goes on although it was cancelled" in complaints[0]


async def test_client_of_a_filter_that_cannot_be_cancelled_hears_451(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = asyncio.Event()

    filter_class, complaints = deaf(asyncio.Event(), may_end), complaints_heard(monkeypatch)
    async with (
        asyncio.timeout(10),
        MemoryServer(filters={"deaf": filter_class}, tables={"timeouts": {"filters": 0.01}}) as server,
    ):
        talk = await server.connect()
        assert (await talk.send("Hello\n"))[-1].startswith("451 4.3.0 The message could not be checked in time")
        may_end.set()
        assert (await talk.send("Hello\n"))[-1].startswith("250 ")
        assert len(server.delivered) == 1
    assert len(complaints) == 1
    assert "Deaf.on_message" in complaints[0]
