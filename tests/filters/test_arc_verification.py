"""Chains verified: good ones, and each signature broken on its own (RFC 8617 §5.2, steps 4 to 7)."""

from collections.abc import Iterator
from pathlib import Path

import dkim
import pytest
from arc_house import HOPS, ONE, THREE, TWO, Hop, chain, field_of, found, zone
from signer import LETTER, Signer

from filters.arc_chain import read_chain
from filters.arc_verification import ChainVerification
from filters.dkim_header import HeaderSection
from filters.dkim_keys import Keys
from smtpd.zone import Zone

VECTORS = Path(__file__).parent.parent / "vectors" / "arc"


def by_dkimpy(message: bytes, resolver: Zone) -> bytes | None:
    """dkimpy's opinion."""

    def ask(name: bytes, timeout: float = 5) -> bytes | None:
        answer = resolver.peek(name.decode().rstrip("."), "TXT")
        return answer.txt[0] if answer is not None and answer.txt else None

    status, _, _ = dkim.arc_verify(message, dnsfunc=ask)
    assert status is None or isinstance(status, bytes)
    return status


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_chains_made_by_dkimpy_pass(number: int) -> None:
    result = await found(chain(number))
    assert (result.status, result.reason) == ("pass", "")
    assert (result.instances, result.oldest_pass, result.client_ip) == (number, 0, "192.0.2.1")
    assert result.sealers == tuple(hop.domain for hop in HOPS[:number])[::-1]


@pytest.mark.parametrize(("name", "instances", "oldest"), [("dkimpy-one", 1, 0), ("dkimpy-list", 3, 2)])
async def test_messages_sealed_long_ago_still_pass(name: str, instances: int, oldest: int) -> None:
    result = await found((VECTORS / f"{name}.eml").read_bytes(), Zone.load(VECTORS / "zone.toml"))
    assert (result.status, result.instances, result.oldest_pass) == ("pass", instances, oldest)


async def test_message_without_a_chain_has_none() -> None:
    assert (await found(LETTER)).status == "none"
    assert (await found(b"Subject: arc-seal\r\n\r\nARC-Seal: i=1\r\n")).status == "none"


def forged(number: int, **mistakes: dict[str, str | None]) -> bytes:
    """A chain made by hand; `mistakes` are tags by what they are in: seal2, signature1."""
    message = LETTER
    for instance, hop in enumerate(HOPS[:number], start=1):
        message = hop.forge(
            message,
            instance,
            signature=mistakes.get(f"signature{instance}", {}),
            seal=mistakes.get(f"seal{instance}", {}),
        )
    return message


async def test_chains_made_by_hand_pass_too() -> None:
    assert by_dkimpy(forged(3), zone()) == b"pass"
    assert (await found(forged(3))).status == "pass"


@pytest.mark.parametrize("instance", [1, 2, 3])
async def test_chain_with_one_wrong_seal_fails(instance: int) -> None:
    message = chain(3)
    seal = field_of(message, "ARC-Seal", instance)
    broken = message.replace(seal, _other_signature(seal))
    result = await found(broken)
    # what stands above is over the broken seal, so the newest of them tells
    assert (result.status, result.reason) == ("fail", "ARC-Seal 3: the signature does not match")
    assert result.oldest_pass is None
    assert by_dkimpy(broken, zone()) == b"fail"


@pytest.mark.parametrize("instance", [1, 2, 3])
async def test_seal_that_is_wrong_by_itself_is_told(instance: int) -> None:
    # those above are over it as it is, so they are good
    other = Signer(HOPS[instance - 1].domain, "other", bits=1024)
    resolver = zone()
    resolver.put(other.name, TXT=[other.record])
    message = forged(3, **{f"seal{instance}": {"s": "other"}})
    result = await found(message, resolver)
    assert (result.status, result.reason) == ("fail", f"ARC-Seal {instance}: the signature does not match")


def _other_signature(field: bytes) -> bytes:
    start, b, value = field.rpartition(b"b=")
    place = next(number for number, octet in enumerate(value) if octet in b"abcdefghi")
    return start + b + value[:place] + b"Z" + value[place + 1 :]


@pytest.mark.parametrize("name", ["ARC-Authentication-Results", "ARC-Message-Signature"])
@pytest.mark.parametrize("instance", [1, 2, 3])
async def test_chain_with_a_changed_field_fails(name: str, instance: int) -> None:
    message = chain(3)
    field = field_of(message, name, instance)
    changed = field.replace(b"dmarc=pass", b"dmarc=none") if name.endswith("Results") else _other_signature(field)
    assert changed != field
    result = await found(message.replace(field, changed))
    assert result.status == "fail"
    assert result.reason.endswith("the signature does not match")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"Hello", b"Hallo", "the body was changed"),
        (b"Subject: Hi", b"Subject: Ho", "the signature does not match"),
        (b"From: Joe", b"From: <eve@eve.test>\r\nFrom: Joe", "a From field is not signed"),
    ],
)
async def test_message_changed_behind_the_last_host_fails(old: bytes, new: bytes, reason: str) -> None:
    result = await found(chain(2).replace(old, new))
    assert (result.status, result.reason) == ("fail", f"ARC-Message-Signature 2: {reason}")


async def test_folding_and_blanks_are_no_change() -> None:
    assert (await found(chain(2).replace(b"Hi  there", b"Hi\r\n  there\t").replace(b"Hello,  you", b"Hello, you"))).status == "pass"  # fmt: skip # noqa: E501


# Older message signatures


@pytest.mark.parametrize(
    ("changed_before", "oldest"), [((), 0), ((2,), 2), ((3,), 3), ((2, 3), 3)], ids=["nobody", "two", "three", "both"]
)
async def test_oldest_pass_is_the_last_host_that_changed_something(
    changed_before: tuple[int, ...], oldest: int
) -> None:
    message = LETTER
    for instance, hop in enumerate(HOPS, start=1):
        if instance in changed_before:
            message += b"-- \r\nlist %d\r\n" % instance
        message = hop.add(message)
    result = await found(message)
    assert (result.status, result.oldest_pass) == ("pass", oldest)


@pytest.mark.parametrize(
    "tags",
    [{"x": "1000000000", "t": "999999999"}, {"h": "to"}, {"s": "gone"}, {"a": "rsa-sha1"}, {"h": "from:arc-seal"}],
    ids=["expired", "From is not signed", "no key", "rsa-sha1", "signs a seal"],
)
async def test_older_message_signature_need_not_be_good(tags: dict[str, str | None]) -> None:
    result = await found(forged(2, signature1=tags))
    assert (result.status, result.oldest_pass) == ("pass", 2)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"x": "1000000000", "t": "999999999"}, "the signature has expired"),
        ({"h": "to"}, "the From field is not signed"),
        ({"s": "gone"}, "there is no key"),
        ({"a": "rsa-sha1"}, "rsa-sha1 proves nothing"),
        ({"h": "from:arc-seal"}, "it signs a seal"),
        ({"bh": None}, "the signature has no bh="),
    ],
)
async def test_newest_message_signature_must_be_good(tags: dict[str, str | None], reason: str) -> None:
    result = await found(forged(2, signature2=tags))
    assert (result.status, result.reason) == ("fail", f"ARC-Message-Signature 2: {reason}")


@pytest.mark.parametrize(
    "tags",
    [{"v": "7"}, {"xyz": "new"}, {"i": "02"}, {"h": "from:arc-authentication-results:arc-message-signature"}],
    ids=["a version", "an unknown tag", "two digits", "signs its own set"],
)
async def test_odd_message_signature_is_good(tags: dict[str, str | None]) -> None:
    assert (await found(forged(2, signature2=tags))).status == "pass"


async def test_seal_with_unknown_tags_is_good() -> None:
    result = await found(forged(2, seal1={"xyz": "new", "bh": "AAAA", "c": "simple", "l": "1"}, seal2={"v": "1"}))
    assert (result.status, result.reason) == ("pass", "")


# Keys


@pytest.mark.parametrize(
    ("record", "status", "reason"),
    [
        ({"tempfail": True}, "temperror", "the key cannot be looked up now (no answer)"),
        ({"nxdomain": True}, "fail", "there is no key"),
        ({"TXT": ["v=DKIM1; p="]}, "fail", "the key was revoked"),
        ({"TXT": ["v=DKIM1; h=sha1; p=" + ONE.signer.public]}, "fail", "the key does not allow the hash algorithm"),
        ({"TXT": ["v=DKIM1; t=y:s; p=" + ONE.signer.public]}, "pass", ""),
    ],
    ids=["nobody answers", "gone", "revoked", "for sha1", "tried and strict"],
)
async def test_key_of_a_seal_decides(record: dict[str, object], status: str, reason: str) -> None:
    result = await found(chain(2), zone(one=record))
    assert (result.status, result.reason) == (status, reason and f"ARC-Seal 1: {reason}")


async def test_what_is_broken_stays_broken_while_a_key_cannot_be_looked_up() -> None:
    message = chain(3).replace(b"Hello", b"Hallo")
    assert (await found(message, zone(one={"tempfail": True}))).status == "fail"
    seal = field_of(chain(3), "ARC-Seal", 3)
    assert (await found(chain(3).replace(seal, _other_signature(seal)), zone(one={"tempfail": True}))).status == "fail"


async def test_older_message_signature_nobody_can_look_up_is_not_counted() -> None:
    resolver = zone()
    resolver.put("late._domainkey.one.test", tempfail=True)
    result = await found(forged(3, signature1={"s": "late"}), resolver)
    assert (result.status, result.oldest_pass) == ("pass", 2)


async def test_ed25519_signs_as_in_dkim() -> None:
    key = Signer("three.test", "ed", bits=0)
    resolver = zone()
    resolver.put(key.name, TXT=[key.record])
    result = await found(Hop(THREE.signer, key).forge(forged(2), 3), resolver)
    assert (result.status, result.oldest_pass) == ("pass", 0)


async def test_big_body_gives_the_same_answer_in_a_thread() -> None:
    body = b"x" * 70 + b"\r\n"
    big = TWO.add(ONE.add(LETTER + body * 3000))
    assert len(big) > 200_000
    assert (await found(big)).status == "pass"
    assert (await found(big + b"PS\r\n")).reason == "ARC-Message-Signature 2: the body was changed"


async def test_nobody_reads_on_when_nobody_wants_to_know_any_more() -> None:
    octets = chain(1)
    head = HeaderSection(octets[: octets.index(b"\r\n\r\n") + 4])
    content = Endless(octets)
    keys = await Keys(min_bits=1024, max_bits=4096).find(zone(), [ONE.signer.name])
    verification = ChainVerification(head, content, read_chain(head, 1.9e9), keys)
    content.when_read = verification.abandon
    assert verification.run().status == "fail"
    assert content.read == 2


class Endless:
    """The content of a message that goes on and on."""

    size = 1 << 30

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self.read = 0
        self.when_read = lambda: None

    def head(self) -> bytes:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def chunks(self) -> Iterator[bytes]:
        yield self._octets
        while self.read < 10:
            self.read += 1
            if self.read == 2:
                self.when_read()
            yield b"x" * 1000
