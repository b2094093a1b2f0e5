"""Batches that are called off, and whose workers die: what was done before is in their files."""

import asyncio
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from configs.app import ServiceArgs
from configs.jobs import JobsArgs
from deployments.contracts.batches import BatchBody
from deployments.contracts.errors import NotReady
from deployments.contracts.jobs import ImageRequest
from deployments.ingress.jobs import batches
from deployments.ingress.jobs.asked import ImageAsked
from deployments.ingress.jobs.batches import batch_card
from deployments.ingress.jobs.desk import Desk
from deployments.ingress.request.assembly import Outline
from deployments.ingress.request.service import Service
from deployments.jobs.objects import Listed
from deployments.jobs.record import JobRecord
from deployments.jobs.records import OPEN, RECORDS
from tests.deployments.ingress.jobs.test_working import ALICE, House, run

LINES = 30
ARGS = ServiceArgs(default_model="sd15", jobs=JobsArgs(lease_s=2.0, poll_s=0.05, batch_at_once=1))


async def begun(house: House, asked: Mapping[int, Mapping[str, Any]] = {}) -> JobRecord:
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/images/generations",
            "body": {"prompt": f"ball {number}", **asked.get(number, {})},
        }
        for number in range(LINES)
    ]
    text = "\n".join(map(json.dumps, lines)).encode()
    file = await house.desk.keep_file(text, "lines.jsonl", "batch", ALICE)
    body = BatchBody(
        input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h"
    )
    return await house.desk.begin_batch(body, None, ALICE, "http://here")


async def standing(house: House, batch: JobRecord) -> tuple[JobRecord, Iterable[JobRecord]]:
    record, lines = await house.desk.with_lines(batch)
    return record, lines.values()


async def until_some_are_done(house: House, batch: JobRecord) -> None:
    until = time.monotonic() + 20
    while True:
        _, lines = await house.desk.with_lines(batch)
        if sum(line.status == "completed" for line in lines.values()) >= 2:
            return
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


async def ended(house: House, batch: JobRecord) -> JobRecord:
    record = await house.desk.get(batch.id, None, "batch")
    return await house.desk.ended(record, 120)


async def answers(house: House, batch: JobRecord, name: str) -> dict[str, Any]:
    file = await house.desk.get(str(batch.outcome[f"{name}_file_id"]), None, "file")
    lines = (await house.desk.content(file)).splitlines()
    return {answer["custom_id"]: answer for answer in map(json.loads, lines)}


def test_a_batch_that_is_called_off_while_nobody_does_it(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        house.replica.go.set()
        batch = await begun(house)
        worker = house.hire()
        await until_some_are_done(house, batch)
        await house.kill(worker)
        called_off = await house.desk.cancel(batch.id, "alice", "batch")
        _, lines = await house.desk.with_lines(batch)
        assert batch_card(called_off, lines.values()).status == "cancelling"
        assert (await house.desk.cancel(batch.id, "alice", "batch")) == called_off
        house.hire()
        done = await ended(house, batch)
        assert batch_card(done, []).status == "cancelled"
        good, bad = await answers(house, done, "output"), await answers(house, done, "error")
        assert 2 <= len(good) < LINES
        assert good.keys() | bad.keys() == {str(number) for number in range(LINES)}
        assert len(good) + len(bad) == LINES
        assert {answer["error"]["code"] for answer in bad.values()} == {"batch_cancelled"}
        _, lines = await house.desk.with_lines(batch)
        assert all(line.ended for line in lines.values())
        completed = sum(line.status == "completed" for line in lines.values())
        assert completed == len(good) == batch_card(done, []).request_counts.completed

    run(House(tmp_path, ARGS), live)


def test_one_that_waits_is_never_begun(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        batch = await begun(house)
        await house.desk.cancel(batch.id, "alice", "batch")
        house.hire()
        done = await ended(house, batch)
        assert (done.status, done.outcome["completed"]) == ("cancelled", 0)
        assert len(await answers(house, done, "error")) == LINES
        assert not house.replica.jobs

    run(House(tmp_path, ARGS), live)


def test_one_whose_time_is_over_stops_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def live(house: House) -> None:
        batch = await begun(house)
        house.hire()
        while not house.replica.jobs:  # a line is at the device
            await asyncio.sleep(0.01)
        monkeypatch.setattr(batches, "WINDOW_S", 0.0)
        done = await ended(house, batch)
        assert batch_card(done, []).status == "expired"
        bad = await answers(house, done, "error")
        assert {answer["error"]["code"] for answer in bad.values()} == {"batch_expired"}
        assert len(bad) == LINES
        _, lines = await house.desk.with_lines(batch)
        assert {line.status for line in lines.values()} == {"cancelled"}

    run(House(tmp_path, ARGS), live)


def test_a_line_that_is_deleted(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        batch = await begun(house)
        house.hire()
        while not house.replica.jobs:
            await asyncio.sleep(0.01)
        _, lines = await house.desk.with_lines(batch)
        at_work = next(line for line in lines.values() if line.status == "in_progress")
        await house.desk.forget(at_work)  # at once: nobody sees it cancelled before
        house.replica.go.set()
        done = await ended(house, batch)
        assert done.status == "completed"
        assert len(await answers(house, done, "output")) == LINES - 1
        (told,) = (await answers(house, done, "error")).values()
        assert told["error"] == {"code": "not_found", "message": "its job was deleted"}

    run(House(tmp_path, ARGS), live)


def blinded(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether looks show no lines: its one item may be set."""
    with_lines, blind = Desk.with_lines, [False]

    async def looked(
        desk: Desk, batch: JobRecord, fresh_s: float = 0.0
    ) -> tuple[JobRecord, dict[str, JobRecord]]:
        now, lines = await with_lines(desk, batch, fresh_s)
        return now, {} if blind[0] else lines

    monkeypatch.setattr(Desk, "with_lines", looked)
    return blind


def test_lines_that_a_look_does_not_show_are_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "LOOK_S", 0.05)
    blind = blinded(monkeypatch)

    async def live(house: House) -> None:
        batch = await begun(house)
        house.hire()
        while not house.replica.jobs:
            await asyncio.sleep(0.01)
        blind[0] = True
        await asyncio.sleep(0.5)
        blind[0] = False
        house.replica.go.set()
        done = await ended(house, batch)
        assert len(await answers(house, done, "output")) == LINES

    run(House(tmp_path, ARGS), live)


@pytest.mark.parametrize("by", ["call", "time"])
def test_nor_are_they_when_the_batch_is_ended_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """What was done before stands in its files, and what was not is stopped."""
    monkeypatch.setattr(batches, "LOOK_S", 0.2)
    blind = blinded(monkeypatch)

    async def live(house: House) -> None:
        house.replica.go.set()
        batch = await begun(house)
        worker = house.hire()
        await until_some_are_done(house, batch)
        house.replica.go.clear()
        while True:  # another line is at the device, and stays there
            _, lines = await house.desk.with_lines(batch)
            if any(line.status == "in_progress" for line in lines.values()):
                break
            await asyncio.sleep(0.05)
        await house.kill(worker)
        blind[0] = True
        if by == "call":
            await house.desk.cancel(batch.id, "alice", "batch")
        else:
            monkeypatch.setattr(batches, "WINDOW_S", 0.0)
        house.hire()
        done = await ended(house, batch)
        blind[0] = False
        _, lines = await house.desk.with_lines(batch)
        assert {line.status for line in lines.values()} == {"completed", "cancelled"}
        completed = sum(line.status == "completed" for line in lines.values())
        assert len(await answers(house, done, "output")) == completed >= 2
        assert len(await answers(house, done, "error")) == LINES - completed

    run(House(tmp_path, ARGS), live)


def open_name(line: JobRecord) -> str:
    return f"{OPEN}{line.id}.{line.folder.split('/')[1]}"


async def one_that_waits(house: House, batch: JobRecord) -> JobRecord:
    """A line that was handed in, to the last write of that."""
    while True:
        _, lines = await house.desk.with_lines(batch)
        for line in lines.values():
            if line.status == "queued" and house.objects.read(open_name(line)) is not None:
                return line
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", [OPEN, RECORDS])
def test_a_line_that_cannot_be_read_keeps_no_batch_that_is_called_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A later release may have written it."""
    monkeypatch.setattr(batches, "LOOK_S", 0.05)

    async def live(house: House) -> None:
        batch = await begun(house)
        house.hire()
        while not house.replica.jobs:
            await asyncio.sleep(0.01)
        queued = await one_that_waits(house, batch)
        name = open_name(queued) if kind == OPEN else f"{kind}{queued.id}"
        stored = house.objects.read(name)
        assert stored is not None
        house.objects.replace(name, b"{}", stored.tag)
        _, lines = await house.desk.with_lines(batch)
        assert (queued.id in lines) is (kind == RECORDS)
        await house.desk.cancel(batch.id, "alice", "batch")
        done = await ended(house, batch)
        assert len(await answers(house, done, "error")) == LINES

    run(House(tmp_path, ARGS), live)


def test_a_line_that_may_be_taken_later_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its model does not run."""
    monkeypatch.setattr(batches, "LOOK_S", 0.05)
    check_job, runs = Service.check_job, [False]

    async def checked(service: Service, request: Any, caller: Any) -> Outline:
        if request.prompt == "ball 1" and not runs[0]:
            raise NotReady("model 'broken' does not run")
        return await check_job(service, request, caller)

    monkeypatch.setattr(Service, "check_job", checked)

    async def live(house: House) -> None:
        house.replica.go.set()
        batch = await begun(house)
        house.hire()
        until = time.monotonic() + 30
        lines: dict[str, JobRecord] = {}
        while sum(line.status == "completed" for line in lines.values()) < LINES - 1:
            assert time.monotonic() < until
            _, lines = await house.desk.with_lines(batch)
            await asyncio.sleep(0.05)
        runs[0] = True
        done = await ended(house, batch)
        assert len(await answers(house, done, "output")) == LINES

    run(House(tmp_path, ARGS), live)


def test_lines_that_are_refused_count_while_it_goes_on(tmp_path: Path) -> None:
    asked: dict[int, dict[str, Any]] = {
        0: {"webhook_url": "https://example.com"},
        1: {"priority": 5},
        2: {"async": True},
        3: {"num_inference_steps": 1000},
    }

    async def live(house: House) -> None:
        batch = await begun(house, asked)
        house.hire()  # and the replica answers nobody
        until = time.monotonic() + 30
        while (counts := batch_card(*await standing(house, batch)).request_counts).failed < 4:
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        assert (counts.total, counts.completed, counts.failed) == (LINES, 0, 4)
        house.replica.go.set()
        done = await ended(house, batch)
        card = batch_card(*await standing(house, done))
        assert (card.request_counts.completed, card.request_counts.failed) == (LINES - 4, 4)
        bad = await answers(house, done, "error")
        said = {name: answer["response"]["body"]["error"] for name, answer in bad.items()}
        assert [said[str(n)]["param"] for n in asked] == [
            next(iter(body)) for body in asked.values()
        ]
        assert "is not taken in a batch" in said["0"]["message"]

    run(House(tmp_path, ARGS), live)


def test_its_lines_cost_few_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker has written itself it need not read."""

    async def live(house: House) -> None:
        house.replica.go.set()
        looks = 0
        listed = house.objects.listed

        def counted(prefix: str) -> Iterator[Listed]:
            nonlocal looks
            looks += prefix == OPEN
            return listed(prefix)

        batch = await begun(house)
        monkeypatch.setattr(house.objects, "listed", counted)
        began = time.monotonic()
        house.hire()
        done = await ended(house, batch)
        assert done.outcome["completed"] == LINES
        assert looks <= (time.monotonic() - began) / 0.25 + 4  # twice a second each of two

    slow = ARGS.model_copy(update={"jobs": ARGS.jobs.model_copy(update={"poll_s": 0.5})})
    run(House(tmp_path, slow), live)


def test_it_waits_for_no_other_batch(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        several = [await begun(house) for _ in range(3)]
        house.hire()  # nothing is done
        for batch in several:  # its time passes whether it is begun or not
            await house.until(batch, "in_progress")
        await house.desk.cancel(several[2].id, "alice", "batch")
        assert (await ended(house, several[2])).status == "cancelled"

    one = ARGS.model_copy(update={"jobs": ARGS.jobs.model_copy(update={"at_once": 1})})
    run(House(tmp_path, one), live)


def test_what_is_in_the_background_leaves_room(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        low = [
            await house.desk.submit(ImageAsked(request=ImageRequest(f"a {n}", priority=-10)))
            for n in range(4)
        ]
        house.hire()
        await house.until(low[0], "in_progress")
        usual = await house.desk.submit(ImageAsked(request=ImageRequest("b")))
        await house.until(usual, "in_progress")
        begun_low = [one for one in low if (await house.desk.get(one.id)).status == "in_progress"]
        assert len(begun_low) == 1  # batch_at_once

    two = ARGS.model_copy(update={"jobs": ARGS.jobs.model_copy(update={"at_once": 1})})
    run(House(tmp_path, two), live)
