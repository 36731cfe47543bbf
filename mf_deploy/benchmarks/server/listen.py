"""A server that runs until it is told to stop."""

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from mf_deploy.errors import MfDeployError

SHUTDOWN_SECONDS = 2.0


@asynccontextmanager
async def listening(
    app: web.Application, host: str, port: int, context: ssl.SSLContext | None
) -> AsyncIterator[int]:
    """Serve ``app`` while the block runs; yields the port, which the system chooses for port 0.

    Raises:
        MfDeployError: the address is not this machine's, or the port is taken.
    """
    asyncio.get_running_loop().set_exception_handler(_ignore_refused_certificates)
    # Bodies are not decompressed: a small one could then fill the memory.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS, auto_decompress=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            why = error.strerror or str(error)
            raise MfDeployError(
                f"Cannot listen on {host} port {port}", why, "Pass another --port or --host."
            ) from None
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def url_of(host: str, port: int, token: str, secure: bool) -> str:
    """The address that a phone opens; the token is in the part that browsers send to nobody."""
    try:
        shown = f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        shown = host
    return f"{'https' if secure else 'http'}://{shown}:{port}/#{token}"


def _ignore_refused_certificates(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A phone that has not yet accepted the certificate breaks the connection off: nothing to report."""
    if not isinstance(context.get("exception"), (ssl.SSLError, ConnectionError)):
        loop.default_exception_handler(context)
