"""The options that connect, accept and Server share."""

import inspect
import json
import math
from dataclasses import fields

import pytest

from anyio_ws import Deflate, Options, Server, accept, connect
from anyio_ws.options import SharedOptions

TIMES = ["open_timeout", "close_timeout", "ping_interval", "ping_timeout", "idle_timeout"]
SIZES = ["max_size", "receive_buffer_size", "write_buffer_size"]


def test_the_defaults():
    options = Options()
    assert (options.open_timeout, options.close_timeout) == (10, 10)
    assert (options.ping_interval, options.ping_timeout, options.idle_timeout) == (20, 20, None)
    assert (options.max_size, options.receive_buffer_size, options.write_buffer_size) == (2**20, 65536, 65536)
    assert options.overflow == "backpressure"
    assert options.compression is None
    assert options.json is json


@pytest.mark.parametrize("function", [connect, accept, Server])
def test_each_signature_spells_them_out_with_the_same_defaults(function):
    parameters = inspect.signature(function).parameters
    for field in fields(Options):
        assert parameters[field.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[field.name].default == field.default


def test_the_typed_dict_has_the_same_names():
    assert set(SharedOptions.__annotations__) == {field.name for field in fields(Options)}


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", [None, 1, 0.5, 10**6])
def test_times_that_are_accepted(name, value):
    assert getattr(Options(**{name: value}), name) == value


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", [0, -1, -0.5, math.inf, math.nan, True, "1", b"1"])
def test_times_that_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be a positive number of seconds or None, not {value!r}$"):
        Options(**{name: value})


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_are_accepted(name):
    assert getattr(Options(**{name: 1}), name) == 1


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1, 1.5, "1", True])
def test_sizes_that_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be a positive number of bytes"):
        Options(**{name: value})


def test_only_max_size_may_be_without_limit():
    assert Options(max_size=None).max_size is None
    for name in SIZES[1:]:
        with pytest.raises(ValueError, match=rf"^{name} must be a positive number of bytes, not None$"):
            Options(**{name: None})


@pytest.mark.parametrize("value", [True, "gzip", "", Deflate, {"level": 1}])
def test_compression_is_deflate_or_how(value):
    with pytest.raises(ValueError, match='compression must be "deflate", a Deflate or None, not'):
        Options(compression=value)


def test_what_is_negotiated():
    assert Options().extensions == ()
    assert Options(compression="deflate").extensions == (Deflate.balanced(),)
    assert Options(compression=Deflate(level=1)).extensions == (Deflate(level=1),)


@pytest.mark.parametrize("value", [None, object(), type("Half", (), {"dumps": None})])
def test_json_needs_dumps_and_loads(value):
    with pytest.raises(TypeError, match="json must have dumps and loads"):
        Options(json=value)


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match="timeout"):
        Options(timeout=1)


@pytest.mark.parametrize(("close_timeout", "bound"), [(None, 1), (10, 1), (1, 1), (0.25, 0.25)])
def test_the_bound_of_an_ending_is_close_timeout_or_a_second(close_timeout, bound):
    assert Options(close_timeout=close_timeout).ending_bound == bound
