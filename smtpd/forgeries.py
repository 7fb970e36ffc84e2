"""Received header fields that pretend to be ours, and a view of the content without them.

Authentication-Results with our authserv-id (RFC 8601 §5), and every X-Smtpd field. Everything else is delivered as it
came. The body begins behind the first empty line; nothing in it is ever touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from smtpd import replies
from smtpd.authentication_results import claims
from smtpd.content import MAX_HEAD
from smtpd.model import ContentSource
from smtpd.replies import Refused

# Of Authentication-Results that are looked at; a message gathers one or a few at every border it passes.
MAX_FIELDS = 100

type Span = tuple[int, int]
"""Octets of the content: the first one, and the one behind the last."""

# Blanks before the colon: RFC 5322 §4.5. A fold before it is in no grammar, but gone for those who unfold first.
_OURS = re.compile(rb"\r\n(?:(authentication-results)|x-smtpd-[!-9;-~]*+)(?:[ \t]|\r\n[ \t])*+:")
_BLANKS = re.compile(rb"(?:[ \t]|\r\n[ \t])*+")
_END = re.compile(rb"\r\n(?![ \t])")


def without_forged_fields(content: ContentSource, authserv_id: str) -> ContentSource:
    """The content as it is to be delivered: itself, when nothing in its header section pretends to be ours.

    Raises Refused when the header section is longer than 1 MiB, so that nobody can hide a field behind that
    (Exim refuses such a message too, `header_maxsize`).
    """
    head = content.head()
    if len(head) >= MAX_HEAD and not _is_whole(head, content):
        raise Refused(replies.HEADER_TOO_BIG(limit=f"{MAX_HEAD} octets"))
    spans = forged_fields(head, authserv_id)
    return WithoutFields(content, spans) if spans else content


def forged_fields(head: bytes, authserv_id: str) -> list[Span]:
    """Where the fields are that pretend to be ours: whole lines with their folding, in order, never touching.

    A first line that begins with a blank counts as a field: those who strip it would read it as one. Behind 100
    fields of Authentication-Results every further one is in doubt and goes unread, so a hostile head takes little time.
    """
    leading = _BLANKS.match(head)
    blanks = leading.end() if leading is not None else 0
    lower = b"\r\n" + head[blanks:].lower()
    if b"\nauthentication-results" not in lower and b"\nx-smtpd-" not in lower:
        return []
    spans: list[Span] = []
    shift, seen = blanks - 2, 0
    for match in _OURS.finditer(lower):
        line_end = _END.search(head, match.end() + shift)
        stop, end = line_end.span() if line_end is not None else (len(head), len(head))
        seen += match[1] is not None
        if match[1] is None or seen > MAX_FIELDS or claims(head[match.end() + shift : stop], authserv_id):
            start = match.start() + blanks if match.start() else 0
            if spans and spans[-1][1] == start:
                start = spans.pop()[0]
            spans.append((start, end))
    return spans


class WithoutFields:
    """The octets of another content without some spans of its header section (in order, not overlapping)."""

    __slots__ = ("_content", "_spans", "size")

    def __init__(self, content: ContentSource, spans: Sequence[Span]) -> None:
        self._content = content
        self._spans = tuple(spans)
        self.size = content.size - sum(end - start for start, end in spans)

    def chunks(self) -> Iterator[bytes]:
        """The octets in order; only pieces with something to leave out are copied."""
        return _cut_out(self._content.chunks(), self._spans)

    def head(self) -> bytes:
        """The header section with the empty line that ends it."""
        return b"".join(_cut_out([self._content.head()], self._spans))

    @property
    def left_out(self) -> list[bytes]:
        """The fields that are not there any more, as they were received."""
        head = self._content.head()
        return [field for start, end in self._spans for field in _END.split(head[start:end]) if field]

    def close(self) -> None:
        """Close what is behind this."""
        self._content.close()


def _is_whole(head: bytes, content: ContentSource) -> bool:
    return len(head) == MAX_HEAD and (head.endswith(b"\r\n\r\n") or content.size == MAX_HEAD)


def _cut_out(pieces: Iterable[bytes], spans: Sequence[Span]) -> Iterator[bytes]:
    first = end = 0
    for piece in pieces:
        begin, end = end, end + len(piece)
        if first == len(spans) or spans[first][0] >= end:
            yield piece
            continue
        kept, position = [], begin
        while first < len(spans) and spans[first][0] < end:
            start, stop = spans[first]
            kept.append(piece[position - begin : max(start - begin, 0)])
            position = stop
            if stop > end:
                break
            first += 1
        kept.append(piece[position - begin :])
        if rest := b"".join(kept):
            yield rest
