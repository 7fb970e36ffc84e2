"""The programs in docs/aiosmtpd.md, run as they stand there."""

import smtplib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from bridge import MAIL, Keeper, running, send
from pages import Page

PAGE = Page("aiosmtpd.md")
CHANGED_IMPORT, CONFIGURED = range(2)


@pytest.fixture
def program(tmp_path: Path) -> Callable[[int], ModuleType]:
    """The n-th program of the page as a module."""
    return partial(PAGE.program, directory=tmp_path)


def test_first_program_of_the_page_keeps_mail(program: Callable[[int], ModuleType]) -> None:
    module = program(CHANGED_IMPORT)
    inbox = module.Inbox()
    with running(module.make_controller(inbox)) as port:
        send(port, "ann@example.com")
        with pytest.raises(smtplib.SMTPRecipientsRefused, match="Not one of ours"):
            send(port, "ann@elsewhere.test")
    (envelope,) = inbox.kept
    assert (envelope.mail_from, envelope.rcpt_tos) == ("bob@sender.test", ["ann@example.com"])
    assert envelope.content.endswith(MAIL.encode())


def test_second_program_of_the_page_has_policy(program: Callable[[int], ModuleType], tmp_path: Path) -> None:
    keeper = Keeper()
    with running(program(CONFIGURED).make_controller(keeper, str(tmp_path / "log"))) as port:
        send(port, "ann@example.com")
        with pytest.raises(smtplib.SMTPRecipientsRefused, match="No mailbox here"):
            send(port, "spam@example.com")
    assert len(keeper.kept) == 1
    assert '"event":"message"' in (tmp_path / "log").read_text()


def test_every_program_of_the_page_is_run() -> None:
    assert len(PAGE.blocks("python")) == CONFIGURED + 1
