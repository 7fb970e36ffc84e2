import asyncio
import errno
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from delivery_agents.maildir import Maildir, MaildirOptions
from smtpd import replies
from smtpd.addresses import Address, parse_address
from smtpd.content import Content
from smtpd.limits import ContentBudget
from smtpd.metrics import Metrics
from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.replies import Reply
from smtpd.services import Services

TEXT = b"Subject: hello\r\n\r\nbody\r\n"


class Events:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def error(self, event: str, /, **fields: object) -> None:
        self.lines.append(f"{event} {fields}")


Start = Callable[..., Awaitable[Maildir]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    running: list[Maildir] = []

    async def begin(**options: Any) -> Maildir:
        options = {"type": "maildir", "path": str(tmp_path / "mail"), "recipients": "any"} | options
        services = Services(hostname="mx/1.test", log=Events(), metrics=Metrics())  # type: ignore[arg-type]
        agent = Maildir("store", MaildirOptions(**options), services)
        await agent.start()
        running.append(agent)
        return agent

    yield begin
    for agent in running:
        await agent.stop()


def message(text: bytes = TEXT, *, in_memory: int = 1 << 20) -> Message:
    content = Content(ContentBudget(0), in_memory=in_memory)
    content.write(text)
    made = Message(content)
    made.added.append(b"Received: by mx.test\r\n")
    return made


def recipient(text: str = "bob@example.com", *labels: str) -> Recipient:
    return Recipient(parse_address(text), "store", labels=frozenset(labels))


def transaction(*recipients: Recipient | str, sender: str = "eve@sender.test", size: int | None = None) -> Transaction:
    found = [recipient(each) if isinstance(each, str) else each for each in recipients]
    address = parse_address(sender) if sender else Address.null
    return Transaction("01T", Session("s", "smtp", ip_address("192.0.2.1")), address, size=size, recipients=found)


async def deliver(agent: Maildir, *recipients: Recipient | str, text: bytes = TEXT, **options: Any) -> Any:
    return await agent.deliver(transaction(*recipients, **options), message(text))


def events(agent: Maildir) -> list[str]:
    log = agent.services.log
    assert isinstance(log, Events)
    return log.lines


def stored(root: Path, folder: str = "new") -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.parent.name == folder and path.is_file())


async def test_message_is_stored_with_our_fields_on_top(start: Start, tmp_path: Path) -> None:
    agent = await start()
    assert await deliver(agent, "Bob@Example.com") is replies.ACCEPTED
    (path,) = stored(tmp_path)
    assert path.parent == tmp_path / "mail/example.com/bob/new"
    assert path.read_bytes() == (
        b"Return-Path: <eve@sender.test>\r\nDelivered-To: Bob@Example.com\r\nReceived: by mx.test\r\n" + TEXT
    )
    assert not stored(tmp_path, "tmp")


async def test_file_name_follows_the_maildir_rules(start: Start, tmp_path: Path) -> None:
    agent = await start()
    for _ in range(3):
        await deliver(agent, "bob@example.com")
    names = [path.name for path in stored(tmp_path)]
    assert len(set(names)) == 3
    for path in stored(tmp_path):
        assert re.fullmatch(r"\d+\.M\d+P\d+R[0-9a-f]{8}Q\d+\.mx\\0571\.test,S=\d+", path.name)
        assert path.name.endswith(f",S={path.stat().st_size}")


async def test_null_sender_is_an_empty_return_path(start: Start, tmp_path: Path) -> None:
    agent = await start()
    await deliver(agent, "bob@example.com", sender="")
    assert stored(tmp_path)[0].read_bytes().startswith(b"Return-Path: <>\r\n")


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


async def test_two_names_of_one_mailbox_get_one_copy(start: Start, tmp_path: Path) -> None:
    agent = await start()
    mail = transaction("bob@example.com", "BOB+tag@example.com")
    assert await agent.deliver(mail, message()) is replies.ACCEPTED
    assert len(stored(tmp_path)) == 1


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
async def test_content_is_stored_whatever_its_size_and_wherever_it_was(
    start: Start, tmp_path: Path, size: int
) -> None:
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
    assert list(tmp_path.iterdir()) == [tmp_path / "mail"]


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


async def ask(agent: Maildir, text: str, size: int | None = None) -> Reply | None:
    return await agent.verify(recipient(text), transaction(size=size))


async def test_only_existing_mailboxes_take_mail_by_default(start: Start, tmp_path: Path) -> None:
    (tmp_path / "mail/example.com/bob").mkdir(parents=True)
    agent = await start(recipients="existing")
    assert agent.asks
    assert await ask(agent, "BOB@example.com") is None
    assert await ask(agent, "bob+tag@example.com") is None
    assert await ask(agent, "eve@example.com") == replies.NO_SUCH_USER
    assert await ask(agent, "bob@example.org") == replies.NO_SUCH_USER
    assert await deliver(agent, "bob+tag@example.com") is replies.ACCEPTED
    assert stored(tmp_path)[0].parent == tmp_path / "mail/example.com/bob/new"


async def test_mailbox_with_the_whole_name_wins_over_the_one_without_detail(start: Start, tmp_path: Path) -> None:
    (tmp_path / "mail/example.com/bob").mkdir(parents=True)
    (tmp_path / "mail/example.com/bob+list").mkdir(parents=True)
    agent = await start(recipients="existing")
    await deliver(agent, "bob+list@example.com")
    assert stored(tmp_path)[0].parent.parent.name == "bob+list"


async def test_root_that_is_not_mounted_never_means_unknown(start: Start, tmp_path: Path) -> None:
    agent = await start(recipients="existing")
    assert await ask(agent, "bob@example.com") is replies.BACKEND_DOWN
    assert "cannot be read" in (await agent.health() or "")


async def test_mailbox_that_vanished_after_rcpt_is_temporary(start: Start, tmp_path: Path) -> None:
    (tmp_path / "mail/example.com/bob").mkdir(parents=True)
    agent = await start(recipients="existing")
    assert await ask(agent, "bob@example.com") is None
    shutil.rmtree(tmp_path / "mail/example.com/bob")
    assert await deliver(agent, "bob@example.com") is replies.STORE_FAILED
    assert not (tmp_path / "mail/example.com/bob").exists()


async def test_agent_for_anybody_has_nothing_to_ask(start: Start) -> None:
    assert not (await start()).asks
    assert (await start(quota=1000)).asks


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
    known: Any = agent._known
    now = [100.0]
    known._clock = lambda: now[0]
    assert await ask(agent, "bob@example.com") is None
    assert await ask(agent, "eve@example.com") == replies.NO_SUCH_USER
    file.write_text("eve@example.com\n")
    assert await ask(agent, "eve@example.com") == replies.NO_SUCH_USER
    now[0] += 2
    assert await ask(agent, "eve@example.com") is None
    assert await ask(agent, "bob@example.com") == replies.NO_SUCH_USER
    file.write_text("not an address at all\n")
    now[0] += 2
    assert await ask(agent, "eve@example.com") is None
    file.unlink()
    now[0] += 2
    assert await ask(agent, "eve@example.com") is None
    assert "line 1" in events(agent)[0]
    assert len(events(agent)) == 2


async def test_missing_file_of_recipients_keeps_the_agent_from_starting(start: Start, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await start(recipients={"file": str(tmp_path / "missing")})


async def test_label_leads_into_its_folder(start: Start, tmp_path: Path) -> None:
    agent = await start(folders={"virus": "Quarantine/Virus", "junk": "Junk"})
    mail = transaction(recipient("bob@example.com", "junk"), recipient("eve@example.com"))
    assert await agent.deliver(mail, message()) is replies.ACCEPTED
    assert {str(path.parent.relative_to(tmp_path / "mail/example.com")) for path in stored(tmp_path)} == {
        "bob/.Junk/new",
        "eve/new",
    }
    assert (tmp_path / "mail/example.com/bob/.Junk/maildirfolder").exists()
    mail = transaction("carl@example.com")
    mail.labels = frozenset({"virus", "junk"})
    assert await agent.deliver(mail, message()) is replies.ACCEPTED
    assert stored(tmp_path / "mail/example.com/carl")[0].parent.parent.name == ".Quarantine.Virus"


@pytest.mark.parametrize("folder", ["", "../x", ".x", "a//b", "/a", "a\n"])
def test_folder_that_could_be_something_else_is_a_mistake(folder: str) -> None:
    with pytest.raises(ValueError, match="folder is made of"):
        MaildirOptions(type="maildir", path="/m", folders={"junk": folder})


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


async def test_message_delivered_here_before_is_a_loop(start: Start, tmp_path: Path) -> None:
    agent = await start()
    text = b"Received: x\r\nDELIVERED-TO: <BOB@example.com>\r\nDelivered-To: junk\r\n\r\nbody"
    bob, eve = recipient("bob@example.com"), recipient("eve@example.com")
    assert await deliver(agent, bob, text=text) == {bob: replies.DELIVERED_BEFORE}
    assert not stored(tmp_path)
    assert await deliver(agent, bob, eve, text=text) == {bob: replies.DELIVERED_BEFORE, eve: replies.ACCEPTED}
    assert [path.parent.parent.name for path in stored(tmp_path)] == ["eve"]


async def test_delivered_to_in_the_body_is_no_loop(start: Start) -> None:
    agent = await start()
    text = b"Subject: x\r\n\r\nDelivered-To: bob@example.com\r\n"
    assert await deliver(agent, "bob@example.com", text=text) is replies.ACCEPTED


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
    assert await deliver(agent, "bob@example.com") is replies.ACCEPTED


@pytest.mark.parametrize("failing", ["rename", "fsync"])
async def test_failure_at_the_second_mailbox_takes_it_out_of_the_first(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
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
    tasks = [asyncio.create_task(deliver(agent, "bob@example.com")) for _ in range(50)]
    await asyncio.sleep(0)
    await agent.stop()
    assert set(await asyncio.gather(*tasks)) == {replies.ACCEPTED}
    assert len(stored(tmp_path)) == 50
    assert await deliver(agent, "bob@example.com") is replies.STORE_FAILED
    assert "not running" in (await agent.health() or "")


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


async def test_freed_space_counts_again(start: Start, tmp_path: Path) -> None:
    agent = await start(quota=200)
    await deliver(agent, "bob@example.com")
    assert await ask(agent, "bob@example.com", size=150) == replies.MAILBOX_FULL
    await ask(agent, "bob@example.com")
    stored(tmp_path)[0].unlink()
    (tmp_path / "mail/example.com/bob/maildirsize").unlink()
    assert await ask(agent, "bob@example.com", size=150) is None
