"""Content that a filter has made, instead of what was received."""

from __future__ import annotations

from collections.abc import Iterator

MAX_HEAD = 1 << 20  # octets of header section, as of what was received
_PIECE = 1 << 20


class Octets:
    """A whole message, header section first. ValueError for a lone CR or LF: the next hop might be smuggled into."""

    __slots__ = ("_data", "size")

    def __init__(self, data: bytes) -> None:
        ends = data.count(b"\r\n")
        if data.count(b"\r") != ends or data.count(b"\n") != ends:
            raise ValueError("lines of content end in CR and LF together, and there are lone ones")
        self._data: bytes | None = data
        self.size = len(data)

    def chunks(self) -> Iterator[bytes]:
        """The octets in order. OSError once it is closed."""
        data = self._open()
        for start in range(0, len(data), _PIECE):
            yield data[start : start + _PIECE]

    def head(self) -> bytes:
        """The header section with the empty line that ends it; at most 1 MiB, all of it when there is no body."""
        data = self._open()
        if data.startswith(b"\r\n"):
            return b"\r\n"
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
        return data[: end + 4] if end >= 0 else data[:MAX_HEAD]

    def close(self) -> None:
        """Give the memory back; may be called twice."""
        self._data = None

    def _open(self) -> bytes:
        if self._data is None:
            raise OSError("the message was given up, or the filter or agent has answered: its content is gone")
        return self._data
