"""A handler whose turn comes when its time is over."""

from typing import Any

import pytest

from delivery_agents.handler import Handler
from smtpd.memory import MemoryServer
from tests.delivery_agents.conftest import message, transaction


class Keeper:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.kept.append(envelope.content)
        return "250 OK"


@pytest.mark.parametrize("thread", [True, False])
@pytest.mark.parametrize("in_memory", [0, 1 << 20])
async def test_handler_never_gets_what_is_left_of_a_message_that_was_given_up(thread: bool, in_memory: int) -> None:
    options = {"handler": f"{__name__}:Keeper", "thread": thread}
    async with MemoryServer(agents={"bridge": (Handler, options)}) as server:
        agent = server.agents["bridge"]
        assert isinstance(agent, Handler)
        given_up = message(in_memory=in_memory)
        given_up.content.close()
        with pytest.raises(OSError, match="given up"):
            await agent.open(transaction("ann@example.test")).deliver(given_up)
        assert agent.handler.kept == []
