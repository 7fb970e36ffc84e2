from dataclasses import replace
from pathlib import Path

import pytest
from rehearsals import LETTER, play

from delivery_agents.maildir import Maildir
from smtpd.delivery import Delivery
from smtpd.model import Recipient, Transaction
from smtpd.policy import PASS, Filter, Verdict


def files_below(path: Path) -> list[Path]:
    return list(path.rglob("*"))


async def test_agents_are_not_started_and_not_asked(tmp_path: Path) -> None:
    store = Maildir.Options(type="maildir", path=str(tmp_path / "mail"), recipients="any")
    done = await play(tables={"agents": {"store": store}})
    assert done.ending == "accepted"
    assert files_below(tmp_path) == []


async def test_agents_that_are_asked_get_no_message(tmp_path: Path) -> None:
    store = Maildir.Options(type="maildir", path=str(tmp_path), recipients="existing")
    for name in ("new", "cur", "tmp"):
        (tmp_path / "example.test" / "ann" / name).mkdir(parents=True)
    letter = replace(LETTER, recipients=("ann@example.test", "bob@example.test"))
    done = await play(letter, tables={"agents": {"store": store}}, ask_agents=True)
    assert [step.code for step in done.steps if step.moment == "rcpt"] == ["250", "550"]
    assert done.ending == "partly accepted"
    assert [path for path in files_below(tmp_path) if path.is_file()] == []


async def test_a_delivery_that_was_begun_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Backend(Delivery):
        async def recipient(self, recipient: Recipient) -> None:
            calls.append("recipient")

        async def abandon(self) -> None:
            calls.append("abandon")

    monkeypatch.setattr(Maildir, "open", lambda agent, mail: Backend(agent, mail))
    monkeypatch.setattr(Maildir, "asks", True)
    store = Maildir.Options(type="maildir", path="/nonexistent", recipients="existing")
    await play(tables={"agents": {"store": store}}, ask_agents=True)
    assert calls == ["recipient", "abandon"]


async def test_content_spills_to_the_disk_of_this_machine() -> None:
    """The directory that the server uses may not be here, or not be ours."""
    limits = {"content_in_memory": 1}
    done = await play(tables={"spool": "/nonexistent", "limits": limits})
    assert (done.ending, done.complaints) == ("accepted", [])


async def test_the_state_of_the_server_is_left_alone(tmp_path: Path) -> None:
    class Remembering(Filter):
        async def on_mail(self, mail: Transaction) -> Verdict:
            await self.services.store.put("grey", "key", b"value", 60.0)
            return PASS

    path = tmp_path / "state.db"
    done = await play(filters={"grey": Remembering}, tables={"state": {"url": f"sqlite:{path}"}})
    assert (done.ending, done.complaints) == ("accepted", [])
    assert not path.exists()
