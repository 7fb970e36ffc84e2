from patients import configuration

from smtpd.doctor.own_domains import left_out, own_domains
from smtpd.doctor.published import AT_ONCE, read_records
from smtpd.zone import Zone

KEYS = ("example.com", "*.example.net", "*", "[192.0.2.1]", "192.0.2.1", "localhost", "example.test")


async def test_all_domains_are_read_however_many_in_their_order() -> None:
    names = [f"d{number}.example.com" for number in range(2 * AT_ONCE + 1)]
    config = configuration(domains=dict.fromkeys(names, "store"))
    zone = Zone({name: {"TXT": ["v=spf1 -all"]} for name in names})
    findings = await read_records(config, zone)
    subjects = [finding.subject for finding in findings if finding.subject.startswith("SPF of d")]
    assert subjects == [f"SPF of {name}" for name in names]


def test_only_domains_that_the_dns_has_are_asked_for() -> None:
    assert own_domains(KEYS) == ("example.com",)
    assert own_domains(KEYS, from_file=True) == ("example.com", "example.test")


def test_every_domain_is_read_or_said_to_be_left_out() -> None:
    for from_file in (False, True):
        told = {finding.subject for finding in left_out(KEYS, from_file=from_file)}
        assert told | set(own_domains(KEYS, from_file=from_file)) == set(KEYS)
        assert not told & set(own_domains(KEYS, from_file=from_file))
    assert [finding.subject for finding in left_out(())] == ["domains"]
