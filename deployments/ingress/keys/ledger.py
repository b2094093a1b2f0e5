"""One place for what every ingress knows of its keys, so that limits hold for all together."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from deployments.contracts.usage import KeyTotals, OtherReports, Report

SILENT_S = 10.0  # after which an ingress counts as gone
FORGET_S = 3600.0  # after which it will not come back: its totals are added up


@dataclass(frozen=True)
class _Heard:
    report: Report
    at: float


class Ledger:
    """Ingresses exchange reports here, about once a second. Knows nothing of Ray.

    Totals never go down when an ingress goes away: what it last said stays. When the ledger itself
    is lost, so is what those had said that were gone before.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: dict[str, _Heard] = {}
        self._forgotten: dict[str, KeyTotals] = {}

    def exchange(self, ingress_id: str, report: Report) -> OtherReports:
        """Takes how the keys of an ingress stand; tells how they stand at all others.

        Args:
            ingress_id: unique for each process, so that one that restarts is another.
        """
        now = self._clock()
        self._forget(now)
        self._heard[ingress_id] = _Heard(report, now)
        others = {key: heard for key, heard in self._heard.items() if key != ingress_id}
        gone = dict(self._forgotten)
        for heard in others.values():
            if now - heard.at > SILENT_S:
                _add(gone, heard.report)
        present = {
            key: _aged(heard.report, now - heard.at)
            for key, heard in others.items()
            if now - heard.at <= SILENT_S
        }
        return OtherReports(present, gone)

    def _forget(self, now: float) -> None:
        for ingress_id, heard in list(self._heard.items()):
            if now - heard.at > FORGET_S:
                _add(self._forgotten, heard.report)
                del self._heard[ingress_id]


def _aged(report: Report, seconds: float) -> Report:
    """A report that is so old: whoever waited then has waited longer."""
    return {
        key: replace(said, oldest_s=said.oldest_s + seconds) if said.waiting else said
        for key, said in report.items()
    }


def _add(totals: dict[str, KeyTotals], report: Report) -> None:
    for key, said in report.items():
        totals[key] = totals.get(key, KeyTotals()) + said.totals
