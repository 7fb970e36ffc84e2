import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smtpd.cli import main

MANUAL = Path(__file__).resolve().parent.parent / "docs" / "operating.md"
CONFIG = r"""
[smtpd]
hostname = "mx.example.com"
postmaster = "root@example.com"
[smtpd.listeners.smtp]
address = ":25"
mode = "smtp"
tls = "off"
[smtpd.domains]
"example.com" = "store"
[smtpd.relay]
agent = "out"
[smtpd.agents.store]
type = "discard"
allow_discard = true
[smtpd.agents.out]
type = "discard"
allow_discard = true
[smtpd.recipients]
"sales@example.com" = { mailbox = "shared@example.com", folder = "Sales" }
'/(?P<user>[a-z]+)-(?P<box>[a-z]+)@example\.com/' = { mailbox = "{user}@example.com", folder = "{box}" }
"old*@example.com" = "deny"
[smtpd.replies]
no-such-user = "Nobody is called {address}"
"""


def check(tmp_path: Path, *arguments: str, config: str = CONFIG) -> Result:
    path = tmp_path / "config.toml"
    path.write_text(config)
    return CliRunner().invoke(main, ["check", "--config", str(path), *arguments])


def test_way_of_a_recipient_is_shown_step_by_step(tmp_path: Path) -> None:
    result = check(tmp_path, "--route", "Bob-News@Example.com")
    assert result.exit_code == 0
    assert [" ".join(line.split()) for line in result.output.splitlines()] == [
        "address Bob-News@Example.com compared as bob-news@example.com",
        'domain example.com one of ours by "example.com", agent "store"',
        "as it stands bob-news@example.com not in the map",
        r"pattern /(?P<user>[a-z]+)-(?P<box>[a-z]+)@example\.com/ "
        "mailbox \"{user}@example.com\", folder \"{box}\", user='bob', box='news'",
        'taken: agent "store", mailbox bob@example.com, folder news',
    ]


@pytest.mark.parametrize(
    ("address", "last"),
    [
        ("sales+x@example.com", 'taken: agent "store", mailbox shared@example.com, folder Sales'),
        ("<ann@example.com>", 'taken: agent "store", mailbox ann@example.com, folder none, the inbox'),
        (
            "Postmaster",
            'taken: agent "store", mailbox root@example.com, folder none, the inbox, no filter may refuse it',
        ),
    ],
)
def test_answer_for_a_recipient_of_ours_names_agent_mailbox_and_folder(tmp_path: Path, address: str, last: str) -> None:
    result = check(tmp_path, "--route", address)
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, last)


@pytest.mark.parametrize(
    ("address", "last"),
    [
        ("old7@example.com", "refused: 550 5.1.1 Nobody is called old7@example.com"),
        ("ann@elsewhere.test", "refused: 550 5.7.1 "),
        ("ann%x@example.com", "refused: 550 5.7.1 "),
        ("no address", "refused: 501 5.1.3 Bad recipient address: "),
        ("a@example.com b", "refused: 501 5.1.3 Bad recipient address: "),
        ("<a@example.com> b", "refused: 501 5.1.3 Bad recipient address: something follows the address"),
        ("<>", "refused: 501 5.1.3 Bad recipient address: the empty path is for senders only"),
    ],
)
def test_refusal_is_shown_as_the_client_would_hear_it(tmp_path: Path, address: str, last: str) -> None:
    result = check(tmp_path, "--route", address)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith(last)


def test_login_changes_the_way(tmp_path: Path) -> None:
    assert check(tmp_path, "--route", "ann@elsewhere.test").exit_code == 1
    result = check(tmp_path, "--route", "ann@elsewhere.test", "--authenticated")
    assert result.exit_code == 0
    assert 'taken: agent "out", mailbox ann@elsewhere.test' in result.output


def test_machines_get_json(tmp_path: Path) -> None:
    result = check(tmp_path, "--route", "sales@example.com", "--json")
    assert json.loads(result.output) == {
        "taken": True,
        "agent": "store",
        "mailbox": "shared@example.com",
        "folder": "Sales",
        "exempt": False,
        "steps": [
            {"looked_for": "address sales@example.com", "found": "compared as sales@example.com"},
            {"looked_for": "domain example.com", "found": 'one of ours by "example.com", agent "store"'},
            {
                "looked_for": "as it stands sales@example.com",
                "found": 'mailbox "shared@example.com", folder "Sales"',
            },
        ],
    }
    refused = json.loads(check(tmp_path, "--route", "old7@example.com", "--json").output)
    assert (refused["taken"], refused["reason"]) == (False, "no-such-user")
    assert refused["reply"] == "550 5.1.1 Nobody is called old7@example.com"


def test_wrong_configuration_has_an_exit_status_of_its_own(tmp_path: Path) -> None:
    result = check(tmp_path, "--route", "ann@example.com", config=CONFIG + "[smtpd.domans]\n")
    assert result.exit_code == 2
    assert "smtpd.domans: unknown key" in result.stderr
    assert result.stdout == ""


def test_address_cannot_write_on_the_terminal(tmp_path: Path) -> None:
    result = check(tmp_path, "--route", "a\u202eb@example.com")
    assert result.exit_code == 0
    assert "a\\u202eb@example.com" in result.output
    assert "\u202e" not in result.output


@pytest.mark.parametrize(
    ("switches", "said"),
    [
        (("--json",), "--json needs --route, --records or --zone"),
        (("--authenticated", "--records"), "--authenticated needs --route"),
        (("--route", "ann@example.com", "--records"), "--route goes with neither --records nor --zone"),
        (("--route", "ann@example.com", "--zone", "zone.toml"), "--route goes with neither --records nor --zone"),
    ],
)
def test_switches_that_do_not_go_together_are_refused(tmp_path: Path, switches: tuple[str, ...], said: str) -> None:
    result = check(tmp_path, *switches)
    assert result.exit_code == 2
    assert said in result.stderr


def test_developer_set_up_can_be_asked_too() -> None:
    result = CliRunner().invoke(main, ["check", "--route", "anybody@example.test"])
    assert result.exit_code == 0
    assert 'agent "mailbox"' in result.output


def test_example_of_the_manual_is_what_is_said(tmp_path: Path) -> None:
    section = MANUAL.read_text(encoding="utf-8").partition("## Where mail goes")[2].partition("\n## ")[0]
    toml = section.partition("```toml\n")[2].partition("```")[0]
    command, _, said = section.partition("```console\n")[2].partition("```")[0].partition("\n")
    config = CONFIG.partition("[smtpd.recipients]")[0].replace("store", "mailstore") + toml
    assert check(tmp_path, *command.split()[-2:], config=config).output == said
