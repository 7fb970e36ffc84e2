"""What the journal keeps in a store: who has one message, and how one recipient was refused."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace

from smtpd import replies
from smtpd.replies import Reply
from smtpd.store import StoreError

MAX_RECIPIENTS = 5000  # per entry, those who were added last; 175 kB

_STATUS = re.compile(r"5\.[12]\.\d{1,3}")


@dataclass(slots=True)
class Entry:
    """Who has one message, and who may have it; identities in the order they were added."""

    delivered: dict[str, None] = field(default_factory=dict)
    maybe: dict[str, None] = field(default_factory=dict)

    def encode(self) -> bytes:
        """As JSON; empty for an entry that holds nothing."""
        if not self.delivered and not self.maybe:
            return b""
        maybe = list(self.maybe)[-MAX_RECIPIENTS:]
        room = MAX_RECIPIENTS - len(maybe)
        delivered = list(self.delivered)[max(0, len(self.delivered) - room) :]
        return json.dumps({"delivered": delivered, "maybe": maybe}, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, value: bytes) -> Entry:
        """The other way round; StoreError when it is no entry."""
        entry = _parse(value)
        lists = (entry.get("delivered"), entry.get("maybe")) if isinstance(entry, dict) else ()
        found = [dict.fromkeys(str(item) for item in items) for items in lists if isinstance(items, list)]
        if len(found) != 2:
            raise StoreError("an entry of the journal makes no sense")
        return cls(*found)


def encode_refusal(reply: Reply) -> bytes:
    """As JSON; the text on one line."""
    return json.dumps([reply.code, reply.status, replies.clean(reply.message.replace("\n", " "))]).encode()


def decode_refusal(value: bytes) -> Reply:
    """A refusal as it was heard; StoreError when it makes no sense: a wrong 5xx would lose mail."""
    match _parse(value):
        case [int(code), str(status), str(text)] if 500 <= code <= 599 and _STATUS.fullmatch(status):
            return replace(replies.REFUSED_EARLIER, code=code, status=status)(reason=text)
    raise StoreError("a remembered refusal makes no sense")


def _parse(value: bytes) -> object:
    try:
        parsed: object = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise StoreError("an entry of the journal cannot be read") from error
    return parsed
