"""Everything here talks over real sockets and runs on both event loops."""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def tls_tables(certificates: Any) -> dict[str, Any]:
    """What a server with a certificate has to be told."""
    return {"tls": {"cert_file": certificates.cert_file, "key_file": certificates.key_file}}


@pytest.fixture
def trust(certificates: Any) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificates.ca_file)
