"""Sealing: what dkimpy says of our sets, for whom there are any, and which keys are refused."""

from pathlib import Path

import dkim
import pytest
from arc_house import CHANGED_TEXT, ONE, chain, drop, field_of, private_key, zone
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from dkim_house import JOE
from signer import LETTER, Signer, ed25519_key, rsa_key

from filters.arc import Arc
from filters.arc_seal import ArcSeal
from filters.arc_sealer import Sealer, SealingKeyError, read_key
from filters.dkim import Dkim
from filters.dkim_body import SLICE
from filters.dkim_signature import read_tags
from smtpd import replies
from smtpd.content import Content
from smtpd.delivery import DeliveryAgent
from smtpd.limits import ContentBudget
from smtpd.memory import MemoryServer
from smtpd.model import Message, Transaction
from smtpd.policy import PASS, Filter, Verdict
from smtpd.replies import Reply
from smtpd.zone import Zone

OURS = Signer("mx.test", "arc")


class Kept(DeliveryAgent):
    """Keeps what it was given."""

    seen: list[bytes] = []

    async def deliver(self, mail: Transaction, message: Message) -> Reply:
        self.seen.append(bytes(message))
        return replies.ACCEPTED


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "arc.key"
    path.write_bytes(private_key())
    return path


def keys() -> Zone:
    known = zone()
    for signer in (OURS, JOE):
        known.put(signer.name, TXT=[signer.record])
    return known


def house(
    key_file: Path,
    agents: tuple[str, ...] = ("kept",),
    *,
    with_arc: bool = True,
    max_fields: int = 100,
    max_instances: int = 50,
    resolver: Zone | None = None,
) -> MemoryServer:
    Kept.seen.clear()
    options = {"domain": "MX.test", "selector": "arc", "key_file": str(key_file), "agents": list(agents)}
    arc = {"arc": (Arc, {"max_fields": max_fields, "max_instances": max_instances})} if with_arc else {}
    tables = {"domains": {"example.test": "kept", "other.test": "other"}}
    return MemoryServer(
        filters={"arc_seal": (ArcSeal, options), "dkim": Dkim, **arc},
        agents={"kept": Kept, "other": Kept},
        tables=tables,
        resolver=resolver or keys(),
    )


async def sealed(key_file: Path, message: bytes) -> bytes:
    """What the agent gets."""
    async with house(key_file) as server:
        heard = await (await server.connect()).send(message)
        assert heard[-1].startswith("250 "), heard
    return Kept.seen.pop()


def ask(name: bytes, timeout: float = 5) -> bytes | None:
    """The DNS for dkimpy."""
    answer = keys().peek(name.decode().rstrip("."), "TXT")
    return answer.txt[0] if answer is not None and answer.txt else None


def by_dkimpy(message: bytes) -> tuple[object, str]:
    status, _, reason = dkim.arc_verify(message, dnsfunc=ask)
    return status, reason


@pytest.mark.parametrize("hops", [0, 1, 2])
async def test_sets_of_ours_pass_with_dkimpy_and_with_us(key_file: Path, hops: int) -> None:
    message = await sealed(key_file, chain(hops))
    assert message.count(b"\r\nARC-Seal: ") == hops + 1
    assert by_dkimpy(message) == (b"pass", "success")
    again = await sealed(key_file, message)
    ours = b" ".join(again.partition(b"ARC-Seal")[0].split())
    assert b"arc=pass smtp.remote-ip=192.0.2.1 header.oldest-pass=0" in ours
    assert by_dkimpy(again) == (b"pass", "success")


async def test_big_message_is_sealed(key_file: Path) -> None:
    assert by_dkimpy(await sealed(key_file, LETTER + b"x\t y \r\n" * 20_000 + b"\r\n\r\n")) == (b"pass", "success")


async def test_set_says_what_we_found(key_file: Path) -> None:
    message = await sealed(key_file, ONE.add(JOE.sign()))
    results = message.partition(b"ARC-Authentication-Results:")[2].partition(b"From:")[0]
    text = b" ".join(results.split())
    assert text.startswith(b"i=2; mx.example.test; ")
    assert b"dkim=pass header.d=a.test" in text
    assert message.count(b"d=mx.test;") == 2
    assert b"arc=pass smtp.remote-ip=192.0.2.1" in text


@pytest.mark.parametrize(
    "change", [(b"Hello", b"Hallo"), (b"Subject: Hi", b"Subject: Ho"), (b"To: ", b"To: eve@eve.test\r\nTo: ")]
)
async def test_what_is_changed_behind_us_does_not_pass(key_file: Path, change: tuple[bytes, bytes]) -> None:
    message = await sealed(key_file, LETTER)
    assert by_dkimpy(message.replace(*change))[0] == b"fail"


async def test_signature_of_the_author_is_sealed_too(key_file: Path) -> None:
    message = await sealed(key_file, JOE.sign())
    assert by_dkimpy(message.replace(b"d=a.test;", b"d=b.test;"))[0] == b"fail"


class Footer(Filter):
    """Changes the message, like a scanner that is asked before."""

    name = "footer"
    changes = True

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        content = Content(ContentBudget(1 << 20), in_memory=1 << 20)
        content.write(bytes(message.content.head()) + b"checked\r\n")
        message.replace_content(content)
        return PASS


async def test_what_is_sealed_is_what_filters_have_made_of_it(key_file: Path) -> None:
    options = {"domain": "mx.test", "selector": "arc", "key_file": str(key_file), "agents": ["kept"]}
    Kept.seen.clear()
    async with MemoryServer(
        filters={"footer": Footer, "arc_seal": (ArcSeal, options), "arc": Arc}, agents={"kept": Kept}, resolver=keys()
    ) as server:
        await (await server.connect()).send(LETTER)
    message = Kept.seen.pop()
    assert message.endswith(b"\r\n\r\nchecked\r\n")
    assert by_dkimpy(message) == (b"pass", "success")


async def test_chain_that_is_full_is_not_sealed(key_file: Path) -> None:
    message = LETTER
    for instance in range(1, 51):
        message = ONE.forge(message, instance)
    async with house(key_file, max_fields=1000) as server:
        await (await server.connect()).send(message)
        assert server.count("smtpd_arc_checks_total", result="pass") == 1
        assert server.count("smtpd_arc_seals_total", filter="arc_seal", result="impossible") == 1
    assert Kept.seen.pop().count(b"ARC-Seal: ") == 50


async def test_chain_that_is_only_too_long_for_us_is_not_said_to_have_failed(key_file: Path) -> None:
    async with house(key_file, max_instances=2) as server:
        await (await server.connect()).send(chain(3))
        assert server.count("smtpd_arc_checks_total", result="fail") == 1
        assert server.count("smtpd_arc_seals_total", filter="arc_seal", result="impossible") == 1
    assert Kept.seen.pop().count(b"ARC-Seal: ") == 3


async def test_subject_that_was_not_there_cannot_be_added(key_file: Path) -> None:
    message = await sealed(key_file, LETTER.replace(b"Subject: Hi  there\r\n", b""))
    assert by_dkimpy(message)[0] == b"pass"
    assert by_dkimpy(b"Subject: Buy this\r\n" + message)[0] == b"fail"


BROKEN = {
    "changed": chain(2).replace(*CHANGED_TEXT),
    "seal missing": drop(chain(2), "ARC-Seal", 1),
    "newest set is half": drop(chain(2), "ARC-Seal", 2),
    "twice the same": field_of(chain(1), "ARC-Seal", 1) + chain(1),
    "gap": ONE.forge(chain(1), 7),
    "not the first": ONE.forge(LETTER, 3),
    "no number": b"ARC-Seal: i=x; cv=none\r\n" + chain(1),
    "no tags": b"ARC-Message-Signature: what is this\r\n" + chain(2),
    "says pass, but is the first": ONE.forge(LETTER, 1, seal={"cv": "pass"}),
}


def set_by_dkimpy(message: bytes) -> bytes:
    """The set that dkimpy puts on a chain that has failed."""
    judged = b"Authentication-Results: mx.mx.test; arc=fail\r\n" + message
    fields: list[bytes] = dkim.arc_sign(judged, b"arc", b"mx.test", private_key(), b"mx.mx.test")
    return b"".join(field.rstrip(b"\r\n") + b"\r\n" for field in fields)


def alone(fields: bytes, message: bytes) -> dict[str, object]:
    """What dkimpy finds of one set on a message without any other, as seals of failed chains are made."""
    bare = fields + message[message.index(b"From: Joe") :]
    _, (found,), _ = dkim.ARC(bare).verify(dnsfunc=ask)
    return {key: found[key] for key in ("instance", "cv", "ams-valid", "as-valid")}


@pytest.mark.parametrize("message", BROKEN.values(), ids=BROKEN)
async def test_chain_that_does_not_pass_is_sealed_as_dkimpy_would(key_file: Path, message: bytes) -> None:
    """RFC 8617 §5.1.2: the seal is over its own set, as if it was the only one."""
    async with house(key_file) as server:
        await (await server.connect()).send(message)
        assert server.count("smtpd_arc_seals_total", filter="arc_seal", result="failed") == 1
    kept = Kept.seen.pop()
    assert kept.endswith(message)
    ours = kept[kept.index(b"ARC-Seal: ") :].removesuffix(message)
    found = alone(ours, message)
    assert found == alone(set_by_dkimpy(message), message)
    assert (found["cv"], found["ams-valid"], found["as-valid"]) == (b"fail", True, True)
    assert b" arc=fail reason=" in b" ".join(ours.split())
    assert not alone(ours.replace(b"arc=fail", b"arc=pass"), message)["as-valid"]


async def test_message_signature_of_a_failed_chain_is_over_the_message(key_file: Path) -> None:
    message = await sealed(key_file, BROKEN["changed"])
    assert by_dkimpy(message) == (None, "ARC-Seal[3] reported failure, the chain is terminated")
    status, reason = by_dkimpy(message.replace(b"Hallo", b"Hello"))
    assert (status, reason) == (b"fail", "Most recent ARC-Message-Signature did not validate")


@pytest.mark.parametrize(
    ("message", "result"),
    [
        (ONE.forge(chain(1), 2, seal={"cv": "fail"}), "impossible"),
        (ONE.forge(ONE.forge(chain(1), 2, seal={"cv": " FAIL "}), 3), "impossible"),
        (ONE.forge(chain(1), 50), "impossible"),
        (b"ARC-Seal: i=1000000000000\r\n" + chain(1), "impossible"),
        (b"".join(b"X-%d: y\r\n" % number for number in range(100)) + chain(1), "impossible"),
    ],
    ids=["has ended", "had ended before", "too many", "far too many", "too many fields"],
)
async def test_chain_that_nobody_can_go_on_with_is_left_alone(key_file: Path, message: bytes, result: str) -> None:
    async with house(key_file) as server:
        await (await server.connect()).send(message)
        assert server.count("smtpd_arc_checks_total", result="fail") == 1
        assert server.count("smtpd_arc_seals_total", filter="arc_seal", result=result) == 1
    assert Kept.seen.pop().endswith(b"\r\n" + message)


def test_nobody_can_add_a_field_that_readers_see() -> None:
    message = LETTER.replace(b"To:", b"To: eve@a.test\r\nTo:")
    content = Content(ContentBudget(0), in_memory=1 << 20)
    content.write(message)
    fields = Sealer("mx.test", "arc", read_key(private_key())).seal(content, "mx.test; none", 1.8e9)
    signed = [name.strip().lower() for name in read_tags(fields[1][1].encode())[b"h"].split(b":")]
    there = {b"from": 1, b"to": 2, b"cc": 0, b"subject": 1, b"date": 1, b"content-type": 0}
    there[b"content-transfer-encoding"] = 0
    assert {name: signed.count(name) - 1 for name in there} == there


async def test_chain_whose_keys_nobody_knows_now_is_left_alone(key_file: Path) -> None:
    resolver = keys()
    resolver.put(ONE.signer.name, tempfail=True)
    async with house(key_file, resolver=resolver) as server:
        await (await server.connect()).send(chain(1))
        assert server.count("smtpd_arc_seals_total", filter="arc_seal", result="unknown") == 1
    assert Kept.seen.pop().count(b"ARC-Seal: ") == 1


async def test_nothing_is_sealed_without_the_filter_that_looks_at_chains(key_file: Path) -> None:
    async with house(key_file, with_arc=False) as server:
        await (await server.connect()).send(LETTER)
    assert b"ARC-Seal" not in Kept.seen.pop()


@pytest.mark.parametrize(
    ("recipients", "seals"),
    [(("a@example.test",), 1), (("a@other.test",), 0), (("a@example.test", "b@other.test"), 0)],
)
async def test_only_what_goes_to_agents_that_forward_is_sealed(
    key_file: Path, recipients: tuple[str, ...], seals: int
) -> None:
    async with house(key_file) as server:
        await (await server.connect()).send(LETTER, recipients=recipients)
        assert server.count("smtpd_arc_seals_total", filter="arc_seal", result="sealed") == seals
    assert {message.count(b"ARC-Seal: ") for message in Kept.seen} == {seals}


async def test_header_that_cannot_be_read_is_not_sealed(key_file: Path) -> None:
    async with house(key_file) as server:
        await (await server.connect()).send(b"no field\r\n" + LETTER)
        assert server.count("smtpd_arc_seals_total", filter="arc_seal", result="impossible") == 1
    assert b"ARC-Seal" not in Kept.seen.pop()


async def test_server_does_not_start_without_the_key(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"arc\.key"):
        async with house(tmp_path / "arc.key"):
            pass


@pytest.mark.parametrize(
    ("pem", "problem"),
    [
        (b"", "no private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key"),
        (
            ed25519_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            "with RSA keys only",
        ),
        (rsa_key(1024).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "1024 bits, fewer than 2048"),
    ],
    ids=["empty", "broken", "Ed25519", "small"],
)
def test_key_that_cannot_seal_is_refused(pem: bytes, problem: str) -> None:
    with pytest.raises(SealingKeyError, match=problem):
        read_key(pem)


async def test_big_message_is_read_in_slices_so_that_others_have_their_turn(key_file: Path) -> None:
    big = LETTER + b"Hello, Ann.\r\n" * (4 * SLICE // 13)
    content = Content(ContentBudget(0), in_memory=len(big))
    content.write(big)
    steps = Sealer("mx.test", "arc", read_key(private_key())).steps(content, "mx.test; none", 1.8e9)
    assert sum(1 for _ in steps) == 4
    assert by_dkimpy(await sealed(key_file, big)) == (b"pass", "success")
