import asyncio
import errno
import os
import platform
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from delivery_agents.committer import MAX_BATCH, Committer
from delivery_agents.directories import MAX_OPEN, OWNER, Box
from delivery_agents.syncing import Syncer
from smtpd import replies
from smtpd.content import Content
from smtpd.limits import ContentBudget
from smtpd.model import Message
from smtpd.replies import Reply
from tests.delivery_agents.conftest import Start, deliver, events, message, recipient, stored, transaction


async def test_file_name_follows_the_maildir_rules(start: Start, tmp_path: Path) -> None:
    agent = await start()
    for _ in range(3):
        await deliver(agent, "bob@example.com")
    names = [path.name for path in stored(tmp_path)]
    assert len(set(names)) == 3
    for path in stored(tmp_path):
        assert re.fullmatch(r"\d+\.M\d+P\d+R[0-9a-f]{8}Q\d+\.mx\\0571\.test,S=\d+", path.name)
        assert path.name.endswith(f",S={path.stat().st_size}")


async def test_files_and_directories_are_private(start: Start, tmp_path: Path) -> None:
    agent = await start()
    await deliver(agent, "bob@example.com")
    box = tmp_path / "mail/example.com/bob"
    assert stored(tmp_path)[0].stat().st_mode & 0o777 == 0o600
    assert {path.stat().st_mode & 0o777 for path in (box, box / "new", box / "tmp", box / "cur")} == {0o700}


async def test_group_can_be_let_in_whatever_the_umask(start: Start, tmp_path: Path) -> None:
    agent = await start(access="group")
    before = os.umask(0o077)
    try:
        await deliver(agent, "bob@example.com")
    finally:
        os.umask(before)
    assert stored(tmp_path)[0].stat().st_mode & 0o777 == 0o660
    assert (tmp_path / "mail/example.com/bob/new").stat().st_mode & 0o777 == 0o770


async def test_several_recipients_share_one_file_and_learn_nothing_of_each_other(start: Start, tmp_path: Path) -> None:
    agent = await start()
    assert await deliver(agent, "bob@example.com", "eve@example.com", "carl@example.org") is replies.ACCEPTED
    paths = stored(tmp_path)
    assert len(paths) == 3
    assert len({path.stat().st_ino for path in paths}) == 1
    assert not stored(tmp_path, "tmp")
    for name in (b"bob", b"carl", b"example", b"Delivered-To"):
        assert name not in paths[0].read_bytes()


async def test_message_is_copied_where_it_cannot_be_linked(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EXDEV, "another filesystem")

    agent = await start()
    monkeypatch.setattr(os, "link", refuse)
    assert await deliver(agent, "bob@example.com", "eve@example.com") is replies.ACCEPTED
    one, two = stored(tmp_path)
    assert one.stat().st_ino != two.stat().st_ino
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
async def test_content_is_stored_whatever_its_size_and_wherever_it_was(start: Start, tmp_path: Path, size: int) -> None:
    agent = await start()
    text = b"Subject: x\r\n\r\n" + b"0123456789abcde\n" * (size // 16)
    content = Content(ContentBudget(0), in_memory=50_000)
    for position in range(0, len(text), 700):
        content.write(text[position : position + 700])
    assert await agent.deliver(transaction("bob@example.com"), Message(content)) is replies.ACCEPTED
    content.close()
    assert stored(tmp_path)[0].read_bytes().endswith(b"Delivered-To: bob@example.com\r\n" + text)


async def test_many_messages_at_once_all_arrive_once(start: Start, tmp_path: Path) -> None:
    agent = await start()
    texts = [b"Subject: %d\r\n\r\n" % number for number in range(600)]
    users = ("bob", "eve", "carl")
    answers = await asyncio.gather(
        *(deliver(agent, f"{users[number % 3]}@example.com", text=text) for number, text in enumerate(texts))
    )
    assert set(answers) == {replies.ACCEPTED}
    found = [path.read_bytes().partition(b"Received: by mx.test\r\n")[2] for path in stored(tmp_path)]
    assert sorted(found) == sorted(texts)


async def test_more_mailboxes_than_may_be_open_at_once(start: Start, tmp_path: Path) -> None:
    agent = await start()
    assert await deliver(agent, *(f"user{number}@example.com" for number in range(300))) is replies.ACCEPTED
    assert len(stored(tmp_path)) == 300
    assert not stored(tmp_path, "tmp")


async def test_filesystem_can_be_synced_at_once(start: Start, tmp_path: Path) -> None:
    agent = await start(fsync="filesystem")
    assert await deliver(agent, "bob@example.com", "eve@example.com") is replies.ACCEPTED
    assert len(stored(tmp_path)) == 2


@pytest.mark.parametrize("name", ["new", "tmp", ".Junk"])
async def test_symbolic_link_inside_a_mailbox_is_not_followed(start: Start, tmp_path: Path, name: str) -> None:
    box, elsewhere = tmp_path / "mail/example.com/bob", tmp_path / "elsewhere"
    for part in ("tmp", "new", "cur"):
        (box / part).mkdir(parents=True, exist_ok=True)
        (elsewhere / part).mkdir(parents=True)
    if name != ".Junk":
        (box / name).rmdir()
    (box / name).symlink_to(elsewhere)
    agent = await start(folders={"junk": "Junk"})
    assert await deliver(agent, recipient("bob@example.com", "junk" if name == ".Junk" else "")) is replies.STORE_FAILED
    assert not stored(elsewhere)
    assert not stored(elsewhere, "tmp")


@pytest.mark.parametrize(
    ("call", "number", "expected"),
    [
        ("writev", errno.ENOSPC, replies.NO_SPACE),
        ("writev", errno.EDQUOT, replies.NO_SPACE),
        ("writev", errno.EIO, replies.STORE_FAILED),
        ("fsync", errno.EIO, replies.STORE_FAILED),
        ("rename", errno.ENOSPC, replies.NO_SPACE),
        ("open", errno.EMFILE, replies.STORE_FAILED),
    ],
)
async def test_failing_disk_is_temporary_and_leaves_nothing(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, expected: Reply
) -> None:
    agent = await start()
    await deliver(agent, "bob@example.com")
    await deliver(agent, "eve@example.com")

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        assert await deliver(agent, "bob@example.com", "eve@example.com") is expected
    assert len(stored(tmp_path)) == 2
    assert call == "open" or not stored(tmp_path, "tmp")
    assert "01T" in events(agent)[0]
    assert f"'mailboxes': ['{tmp_path}/mail'], 'problem': 'broken'" in events(agent)[0]
    assert await deliver(agent, "bob@example.com") is replies.ACCEPTED


@pytest.mark.parametrize("failing", ["rename", "fsync"])
async def test_failure_at_the_second_mailbox_takes_it_out_of_the_first(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "unknown")  # so that files are synced one by one
    agent = await start()
    await deliver(agent, "bob@example.com", "eve@example.com")
    genuine: Callable[..., None] = getattr(os, failing)
    calls = iter(range(100))
    limit = {"rename": 1, "fsync": 2}[failing]  # fsync: file, bob's new/, eve's new/

    def fail_later(*arguments: Any, **options: Any) -> None:
        if next(calls) >= limit:
            raise OSError(errno.EIO, "broken")
        genuine(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail_later)
        assert await deliver(agent, "bob@example.com", "eve@example.com") is replies.STORE_FAILED
    assert len(stored(tmp_path)) == 2
    assert not stored(tmp_path, "tmp")


async def test_one_broken_mailbox_does_not_harm_the_others_of_its_batch(start: Start, tmp_path: Path) -> None:
    agent = await start()
    (tmp_path / "mail/example.com").mkdir(parents=True)
    (tmp_path / "mail/example.com/bob").write_text("not a directory")
    names = ["bob", "eve"] * 20
    answers = await asyncio.gather(*(deliver(agent, f"{name}@example.com") for name in names))
    assert answers == [replies.STORE_FAILED, replies.ACCEPTED] * 20
    assert len(stored(tmp_path)) == 20


async def test_bug_while_storing_surfaces_and_the_next_message_is_stored(start: Start, tmp_path: Path) -> None:
    class Broken:
        size = 10

        def chunks(self) -> Iterator[bytes]:
            raise RuntimeError("bug")

        def head(self) -> bytes:
            return b""

        def close(self) -> None:
            return

    agent = await start()
    with pytest.raises(RuntimeError, match="bug"):
        await agent.deliver(transaction("bob@example.com"), Message(Broken()))
    assert not stored(tmp_path, "tmp")
    assert await deliver(agent, "bob@example.com") is replies.ACCEPTED


async def test_content_that_was_given_back_too_early_is_not_stored_as_half_a_message(
    start: Start, tmp_path: Path
) -> None:
    agent = await start()
    made = message()
    waiting = agent.deliver(transaction("bob@example.com"), made)
    task = asyncio.create_task(waiting)
    size = made.content.size
    made.content.close()
    assert made.content.size == size
    assert await task is replies.STORE_FAILED
    assert not stored(tmp_path)
    assert not stored(tmp_path, "tmp")


async def test_waiter_that_goes_away_does_not_stop_the_delivery(start: Start, tmp_path: Path) -> None:
    agent = await start()
    tasks = [asyncio.create_task(deliver(agent, "bob@example.com")) for _ in range(5)]
    await asyncio.sleep(0)
    for task in tasks[:3]:
        task.cancel()
    assert await asyncio.gather(*tasks[3:]) == [replies.ACCEPTED, replies.ACCEPTED]
    await agent.stop()
    assert len(stored(tmp_path)) == 5


async def test_stop_finishes_what_was_handed_over_and_takes_nothing_more(start: Start, tmp_path: Path) -> None:
    agent = await start()
    assert await agent.health() is None
    tasks = [asyncio.create_task(deliver(agent, "bob@example.com")) for _ in range(3 * MAX_BATCH)]
    await asyncio.sleep(0)
    await agent.stop()
    async with asyncio.timeout(10):
        assert set(await asyncio.gather(*tasks)) == {replies.ACCEPTED}
    assert len(stored(tmp_path)) == 3 * MAX_BATCH
    assert await deliver(agent, "bob@example.com") is replies.STORE_FAILED
    assert "not running" in (await agent.health() or "")


async def test_answer_comes_after_the_file_is_synced_and_moved_and_its_directory_synced(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "unknown")
    agent = await start()
    await deliver(agent, "bob@example.com")
    steps: list[str] = []

    def watch(name: str) -> None:
        genuine: Callable[..., Any] = getattr(os, name)

        def step(*arguments: Any, **options: Any) -> Any:
            result = genuine(*arguments, **options)
            target = os.path.basename(os.readlink(f"/proc/self/fd/{arguments[0]}")) if name == "fsync" else ""
            steps.append(f"{name} {target}" if target == "new" else name)
            return result

        monkeypatch.setattr(os, name, step)

    for name in ("writev", "fsync", "rename"):
        watch(name)
    await deliver(agent, "bob@example.com")
    assert steps == ["writev", "fsync", "rename", "fsync new"]


class WatchedSyncer(Syncer):
    """Waits with the first batch until everything is handed over; notes what is synced, and lets some of it fail."""

    def __init__(self, root: Path, *broken: str) -> None:
        super().__init__(str(root))
        self.handed_over = threading.Event()
        self.calls: list[tuple[list[str], int, int]] = []
        """What was synced (the ends of the paths), and how many messages were in tmp/ and in new/ then."""
        self.waiting: list[asyncio.Future[Exception | None]] = []
        self._root = root
        self._broken = broken

    def open(self) -> None:
        super().open()
        self.handed_over.wait()

    def sync(self, descriptors: Sequence[int]) -> list[OSError | None]:
        paths = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in descriptors]
        results = super().sync(descriptors)
        assert not any(future.done() for future in self.waiting)
        self.calls.append((paths, len(stored(self._root, "tmp")), len(stored(self._root))))
        return [
            OSError(errno.EIO, "broken") if any(name in path for name in self._broken) else result
            for path, result in zip(paths, results, strict=True)
        ]


async def store(root: Path, syncer: WatchedSyncer, *addressed: str) -> list[Exception | None]:
    """Store one message for each item, in one batch; several mailboxes have commas between them."""
    committer = Committer("mx.test", syncer, sync="file", access=OWNER, quota=None)
    committer.start()
    for names in addressed:
        boxes = [Box(str(root / name), "", root=str(root)) for name in names.split(",")]
        syncer.waiting.append(committer.store(b"", message(f"Subject: {names}\r\n\r\n".encode()), boxes))
    syncer.handed_over.set()
    await committer.stop()
    return await asyncio.gather(*syncer.waiting)


async def test_batch_is_synced_in_two_steps_and_answered_behind_them(tmp_path: Path) -> None:
    syncer = WatchedSyncer(tmp_path)
    assert await store(tmp_path, syncer, "bob", "eve", "bob", "bob,carl") == [None] * 4
    (files, *first), (directories, *second) = syncer.calls
    assert [re.sub(r"[^/]*$", "", path) for path in files] == [
        f"{tmp_path}/{n}/tmp/" for n in ("bob", "eve", "bob", "bob")
    ]
    assert first == [5, 0]
    assert directories == [f"{tmp_path}/{name}/new" for name in ("bob", "eve", "carl")]
    assert second == [0, 5]


async def test_directories_are_synced_in_parts_when_they_are_too_many_to_be_open(tmp_path: Path) -> None:
    syncer = WatchedSyncer(tmp_path, "user7/new", f"user{MAX_OPEN + 1}/new")
    users = [f"user{number}" for number in range(MAX_OPEN + 2)]
    # Those of the first are used again at the end, which changes the order in which they would be closed.
    results = await store(tmp_path, syncer, *users, *users[:3])
    assert [number for number, failure in enumerate(results) if failure is not None] == [7, MAX_OPEN + 1]
    assert [len(paths) for paths, *_ in syncer.calls] == [MAX_OPEN + 5, MAX_OPEN, 2]
    assert [path for paths, *_ in syncer.calls[1:] for path in paths] == [f"{tmp_path}/{user}/new" for user in users]
    assert len(stored(tmp_path)) == len(results) - 2


async def test_file_that_cannot_be_synced_fails_only_its_own_message(tmp_path: Path) -> None:
    syncer = WatchedSyncer(tmp_path, "eve/tmp")
    bob, eve, both, carl = await store(tmp_path, syncer, "bob", "eve,fay", "bob,eve", "carl")
    assert (bob, both, carl) == (None, None, None)
    assert isinstance(eve, OSError)
    assert eve.errno == errno.EIO
    assert not stored(tmp_path / "fay")
    assert not stored(tmp_path, "tmp")


async def test_directory_that_cannot_be_synced_fails_the_messages_that_went_into_it(tmp_path: Path) -> None:
    syncer = WatchedSyncer(tmp_path, "eve/new")
    bob, eve, both, carl = await store(tmp_path, syncer, "bob", "eve", "bob,eve", "carl")
    assert (bob, carl) == (None, None)
    assert isinstance(eve, OSError)
    assert isinstance(both, OSError)
    assert [path.read_bytes()[-8:-4] for path in stored(tmp_path)] == [b" bob", b"carl"]
    assert not stored(tmp_path, "tmp")
