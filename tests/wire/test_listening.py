"""What becomes of a server that cannot listen."""

import socket
from typing import Any

import pytest
from bare import BALANCED
from stage import Stage

from smtpd.policy import Filter
from smtpd.sockets import AddressUnavailable


@pytest.mark.parametrize("listener", [{}, BALANCED], ids=["plain", "balanced"])
async def test_address_that_another_program_has_begun_to_listen_on_meanwhile_is_named(listener: dict[str, Any]) -> None:
    """Two sockets may be bound to one address as long as neither of them listens."""
    with socket.socket() as rival:
        rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rival.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*rival.getsockname())

        class Rival(Filter):
            name = "rival"

            async def start(self) -> None:
                rival.listen()

        with pytest.raises(AddressUnavailable, match=f"^cannot listen on {address}: Address already in use$"):
            async with Stage(listens=True, listener={**listener, "address": address}, filters={"rival": Rival}):
                pass
