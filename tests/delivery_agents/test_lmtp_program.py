import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from delivery_agents import child as child_module
from delivery_agents import lmtp_program
from delivery_agents.pipe import Pipe
from smtpd.memory import MemoryServer

TEXT = "Subject: hello\n\n.body\n"

# Speaks LMTP on its standard input and output; what it hears goes to the file "heard", its number to "pids".
PROGRAM = r"""
import json, os, socket, sys, time
folder = os.path.dirname(sys.argv[0])
mode = sys.argv[1]
heard = open(os.path.join(folder, "heard"), "a", buffering=1)
with open(os.path.join(folder, "pids"), "a") as pids:
    pids.write(f"{os.getpid()}\n")
peer = socket.socket(fileno=0).makefile("rwb", buffering=0)
def say(text): peer.write(text.encode() + b"\r\n")
heard.write(json.dumps(["environment", sorted(os.environ.items())]) + "\n")
if mode == "mute": time.sleep(600)
if mode == "broken": sys.exit("no configuration")
say("220 ready")
taken = []
while line := peer.readline():
    line = line.decode().rstrip()
    verb = line.split(":")[0].split()[0].upper()
    heard.write(json.dumps(["line", line]) + "\n")
    if verb == "LHLO":
        say("250-program\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8" if mode != "plain" else "250 program")
    elif verb == "RCPT":
        if "nobody" in line: say("550 5.1.1 nobody here")
        else: taken.append(line); say("250 2.1.5 ok")
    elif verb == "DATA":
        say("354 go on")
        content = b""
        while not content.endswith(b"\r\n.\r\n"): content += peer.read(4096)
        if mode == "dies": os._exit(3)
        heard.write(json.dumps(["content", content.decode()]) + "\n")
        for recipient in taken: say("552 5.2.2 full" if "full" in recipient else "250 2.0.0 kept")
        taken = []
    elif verb == "QUIT":
        say("221 bye"); break
    else:
        if verb == "RSET": taken = []
        say("250 2.0.0 ok")
if mode == "lingers":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True: time.sleep(1)
"""


def serve(directory: Path, mode: str = "normal", **options: Any) -> MemoryServer:
    program = directory / "program"
    program.write_text(f"#!{sys.executable} -IS\n{PROGRAM}")
    program.chmod(0o755)
    table = {"command": [str(program), mode], "protocol": "lmtp", **options}
    return MemoryServer(agents={"pipe": (Pipe, table)})


def heard(directory: Path, kind: str) -> list[Any]:
    entries = map(json.loads, (directory / "heard").read_text().splitlines())
    return [value for name, value in entries if name == kind]


def programs(directory: Path) -> list[int]:
    return [int(line) for line in (directory / "pids").read_text().splitlines()]


def is_gone(directory: Path) -> bool:
    """Whether no program is left, not even as a zombie."""
    return not [pid for pid in programs(directory) if Path(f"/proc/{pid}").exists()]


async def reaches(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0)


async def test_program_answers_for_each_recipient(directory: Path) -> None:
    async with serve(directory, environment={"MODE": "x"}) as server:
        names = ["ann@example.test", "nobody@example.test"]
        answers = await (await server.connect()).send(TEXT, recipients=names)
        assert [answer[:9] for answer in answers] == ["250 2.1.0", "250 2.1.5", "550 5.1.1", "250 2.0.0"]
        assert answers[2].startswith("550 5.1.1 nobody here [")
        assert answers[3].startswith("250 2.0.0 kept [")
        assert server.count("smtpd_pipe_results_total", agent="pipe", result="delivered") == 1
    (content,) = heard(directory, "content")
    assert content.startswith("Received: from client.example")
    assert content.endswith("\r\n\r\n..body\r\n.\r\n")
    environment = dict(heard(directory, "environment")[-1])
    assert environment.pop("PATH").startswith("/usr/local/sbin:")
    assert {name: value for name, value in environment.items() if name != "LC_CTYPE"} == {"MODE": "x"}


def test_program_answers_on_uvloop(directory: Path) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test_program_answers_for_each_recipient(directory))
    assert is_gone(directory)


async def test_refusal_after_the_content_is_passed_on(directory: Path) -> None:
    async with serve(directory) as server:
        said = (await (await server.connect()).send(TEXT, recipients=["full@example.test"]))[-1]
        assert said.startswith("552 5.2.2 full [")


async def test_each_message_has_a_program_of_its_own_that_ends_with_it(directory: Path) -> None:
    async with serve(directory) as server:
        talk = await server.connect()
        await talk.send(TEXT)
        await talk.send(TEXT)
        await reaches(lambda: server.count("smtpd_pipe_programs", agent="pipe") == 0)
        assert server.count("smtpd_pipe_conversations", agent="pipe") == 0
        assert is_gone(directory)
    assert len(programs(directory)) == 3  # one more to see whether it works


async def test_program_ends_when_the_client_gives_up(directory: Path) -> None:
    async with serve(directory) as server:
        talk = await server.connect()
        await talk.say(b"MAIL FROM:<a@b.test>\r\n")
        assert (await talk.say(b"RCPT TO:<ann@example.test>\r\n")).startswith(b"250 ")
        assert server.count("smtpd_pipe_programs", agent="pipe") == 1
        await talk.say(b"RSET\r\n")
        await reaches(lambda: server.count("smtpd_pipe_programs", agent="pipe") == 0)


async def test_client_that_takes_its_time_keeps_no_program_from_others(directory: Path) -> None:
    async with serve(directory, concurrency=1) as server:
        slow, quick = await server.connect(), await server.connect()
        await slow.say(b"MAIL FROM:<slow@b.test>\r\nRCPT TO:<ann@example.test>\r\n")
        assert (await quick.send(TEXT))[-1].startswith("250 2.0.0 kept")
        assert (await slow.say(b"DATA\r\nSubject: x\r\n\r\n.\r\n")).split(b"\r\n")[1].startswith(b"250 2.0.0 kept")


async def test_program_that_dies_with_the_message_leaves_the_outcome_unknown(directory: Path) -> None:
    async with serve(directory, "dies") as server:
        said = (await (await server.connect()).send(TEXT))[-1]
        assert said.startswith("451 4.4.2 ")
        assert "did not say whether" in said
        # The one that was asked at the start ends, too, and may not be able to say good-bye any more.
        ended = {"event": "program-ended", "problem": "exit 3"}
        await reaches(lambda: any(ended.items() <= line.items() for line in server.log))


async def test_program_that_does_not_start_defers(directory: Path) -> None:
    async with serve(directory, "broken") as server:
        assert (await (await server.connect()).send(TEXT))[1].startswith("451 4.4.1 ")
        await reaches(lambda: any(line["event"] == "program-ended" for line in server.log))
        ended = [line for line in server.log if line["event"] == "program-ended"]
        assert (ended[0]["problem"], ended[0]["output"]) == ("exit 1", "no configuration")


async def test_program_that_says_nothing_is_ended(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmtp_program, "GRACE", 0.05)
    async with serve(directory, "mute", timeout=0.5) as server:
        assert (await (await server.connect()).send(TEXT))[1].startswith("451 4.4.2 ")
    assert is_gone(directory)


async def test_program_that_does_not_end_is_killed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lmtp_program, child_module):
        monkeypatch.setattr(module, "GRACE", 0.05)
    async with serve(directory, "lingers") as server:
        assert (await (await server.connect()).send(TEXT))[-1].startswith("250 ")
    assert is_gone(directory)


async def test_addresses_beyond_ascii_go_only_to_programs_that_take_them(directory: Path) -> None:
    for mode, carries in (("normal", True), ("plain", False)):
        async with serve(directory, mode) as server:
            assert server.agents["pipe"].carries_utf8 is carries


async def test_nothing_is_left_open(directory: Path) -> None:
    async with serve(directory) as server:
        talk = await server.connect()
        counts = []
        for _ in range(3):
            await talk.send(TEXT)
            await reaches(lambda: server.count("smtpd_pipe_programs", agent="pipe") == 0)
            await asyncio.gather(*(task for task in asyncio.all_tasks() if "_wait_and_end" in repr(task)))
            counts.append(len(os.listdir("/proc/self/fd")))
        assert counts[1:] == counts[:-1]
