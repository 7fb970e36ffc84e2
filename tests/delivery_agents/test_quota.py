import asyncio
import os
import resource
from pathlib import Path
from threading import Thread

import pytest

from delivery_agents.quota import Quota
from smtpd import replies
from tests.delivery_agents.conftest import Start, ask, deliver, stored


async def test_full_mailbox_is_put_off_at_rcpt_and_at_the_message(start: Start, tmp_path: Path) -> None:
    agent = await start(quota=300)
    assert await ask(agent, "bob@example.com") is None
    assert await ask(agent, "bob@example.com", size=301) == replies.MAILBOX_FULL
    assert await deliver(agent, "bob@example.com") is replies.ACCEPTED
    assert await ask(agent, "bob@example.com") is None
    assert await deliver(agent, "bob@example.com", text=b"x" * 300) == replies.MAILBOX_FULL
    assert await deliver(agent, "bob@example.com", text=b"x" * 80) is replies.ACCEPTED
    assert await ask(agent, "bob@example.com", size=100) == replies.MAILBOX_FULL
    assert len(stored(tmp_path)) == 2
    assert not stored(tmp_path, "tmp")


async def test_full_mailbox_can_be_a_refusal_for_good(start: Start) -> None:
    agent = await start(quota=100, quota_permanent=True)
    assert await ask(agent, "bob@example.com", size=101) == replies.MAILBOX_FULL_PERMANENTLY


async def test_message_over_the_quota_does_not_fit_into_a_new_mailbox(start: Start, tmp_path: Path) -> None:
    agent = await start(quota=200)
    assert await deliver(agent, "bob@example.com", text=b"x" * 201) == replies.MAILBOX_FULL
    assert not stored(tmp_path)


async def test_freed_space_counts_again(start: Start, tmp_path: Path) -> None:
    agent = await start(quota=200)
    await deliver(agent, "bob@example.com")
    assert await ask(agent, "bob@example.com", size=150) == replies.MAILBOX_FULL
    await ask(agent, "bob@example.com")
    stored(tmp_path)[0].unlink()
    (tmp_path / "mail/example.com/bob/maildirsize").unlink()
    assert await ask(agent, "bob@example.com", size=150) is None


def mailbox(path: Path) -> str:
    for part in ("new", "cur", "tmp", ".Junk/cur", ".Trash/cur"):
        (path / part).mkdir(parents=True)
    (path / "new/1.M1.mx,S=100").write_bytes(b"x")  # the name counts
    (path / "cur/2.M2.mx:2,S").write_bytes(b"x" * 10)  # else the file
    (path / "cur/3.M3.mx,S=5000:2,ST").write_bytes(b"x")  # marked to be deleted
    (path / ".Junk/cur/4.M4.mx,S=1000:2,").write_bytes(b"x")
    (path / ".Trash/cur/5.M5.mx,S=5000:2,").write_bytes(b"x")
    (path / "tmp/6").write_bytes(b"x" * 5000)
    return str(path)


def test_count_follows_the_rules_of_maildir_plus_plus(tmp_path: Path) -> None:
    path = mailbox(tmp_path / "box")
    quota = Quota(2000)
    assert quota.recount(path) == 1110
    assert (tmp_path / "box/maildirsize").read_text() == "2000S\n1110 3\n"
    quota.add(path, 90)
    assert (tmp_path / "box/maildirsize").read_text() == "2000S\n1110 3\n90 1\n"
    assert not quota.is_full(path, 800)
    assert quota.is_full(path, 801)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1000S\n0 0\n",
        b"2000S\n",
        b"2000S\nnonsense\n",
        b"2000S\n" + b"0 0\n" * 2000,
        b"\xff\0",
        b"2000S\n9999 1\n1 1\n",
    ],
)
def test_file_that_cannot_be_trusted_is_counted_anew(tmp_path: Path, content: bytes) -> None:
    path = mailbox(tmp_path / "box")
    (tmp_path / "box/maildirsize").write_bytes(content)
    assert not Quota(2000).is_full(path, 890, recount=True)
    assert (tmp_path / "box/maildirsize").read_text() == "2000S\n1110 3\n"


def test_full_mailbox_is_counted_anew_every_quarter_of_an_hour(tmp_path: Path) -> None:
    path = mailbox(tmp_path / "box")
    (tmp_path / "box/maildirsize").write_text("2000S\n1999 3\n")
    changed = (tmp_path / "box/maildirsize").stat().st_mtime
    assert Quota(2000, clock=lambda: changed + 899).is_full(path, 10, recount=True)
    assert not Quota(2000, clock=lambda: changed + 901).is_full(path, 10, recount=True)


def test_count_from_before_the_clock_was_set_back_is_counted_anew(tmp_path: Path) -> None:
    path = mailbox(tmp_path / "box")
    (tmp_path / "box/maildirsize").write_text("2000S\n1999 3\n")
    changed = (tmp_path / "box/maildirsize").stat().st_mtime
    assert Quota(2000, clock=lambda: changed - 899).is_full(path, 10, recount=True)  # a clock elsewhere may be ahead
    assert not Quota(2000, clock=lambda: changed - 901).is_full(path, 10, recount=True)


def test_limit_of_another_program_with_messages_is_understood(tmp_path: Path) -> None:
    path = mailbox(tmp_path / "box")
    (tmp_path / "box/maildirsize").write_text("2000S,50C\n1500 3\n")
    assert not Quota(2000).is_full(path, 500)
    assert Quota(2000).is_full(path, 501)


def test_symbolic_link_in_place_of_the_count_is_neither_read_nor_written(tmp_path: Path) -> None:
    path = mailbox(tmp_path / "box")
    target = tmp_path / "target"
    target.write_text("2000S\n0 0\n")
    (tmp_path / "box/maildirsize").symlink_to(target)
    quota = Quota(2000)
    quota.add(path, 5)
    assert quota.is_full(path, 1500, recount=True)
    assert target.read_text() == "2000S\n0 0\n"
    assert not (tmp_path / "box/maildirsize").is_symlink()


async def test_messages_that_are_stored_together_cannot_exceed_the_quota_either(start: Start, tmp_path: Path) -> None:
    agent = await start(quota=1000)
    said = await asyncio.gather(*(deliver(agent, "bob@example.com", text=b"x" * 300) for _ in range(9)))
    assert len(stored(tmp_path)) == said.count(replies.ACCEPTED) == 2


def test_mailbox_can_be_counted_when_the_disk_is_full(tmp_path: Path) -> None:
    path = mailbox(tmp_path / "box")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        assert Quota(2000).recount(path) == 1110
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [found.name for found in (tmp_path / "box/tmp").iterdir()] == ["6"]
    assert not (tmp_path / "box/maildirsize").exists()


def test_directory_in_place_of_the_count_is_let_be(tmp_path: Path) -> None:
    path = mailbox(tmp_path / "box")
    (tmp_path / "box/maildirsize").mkdir()
    quota = Quota(2000)
    quota.add(path, 5)
    assert not quota.is_full(path, 890, recount=True)
    assert quota.is_full(path, 891, recount=True)


def test_named_pipe_in_place_of_the_count_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = mailbox(tmp_path / "box")
    os.mkfifo(tmp_path / "box/maildirsize")
    noting = Thread(target=Quota(2000).add, args=(path, 5), daemon=True)
    noting.start()
    noting.join(30)
    assert not noting.is_alive()
