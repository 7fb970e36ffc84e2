from collections.abc import Callable
from pathlib import Path

import pytest

from smtpd.config import Config, ConfigError, Report, check, from_tables, load

PLUGINS = """
from typing import Annotated
from pydantic import Field, SecretStr, field_validator
from smtpd.auth import CredentialProvider, ProviderOptions
from smtpd.delivery import DeliveryAgent
from smtpd.options import AgentOptions, FilterOptions
from smtpd.policy import Filter

class Box(DeliveryAgent):
    class Options(AgentOptions):
        path: str
        depth: Annotated[int, Field(ge=1)] = 1
        folders: dict[str, str] = {}
        recipients: str | tuple[str, ...] = "any"

    async def deliver(self, mail, message):
        return None

class Judge(Filter):
    class Options(FilterOptions):
        strictness: int = 3
        password: SecretStr | None = None

        @field_validator("strictness")
        @classmethod
        def look(cls, value):
            if value == 13:
                raise KeyError(value)
            return value

class Vault(CredentialProvider):
    class Options(ProviderOptions):
        path: str = "/nowhere"

    async def check_password(self, user, password):
        return None

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
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        path = Path("config.toml")
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


def test_validator_of_a_plug_in_that_breaks_is_a_mistake_with_its_line(write: Write) -> None:
    text = GOOD + "depht = 4\n[smtpd.filters.test_judge]\nstrictness = 13\n"
    assert complaints(check(write(text), {})) == [
        'config.toml:17: smtpd.agents.store.depht: unknown key, did you mean "depth"?',
        "config.toml:18: smtpd.filters.test_judge: cannot be read: KeyError: 13",
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
    path = tmp_path / "none.toml"
    assert complaints(check(path, {})) == [f"{path}: cannot be read: No such file or directory"]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("[smtpd]\nhostname = 3\n", ":2: smtpd.hostname: must be a string"),
        ("[smtpd]\nhostname =\n", ":2: Invalid value, column 11"),
        ("[smtpd]\nhostname = [", ":2: Invalid value at the end of the file"),
        ("smtpd = 3\n", ": smtpd: there is no table [smtpd]"),
        ("[smtpd]\n#" + "x" * (4 << 20), ": cannot be read: "),
    ],
)
def test_a_file_is_named_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, mistake: str
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.toml").write_text(text)
    monkeypatch.chdir(tmp_path / "one")
    for given in (Path("config.toml"), Path("../one/config.toml"), tmp_path / "one" / "config.toml"):
        (complaint,) = complaints(check(given, {}))
        assert complaint.startswith(f"{given}{mistake}")


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


def test_secret_and_its_file_exclude_each_other(write: Write, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hush-hush\n")
    text = GOOD + f'[smtpd.metrics]\ntoken = "hush-hush"\ntoken_file = "{tmp_path}/token"\n'
    assert complaints(check(write(text), {})) == [
        "config.toml:19: smtpd.metrics.token_file: stands beside token; only one of them can be right"
    ]


def test_variables_of_the_right_kind_but_out_of_range_say_so(write: Write) -> None:
    assert complaints(check(write(GOOD), {"SMTPD__MAX_RECEIVED": "0"})) == [
        "environment: SMTPD__MAX_RECEIVED: must be greater than or equal to 1"
    ]


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
    ("[smtpd.dns]\nnameservers = ['dns.example']\n", "smtpd.dns.nameservers", None),
    ("[smtpd.dns]\nnameservers = ['::1', '[::1]:54']\nbackend = 'aiodns'\n", "smtpd.dns", None),
    ("[smtpd.queue]\ntimeout = '5s'\n", "smtpd.queue", None),
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
