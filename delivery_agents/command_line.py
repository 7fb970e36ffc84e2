"""A command with placeholders, and what of an envelope may stand in their place. Pure.

There is no shell, so blanks and quotes mean nothing; what is left is an address that looks like an option or a path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from smtpd.addresses import Address
from smtpd.model import Recipient, Transaction

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_OF_ONE_RECIPIENT = frozenset(("user", "detail", "domain"))
_KNOWN = frozenset(("sender", "recipient", "trace")) | _OF_ONE_RECIPIENT
_SHELLS = frozenset(("sh", "ash", "bash", "csh", "dash", "fish", "ksh", "mksh", "tcsh", "yash", "zsh"))


class Parts(NamedTuple):
    """A local part taken apart."""

    user: str
    detail: str


def check_command(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words, or ValueError for what cannot be a command or would be a dangerous one."""
    if not words or not words[0]:
        raise ValueError("needs at least the program")
    if any("\0" in word for word in words):
        raise ValueError("may hold no NUL")
    if not words[0].startswith("/"):
        raise ValueError('must name the program with its whole path, such as "/usr/bin/procmail"')
    if placeholders(words[:1]):
        raise ValueError("the program must not have placeholders")
    if unknown := sorted(placeholders(words) - _KNOWN):
        known = ", ".join(f"{{{name}}}" for name in sorted(_KNOWN))
        raise ValueError(f"has no placeholder {{{unknown[0]}}}; there are {known}")
    if os.path.basename(words[0]) in _SHELLS and placeholders(_scripts(words)):
        raise ValueError('would let strangers write shell commands; use "$RECIPIENT" and the like inside the script')
    return words


def check_for_several(words: tuple[str, ...]) -> None:
    """ValueError when the command says something that only one recipient has."""
    if found := sorted(placeholders(words) & _OF_ONE_RECIPIENT):
        raise ValueError(f"with several recipients at once there is no {{{found[0]}}}")
    if any("{recipient}" in word and word != "{recipient}" for word in words):
        raise ValueError("with several recipients at once {recipient} must be a word of its own")


def placeholders(words: Sequence[str]) -> frozenset[str]:
    """Names in braces."""
    return frozenset(name for word in words for name in _PLACEHOLDER.findall(word))


def take_apart(address: Address, separator: str) -> Parts:
    """User and detail as received; "+x" has no detail, it is a user."""
    user, _, detail = address.local.partition(separator) if separator else (address.local, "", "")
    return Parts(user, detail) if user else Parts(address.local, "")


def is_safe(address: Address, separator: str) -> bool:
    """Whether no part of the local part can be taken for an option or for a path."""
    parts = take_apart(address, separator)
    return "/" not in address.local and not any(part.startswith(("-", ".")) for part in (address.local, *parts))


def takes_sender(words: tuple[str, ...], sender: Address) -> bool:
    """Whether no word begins with the sender's hyphen and would be taken for an option."""
    return not sender.text.startswith("-") or not any(word.startswith("{sender}") for word in words)


def fill(words: tuple[str, ...], mail: Transaction, recipients: Sequence[Recipient], separator: str) -> list[str]:
    """The words for these recipients; "{recipient}" alone becomes as many words as there are recipients."""
    first = recipients[0].destination
    user, detail = take_apart(first, separator)
    values = {
        "sender": mail.sender.text,
        "recipient": first.text,
        "user": user,
        "detail": detail,
        "domain": first.domain,
        "trace": mail.id,
    }
    filled: list[str] = []
    for word in words:
        if word == "{recipient}":
            filled += [recipient.destination.text for recipient in recipients]
        else:
            filled.append(_PLACEHOLDER.sub(lambda match: values[match[1]], word))
    return filled


def _scripts(words: tuple[str, ...]) -> tuple[str, ...]:
    """What a shell runs: the word behind its -c, and to be sure all up to there."""
    for number, word in enumerate(words[1:], 1):
        if not word.startswith(("-", "+")):
            return words[1 : number + 1]
        if "c" in word and not word.startswith("--"):
            return words[1 : number + 2]
    return words[1:]
