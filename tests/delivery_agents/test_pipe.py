import asyncio
import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from pydantic import ValidationError

from delivery_agents import child as child_module
from delivery_agents.pipe import Pipe, PipeOptions, with_lf
from smtpd.memory import MemoryServer
from smtpd.plugins import BrokenPlugin

TEXT = "Subject: hello\n\nbody\n"

# Writes down how it was started and what it was given, then ends as the file "code" says.
RECORDER = """
import json, os, sys
folder = os.path.dirname(sys.argv[0])
known = {name: value for name, value in os.environ.items() if name not in ("LC_CTYPE", "PWD", "SHLVL", "_")}
seen = {"arguments": sys.argv[1:], "environment": known, "directory": os.getcwd()}
seen["group"] = os.getpgid(0) == os.getpid()
seen["descriptors"] = [number for number in range(100) if os.path.exists(f"/proc/self/fd/{number}")]
seen["content"] = sys.stdin.buffer.read().decode()
with open(os.path.join(folder, "seen"), "a") as file:
    file.write(json.dumps(seen) + "\\n")
"""


def script(directory: Path, text: str, interpreter: str = "/bin/sh") -> str:
    path = directory / "program"
    path.write_text(f"#!{interpreter}\n{text}\n")
    path.chmod(0o755)
    return str(path)


def serve(*command: str, tables: Any = None, **options: Any) -> MemoryServer:
    return MemoryServer(agents={"pipe": (Pipe, {"command": list(command), **options})}, tables=tables)


async def answer(*command: str, content: str | bytes = TEXT, forget: str = "", **options: Any) -> str:
    async with serve(*command, **options) as server:
        said = (await (await server.connect()).send(content))[-1]
        if forget:
            server.forget(forget)
    return said


def recorded(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "seen").read_text().splitlines()]


async def reaches(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_program_gets_the_message_and_nothing_of_ours(directory: Path) -> None:
    program = script(directory, RECORDER, sys.executable)
    words = ["-f", "{sender}", "--to={recipient}", "{user}", "{detail}", "{domain}", "id-{trace}", "{}"]
    async with serve(program, *words, environment={"MODE": "test"}, directory=str(directory)) as server:
        talk = await server.connect(ip="2001:db8::7")
        said = (await talk.send(TEXT, recipients=["Joe+news@example.test"]))[-1]
        assert said.startswith("250 2.0.0 ")
        assert server.count("smtpd_pipe_results_total", agent="pipe", result="delivered") == 1
    trace = said.rpartition("[")[2].rstrip("]")
    (seen,) = recorded(directory)
    assert seen["arguments"] == [
        "-f", "bob@sender.test", "--to=Joe+news@example.test", "Joe", "news", "example.test", f"id-{trace}", "{}",
    ]  # fmt: skip
    assert seen["environment"] == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "MODE": "test",
        "SENDER": "bob@sender.test",
        "RECIPIENT": "Joe+news@example.test",
        "CLIENT_ADDRESS": "2001:db8::7",
        "CLIENT_HELO": "client.example",
        "TRACE_ID": trace,
    }
    assert (seen["directory"], seen["group"], seen["descriptors"]) == (str(directory), True, [0, 1, 2])
    lines = seen["content"].split("\n")
    assert lines[0] == "Return-Path: <bob@sender.test>"
    assert lines[1].startswith("Received: from client.example")
    assert lines[-4:] == ["Subject: hello", "", "body", ""]
    assert "\r" not in seen["content"]


async def test_lines_end_in_crlf_and_the_sender_stands_in_front_when_asked_for(directory: Path) -> None:
    program = script(directory, RECORDER, sys.executable)
    await answer(program, line_ends="crlf", return_path=False, sender_line=True)
    (seen,) = recorded(directory)
    first, second, *_ = seen["content"].split("\r\n")
    assert first.startswith("From bob@sender.test ")
    assert second.startswith("Received: ")
    assert seen["content"].endswith("\r\nSubject: hello\r\n\r\nbody\r\n")


async def test_empty_sender_is_an_empty_word(directory: Path) -> None:
    program = script(directory, RECORDER, sys.executable)
    async with serve(program, "{sender}", "end", sender_line=True) as server:
        await (await server.connect()).send(TEXT, sender="")
    (seen,) = recorded(directory)
    assert seen["arguments"] == ["", "end"]
    assert seen["content"].startswith("From MAILER-DAEMON ")
    assert "\nReturn-Path: <>\n" in seen["content"]


async def test_address_means_nothing_to_a_shell(directory: Path) -> None:
    program = script(directory, RECORDER, sys.executable)
    async with serve(program, "{user}", "{recipient}") as server:
        talk = await server.connect()
        odd = r'"a b;$(touch x)`id`|*\\"@example.test'
        assert (await talk.send(TEXT, recipients=[odd]))[-1].startswith("250 ")
    (seen,) = recorded(directory)
    assert seen["arguments"] == [r"a b;$(touch x)`id`|*" + "\\", odd]


@pytest.mark.parametrize(
    "address",
    ["-rf@example.test", "a+-rf@example.test", "../a@example.test", "a/../b@example.test", '".."@example.test',
     '"/etc/passwd"@example.test', 'a+"."@example.test', '"a+.."@example.test'],
)  # fmt: skip
async def test_address_that_looks_like_an_option_or_a_path_is_refused(address: str, directory: Path) -> None:
    async with serve(script(directory, RECORDER, sys.executable), "{user}") as server:
        talk = await server.connect()
        said = (await talk.send(TEXT, recipients=[address]))[1]
    assert said.startswith(("550 5.1.1 ", "501 5.1.3 "))
    assert not (directory / "seen").exists()


@pytest.mark.parametrize(("word", "code"), [("{sender}", "550 5.7.1"), ("--from={sender}", "250 2.1.5")])
async def test_sender_never_becomes_an_option(word: str, code: str, directory: Path) -> None:
    async with serve(script(directory, RECORDER, sys.executable), word) as server:
        talk = await server.connect()
        assert (await talk.send(TEXT, sender="-oQ/tmp@sender.test"))[1].startswith(code)


@pytest.mark.parametrize(
    ("code", "heard"),
    [
        (0, "250 2.0.0 "),
        (65, "554 5.6.0 The message is not taken ["),
        (67, "550 5.1.1 No mailbox here by the name alice@example.test ["),
        (68, "550 5.1.2 The message is not taken ["),
        (69, "554 5.3.0 The message is not taken ["),
        (77, "550 5.7.0 The message is not taken ["),
        (75, "451 4.3.0 The message could not be stored"),
    ],
)
async def test_exit_code_that_is_meant_decides(code: int, heard: str, directory: Path) -> None:
    program = script(directory, f"cat >/dev/null; echo 'why I did' >&2; exit {code}")
    async with serve(program) as server:
        assert (await (await server.connect()).send(TEXT))[-1].startswith(heard)
        ended = [line for line in server.log if line["event"] == "program-ended"]
    if code:
        assert [(line["problem"], line["output"]) for line in ended] == [(f"exit {code}", "why I did")]


@pytest.mark.parametrize("code", [1, 2, 64, 66, 70, 71, 72, 73, 74, 76, 78, 100, 126, 127, 255])
async def test_exit_code_of_something_broken_defers(code: int, directory: Path) -> None:
    said = await answer(script(directory, f"cat >/dev/null; exit {code}"), forget="program-failed")
    assert said.startswith("451 4.3.0 ")


async def test_program_that_is_killed_defers(directory: Path) -> None:
    async with serve(script(directory, "kill -SEGV $$")) as server:
        assert (await (await server.connect()).send(TEXT))[-1].startswith("451 4.3.0 ")
        assert [line["problem"] for line in server.log if line["event"] == "program-failed"] == ["SIGSEGV"]
        assert server.count("smtpd_pipe_results_total", agent="pipe", result="failed") == 1
        server.forget("program-failed")


async def test_program_that_vanished_defers(directory: Path) -> None:
    program = script(directory, "cat >/dev/null")
    async with serve(program) as server:
        os.unlink(program)
        assert (await (await server.connect()).send(TEXT))[-1].startswith("451 4.3.0 ")
        assert await server.agents["pipe"].health() == f"{program} is no program that can be run"
        server.forget("program-failed")


async def test_program_that_is_not_there_keeps_the_server_from_starting(directory: Path) -> None:
    with pytest.raises(BrokenPlugin, match="agent pipe: /nowhere/program is no program that can be run"):
        await answer("/nowhere/program")
    with pytest.raises(BrokenPlugin, match="agent pipe: /nowhere is no directory"):
        await answer("/bin/cat", directory="/nowhere")


async def test_program_that_reads_nothing_may_succeed(directory: Path) -> None:
    big = "Subject: big\n\n" + "\n".join(["x" * 70] * 20_000)
    assert (await answer(script(directory, "exec <&-; exit 0"), content=big)).startswith("250 ")
    assert (await answer(script(directory, "exit 67"), content=big)).startswith("550 5.1.1 ")


async def test_grandchild_that_keeps_the_pipes_is_not_waited_for(directory: Path) -> None:
    big = "Subject: big\n\n" + "\n".join(["x" * 70] * 20_000)
    program = script(directory, f"exec 3<&0; sleep 600 & echo $! >{directory}/pid; exit 0")
    async with serve(program) as server, asyncio.timeout(30):
        talk = await server.connect()
        before = len(os.listdir("/proc/self/fd"))
        assert (await talk.send(big))[-1].startswith("250 ")
        assert len(os.listdir("/proc/self/fd")) == before
    pid = int((directory / "pid").read_text())
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


async def test_big_message_arrives_whole_though_the_program_is_slow_to_read(directory: Path) -> None:
    big = "Subject: big\n\n" + "\n".join(f"{number:070}" for number in range(50_000))
    program = script(directory, f"read first; cat >{directory}/rest")
    assert (await answer(program, content=big, return_path=False)).startswith("250 ")
    assert (directory / "rest").read_text().endswith(big)


@pytest.mark.parametrize("name", ["big_message_arrives_whole_though_the_program_is_slow_to_read",
    "program_that_reads_nothing_may_succeed", "output_without_end_is_read_and_only_its_end_kept",
    "overrun_ends_the_whole_group_and_leaves_the_outcome_unknown"])  # fmt: skip
def test_on_uvloop(name: str, directory: Path) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(globals()[f"test_{name}"](directory))


async def test_last_line_of_the_program_is_said_only_when_asked_for(directory: Path) -> None:
    program = script(directory, r"""cat >/dev/null; printf 'first\nno room \033[2J for you \303\274\n\n'; exit 69""")
    assert "room" not in await answer(program)
    said = await answer(program, say_output=True)
    assert said.startswith("554 5.3.0 no room ?[2J for you \\xfc [")
    later = script(directory, "cat >/dev/null; echo come again; exit 75")
    assert (await answer(later, say_output=True)).startswith("451 4.3.0 come again [")


async def test_what_a_broken_program_says_is_never_said(directory: Path) -> None:
    program = script(directory, "cat >/dev/null; echo secret; exit 1")
    assert "secret" not in await answer(program, say_output=True, forget="program-failed")


async def test_output_without_end_is_read_and_only_its_end_kept(directory: Path) -> None:
    program = script(directory, "cat >/dev/null; yes noise | head -c 3000000; echo; echo last; exit 75")
    async with serve(program, max_output=64) as server:
        assert (await (await server.connect()).send(TEXT))[-1].startswith("451 ")
        (line,) = [line for line in server.log if line["event"] == "program-ended"]
    assert str(line["output"]).endswith("/ last")
    assert len(str(line["output"])) < 200


async def test_each_recipient_has_a_program_and_an_answer_of_its_own(directory: Path) -> None:
    program = script(directory, 'cat >/dev/null; [ "$1" != bad ] || exit 67; echo "$RECIPIENT" >>' + f"{directory}/got")
    async with serve(program, "{user}") as server:
        answers = await (await server.connect()).send(TEXT, recipients=["a@example.test", "bad@example.test"])
        assert answers[-1].startswith("451 ")  # some have it: the journal tells a retry
    assert (directory / "got").read_text() == "a@example.test\n"


async def test_one_program_for_all_recipients(directory: Path) -> None:
    program = script(directory, RECORDER, sys.executable)
    async with serve(program, "--", "{recipient}", "end", per_recipient=False) as server:
        await (await server.connect()).send(TEXT, recipients=["a@example.test", "b@example.test"])
    (seen,) = recorded(directory)
    assert seen["arguments"] == ["--", "a@example.test", "b@example.test", "end"]
    assert "RECIPIENT" not in seen["environment"]


async def test_overrun_ends_the_whole_group_and_leaves_the_outcome_unknown(directory: Path) -> None:
    pids = directory / "pids"
    program = script(directory, f"cat >/dev/null; sleep 600 & echo $! >{pids}; sleep 601 & echo $! >>{pids}; wait")
    async with serve(program, timeout=1.0) as server:
        said = (await (await server.connect()).send(TEXT))[-1]
        assert said.startswith("451 4.4.2 ")
        assert "did not say whether" in said
        assert server.count("smtpd_pipe_results_total", agent="pipe", result="timeout") == 1
        server.forget("delivery-timed-out")
    for pid in map(int, pids.read_text().split()):
        await reaches(lambda pid=pid: not is_alive(pid))  # type: ignore[misc]


async def test_program_that_does_not_hear_sigterm_is_killed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "GRACE", 0.1)
    program = script(directory, f"trap '' TERM; echo $$ >{directory}/pid; while :; do sleep 1; done")
    big = "Subject: big\n\n" + "\n".join(["x" * 70] * 20_000)
    said = await answer(program, content=big, timeout=1.0, forget="delivery-timed-out")
    assert said.startswith("451 4.4.2 The mail system did not answer in time")  # it had not read the whole message
    assert not is_alive(int((directory / "pid").read_text()))


async def test_no_more_run_at_the_same_time_than_allowed(directory: Path) -> None:
    lock = directory / "lock"
    program = script(directory, f"cat >/dev/null; mkdir {lock} || exit 70; sleep 0.02; rmdir {lock}")
    async with serve(program, concurrency=1) as server:
        names = [f"user{number}@example.test" for number in range(5)]
        assert (await (await server.connect()).send(TEXT, recipients=names))[-1].startswith("250 ")


async def test_who_gets_no_turn_in_time_is_told_so(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "GRACE", 0.3)  # for so long it keeps its place beyond its time
    program = script(directory, f"trap '' TERM; cat >/dev/null; echo x >>{directory}/runs; while :; do sleep 1; done")
    async with serve(program, concurrency=1, timeout=1.0) as server:
        talks = [await server.connect() for _ in range(2)]
        said = [answers[-1] for answers in await asyncio.gather(*(talk.send(TEXT) for talk in talks))]
        assert sorted("did not answer in time" in text for text in said) == [False, True]
        server.forget("delivery-timed-out")
    assert (directory / "runs").read_text() == "x\n"


async def test_client_that_vanishes_does_not_stop_a_program_that_runs(directory: Path) -> None:
    go_on = directory / "go-on"
    os.mkfifo(go_on)
    program = script(directory, f"cat >/dev/null; touch {directory}/begun; read line <{go_on}; touch {directory}/done")
    async with serve(program) as server:
        talk = await server.connect()
        sent = asyncio.create_task(talk.send(TEXT))
        await reaches((directory / "begun").exists)
        gone = asyncio.create_task(talk.hang_up())
        await asyncio.sleep(0)
        stopped = asyncio.create_task(server.agents["pipe"].stop())
        await asyncio.sleep(0)
        assert not stopped.done()
        await asyncio.to_thread(go_on.write_text, "now\n")
        await stopped
        assert (directory / "done").exists()
        await asyncio.gather(gone, sent)


async def test_nothing_is_left_open(directory: Path) -> None:
    program = script(directory, "cat >/dev/null; exit 67")
    async with serve(program, timeout=1) as server:
        talk = await server.connect()
        await talk.send(TEXT)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            await talk.send(TEXT)
        os.unlink(program)
        await talk.send(TEXT)
        assert len(os.listdir("/proc/self/fd")) == before
        server.forget("program-failed")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"command": []}, "needs at least the program"),
        ({"command": ["procmail"]}, "with its whole path"),
        ({"command": ["/bin/{user}"]}, "must not have placeholders"),
        ({"command": ["/bin/cat", "{users}"]}, r"no placeholder {users}; there are {detail}, {domain}"),
        ({"command": ["/bin/cat", "a\0"]}, "no NUL"),
        ({"command": ["/bin/sh", "-c", "echo {user}"]}, "let strangers write shell commands"),
        ({"command": ["/usr/bin/bash", "-e", "-xc", "echo {user}"]}, "let strangers write shell commands"),
        ({"command": ["/bin/sh", "{user}"]}, "let strangers write shell commands"),
        ({"command": ["/bin/cat", "{user}"], "per_recipient": False}, "there is no {user}"),
        ({"command": ["/bin/cat", "-d{recipient}"], "per_recipient": False}, "a word of its own"),
        ({"command": ["/bin/cat", "{sender}"], "protocol": "lmtp"}, "{sender} is not known"),
        ({"command": ["/bin/cat"], "environment": {"A=B": "x"}}, 'names without "="'),
    ],
)
def test_command_that_cannot_be_meant_is_a_mistake(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        PipeOptions.model_validate({"type": "pipe", **options})


def test_shell_may_have_arguments_behind_its_script() -> None:
    PipeOptions.model_validate({"type": "pipe", "command": ["/bin/sh", "-c", 'echo "$1"', "sh", "{user}"]})


async def test_program_that_cannot_be_watched_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pid: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    async with serve("/bin/cat") as server:
        talk = await server.connect()
        monkeypatch.setattr(os, "pidfd_open", fail)
        before = len(os.listdir("/dev/fd"))
        assert (await talk.send(TEXT))[-1].startswith("451 ")
        assert len(os.listdir("/dev/fd")) == before
        server.forget("program-failed")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_end_in_lf_however_they_are_cut(size: int) -> None:
    text = b"a\r\n\r\nb\rc\r\r\nd\n\r"
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert b"".join(with_lf(pieces)) == b"a\n\nb\rc\r\nd\n\r"
