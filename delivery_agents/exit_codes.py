"""What the exit code of a program that was given a message means for the client. Pure.

The names are those of sysexits.h. Sendmail and Postfix take every code they do not know, and most of these, for a
refusal; here a message is refused only when the program clearly meant to, because a wrong path, a crash or a full
disk must not cost anybody mail:

    code               Postfix    here
    0                  delivered  250
    65 EX_DATAERR      5.6.0      554 5.6.0
    67 EX_NOUSER       5.1.1      550 5.1.1
    68 EX_NOHOST       5.1.2      550 5.1.2
    69 EX_UNAVAILABLE  5.3.0      554 5.3.0   scripts refuse with it, as the content filters of Postfix' manual do
    77 EX_NOPERM       5.7.0      550 5.7.0   dovecot-lda refuses with it
    75 EX_TEMPFAIL     4.3.0      451 4.3.0
    71 EX_OSERR        4.3.0      451 4.3.0
    all others         5.x        451 4.3.0   EX_USAGE, EX_SOFTWARE, EX_CONFIG ..., 126 and 127 of shells, 1
    ended by a signal  4.3.0      451 4.3.0
"""

from __future__ import annotations

import signal
from dataclasses import replace

from smtpd import replies
from smtpd.replies import Reply

TEMPFAIL = 75

_REFUSALS = {
    65: (554, "5.6.0"),
    67: (550, "5.1.1"),
    68: (550, "5.1.2"),
    69: (554, "5.3.0"),
    77: (550, "5.7.0"),
}


def is_meant(code: int) -> bool:
    """Whether the program decided about the message; if not, something is broken."""
    return code in (0, TEMPFAIL) or code in _REFUSALS


def reply_for(code: int, *, address: str, said: str) -> Reply:
    """What the client hears; `said` is a line of the program's own for it, or "". `address` is of one recipient."""
    if code == 0:
        return replies.ACCEPTED
    number, status = _REFUSALS.get(code, (451, "4.3.0"))
    if said and is_meant(code):
        return replace(replies.STORE_SAID, code=number, status=status, values={"text": replies.clean(said)})
    if code not in _REFUSALS:
        return replies.STORE_FAILED
    if status == replies.NO_SUCH_USER.status:
        return replies.NO_SUCH_USER(address=address)
    return replace(replies.STORE_REFUSED, code=number, status=status)


def describe(code: int) -> str:
    """For the log: "exit 75", or the name of the signal."""
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
