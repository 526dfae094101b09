"""What is particular to the codec in C, and to there being two. What they do is in test_frames.py, for both."""

import gc
import inspect
import os
import subprocess
import sys
import threading
import tracemalloc
import weakref
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_ws import protocol
from anyio_ws.protocol import _pycodec
from anyio_ws.protocol.frames import Opcode, encode_frame, encode_header

from .codecs import load
from .differential import Pair
from .vectors import KEY, frame

CONT, TEXT, BINARY, CLOSE, PING, PONG = Opcode


@pytest.fixture(scope="module")
def c():
    return load("_codec")


def make(codec, on_control=lambda opcode, payload: None, *, is_client=False, max_size=None, **options):
    return codec.Decoder(is_client=is_client, max_size=max_size, on_control=on_control, **options)


# Which one is used


def implementation(code="", *, measured=True, **environ):
    code += "\nfrom anyio_ws import protocol; print(protocol.IMPLEMENTATION, protocol.Decoder.__module__)"
    dropped = ("ANYIO_WS_PURE",) if measured else ("ANYIO_WS_PURE", "COVERAGE_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(dropped)} | environ
    return subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    ).stdout.split()


def test_c_is_used_where_it_is_built(c):
    assert implementation() == ["c", "anyio_ws.protocol._codec"]
    assert implementation(ANYIO_WS_PURE="0") == ["c", "anyio_ws.protocol._codec"]


def test_python_is_used_where_it_is_not():
    hide = "import sys; sys.modules['anyio_ws.protocol._codec'] = None"
    assert implementation(hide) == ["python", "anyio_ws.protocol._pycodec"]


def test_the_environment_can_ask_for_python():
    assert implementation(ANYIO_WS_PURE="1") == ["python", "anyio_ws.protocol._pycodec"]


def test_the_implementation_in_use_is_told():
    module = {"c": "_codec", "python": "_pycodec"}[protocol.IMPLEMENTATION]
    assert protocol.Decoder.__module__ == f"anyio_ws.protocol.{module}"


def test_both_have_the_same_interface(c):
    for name in ("apply_mask", "encode_frame", "encode_header", "Decoder", "MaskingKeys"):
        ours, pure = getattr(c, name), getattr(_pycodec, name)
        assert parameters(ours) == parameters(pure)
        assert inspect.getdoc(pure).startswith(inspect.getdoc(ours))
    for ours, pure in ((c.Decoder, _pycodec.Decoder), (c.MaskingKeys, _pycodec.MaskingKeys)):
        public = {name for name in dir(pure) if not name.startswith("_")}
        assert {name for name in dir(ours) if not name.startswith("_")} == public
        for name in public:
            if callable(getattr(pure, name)):
                assert parameters(getattr(ours, name)) == parameters(getattr(pure, name))


def parameters(function):
    parameters = inspect.signature(function).parameters.values()
    return [(each.name, each.kind, each.default) for each in parameters if each.name != "self"]


# The same comes of the same


@pytest.mark.parametrize("is_client", [False, True], ids=["server", "client"])
@pytest.mark.parametrize("begun", [False, True])
def test_all_beginnings_of_a_frame(c, is_client, begun):
    before = frame(TEXT, b"begun", False, is_client=is_client) if begun else b""
    for head in range(0x10000):
        pair = Pair(c, is_client=is_client, max_size=1000)
        pair.feed(before + head.to_bytes(2))


payloads = (
    st.binary(max_size=200) | st.text(max_size=60).map(str.encode) | st.integers(0, 90_000).map(lambda n: b"x" * n)
)
one_frame = st.tuples(st.sampled_from([TEXT, BINARY, CONT, CONT, PING, PONG]), payloads, st.booleans())
message = st.tuples(st.sampled_from([TEXT, BINARY]), st.lists(payloads, min_size=1, max_size=4))


def encode_all(is_client, parts):
    for part in parts:
        if isinstance(part, bytes):
            yield part
        elif len(part) == 3:
            yield frame(*part, is_client=is_client)
        else:
            opcode, fragments = part
            for i, fragment in enumerate(fragments):
                yield frame(CONT if i else opcode, fragment, i == len(fragments) - 1, is_client=is_client)


@given(
    is_client=st.booleans(),
    parts=st.lists(message | message | one_frame | st.binary(max_size=4), max_size=8),
    steps=st.lists(
        st.tuples(
            st.integers(1, 300) | st.integers(1, 70_000), st.just(sys.maxsize) | st.integers(-1, 1000), st.booleans()
        )
    ),
    max_size=st.none() | st.integers(0, 300) | st.just(50_000),
    scratch=st.sampled_from([0, 0, 1000, 65536]),
)
@settings(max_examples=400)
def test_any_bytes_in_any_chunks_come_to_the_same(c, is_client, parts, steps, max_size, scratch):
    data = b"".join(encode_all(is_client, parts))
    pair = Pair(c, is_client=is_client, max_size=max_size, scratch=scratch)
    for count, room, lend in steps:
        if lend:
            pair.read(data[:count], room)
        else:
            pair.feed(data[:count], room)
        data = data[count:]
    pair.feed(data)
    pair.finish()


@given(data=st.binary(max_size=60), is_client=st.booleans(), max_size=st.none() | st.integers(0, 20))
def test_noise_comes_to_the_same(c, data, is_client, max_size):
    pair = Pair(c, is_client=is_client, max_size=max_size)
    for i in range(len(data)):
        pair.feed(data[i : i + 1])


@given(
    opcode=st.integers(0, 255),
    payload=st.binary(max_size=300) | st.text(max_size=300) | st.sampled_from([b"x" * 65535, b"x" * 65536]),
    key=st.none() | st.binary(min_size=4, max_size=4),
    fin=st.booleans(),
)
def test_both_encode_the_same(c, opcode, payload, key, fin):
    arguments = (opcode, payload, key, fin)
    try:
        expected = _pycodec.encode_frame(*arguments)
    except UnicodeEncodeError:
        with pytest.raises(UnicodeEncodeError):
            c.encode_frame(*arguments)
    else:
        assert c.encode_frame(*arguments) == expected
    length = len(payload)
    assert c.encode_header(opcode, length, key, fin) == _pycodec.encode_header(opcode, length, key, fin)


@given(
    opcode=st.integers(0, 255),
    payload=st.binary(max_size=300) | st.text(max_size=300) | st.sampled_from([b"x" * 65535, b"x" * 65536]),
    fin=st.lists(st.booleans(), max_size=1),
)
def test_both_mask_the_same_with_the_next_key(c, opcode, payload, fin):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", lambda size: bytes(range(256)) * (size // 256))
        ours, pure = c.MaskingKeys(), _pycodec.MaskingKeys()
        for _ in range(3):
            try:
                expected = pure.encode_frame(opcode, payload, *fin)
            except UnicodeEncodeError:
                with pytest.raises(UnicodeEncodeError):
                    ours.encode_frame(opcode, payload, *fin)
            else:
                assert ours.encode_frame(opcode, payload, *fin) == expected
            assert ours.next() == pure.next()


@pytest.mark.parametrize("length", [2**31, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_both_encode_lengths_beyond_any_memory(c, length):
    assert c.encode_header(BINARY, length) == _pycodec.encode_header(BINARY, length)


@pytest.mark.parametrize("arguments", [(256, 1), (-1, 1), (2, -1)])
def test_both_refuse_what_no_header_can_hold(c, arguments):
    for codec in (c, _pycodec):
        with pytest.raises(OverflowError):
            codec.encode_header(*arguments)


# Misuse: an exception, never a crash


def test_wrong_arguments_are_refused(c):
    decoder = make(c)
    keys = c.MaskingKeys()
    for call in (
        lambda: c.Decoder(False, None, print),
        lambda: c.Decoder(is_client=False, max_size=None),
        lambda: c.Decoder(is_client=False, on_control=print),
        lambda: c.Decoder(max_size=None, on_control=print),
        lambda: c.Decoder(is_client=False, max_size="1", on_control=print),
        lambda: decoder.feed(),
        lambda: decoder.feed(b"", 1, 2),
        lambda: decoder.feed("text"),
        lambda: decoder.feed(5),
        lambda: decoder.feed(b"", "room"),
        lambda: decoder.filled(),
        lambda: decoder.filled("1"),
        lambda: make(c, scratch=5).filled(0),
        lambda: c.encode_frame(BINARY),
        lambda: c.encode_frame("2", b""),
        lambda: c.encode_frame(BINARY, 5),
        lambda: c.encode_header(BINARY, "5"),
        lambda: keys.encode_frame(BINARY),
        lambda: keys.encode_frame(BINARY, b"", True, None),
        lambda: keys.encode_frame("2", b""),
        lambda: keys.encode_frame(BINARY, 5),
        lambda: c.apply_mask(b""),
        lambda: c.apply_mask(5, KEY),
    ):
        with pytest.raises(TypeError):
            call()
    for key in (b"", b"123", b"12345", bytearray(4), None, 4):
        with pytest.raises(ValueError, match="a masking key must be 4 bytes"):
            c.apply_mask(b"data", key)
    for key in (b"", b"12345", bytearray(4), 0):
        with pytest.raises(ValueError, match="a masking key must be 4 bytes"):
            c.encode_frame(BINARY, b"data", key)
    with pytest.raises(ZeroDivisionError):
        c.encode_frame(BINARY, b"", None, Fails())
    with pytest.raises(ZeroDivisionError):
        keys.encode_frame(BINARY, b"", Fails())
    with pytest.raises(OverflowError):
        keys.encode_frame(256, b"")
    with pytest.raises(AttributeError):
        decoder.pending = True
    assert decoder.feed(frame(TEXT, "works"), 10**30) == ["works"]


class Fails:
    def __bool__(self):
        raise ZeroDivisionError


def test_masking_keys_are_never_less_than_random(c, monkeypatch):
    keys = c.MaskingKeys()
    for wrong in (b"", b"1234", bytearray(4096), None):
        monkeypatch.setattr(os, "urandom", lambda size, wrong=wrong: wrong)
        with pytest.raises(SystemError, match=r"os\.urandom"):
            keys.next()
        with pytest.raises(SystemError, match=r"os\.urandom"):
            keys.encode_frame(BINARY, b"")
    monkeypatch.setattr(os, "urandom", lambda size: b"1234" * (size // 4))
    assert keys.next() == b"1234"
    monkeypatch.setattr(os, "urandom", lambda size: 1 // 0)
    assert [keys.next() for _ in range(1023)] == [b"1234"] * 1023
    with pytest.raises(ZeroDivisionError):
        keys.next()


def test_a_limit_beyond_any_memory_is_none(c):
    assert make(c, max_size=10**30).feed(frame(TEXT, "x")) == ["x"]
    pair = Pair(c, is_client=True, max_size=-1)
    pair.feed(encode_frame(TEXT, ""))
    assert pair.sides[0].decoder.error.close_code == 1009


def test_more_than_was_lent_cannot_have_been_filled(c):
    decoder = make(c)
    with pytest.raises(ValueError, match=r"filled\(0\), but get_buffer\(\) has lent 0 bytes"):
        decoder.filled(0)
    decoder.feed(encode_header(BINARY, 20_000, KEY))
    assert len(decoder.get_buffer()) == 20_000
    for count in (-1, 20_001, 10**30):
        with pytest.raises(ValueError, match="has lent 20000 bytes"):
            decoder.filled(count)
    decoder.get_buffer()[:] = frame(BINARY, bytes(20_000))[-20_000:]
    assert decoder.filled(20_000) == [bytes(20_000)]
    with pytest.raises(ValueError, match="has lent 0 bytes"):
        decoder.filled(1)


def test_more_than_the_scratch_holds_cannot_have_been_filled(c):
    decoder = make(c, scratch=memoryview(bytearray(10)))
    for count in (-1, 11, 10**30):
        with pytest.raises(ValueError, match=r"filled\(-?\d+\), but get_buffer\(\) has lent 10 bytes"):
            decoder.filled(count)
    data = frame(TEXT, "1234")
    assert len(data) == 10
    decoder.get_buffer()[:] = data
    assert decoder.filled(10) == ["1234"]
    decoder.get_buffer().release()
    with pytest.raises(ValueError, match="released"):
        decoder.filled(1)


def test_the_scratch_lives_as_long_as_the_decoder_and_no_longer(c):
    class Scratch(bytearray):
        pass

    owner = Scratch(10)
    gone = weakref.ref(owner)
    decoder = make(c, scratch=memoryview(owner))
    del owner
    decoder.get_buffer()[:] = frame(TEXT, "1234")
    assert decoder.filled(10) == ["1234"]
    assert gone() is not None
    del decoder
    assert gone() is None


def test_lent_memory_cannot_be_written_to_once_it_is_a_message(c):
    decoder = make(c, is_client=True)
    decoder.feed(encode_header(BINARY, 20_000))
    view = decoder.get_buffer()
    lender = view.obj
    view[:] = bytes(20_000)
    (message,) = decoder.filled(20_000)
    with pytest.raises(ValueError, match="released"):
        view[0] = 1
    with pytest.raises(BufferError, match="not lent any more"):
        memoryview(lender)
    with pytest.raises(TypeError):
        type(lender)()
    assert message == bytes(20_000)


@pytest.mark.parametrize("last", [False, True])
def test_slices_of_lent_memory_must_be_gone(c, last):
    decoder = make(c, is_client=True)
    decoder.feed(encode_header(BINARY, 20_000))
    part = decoder.get_buffer()[5:]
    count = 20_000 if last else 100
    for call in (lambda: decoder.filled(count), lambda: decoder.feed(b"x")):
        with pytest.raises(BufferError, match="slices of the memory"):
            call()
    part[0] = 7
    decoder.get_buffer()[:5] = b"12345"
    part.release()
    with memoryview(decoder.get_buffer()) as exported, pytest.raises(BufferError):
        hold = (c.apply_mask, exported.cast("B"))
        decoder.filled(count)
    del hold
    decoder.filled(count) if last else decoder.feed(bytes(20_000))


def test_memory_outlives_the_decoder_while_it_is_lent(c):
    decoder = make(c)
    decoder.feed(encode_header(BINARY, 100_000, KEY))
    view = decoder.get_buffer()
    del decoder
    view[:] = b"x" * len(view)
    assert bytes(view[-3:]) == b"xxx"


def test_an_abandoned_decoder_frees_a_half_received_message_at_once(c):
    tracemalloc.start()
    try:
        gc.disable()
        decoder = make(c)
        decoder.feed(frame(BINARY, bytes(1_000_000))[:-1])
        decoder = make(c)
        decoder.feed(encode_header(BINARY, 1_000_000, KEY))
        decoder.get_buffer()
        del decoder
        assert tracemalloc.get_traced_memory()[0] < 50_000
    finally:
        gc.enable()
        tracemalloc.stop()


# Whatever on_control and on_error do


def test_what_on_control_raises_comes_out_and_ends_the_decoder(c):
    def on_control(opcode, payload):
        raise ZeroDivisionError

    for opcode in (PING, CLOSE):
        decoder = make(c, on_control)
        with pytest.raises(ZeroDivisionError):
            decoder.feed(frame(TEXT, "1") + frame(opcode, b"") + frame(TEXT, "2"))
        assert decoder.feed(frame(TEXT, "3")) == []
        assert decoder.error is None
        assert not decoder.pending
        assert decoder.get_buffer() is None


@pytest.mark.parametrize("bad", [b"\xff\xff", frame(TEXT, b"\xff"), frame(BINARY, bytes(1001))[:50]])
def test_what_on_error_raises_comes_out_of_a_decoder_that_has_ended(c, bad):
    def on_error(error):
        assert decoder.error is error
        raise ZeroDivisionError

    decoder = make(c, on_error=on_error, max_size=1000)
    with pytest.raises(ZeroDivisionError):
        decoder.feed(frame(TEXT, "1") + bad + frame(TEXT, "2"))
    assert decoder.error is not None
    assert decoder.feed(frame(TEXT, "3")) == []
    assert not decoder.pending


def test_what_on_error_raises_comes_out_of_filled_too(c):
    decoder = make(c, on_error=lambda error: 1 // 0, is_client=True)
    decoder.feed(encode_header(TEXT, 30_000))
    decoder.get_buffer()[:1] = b"\xff"
    with pytest.raises(ZeroDivisionError):
        decoder.filled(1)
    assert decoder.error.close_code == 1007
    decoder = make(c, on_error=lambda error: 1 // 0, scratch=memoryview(bytearray(10)))
    decoder.get_buffer()[:2] = b"\xff\xff"
    with pytest.raises(ZeroDivisionError):
        decoder.filled(2)
    assert decoder.error.close_code == 1002


def test_functions_that_cannot_be_called(c):
    with pytest.raises(TypeError):
        make(c, None).feed(frame(PING, b""))
    with pytest.raises(TypeError):
        make(c, on_error=5).feed(b"\xff\xff")


@pytest.mark.parametrize(
    "call",
    [
        lambda decoder: decoder.feed(b""),
        lambda decoder: decoder.feed(frame(TEXT, "again")),
        lambda decoder: decoder.get_buffer(),
        lambda decoder: decoder.filled(1),
    ],
)
@pytest.mark.parametrize("held", [0, 1, 5])
def test_on_control_must_not_call_the_decoder(c, call, held):
    errors = []

    def on_control(opcode, payload):
        decoder.__init__()
        gc.collect()
        with pytest.raises(RuntimeError, match="on_control must not call it") as info:
            call(decoder)
        errors.append(info)

    decoder = make(c, on_control)
    data = frame(TEXT, "1") + frame(PING, b"x" * 125) + frame(TEXT, "2")
    data, rest = data[: len(data) - held], data[len(data) - held :]
    assert decoder.feed(bytearray(data[:9])) + decoder.feed(data[9:]) + decoder.feed(rest) == ["1", "2"]
    assert len(errors) == 1


def test_on_error_must_not_call_the_decoder(c):
    errors = []

    def on_error(error):
        gc.collect()
        with pytest.raises(RuntimeError, match="must not call it"):
            decoder.feed(frame(TEXT, "again"))
        errors.append(error)

    decoder = make(c, on_error=on_error)
    assert decoder.feed(frame(TEXT, "1") + b"\xff\xff") == ["1"]
    assert errors == [decoder.error]


def test_two_threads_cannot_be_in_one_decoder(c):
    inside, leave = threading.Event(), threading.Event()

    def on_control(opcode, payload):
        inside.set()
        leave.wait()

    decoder = make(c, on_control)
    messages = []
    thread = threading.Thread(target=lambda: messages.append(decoder.feed(frame(PING, b"") + frame(TEXT, "1"))))
    thread.start()
    inside.wait()
    with pytest.raises(RuntimeError, match="nor two threads"):
        decoder.feed(b"")
    leave.set()
    thread.join()
    assert messages == [["1"]]


def test_the_chunk_cannot_be_resized_by_on_control(c):
    chunk = bytearray(frame(PING, b"") + frame(TEXT, "text"))

    def on_control(opcode, payload):
        with pytest.raises(BufferError):
            chunk.clear()

    assert make(c, on_control).feed(chunk) == ["text"]
    chunk.clear()


# Memory


def test_a_cycle_through_on_control_is_collected(c):
    class Owner:
        def __init__(self):
            self.decoder = make(c, self.on_control)

        def on_control(self, opcode, payload): ...

    owner = Owner()
    owner.decoder.feed(encode_header(TEXT, 100_000, KEY))
    owner.view = owner.decoder.get_buffer()
    reference = weakref.ref(owner)
    del owner
    gc.collect()
    assert reference() is None


def test_an_unfinished_message_is_shown_to_nobody(c):
    decoder = make(c)
    decoder.feed(frame(BINARY, bytes(1000))[:-1])
    assert not [referent for referent in gc.get_referents(decoder) if isinstance(referent, bytes)]


def test_nothing_leaks(c):
    def run():
        decoder = make(c)
        for data in (
            frame(TEXT, "text") + frame(TEXT, "€") + frame(BINARY, b"x" * 500) + frame(PING, b"ping"),
            frame(TEXT, "€", False) + frame(CONT, "x" * 100) + frame(BINARY, b"", False) + frame(CONT, b"y"),
        ):
            for i in range(len(data)):
                decoder.feed(data[i : i + 1])
            decoder.feed(bytearray(data), 1)
            decoder.feed(data)
        data = frame(TEXT, "x" * 20_000)
        decoder.feed(data[:100])
        decoder.get_buffer()[:] = data[100:]
        decoder.filled(len(data) - 100)
        for wrong in (b"\xff\xff", frame(TEXT, b"\xff"), frame(TEXT, b"\xff", False), frame(BINARY, b"x" * 600)):
            make(c, max_size=500).feed(wrong)
        with pytest.raises(TypeError):
            make(c, None).feed(frame(PING, b""))
        c.encode_frame(TEXT, "€", KEY)
        c.encode_frame(BINARY, memoryview(b"12345")[::-1], KEY)
        c.apply_mask(bytearray(10), KEY)
        c.MaskingKeys().next()

    # A leak costs every batch at least the smallest object each time. Free lists and caches fill up now and then.
    sizes = []
    tracemalloc.start()
    try:
        for _ in range(5):
            for _ in range(300):
                run()
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert min(after - before for before, after in pairwise(sizes)) < 300 * 30


@pytest.mark.skipif(sys.version_info < (3, 12), reason="interpreters with a GIL of their own came with 3.12")
def test_each_interpreter_has_its_own(c):
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    path = str(Path(protocol.__file__).parent)
    # Without the packages' __init__.py, which import the standard library's ssl: on 3.12 it does not survive this.
    code = f"""if True:
        import {name} as interpreters
        for _ in range(3):
            interpreter = interpreters.create()
            interpreters.run_string(interpreter, r'''if True:
                import sys, types
                for name in ("anyio_ws", "anyio_ws.protocol"):
                    sys.modules[name] = types.ModuleType(name)
                    sys.modules[name].__path__ = [{path!r}]
                from anyio_ws.protocol import _codec
                decoder = _codec.Decoder(is_client=True, max_size=None, on_control=print)
                assert decoder.feed(_codec.encode_frame(1, "x") + b"\\xff\\xff") == ["x"]
                assert "RSV" in str(decoder.error)
            ''')
            interpreters.destroy(interpreter)"""
    # Nor with coverage's tracer, which may measure processes.
    assert implementation(code, measured=False)[0] == "c"
