"""Promise 1, systematically: each call is cancelled at each point where it waits, in several ways."""

import pytest

from .harness import Way, at_every_point
from .scenarios import REAL, SCENARIOS, Scenario

pytestmark = pytest.mark.exhaustive

ON_SOCKETS = [Way.BEFORE, Way.WAKING, Way.TICKS, Way.NATIVE_WAKING]
"""The other ways come to the same there, and each run takes some milliseconds of real time."""


def cases(*, in_memory: bool) -> pytest.MarkDecorator:
    """Each scenario over each kind of link."""
    found = [(scenario, kind) for scenario, kind in SCENARIOS if (kind not in REAL) == in_memory]
    ids = [f"{scenario.__name__}-{kind}" for scenario, kind in found]
    return pytest.mark.parametrize(("scenario", "kind"), found, ids=ids)


@cases(in_memory=True)
async def test_a_cancellation_leaves_things_as_promised(scenario: Scenario, kind: str) -> None:
    await at_every_point(scenario, kind, list(Way))


@cases(in_memory=False)
@pytest.mark.real_time
async def test_a_cancellation_leaves_sockets_as_promised(scenario: Scenario, kind: str) -> None:
    await at_every_point(scenario, kind, ON_SOCKETS)
