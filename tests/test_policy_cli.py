import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from configuration import FILES_ABSENT

from smtpd.cli import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "testing-policy.md"
CONFIG = f"""
{FILES_ABSENT}
[smtpd.domains]
"example.org" = "store"
[smtpd.agents.store]
type = "lmtp"
address = "127.0.0.1:1"
"""
CASE = """
[[case]]
name = "a case"
rcpt = "ann@example.org"
message_file = "message.eml"
expect = { data = "250" }
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(tmp_path: Path, text: str, *arguments: str) -> Result:
    (tmp_path / "policy.toml").write_text(text)
    return CliRunner().invoke(main, ["test", *arguments, str(tmp_path / "policy.toml")])


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "message.eml").write_text("From: a@b.test\n\nHi\n")
    return tmp_path


def test_the_example_of_the_manual_passes_as_it_says(tmp_path: Path) -> None:
    (example,) = blocks("toml")
    done = run(tmp_path, example)
    passing, _ = blocks("console")
    assert f"$ smtpd test policy.toml\n{done.stdout}" == passing
    assert (done.exit_code, done.stderr) == (0, "")


def test_the_failure_of_the_manual_is_shown_as_it_says(tmp_path: Path) -> None:
    (example,) = blocks("toml")
    changed = example.replace('fail = "reject"\n', 'fail = "reject"\ntemperror = "defer"\n')
    done = run(tmp_path, changed, "--only", "marked")
    _, failing = blocks("console")
    assert f"$ smtpd test --only marked policy.toml\n{done.stdout}" == failing
    assert done.exit_code == 1
    explained = run(tmp_path, changed, "--only", "marked", "--explain").stdout
    assert "      C: RCPT TO:<ann@example.com>\n" in explained
    assert "C: " not in run(tmp_path, changed, "--only", "heard", "--explain").stdout


def test_the_page_of_the_manual_is_what_explain_prints(tmp_path: Path) -> None:
    """Below its `C:` lines; the id differs in every run."""
    (tmp_path / "zone.toml").write_text('["sender.example"]\nTXT = ["v=spf1 ip4:198.51.100.7 -all"]\n')
    (tmp_path / "message.eml").write_text("From: joe@sender.example\n\n" + "x" * 93 + "\n")
    (tmp_path / "config.toml").write_text(
        CONFIG.replace("example.org", "example.com") + '[smtpd.filters.access]\n[smtpd.filters.spf]\nfail = "reject"\n'
    )
    words = ["--ip", "192.0.2.1", "--helo", "mx.sender.example", "--from", "joe@sender.example"]
    words += ["--to", "ann@example.com", "--config", str(tmp_path / "config.toml")]
    words += ["--zone", str(tmp_path / "zone.toml"), str(tmp_path / "message.eml")]
    done = CliRunner().invoke(main, ["explain", *words])
    (shown,) = re.findall(r"^```\n(C: MAIL.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    printed = re.sub(r"\[spf \w+\]", "[spf ...]", done.stdout)
    assert [part for part in shown.split("\n\n") if part.strip() not in printed] == []


def test_a_configuration_file_is_named_by_the_tests_or_on_the_command_line(desk: Path) -> None:
    """Neither its certificates nor its mailstore are there."""
    assert run(desk, 'config_file = "config.toml"\n' + CASE).exit_code == 0
    assert run(desk, CASE, "--config", str(desk / "config.toml")).exit_code == 0
    assert run(desk, CASE).exit_code == 1  # example.org is not ours then


def test_the_environment_makes_no_difference(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTPD__DOMAINS", "nonsense")
    assert run(desk, 'config_file = "config.toml"\n' + CASE).exit_code == 0


def test_machines_are_told_every_difference(desk: Path) -> None:
    done = run(desk, CASE.replace("250", "550") + CASE.replace("a case", "another"), "--json")
    told = json.loads(done.stdout)
    assert (told["passed"], told["failed"], done.exit_code) == (0, 2, 1)
    assert told["cases"][0]["case"] == "a case"
    assert told["cases"][0]["differences"] == [{"what": "data", "expected": "550", "was": "(never came to it)"}]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (CASE.replace("rcpt", "recpt"), 'policy.toml:4: case[0].recpt: unknown key, did you mean "rcpt"?'),
        (CASE.replace("message.eml", "none.eml"), "policy.toml:5: message_file: none.eml: cannot be read: No such"),
        ('config_file = "none.toml"\n' + CASE, "policy.toml:1: config_file: none.toml: cannot be read: No such file"),
        (
            CASE + 'config = { filters = { spf = { fial = "x" } } }\n',
            'policy.toml:7: config: configuration: smtpd.filters.spf.fial: unknown key, did you mean "fail"?',
        ),
        (CASE + 'zone_file = "none.toml"\n', "policy.toml:7: zone_file: none.toml: cannot be read: No such"),
        (CASE + 'zone_file = "message.eml"\n', "policy.toml:7: zone_file: message.eml: is no TOML: "),
        ('config_file = "message.eml"\n' + CASE, "policy.toml:1: config_file: message.eml:1: Expected '='"),
        (CASE + 'zone = { "a.b" = { TEXT = [] } }\n', "policy.toml:7: zone: a.b: knows no 'TEXT'"),
        (CASE + 'client = { helo = "a\\tb" }\n', "policy.toml:7: client: 'a\\tb' cannot stand in a command"),
        (CASE + 'listener = "x"\n', "policy.toml:7: listener: there is no listener 'x'; there is smtp\n"),
        (CASE.replace("ann@", "a\\nnn@"), "policy.toml:4: rcpt: 'a\\nnn@example.org' cannot stand in a command"),
    ],
)
def test_what_cannot_be_used_is_exit_status_2(desk: Path, text: str, problem: str) -> None:
    done = run(desk, text)
    assert done.exit_code == 2
    assert problem in done.stderr.replace(f"{desk}/", "")


LABELS = """
[config.filters.early_talker]
[config.filters.trusted_forwarders]
[config.filters.spf]
mode = "off"
[[case]]
name = "labels"
rcpt = "ann@example.com"
message = "From: a@b.test"
[case.expect]
outcome = "accepted"
labels = [
"!early_talker", "!would-reject",
"!spf-fail",
]
"""


def test_labels_that_a_filter_could_give_may_be_expected_whatever_its_mode(tmp_path: Path) -> None:
    done = run(tmp_path, LABELS)
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize("mark", ["!", "! ", ""])
def test_a_misspelt_label_is_a_mistake_whether_it_must_be_there_or_not(tmp_path: Path, mark: str) -> None:
    done = run(tmp_path, LABELS.replace("!spf-fail", f"{mark}spf-fial"))
    place = f"{tmp_path / 'policy.toml'}:14: expect.labels: "
    assert done.stderr == place + 'no filter gives a label "spf-fial", did you mean "spf-fail"?\n'
    assert (done.exit_code, done.stdout) == (2, "0 passed, 0 failed\n")


def test_where_no_label_is_like_it_all_are_told(tmp_path: Path) -> None:
    done = run(tmp_path, LABELS.replace("trusted_forwarders", "headers").replace("spf", "access"))
    lines = [line.removeprefix(f"{tmp_path / 'policy.toml'}:") for line in done.stderr.splitlines()]
    known = "; there are allowed, allowed_recipient, allowed_sender, early_talker"
    assert lines == [
        f'13: expect.labels: no filter gives a label "would-reject"{known}',
        f'14: expect.labels: no filter gives a label "access-fail"{known}',
    ]
    bare = CASE.replace('_file = "message.eml"', ' = "From: a@b.test"').replace('data = "250"', 'labels = "!junk"')
    assert run(tmp_path, bare).stderr.endswith(
        'policy.toml:6: expect.labels: no filter gives a label "junk", and there is no other\n'
    )


def test_of_several_files_each_is_named_as_it_was_given(desk: Path) -> None:
    (desk / "sub").mkdir()
    first, second, third = desk / "policy.toml", desk / "sub" / "policy.toml", desk / "sub" / "other.toml"
    first.write_text('config_file = "config.toml"\n' + CASE)
    third.write_text("case = []\n")
    failing = CASE.replace('"message', '"../message').replace("250", "550")
    second.write_text('config_file = "../config.toml"\n' + failing)
    done = CliRunner().invoke(main, ["test", *map(str, (first, second, third))])
    assert done.stdout.startswith(f"ok    {first}: a case\nFAIL  {second}: a case\n")
    assert (done.exit_code, done.stderr) == (2, f"{third}:1: case: there is none\n")


def test_a_file_that_cannot_be_used_does_not_keep_the_others_from_running(desk: Path) -> None:
    (desk / "policy.toml").write_text('config_file = "config.toml"\n' + CASE)
    done = CliRunner().invoke(main, ["test", str(desk / "none.toml"), str(desk / "policy.toml")])
    assert (done.exit_code, done.stdout) == (2, f"ok    {desk / 'policy.toml'}: a case\n1 passed, 0 failed\n")
    assert done.stderr == f"{desk / 'none.toml'}: cannot be read: No such file or directory\n"


def test_a_case_that_cannot_be_played_does_not_keep_the_others_from_running(desk: Path) -> None:
    wrong = [CASE.replace("a case", name) + 'listener = "x"\n' for name in ("one", "two")]
    done = run(desk, 'config_file = "config.toml"\n' + "".join(wrong) + CASE)
    assert (done.exit_code, done.stdout) == (2, "ok    a case\n1 passed, 0 failed\n")
    assert [line.split(":")[1] for line in done.stderr.splitlines()] == ["8", "15"]
    done = run(desk, 'listener = "x"\n' + CASE + CASE.replace("a case", "another"))
    assert done.stderr == f"{desk / 'policy.toml'}:1: listener: there is no listener 'x'; there is smtp\n"


def test_a_filter_that_matches_no_case_is_no_success(desk: Path) -> None:
    done = run(desk, CASE, "--only", "nothing")
    assert (done.exit_code, done.stderr) == (2, "there is no such case\n")
