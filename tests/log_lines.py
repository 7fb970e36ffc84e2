"""Where a log goes in tests."""

import json
from typing import Any


class Lines:
    """A sink that keeps everything: as it was written, and what each line says."""

    def __init__(self) -> None:
        self.octets = bytearray()
        self.entries: list[dict[str, Any]] = []

    def write(self, data: bytes) -> int:
        self.octets += data
        self.entries += map(json.loads, data.splitlines())
        return len(data)

    def reopen(self) -> None: ...

    def close(self) -> None: ...
