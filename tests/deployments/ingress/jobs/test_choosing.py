"""Which jobs a worker takes beside those that it has."""

import pytest

from deployments.contracts.jobs import BACKGROUND
from deployments.ingress.jobs import choosing
from deployments.ingress.jobs.choosing import Choosing
from deployments.jobs.queue import MOST_ATTEMPTS
from deployments.jobs.record import JobRecord, Kind


def job(name: str, kind: Kind = "image", attempts: int = 0, priority: int = 0) -> JobRecord:
    return JobRecord(
        id=name,
        kind=kind,
        owner="alice",
        digest="",
        request={},
        folder=f"files/{name}/",
        created_at=0.0,
        attempts=attempts,
        priority=priority,
    )


SUSPECT = job("suspect", attempts=MOST_ATTEMPTS - 1)
ITS_LAST = job("suspect", attempts=MOST_ATTEMPTS)
OTHER, LINE, BATCH = job("other"), job("line", priority=BACKGROUND), job("batch", "batch")


def test_each_kind_has_places_of_its_own() -> None:
    mine = Choosing(at_once=2, batch_at_once=1)
    mine.begin([])
    for taken in (job("a"), LINE, BATCH, job("b")):
        assert mine.may_take(taken)
        mine.taken(taken)
        assert not mine.may_take(taken), "it has it"
    assert not mine.may_take(OTHER)
    assert not mine.may_take(job("line 2", priority=BACKGROUND))
    assert mine.may_take(job("batch 2", "batch"))
    mine.begin([job("b")])
    assert mine.may_take(OTHER)


def test_a_last_chance_is_taken_alone() -> None:
    mine = Choosing(at_once=8, batch_at_once=8)
    for busy in (OTHER, LINE):
        mine.begin([busy])
        assert not mine.may_take(SUSPECT)
        assert mine.may_take(job("a")), "for a while others may be idle"
    mine.begin([BATCH])
    assert mine.may_take(SUSPECT), "a batch computes nothing"
    mine.taken(ITS_LAST)
    assert not mine.may_take(OTHER)
    assert not mine.may_take(LINE)
    assert mine.may_take(job("batch 2", "batch"))


def test_who_is_busy_takes_no_others_when_a_last_chance_has_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choosing, "LAST_CHANCE_S", (20.0, 20.0))
    now = [100.0]
    mine = Choosing(at_once=8, batch_at_once=8, clock=lambda: now[0])

    def look(*waits: JobRecord, whole: bool = True) -> list[str]:
        mine.begin([OTHER])
        may = [one.id for one in waits if mine.may_take(one)]
        if whole:
            mine.end()
        return may

    a = job("a")
    assert look(SUSPECT, a) == ["a"]
    now[0] += 19
    assert look(whole=False) == [], "what a look that broke off did not see still waits"
    assert look(SUSPECT, a) == ["a"]
    now[0] += 2
    assert look(a, SUSPECT) == []
    assert look(a) == [], "it was there at the last look"
    assert look(a) == ["a"]
    assert look(SUSPECT, a) == ["a"], "another worker had it, and it waits anew"
