from pathlib import Path

import pytest

from smtpd.config import ConfigError
from smtpd.rehearsal.cases import client_of, read_tests

HEAD = """\
time = 2026-11-21T10:00:00Z
listener = "smtp"
client = { ip = "2001:db8::1", helo = "mx.a.test" }
config = { filters = { spf = { fail = "reject" } } }
zone = { "a.test" = { TXT = ["one"] } }
"""
CASE = """\
[[case]]
name = "first"
rcpt = "ann@example.com"
message = "x"
expect = { data = "250" }
"""
EXPECT = 'expect = { data = "250" }'


def mistakes(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_tests(path)
    return str(caught.value).replace(f"{tmp_path}/", "").split("\n")


def test_a_case_has_what_the_file_says_unless_it_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    own = CASE.replace("first", "second").replace("expect", 'client = { ip = "192.0.2.1" }\ntime = 7\nexpect')
    own += '[case.config.filters.spf]\nsoftfail = "pass"\n[case.zone]\n"b.test" = { A = [] }\n'
    path.write_text(HEAD + CASE + own)
    first, second = read_tests(path).cases
    assert (first.time, first.listener, first.rcpt) == (1795255200.0, "smtp", ("ann@example.com",))
    assert (str(client_of(first).ip), client_of(first).helo) == ("2001:db8::1", "mx.a.test")
    assert (second.time, second.listener) == (7.0, "smtp")
    assert (str(client_of(second).ip), client_of(second).helo) == ("192.0.2.1", "mx.a.test")
    assert first.config == {"filters": {"spf": {"fail": "reject"}}}
    assert second.config == {"filters": {"spf": {"fail": "reject", "softfail": "pass"}}}
    assert set(second.zone) == {"a.test", "b.test"}


def test_every_mistake_has_its_line_and_unknown_keys_a_suggestion(tmp_path: Path) -> None:
    text = """\
lisener = "x"
[[case]]
nane = "first"
rcpt = "a@example.com"
time = "yesterday"
[case.expect]
recpt = "550"
outcome = "lost"
results = { spf = 3 }
"""
    assert mistakes(tmp_path, text) == [
        'policy.toml:1: lisener: unknown key, did you mean "listener"?',
        "policy.toml:2: case[0].name: must be set",
        'policy.toml:3: case[0].nane: unknown key, did you mean "name"?',
        "policy.toml:5: case[0].time: must be a time such as 2026-11-21T10:00:00Z, or seconds since 1970",
        'policy.toml:7: case[0].expect.recpt: unknown key, did you mean "rcpt"?',
        "policy.toml:8: case[0].expect.outcome: must be 'accepted', 'partly accepted', 'deferred' or 'refused'",
        "policy.toml:9: case[0].expect.results: must be text, or a list of texts",
    ]


def test_blanks_around_what_is_expected_count_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(
        CASE.replace(EXPECT, "[case.expect]\n")
        + 'mail = " 250\t"\nrcpt = ["550 5.7.1 "]\nheaders = "! X-Note: \\n"\nlabels = [" forged", " !junk"]\n'
        + 'results = { spf = " pass" }\nfilters = { spf = ["mail pass "] }\n'
    )
    (case,) = read_tests(path).cases
    expected = case.expect
    assert (expected.mail, expected.rcpt, expected.headers) == ("250", ("550 5.7.1",), ("!X-Note:",))
    assert (expected.labels, expected.results) == (("forged", "!junk"), {"spf": ("pass",)})
    assert expected.filters == {"spf": ("mail pass",)}


@pytest.mark.parametrize("text", ['mail = ""', 'data = " "', 'labels = ["!"]', 'results = { spf = " " }'])
def test_nothing_cannot_be_expected(tmp_path: Path, text: str) -> None:
    (mistake,) = mistakes(tmp_path, CASE.replace(EXPECT, f"expect = {{ {text} }}"))
    assert mistake.startswith("policy.toml:5: case[0].expect.")
    assert mistake.endswith(": must not be empty; leave out what may be anything")


@pytest.mark.parametrize("text", ["{}", "{ rcpt = [], labels = [] }"])
def test_a_case_that_could_never_fail_is_a_mistake(tmp_path: Path, text: str) -> None:
    (mistake,) = mistakes(tmp_path, CASE.replace(EXPECT, f"expect = {text}"))
    assert mistake == "policy.toml:5: expect: expects nothing, so this case could never fail"


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ('expect = "250"', "policy.toml:5: case[0].expect: must be a table"),
        (EXPECT + '\nzone = "x"', "policy.toml:6: case[0].zone: must be a table"),
        (EXPECT + "\nclient = { ip = 5 }", "policy.toml:6: case[0].client.ip: must be an IPv4 or IPv6 address"),
    ],
)
def test_mistakes_are_told_in_words_of_toml(tmp_path: Path, text: str, mistake: str) -> None:
    assert mistakes(tmp_path, CASE.replace(EXPECT, text)) == [mistake]


def test_mistakes_between_keys_are_found(tmp_path: Path) -> None:
    text = CASE.replace('message = "x"\n', "").replace(EXPECT, 'expect = { rcpt = ["1", "2"] }')
    text += CASE.replace("rcpt", 'client = { ip = "nowhere", hello = "x" }\nrcpt')
    assert mistakes(tmp_path, text) == [
        "policy.toml:1: message: needs either message or message_file",
        "policy.toml:4: expect.rcpt: must be one reply, or one for each recipient",
        'policy.toml:6: name: there are two cases "first"',
        "policy.toml:7: case[1].client.ip: 'nowhere' does not appear to be an IPv4 or IPv6 address",
        'policy.toml:7: case[1].client.hello: unknown key, did you mean "helo"?',
    ]


def test_a_file_without_a_case_is_no_success(tmp_path: Path) -> None:
    assert mistakes(tmp_path, 'listener = "smtp"\ncase = []\n') == ["policy.toml:2: case: there is none"]


@pytest.mark.parametrize(
    ("octets", "sentence"),
    [
        (b"a = ", "cannot be read: Invalid value (at end of document)"),
        (b"\xff", "cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"a" * (4 << 20) + b"b", "cannot be read: it is bigger than 4194304 bytes"),
        (b"", "case: must be set"),
    ],
)
def test_a_file_that_is_none_is_an_error(tmp_path: Path, octets: bytes, sentence: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(octets)
    with pytest.raises(ConfigError) as caught:
        read_tests(path)
    assert str(caught.value) == f"{path}: {sentence}"
