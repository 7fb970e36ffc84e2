from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from smtpd import users
from smtpd.users_cli import user

LOGIN, PASSWORD = "alice@example.com", "correct horse"
CHEAP = users.Cost(passes=1, memory=8 << 10)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "users"
    users.add(found, LOGIN, PASSWORD, CHEAP)
    return found


def run(*arguments: object, typed: str = "") -> Result:
    return CliRunner().invoke(user, [str(argument) for argument in arguments], input=typed)


def configuration(directory: Path, auth: str) -> Path:
    file = directory / "config.toml"
    file.write_text(
        '[smtpd]\nhostname = "mx.example.com"\n'
        '[smtpd.listeners.smtp]\naddress = "127.0.0.1:2525"\nmode = "smtp"\ntls = "off"\n'
        "[smtpd.metrics]\nenabled = false\n" + auth
    )
    return file


def test_password_is_asked_for_twice_and_not_shown(path: Path) -> None:
    result = run("add", "--file", path, "bob", typed="battery\nbattery\n")
    assert result.exit_code == 0, result.output
    assert "battery" not in result.output
    assert users.check_password(path, "bob", "battery")


def test_two_different_passwords_add_nobody(path: Path) -> None:
    result = run("add", "--file", path, "bob", typed="battery\nstaple\n")
    assert result.exit_code != 0
    assert set(users.load(path).hashes) == {LOGIN}


def test_password_can_come_from_a_pipe(path: Path) -> None:
    result = run("passwd", "--file", path, "--password-stdin", LOGIN, typed="pass word \nnext line\n")
    assert (result.exit_code, result.output) == (0, f"changed the password of {LOGIN} in {path}\n")
    assert users.check_password(path, LOGIN, "pass word ")


def test_no_command_takes_a_password_as_argument() -> None:
    takes_value = {
        option.name
        for command in user.commands.values()
        for option in command.params
        if isinstance(option, click.Option) and not option.is_flag
    }
    assert takes_value == {"file", "config"}


def test_users_are_listed_in_order(path: Path) -> None:
    users.add(path, "Aaron", "x", CHEAP)
    assert run("list", "--file", path).output == f"aaron\n{LOGIN}\n"


def test_user_is_removed(path: Path) -> None:
    assert run("remove", "--file", path, LOGIN).exit_code == 0
    assert run("list", "--file", path).output == ""


@pytest.mark.parametrize(("password", "status", "word"), [(PASSWORD, 0, "right"), ("guess", 1, "wrong")])
def test_check_says_whether_a_password_is_right(path: Path, password: str, status: int, word: str) -> None:
    result = run("check", "--file", path, "--password-stdin", LOGIN, typed=password + "\n")
    assert result.exit_code == status
    assert result.output.startswith(word)


def test_check_without_login_looks_at_the_whole_file(path: Path) -> None:
    assert run("check", "--file", path).exit_code == 0
    with path.open("a") as file:
        file.write("bob:plain text\n")
    result = run("check", "--file", path)
    assert result.exit_code == 1
    assert "line 2: the hash is not an argon2 one" in result.output
    assert "plain text" not in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("add", LOGIN), "is in"),
        (("add", "two words"), "a login has no spaces"),
        (("passwd", "bob"), "bob is not in"),
    ],
)
def test_mistake_is_one_line_and_a_status(path: Path, arguments: tuple[str, str], words: str) -> None:
    verb, login = arguments
    result = run(verb, "--file", path, "--password-stdin", login, typed="x\n")
    assert result.exit_code == 1
    assert words in result.output
    assert len(result.output.splitlines()) == 1


def test_missing_file_is_one_line_and_a_status(tmp_path: Path) -> None:
    result = run("list", "--file", tmp_path / "none")
    assert (result.exit_code, result.output) == (1, f"Error: {tmp_path / 'none'}: No such file or directory\n")


def test_pipe_without_a_usable_password_adds_nobody(path: Path) -> None:
    for typed in ("", "\n", "x" * 5000 + "\n"):
        assert run("add", "--file", path, "--password-stdin", "bob", typed=typed).exit_code == 1
    assert set(users.load(path).hashes) == {LOGIN}


def test_file_and_cost_come_from_the_configuration(path: Path) -> None:
    table = f'[smtpd.auth]\nproviders = ["people"]\n[smtpd.auth.people]\ntype = "file"\npath = "{path}"\n'
    config = configuration(path.parent, table + 'time_cost = 2\nmemory_cost = "16K"\n')
    result = run("add", "--config", config, "--password-stdin", "bob", typed="battery\n")
    assert result.exit_code == 0, result.output
    assert "m=16,t=2" in users.load(path).hashes["bob"]


def test_configuration_without_users_file_says_what_to_do(tmp_path: Path) -> None:
    result = run("list", "--config", configuration(tmp_path, ""))
    assert result.exit_code == 1
    assert "--file" in result.output


def test_broken_configuration_is_told(tmp_path: Path) -> None:
    result = run("list", "--config", tmp_path / "none.toml")
    assert result.exit_code == 1
    assert "none.toml" in result.output


def test_file_and_config_exclude_each_other(path: Path) -> None:
    assert run("list", "--file", path, "--config", path).exit_code == 2


def test_without_options_the_developer_file_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("add", "--password-stdin", "bob", typed="battery\n")
    assert result.exit_code == 0, result.output
    assert set(users.load(tmp_path / "var" / "users").hashes) == {"bob"}
