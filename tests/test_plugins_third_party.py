"""Plug-ins of third parties: each is installed from its own distribution and found by entry point."""

import mailbox
import smtplib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

FIND = """
from smtpd.plugins import AGENTS, FILTERS, find
print(find(FILTERS, "subject").__module__, find(AGENTS, "mbox").__module__)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, workshop: Any) -> Path:
    """The Python of an environment with us, a filter and an agent of third parties."""
    folder = tmp_path_factory.mktemp("sources")
    ours = folder / "ours"
    workshop.copy(ours, "smtpd", "filters", "delivery_agents", "pyproject.toml", "README.md", "LICENSE")
    workshop.copy(folder, "tests/thirdparty/filter", "tests/thirdparty/agent")
    made: Path = workshop.environment(folder / "environment", ours, folder / "filter", folder / "agent")
    return made


def test_plugins_of_third_parties_are_found_by_entry_point(python: Path, tmp_path: Path, workshop: Any) -> None:
    modules = workshop.run(python, "-I", "-c", FIND, folder=tmp_path).split()
    assert modules == ["smtpd_filter_subject", "smtpd_agent_mbox"]


def configuration(folder: Path) -> dict[str, Any]:
    return {
        "smtpd": {
            "postmaster": "alice@example.test",
            "agents": {"mailstore": None, "archive": {"type": "mbox", "path": str(folder / "m"), "users": ["alice"]}},
            "domains": {"example.test": "archive"},
            "filters": {"subject": {"words": ["lottery"]}},
        }
    }


def subjects(box: Path) -> list[str]:
    with closing(mailbox.mbox(box)) as opened:
        return [message["Subject"] for message in opened]


def send(port: int, recipient: str, subject: str) -> None:
    content = f"From: <bob@sender.test>\r\nSubject: {subject}\r\n\r\nHello.\r\n"
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail("bob@sender.test", [recipient], content)


def test_plugins_of_third_parties_judge_and_deliver(
    python: Path, directory: Path, serve: Callable[..., Any]
) -> None:
    server = serve(configuration(directory), python=str(python))
    send(server.port("smtp"), "alice@example.test", "Dinner")
    assert subjects(directory / "m") == ["Dinner"]

    with pytest.raises(smtplib.SMTPDataError) as refused:
        send(server.port("smtp"), "alice@example.test", "You won the LOTTERY")
    assert refused.value.smtp_code == 550
    assert b"lottery" in refused.value.smtp_error

    with pytest.raises(smtplib.SMTPRecipientsRefused):
        send(server.port("smtp"), "nobody@example.test", "Dinner")
    assert subjects(directory / "m") == ["Dinner"]
    assert server.stop() == 0
