"""What the log says: frames at DEBUG, ends at INFO, failing handlers at ERROR, and no secrets above DEBUG."""

import errno
import logging
import socket

import anyio
import pytest

from anyio_ws import CloseInfo, ConnectionClosedError, Server
from anyio_ws.logs import describe, describe_close
from anyio_ws.protocol import Close, Opcode, encode_frame
from anyio_ws.testing import MemoryServer, connected_pair, raw_peer
from support.tools import Call, fill, jump, settle

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode


@pytest.mark.parametrize(
    ("opcode", "payload", "expected"),
    [
        (TEXT, "hello", "TEXT 5 B 'hello'"),
        (TEXT, "", "TEXT 0 B ''"),
        (TEXT, "hällo\n", "TEXT 7 B 'hällo\\n'"),
        (TEXT, "x" * 64, "TEXT 64 B '" + "x" * 64 + "'"),
        (TEXT, "x" * 65, "TEXT 65 B '" + "x" * 64 + "' …"),
        (TEXT, "h\xe4llo".encode(), "TEXT 6 B 'hällo'"),
        (TEXT, memoryview(b"hello"), "TEXT 5 B 'hello'"),
        (BINARY, b"", "BINARY 0 B"),
        (BINARY, b"\x00\xff", "BINARY 2 B 00 ff"),
        (BINARY, bytearray(16), "BINARY 16 B" + " 00" * 16),
        (BINARY, memoryview(bytes(70000)), "BINARY 70000 B" + " 00" * 16 + " …"),
        (PING, b"\x5e\x01\xf3\xaa", "PING 4 B 5e 01 f3 aa"),
        (PONG, b"", "PONG 0 B"),
    ],
)
def test_how_a_message_is_described(opcode, payload, expected):
    assert describe(opcode, payload) == expected


@pytest.mark.parametrize(
    ("close", "expected"),
    [
        (Close(1001, "restart"), "CLOSE 1001 (going away) 'restart'"),
        (Close(1005, ""), "CLOSE 1005 (no code) ''"),
        (Close(4000, "own"), "CLOSE 4000 (application) 'own'"),
    ],
)
def test_how_a_close_is_described(close, expected):
    assert describe_close(close) == expected


def lines(caplog, level=logging.DEBUG):
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.fixture
def debug(caplog):
    caplog.set_level(logging.DEBUG, "anyio_ws")
    return caplog


async def test_every_frame_is_one_line_at_debug(debug):
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        await peer.send_frame(TEXT, b"hello")
        await peer.send_frame(BINARY, b"\x01\x02")
        await peer.send_frame(PING, b"p")
        await peer.receive_frame()
        await ws.receive_many()
        await ws.send("reply")
        await ws.send(b"x" * 70000)
        await ws.send_many(["a", b"b"])
        Call(tg, ws.ping, b"q")
        await settle()
        await peer.send_frame(PONG, b"q")
        await settle()
        call = Call(tg, ws.aclose, 1001, "restart")
        await settle()
        await peer.send_close(1001)
        peer.send_eof()
        await call.wait()
    assert lines(debug) == [
        "< TEXT 5 B 'hello'",
        "< BINARY 2 B 01 02",
        "< PING 1 B 70",
        "> PONG 1 B 70",
        "> TEXT 5 B 'reply'",
        "> BINARY 70000 B" + " 78" * 16 + " …",
        "> TEXT 1 B 'a'",
        "> BINARY 1 B 62",
        "> PING 1 B 71",
        "< PONG 1 B 71",
        "> CLOSE 1001 (going away) 'restart'",
        "< CLOSE 1001 (going away) ''",
    ]


async def test_the_peers_close_and_our_answer_in_order(debug):
    async with raw_peer() as (peer, _ws):
        await peer.send_close(4000, "own")
        await settle()
    assert lines(debug) == ["< CLOSE 4000 (application) 'own'", "> CLOSE 4000 (application) ''"]


async def test_a_violation_is_a_close_of_ours(debug):
    async with raw_peer() as (peer, _ws):
        await peer.send(b"\xff\xff")
        await settle()
    assert lines(debug) == [
        "> CLOSE 1002 (protocol error) 'frame with RSV bits 111, expected 000 as no extension defines them'"
    ]


async def test_each_ping_is_logged_once_also_if_its_answer_waits(debug):
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        await fill(peer, ws, tg)
        await peer.send(encode_frame(PING, b"1", b"mask") + encode_frame(PING, b"2", b"mask"))
        await peer.send_frame(PING, b"3")
        await peer.send_frame(PONG, b"")
        await settle()
        peer.resume()
        await settle()
    pings = [line for line in lines(debug) if "BINARY" not in line]
    assert pings == [
        *("< PING 1 B 31", "< PING 1 B 32", "> PONG 1 B 32"),
        *("< PING 1 B 33", "< PONG 0 B", "> PONG 1 B 33"),
    ]


async def test_without_debug_no_frame_is_logged(caplog):
    caplog.set_level(logging.INFO, "anyio_ws")
    async with connected_pair() as (client, server):
        await client.send("hello")
        await server.receive()
    assert lines(caplog) == []


async def test_each_record_carries_the_id_of_its_connection_and_the_name_of_its_side(debug):
    async with connected_pair() as (client, server):
        await client.send("hello")
        await server.receive()
        ids = {"anyio_ws.client": client.id, "anyio_ws.server": server.id}
    assert {record.name for record in debug.records} == set(ids)
    for record in debug.records:
        assert record.connection_id == ids[record.name]


async def test_the_end_of_a_connection_is_one_line_at_info(caplog):
    caplog.set_level(logging.INFO, "anyio_ws")
    async with connected_pair() as (client, server):
        await client.aclose(4000, "done")
        await server.aclose()
        client.abort()
    by_logger = {record.name: record.getMessage() for record in caplog.records}
    assert len(caplog.records) == 2
    assert by_logger == {
        "anyio_ws.client": "connection ended: 4000 'done' from here",
        "anyio_ws.server": "connection ended: 4000 'done' from the peer",
    }


async def test_a_handler_whose_connection_ended_has_not_failed(caplog):
    caplog.set_level(logging.INFO, "anyio_ws")

    async def handler(ws):
        async with anyio.create_task_group() as tg:
            tg.start_soon(ws.receive)
            tg.start_soon(ws.ping)

    async with MemoryServer(handler) as server, server.connect() as ws:
        ws.abort()
        await settle()
        assert not server.connections
    records = [record for record in caplog.records if record.name == "anyio_ws.server"]
    assert [record.levelno for record in records] == [logging.INFO]
    assert records[0].exc_info is None


async def test_a_handler_that_fails_is_logged_at_error_with_its_traceback(caplog):
    error = RuntimeError("the handler's")

    async def handler(ws):
        raise error

    async with MemoryServer(handler) as server, server.connect() as ws:
        info = await ws.wait_closed()
    assert info == CloseInfo(1011, "", "peer", clean=True)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "handler failed"
    assert record.exc_info[1] is error
    assert len(record.connection_id) == 8


async def test_no_line_above_debug_contains_a_secret(caplog):
    caplog.set_level(logging.INFO, "anyio_ws")

    async def handler(ws):
        raise ConnectionClosedError(ws.close_info or CloseInfo(1006))

    headers = {"Authorization": "Bearer secret", "Cookie": "session=secret"}
    async with MemoryServer(handler) as server:
        async with server.connect("/path?token=secret", additional_headers=headers) as ws:
            await ws.wait_closed()
            assert "secret" not in repr(ws)
        with pytest.raises(Exception, match="answered 403") as caught:
            async with server.connect("/path?token=secret", additional_headers=headers, origin="http://evil"):
                pass
        assert "secret" not in str(caught.value)
        assert "secret" not in repr(caught.value)
    assert caplog.records
    for record in caplog.records:
        assert "secret" not in record.getMessage()


@pytest.mark.virtual_time
async def test_the_warning_of_a_blocked_loop_is_about_no_connection(caplog):
    async with connected_pair():
        jump(300)
        await anyio.sleep(1)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.connection_id == "-"


@pytest.mark.real_time
async def test_the_warning_of_no_more_descriptors_is_about_no_connection(caplog):
    class Exhausted(socket.socket):
        def accept(self):
            raise OSError(errno.EMFILE, "too many open files")

    async def handler(ws):
        pass

    listener = Exhausted()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    with socket.create_connection(listener.getsockname()):
        async with Server(handler, listeners=[listener]):
            while not lines(caplog, logging.WARNING):
                await anyio.lowlevel.checkpoint()
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.connection_id == "-"
