"""Findings as they are printed: lines for eyes, JSON for machines."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict

from smtpd.doctor.finding import Finding, worst

WIDTH = 100  # columns


def for_machines(findings: list[Finding]) -> str:
    """`worst`, which is the level of the worst one, and all `findings`."""
    return json.dumps({"worst": worst(findings), "findings": [asdict(finding) for finding in findings]}, indent=1)


def for_eyes(findings: list[Finding]) -> str:
    """A few lines for each finding, and how many are bad."""
    lines: list[str] = []
    for finding in findings:
        lines += _folded(f"{finding.level:<8}", f"{finding.subject}: {finding.meaning}")
        if finding.advice:
            lines += _folded(" " * 8 + "-> ", finding.advice)
    counts = [(level, sum(finding.level == level for finding in findings)) for level in ("problem", "warning")]
    lines += ["", ", ".join(f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts)]
    return "\n".join(lines)


def _folded(start: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)
