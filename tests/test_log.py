import asyncio
import json
import logging
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as some
from manual_clock import ManualClock
from pydantic import SecretStr

from smtpd.lines import Level
from smtpd.log import MAX_FOREIGN, Log
from smtpd.sinks import FLUSH_AFTER


@dataclass(frozen=True)
class Options:
    format: Literal["json", "console"] = "json"
    to: str = "stdout"
    level: Level = "debug"
    connections: bool = False
    privacy: bool = False


class Memory:
    """A sink that keeps every write apart."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.writes.append(data)
        return len(data)

    def reopen(self) -> None:
        self.writes.clear()

    def close(self) -> None:
        pass

    @property
    def text(self) -> str:
        return b"".join(self.writes).decode("ascii")

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def memory() -> Memory:
    return Memory()


def make(memory: Memory, options: Options = Options(), salt: bytes = b"salt") -> Log:
    return Log(options, sink=memory, clock=lambda: 1_700_000_000.25, salt=salt)


def test_a_line_has_time_level_event_and_the_fields_in_order(memory: Memory) -> None:
    make(memory).info("delivered", trace="01J9", size=4096, seconds=0.25, tls=True, login=None)
    assert memory.text == (
        '{"time":"2023-11-14T22:13:20.250Z","level":"info","event":"delivered",'
        '"trace":"01J9","size":4096,"seconds":0.250000,"tls":true,"login":null}\n'
    )


def test_console_lines_are_for_eyes(memory: Memory) -> None:
    make(memory, Options(format="console")).info("message", trace="01J9", reply="250 Ok", size=4096, helo="")
    assert memory.text == ('2023-11-14T22:13:20.250Z info    message trace=01J9 reply="250 Ok" size=4096 helo=""\n')


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_less_important_lines_are_left_out(memory: Memory, level: Level) -> None:
    log = make(memory, Options(level=level))
    log.debug("debug")
    log.info("info")
    log.message("", "01J9", "joe@client.test", ["ann@example.test"], 4096, 0.25)
    log.warning("warning")
    log.error("error")
    order = ["debug", "info", "warning", "error"]
    assert {line["level"] for line in memory.lines} == set(order[order.index(level) :])


def test_connection_lines_are_wanted_only_when_switched_on(memory: Memory) -> None:
    assert not make(memory).wants_connections
    assert make(memory, Options(connections=True)).wants_connections
    assert not make(memory, Options(connections=True, level="warning")).wants_connections


def test_without_connections_everything_else_is_still_written(memory: Memory) -> None:
    log = make(memory, Options(connections=True))
    quieter = log.without_connections()
    quieter.info("message")
    log.flush()
    assert [line["event"] for line in memory.lines] == ["message"]
    assert (log.wants_connections, quieter.wants_connections) == (True, False)


def test_a_field_cannot_replace_the_fixed_ones(memory: Memory) -> None:
    make(memory).info("real", time="never", level="error", event="forged")
    assert memory.lines[0]["event"] == "real"
    assert memory.lines[0]["event_"] == "forged"


def test_odd_values_can_be_logged(memory: Memory) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    make(memory).info(
        "odd", ip=IPv4Address("192.0.2.1"), huge=10**6000, nan=float("nan"), inf=[float("inf")], names={"b", "a"},
        broken=Broken(), table={1: {"deep": {"deeper": {"deepest": {"too": "deep"}}}}},
    )  # fmt: skip
    line = memory.lines[0]
    assert (line["ip"], line["nan"], line["inf"], line["names"]) == ("192.0.2.1", None, [None], ["a", "b"])
    assert line["broken"] == "<Broken>"
    assert line["table"] == {"1": {"deep": {"deeper": {"deepest": "..."}}}}


def test_long_values_and_lists_are_cut(memory: Memory) -> None:
    make(memory).info("long", text="x" * 1_000_000, items=["y"] * 1000)
    assert len(memory.text) < 4000
    assert memory.lines[0]["items"][-1] == "and 900 more"  # type: ignore[index]


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("privacy", [False, True])
def test_no_value_can_forge_a_line(format: Literal["json", "console"], privacy: bool) -> None:
    @given(some.text(), some.text())
    @example("name", "\x7f\x1b[2J\u2028\x85\ud800\r\n{")
    def check(name: str, value: str) -> None:
        memory = Memory()
        log = make(memory, Options(format=format, privacy=privacy))
        log.info(value, **{name: value, "sender": value, "list": [value], "table": {value: value}})
        text = memory.text
        assert text.endswith("\n")
        assert text[:-1].isprintable() or text[:-1] == ""

    check()


def test_console_values_cannot_look_like_other_fields(memory: Memory) -> None:
    make(memory, Options(format="console")).info("x", helo='a" reply=250', sender="a=b")
    assert memory.text.endswith(' helo="a\\" reply=250" sender="a=b"\n')


def test_tracebacks_are_one_field(memory: Memory) -> None:
    try:
        raise ValueError("line one\nline two\x1b[2J")
    except ValueError as error:
        make(memory).error("broken", exception=error)
    text = str(memory.lines[0]["exception"])
    assert text.startswith("Traceback")
    assert text.endswith("line two\x1b[2J")
    assert memory.text.count("\n") == 1


def test_tracebacks_on_the_console_are_indented_and_escaped(memory: Memory) -> None:
    try:
        raise ValueError("line one\n2023-11-14T22:13:20.250Z info forged\x1b[2J")
    except ValueError as error:
        make(memory, Options(format="console")).error("broken", exception=error)
    first, *rest = memory.text.splitlines()
    assert first.endswith("broken")
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_secrets_are_never_written(memory: Memory) -> None:
    secret = "hunter2"
    make(memory).info(
        "secrets", password=secret, smtp_Password=secret, token=secret, credentials=[secret], bearer=SecretStr(secret),
        raw=secret.encode(), table={"secret": secret, "inner": {"api_token": secret}}, pin=1, secret=42,
    )  # fmt: skip
    assert secret not in memory.text
    assert memory.lines[0]["raw"] == "<7 octets>"
    assert memory.lines[0]["secret"] == memory.lines[0]["bearer"] == "***"


def test_secrets_stay_hidden_when_the_name_was_seen_before(memory: Memory) -> None:
    log = make(memory)
    for _ in range(3):
        log.info("again", password="hunter2")
    assert "hunter2" not in memory.text


def test_without_privacy_addresses_are_readable(memory: Memory) -> None:
    make(memory).info("message", sender="anna@example.org", helo="laptop")
    assert memory.lines[0]["sender"] == "anna@example.org"


async def test_lines_close_together_leave_in_one_write(memory: Memory) -> None:
    log = make(memory)
    for number in range(10):
        log.info("line", number=number)
    assert memory.writes == []
    await asyncio.sleep(2 * FLUSH_AFTER)
    assert len(memory.writes) == 1
    assert [line["number"] for line in memory.lines] == list(range(10))
    log.info("later")
    await asyncio.sleep(2 * FLUSH_AFTER)
    assert len(memory.writes) == 2


async def test_an_error_is_written_at_once_with_what_waited(memory: Memory) -> None:
    log = make(memory)
    log.info("one")
    log.error("two")
    assert [line["event"] for line in memory.lines] == ["one", "two"]


def test_without_a_loop_lines_are_written_at_once(memory: Memory) -> None:
    make(memory).info("now")
    assert len(memory.writes) == 1


async def test_flush_and_close_write_what_is_waiting(memory: Memory) -> None:
    log = make(memory)
    log.info("one")
    log.flush()
    assert len(memory.lines) == 1
    log.info("two")
    log.close()
    assert len(memory.lines) == 2


async def test_lines_from_other_threads_come_through_whole(memory: Memory) -> None:
    log = make(memory)

    def work(name: str) -> None:
        for number in range(200):
            log.info("thread", name=name, number=number)

    for number in range(100):
        log.info("loop", number=number)
    await asyncio.gather(*(asyncio.to_thread(work, name) for name in "ab"))
    log.flush()
    assert len(memory.lines) == 500


def test_a_loop_that_ended_early_does_not_hold_lines_back(memory: Memory) -> None:
    log = make(memory)
    loop = asyncio.new_event_loop()
    loop.call_soon(log.info, "one")
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    asyncio.run(_log_two(log))
    assert [line["event"] for line in memory.lines] == ["one", "two"]


async def _log_two(log: Log) -> None:
    log.info("two")
    log.close()


def test_warnings_of_the_standard_library_come_here_only_while_captured(memory: Memory) -> None:
    log = make(memory)
    handler = log.capture_stdlib()
    source = logging.getLogger("test.source")
    try:
        source.info("too quiet")
        source.warning("look\nhere %s", "now")
        source.error("broken", exc_info=ValueError("why"))
    finally:
        logging.getLogger().removeHandler(handler)
    source.warning("afterwards")
    assert [(line["level"], line["logger"], line["text"]) for line in memory.lines] == [
        ("warning", "test.source", "look\nhere now"),
        ("error", "test.source", "broken"),
    ]
    assert "ValueError: why" in str(memory.lines[1]["exception"])


def test_library_that_repeats_itself_fills_no_disk(memory: Memory) -> None:
    log, source = make(memory), logging.getLogger("test.source")
    handler = log.capture_stdlib()
    try:
        for number in range(1000):
            source.error("no descriptors left")
            source.error("no descriptors left for %d", number)
    finally:
        logging.getLogger().removeHandler(handler)
    texts = [line["text"] for line in memory.lines]
    assert len(texts) == MAX_FOREIGN
    assert texts.count("no descriptors left") == 1


def test_syslog_lines_carry_priority_and_stay_one_line(memory: Memory) -> None:
    log = make(memory, Options(format="console", to="syslog"))
    log.error("broken", exception=ValueError("a\nb"))
    log.info("fine")
    first, second = memory.text.splitlines()
    assert first.startswith("<19>Nov 14 ")
    assert second.startswith("<22>Nov 14 ")
    assert "smtpd[" in second


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("privacy", [False, True])
@pytest.mark.parametrize("to", ["stdout", "syslog"])
def test_the_line_of_a_message_is_the_one_that_its_fields_make(
    format: Literal["json", "console"], privacy: bool, to: str
) -> None:
    options = Options(format=format, privacy=privacy, to=to)
    odd = some.text() | some.sampled_from(["ann@example.test", "", "x" * 2000, "y" * 2001, '"' * 1990, "\u2028\ud800"])
    seconds = some.floats(0, 1e6)
    more = some.dictionaries(some.sampled_from(["labels", "decisions", "reply"]), odd | some.lists(odd, max_size=3))

    @given(odd, odd, some.lists(odd, max_size=120), some.integers(0, 1 << 40), seconds, more)
    @example("01J9", "joe@client.test", ["ann@example.test"], 4096, 0.00012345, {})
    @example("01J9", "joe@client.test", ["a"] * 100, 4096, 1, {})
    @example("01J9", "joe@client.test", ["a"] * 101, 4096, 1.0, {"labels": ["junk"]})
    @example("01J9", "s" * 1999, ["r" * 1999], 0, 0.0, {})
    @example("01J9", "s" * 2001, ["r" * 2001], 0, 0.0, {})
    def check(
        trace: str, sender: str, recipients: list[str], size: int, seconds: float, more: dict[str, object]
    ) -> None:
        memory, expected = Memory(), Memory()
        log = make(memory, options)
        common = log.bind_client(trace, "smtp", "2001:db8::1", sender) + log.bind(login=trace)
        log.message(common, trace, sender, recipients, size, seconds, more)
        make(expected, options).info(
            "message", session=trace, listener="smtp", ip="2001:db8::1", helo=sender, login=trace,
            trace=trace, sender=sender, recipients=recipients, size=size, seconds=seconds, **more,
        )  # fmt: skip
        assert memory.text == expected.text

    check()


def test_lines_of_messages_tell_the_time_they_are_written() -> None:
    memory, clock = Memory(), ManualClock(1_700_000_000.25)
    log = Log(Options(), sink=memory, clock=clock)
    for clock.now in (1_700_000_000.25, 1_700_000_000.999, 1_700_000_061.0):
        log.message("", "01J9", "joe@client.test", ["ann@example.test"], 4096, 0.25)
    assert [str(line["time"])[17:] for line in memory.lines] == ["20.250Z", "20.999Z", "21.000Z"]
