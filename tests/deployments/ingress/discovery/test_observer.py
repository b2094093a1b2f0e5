"""One look for all: models that are silent, dead, asleep, imported anew, deleted, forgotten."""

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from ray.serve.handle import DeploymentHandle

from configs.names import Names
from deployments.contracts.cards import Availability
from deployments.contracts.figures import ModelFigures
from deployments.ingress.discovery import observer as observer_module
from deployments.ingress.discovery.applications import Applications, Replicas, Seen
from deployments.ingress.discovery.observer import Observer
from deployments.ingress.discovery.outlook import Snapshot
from tests.deployments.ingress.fakes import FakeModel, card

UP = Replicas(up=2, none=False, asleep=False)
STARTING = Replicas(up=0, none=False, asleep=False)
ASLEEP = Replicas(up=0, none=True, asleep=True)
NONE = Replicas(up=0, none=True, asleep=False)
RUNNING = Seen("RUNNING", UP)
SLEEPING = Seen("RUNNING", ASLEEP)
IMPORTING = Seen("DEPLOYING", None)


class FakeServe(Applications):
    """A controller that says what it is told to say, of models that are as they are."""

    def __init__(self, **models: Seen) -> None:
        self.seen: dict[str, Seen] = models
        self.models = {name: FakeModel(name) for name in models}
        self.looks = 0
        self.fails: Exception | None = None
        self.free = threading.Event()
        self.free.set()

    def look(self) -> Mapping[str, Seen]:
        self.looks += 1
        self.free.wait(20)
        if self.fails is not None:
            raise self.fails
        return dict(self.seen)

    def handle(self, model: str) -> DeploymentHandle[object]:
        return self.models[model].handle


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer_module, "ANSWER_S", 0.05)
    monkeypatch.setattr(observer_module, "COUNT_S", 0.05)
    monkeypatch.setattr(observer_module, "LEAST_S", 0.01)


@asynccontextmanager
async def observing(applications: Applications, period_s: float = 0.02) -> AsyncIterator[Observer]:
    observer = Observer(applications, period_s)
    task = asyncio.create_task(observer.run())
    try:
        yield observer
    finally:
        task.cancel()


async def becomes(observer: Observer, **wanted: Availability) -> Snapshot:
    """The snapshot in which the models are so."""
    snapshot: Snapshot | None = None
    async with asyncio.timeout(30):
        while snapshot is None or {
            name: model.availability for name, model in snapshot.models.items()
        } != dict(wanted):
            known = ("", 0) if snapshot is None else (snapshot.directory, snapshot.number)
            snapshot = await observer.watch(*known)
    return snapshot


async def stays(observer: Observer, applications: FakeServe, **wanted: Availability) -> None:
    """The models are so, now and after some more looks."""
    before = applications.looks
    while applications.looks < before + 4:
        await becomes(observer, **wanted)
        await asyncio.sleep(0.01)


def test_models_and_their_cards() -> None:
    async def check() -> None:
        applications = FakeServe(one=RUNNING, two=Seen("DEPLOYING", STARTING))
        applications.models["two"].replicas = 0
        async with observing(applications) as observer:
            snapshot = await becomes(observer, one="ready", two="starting")
            assert snapshot.models["one"].card == card("one")
            assert snapshot.models["two"].card is None
            applications.models["two"].replicas = 1
            applications.seen["two"] = RUNNING
            await becomes(observer, one="ready", two="ready")

    asyncio.run(check())


def test_a_model_whose_handle_comes_later() -> None:
    class Late(FakeServe):
        def handle(self, model: str) -> DeploymentHandle[object]:
            if self.looks < 4:
                raise KeyError(f"Deployment 'Diffusion' in {model!r} does not exist.")
            return super().handle(model)

    async def check() -> None:
        applications = Late(dozer=SLEEPING)
        async with observing(applications) as observer:
            snapshot = await becomes(observer, dozer="asleep")
            assert snapshot.models["dozer"].handle is None
            async with asyncio.timeout(30):
                later = await observer.watch(snapshot.directory, snapshot.number)
            assert later is not None
            assert later.models["dozer"].handle is applications.models["dozer"].handle

    asyncio.run(check())


def test_a_card_is_renewed() -> None:
    async def check() -> None:
        applications = FakeServe(one=RUNNING)
        async with observing(applications) as observer:
            snapshot = await becomes(observer, one="ready")
            applications.models["one"].card = card("one", created=9)
            newer: Snapshot | None = snapshot
            async with asyncio.timeout(30):
                while newer is not None and newer.models["one"].card != card("one", created=9):
                    newer = await observer.watch(newer.directory, newer.number)
            assert newer is not None

    asyncio.run(check())


def test_a_silent_model_delays_no_other() -> None:
    async def check() -> None:
        applications = FakeServe(dumb=RUNNING, one=RUNNING)
        applications.models["dumb"].silent = 1
        async with observing(applications) as observer:
            await becomes(observer, dumb="starting", one="ready")
            await becomes(observer, dumb="silent", one="ready")
            asked = applications.models["dumb"].asked
            # One call at a time, however long it takes.
            assert len(asked) <= 4
            applications.models["dumb"].silent = 0
            await becomes(observer, dumb="ready", one="ready")
            # One that is silent later keeps its card.
            applications.models["dumb"].silent = 1
            snapshot = await becomes(observer, dumb="silent", one="ready")
            assert snapshot.models["dumb"].card == card("dumb")

    asyncio.run(check())


def test_one_silent_replica_of_two() -> None:
    async def check() -> None:
        applications = FakeServe(one=RUNNING)
        applications.models["one"].replicas = 2
        applications.models["one"].silent = 1
        async with observing(applications) as observer:
            await becomes(observer, one="ready")
            await stays(observer, applications, one="ready")

    asyncio.run(check())


def test_a_model_is_known_while_serve_imports_it_anew_or_says_nothing() -> None:
    async def check() -> None:
        applications = FakeServe(one=RUNNING)
        async with observing(applications) as observer:
            await becomes(observer, one="ready")
            applications.seen["one"] = IMPORTING
            await stays(observer, applications, one="ready")
            applications.seen["one"] = Seen("DEPLOY_FAILED", None)  # its args were refused
            await stays(observer, applications, one="ready")
            applications.seen["one"] = Seen("DEPLOY_FAILED", UP)  # the new replica did not start
            await stays(observer, applications, one="ready")
            applications.fails = LookupError("the controller begins anew")
            await stays(observer, applications, one="ready")

    asyncio.run(check())


def test_a_directory_that_begins_while_serve_imports_a_model_asks_that_model() -> None:
    async def check() -> None:
        applications = FakeServe(one=Seen("DEPLOY_FAILED", None), two=IMPORTING)
        applications.models["two"].replicas = 0
        async with observing(applications) as observer:
            await becomes(observer, one="ready", two="starting")

    asyncio.run(check())


def test_a_busy_controller_delays_no_answer() -> None:
    async def check() -> None:
        applications = FakeServe(one=RUNNING)
        async with observing(applications) as observer:
            snapshot = await becomes(observer, one="ready")
            applications.free.clear()
            await asyncio.sleep(0.05)
            try:
                async with asyncio.timeout(10):  # the controller is busy for longer
                    assert await observer.watch("", 0) == snapshot
                    assert (await observer.figures())["one"].engines
            finally:
                applications.free.set()

    asyncio.run(check())


@pytest.mark.parametrize("deleting", [True, False])
def test_a_model_goes(deleting: bool) -> None:
    async def check() -> None:
        applications = FakeServe(one=RUNNING, two=RUNNING)
        async with observing(applications) as observer:
            await becomes(observer, one="ready", two="ready")
            if deleting:
                applications.seen["one"] = Seen("DELETING", UP)
            else:
                del applications.seen["one"]
            await becomes(observer, two="ready")

    asyncio.run(check())


def test_a_model_that_one_look_misses_stays() -> None:
    class Flapping(FakeServe):
        def look(self) -> Mapping[str, Seen]:
            seen = super().look()
            return {} if self.looks % 2 else seen

    async def check() -> None:
        applications = Flapping(one=RUNNING)
        async with observing(applications) as observer:
            await becomes(observer, one="ready")
            await stays(observer, applications, one="ready")

    asyncio.run(check())


def test_nothing_is_said_before_two_looks() -> None:
    async def check() -> None:
        applications = FakeServe(one=RUNNING)
        observer = Observer(applications, 0.0)
        assert await observer.look() is None
        snapshot = await observer.look()
        assert snapshot is not None
        assert list(snapshot.models) == ["one"]

    asyncio.run(check())


def test_new_names_are_told_at_once() -> None:
    async def check() -> None:
        async with observing(FakeServe(one=RUNNING), period_s=60.0) as observer:
            snapshot = await becomes(observer, one="ready")
            assert snapshot.names is None
            names = Names({"public": {"one": 1.0}})
            observer.rename(names)
            async with asyncio.timeout(10):
                told = await observer.watch(snapshot.directory, snapshot.number)
            assert told is not None
            assert (told.names, told.models) == (names, snapshot.models)
            observer.keep_names("they are none")
            async with asyncio.timeout(10):
                kept = await observer.watch(told.directory, told.number)
            assert kept is not None
            assert (kept.names, kept.names_fault) == (names, "they are none")
            observer.rename(names)
            async with asyncio.timeout(10):
                told = await observer.watch(kept.directory, kept.number)
            assert told is not None
            assert told.names_fault is None
            observer.rename(Names({"public": {"one": 1.0}}))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await observer.watch(told.directory, told.number)

    asyncio.run(check())


def test_a_model_that_sleeps_is_not_woken() -> None:
    async def check() -> None:
        applications = FakeServe(one=RUNNING, dozer=SLEEPING)
        dozer = applications.models["dozer"]
        dozer.replicas, dozer.asleep = 0, True
        async with observing(applications) as observer:
            await becomes(observer, one="ready", dozer="asleep")
            await observer.figures()
            await stays(observer, applications, one="ready", dozer="asleep")
            assert dozer.asked == []
            # Somebody else wakes it: it says what it is, and that stays known when it sleeps.
            dozer.replicas, applications.seen["dozer"] = 1, RUNNING
            await becomes(observer, one="ready", dozer="ready")
            dozer.replicas, applications.seen["dozer"] = 0, SLEEPING
            snapshot = await becomes(observer, one="ready", dozer="asleep")
            assert snapshot.models["dozer"].card == card("dozer")

    asyncio.run(check())


def test_a_model_is_given_up_when_serve_has_given_it_up_and_nothing_of_it_is_left() -> None:
    async def check() -> None:
        applications = FakeServe(one=RUNNING)
        async with observing(applications) as observer:
            await becomes(observer, one="ready")
            applications.models["one"].replicas = 0
            # A replica died: another one comes, even if one look finds neither.
            applications.seen["one"] = Seen("UNHEALTHY", NONE)
            await stays(observer, applications, one="starting")
            # The last replica of before still answers what it had begun.
            applications.seen["one"] = Seen("DEPLOY_FAILED", STARTING)
            await stays(observer, applications, one="starting")
            applications.seen["one"] = Seen("DEPLOY_FAILED", NONE)
            await becomes(observer, one="failed")

    asyncio.run(check())


def test_looks_that_are_asked_for_are_not_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer_module, "LEAST_S", 0.2)

    async def check() -> None:
        applications = FakeServe(one=RUNNING)
        observer = Observer(applications, 10.0)
        started = asyncio.get_running_loop().time()
        for _ in range(40):
            await observer.look()
            await asyncio.sleep(0.01)
        took = asyncio.get_running_loop().time() - started
        assert applications.looks <= took / 0.2 + 1

    asyncio.run(check())


def test_figures_of_a_silent_model_are_its_last_ones() -> None:
    async def check() -> dict[str, ModelFigures]:
        applications = FakeServe(dumb=RUNNING, one=RUNNING)
        async with observing(applications) as observer:
            await becomes(observer, dumb="ready", one="ready")
            figures = await observer.figures()
            assert figures["dumb"].engines[0].steps_total == 7
            applications.models["dumb"].silent = 1
            await asyncio.sleep(0.1)
            started = asyncio.get_running_loop().time()
            figures = await observer.figures()
            assert asyncio.get_running_loop().time() - started < 5
            return figures

    figures = asyncio.run(check())
    assert figures["dumb"].engines[0].steps_total == 7
    assert figures["dumb"].age_s >= figures["one"].age_s + 0.1
