import os
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery_agents.mailboxes import MAX_NAME, directory_name
from delivery_agents.maildir import MaildirOptions
from smtpd import replies
from tests.delivery_agents.conftest import Start, ask, deliver, events, stored

# What a sender can write between quotes, and what must come of it.
NASTY = [
    '"../../etc/passwd"@example.com',
    '".."@example.com',
    '"."@example.com',
    '".hidden"@example.com',
    '"/etc/cron.d/x"@example.com',
    '"a/../../../b"@example.com',
    '"a b"@example.com',
    '"a%2Fb"@example.com',
    '"\\\\"@example.com',
    '"{user}"@example.com',
    '"{domain}"@example.com',
    '"~root"@example.com',
    '"-rf"@example.com',
    "\u00e9" * 30 + "@example.com",
    "\u00e9" * 31 + "@example.com",
    '"' + "/" * 62 + '"@example.com',
    '"' + "/" * 61 + '"@example.com',
    "postmaster@[192.0.2.1]",
    "postmaster@[IPv6:2001:db8::1]",
]


async def test_no_local_part_leads_out_of_the_root_or_into_a_strangers_mailbox(start: Start, tmp_path: Path) -> None:
    agent = await start()
    for text in NASTY:
        assert await deliver(agent, text) is replies.ACCEPTED, text
    boxes = [path.parent.parent for path in stored(tmp_path)]
    assert len(set(boxes)) == len(NASTY)
    assert {box.parent.parent for box in boxes} == {tmp_path / "mail"}
    assert not any(box.name.startswith(".") for box in boxes)
    assert os.listdir(tmp_path) == ["mail"]


async def test_template_places_user_and_domain(start: Start, tmp_path: Path) -> None:
    agent = await start(path=str(tmp_path / "home/{user}/{domain}/Maildir"))
    await deliver(agent, "bob@example.com")
    assert stored(tmp_path)[0].parent == tmp_path / "home/bob/example.com/Maildir/new"


@pytest.mark.parametrize("path", ["", "/var/mail/{name}", "/var/mail/{user", "/var/mail/{}", "/var/{user}}"])
def test_template_with_unknown_placeholder_is_a_mistake(path: str) -> None:
    with pytest.raises(ValueError, match="placeholders"):
        MaildirOptions(type="maildir", path=path)


async def test_case_counts_when_it_is_told_to(start: Start, tmp_path: Path) -> None:
    agent = await start(case_sensitive=True)
    await deliver(agent, "Bob@example.com")
    await deliver(agent, "bob@example.com")
    assert [path.parent.parent.name for path in stored(tmp_path)] == ["Bob", "bob"]


async def test_recipients_can_be_a_list(start: Start) -> None:
    agent = await start(recipients=["Bob@example.com", '"odd one"@example.com'])
    assert await ask(agent, "bob@example.com") is None
    assert await ask(agent, "bob+x@example.com") is None
    assert await ask(agent, '"Odd One"@example.com') is None
    assert await ask(agent, "eve@example.com") == replies.NO_SUCH_USER


def test_list_with_something_else_than_addresses_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="domain is missing"):
        MaildirOptions(type="maildir", path="/m", recipients=["bob"])  # type: ignore[arg-type]


async def test_file_of_recipients_is_read_again_when_it_changes(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "recipients"
    file.write_text("# people\n\nbob@example.com\n")
    agent = await start(recipients={"file": str(file)})
    known: Any = agent._known._file
    now = [100.0]
    known._clock = lambda: now[0]
    assert await ask(agent, "bob@example.com") is None
    assert await ask(agent, "eve@example.com") == replies.NO_SUCH_USER
    replace(file, "eve@example.com\n")
    assert await ask(agent, "eve@example.com") == replies.NO_SUCH_USER
    now[0] += 2
    assert await ask(agent, "eve@example.com") is None
    assert await ask(agent, "bob@example.com") == replies.NO_SUCH_USER
    replace(file, "not an address at all\n")
    now[0] += 2
    assert await ask(agent, "eve@example.com") is None
    file.unlink()
    now[0] += 2
    assert await ask(agent, "eve@example.com") is None
    assert f"{file}:1: " in events(agent)[0]
    assert len(events(agent)) == 2


async def test_nobody_is_refused_while_the_file_of_recipients_is_written(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "recipients"
    replace(file, "bob@example.com\neve@example.com\n")
    agent = await start(recipients={"file": str(file)})
    known: Any = agent._known._file
    now = [100.0]
    known._clock = known._rest._clock = lambda: now[0]
    for begun in ("", "bob@example.com\n", "bob@example.com\nann@example.com\neve"):
        file.write_text(begun)
        now[0] += 1
        assert await ask(agent, "bob@example.com") is None
        assert await ask(agent, "eve@example.com") is None
        assert await ask(agent, "ann@example.com") == replies.BACKEND_DOWN
    file.write_text("bob@example.com\nann@example.com\n")
    for expected in (replies.BACKEND_DOWN, replies.BACKEND_DOWN, None):
        now[0] += 1
        assert await ask(agent, "ann@example.com") == expected
    assert await ask(agent, "eve@example.com") == replies.NO_SUCH_USER
    assert events(agent) == []


async def test_file_of_recipients_whose_time_lies_ahead_is_read_in_the_end(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "recipients"
    replace(file, "bob@example.com\n")
    agent = await start(recipients={"file": str(file)})
    known: Any = agent._known._file
    now = [100.0]
    known._clock = known._rest._clock = lambda: now[0]
    file.write_text("eve@example.com\n")
    os.utime(file, (4e9, 4e9))
    answers = []
    for _ in range(3):
        now[0] += 1
        answers.append(await ask(agent, "eve@example.com"))
    assert answers == [replies.BACKEND_DOWN, replies.BACKEND_DOWN, None]


async def test_file_of_recipients_that_has_lost_them_all_is_not_believed(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "recipients"
    replace(file, "bob@example.com\n")
    agent = await start(recipients={"file": str(file)})
    known: Any = agent._known._file
    now = [100.0]
    known._clock = lambda: now[0]
    replace(file, "# made by a program that failed\n")
    for _ in range(3):
        now[0] += 2
        assert await ask(agent, "bob@example.com") is None
        assert await ask(agent, "eve@example.com") == replies.NO_SUCH_USER
    assert [f"{file} holds no address any more" in event for event in events(agent)] == [True]


async def test_file_of_recipients_that_is_empty_from_the_start_refuses_nobody(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "recipients"
    replace(file, "")
    agent = await start(recipients={"file": str(file)})
    assert await ask(agent, "bob@example.com") == replies.BACKEND_DOWN


async def test_file_of_recipients_that_could_not_be_read_is_tried_again(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "recipients"
    file.write_text("bob@example.com\n")
    agent = await start(recipients={"file": str(file)})
    known: Any = agent._known._file
    now = [100.0]
    known._clock = lambda: now[0]
    replace(file, "eve@example.com\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        for _ in range(3):
            assert await ask(agent, "eve@example.com") == replies.NO_SUCH_USER
            now[0] += 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(events(agent)) == 1
    assert await ask(agent, "eve@example.com") is None


async def test_missing_file_of_recipients_keeps_the_agent_from_starting(start: Start, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await start(recipients={"file": str(tmp_path / "missing")})


def replace(file: Path, text: str) -> None:
    """Write a file, and let nobody have touched it for a while."""
    file.write_text(text)
    os.utime(file, (long_ago := file.stat().st_mtime - 60, long_ago))


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300)


@given(names)
def test_any_text_becomes_one_harmless_name(text: str) -> None:
    name = directory_name(text)
    assert 0 < len(name.encode()) <= MAX_NAME
    assert name.isascii()
    assert name.isprintable()
    assert "/" not in name
    assert not name.startswith(".")


@given(names, names)
def test_different_texts_become_different_names(one: str, two: str) -> None:
    assert (directory_name(one) == directory_name(two)) == (one == two)


@pytest.mark.parametrize(
    "text", ["", "%_", ".", "%2E", "%2e", "a" * 300, "a" * 301, directory_name("a" * 300), "A", "a"]
)
def test_encoded_name_is_not_the_name_of_another(text: str) -> None:
    others = ["", "%_", ".", "%2E", "%2e", "a" * 300, "a" * 301, directory_name("a" * 300), "A", "a"]
    assert [other for other in others if directory_name(other) == directory_name(text)] == [text]
