import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from delivery_agents.maildir import MaildirOptions
from smtpd import replies
from smtpd.plugins import BrokenPlugin
from tests.delivery_agents.conftest import TEXT, Start, ask, deliver, events, message, recipient, stored, transaction


async def test_message_is_stored_with_our_fields_on_top(start: Start, tmp_path: Path) -> None:
    agent = await start()
    assert await deliver(agent, "Bob@Example.com") is replies.ACCEPTED
    (path,) = stored(tmp_path)
    assert path.parent == tmp_path / "mail/example.com/bob/new"
    assert path.read_bytes() == (
        b"Return-Path: <eve@sender.test>\r\nDelivered-To: Bob@Example.com\r\nReceived: by mx.test\r\n" + TEXT
    )
    assert not stored(tmp_path, "tmp")


async def test_null_sender_is_an_empty_return_path(start: Start, tmp_path: Path) -> None:
    agent = await start()
    await deliver(agent, "bob@example.com", sender="")
    assert stored(tmp_path)[0].read_bytes().startswith(b"Return-Path: <>\r\n")


async def test_two_names_of_one_mailbox_get_one_copy(start: Start, tmp_path: Path) -> None:
    agent = await start()
    mail = transaction("bob@example.com", "BOB+tag@example.com")
    assert await agent.deliver(mail, message()) is replies.ACCEPTED
    assert len(stored(tmp_path)) == 1


async def test_two_directories_of_one_mailbox_get_one_copy(start: Start, tmp_path: Path) -> None:
    (tmp_path / "mail/example.com/bob").mkdir(parents=True)
    (tmp_path / "mail/example.com/robert").symlink_to("bob")
    agent = await start(recipients="existing")
    mail = transaction("bob@example.com", "robert@example.com")
    assert await agent.deliver(mail, message()) is replies.ACCEPTED
    assert len(stored(tmp_path / "mail/example.com/bob")) == 1


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
    (line,) = events(agent)
    assert line.startswith("mail-not-stored ")
    assert f"there is no directory {tmp_path / 'mail'}" in line
    assert "cannot be read" in (await agent.health() or "")


@pytest.mark.parametrize("empty", ["mail", "mail/example.com"])
async def test_directory_that_is_not_mounted_never_means_unknown(start: Start, tmp_path: Path, empty: str) -> None:
    (tmp_path / empty).mkdir(parents=True)
    agent = await start(recipients="existing")
    assert await ask(agent, "bob@example.com") is replies.BACKEND_DOWN
    problem = f"there is nothing in {tmp_path / empty}; is it mounted?"
    assert problem in events(agent)[0]
    assert await agent.health() == (problem if empty == "mail" else None)  # who has mail elsewhere still gets it
    (tmp_path / "mail/example.com/bob").mkdir(parents=True)
    assert await ask(agent, "bob@example.com") is None
    assert await ask(agent, "eve@example.com") == replies.NO_SUCH_USER
    assert await ask(agent, "bob@example.org") == replies.NO_SUCH_USER


@pytest.mark.parametrize("target", ["/not/mounted/yet", "loop"])
@pytest.mark.parametrize("name", ["example.com", "example.com/bob"])
async def test_mailbox_that_cannot_be_looked_at_never_means_unknown(
    start: Start, tmp_path: Path, name: str, target: str
) -> None:
    link = tmp_path / "mail" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(link if target == "loop" else target)
    agent = await start(recipients="existing")
    assert await ask(agent, "bob@example.com") is replies.BACKEND_DOWN
    assert await deliver(agent, "bob@example.com") is replies.STORE_FAILED
    assert str(tmp_path / "mail/example.com/bob") in events(agent)[0]
    assert await ask(agent, "bob@example.org") == replies.NO_SUCH_USER


async def test_mailbox_that_vanished_after_rcpt_is_temporary(start: Start, tmp_path: Path) -> None:
    (tmp_path / "mail/example.com/bob").mkdir(parents=True)
    agent = await start(recipients="existing")
    assert await ask(agent, "bob@example.com") is None
    shutil.rmtree(tmp_path / "mail/example.com/bob")
    assert await deliver(agent, "bob@example.com") is replies.STORE_FAILED
    assert not (tmp_path / "mail/example.com/bob").exists()


@pytest.mark.parametrize("names", [["bob@example.com"], ["bob@example.com", "eve@example.com"]])
@pytest.mark.parametrize("is_link", [False, True])
async def test_root_that_has_gone_is_not_made_anew(
    start: Start, tmp_path: Path, names: list[str], is_link: bool
) -> None:
    if is_link:
        (tmp_path / "disk").mkdir()
        (tmp_path / "mail").symlink_to(tmp_path / "disk")
    agent = await start()
    assert await deliver(agent, *names) is replies.ACCEPTED
    root = tmp_path / ("disk" if is_link else "mail")
    root.rename(tmp_path / "aside")
    assert await deliver(agent, *names) is replies.STORE_FAILED
    assert not root.exists()
    (tmp_path / "aside").rename(root)
    assert await deliver(agent, *names) is replies.ACCEPTED


async def test_agent_for_anybody_has_nothing_to_ask(start: Start) -> None:
    assert not (await start()).asks
    assert (await start(quota=1000)).asks


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


async def test_folder_of_the_recipient_is_made_in_its_mailbox(start: Start, tmp_path: Path) -> None:
    agent = await start(folders={"junk": "Junk"})
    plain, junk = recipient("bob@example.com"), recipient("eve@example.com", "junk")
    plain.folder = junk.folder = "Lists/News"
    assert await agent.deliver(transaction(plain, junk), message()) is replies.ACCEPTED
    assert {str(path.parent.relative_to(tmp_path / "mail/example.com")) for path in stored(tmp_path)} == {
        "bob/.Lists.News/new",
        "eve/.Junk/new",
    }
    assert (tmp_path / "mail/example.com/bob/.Lists.News/maildirfolder").exists()


async def test_folder_of_the_recipient_makes_no_mailbox(start: Start, tmp_path: Path) -> None:
    agent = await start(recipients="existing")
    (tmp_path / "mail/example.com").mkdir(parents=True)
    gone = recipient("bob@example.com")
    gone.folder = "News"
    assert (await agent.deliver(transaction(gone), message())) is replies.STORE_FAILED
    assert list((tmp_path / "mail/example.com").iterdir()) == []


@pytest.mark.parametrize("folder", ["../../x", "..", ".x", "a/../b", "a//b", "/a", "a\n", "a\0"])
async def test_folder_that_could_be_a_path_is_the_inbox(start: Start, tmp_path: Path, folder: str) -> None:
    agent = await start()
    bob = recipient("bob@example.com")
    bob.folder = folder
    assert await agent.deliver(transaction(bob), message()) is replies.ACCEPTED
    assert [path.parent for path in stored(tmp_path)] == [tmp_path / "mail/example.com/bob/new"]


@pytest.mark.parametrize("folder", ["", "../x", ".x", "a//b", "/a", "a\n"])
def test_folder_that_could_be_something_else_is_a_mistake(folder: str) -> None:
    with pytest.raises(ValueError, match="folder is made of"):
        MaildirOptions(type="maildir", path="/m", folders={"junk": folder})


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


async def test_only_the_topmost_hundred_deliveries_count_so_that_thousands_cost_nothing(start: Start) -> None:
    agent = await start()
    bob, others = b"Delivered-To:\r\n <bob@example.com>\r\n", b"Delivered-To: eve@example.com\r\n"
    assert await deliver(agent, "bob@example.com", text=others * 100 + bob) is replies.ACCEPTED
    assert await deliver(agent, "bob@example.com", text=others * 99 + bob) != replies.ACCEPTED


async def test_list_of_recipients_that_makes_no_sense_keeps_the_server_from_starting(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "list").write_text("joe\n")
    with pytest.raises(BrokenPlugin, match=r"agent store: .*/list:1: "):
        await start(recipients={"file": str(tmp_path / "list")})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"f_flag": os.ST_RDONLY}, "mail is mounted read-only"),
        ({"f_bavail": 0}, "mail is on a full disk"),
        ({"f_favail": 0}, "mail is on a full disk"),
        ({"f_bavail": 0, "f_blocks": 0, "f_favail": 0, "f_files": 0}, ""),
    ],
)
async def test_agent_is_not_well_when_its_disk_takes_nothing(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, int], said: str
) -> None:
    agent = await start()
    assert await agent.health() is None
    disk = {"f_flag": 0, "f_blocks": 9, "f_bavail": 9, "f_files": 9, "f_favail": 9} | changed
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**disk))
    assert (await agent.health() or "").removeprefix(f"{tmp_path}/") == said
