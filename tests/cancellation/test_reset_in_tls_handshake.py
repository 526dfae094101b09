"""What the cancelled servers of this directory did to their clients: a reset while a TLS handshake ends."""

import anyio
import pytest

from anyio_ws import ConnectFailed, connect
from anyio_ws.loops import Loop, open_loop
from anyio_ws.tasks import Tasks
from anyio_ws.transports.base import Buffer, Transport
from anyio_ws.transports.memory import MemoryTransport, memory_pipe
from anyio_ws.transports.tls import TLSTransport

from .links import contexts


class Over(connect):
    """A `connect` over a transport."""

    def __init__(self, transport: Transport) -> None:
        super().__init__("wss://localhost/", ssl=contexts()[1])
        self._given = transport

    async def _connected(self, loop: Loop) -> Transport:
        return self._given


@pytest.mark.parametrize("found", ["by the write", "before it"])
async def test_a_reset_at_the_end_of_the_tls_handshake_is_connect_failed_at_once(
    found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Tasks() as tasks:
        loop = open_loop(tasks.start_service)
        near, far = memory_pipe(loop, loop)
        original = MemoryTransport.write
        flights = 0

        def write(self: MemoryTransport, data: Buffer) -> int:
            nonlocal flights
            flights += 1  # the client's first, the server's, and the client's last
            if flights == 3 and found == "by the write":
                far.abort()
            taken = original(self, data)
            if flights == 2 and found == "before it":
                far.abort()
            return taken

        monkeypatch.setattr(MemoryTransport, "write", write)
        server = TLSTransport(far, contexts()[0], loop.budget, server_side=True)
        async with anyio.create_task_group() as group:
            group.start_soon(server.handshake)
            with pytest.raises(ConnectFailed), anyio.fail_after(1):
                async with Over(near):
                    pass
            group.cancel_scope.cancel()
        loop.close()
