"""What a check says: how bad it is, about what, what it means and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "info", "warning", "problem"]

MAX_TEXT = 600  # characters

_CUT = "..."


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor. Its texts may hold what strangers wrote: it is made printable and cut to MAX_TEXT."""

    level: Level
    """"problem": mail is lost, refused or open to forgers; "warning": it may be, or nobody can tell; "info": as it
    may be; "ok": as it should be."""
    subject: str
    meaning: str
    advice: str = ""

    def __post_init__(self) -> None:
        for name in ("subject", "meaning", "advice"):
            object.__setattr__(self, name, _harmless(getattr(self, name)))


def worst(findings: list[Finding]) -> Level:
    """The level of the worst one; "ok" when there are none."""
    found = {finding.level for finding in findings}
    levels: tuple[Level, ...] = ("problem", "warning", "info")
    return next((level for level in levels if level in found), "ok")


def _harmless(text: str) -> str:
    safe = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text)
    return safe if len(safe) <= MAX_TEXT else safe[: MAX_TEXT - len(_CUT)] + _CUT
