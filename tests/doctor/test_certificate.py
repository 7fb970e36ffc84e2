import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from conftest import Certificates
from patients import configuration, levels, only, patient

from smtpd.doctor.certificate import DAY, WARN_DAYS, check_certificates
from smtpd.doctor.examination import Examination


def examined(certificates: Certificates, hostname: str = "mx.test", **more: Any) -> Examination:
    tls = {"cert_file": certificates.cert_file, "key_file": certificates.key_file, **more.pop("tls", {})}
    more.setdefault("trust", lambda: ssl.create_default_context(cafile=certificates.ca_file))
    return patient(config=configuration(hostname=hostname, tls=tls), **more)


def expiry(certificates: Certificates) -> float:
    text = ssl._ssl._test_decode_cert(certificates.cert_file)["notAfter"]  # type: ignore[attr-defined]
    return float(ssl.cert_time_to_seconds(text))


async def test_a_certificate_that_everybody_takes_is_good(certificates: Certificates) -> None:
    finding = only(await check_certificates(examined(certificates)))
    assert (finding.level, finding.subject) == ("ok", "certificate mx.crt")
    assert "mx.test, localhost" in finding.meaning


@pytest.mark.parametrize(
    ("days_before", "level", "said"),
    [(WARN_DAYS + 1, "ok", "15 days"), (WARN_DAYS - 1, "warning", "expires in 13 days"), (-3, "problem", "3 days ago")],
)
async def test_the_end_of_a_certificate_is_seen_coming(
    certificates: Certificates, days_before: int, level: str, said: str
) -> None:
    then = expiry(certificates) - days_before * DAY
    finding = only(await check_certificates(examined(certificates, now=lambda: then)))
    assert finding.level == level
    assert said in finding.meaning


async def test_a_certificate_for_another_host_is_a_problem(certificates: Certificates) -> None:
    finding = only(await check_certificates(examined(certificates, "mail.test")))
    assert (finding.level, "not for mail.test" in finding.meaning) == ("problem", True)


async def test_who_signed_it_must_be_known(certificates: Certificates) -> None:
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    finding = only(await check_certificates(examined(certificates, trust=lambda: nobody)))
    assert finding.level == "warning"
    assert "unable to get local issuer certificate" in finding.meaning


async def test_a_wildcard_fits_one_label(directory: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("*.mx.test")
    cert, key, ca = directory / "a.crt", directory / "a.key", directory / "ca.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    made = Certificates(str(cert), str(key), str(ca))
    for hostname, level in (("a.mx.test", "ok"), ("a.b.mx.test", "problem"), ("mx.test", "problem")):
        assert levels(await check_certificates(examined(made, hostname))) == [level]


@pytest.mark.parametrize("spoil", [lambda key: key.write_text("no key"), lambda key: other_key(key)])
async def test_a_key_that_does_not_fit_is_a_problem(
    certificates: Certificates, directory: Path, spoil: Callable[[Path], object]
) -> None:
    key = directory / "other.key"
    spoil(key)
    finding = only(await check_certificates(examined(certificates, tls={"key_file": str(key)})))
    assert finding.level == "problem"
    assert "cannot be used together" in finding.meaning


def other_key(path: Path) -> None:
    trustme.CA().issue_cert("mx.test").private_key_pem.write_to_path(path)


async def test_every_further_certificate_is_looked_at_under_its_own_name(
    certificates: Certificates, directory: Path
) -> None:
    good = {"cert_file": certificates.cert_file, "key_file": certificates.key_file}
    gone = {"cert_file": str(directory / "gone.crt"), "key_file": str(directory / "gone.key")}
    findings = await check_certificates(examined(certificates, tls={"certificates": [good, gone]}))
    assert levels(findings) == ["ok", "ok", "problem"]
    assert "No such file" in findings[2].meaning


async def test_a_developers_server_has_no_certificate_before_its_first_start(directory: Path) -> None:
    gone = Certificates(str(directory / "dev.crt"), str(directory / "dev.key"), "")
    finding = only(await check_certificates(examined(gone, "localhost", trust=ssl.create_default_context)))
    assert finding.level == "info"


async def test_a_server_without_certificates_is_told_about() -> None:
    assert only(await check_certificates(patient(now=time.time))).level == "warning"
