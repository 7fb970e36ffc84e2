"""The programs in docs/aiosmtpd.md, run as they stand there."""

import re
import smtplib
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from bridge import MAIL, Keeper, running, send

PAGE = Path(__file__).resolve().parent.parent / "docs" / "aiosmtpd.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
CHANGED_IMPORT, CONFIGURED = range(2)


@pytest.fixture
def program(tmp_path: Path) -> Callable[[int], ModuleType]:
    """The n-th program of the page as a module, from a file of its own."""

    def load(number: int) -> ModuleType:
        path = tmp_path / f"program{number}.py"
        path.write_text(PROGRAMS[number])
        spec = spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


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
    assert len(PROGRAMS) == CONFIGURED + 1
