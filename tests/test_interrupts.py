"""Promise 1 under Ctrl-C: trio raises KeyboardInterrupt between any two bytecodes, and still no frame is torn."""

import signal
from collections.abc import Awaitable, Callable

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_ws import WebSocket
from anyio_ws.protocol import Opcode, encode_close
from anyio_ws.testing import RawFrame, raw_peer
from anyio_ws.transports.base import Buffer
from anyio_ws.transports.memory import MemoryTransport


async def in_parts(ws: WebSocket) -> None:
    async with ws.send_stream() as stream:
        await stream.send(b"part")
        await checkpoint()


CALLS: dict[str, tuple[Callable[[WebSocket], Awaitable[object]], list[RawFrame]]] = {
    "send": (lambda ws: ws.send("message"), [RawFrame(Opcode.TEXT, b"message")]),
    "send, large": (lambda ws: ws.send(bytes(20_000)), [RawFrame(Opcode.BINARY, bytes(20_000))]),
    "send_many": (
        lambda ws: ws.send_many([b"one", b"two"]),
        [RawFrame(Opcode.BINARY, b"one"), RawFrame(Opcode.BINARY, b"two")],
    ),
    "send_stream": (in_parts, [RawFrame(Opcode.BINARY, b"part", fin=False)]),
    "receive, which answers a Ping": (lambda ws: ws.receive(), [RawFrame(Opcode.PONG, b"ping")]),
    "ping": (lambda ws: ws.ping(b"data"), [RawFrame(Opcode.PING, b"data")]),
}


@pytest.mark.parametrize(("call", "sent"), CALLS.values(), ids=list(CALLS))
def test_an_interrupt_between_a_short_write_and_keeping_its_rest_tears_no_frame(
    call: Callable[[WebSocket], Awaitable[object]], sent: list[RawFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trio")
    ours: list[MemoryTransport] = []
    write = MemoryTransport.write

    def interrupted(transport: MemoryTransport, data: Buffer) -> int:
        if transport not in ours:
            return write(transport, data)
        ours.clear()
        transport._short = True
        taken = write(transport, memoryview(data)[:1])
        signal.raise_signal(signal.SIGINT)
        return taken

    async def main() -> None:
        async with raw_peer(ping_interval=None) as (peer, ws):
            if sent[0].opcode == Opcode.PONG:
                await peer.send_frame(Opcode.PING, b"ping")
            ours.append(ws._core.transport)  # type: ignore[arg-type]
            try:
                await call(ws)
                await checkpoint()
            finally:
                ws._core.close(1001, "")
                for frame in sent:
                    assert await peer.receive_frame() == frame
                assert await peer.receive_frame() == RawFrame(Opcode.CLOSE, encode_close(1001, ""))

    monkeypatch.setattr(MemoryTransport, "write", interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            anyio.run(main, backend="trio")
    finally:
        signal.signal(signal.SIGINT, handler)
