"""Serve aiosmtpd as it comes: its own controller, its Sink handler, asyncio. Prints the port."""

import asyncio

from aiosmtpd.controller import UnthreadedController
from aiosmtpd.handlers import Sink


def main() -> None:
    """Serve until killed."""
    loop = asyncio.new_event_loop()
    controller = UnthreadedController(Sink(), hostname="127.0.0.1", port=0, loop=loop)
    controller.begin()
    assert isinstance(controller.server, asyncio.Server)
    print(controller.server.sockets[0].getsockname()[1], flush=True)
    loop.run_forever()


if __name__ == "__main__":
    main()
