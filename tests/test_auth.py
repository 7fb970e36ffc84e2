import asyncio
import base64
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_lines import Lines

from smtpd import auth, replies
from smtpd.auth import (
    Authenticator,
    CredentialProvider,
    ProviderOptions,
    decode_initial,
    decode_response,
    find_mechanism,
    prepare_name,
    prepare_password,
)
from smtpd.config import LogOptions
from smtpd.log import Log
from smtpd.metrics import Metrics
from smtpd.replies import Refused, Reply
from smtpd.services import Services
from smtpd.workers import CLIENT, Busy


class Script:
    """A client that answers challenges from a list."""

    user = ""
    client = "192.0.2.1"

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.challenges: list[bytes] = []

    async def challenge(self, data: bytes) -> bytes:
        self.challenges.append(data)
        return self.answers.pop(0)

    async def ask[T](self, work: Coroutine[Any, Any, T]) -> T:
        return await work


class Table(CredentialProvider):
    """A third party's provider: a name, a password, or an exception."""

    def __init__(self, name: str, users: dict[str, str] | BaseException) -> None:
        super().__init__(name, ProviderOptions(type="table"), SERVICES)
        self.users = users
        self.asked: list[tuple[str, str]] = []
        self.clients: list[str | None] = []

    async def check_password(self, user: str, password: str) -> str | None:
        self.asked.append((user, password))
        self.clients.append(CLIENT.get())
        if isinstance(self.users, BaseException):
            raise self.users
        return user if self.users.get(user) == password else None


LINES = Lines()
LOG = Log(LogOptions(), sink=LINES)
SERVICES = Services(hostname="mx.example.com", log=LOG, metrics=Metrics())
ALICE = {"alice@example.com": "correct horse"}


def events(log: Log, lines: Lines) -> list[str]:
    log.flush()
    return [line["event"] for line in lines.entries]


def authenticator(*providers: CredentialProvider) -> Authenticator:
    return Authenticator(providers or [Table("users", ALICE)], log=LOG)


async def log_in(
    mechanism: str, initial: bytes | None, *answers: bytes, users: Authenticator | None = None
) -> str | Reply:
    found = find_mechanism(mechanism, tls=True)
    try:
        return await found.authenticate(Script(*answers), initial, users or authenticator())
    except Refused as refused:
        return refused.reply


def refusal(call: Any, *arguments: Any) -> Reply:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value.reply


@pytest.mark.parametrize(
    "response",
    [
        b"\0alice@example.com\0correct horse",
        b"alice@example.com\0alice@example.com\0correct horse",
        b"Alice@Example.com\0alice@example.com\0correct horse",
        b"\0ALICE@example.com\0correct horse",
        "\0alice@example.com\0correct\u00a0horse".encode(),
    ],
)
async def test_plain_accepts_the_right_password(response: bytes) -> None:
    assert await log_in("PLAIN", response) == "alice@example.com"
    assert await log_in("PLAIN", None, response) == "alice@example.com"


async def test_plain_without_initial_response_gets_an_empty_challenge() -> None:
    script = Script(b"\0alice@example.com\0correct horse")
    await find_mechanism("PLAIN", tls=True).authenticate(script, None, authenticator())
    assert script.challenges == [b""]


@pytest.mark.parametrize(
    "response",
    [
        b"\0alice@example.com\0wrong",
        b"\0bob@example.com\0correct horse",
        b"root\0alice@example.com\0correct horse",
        b"\0alice@example.com\0",
        b"\0\0correct horse",
        b"\0\0",
        b"\0alice@example.com\0correct\nhorse",
        b"\0alice@example.com\0\xff\xfe",
        b"\0\xff\0correct horse",
        b"\0alice@example.com\0" + b"x" * 2000,
    ],
)
async def test_plain_refuses_anything_else_in_the_same_words(response: bytes) -> None:
    assert await log_in("PLAIN", response) == replies.AUTH_FAILED


@pytest.mark.parametrize(
    "response",
    [b"", b"alice", b"\0alice@example.com", b"\0alice@example.com\0correct horse\0", b"\0\0\0", b"\0a\0b\0c"],
)
async def test_plain_counts_nuls_exactly(response: bytes) -> None:
    assert await log_in("PLAIN", response) == replies.AUTH_BAD_RESPONSE


async def test_login_prompts_for_name_and_password() -> None:
    script = Script(b"alice@example.com", b"correct horse")
    assert await find_mechanism("LOGIN", tls=True).authenticate(script, None, authenticator()) == "alice@example.com"
    prompts = [base64.b64encode(challenge) for challenge in script.challenges]
    assert prompts == [b"VXNlcm5hbWU6", b"UGFzc3dvcmQ6"]


@pytest.mark.parametrize("initial", [b"alice@example.com", b""])
async def test_login_takes_the_name_as_initial_response(initial: bytes) -> None:
    answers = [b"correct horse"] if initial else [b"alice@example.com", b"correct horse"]
    assert await log_in("LOGIN", initial, *answers) == "alice@example.com"


@pytest.mark.parametrize("answers", [(b"alice@example.com", b"wrong"), (b"", b""), (b"\xff", b"x"), (b"a\0b", b"x")])
async def test_login_refuses_anything_else_in_the_same_words(answers: tuple[bytes, bytes]) -> None:
    assert await log_in("LOGIN", None, *answers) == replies.AUTH_FAILED


@given(st.binary(max_size=100), st.lists(st.binary(max_size=50), min_size=2, max_size=2))
def test_no_response_raises_anything_but_a_refusal(initial: bytes, answers: list[bytes]) -> None:
    async def try_both() -> None:
        assert isinstance(await log_in("PLAIN", initial), Reply)
        assert isinstance(await log_in("LOGIN", None, *answers), Reply)

    asyncio.run(try_both())


@pytest.mark.parametrize("name", ["plain", "PLAIN", "Plain"])
def test_mechanism_names_are_case_insensitive(name: str) -> None:
    assert find_mechanism(name, tls=True).name == "PLAIN"


def test_unknown_mechanism_and_missing_tls_have_their_own_replies() -> None:
    assert refusal(lambda: find_mechanism("X-UNKNOWN", tls=True)) == replies.AUTH_UNKNOWN_MECHANISM
    assert refusal(lambda: find_mechanism("LOGIN", tls=False)) == replies.AUTH_NEEDS_TLS


def test_plaintext_mechanisms_are_advertised_behind_tls_only() -> None:
    assert authenticator().mechanisms(True) == ("PLAIN", "LOGIN")
    assert authenticator().mechanisms(False) == ()
    assert Authenticator([], log=LOG).mechanisms(True) == ()


@pytest.mark.parametrize(("raw", "decoded"), [(b"", b""), (b"YQ==", b"a"), (b"AGEAYg==", b"\0a\0b"), (b"YWJj", b"abc")])
def test_base64_is_decoded(raw: bytes, decoded: bytes) -> None:
    assert decode_response(raw) == decode_initial(raw) == decoded


@pytest.mark.parametrize(
    "raw",
    [b"YQ", b"YQ=", b"YQ===", b"YQ==YQ==", b"Y Q==", b" YQ==", b"YQ==\n", b"Y-_=", b"====", b"Y===", b"\xff", b"*"],
)
def test_bad_base64_is_refused(raw: bytes) -> None:
    assert refusal(decode_response, raw) == refusal(decode_initial, raw) == replies.AUTH_BAD_BASE64


def test_equals_sign_is_an_empty_initial_response_and_nothing_else() -> None:
    assert decode_initial(b"=") == b""
    assert refusal(decode_response, b"=") == replies.AUTH_BAD_BASE64


@given(st.binary(max_size=200))
def test_decoding_is_the_reverse_of_encoding_or_a_refusal(raw: bytes) -> None:
    assert decode_response(base64.b64encode(raw)) == raw
    with suppress(Refused):
        decode_initial(raw)


@pytest.mark.parametrize(
    ("name", "prepared"),
    [
        ("User@Example.Test", "user@example.test"),
        ("ＵＳＥＲ", "user"),
        ("mu\u0308ller", "müller"),
        ("MÜLLER", "müller"),
        ("two words", None),
        ("", None),
        ("a\tb", None),
        ("a\u202eb", None),
        ("a\u3000b", None),
    ],
)
def test_names_are_prepared_for_comparison(name: str, prepared: str | None) -> None:
    assert prepare_name(name) == prepared


@pytest.mark.parametrize(
    ("password", "prepared"),
    [
        ("Secret", "Secret"),
        ("pass\u3000word", "pass word"),
        ("pa\u0308ss", "päss"),
        ("ﬁ", "ﬁ"),
        ("", None),
        ("a\0b", None),
        ("a\x7fb", None),
        ("a\u0378b", None),
        ("a\ue000b", None),
        ("a\u2028b", None),
        ("a\u2029b", None),
    ],
)
def test_passwords_are_prepared_for_comparison(password: str, prepared: str | None) -> None:
    assert prepare_password(password) == prepared


@given(st.text())
def test_preparing_twice_changes_nothing(text: str) -> None:
    for prepare in (prepare_name, prepare_password):
        once = prepare(text)
        assert once is None or prepare(once) == once


async def test_providers_are_asked_in_order_until_one_says_yes() -> None:
    first, second, third = Table("a", {}), Table("b", ALICE), Table("c", ALICE)
    users = authenticator(first, second, third)
    assert await users.check_password("Alice@example.com", "correct horse") == "alice@example.com"
    assert (first.asked, third.asked) == ([("alice@example.com", "correct horse")], [])


async def test_broken_provider_does_not_stand_in_the_way_of_a_good_one() -> None:
    users = authenticator(Table("ldap", RuntimeError("no route")), Table("file", ALICE))
    assert await users.check_password("alice@example.com", "correct horse") == "alice@example.com"


@pytest.mark.parametrize("problem", [RuntimeError("no route"), Busy(), asyncio.CancelledError(), SystemExit(1)])
async def test_broken_provider_is_never_a_wrong_password(problem: BaseException) -> None:
    users = authenticator(Table("file", {}), Table("ldap", problem))
    with pytest.raises(Refused) as caught:
        await users.check_password("alice@example.com", "correct horse")
    assert caught.value.reply == replies.AUTH_BACKEND_DOWN


@pytest.mark.parametrize("answer", [False, True, "", b"alice@example.com", 1])
async def test_answer_that_is_no_login_lets_nobody_in(answer: Any) -> None:
    class Careless(Table):
        async def check_password(self, user: str, password: str) -> str | None:
            return answer  # type: ignore[no-any-return]

    lines = Lines()
    log = Log(LogOptions(), sink=lines)
    with pytest.raises(Refused) as caught:
        await Authenticator([Careless("ldap", {})], log=log).check_password("alice@example.com", "guessed")
    assert caught.value.reply == replies.AUTH_BACKEND_DOWN
    assert events(log, lines) == ["auth-provider-broken"]


async def test_login_ends_when_it_is_cancelled() -> None:
    class Silent(Table):
        async def check_password(self, user: str, password: str) -> str | None:
            await asyncio.Event().wait()
            return user

    login = asyncio.create_task(authenticator(Silent("ldap", {}), Table("b", ALICE)).check_password("a", "b"))
    await asyncio.sleep(0)
    login.cancel()
    with pytest.raises(asyncio.CancelledError):
        await login


async def test_broken_provider_is_logged_once_until_it_works_again() -> None:
    lines = Lines()
    log = Log(LogOptions(), sink=lines)
    table = Table("ldap", RuntimeError("no route"))
    users = Authenticator([table], log=log)
    for state in (RuntimeError(), RuntimeError(), {}, RuntimeError()):
        table.users = state
        with pytest.raises(Refused):
            await users.check_password("alice@example.com", "correct horse")
    assert events(log, lines) == ["auth-provider-broken"] * 2
    assert b"correct horse" not in lines.octets


async def test_providers_work_for_the_client_that_logs_in_and_for_nobody_afterwards() -> None:
    table = Table("users", ALICE)
    for mechanism, answers in (("PLAIN", [b"\0alice@example.com\0x"]), ("LOGIN", [b"alice@example.com", b"x"])):
        await log_in(mechanism, None, *answers, users=authenticator(table))
    assert table.clients == ["192.0.2.1", "192.0.2.1"]
    assert CLIENT.get() is None


async def test_provider_that_does_not_answer_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Table):
        async def check_password(self, user: str, password: str) -> str | None:
            await asyncio.Event().wait()
            return user

    monkeypatch.setattr(auth, "CHECK_SECONDS", 0.01)
    lines = Lines()
    log = Log(LogOptions(), sink=lines)
    silent, table = Silent("ldap", {}), Table("users", ALICE)
    async with asyncio.timeout(10):
        assert (
            await log_in("PLAIN", b"\0x\0y", users=Authenticator([silent, table], log=log)) == replies.AUTH_BACKEND_DOWN
        )
        right = b"\0alice@example.com\0correct horse"
        assert await log_in("PLAIN", right, users=Authenticator([silent, table], log=log)) == "alice@example.com"
    assert events(log, lines) == ["auth-provider-broken"] * 2
