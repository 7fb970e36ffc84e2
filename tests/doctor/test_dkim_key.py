import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from patients import levels, only, patient

from smtpd.doctor.dkim_key import check_dkim

NAME = "s1._domainkey.example.com"


def rsa_record(bits: int, tags: str = "v=DKIM1; k=rsa;") -> str:
    key = rsa.generate_private_key(65537, bits).public_key()
    octets = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"{tags} p={base64.b64encode(octets).decode()}"


def short_record() -> str:
    key = RSAPublicNumbers(65537, (1 << 767) | 1).public_key()
    octets = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"p={base64.b64encode(octets).decode()}"


def ed25519_record() -> str:
    octets = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"k=ed25519; p={base64.b64encode(octets).decode()}"


def curve_record() -> str:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    octets = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"p={base64.b64encode(octets).decode()}"


@pytest.mark.parametrize(
    ("texts", "level", "said"),
    [
        ([rsa_record(2048)], "ok", "2048 bits"),
        ([rsa_record(2048, "")], "ok", "2048 bits"),
        ([ed25519_record()], "ok", "Ed25519"),
        ([rsa_record(1024)], "warning", "weak"),
        ([short_record()], "problem", "768 bits; receivers ignore it"),
        ([rsa_record(2048, "v=DKIM1; t=s:y;")], "warning", "t=y"),
        (["v=DKIM1; p="], "problem", "no key"),
        (["v=DKIM1; k=rsa"], "problem", "no key"),
        (["v=DKIM2; p=aa"], "problem", "version"),
        (["v=DKIM1; p=!!"], "problem", "can be used"),
        (["v=DKIM1; p=aGVsbG8="], "problem", "can be used"),
        (["k=ed25519; p=aGVsbG8="], "problem", "32 octets"),
        (["k=dsa; p=aGVsbG8="], "problem", "type dsa"),
        ([curve_record()], "problem", "says RSA"),
        ([b"\xff\x00"], "problem", "no key"),
        (["v=DKIM1; p=", "other"], "problem", "2 records"),
        ([], "problem", "There is none"),
    ],
)
async def test_a_key_is_judged_by_what_receivers_can_do_with_it(texts: list[object], level: str, said: str) -> None:
    finding = only(await check_dkim(patient({NAME: {"TXT": texts}}, selectors=("s1",)), "example.com"))
    assert (finding.level, finding.subject) == (level, f"DKIM key {NAME}")
    assert said in finding.meaning


async def test_every_selector_is_looked_up_and_dns_that_is_down_is_no_problem() -> None:
    zone = {"*._domainkey.example.com": {"TXT": "tempfail: timeout"}}
    findings = await check_dkim(patient(zone, selectors=("s1", "s2")), "example.com")
    assert levels(findings) == ["warning", "warning"]
    assert await check_dkim(patient(zone), "example.com") == []
