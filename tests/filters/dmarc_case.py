"""The notation of the tables of DMARC: a line says what is published, what arrives, and what becomes of it.

    ("§4.10.1", {"example.com": "p=reject"}, "example.com", "spf=example.net", "reject by p of example.com")

- The section the line is taken from.
- Records by domain, without "_dmarc." and without "v=DMARC1; "; one that begins with "=" is the whole text. A list
  holds several; DOWN: nobody answers. The name of a domain alone (EXISTS) has no record, but it is there.
- The domain in From.
- What passed: "spf=" is MAIL FROM, "dkim=" the d= of a signature. "?=" stands for "temperror", "!" for a mechanism
  that was never asked, "" for nothing at all.
- The outcome: pass, none, permerror, temperror. When the message fails: the policy, the tag and the domain it is
  from, and in brackets why it is not obeyed; "temperror: " before it when nobody knows whether it fails.
"""

from collections.abc import Mapping, Sequence

from filters.dmarc_assessment import Assessment, Evidence, Identifier, Mechanism, assess
from filters.dmarc_discovery import Discovery, Records, Suffixes, SuffixList, TreeWalk
from filters.dmarc_outcome import Circumstances, decide
from smtpd.dns import RecordingResolver
from smtpd.zone import Zone

DOWN = "tempfail"
EXISTS = ""

Published = Mapping[str, str | Sequence[str]]
Line = tuple[str, Published, str, str, str]


def zone_of(published: Published, *, cached: bool = True) -> Zone:
    """The DNS of a line."""
    zone = Zone(cached=cached)
    for domain, records in published.items():
        if records == EXISTS:
            zone.put(domain, A=["192.0.2.1"])
        elif records == DOWN:
            zone.put(f"_dmarc.{domain}", tempfail=True)
        else:
            texts = [records] if isinstance(records, str) else records
            zone.put(f"_dmarc.{domain}", TXT=[whole(text) for text in texts])
    return zone


def whole(text: str) -> str:
    """The text of a record as it stands in DNS."""
    return text[1:] if text.startswith("=") else f"v=DMARC1; {text}"


def evidence_of(proofs: str) -> Evidence:
    """What passed, from "spf=a.example dkim?=b.example"."""
    mechanisms: dict[str, Mechanism] = {"spf": "spf", "dkim": "dkim"}
    found: list[Identifier] = []
    missing: list[Mechanism] = []
    for word in proofs.split():
        name, _, domain = word.partition("=")
        mechanism = mechanisms[name.rstrip("?!")]
        if name.endswith("!"):
            missing.append(mechanism)
        else:
            found.append(Identifier(mechanism, domain, not name.endswith("?"), "no answer"))
    return Evidence(tuple(found), tuple(missing))


async def outcome_of(line: Line, *, suffixes: Suffixes | None = None, sampled_out: bool = False) -> str:
    """What becomes of a line, in its own notation."""
    assessment = await assess(line[2], discovery_of(zone_of(line[1]), suffixes), evidence_of(line[3]))
    return told(assessment, sampled_out)


def discovery_of(zone: Zone | RecordingResolver, suffixes: Suffixes | None = None) -> Discovery:
    """A way to find policies in a zone."""
    return TreeWalk(Records(zone)) if suffixes is None else SuffixList(Records(zone), suffixes)


def told(assessment: Assessment, sampled_out: bool = False) -> str:
    """An assessment in the notation of the tables."""
    if assessment.published is None or assessment.status not in ("fail", "temperror"):
        return assessment.status
    policy, why = assessment.policy, ""
    if assessment.status == "fail":
        outcome = decide(assessment, Circumstances(is_sampled_out=sampled_out))
        policy, why = outcome.wanted, f" ({outcome.reasons[-1][0]})" if outcome.reasons else ""
    start = "temperror: " if assessment.status == "temperror" else ""
    return f"{start}{policy} by {assessment.tag} of {assessment.published.domain}{why}"


def names(lines: Sequence[Line]) -> list[str]:
    """What pytest calls the lines: section, author, outcome."""
    return [f"{line[0]} {line[2]} {line[3] or 'nothing'} -> {line[4]}" for line in lines]
