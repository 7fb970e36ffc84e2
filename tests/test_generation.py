"""One configuration takes the place of another, and what was made of it stops, whatever plug-ins do."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from log_lines import Lines
from stage import Stage

from smtpd import Config, ConfigError, DeliveryAgent, Filter, Server, generation
from smtpd.config import LogOptions, from_tables
from smtpd.log import Log
from smtpd.users import UserFileError

TABLE = {"address": "127.0.0.1:0", "mode": "smtp", "tls": "off"}
GREETING = b"220 mx.test ESMTP\r\n"


def config(**more: Any) -> Config:
    tables: dict[str, Any] = {
        "hostname": "mx.test",
        "listeners": {"one": TABLE},
        "domains": {"example.test": "inbox"},
        "metrics": {"enabled": False},
        "log": {"to": "stderr", "level": "error"},
    }
    return Config(**{**tables, **more})


class Inbox(DeliveryAgent):
    """Remembers all that were stopped."""

    stopped: list[DeliveryAgent]

    async def stop(self) -> None:
        self.stopped.append(self)


@pytest.fixture
def inbox() -> type[Inbox]:
    """An agent of the test's own."""
    return type("OwnInbox", (Inbox,), {"stopped": []})


async def hear(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line


class Stuck(Filter):
    async def stop(self) -> None:
        await asyncio.Event().wait()


class Deaf(Filter):
    turn = asyncio.Event()

    async def stop(self) -> None:
        while not self.turn.is_set():
            with suppress(asyncio.CancelledError):
                await self.turn.wait()


class Exiting(Filter):
    async def stop(self) -> None:
        raise SystemExit(1)


class Tidy(Filter):
    """Waits for the end of a task that it has cancelled, as one does."""

    async def start(self) -> None:
        self.task = asyncio.create_task(asyncio.Event().wait())

    async def stop(self) -> None:
        self.task.cancel()
        await self.task


async def test_part_that_does_not_stop_keeps_nothing_running_and_is_named(
    monkeypatch: pytest.MonkeyPatch, inbox: type[Inbox]
) -> None:
    monkeypatch.setattr(generation, "STOP_SECONDS", 0.01)
    monkeypatch.setattr(generation, "_DEAF_SECONDS", 0.01)
    filters = {"stuck": Stuck, "exiting": Exiting, "deaf": Deaf, "tidy": Tidy}
    lines, Deaf.turn = Lines(), asyncio.Event()
    log = Log(LogOptions(), sink=lines)
    async with Server(config(), agents={"inbox": inbox}, filters=filters, log=log):
        pass
    assert len(inbox.stopped) == 1
    log.flush()
    failed = [line["part"] for line in lines.entries if line["event"] == "stop-failed"]
    assert sorted(failed) == ["filter deaf", "filter exiting", "filter stuck", "filter tidy"]
    Deaf.turn.set()


async def test_parts_stop_at_the_same_time() -> None:
    together = asyncio.Barrier(3)

    class Patient(Filter):
        async def stop(self) -> None:
            await together.wait()

    class Inbox(DeliveryAgent):
        async def stop(self) -> None:
            await together.wait()

    async with asyncio.timeout(10):
        async with Server(config(), agents={"inbox": Inbox}, filters={"one": Patient, "two": Patient}):
            pass


async def test_stop_that_is_cancelled_takes_the_parts_along() -> None:
    stopping, cancelled = asyncio.Event(), asyncio.Event()

    class Slow(DeliveryAgent):
        async def stop(self) -> None:
            stopping.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

    running = Server(config(), agents={"inbox": Slow})
    await running.start()
    stop = asyncio.create_task(running.stop())
    await stopping.wait()
    stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    async with asyncio.timeout(10):
        await cancelled.wait()


def with_logins(users: Path) -> Config:
    agents = {"inbox": {"type": "discard", "allow_discard": True}}
    auth = {"providers": ["staff"], "staff": {"type": "file", "path": str(users)}}
    return from_tables({
        "hostname": "mx.test", "postmaster": "ann@example.test",
        "listeners": {"one": TABLE}, "domains": {"example.test": "inbox"}, "agents": agents,
        "auth": auth, "log": {"to": "stderr", "level": "error"},
    }, files=False)  # fmt: skip


async def test_part_that_does_not_start_has_the_others_stopped(inbox: type[Inbox], tmp_path: Path) -> None:
    with pytest.raises(UserFileError, match="Is a directory"):
        await Server(with_logins(tmp_path), agents={"inbox": inbox}).start_quietly()
    assert len(inbox.stopped) == 1


async def test_provider_of_logins_is_named_when_it_cannot_work(inbox: type[Inbox], tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.touch(mode=0o600)
    running = Server(with_logins(users), agents={"inbox": inbox})
    started = await running.start_quietly()
    assert await started.problems() == []
    users.unlink()
    assert await started.problems() == [f"auth staff: {users}: No such file or directory"]
    await running.stop()


@pytest.mark.parametrize(("guarantee", "count"), [("at-least-once", 0), ("at-most-once", 1)])
async def test_state_counts_as_a_part_where_no_mail_is_taken_without_it(
    inbox: type[Inbox], tmp_path: Path, guarantee: str, count: int
) -> None:
    state = tmp_path / "state.db"
    running = Server(
        config(state={"url": f"sqlite:{state}"}, delivery={"guarantee": guarantee}), agents={"inbox": inbox}
    )
    started = await running.start_quietly()
    assert await started.problems() == []
    state.unlink()
    assert [problem.partition(" ")[0] for problem in await started.problems()] == ["state:"] * count
    await running.stop()


async def test_every_part_that_cannot_work_is_named(monkeypatch: pytest.MonkeyPatch, inbox: type[Inbox]) -> None:
    class Silent(Filter):
        async def health(self) -> str | None:
            return str(await asyncio.Event().wait())

    class Wordless(Filter):
        async def health(self) -> str | None:
            raise TimeoutError

    class Tidying(Filter):
        async def health(self) -> str | None:
            task = asyncio.create_task(asyncio.Event().wait())
            task.cancel()
            return str(await task)

    class Ill(Filter):
        async def health(self) -> str | None:
            return "no room"

    monkeypatch.setattr(generation, "HEALTH_SECONDS", 0.01)
    filters = {"silent": Silent, "wordless": Wordless, "tidying": Tidying, "ill": Ill}
    running = Server(config(), agents={"inbox": inbox}, filters=filters)
    started = await running.start_quietly()
    assert await started.problems() == [
        "filter silent: no answer within 0.01 s",
        "filter wordless: TimeoutError",
        "filter tidying: CancelledError",
        "filter ill: no room",
    ]
    await running.stop()


async def test_reload_that_makes_no_sense_changes_nothing(inbox: type[Inbox]) -> None:
    async with Server(config(), agents={"inbox": inbox}) as running:
        with pytest.raises(ConfigError):
            await running.reload(config(domains={"example.test": "elsewhere"}))
        await running.reload(config(domains={"example.test": "inbox", "other.test": "inbox"}))
        assert await hear(running.port("one")) == GREETING


async def test_reload_may_take_a_listener_away_and_name_it_again(inbox: type[Inbox]) -> None:
    """Named again it needs a restart, but everything else of that configuration is in force."""
    both = {"one": TABLE, "two": TABLE}
    async with Server(config(listeners=both), agents={"inbox": inbox}) as running:
        assert await hear(running.port("two")) == GREETING
        await running.reload(config())
        with pytest.raises(OSError):
            await hear(running.port("two"))
        await running.reload(config(hostname="mx2.test", listeners=both))
        assert await hear(running.port("one")) == b"220 mx2.test ESMTP\r\n"
    assert len(inbox.stopped) == 3


@pytest.mark.parametrize("comes_to_an_end", [True, False])
async def test_reloads_come_one_after_the_other_and_none_hangs(
    monkeypatch: pytest.MonkeyPatch, inbox: type[Inbox], comes_to_an_end: bool
) -> None:
    monkeypatch.setattr(generation, "START_SECONDS", 5.0 if comes_to_an_end else 0.01)
    go_on = asyncio.Event()

    class Slow(Filter):
        async def start(self) -> None:
            if self.services.hostname == "slow.test":
                await go_on.wait()

    async with Server(config(), agents={"inbox": inbox}, filters={"slow": Slow}) as running:
        first = asyncio.create_task(running.reload(config(hostname="slow.test")))
        await asyncio.sleep(0)
        second = asyncio.create_task(running.reload(config(hostname="new.test")))
        await asyncio.sleep(0)
        if comes_to_an_end:
            go_on.set()
        (outcome, _) = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(outcome, TimeoutError) is not comes_to_an_end
        assert running.config.hostname == "new.test"
        assert comes_to_an_end or str(outcome) == "not everything in it had started after 0.01 s"


async def test_reload_that_outlasts_the_server_leaves_nothing_running(inbox: type[Inbox]) -> None:
    go_on = asyncio.Event()

    class Slow(Filter):
        async def start(self) -> None:
            if self.services.hostname == "slow.test":
                await go_on.wait()

    running = Server(config(), agents={"inbox": inbox}, filters={"slow": Slow})
    await running.start()
    reload = asyncio.create_task(running.reload(config(hostname="slow.test")))
    await asyncio.sleep(0)
    await running.stop()
    assert len(inbox.stopped) == 1
    go_on.set()
    with pytest.raises(RuntimeError, match="stopped meanwhile"):
        await reload
    assert len(inbox.stopped) == 2


async def test_what_waits_for_a_restart_is_said_as_long_as_it_does() -> None:
    async with Stage(listens=True) as stage:
        one, two = {"listeners": {"smtp": TABLE}}, {"listeners": {"smtp": {**TABLE, "address": "127.0.0.2:0"}}}
        for expected, tables in ((0, one), (1, two), (2, two), (2, one)):
            await stage.reload(tables)
            assert len(stage.events("restart-needed")) == expected
        moved = "it listens where it did, and at its new address only after a restart"
        assert [line["problem"] for line in stage.events("restart-needed")] == [moved] * 2
        for key, value in (("user", "nobody"), ("dns", {"timeout": 1}), ("metrics", {"enabled": False, "path": "/m"})):
            await stage.reload({key: value})
            await stage.reload({key: value})
            said = [line["problem"] for line in stage.events("restart-needed")]
            assert said[-2:] == [f"smtpd.{key} holds only after a restart"] * 2
