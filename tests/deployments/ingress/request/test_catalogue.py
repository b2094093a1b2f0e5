"""What an ingress knows of the models, and what it makes of it for a request."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from deployments.contracts.cards import Availability
from deployments.contracts.errors import InvalidRequest, NotFound, NotReady
from deployments.ingress.request import catalogue as catalogue_module
from tests.deployments.ingress.fakes import FakeModel, card, following, heard, outlook


def run(check: Any) -> None:
    asyncio.run(asyncio.wait_for(check(), 10))


def test_a_model_is_found_at_once() -> None:
    async def check() -> None:
        async with following(outlook("one"), outlook("two", "silent")) as (catalogue, directory):
            for name in ("one", "two"):
                assert (await catalogue.find(name)).card == card(name)
            assert directory.looks == 0

    run(check)


def test_the_first_request_waits_for_the_first_snapshot() -> None:
    async def check() -> None:
        async with following() as (catalogue, directory):
            assert not catalogue.ready([])
            assert isinstance(catalogue.absence("one", 5), NotReady)
            finding = asyncio.create_task(catalogue.find("one"))
            await heard()
            assert not finding.done()
            directory.say(outlook("one"))
            assert (await finding).card == card("one")

    run(check)


def test_cards_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_module, "FIRST_S", 0.02)

    async def check() -> None:
        async with following() as (catalogue, _):
            with pytest.raises(NotReady, match="nothing is known"):
                await catalogue.cards()

    run(check)


def test_a_request_waits_for_a_handle() -> None:
    async def check() -> None:
        async with following(replace(outlook("one"), handle=None)) as (catalogue, directory):
            finding = asyncio.create_task(catalogue.find("one"))
            await heard()
            assert not finding.done()
            directory.say(outlook("one"))
            assert (await finding).card == card("one")

    run(check)


def test_a_flood_for_unknown_models_costs_one_look_a_second() -> None:
    async def check() -> None:
        async with following(outlook("one")) as (catalogue, directory):
            for _ in range(20):
                with pytest.raises(NotFound, match="'nobody' does not exist; models: one"):
                    await catalogue.find("nobody")
            assert directory.looks == 1

    run(check)


def test_a_model_that_was_just_deployed_is_found() -> None:
    async def check() -> None:
        async with following(outlook("one")) as (catalogue, directory):
            directory.at_a_look = lambda: directory.say(outlook("one"), outlook("guest"))
            found = await asyncio.gather(*(catalogue.find("guest") for _ in range(5)))
            assert {model.card.id for model in found} == {"guest"}
            assert directory.looks == 1

    run(check)


def test_a_silent_directory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_module, "SEEK_PATIENCE_S", 0.02)
    monkeypatch.setattr(catalogue_module, "WATCH_S", 0.02)
    monkeypatch.setattr(catalogue_module, "RETRY_S", 0.02)

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    async def check() -> None:
        async with following(outlook("one")) as (catalogue, directory):
            monkeypatch.setattr(directory.watch, "_call", never)
            monkeypatch.setattr(directory.look, "_call", never)
            await asyncio.sleep(0.1)
            assert (await catalogue.find("one")).card == card("one")
            with pytest.raises(NotFound):
                await catalogue.find("nobody")

    run(check)


def test_a_new_directory_forgets_no_card_and_no_handle() -> None:
    async def check() -> None:
        model = FakeModel("one")
        async with following(outlook("one", handle=model)) as (catalogue, directory):
            again = outlook("one", "asleep", FakeModel("one"), described=False)
            directory.say(again, directory="two")
            await heard()
            assert catalogue.outlooks()["one"].availability == "asleep"
            found = await catalogue.find("one")
            assert found.card == card("one")
            assert found.handle is model.handle
            assert model.asked == []

    run(check)


def test_a_model_that_went_is_forgotten_with_its_handle() -> None:
    async def check() -> None:
        first, second = FakeModel("one"), FakeModel("one")
        async with following(outlook("one", handle=first)) as (catalogue, directory):
            directory.say()
            await heard()
            with pytest.raises(NotFound, match="none is deployed"):
                await catalogue.find("one")
            directory.say(outlook("one", handle=second))
            await heard()
            assert (await catalogue.find("one")).handle is second.handle

    run(check)


def test_a_model_that_was_never_described_is_woken_by_its_first_request_alone() -> None:
    async def check() -> None:
        model = FakeModel("one", replicas=0)
        model.asleep = True
        async with following(outlook("one", "asleep", model, described=False)) as (catalogue, _):
            assert await catalogue.cards() == []
            assert catalogue.ready([])
            catalogue.outlooks()
            assert model.asked == []
            assert (await catalogue.find("one")).card == card("one")
            assert model.asked == ["describe"]
            await catalogue.find("one")
            assert model.asked == ["describe"]
            assert await catalogue.cards() == [card("one")]

    run(check)


@pytest.mark.parametrize("described", [True, False])
def test_a_model_that_is_not_to_be_woken_sleeps_on(described: bool) -> None:
    async def check() -> None:
        model = FakeModel("one", replicas=0)
        model.asleep = True
        asleep = outlook("one", "asleep", model, described=described)
        async with following(asleep) as (catalogue, directory):
            with pytest.raises(NotReady, match="no replica of model 'one' runs now"):
                await catalogue.find("one", wake=False)
            assert model.asked == []
            directory.say(outlook("one", "ready", model))
            await heard()
            assert (await catalogue.find("one", wake=False)).card == card("one")

    run(check)


def test_waiting_ends_when_the_model_is_given_up() -> None:
    async def check() -> None:
        model = FakeModel("one", replicas=0)
        starting = outlook("one", "starting", model, described=False, state="DEPLOYING")
        async with following(starting, outlook("two")) as (catalogue, directory):
            finding = asyncio.create_task(catalogue.find("one"))
            await heard()
            absence = catalogue.absence("one", 5)
            assert absence is not None
            assert "is being started and was not ready within 5 s" in str(absence)
            assert not finding.done()
            directory.say(
                outlook("one", "failed", model, described=False, state="DEPLOY_FAILED"),
                outlook("two"),
            )
            with pytest.raises(TimeoutError):
                await finding
            assert "does not run: deploy_failed" in str(catalogue.absence("one", 5))
            with pytest.raises(NotReady, match="does not run: deploy_failed"):
                await catalogue.find("one")
            assert catalogue.absence("two", 5) is None

    run(check)


def test_a_call_to_a_model_that_fails_is_not_cut_while_a_replica_is_left() -> None:
    async def check() -> None:
        async with (
            following(outlook("one")) as (catalogue, directory),
            catalogue.waiting("one", None),
        ):
            for availability in LEFT:
                directory.say(outlook("one", availability))
                await heard()
            directory.say()
            await heard()

    run(check)


LEFT: tuple[Availability, ...] = ("starting", "silent", "asleep")
READY: list[tuple[dict[str, Availability], str | None, bool]] = [
    # what the models are doing, the default model, whether this ingress can serve
    ({"one": "ready"}, None, True),
    ({"one": "ready", "two": "failed"}, None, True),
    ({"one": "asleep"}, None, True),
    ({"one": "silent", "two": "starting"}, None, False),
    ({}, None, False),
    ({"one": "starting", "two": "ready"}, "one", False),
    ({"one": "ready", "two": "starting"}, "one", True),
    ({"one": "failed", "two": "ready"}, "one", True),
    ({"one": "silent", "two": "ready"}, "one", True),
    ({"two": "ready"}, "one", True),
]


@pytest.mark.parametrize(("models", "default", "ready"), READY)
def test_readiness(models: dict[str, Availability], default: str | None, ready: bool) -> None:
    async def check() -> None:
        said = [outlook(n, a, described=a != "starting") for n, a in models.items()]
        async with following(*said) as (catalogue, _):
            assert catalogue.ready([] if default is None else [default]) == ready
            for name, availability in models.items():
                assert catalogue.ready([] if default is None else [default], [[name]]) == (
                    availability in ("ready", "asleep")
                )
            assert not catalogue.ready([] if default is None else [default], [["nobody"]])

    run(check)


def test_a_default_model_that_is_replaced_takes_no_other_with_it() -> None:
    async def check() -> None:
        async with following(outlook("one"), outlook("two")) as (catalogue, directory):
            directory.say(outlook("one", "starting", described=False), outlook("two"))
            await heard()
            assert catalogue.ready(["one"])
            assert not catalogue.ready(["one"], [["one"]])

    run(check)


def test_the_only_model() -> None:
    async def check() -> None:
        async with following(outlook("one")) as (catalogue, directory):
            assert await catalogue.only() == "one"
            directory.say(outlook("one"), outlook("two"))
            await heard()
            with pytest.raises(InvalidRequest, match="one of one, two"):
                await catalogue.only()
            directory.say()
            await heard()
            with pytest.raises(NotReady, match="no model is deployed"):
                await catalogue.only()

    run(check)
