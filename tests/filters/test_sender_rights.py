"""What a file of rights may hold, and what becomes of mail while it changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from filters.sender_login import SenderLogin, SenderLoginOptions
from filters.sender_rights import OwnAddresses, User, parse_rights
from smtpd.addresses import parse_address
from smtpd.memory import MemoryServer
from smtpd.plugins import BrokenPlugin

FILE = b"""\
\xef\xbb\xbf# who may send as whom
alice@example.com: info@example.com @sales.example.com   # since May

ALICE@Example.COM:\t"joe smith"@example.com
bob:@*.lists.example.com
empty:
scanner : *
*: all@example.com
j\xc3\xb6rg@b\xc3\xbccher.example: j\xc3\xb6@xn--bcher-kva.example
"""


def may(login: str, address: str, content: bytes = FILE) -> bool:
    return parse_rights(content, "rights").allow(User(login), parse_address(address))


@pytest.mark.parametrize(
    ("login", "address"),
    [
        ("alice@example.com", "info@example.com"), ("alice@example.com", "Any@Sales.Example.com"),
        ("Alice@EXAMPLE.com", '"Joe Smith"@example.com'), ("bob", "news@a.lists.example.com"),
        ("bob", "all@example.com"), ("scanner", "who@ever.example"),
        ("j\u00f6rg@xn--bcher-kva.example", "jo\u0308@b\u00fccher.example"),
        ("empty", "all@example.com"), ("unknown", "all@example.com"),
    ],
)  # fmt: skip
def test_lines_give_addresses(login: str, address: str) -> None:
    assert may(login, address)


@pytest.mark.parametrize(
    ("login", "address"),
    [
        ("alice", "info@example.com"), ("bob", "info@example.com"), ("bob", "x@lists.example.com"),
        ("empty", "empty@example.com"), ("alice@example.com", "alice@example.com"), ("unknown", "who@ever.example"),
        ("alice@example.com", "May@example.com"),
    ],
)  # fmt: skip
def test_nobody_gets_what_is_not_there(login: str, address: str) -> None:
    assert not may(login, address)


def test_wrong_lines_are_named_with_file_and_number() -> None:
    wrong = b"alice info@example.com\nbob: joe\n: x@example.com\na b: x@example.com\n\xff: *\nbob: a@b.example *x\nx\n"
    with pytest.raises(ValueError, match="rights:1: ") as caught:
        parse_rights(wrong, "rights")
    problems = str(caught.value).split("; ")
    assert [problem.partition(": ")[0] for problem in problems[:5]] == [f"rights:{number}" for number in range(1, 6)]
    assert problems[5:] == ["and 2 more lines"]


def test_everybodys_domain_is_nobodys_own() -> None:
    own = OwnAddresses(["*"])
    assert not own.hold(User("joe"), parse_address("joe@a.example"))
    assert own.hold(User("joe@a.example"), parse_address("joe@a.example"))


class House:
    """A server with a file of rights, whose clock is ours."""

    def __init__(self, file: Path) -> None:
        self.server = MemoryServer(filters={"sender_login": (SenderLogin, {"file": str(file)})})
        self.now = 100.0

    def start(self) -> None:
        watched: Any = self.server.filters["sender_login"]._file  # type: ignore[attr-defined]
        watched._clock = watched._rest._clock = lambda: self.now

    async def send(self, sender: str) -> str:
        """The answer to a message from Alice, two seconds after the last one."""
        self.now += 2
        talk = await self.server.connect(login="alice@example.test")
        return (await talk.send(f"From: {sender}\n\n", sender=sender))[-1]


def write(file: Path, text: str, *, rested: bool = True) -> None:
    """Write a file; `rested`: nobody has touched it for a while."""
    file.write_text(text)
    if rested:
        os.utime(file, (long_ago := file.stat().st_mtime - 60, long_ago))


INFO = "info@example.test"
SALES = "sales@example.test"
LATER = "451 4.7.1 Whether you may send as sales@example.test cannot be said now, please try again later ["


async def test_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    write(file := tmp_path / "rights", f"alice@example.test: {INFO}\n")
    house = House(file)
    async with house.server:
        house.start()
        assert [(await house.send(one))[:3] for one in (INFO, SALES)] == ["250", "550"]
        write(file, f"alice@example.test: {SALES}\n")
        assert [(await house.send(one))[:3] for one in (INFO, SALES)] == ["550", "250"]


async def test_old_rights_hold_while_somebody_writes_and_others_hear_451(tmp_path: Path) -> None:
    write(file := tmp_path / "rights", f"alice@example.test: {INFO}\n")
    house = House(file)
    async with house.server:
        house.start()
        write(file, "alice@exam", rested=False)
        assert (await house.send(INFO)).startswith("250 ")
        house.now -= 2
        write(file, "alice@example.test: sal", rested=False)
        assert (await house.send(SALES)).startswith(LATER)
        assert house.server.count("smtpd_sender_login_checks_total", part="envelope", result="later") == 1
        write(file, f"alice@example.test: {SALES}\n")
        assert (await house.send(SALES)).startswith("250 ")


@pytest.mark.parametrize("content", ["alice@example.test sales@example.test", "# nobody\n", None])
async def test_old_rights_stay_when_the_file_cannot_be_used(tmp_path: Path, content: str | None) -> None:
    write(file := tmp_path / "rights", f"alice@example.test: {INFO}\n")
    house = House(file)
    async with house.server:
        house.start()
        if content is None:
            file.unlink()
        else:
            write(file, content)
        assert [(await house.send(one))[:3] for one in (INFO, SALES)] == ["250", "550"]
        lines = [line for line in house.server.log if line["event"] == "sender-file-not-usable"]
        assert len(lines) == 1
        assert str(file) in str(lines[0]["problem"])
        house.server.forget("sender-file-not-usable")


async def test_file_without_rights_is_fine_from_the_start(tmp_path: Path) -> None:
    write(file := tmp_path / "rights", "# nobody yet\n")
    house = House(file)
    async with house.server:
        house.start()
        assert [(await house.send(one))[:3] for one in ("alice@example.test", SALES)] == ["250", "550"]


def test_check_names_wrong_lines_and_leaves_a_missing_file_to_others(tmp_path: Path) -> None:
    file = tmp_path / "rights"
    options = SenderLoginOptions(file=str(file))
    assert list(options.obstacles()) == []
    write(file, "alice: a@b.example\nbob: joe\n")
    ((option, problem),) = options.obstacles()
    assert (option, problem.partition(": ")[0]) == ("file", f"{file}:2")
    assert list(SenderLoginOptions().obstacles()) == []


async def test_server_does_not_start_without_its_file_or_with_wrong_lines(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await House(tmp_path / "missing").server.__aenter__()
    write(file := tmp_path / "rights", f"alice {INFO}\n")
    with pytest.raises(BrokenPlugin, match=f"filter sender_login: {file}:1: "):
        await House(file).server.__aenter__()
