"""What a hook of aiosmtpd returns, as one of our replies. Pure."""

from __future__ import annotations

from aiosmtpd.smtp import MISSING

from delivery_agents.answers import AnswerReader, as_reply
from delivery_agents.failures import Nonsense
from smtpd import replies
from smtpd.replies import Reply

# Handlers say 500 for "I could not"; behind the content or RCPT our client would take it for a mistake of its own.
_ABOUT_SYNTAX = frozenset((500, 501, 502, 503, 504, 555))
_FAILED = 554  # RFC 5321 §4.2.3


def read_status(status: object) -> Reply | None:
    """One reply of class 2, 4 or 5 as text or octets, of one or several lines; None for everything else."""
    if status is MISSING:  # "as if there were no hook"
        return replies.ACCEPTED
    if isinstance(status, str):
        status = status.encode("utf-8", "backslashreplace")
    if not isinstance(status, bytes):
        return None
    reader = AnswerReader()
    try:
        answers = reader.feed(status.rstrip(b"\r\n") + b"\r\n")
    except Nonsense:
        return None
    if len(answers) != 1 or not reader.is_empty or 300 <= answers[0].code < 400:
        return None
    answer = answers[0]
    return as_reply(answer._replace(code=_FAILED) if answer.code in _ABOUT_SYNTAX else answer)
