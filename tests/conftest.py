"""Which event loops a test runs on.

Every async test runs once per loop, named in its id:

- unmarked: asyncio and trio with a virtual clock, uvloop with the real one (uvloop cannot take another);
- `@pytest.mark.virtual_time`, where time passes: asyncio and trio with a virtual clock;
- `@pytest.mark.real_time`, where there are real sockets or processes: all three with the real clock;
- `@pytest.mark.loops("trio")`, where the test is of one loop: only the loops named.

A loop that is not installed drops out.
"""

import os
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

LOOPS = [name for name in ("asyncio", "trio", "uvloop") if find_spec(name)]

# Each example of an async test runs in a fresh event loop, so that the fixture which names the loop may be shared.
# No deadline: it would make the speed of the machine part of the test.
settings.register_profile(
    "default",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("default")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "anyio_backend" in metafunc.fixturenames:
        names = LOOPS
        if marker := metafunc.definition.get_closest_marker("loops"):
            names = [name for name in names if name in marker.args]
        if metafunc.definition.get_closest_marker("virtual_time"):
            names = [name for name in names if name != "uvloop"]
        metafunc.parametrize("anyio_backend", names, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What pytest-timeout's signal raises ends a test on asyncio. uvloop does not let it through, and trio, which anyio
    # runs as a guest, goes on while its runner waits for it. There the other method prints all stacks and ends the run.
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec and callspec.params.get("anyio_backend") in ("trio", "uvloop"):
            own = item.get_closest_marker("timeout")
            item.add_marker(pytest.mark.timeout(*(own.args if own else ()), method="thread"), append=False)


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    if request.param == "uvloop":
        return "asyncio", {"use_uvloop": True}
    if request.node.get_closest_marker("real_time"):
        return request.param, {}
    # Not at the top of the file: the tests of anyio_ws.protocol do without everything above it.
    from anyio_ws.testing import virtual_clock

    return virtual_clock(request.param)


@pytest.fixture
def loop_name(request: pytest.FixtureRequest) -> str:
    """asyncio, trio or uvloop (`anyio_backend_name` says asyncio for uvloop too)."""
    return request.node.callspec.params["anyio_backend"]
