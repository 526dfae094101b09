"""The task group that wraps nothing, in every situation it may be in: the same results on every loop."""

import asyncio

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_ws.tasks import Tasks
from anyio_ws.testing import connected_pair
from support.tools import settle


class Body(Exception):
    """The body's error."""


class Background(Exception):
    """A background task's error."""


async def fail(error):
    raise error


async def fail_later(error):
    await checkpoint()
    raise error


async def fail_when_cancelled(error):
    try:
        await anyio.sleep_forever()
    finally:
        raise error


def cancelled():
    return anyio.get_cancelled_exc_class()


# The body


async def test_1_a_body_that_returns_ends_the_tasks():
    ended = []

    async def background():
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    async with Tasks() as tasks:
        tasks.start(background)
        await settle()
    assert ended == [True]


async def test_2_a_body_may_leave_by_return():
    async def function():
        async with Tasks() as tasks:
            tasks.start(anyio.sleep_forever)
            return "value"

    assert await function() == "value"


async def test_3_what_the_body_raises_comes_out_untouched():
    context, cause = KeyError("context"), LookupError("cause")
    error = Body()
    with pytest.raises(Body) as caught:
        async with Tasks() as tasks:
            tasks.start(anyio.sleep_forever)
            try:
                raise context
            except KeyError:
                raise error from cause
    assert caught.value is error
    assert error.__context__ is context
    assert error.__cause__ is cause


async def test_4_a_group_that_the_body_raises_comes_out_untouched():
    error = ExceptionGroup("the body's", [Body(), ValueError()])
    with pytest.raises(ExceptionGroup) as caught:
        async with Tasks() as tasks:
            tasks.start(anyio.sleep_forever)
            raise error
    assert caught.value is error


async def test_5_a_base_exception_of_the_body_comes_out_untouched():
    class Stop(BaseException):
        pass

    error = Stop()
    with pytest.raises(Stop) as caught:
        async with Tasks() as tasks:
            tasks.start(anyio.sleep_forever)
            raise error
    assert caught.value is error


# Background tasks


@pytest.mark.parametrize("function", [fail, fail_later])
async def test_6_an_error_in_the_background_cancels_the_body_and_comes_out_flat(function):
    error = Background()
    body = []
    with pytest.raises(Background) as caught:
        async with Tasks() as tasks:
            tasks.start(function, error)
            try:
                await anyio.sleep_forever()
            except BaseException as exc:
                body.append(type(exc))
                raise
    assert caught.value is error
    assert body == [cancelled()]


async def test_7_an_error_in_the_background_comes_out_if_the_body_has_not_noticed():
    error = Background()
    with pytest.raises(Background) as caught:
        async with Tasks() as tasks:
            tasks.start(fail, error)
    assert caught.value is error


async def test_8_several_errors_in_the_background_come_out_as_a_group():
    errors = [Background(), Background()]
    with pytest.raises(ExceptionGroup, match="several tasks failed") as caught:
        async with Tasks() as tasks:
            tasks.start(fail_when_cancelled, errors[0])
            tasks.start(fail_later, errors[1])
            await anyio.sleep_forever()
    assert set(caught.value.exceptions) == set(errors)


async def test_9_a_group_from_one_task_comes_out_as_it_is():
    error = ExceptionGroup("the task's", [Background(), ValueError()])
    with pytest.raises(ExceptionGroup) as caught:
        async with Tasks() as tasks:
            tasks.start(fail, error)
            await anyio.sleep_forever()
    assert caught.value is error


async def test_10_if_the_body_fails_too_the_bodys_error_comes_out():
    error = Body()
    with pytest.raises(Body) as caught:
        async with Tasks() as tasks:
            tasks.start(fail_when_cancelled, Background())
            await settle()
            raise error
    assert caught.value is error


async def test_11_a_body_that_fails_because_it_was_cancelled_comes_out():
    error = Body()
    with pytest.raises(Body) as caught:
        async with Tasks() as tasks:
            tasks.start(fail, Background())
            try:
                await anyio.sleep_forever()
            finally:
                raise error
    assert caught.value is error


async def test_12_a_body_that_swallows_its_cancellation_yields_to_the_error_in_the_background():
    error = Background()
    with pytest.raises(Background) as caught:
        async with Tasks() as tasks:
            tasks.start(fail, error)
            try:
                await anyio.sleep_forever()
            except cancelled():
                pass
    assert caught.value is error


@pytest.mark.loops("trio")  # asyncio lets a task's KeyboardInterrupt fall through run_forever()
async def test_13_keyboard_interrupt_in_the_background_comes_out_flat():
    with pytest.raises(KeyboardInterrupt):
        async with Tasks() as tasks:
            tasks.start(fail, KeyboardInterrupt())
            await anyio.sleep_forever()


async def test_14_keyboard_interrupt_in_the_body_comes_out_flat():
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        async with Tasks() as tasks:
            tasks.start(anyio.sleep_forever)
            raise error
    assert caught.value is error


async def test_15_a_task_may_end_the_body_by_cancelling_its_scope():
    after = []

    async def background(tasks):
        tasks.scope.cancel()

    async with Tasks() as tasks:
        tasks.start(background, tasks)
        await anyio.sleep_forever()
        after.append("not reached")
    assert after == []


# Cancellation from outside


async def test_16_an_outer_scope_cancels_body_and_tasks_and_catches_it():
    ended = []

    async def background():
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    with anyio.CancelScope() as scope:
        async with Tasks() as tasks:
            tasks.start(background)
            await settle()
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert ended == [True]


async def test_17_an_outer_scope_that_is_cancelled_at_the_end_of_the_body_is_not_swallowed_later():
    async def slow():
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await settle()

    with anyio.CancelScope() as scope:
        async with Tasks() as tasks:
            tasks.start(slow)
            await settle()
            scope.cancel()
        await checkpoint()
        pytest.fail("not noticed")
    assert scope.cancelled_caught


async def test_18_a_body_that_fails_inside_a_cancelled_scope_comes_out():
    error = Body()
    with pytest.raises(Body) as caught, anyio.CancelScope() as scope:
        async with Tasks() as tasks:
            tasks.start(anyio.sleep_forever)
            await settle()
            scope.cancel()
            try:
                await anyio.sleep_forever()
            finally:
                raise error
    assert caught.value is error


async def test_19_an_error_in_the_background_inside_a_cancelled_scope_comes_out():
    error = Background()
    with pytest.raises(Background) as caught, anyio.CancelScope() as scope:
        async with Tasks() as tasks:
            tasks.start(fail_when_cancelled, error)
            await settle()
            scope.cancel()
            await anyio.sleep_forever()
    assert caught.value is error


async def test_20_a_scope_inside_the_body_catches_its_own():
    async with Tasks() as tasks:
        tasks.start(anyio.sleep_forever)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        await settle()


@pytest.mark.virtual_time
async def test_21_a_users_timeout_around_it_is_a_timeout_error():
    with pytest.raises(TimeoutError), anyio.fail_after(5):
        async with Tasks() as tasks:
            tasks.start(anyio.sleep_forever)
            await anyio.sleep(3600)


# Task groups in and around it


async def test_22_a_users_task_group_in_the_body_raises_its_error_beside_our_cancellation():
    async def fail_in_cleanup():
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError("the user's")

    with pytest.raises(ExceptionGroup) as caught:
        async with Tasks() as tasks:
            tasks.start(fail_later, Background())
            async with anyio.create_task_group() as group:
                group.start_soon(fail_in_cleanup)
                await anyio.sleep_forever()
    assert [type(exc) for exc in caught.value.exceptions] == [KeyError]


async def test_23_a_users_task_group_in_the_background_raises_its_error_without_our_cancellation():
    async def background():
        async with anyio.create_task_group() as group:
            group.start_soon(fail_when_cancelled, KeyError("the user's"))
            await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        async with Tasks() as tasks:
            tasks.start(background)
            await settle()
    assert [type(exc) for exc in caught.value.exceptions] == [KeyError]


async def test_24_they_nest():
    error = Background()
    with pytest.raises(Background) as caught:
        async with Tasks() as outer:
            outer.start(anyio.sleep_forever)
            async with Tasks() as inner:
                inner.start(fail_later, error)
                await anyio.sleep_forever()
    assert caught.value is error
    with pytest.raises(Background) as caught:
        async with Tasks() as outer:
            outer.start(fail_later, error)
            async with Tasks() as inner:
                inner.start(anyio.sleep_forever)
                await anyio.sleep_forever()
    assert caught.value is error


@pytest.mark.loops("asyncio", "uvloop")
async def test_25_asyncio_timeout_around_it():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            async with Tasks() as tasks:
                tasks.start(anyio.sleep_forever)
                await anyio.sleep_forever()
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.loops("asyncio", "uvloop")
async def test_26_a_native_cancel_of_the_task():
    async def function():
        async with Tasks() as tasks:
            tasks.start(anyio.sleep_forever)
            await anyio.sleep_forever()

    task = asyncio.create_task(function())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.mark.loops("asyncio", "uvloop")
async def test_27_asyncio_task_group_around_it():
    error = Background()

    async def function():
        async with Tasks() as tasks:
            tasks.start(fail_later, error)
            await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(function())
            await asyncio.sleep(3600)
    assert caught.value.exceptions == (error,)
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.loops("asyncio", "uvloop")
async def test_28_a_failing_asyncio_task_group_cancels_it():
    async def function(entered):
        async with Tasks() as tasks:
            tasks.start(anyio.sleep_forever)
            entered.set()
            await anyio.sleep_forever()

    error = Body()
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            entered = asyncio.Event()
            group.create_task(function(entered))
            await entered.wait()
            raise error
    assert caught.value.exceptions == (error,)


@pytest.mark.loops("trio")
async def test_29_a_trio_nursery_around_it():
    import trio

    error = Background()

    async def function():
        async with Tasks() as tasks:
            tasks.start(fail_later, error)
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(function)
            await trio.sleep_forever()
    assert caught.value.exceptions == (error,)


@pytest.mark.loops("trio")
async def test_30_a_trio_nursery_in_the_background_that_is_cancelled_alone_is_no_error():
    import trio

    async def background():
        async with trio.open_nursery(strict_exception_groups=True) as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()

    async with Tasks() as tasks:
        tasks.start(background)
        await settle()


async def test_a_task_that_raises_nothing_but_cancellations_in_a_group_is_no_error():
    async def background():
        try:
            await anyio.sleep_forever()
        except cancelled() as exc:
            raise BaseExceptionGroup("what some libraries make of it", [exc]) from None

    async with Tasks() as tasks:
        tasks.start(background)
        await settle()


async def test_a_body_cancelled_from_outside_yields_to_an_error_in_the_background():
    error = Background()
    with pytest.raises(Background) as caught, anyio.CancelScope() as scope:
        async with Tasks() as tasks:
            tasks.start(fail_when_cancelled, error)
            await settle()
            scope.cancel()
            await checkpoint()
    assert caught.value is error


@pytest.mark.loops("trio")  # asyncio's groups do not mix cancellations in
async def test_a_mixed_group_of_the_body_loses_only_our_cancellation():
    error = Body()
    with pytest.raises(BaseExceptionGroup) as caught:
        async with Tasks() as tasks:
            tasks.start(fail_later, Background())
            try:
                await anyio.sleep_forever()
            except cancelled() as exc:
                raise BaseExceptionGroup("mixed", [exc, error]) from None
    assert caught.value.exceptions == (error,)


# Services


async def test_a_service_outlives_the_cancellation_around_it_and_the_tasks():
    order = []

    async def service():
        try:
            await anyio.sleep_forever()
        finally:
            order.append("service")

    async def task():
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await settle()
            order.append("task")

    with anyio.CancelScope() as scope:
        async with Tasks() as tasks:
            tasks.start_service(service)
            tasks.start(task)
            await settle()
            scope.cancel()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await settle()
                order.append("body")
    assert sorted(order[:2]) == ["body", "task"]
    assert order[2:] == ["service"]


async def test_a_service_that_ends_by_itself_is_forgotten():
    async def service():
        await checkpoint()

    async with Tasks() as tasks:
        tasks.start_service(service)
        await settle()
        assert tasks._services == set()


async def test_a_service_that_fails_comes_out_flat():
    error = Background()
    with pytest.raises(Background) as caught:
        async with Tasks() as tasks:
            tasks.start_service(fail_later, error)
            await anyio.sleep_forever()
    assert caught.value is error


async def test_a_service_whose_owner_left_before_it_ran_is_cancelled():
    ran = []

    async def service():
        await checkpoint()
        ran.append(True)

    async with Tasks() as tasks:
        tasks.start_service(service)
    assert ran == []


# Connections


async def test_a_connection_raises_what_its_body_raised():
    error = Body()
    with pytest.raises(Body) as caught:
        async with connected_pair():
            raise error
    assert caught.value is error
    assert error.__context__ is None


async def test_a_connections_body_may_hold_a_task_group_that_fails():
    error = Body()
    with pytest.raises(ExceptionGroup) as caught:
        async with connected_pair(), anyio.create_task_group() as group:
            group.start_soon(fail, error)
            await anyio.sleep_forever()
    assert caught.value.exceptions == (error,)


async def test_a_connection_is_for_one_block():
    pair = connected_pair()
    async with pair:
        pass
    with pytest.raises(RuntimeError, match="one `async with` only"):
        async with pair:
            pass
