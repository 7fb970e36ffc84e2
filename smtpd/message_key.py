"""What makes two messages one and the same: a key, and a hint that is part of it and much cheaper."""

from __future__ import annotations

from hashlib import blake2b

from smtpd.content import MAX_HEAD
from smtpd.header_fields import all_values_of
from smtpd.model import ContentSource

HINT = 16  # digits at the beginning of a key

_PART = 8  # octets of a length in front of each part of a digest
_NO_IDENTIFIER = b" \t<>"


def message_key(sender: str, content: ContentSource) -> str | None:
    """`message_hint`, and a digest of what makes a message itself: 80 hex digits.

    That is envelope sender, Message-ID, Date, From, body. `content` are the received octets, before a filter changed
    them. Fields are taken as they stand, only unfolded (RFC 5322 §2.2.3); trace fields and all others do not matter,
    because another path adds others. None when there is not exactly one Message-ID, or it is empty, or the header
    section is too long to be seen as a whole: such a message is never taken for another. Reads the content once, may
    run on another thread.
    """
    fields = content.head()
    identifiers = all_values_of(fields, "message-id")
    hint = _hint(sender, identifiers)
    if hint is None:
        return None
    if len(fields) > MAX_HEAD or (len(fields) < content.size and not fields.endswith(b"\r\n\r\n")):
        return None
    digest = blake2b(digest_size=32, person=b"smtpd message 1")
    for values in ([sender.encode()], identifiers, all_values_of(fields, "date"), all_values_of(fields, "from")):
        digest.update(len(values).to_bytes(_PART))
        digest.update(b"".join([len(octets).to_bytes(_PART) + octets for octets in map(_unfold, values)]))
    head = len(fields)
    digest.update((content.size - head).to_bytes(_PART))
    for chunk in content.chunks():
        if head < len(chunk):
            digest.update(memoryview(chunk)[head:])
        head = max(0, head - len(chunk))
    return hint + digest.hexdigest()


def message_hint(sender: str, head: bytes) -> str | None:
    """How the key of a message begins, when it has one: a digest of envelope sender and Message-ID, HINT hex digits.

    `head` is what `ContentSource.head` gives. Messages with the same key have the same hint; without a hint there
    is no key.
    """
    return _hint(sender, all_values_of(head, "message-id"))


def _hint(sender: str, identifiers: list[bytes]) -> str | None:
    if len(identifiers) != 1:
        return None
    identifier = _unfold(identifiers[0])
    if not identifier.strip(_NO_IDENTIFIER):
        return None
    digest = blake2b(b"%b\0%b" % (sender.encode(), identifier), digest_size=HINT // 2, person=b"smtpd hint 1")
    return digest.hexdigest()


def _unfold(value: bytes) -> bytes:
    return value.replace(b"\r\n", b"")
