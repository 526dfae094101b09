"""WebSocket.run: the functions of one connection, none of which outlives the others."""

import anyio
import pytest

from anyio_ws import ConnectionClosedError, ConnectionClosedOK
from anyio_ws.protocol import Opcode
from anyio_ws.testing import connected_pair, raw_peer
from support.tools import Call, settle

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode


class Record:
    """Functions to run, which note what became of them."""

    def __init__(self):
        self.received = []
        self.ended = []

    async def consume(self, ws):
        try:
            async for message in ws:
                self.received.append(message)
        except BaseException as exc:
            self.note("consume", exc)
            raise
        self.note("consume")

    async def receive_one(self, ws):
        try:
            self.received.append(await ws.receive())
        except BaseException as exc:
            self.note("receive_one", exc)
            raise
        self.note("receive_one")

    async def produce(self, ws):
        try:
            await ws.send("produced")
        except BaseException as exc:
            self.note("produce", exc)
            raise
        self.note("produce")

    async def wait(self, ws):
        try:
            await anyio.sleep_forever()
        except BaseException as exc:
            self.note("wait", exc)
            raise

    def note(self, name, exc=None):
        cancelled = isinstance(exc, anyio.get_cancelled_exc_class())
        self.ended.append((name, "cancelled" if cancelled else type(exc).__name__ if exc else "returned"))


async def test_no_function_is_a_type_error():
    async with connected_pair() as (client, _server):
        with pytest.raises(TypeError, match="at least one function"):
            await client.run()


async def test_each_function_is_called_with_the_websocket():
    called = []

    async def function(ws):
        called.append(ws)
        await settle()

    async with connected_pair() as (client, _server):
        await client.run(function, function)
        assert called == [client, client]


async def test_the_consumer_that_ends_first_cancels_the_rest():
    record = Record()
    async with connected_pair() as (client, server):
        await client.send("1")
        await server.run(record.receive_one, record.wait)
        assert record.received == ["1"]
        assert record.ended == [("receive_one", "returned"), ("wait", "cancelled")]
        await client.send("the connection is still open")
        await server.receive()


async def test_the_producer_that_ends_first_cancels_the_rest():
    record = Record()
    async with connected_pair() as (client, server):
        await server.run(record.consume, record.produce)
        assert record.ended == [("produce", "returned"), ("consume", "cancelled")]
        assert await client.receive() == "produced"


async def test_a_producer_that_waits_for_the_end_does_not_end_the_conversation():
    record = Record()

    async def produce(ws):
        await ws.send("produced")
        await ws.wait_closed()

    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.run, record.consume, produce)
        await settle()
        assert not call.done
        await peer.send_frame(TEXT, b"1")
        await peer.send_close()
        await call.wait()
        assert record.received == ["1"]


async def test_a_clean_end_gives_the_consumer_what_had_arrived_then_the_end_and_raises_nothing():
    record = Record()
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.run, record.consume, record.wait)
        await settle()
        await peer.send_frame(TEXT, b"1")
        await peer.send_frame(TEXT, b"2")
        await peer.send_close()
        await call.wait()
        assert record.received == ["1", "2"]
        assert record.ended == [("consume", "returned"), ("wait", "cancelled")]


async def test_a_consumer_that_raises_the_clean_end_ends_run_without_an_error():
    record = Record()

    async def consume(ws):
        while True:
            record.received.append(await ws.receive())

    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.run, consume, record.wait)
        await settle()
        await peer.send_frame(TEXT, b"1")
        await peer.send_close()
        await call.wait()
        assert record.received == ["1"]
        assert record.ended == [("wait", "cancelled")]


async def test_a_peer_that_vanishes_raises_its_error_once_and_flat():
    record = Record()
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.run, record.consume, ws.__class__.ping, record.wait)
        await settle()
        peer.close()
        with pytest.raises(ConnectionClosedError) as caught:
            await call.wait()
        assert caught.value.close_info is ws.close_info
        assert isinstance(caught.value.__cause__, EOFError)
        assert sorted(record.ended) == [("consume", "ConnectionClosedError"), ("wait", "cancelled")]


async def test_if_nobody_has_received_the_end_cancels_all_at_once():
    record = Record()
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.run, record.wait, record.wait)
        await settle()
        await peer.send_frame(TEXT, b"nobody receives this")
        await peer.send_close()
        await call.wait()
        assert record.ended == [("wait", "cancelled")] * 2


async def test_if_nobody_has_received_and_the_peer_vanishes_run_raises_that():
    record = Record()
    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.run, record.wait)
        await settle()
        peer.close()
        with pytest.raises(ConnectionClosedError):
            await call.wait()


@pytest.mark.virtual_time
@pytest.mark.parametrize("close_timeout", [3, 10])
async def test_what_still_runs_close_timeout_after_the_end_is_cancelled(close_timeout):
    record = Record()

    async def busy(ws):
        await ws.receive()
        try:
            await anyio.sleep(1000)
        finally:
            record.note("busy")

    async with raw_peer(close_timeout=close_timeout) as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.run, busy, record.wait)
        await peer.send_frame(TEXT, b"1")
        await peer.send_close()
        start = anyio.current_time()
        await call.wait()
        assert anyio.current_time() - start == pytest.approx(close_timeout)


@pytest.mark.virtual_time
async def test_without_close_timeout_a_function_that_receives_may_take_its_time():
    record = Record()

    async def slow(ws):
        async for message in ws:
            await anyio.sleep(10_000)
            record.received.append(message)

    async with raw_peer(close_timeout=None) as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.run, slow, record.wait)
        await peer.send_frame(TEXT, b"1")
        await peer.send_frame(TEXT, b"2")
        await peer.send_close()
        await call.wait()
        assert record.received == ["1", "2"]


async def test_messages_that_arrived_before_run_reach_the_consumer():
    record = Record()
    async with raw_peer() as (peer, ws), anyio.create_task_group():
        await peer.send_frame(TEXT, b"1")
        await peer.send_close()
        await settle()
        assert ws.close_info is not None
        await ws.run(record.consume, record.wait)
        assert record.received == ["1"]
        assert record.ended == [("consume", "returned"), ("wait", "cancelled")]


async def test_run_on_a_connection_that_has_ended_badly_raises_that():
    record = Record()
    async with raw_peer() as (peer, ws):
        peer.close()
        await settle()
        with pytest.raises(ConnectionClosedError):
            await ws.run(record.consume, record.wait)
        with pytest.raises(ConnectionClosedError):
            await ws.run(record.wait)


async def test_an_error_comes_out_flat_the_same_object_and_cancels_the_rest():
    record = Record()
    error = RuntimeError("mine")

    async def fail(ws):
        raise error

    async with connected_pair() as (client, server):
        with pytest.raises(RuntimeError) as caught:
            await client.run(record.wait, fail, record.consume)
        assert caught.value is error
        assert sorted(record.ended) == [("consume", "cancelled"), ("wait", "cancelled")]
        await server.send("still open")
        assert await client.receive() == "still open"


async def test_several_errors_come_out_as_a_group():
    first, second = RuntimeError("first"), KeyError("second")

    async def fail(ws):
        try:
            await anyio.sleep_forever()
        finally:
            raise first

    async def fail_first(ws):
        raise second

    async with connected_pair() as (client, _server):
        with pytest.raises(ExceptionGroup) as caught:
            await client.run(fail, fail_first)
        assert set(caught.value.exceptions) == {first, second}


async def test_the_end_of_this_connection_yields_to_any_other_error():
    error = RuntimeError("mine")

    async def fail(ws):
        await ws.wait_closed()
        raise error

    async def consume(ws):
        await ws.receive()

    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.run, consume, fail)
        await settle()
        peer.close()
        with pytest.raises(RuntimeError) as caught:
            await call.wait()
        assert caught.value is error


async def test_the_end_of_this_connection_in_a_group_counts_once():
    async def work(ws):
        async with anyio.create_task_group() as tg:
            tg.start_soon(ws.receive)
            tg.start_soon(ws.ping)

    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.run, work)
        await settle()
        peer.close()
        with pytest.raises(ConnectionClosedError) as caught:
            await call.wait()
        assert caught.value.close_info is ws.close_info


async def test_the_end_of_another_connection_is_an_error_like_any_other():
    async with connected_pair() as (client, _server), connected_pair() as (other, _):
        await other.aclose()

        async def forward(ws):
            await other.send("late")

        with pytest.raises(ConnectionClosedOK) as caught:
            await client.run(forward)
        assert caught.value.close_info is other.close_info


async def test_an_end_that_a_function_handles_is_not_raised():
    async def consume(ws):
        with pytest.raises(ConnectionClosedError):
            await ws.receive()

    async with raw_peer() as (peer, ws), anyio.create_task_group() as tg:
        call = Call(tg, ws.run, consume)
        await settle()
        peer.close()
        await call.wait()


async def test_a_function_may_close_the_connection():
    record = Record()

    async def close(ws):
        await ws.aclose(4000)

    async with connected_pair() as (client, _server):
        await client.run(record.consume, close)
        assert client.close_info.code == 4000


async def test_a_send_after_a_local_close_ends_run_without_an_error():
    async def close(ws):
        ws._core.close(1000, "")
        await ws.send("late")

    async with connected_pair() as (client, _server):
        await client.run(close)


async def test_an_outer_cancellation_cancels_all_and_the_connection_stays_open():
    record = Record()
    async with connected_pair() as (client, server), anyio.create_task_group() as tg:
        call = Call(tg, client.run, record.consume, record.wait)
        await settle()
        call.cancel()
        await settle()
        assert call.cancelled
        assert sorted(record.ended) == [("consume", "cancelled"), ("wait", "cancelled")]
        await server.send("still open")
        assert await client.receive() == "still open"


@pytest.mark.virtual_time
async def test_an_outer_timeout_stays_the_users():
    record = Record()
    async with connected_pair() as (client, _server):
        with pytest.raises(TimeoutError), anyio.fail_after(5):
            await client.run(record.consume)


@pytest.mark.virtual_time
async def test_run_waits_for_a_function_that_ignores_its_cancellation_for_a_while():
    record = Record()

    async def stubborn(ws):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(30)
            record.note("stubborn")

    async with connected_pair() as (client, _server):
        start = anyio.current_time()
        await client.run(stubborn, record.produce)
        assert anyio.current_time() - start == pytest.approx(30)
        assert record.ended == [("produce", "returned"), ("stubborn", "returned")]


async def test_a_function_that_swallows_its_cancellation_and_returns_changes_nothing():
    async def swallow(ws):
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            pass

    record = Record()
    async with connected_pair() as (client, server):
        await client.run(swallow, record.produce)
        await server.receive()


async def test_runs_nest():
    record = Record()

    async def outer(ws):
        await ws.run(record.receive_one, record.wait)

    async with connected_pair() as (client, server):
        await client.send("1")
        await server.run(outer, record.wait)
        assert record.received == ["1"]


async def test_both_ends_may_run_until_one_is_done():
    async def ask(ws):
        for i in range(100):
            await ws.send(str(i))
            assert await ws.receive() == str(i)
        await ws.aclose()

    async def echo(ws):
        async for message in ws:
            await ws.send(message)

    async with connected_pair() as (client, server), anyio.create_task_group() as tg:
        calls = [Call(tg, client.run, ask), Call(tg, server.run, echo)]
        for call in calls:
            await call.wait()


async def test_what_is_no_function_is_a_type_error() -> None:
    async def function(ws: object) -> None: ...

    async with connected_pair() as (client, _):
        with pytest.raises(TypeError, match="calls them with the WebSocket itself; got <coroutine"):
            await client.run(function(client))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="got None"):
            await client.run(None)  # type: ignore[arg-type]
