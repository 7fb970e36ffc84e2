import asyncio
import base64
import os
import stat
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import argon2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_lines import Lines

from smtpd import files, replies, users
from smtpd.auth import Authenticator
from smtpd.config import LogOptions
from smtpd.log import Log
from smtpd.metrics import Metrics
from smtpd.plugins import PROVIDERS, find
from smtpd.replies import Refused, Reply
from smtpd.services import Services
from smtpd.users import Cost, UserFile, UserFileError

CHEAP = Cost(passes=1, memory=8 << 10)
OTHER_CHEAP = Cost(passes=2, memory=16 << 10)
LOGIN, PASSWORD = "alice@example.com", "correct horse"


class Provider:
    """The provider with everything around it, and the file it reads."""

    def __init__(self, path: Path, **options: object) -> None:
        self.path = path
        self.lines = Lines()
        self.log = Log(LogOptions(), sink=self.lines)
        services = Services(hostname="mx.example.com", log=self.log, metrics=Metrics())
        table = users.Options.model_validate(
            {"type": "file", "path": str(path), "time_cost": 1, "memory_cost": 8 << 10, **options}
        )
        self.users = UserFile("users", table, services)
        self.authenticator = Authenticator([self.users], log=self.log)

    async def answer(self, login: str = LOGIN, password: str = PASSWORD) -> str | Reply:
        try:
            return await self.authenticator.check_password(login, password)
        except Refused as refused:
            return refused.reply

    def events(self) -> list[str]:
        self.log.flush()
        return [line["event"] for line in self.lines.entries]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "users"
    users.add(found, LOGIN, PASSWORD, CHEAP)
    return found


@pytest.fixture
async def provider(path: Path) -> AsyncIterator[Provider]:
    made = Provider(path)
    await made.users.start()
    yield made
    await made.users.stop()


async def test_right_password_gives_the_canonical_login(provider: Provider) -> None:
    assert await provider.answer("Alice@Example.com", PASSWORD) == LOGIN


@pytest.mark.parametrize(
    ("login", "password"),
    [(LOGIN, "wrong"), (LOGIN, "Correct horse"), ("bob@example.com", PASSWORD), ("", PASSWORD), (LOGIN, "")],
)
async def test_anything_else_is_refused_in_the_same_words(provider: Provider, login: str, password: str) -> None:
    assert await provider.answer(login, password) is replies.AUTH_FAILED


async def test_password_is_right_in_every_unicode_form(provider: Provider) -> None:
    users.set_password(provider.path, LOGIN, "pa\u0308ss\u00a0wörd", CHEAP)
    assert await provider.answer(LOGIN, "päss wo\u0308rd") == LOGIN


async def test_changed_password_counts_at_once_also_right_after_a_login(provider: Provider) -> None:
    assert [await provider.answer() for _ in range(2)] == [LOGIN, LOGIN]
    users.set_password(provider.path, LOGIN, "new", CHEAP)
    assert await provider.answer() is replies.AUTH_FAILED
    assert await provider.answer(LOGIN, "new") == LOGIN


async def test_removed_user_is_locked_out_at_once(provider: Provider) -> None:
    assert await provider.answer() == LOGIN
    users.remove(provider.path, LOGIN)
    assert await provider.answer() is replies.AUTH_FAILED


async def test_added_user_can_log_in_at_once(provider: Provider) -> None:
    users.add(provider.path, "bob@example.com", "battery", CHEAP)
    assert await provider.answer("bob@example.com", "battery") == "bob@example.com"


async def test_bad_line_is_reported_and_locks_out_nobody_else(provider: Provider) -> None:
    with provider.path.open("ab") as file:
        file.write(b"\nno colon\nbob:plain text\n\xff:x\n# a comment\n")
    assert await provider.answer() == LOGIN
    assert await provider.answer("bob", "plain text") is replies.AUTH_FAILED
    assert provider.events().count("users-file-problems") == 1
    assert b"plain text" not in provider.lines.octets


@pytest.mark.parametrize(
    "known",
    [
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAA",  # cut off
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAB",  # as well, by two digits
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHR$AAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "$argon2id$v=19$m=7,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "$argon2id$v=19$m=15,t=1,p=2$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "$argon2id$v=19$m=8,t=0,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "$argon2id$v=19$m=8,t=1,p=0$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "$argon2id$v=20$m=8,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "$argon2id$v=19$m=4194305,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAA",
    ],
)
async def test_hash_that_argon2_makes_no_sense_of_is_a_bad_line(provider: Provider, known: str) -> None:
    with provider.path.open("a") as file:
        file.write(f"bob:{known}\n")
    assert await provider.answer("bob", "battery") is replies.AUTH_FAILED
    assert provider.events() == ["users-loaded", "users-loaded", "users-file-problems"]


@given(st.binary(min_size=8, max_size=40), st.binary(min_size=12, max_size=40), st.sampled_from((16, 19)))
def test_every_hash_that_argon2_makes_sense_of_is_taken(salt: bytes, digest: bytes, version: int) -> None:
    texts = [base64.b64encode(part).decode().rstrip("=") for part in (salt, digest)]
    known = "$".join((f"$argon2id$v={version}$m=8,t=1,p=1", *texts))
    with pytest.raises(argon2.exceptions.VerifyMismatchError):
        argon2.PasswordHasher().verify(known, "guess")
    assert users.parse(f"bob:{known}\n".encode()).hashes == {"bob": known}


@pytest.mark.parametrize("remember", [0, 60])
async def test_remembering_or_not_the_answers_are_the_same(path: Path, remember: int) -> None:
    provider = Provider(path, remember=remember)
    await provider.users.start()
    answers = [await provider.answer(LOGIN, password) for password in (PASSWORD, PASSWORD, "wrong", PASSWORD)]
    assert answers == [LOGIN, LOGIN, replies.AUTH_FAILED, LOGIN]
    await provider.users.stop()


async def test_file_that_vanished_is_not_a_wrong_password(provider: Provider) -> None:
    provider.path.unlink()
    assert await provider.answer() is replies.AUTH_BACKEND_DOWN
    assert "No such file" in str(await provider.users.health())
    assert provider.events().count("auth-provider-broken") == 1


async def test_what_is_no_regular_file_is_told_in_a_sentence(provider: Provider) -> None:
    provider.path.unlink()
    os.mkfifo(provider.path)
    assert "is not a regular file" in str(await provider.users.health())
    for reading in (provider.users.start(), asyncio.to_thread(users.load, provider.path)):
        with pytest.raises(UserFileError, match="is not a regular file"):
            await reading


async def test_file_that_somebody_writes_into_makes_no_wrong_password(provider: Provider) -> None:
    now = [100.0]
    provider.users._rest._clock = lambda: now[0]
    whole = provider.path.read_text()
    for begun in ("", whole[:-20], "bob@example.com:*\n"):
        provider.path.write_text(begun)
        assert await provider.answer() is replies.AUTH_BACKEND_DOWN
        assert await provider.answer("eve@example.com") is replies.AUTH_FAILED
    now[0] += files.QUIET
    assert await provider.answer() is replies.AUTH_FAILED
    provider.path.write_text(whole)
    assert await provider.answer() == LOGIN


async def test_missing_file_keeps_the_server_from_starting(tmp_path: Path) -> None:
    provider = Provider(tmp_path / "none")
    with pytest.raises(UserFileError, match="none: No such file"):
        await provider.users.start()
    await provider.users.stop()


async def test_file_open_to_others_is_warned_of(provider: Provider) -> None:
    assert "users-file-open-to-others" not in provider.events()
    provider.path.chmod(0o644)
    await provider.answer()
    assert provider.events().count("users-file-open-to-others") == 1


async def test_flood_of_logins_is_answered_with_try_again(path: Path) -> None:
    users.set_password(path, LOGIN, PASSWORD, Cost(passes=1, memory=64 << 20))
    provider = Provider(path, threads=1, waiting=2)
    await provider.users.start()
    answers = await asyncio.gather(*(provider.answer(LOGIN, f"guess {number}") for number in range(10)))
    assert answers.count(replies.AUTH_FAILED) == 3
    assert answers.count(replies.AUTH_BACKEND_DOWN) == 7
    assert await provider.answer() == LOGIN
    await provider.users.stop()


async def test_who_was_right_a_moment_ago_does_not_wait_behind_a_flood(path: Path) -> None:
    users.set_password(path, LOGIN, PASSWORD, Cost(passes=1, memory=64 << 20))
    provider = Provider(path, threads=1, waiting=0)
    await provider.users.start()
    assert await provider.answer() == LOGIN
    guess = asyncio.create_task(provider.answer(LOGIN, "guess"))
    await asyncio.sleep(0)
    assert await provider.answer() == LOGIN
    await guess
    await provider.users.stop()


@pytest.mark.parametrize("cost", [CHEAP, OTHER_CHEAP])
def test_unknown_user_costs_what_most_users_cost(cost: Cost) -> None:
    rare = CHEAP if cost is OTHER_CHEAP else OTHER_CHEAP
    hashes = [cost.hash("a"), cost.hash("b"), rare.hash("c")]
    content = "".join(f"user{number}:{known}\n" for number, known in enumerate(hashes)).encode()
    decoy = users.parse(content, users.DEFAULT_COST).decoy
    assert decoy.split("$")[:4] == hashes[0].split("$")[:4]
    assert len(decoy) == len(hashes[0])


def test_unknown_user_of_an_empty_file_costs_what_a_new_hash_would() -> None:
    assert users.parse(b"", CHEAP).decoy.split("$")[:4] == CHEAP.hash("x").split("$")[:4]


async def test_unknown_user_is_really_hashed(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []

    def verify(_: argon2.PasswordHasher, known: str, password: str) -> bool:
        hashed.append((known.split("$")[:4], password))
        raise argon2.exceptions.VerifyMismatchError

    monkeypatch.setattr(argon2.PasswordHasher, "verify", verify)
    assert await provider.answer("unknown", "x") is replies.AUTH_FAILED
    assert hashed == [(users.load(provider.path).hashes[LOGIN].split("$")[:4], "x")]


def test_secrets_are_not_in_any_repr(path: Path) -> None:
    known = users.load(path)
    assert "argon2" not in repr(known)
    assert known.hashes[LOGIN].startswith("$argon2id$")


def test_default_cost_is_that_of_rfc_9106() -> None:
    known = users.DEFAULT_COST.hash("x")
    assert known.startswith("$argon2id$v=19$m=65536,t=3,p=1$")


def test_editing_keeps_comments_order_and_other_lines(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_bytes(b"# people\n\nbroken line\n")
    for login in ("a", "b", "c"):
        users.add(path, login, "x", CHEAP)
    users.remove(path, "A")
    users.set_password(path, "b", "y", CHEAP)
    lines = path.read_text().splitlines()
    assert lines[:3] == ["# people", "", "broken line"]
    assert [line.partition(":")[0] for line in lines[3:]] == ["b", "c"]
    assert users.check_password(path, "b", "y")
    assert not users.check_password(path, "b", "x")


def test_file_without_final_line_end_gets_a_line_of_its_own(path: Path) -> None:
    path.write_bytes(path.read_bytes().rstrip())
    users.add(path, "bob", "x", CHEAP)
    assert set(users.load(path).hashes) == {LOGIN, "bob"}


def test_new_file_is_private_and_an_existing_one_keeps_owner_and_group_rights(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    before = path.stat()
    users.add(path, "bob", "x", CHEAP)
    after = path.stat()
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert os.listdir(path.parent) == ["users"]


def test_mark_of_an_editor_in_front_of_the_first_line_is_no_part_of_it(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf# a comment\r\n" + path.read_bytes())
    assert users.load(path).problems == ()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().splitlines()[1])
    assert users.check_password(path, LOGIN, PASSWORD)
    users.set_password(path, LOGIN, "new", CHEAP)
    assert users.check_password(path, LOGIN, "new")


def test_symlink_to_the_file_stays_one(path: Path) -> None:
    link = path.parent / "link"
    link.symlink_to("users")
    users.add(link, "bob", "x", CHEAP)
    assert link.is_symlink()
    assert "bob" in users.load(path).hashes


@pytest.mark.parametrize("login", ["", "two words", "a:b", "#a", "a\nb", "x" * 300])
def test_impossible_login_is_refused(path: Path, login: str) -> None:
    before = path.read_bytes()
    with pytest.raises(UserFileError, match="a login has"):
        users.add(path, login, "x", CHEAP)
    assert path.read_bytes() == before


@pytest.mark.parametrize("password", ["", "a\nb", "x" * 2000])
def test_impossible_password_is_refused_without_showing_it(path: Path, password: str) -> None:
    with pytest.raises(UserFileError) as caught:
        users.set_password(path, LOGIN, password, CHEAP)
    assert not password or password not in str(caught.value)


def test_mistakes_are_told_and_change_nothing(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(UserFileError, match="already"):
        users.add(path, LOGIN.upper(), "x", CHEAP)
    with pytest.raises(UserFileError, match="bob is not in"):
        users.remove(path, "bob")
    with pytest.raises(UserFileError, match="bob is not in"):
        users.set_password(path, "bob", "x", CHEAP)
    with pytest.raises(UserFileError, match="No such file"):
        users.add(path.parent / "none" / "users", "bob", "x", CHEAP)
    assert path.read_bytes() == before


def test_editors_at_once_lose_nothing(path: Path) -> None:
    together = threading.Barrier(4)

    def edit(stem: str) -> None:
        together.wait()
        for number in range(10):
            users.add(path, f"{stem}{number}", "x", CHEAP)

    with ThreadPoolExecutor(4) as editors:
        list(editors.map(edit, "abcd"))
    assert len(users.load(path).hashes) == 41


def test_second_line_of_a_user_is_a_problem_and_the_first_one_counts(path: Path) -> None:
    path.write_text(path.read_text() + f"{LOGIN.upper()}:{CHEAP.hash('other')}\n")
    known = users.load(path)
    assert known.problems == ("line 2: this user has a line above already",)
    assert users.check_password(path, LOGIN, PASSWORD)


@given(st.binary(max_size=300))
def test_no_file_content_breaks_the_reader(content: bytes) -> None:
    known = users.parse(content, CHEAP)
    assert known.decoy.startswith("$argon2")


def test_developer_user_is_made_once_and_works(tmp_path: Path) -> None:
    path = tmp_path / "var" / "users"
    made = users.make_developer_user(path, CHEAP)
    assert made is not None
    assert made[0] == "user@example.test"
    assert users.check_password(path, *made)
    assert users.make_developer_user(path, CHEAP) is None


def test_provider_is_found_by_its_entry_point() -> None:
    assert find(PROVIDERS, "file") is UserFile
