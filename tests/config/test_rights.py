"""What root can use and `[smtpd] user` cannot; an ordinary user checks for itself here."""

import errno
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from smtpd.config.load import check
from smtpd.config.rights import lacks
from smtpd.identity import acting_as, find_identity

IS_ROOT = os.geteuid() == 0
USER = "nobody" if IS_ROOT else pwd.getpwuid(os.geteuid()).pw_name

Problems = Callable[..., list[str]]


@pytest.fixture
def problems(directory: Path) -> Problems:
    """Check a configuration with these tables; what is wrong with it, without file and line."""

    def ask(tables: str, *, top: str = "", user: str = USER, warnings: bool = False) -> list[str]:
        path = directory / "config.toml"
        path.write_text(
            f'[smtpd]\nhostname = "mx.example.com"\nuser = "{user}"\n{top}\n'
            '[smtpd.listeners.smtp]\naddress = ":25"\nmode = "smtp"\ntls = "off"\n' + tables
        )
        report = check(path, {})
        found = report.warnings if warnings else report.problems
        return [f"{problem.key.removeprefix('smtpd.')}: {problem.message}" for problem in found]

    return ask


def store(path: Path, recipients: str) -> str:
    return f'[smtpd.agents.store]\ntype = "maildir"\npath = "{path}"\nrecipients = {recipients}\n'


def test_files_that_the_server_cannot_read_are_found(problems: Problems, directory: Path) -> None:
    named = [directory / name for name in ("cert", "key", "clients", "users", "list", "metrics")]
    for file in named:
        file.write_text("joe@example.com\n")
    assert not any("cannot read" in problem for problem in problems(tables_of(*named, directory)))
    for file in named:
        file.chmod(0)
    assert [problem for problem in problems(tables_of(*named, directory)) if "cannot read" in problem] == [
        f"tls.cert_file: user {USER} cannot read {directory}/cert",
        f"tls.key_file: user {USER} cannot read {directory}/key",
        f"tls.client_ca_file: user {USER} cannot read {directory}/clients",
        f"auth.users.path: user {USER} cannot read {directory}/users",
        f"agents.store.recipients.file: user {USER} cannot read {directory}/list",
        f"metrics.cert_file: user {USER} cannot read {directory}/metrics",
        f"metrics.key_file: user {USER} cannot read {directory}/metrics",
    ]


def tables_of(cert: Path, key: Path, clients: Path, users: Path, names: Path, metrics: Path, directory: Path) -> str:
    return (
        f'[smtpd.tls]\ncert_file = "{cert}"\nkey_file = "{key}"\nclient_ca_file = "{clients}"\n'
        f'[smtpd.auth]\nproviders = ["users"]\n[smtpd.auth.users]\ntype = "file"\npath = "{users}"\n'
        + store(directory / "mail" / "not" / "there", f'{{ file = "{names}" }}')
        + f'[smtpd.metrics]\ncert_file = "{metrics}"\nkey_file = "{metrics}"\n'
    )


def test_a_closed_directory_is_named_instead_of_what_is_in_it(problems: Problems, directory: Path) -> None:
    closed = directory / "closed"
    closed.mkdir()
    (closed / "users").write_text("")
    closed.chmod(0)
    tables = f'[smtpd.auth]\nproviders = ["users"]\n[smtpd.auth.users]\ntype = "file"\npath = "{closed}/users"\n'
    assert problems(tables) == [f"auth.users.path: user {USER} cannot enter {closed}, so not read {closed}/users"]


@pytest.mark.parametrize(("key", "table"), [("log.to", 'log]\nto = "file:'), ("state.url", 'state]\nurl = "sqlite:')])
def test_files_that_the_server_cannot_write_are_found(
    problems: Problems, directory: Path, key: str, table: str
) -> None:
    place = directory / "place"
    place.mkdir(0o555)
    tables = f'[smtpd.{table}{place}/file"\n'
    assert problems(tables) == [f"{key}: user {USER} cannot make files in {place}"]
    place.chmod(0o777)
    assert problems(tables) == []
    (place / "file").touch(0o444)
    assert problems(tables) == [f"{key}: user {USER} cannot write {place}/file"]


def test_a_database_that_has_no_room_for_its_journal_is_found(problems: Problems, directory: Path) -> None:
    place = directory / "place"
    place.mkdir()
    (place / "state.db").touch()
    (place / "state.db").chmod(0o666)
    place.chmod(0o555)
    tables = f'[smtpd.state]\nurl = "sqlite:{place}/state.db"\n'
    assert problems(tables) == [f"state.url: user {USER} cannot make files in {place}"]


def test_a_spool_that_takes_nothing_is_found(problems: Problems, directory: Path) -> None:
    (directory / "spool").mkdir(0o555)
    assert problems("", top=f'spool = "{directory}/spool"') == [
        f"spool: user {USER} cannot make files in {directory}/spool"
    ]


@pytest.mark.parametrize("recipients", ['"any"', '"existing"', '["joe@example.com"]'])
def test_mailboxes_that_are_all_closed_are_found(problems: Problems, directory: Path, recipients: str) -> None:
    root = directory / "mail"
    (root / "example.com" / "joe" / "tmp").mkdir(parents=True)
    tables = store(root, recipients)
    closed = [root / "example.com" / "joe" / "tmp", root / "example.com" / "joe", root / "example.com", root]
    for place in closed:
        place.chmod(0o555)
    (problem,) = problems(tables)
    said = (
        f"mailboxes such as {closed[1]} are closed"
        if "existing" in recipients
        else f"nothing can be written below {root}"
    )
    assert problem == f"agents.store.path: {said} (seen by user {USER})"
    closed[0].chmod(0o777)
    assert problems(tables) == []


def test_mailboxes_may_come_later(problems: Problems, directory: Path) -> None:
    (directory / "mail").mkdir(0o555)
    assert problems(store(directory / "mail", '"existing"')) == []
    assert problems(store(directory / "elsewhere", '"existing"')) == []


def test_a_root_that_cannot_be_made_is_found(problems: Problems, directory: Path) -> None:
    (directory / "mail").mkdir(0o555)
    assert problems(store(directory / "mail" / "a" / "b", '"any"')) == [
        f"agents.store.path: {directory}/mail/a/b cannot be made in {directory}/mail (seen by user {USER})"
    ]


@pytest.mark.parametrize("recipients", ['"any"', '"existing"'])
def test_a_root_that_is_behind_a_closed_door_is_found(problems: Problems, directory: Path, recipients: str) -> None:
    (directory / "closed" / "mail").mkdir(parents=True)
    (directory / "closed").chmod(0)
    assert problems(store(directory / "closed" / "mail", recipients)) == [
        f"agents.store.path: {directory}/closed cannot be entered (seen by user {USER})"
    ]


def test_a_filter_that_is_off_needs_no_files(problems: Problems, directory: Path) -> None:
    assert problems(f'[smtpd.filters.dmarc]\nmode = "off"\nreport_file = "{directory}/no/rows"\n') == []


def test_a_unix_socket_needs_its_directory(problems: Problems, directory: Path) -> None:
    tables = f'[smtpd.listeners.more]\naddress = "unix:{directory}/no/socket"\nmode = "lmtp"\ntls = "off"\n'
    assert problems(tables) == [f"listeners.more.address: there is no such directory: {directory}/no"]


@pytest.mark.skipif(not IS_ROOT, reason="only root becomes somebody else")
def test_the_exporter_cannot_have_a_port_of_root(problems: Problems) -> None:
    (problem,) = problems('[smtpd.metrics]\naddress = "127.0.0.1:1"\n')
    assert problem.startswith("metrics.address: user nobody cannot listen on port 1: those below ")


@pytest.mark.skipif(not IS_ROOT, reason="only root becomes somebody else")
def test_files_that_only_a_reload_cannot_read_are_a_warning(problems: Problems, directory: Path) -> None:
    (directory / "config.toml").touch(0o600)
    (directory / "token").write_text("secret\n")
    (directory / "token").chmod(0o600)
    tables = f'[smtpd.metrics]\ntoken_file = "{directory}/token"\n'
    assert problems(tables) == []
    assert [warning for warning in problems(tables, warnings=True) if "reload" in warning] == [
        f"smtpd: user nobody cannot read {directory}/config.toml: every reload (SIGHUP) will be refused",
        f"metrics.token_file: user nobody cannot read {directory}/token: every reload (SIGHUP) will be refused",
    ]


@pytest.mark.skipif(not IS_ROOT, reason="only root becomes somebody else")
def test_root_is_root_again_after_it_has_looked(problems: Problems) -> None:
    before = os.geteuid(), os.getegid(), os.getgroups()
    problems("")
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before


def test_files_that_hold_something_else_are_found(problems: Problems, directory: Path) -> None:
    junk = directory / "junk"
    junk.write_text("nothing of use\n")
    tables = (
        store(directory / "mail", f'{{ file = "{junk}" }}')
        + f'[smtpd.agents.next]\ntype = "relay"\naddress = "mx.test:25"\ntls = "starttls"\nca_file = "{junk}"\n'
        + f'[smtpd.agents.tool]\ntype = "pipe"\ncommand = ["{junk}"]\n'
        + '[smtpd.filters.arc]\n[smtpd.filters.arc_seal]\ndomain = "example.com"\nselector = "s"\nagents = ["next"]\n'
        + f'key_file = "{junk}"\n'
    )
    (directory / "mail").mkdir(0o777)
    (directory / "mail").chmod(0o777)
    assert [problem.removesuffix(f" (seen by user {USER})") for problem in problems(tables)] == [
        f"agents.store.recipients: {junk}:1: it does not read local-part@domain",
        f"agents.next.ca_file: ca_file cannot be used: {junk}: no certificate in PEM form",
        f"agents.tool.command: {junk} is no program that can be run",
        f"filters.arc_seal.key_file: {junk}: it holds no private key in PEM that can be read without a password",
    ]


def test_whoever_cannot_see_what_the_server_may_do_says_so(problems: Problems, directory: Path) -> None:
    others = [entry.pw_name for entry in pwd.getpwall() if entry.pw_uid not in (0, os.geteuid())]
    seen = [warning for warning in problems("", user=others[0], warnings=True) if "can see" in warning]
    assert seen == ([] if IS_ROOT else [f"user: only {others[0]} and root can see what {others[0]} may read and write"])


@pytest.mark.skipif(not IS_ROOT, reason="only root becomes somebody else")
def test_root_that_may_not_become_the_user_is_found(problems: Problems, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "setgroups", forbid)  # as in a container without CAP_SETGID
    said = "root may not become another user here (CAP_SETUID, CAP_SETGID): Operation not permitted"
    assert problems("") == [f"user: {said}"]


def test_a_file_that_is_made_where_a_link_leads_is_no_problem(problems: Problems, directory: Path) -> None:
    (directory / "logs").mkdir()
    (directory / "logs").chmod(0o777)
    (directory / "place").mkdir()
    (directory / "place" / "log").symlink_to(directory / "logs" / "log")
    (directory / "place").chmod(0o555)
    tables = f'[smtpd.log]\nto = "file:{directory}/place/log"\n'
    assert problems(tables) == []
    (directory / "logs").chmod(0o555)
    assert problems(tables) == [f"log.to: user {USER} cannot make files in {directory}/logs"]


def test_the_files_beside_a_database_stand_where_a_link_leads(problems: Problems, directory: Path) -> None:
    (directory / "data").mkdir()
    (directory / "data").chmod(0o777)
    (directory / "data" / "state.db").touch()
    (directory / "data" / "state.db").chmod(0o666)
    (directory / "place").mkdir()
    (directory / "place" / "state.db").symlink_to(directory / "data" / "state.db")
    (directory / "place").chmod(0o555)
    tables = f'[smtpd.state]\nurl = "sqlite:{directory}/place/state.db"\n'
    assert problems(tables) == []
    (directory / "data").chmod(0o555)
    assert problems(tables) == [f"state.url: user {USER} cannot make files in {directory}/data"]


def test_a_relative_file_does_not_need_the_directories_above(
    problems: Problems, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "closed" / "open").mkdir(parents=True)
    (directory / "closed" / "open").chmod(0o777)
    monkeypatch.chdir(directory / "closed" / "open")
    (directory / "closed").chmod(0)
    assert problems('[smtpd.log]\nto = "file:log"\n') == []


def test_mailboxes_may_stand_deeper(problems: Problems, directory: Path) -> None:
    boxes = directory / "mail" / "example.com" / "boxes"
    boxes.mkdir(parents=True)
    tables = store(directory / "mail" / "{domain}" / "boxes" / "{user}", '"any"')
    for place in (boxes, *boxes.parents[:2]):
        place.chmod(0o555)
    assert len(problems(tables)) == 1
    boxes.chmod(0o777)
    assert problems(tables) == []


def test_a_mailbox_named_tmp_says_nothing_about_the_others(problems: Problems, directory: Path) -> None:
    (directory / "mail" / "tmp").mkdir(parents=True)
    (directory / "mail" / "tmp").chmod(0o555)
    (directory / "mail").chmod(0o777)
    assert problems(store(directory / "mail" / "{user}", '"any"')) == []


def test_one_open_mailbox_is_found_among_many(problems: Problems, directory: Path) -> None:
    for number in range(150):
        (directory / "mail" / str(number)).mkdir(parents=True)
        (directory / "mail" / str(number)).chmod(0o555)
    *_, last = os.scandir(directory / "mail")
    os.chmod(last.path, 0o777)
    assert problems(store(directory / "mail" / "{user}", '"existing"')) == []


def test_what_is_never_used_needs_no_rights(problems: Problems, directory: Path) -> None:
    (directory / "key").touch(0)
    (directory / "key").chmod(0)
    tables = (
        f'[smtpd.auth]\nproviders = []\n[smtpd.auth.old]\ntype = "file"\npath = "{directory}/no/users"\n'
        f'[smtpd.metrics]\nenabled = false\ncert_file = "{directory}/key"\nkey_file = "{directory}/key"\n'
    )
    assert problems(tables) == []


def test_what_is_behind_a_door_that_is_closed_to_us_may_well_be_there(directory: Path) -> None:
    (directory / "closed").mkdir(0)
    identity = find_identity(USER, None)
    with acting_as(identity):
        assert not lacks(directory / "closed" / "file", stat.S_ISREG)
        assert lacks(directory / "file", stat.S_ISREG)
        assert lacks(directory, stat.S_ISREG)
        assert not lacks(directory, stat.S_ISDIR)


def test_certificates_behind_a_closed_door_are_no_traceback(problems: Problems, directory: Path) -> None:
    closed = directory / "closed"
    closed.mkdir(0)
    tables = f'[smtpd.tls]\ncert_file = "{closed}/cert"\nkey_file = "{closed}/key"\n'
    problems(tables, top=f'spool = "{closed}/spool"')
    with acting_as(find_identity(USER, None)):  # as an ordinary user would check
        said = [problem.message for problem in check(directory / "config.toml", {}).problems]
    assert said == [
        f"user {USER} cannot enter {closed}, so not make files in {closed}/spool",
        f"user {USER} cannot enter {closed}, so not read {closed}/cert",
        f"user {USER} cannot enter {closed}, so not read {closed}/key",
    ]
