"""Whether the clock can be trusted: signatures, certificates and retry times depend on it.

What time it really is cannot be known without asking somebody. The kernel knows whether a program keeps the clock
in step (adjtimex(2)), and a clock that stands before this program was installed is certainly wrong.
"""

from __future__ import annotations

from pathlib import Path

from smtpd.doctor.examination import Examination
from smtpd.doctor.finding import Finding

TOLERABLE_SECONDS = 60.0

_ADVICE = "Run chrony, ntpd or systemd-timesyncd (on the host, if this is a container)."


async def check_clock(examination: Examination) -> list[Finding]:
    """One finding about the clock."""
    if examination.now() < _installed():
        text = "It stands before this program was installed. Signatures and certificates are judged wrongly."
        return [Finding("problem", "clock", text, _ADVICE)]
    state = examination.clock()
    if state is None:
        return [Finding("info", "clock", "Whether anything keeps it in step cannot be known here.")]
    if not state.is_synchronised:
        text = "The kernel says that nothing keeps it in step. A wrong clock refuses good signatures and certificates."
        return [Finding("warning", "clock", text, _ADVICE)]
    if state.max_error > TOLERABLE_SECONDS:
        text = f"It may be {state.max_error:.0f} s wrong, says the kernel."
        return [Finding("warning", "clock", text, _ADVICE)]
    return [Finding("ok", "clock", f"It is kept in step, to {state.max_error:.3g} s at worst.")]


def _installed() -> float:
    return Path(__file__).stat().st_mtime
