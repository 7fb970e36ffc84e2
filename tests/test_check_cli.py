from pathlib import Path

import pytest
from click.testing import CliRunner

from smtpd.cli import main

GOOD = """
[smtpd]
hostname = "mx.example.com"
[smtpd.listeners.smtp]
address = ":25"
mode = "smtp"
tls = "off"
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are named as they are given."""
    monkeypatch.chdir(tmp_path)


def test_check_names_all_mistakes_and_fails() -> None:
    path = Path("bad.toml")
    path.write_text("[smtpd]\nhostname = 3\nlistners = {}\n")
    result = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert [line for line in result.stderr.splitlines() if not line.startswith("warning: ")] == [
        "bad.toml:2: smtpd.hostname: must be a string",
        'bad.toml:3: smtpd.listners: unknown key, did you mean "listeners"?',
    ]


def test_check_of_a_good_file_says_ok_and_warns() -> None:
    path = Path("good.toml")
    path.write_text(GOOD)
    result = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert result.exit_code == 0
    assert result.stdout == "ok: 1 listener, 0 domains, 0 agents, 0 filters\n"
    assert "warning: good.toml:2: smtpd.domains: " in result.stderr


def test_check_finds_filters_that_do_not_fit_together() -> None:
    """Whatever keeps the server from starting; a reload would refuse it, too."""
    path = Path("bad.toml")
    path.write_text(GOOD + '[smtpd.filters.headers]\nact_at = "rcpt"\n[smtpd.filters.access]\nunless = ["alowed"]\n')
    result = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert result.exit_code == 1
    assert [line for line in result.stderr.splitlines() if not line.startswith("warning: ")] == [
        'bad.toml:9: smtpd.filters.headers.act_at: "rcpt" is before headers is asked, the earliest is "message"',
        'bad.toml:11: smtpd.filters.access.unless: "alowed" is no condition and no label of a filter, '
        'did you mean "allowed"?',
    ]


def test_check_warns_of_refusals_that_a_forger_can_silence() -> None:
    path = Path("open.toml")
    path.write_text(
        GOOD + '[smtpd.filters.access]\nallow_senders = ["@a.test"]\n[smtpd.filters.spf]\n[smtpd.filters.dkim]\n'
        '[smtpd.filters.dmarc]\nunless = ["authenticated", "allowed", "allowed_sender", "dkim-pass"]\n'
        '[smtpd.filters.own_domain]\nmode = "off"\nunless = ["allowed_sender"]\n'
    )
    result = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert result.exit_code == 0
    assert [line for line in result.stderr.splitlines() if "filters" in line] == [
        "warning: open.toml:13: smtpd.filters.dmarc.unless: "
        f'whoever sends can have the label "{label}", so forgers are not refused either'
        for label in ("allowed_sender", "dkim-pass")
    ]


def test_check_finds_what_the_machine_does_not_have() -> None:
    path = Path("bad.toml")
    path.write_text(
        GOOD.replace("[smtpd]", '[smtpd]\nuser = "no-such-user"\ngroup = "no-such-group"\nwrong = 1')
        + '[smtpd.domains]\n"example.com" = "store"\n'
        + '[smtpd.agents.store]\ntype = "maildir"\npath = "/m"\nrecipients = { file = "/nowhere/recipients" }\n'
        + '[smtpd.auth]\nproviders = ["users"]\n[smtpd.auth.users]\ntype = "file"\npath = "/nowhere/users"\n'
        + '[smtpd.log]\nto = "file:/nowhere/log"\n[smtpd.state]\nurl = "sqlite:/nowhere/state.db"\n'
    )
    result = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert [line.partition(": ")[2] for line in lines] == [
        'smtpd.user: there is no user "no-such-user"',
        'smtpd.group: there is no group "no-such-group"',
        "smtpd.wrong: unknown key",
        "smtpd.agents.store.recipients.file: there is no such file: /nowhere/recipients",
        "smtpd.auth.users.path: there is no such file: /nowhere/users",
        "smtpd.log.to: there is no such directory: /nowhere",
        "smtpd.state.url: there is no such directory: /nowhere",
    ]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("missing/state.db", "there is no such directory: {directory}/missing"),
        ("link", "is a link that leads back to itself: {directory}/link"),
        ("state.db", ""),
    ],
)
def test_check_looks_where_a_link_leads(tmp_path: Path, target: str, said: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / target)
    path = Path("linked.toml")
    path.write_text(f'{GOOD}[smtpd.state]\nurl = "sqlite:{tmp_path}/link"\n[smtpd.log]\nto = "file:{tmp_path}/link"\n')
    result = CliRunner().invoke(main, ["check", "--config", str(path)])
    found = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    told = [
        f"linked.toml:{line}: smtpd.{key}: {said.format(directory=tmp_path)}"
        for line, key in ((9, "state.url"), (11, "log.to"))
    ]
    assert found == (told if said else [])


def test_check_reads_certificates() -> None:
    path = Path("bad.toml")
    path.write_text(f'{GOOD}[smtpd.tls]\ncert_file = "{path}"\nkey_file = "{path}"\n')
    result = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert result.exit_code == 1
    assert f"bad.toml:8: smtpd.tls: {path}: no certificate in PEM form" in result.stderr


def test_check_reads_the_keys_of_the_recipient_map() -> None:
    path = Path("bad.toml")
    path.write_text(GOOD + '[smtpd.recipients]\n"joe b@example.com" = "deny"\n')
    result = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert 'bad.toml:9: smtpd.recipients."joe b@example.com": is no address: ' in result.stderr


def test_check_reads_the_environment() -> None:
    path = Path("good.toml")
    path.write_text(GOOD)
    result = CliRunner(env={"SMTPD__HOSTNAM": "x"}).invoke(main, ["check", "--config", str(path)])
    assert result.exit_code == 1
    assert "environment: SMTPD__HOSTNAM: unknown key" in result.stderr


def test_check_names_the_variable_that_made_a_table() -> None:
    path = Path("good.toml")
    path.write_text(GOOD)
    result = CliRunner(env={"SMTPD__LOOG__LEVEL": "info"}).invoke(main, ["check", "--config", str(path)])
    assert 'environment: SMTPD__LOOG__LEVEL: unknown key, did you mean "log"?' in result.stderr


DMARC = '[smtpd.filters.spf]\n[smtpd.filters.dkim]\n[smtpd.filters.dmarc]\ndiscovery = "psl"\n'


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [
        ("psl_file", "missing", "there is no such file: {path}"),
        ("report_file", "missing/rows", "there is no such directory: {path.parent}"),
        ("report_file", ".", "is a directory: {path}"),
    ],
)
def test_check_finds_files_of_dmarc_that_cannot_be_read_or_made(
    tmp_path: Path, option: str, name: str, said: str
) -> None:
    path = Path("bad.toml")
    named = tmp_path / name
    path.write_text(f'{GOOD}{DMARC}{option} = "{named}"\n')
    result = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert result.exit_code == 1
    assert f"bad.toml:12: smtpd.filters.dmarc.{option}: {said.format(path=named)}" in result.stderr.splitlines()


def test_check_finds_a_file_that_has_to_be_there_and_has_no_name() -> None:
    path = Path("bad.toml")
    path.write_text(GOOD + '[smtpd.auth]\nproviders = ["users"]\n[smtpd.auth.users]\ntype = "file"\npath = ""\n')
    result = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert result.exit_code == 1
    assert "bad.toml:12: smtpd.auth.users.path: there is no such file: " in result.stderr


def test_check_takes_files_of_dmarc_that_are_not_named_or_there(tmp_path: Path) -> None:
    path = Path("good.toml")
    (tmp_path / "list").write_text("com\n")
    for options in ("", f'psl_file = "{tmp_path}/list"\nreport_file = "{tmp_path}/rows"\n'):
        path.write_text(GOOD + DMARC + options)
        assert CliRunner().invoke(main, ["check", "--config", str(path)]).exit_code == 0


def test_check_finds_a_suffix_list_that_nobody_reads() -> None:
    path = Path("bad.toml")
    path.write_text(f'{GOOD}{DMARC.replace("psl", "tree")}psl_file = "{path}"\n')
    result = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert result.exit_code == 1
    assert 'bad.toml:12: smtpd.filters.dmarc.psl_file: needs discovery = "psl": ' in result.stderr


def test_check_finds_forwarders_to_domains_that_are_not_ours() -> None:
    path = Path("bad.toml")
    path.write_text(
        GOOD
        + '[smtpd.domains]\n"*.example.net" = "store"\n"example.com" = "store"\n'
        + '[smtpd.agents.store]\ntype = "discard"\nallow_discard = true\n'
        + '[[smtpd.filters.trusted_forwarders.entries]]\nname = "uni"\nnetworks = ["192.0.2.1"]\n'
        + 'domains = [\n"EXAMPLE.com", "a.example.net",\n"exmaple.com", "example.net"]\n'
    )
    result = CliRunner().invoke(main, ["check", "--config", str(path)])
    place = "bad.toml:19: smtpd.filters.trusted_forwarders.entries[0].domains"
    assert [line for line in result.stderr.splitlines() if not line.startswith("warning: ")] == [
        f'{place}[2]: exmaple.com is not in [smtpd.domains], did you mean "example.com"?',
        f'{place}[3]: example.net is not in [smtpd.domains], did you mean "example.com"?',
    ]


@pytest.mark.parametrize(
    ("filters", "option"),
    [
        ("[smtpd.filters.arc]\n", "arc.trusted_sealers"),
        (DMARC, "dmarc.exempt_domains"),
        ("[smtpd.filters.spf]\n[smtpd.filters.dkim]\n[smtpd.filters.own_domain]\n", "own_domain.domains"),
    ],
)
def test_check_finds_domains_that_are_none(filters: str, option: str) -> None:
    path = Path("bad.toml")
    path.write_text(f'{GOOD}{filters}{option.partition(".")[2]} = ["ok.example", "list@lists.example"]\n')
    result = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert result.exit_code == 1
    assert f"smtpd.filters.{option}[1]: must be a domain such as " in result.stderr
