import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd.config import Config, ConfigError, Listener, Report, check, from_tables, load, split_address
from smtpd.config.lines import key_lines

PLUGINS = """
from typing import Annotated
from pydantic import Field, SecretStr
from smtpd.delivery import DeliveryAgent
from smtpd.options import AgentOptions, FilterOptions, Options
from smtpd.policy import Filter

class Box(DeliveryAgent):
    class Options(AgentOptions):
        path: str
        depth: Annotated[int, Field(ge=1)] = 1
        folders: dict[str, str] = {}
        recipients: str | tuple[str, ...] = "any"

class Judge(Filter):
    class Options(FilterOptions):
        strictness: int = 3
        password: SecretStr | None = None

class Vault:
    class Options(Options):
        type: str
        path: str = "/nowhere"

class NotAFilter:
    pass
"""
ENTRY_POINTS = """
[smtpd.delivery_agents]
test_box = config_plugins:Box
[smtpd.filters]
test_judge = config_plugins:Judge
test_missing = no_such_module_at_all:Judge
test_impostor = config_plugins:NotAFilter
[smtpd.auth_providers]
test_vault = config_plugins:Vault
"""
GOOD = """
[smtpd]
hostname = "mx.example.com"
postmaster = "postmaster@example.com"

[smtpd.listeners.smtp]
address = ":25"
mode = "smtp"
tls = "off"

[smtpd.domains]
"Example.COM" = "store"

[smtpd.agents.store]
type = "test_box"
path = "/mail"
"""

Write = Callable[[str], Path]


@pytest.fixture(autouse=True)
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "installed"
    metadata = directory / "config_plugins-1.0.dist-info"
    metadata.mkdir(parents=True)
    (directory / "config_plugins.py").write_text(PLUGINS)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: config-plugins\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(directory)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return write


def complaints(report: Report) -> list[str]:
    return [str(problem) for problem in report.problems]


def test_a_good_file_gives_a_config(write: Write) -> None:
    config = load(write(GOOD), {})
    assert config.hostname == "mx.example.com"
    assert config.listeners["smtp"].address == (":25",)
    assert type(config.agents["store"]).__name__ == "Options"
    assert config.agents["store"].type == "test_box"


def test_domains_are_normalised(write: Write) -> None:
    assert load(write(GOOD), {}).domains == {"example.com": "store"}


def test_other_top_level_tables_are_left_alone(write: Write) -> None:
    load(write(GOOD + "\n[popd]\nnonsense = 1\n"), {})


def test_all_mistakes_come_at_once_with_line_key_and_suggestion(write: Write) -> None:
    text = GOOD + "\n[smtpd.limits]\nconections = 3\n[smtpd.tls]\ncert_file = 5\n[smtpd.relay]\nagent = 'stor'\n"
    assert complaints(check(write(text), {})) == [
        'config.toml:19: smtpd.limits.conections: unknown key, did you mean "connections"?',
        "config.toml:21: smtpd.tls.cert_file: must be a string",
        'config.toml:23: smtpd.relay.agent: there is no agent "stor", did you mean "store"?',
    ]


def test_str_of_the_error_is_one_line_per_problem(write: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(GOOD.replace("hostname", "hostnam")), {})
    assert str(caught.value) == (
        "config.toml:2: smtpd.hostname: must be set\n"
        'config.toml:3: smtpd.hostnam: unknown key, did you mean "hostname"?'
    )


def test_mistakes_of_plug_ins_options_have_their_lines(write: Write) -> None:
    text = GOOD + "depht = 4\n[smtpd.filters.test_judge]\nstrictness = 'much'\nmode = 'observ'\n"
    assert complaints(check(write(text), {})) == [
        'config.toml:17: smtpd.agents.store.depht: unknown key, did you mean "depth"?',
        "config.toml:19: smtpd.filters.test_judge.strictness: must be an integer",
        'config.toml:20: smtpd.filters.test_judge.mode: must be "enforce", "observe" or "off", did you mean "observe"?',
    ]


def test_a_broken_agent_table_is_not_also_an_unknown_agent(write: Write) -> None:
    report = check(write(GOOD.replace('path = "/mail"', "")), {})
    assert complaints(report) == ["config.toml:14: smtpd.agents.store.path: must be set"]


def test_several_kinds_of_value_give_one_complaint(write: Write) -> None:
    (problem,) = check(write(GOOD + "recipients = 5\n"), {}).problems
    assert problem.key == "smtpd.agents.store.recipients"


def test_unknown_type_is_guessed(write: Write) -> None:
    (problem,) = check(write(GOOD.replace("test_box", "test_bx")), {}).problems
    assert (problem.line, problem.suggestion) == (15, "test_box")


@pytest.mark.parametrize("name", ["test_missing", "test_impostor"])
def test_broken_plug_in_is_a_problem_not_a_traceback(write: Write, name: str) -> None:
    (problem,) = check(write(GOOD + f"[smtpd.filters.{name}]\n"), {}).problems
    assert "cannot be imported" in problem.message or "no subclass" in problem.message


def test_a_filter_is_named_after_its_table_unless_it_says_otherwise(write: Write) -> None:
    config = load(write(GOOD + "[smtpd.filters.test_judge]\n[smtpd.filters.second]\ntype='test_judge'\n"), {})
    assert [(name, options.type) for name, options in config.filters.items()] == [
        ("test_judge", "test_judge"),
        ("second", "test_judge"),
    ]


def test_syntax_errors_have_line_and_column(write: Write) -> None:
    (problem,) = check(write("[smtpd]\nhostname = = 3\n"), {}).problems
    assert problem.line == 2
    assert "column 12" in problem.message


def test_text_that_ends_too_early_is_a_problem(write: Write) -> None:
    (problem,) = check(write('[smtpd]\nhostname = """abc\n'), {}).problems
    assert problem.line is not None


@pytest.mark.parametrize("content", [b"[smtpd]\nx = '\xff'\n", b"x = " + b"[" * 100_000, b"", b"smtpd = 3"])
def test_files_that_cannot_be_read_are_problems(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    assert len(check(path, {}).problems) == 1


def test_missing_file_is_a_problem(tmp_path: Path) -> None:
    assert complaints(check(tmp_path / "none.toml", {})) == ["none.toml: cannot be read: No such file or directory"]


def test_environment_overrides_keys_at_any_depth(write: Write) -> None:
    environ = {
        "SMTPD__HOSTNAME": "12345",
        "SMTPD__LIMITS__CONNECTIONS": "7",
        "smtpd__metrics__enabled": "False",
        "SMTPD__TRUSTED_NETWORKS": '["10.0.0.0/8"]',
        "SMTPD__DRAIN_TIMEOUT": "2m",
        "SMTPD__AGENTS__STORE__PATH": "17",
        "SMTPD__DOMAINS": '{"other.example": "store", "example.com": "store"}',
        "SMTPD__FILTERS__TEST_JUDGE__STRICTNESS": "9",
        "OTHER": "x",
    }
    config = load(write(GOOD), environ)
    assert config.hostname == "12345"
    assert config.limits.connections == 7
    assert config.metrics.enabled is False
    assert str(config.trusted_networks[0]) == "10.0.0.0/8"
    assert config.drain_timeout == 120.0
    assert config.agents["store"].model_dump()["path"] == "17"
    assert list(config.domains) == ["other.example", "example.com"]
    assert config.filters["test_judge"].model_dump()["strictness"] == 9


def test_environment_finds_names_in_mixed_case(write: Write) -> None:
    text = GOOD.replace("store", "MailStore")
    config = load(write(text), {"SMTPD__AGENTS__MAILSTORE__DEPTH": "4"})
    assert config.agents["MailStore"].model_dump()["depth"] == 4


def test_unknown_and_wrong_variables_are_problems(write: Write) -> None:
    environ = {"SMTPD__LISTNERS": "{}", "SMTPD__LIMITS____X": "1", "SMTPD__HOSTNAME__X": "1"}
    environ["SMTPD__MAX_RECEIVED"] = "a"
    assert sorted(complaints(check(write(GOOD), environ))) == [
        "environment: SMTPD__HOSTNAME__X: a value stands where this name needs a table",
        "environment: SMTPD__LIMITS____X: the name has an empty part",
        'environment: SMTPD__LISTNERS: unknown key, did you mean "listeners"?',
        "environment: SMTPD__MAX_RECEIVED: must be an integer",
    ]


def test_secrets_come_from_files_and_never_show(write: Write, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cr3t-value\n")
    (tmp_path / "password").write_text("an0ther\n")
    text = (
        GOOD
        + f"""
[smtpd.metrics]
token_file = "{tmp_path}/token"
[smtpd.filters.test_judge]
password_file = "{tmp_path}/password"
"""
    )
    config = load(write(text), {})
    assert config.metrics.token is not None
    assert config.metrics.token.get_secret_value() == "s3cr3t-value"
    assert "s3cr3t" not in repr(config)
    assert "an0ther" not in repr(config)


@pytest.mark.parametrize("content", ["", "two\nlines\n", "x" * 70000])
def test_odd_secret_files_are_problems_that_do_not_show_them(write: Write, tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    (problem,) = check(write(GOOD + f'[smtpd.metrics]\ntoken_file = "{tmp_path}/token"\n'), {}).problems
    assert (problem.key, problem.line) == ("smtpd.metrics.token_file", 18)
    assert "two" not in str(problem)


def test_secret_and_its_file_exclude_each_other(write: Write) -> None:
    text = GOOD + '[smtpd.metrics]\ntoken = "hush-hush"\ntoken_file = "/x"\n'
    (problem,) = check(write(text), {}).problems
    assert "hush" not in str(problem)


def test_wrong_secrets_are_not_repeated(write: Write) -> None:
    (problem,) = check(write(GOOD), {"SMTPD__METRICS__TOKEN": '["hush"]', "SMTPD__METRICS__TOKEN_FILE": "/x"}).problems
    assert "hush" not in str(problem)


CROSS_CHECKS = [
    ('[smtpd.recipients]\n"a@example.com" = "dny"\n', "smtpd.recipients", "deny"),
    ("[smtpd.filters.test_judge]\nlisteners = ['smpt']\n", "smtpd.filters.test_judge.listeners[0]", "smtp"),
    ("[smtpd.auth]\nproviders = ['vault']\n[smtpd.auth.valt]\ntype='test_vault'", "smtpd.auth.providers[0]", "valt"),
    ("[smtpd.auth]\nprovider = 3\n", "smtpd.auth.provider", "providers"),
    ("[smtpd.listeners.b]\naddress=':26'\nmode='smtp'\n", "smtpd.listeners.b", None),
    ("[smtpd.listeners.b]\naddress=':25'\nmode='smtp'\ntls='off'", "smtpd.listeners.b.address", None),
    ("[smtpd.listeners.b]\naddress=':26'\nmode='smtp'\ntls='off'\ntls_required=true", "smtpd.listeners.b.tls_", None),
    ("[smtpd.listeners.b]\naddress='nine'\nmode='smtp'\ntls='off'", "smtpd.listeners.b.address", None),
    ("[smtpd.replies]\nno-such-usr = 'x'\n", "smtpd.replies.no-such-usr", "no-such-user"),
    ("[smtpd.replies]\nno-such-user = '{adress}'\n", "smtpd.replies.no-such-user", "address"),
    ("[smtpd.replies]\nno-such-user = 'ä'\n", "smtpd.replies.no-such-user", None),
    ("[smtpd.replies]\nno-such-user = 'a {'\n", "smtpd.replies.no-such-user", None),
    ("[smtpd.tls]\ncert_file = '/nowhere/x'\nkey_file = '/dev/null/y'\n", "smtpd.tls.cert_file", None),
    ("[smtpd.log]\nto = 'elsewhere'\n", "smtpd.log.to", None),
    ("[smtpd.dns]\ntimeout = '5s'\n", "smtpd.dns", None),
]


@pytest.mark.parametrize(("text", "key", "suggestion"), CROSS_CHECKS)
def test_contradictions_are_found(write: Write, text: str, key: str, suggestion: str | None) -> None:
    problems = check(write(GOOD + text), {}).problems
    assert problems[0].key.startswith(key)
    assert problems[0].suggestion == suggestion


@pytest.mark.parametrize("postmaster", ["nobody", "a b@example.com", "me@elsewhere.example"])
def test_postmaster_must_be_routable(write: Write, postmaster: str) -> None:
    (problem,) = check(write(GOOD.replace("postmaster@example.com", postmaster)), {}).problems
    assert (problem.key, problem.line) == ("smtpd.postmaster", 4)


def test_auth_needs_tls_and_a_provider(write: Write) -> None:
    problems = check(write(GOOD.replace('tls = "off"', 'tls = "off"\nauth = "optional"')), {}).problems
    assert [problem.key for problem in problems] == ["smtpd.listeners.smtp", "smtpd.listeners.smtp.auth"]


def test_one_wrong_key_does_not_hide_contradictions_elsewhere(write: Write) -> None:
    text = GOOD.replace("mx.example.com", "not a host") + "[smtpd.relay]\nagent = 'nobody'\n"
    assert [problem.key for problem in check(write(text), {}).problems] == ["smtpd.hostname", "smtpd.relay.agent"]


def test_oddities_are_warnings_and_the_config_still_loads(write: Write) -> None:
    text = GOOD.replace('"Example.COM"', '"*"') + "[smtpd.agents.idle]\ntype='test_box'\npath='/x'\n"
    report = check(write(text), {})
    assert report.config is not None
    assert {warning.key for warning in report.warnings} == {'smtpd.domains."*"', "smtpd.agents.idle"}


def test_recipients_keep_the_order_of_the_file(write: Write) -> None:
    text = GOOD + '[smtpd.recipients]\n"z@EXAMPLE.com"="deny"\n"old-*@example.com"="store"\n"@example.com"="store"\n'
    assert list(load(write(text), {}).recipients) == ["z@example.com", "old-*@example.com", "@example.com"]


def test_auth_tables_are_found_by_name(write: Write) -> None:
    text = GOOD + "[smtpd.auth]\nproviders = ['users']\n[smtpd.auth.users]\ntype = 'test_vault'\npath = '/v'\n"
    assert load(write(text), {}).auth.tables["users"].model_dump() == {"type": "test_vault", "path": "/v"}


def test_tables_can_be_given_from_python() -> None:
    tables = {"hostname": "a.example", "agents": {"store": {"type": "test_box", "path": "/x"}}}
    config = from_tables(tables)
    assert config.agents["store"].model_dump()["path"] == "/x"
    assert tables["agents"] == {"store": {"type": "test_box", "path": "/x"}}
    with pytest.raises(ConfigError, match="hostname"):
        from_tables({})


def test_the_config_is_frozen() -> None:
    config = Config(hostname="a.example")
    with pytest.raises(ValueError, match="frozen"):
        config.hostname = "b.example"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("mode", "tls", "required", "auth", "ends", "tickets"),
    [
        ("smtp", "starttls", False, "off", "reject", False),
        ("smtps", "implicit", True, "required", "normalise", True),
        ("submission", "starttls", True, "required", "normalise", True),
        ("alt", "starttls", False, "optional", "reject", False),
    ],
)
def test_modes_are_presets(mode: str, tls: str, required: bool, auth: str, ends: str, tickets: bool) -> None:
    switches = Listener.model_validate({"address": ":25", "mode": mode}).switches()
    assert (switches.tls, switches.tls_required, switches.auth) == (tls, required, auth)
    assert (switches.bare_line_ends, switches.session_tickets) == (ends, tickets)
    assert switches.chunking
    assert switches.smtputf8
    assert switches.pipelining


def test_each_switch_can_be_overridden() -> None:
    table = {
        "address": [":587", "[::1]:588"], "mode": "submission", "tls": "off", "auth": "optional",
        "bare_line_ends": "reject", "chunking": False, "smtputf8": False, "pipelining": False,
        "session_tickets": False, "client_certificates": "optional",
    }  # fmt: skip
    switches = Listener.model_validate(table).switches()
    assert switches.tls_required is False
    for name in set(table) - {"address", "mode"}:
        assert getattr(switches, name) == table[name]


@pytest.mark.parametrize("mode", ["lmtp", "SMTP", ""])
def test_modes_that_do_not_exist_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="mode"):
        Listener.model_validate({"address": ":25", "mode": mode})


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        (":25", ("tcp", "", 25)),
        ("127.0.0.1:25", ("tcp", "127.0.0.1", 25)),
        ("[::1]:25", ("tcp", "::1", 25)),
        ("unix:/run/x.sock", ("unix", "/run/x.sock", 0)),
        ("systemd", ("systemd", "", 0)),
        ("systemd:smtp", ("systemd", "smtp", 0)),
    ],
)
def test_addresses_are_taken_apart(address: str, parts: tuple[str, str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["25", "::1:25", "host:", "host:70000", "host:٢", "unix:", "", "systemdx"])
def test_addresses_that_are_none_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"must look|needs a path"):
        split_address(address)


TRICKY = """\
# [smtpd]
top = 1 # x = 2
[smtpd . "quoted.key"]
text = '''
fake = 1
[fake]
'''
other = \"\"\"a\\"\"\" b = 1 ""\"\"\"
'lit eral' = { a = 1, b.c = [ { d = "}" }, # comment ]
  {d = 2} ], e = "\\"]" }
a.b."c d" = [
  [1, 2],
  ["]", '#'], # tail
]
date = 2020-01-01 10:00:00
[[list.of]]
x = 1
[[list.of]]
x = 2
[list.of.inner]
y = 1
"""


def test_lines_of_keys_are_found_in_tricky_texts() -> None:
    tomllib.loads(TRICKY)
    lines = key_lines(TRICKY)
    assert lines[("top",)] == 2
    assert lines[("smtpd", "quoted.key", "text")] == 4
    assert lines[("smtpd", "quoted.key", "other")] == 8
    assert lines[("smtpd", "quoted.key", "lit eral", "b", "c", 1, "d")] == 10
    assert lines[("smtpd", "quoted.key", "lit eral", "e")] == 10
    assert lines[("smtpd", "quoted.key", "a", "b", "c d", 1)] == 13
    assert lines[("smtpd", "quoted.key", "date")] == 15
    assert lines[("list", "of", 1, "x")] == 19
    assert lines[("list", "of", 1, "inner", "y")] == 21
    assert not any("fake" in path for path in lines)


def paths(value: object, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    return {path}.union(*(paths(inner, (*path, key)) for key, inner in items))


bare = st.from_regex(r"[a-c_-]{1,3}", fullmatch=True)
strings = st.text(st.sampled_from("ab\"'#[]{}=,. \n\\é"), max_size=6)
toml_values = st.recursive(
    st.integers(0, 9) | st.booleans() | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(bare | strings, inner, max_size=3),
    max_leaves=8,
)


def quoted(text: str) -> str:
    if re.fullmatch("[A-Za-z_-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quoted(value) if not re.fullmatch("[A-Za-z_-]+", value) else f"'{value}'"
    if isinstance(value, list):
        return "[ # ]\n" + ",\n".join(map(written, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {written(inner)}" for key, inner in value.items()) + "}"
    return str(value)


@given(st.dictionaries(bare | strings, toml_values, max_size=4))
def test_every_key_of_a_text_has_a_line(table: dict[str, object]) -> None:
    text = "[t]\n" + "".join(f"{quoted(key)} = {written(value)}\n" for key, value in table.items())
    assert tomllib.loads(text) == {"t": table}
    lines = key_lines(text)
    assert set(lines) == paths({"t": table}) - {()}
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
