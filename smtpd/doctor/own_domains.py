"""Which of our domains have records that can be read, and why others have none."""

from __future__ import annotations

from collections.abc import Iterable

from smtpd.doctor.finding import Finding


def own_domains(keys: Iterable[str], *, from_file: bool = False) -> tuple[str, ...]:
    """Those keys of `[smtpd.domains]` that have records; `from_file`: of a zone file, which may hold any name."""
    return tuple(key for key in keys if not _why_none(key, from_file))


def left_out(keys: Iterable[str], *, from_file: bool = False) -> list[Finding]:
    """A finding for each of the others, and one when there are no keys at all."""
    findings = [Finding("info", key, *why) for key in keys if (why := _why_none(key, from_file))]
    if not findings and not list(keys):
        return [Finding("info", "domains", "There is none in [smtpd.domains], so there are no records to read.")]
    return findings


def _why_none(key: str, from_file: bool) -> tuple[str, ...]:
    """What it means, and what can be done about it; empty: it has records."""
    if "*" in key:
        return (
            "It is a pattern; the domains it stands for are not known here, and their records are not read.",
            "Name them to smtpd doctor.",
        )
    if key.startswith("[") or key.rpartition(".")[2].isdecimal():
        return ("It is an address, which has no such records.",)
    if "." not in key:
        return ("The DNS has no domains without a dot, so it has no records.",)
    if key.endswith(".test") and not from_file:  # RFC 6761 §6.2
        return ("The DNS has no domains below test, so it has no records.", "A zone file may have them (--zone).")
    return ()
