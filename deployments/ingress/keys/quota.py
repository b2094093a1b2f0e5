"""What every key has of its limits, at this ingress and at the others."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable

from deployments.contracts.jobs import Caller
from deployments.contracts.usage import (
    KeyLimits,
    KeyReport,
    KeyRequests,
    KeyTotals,
    KeyUsage,
    OtherReports,
    Report,
)
from deployments.ingress.keys.account import Account, Elsewhere
from deployments.ingress.keys.keyring import Keyring
from deployments.ingress.keys.lease import Lease

NO_KEY = ""  # the account of whoever asks without a key
PERIOD_S, PATIENCE_S = 1.0, 5.0
log = logging.getLogger("ray.serve.tcd.keys")

Exchange = Callable[[str, Report], Awaitable[OtherReports]]  # `Ledger.exchange`, wherever it is
Show = Callable[[Report, bool], None]


class Quota:
    """Hands out leases. Where nothing is heard of other ingresses, its own counts alone hold.

    Args:
        keys: with `None` nobody needs a key, and nobody has limits.
    """

    def __init__(
        self, keys: Keyring | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.keys = Keyring() if keys is None else keys
        self.ingress_id = uuid.uuid4().hex
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self._others = OtherReports()
        self._silent = False

    def lease(self, caller: Caller, images: int) -> Lease:
        """For one request of `images` images; to be entered with `with`."""
        return Lease(self._account(caller.name), caller, images)

    def may_ask(self, caller: Caller, model: str) -> bool:
        """Whether a caller's key is for this model."""
        return self._account(caller.name).may_ask(model)

    def check(self, caller: Caller, images: int) -> None:
        """Raises `Forbidden` if a caller may never have so many images at a time."""
        self._account(caller.name).check_size(images)

    def report(self) -> Report:
        """How all keys stand here."""
        return {name: account.report() for name, account in self._accounts.items()}

    def hear(self, others: OtherReports) -> None:
        """How all keys stand at the other ingresses."""
        before, self._others = self._others, others
        spent: dict[str, int] = {}
        for ingress_id, report in others.present.items():
            # Of one that was not known yet, nobody can say when its work was done.
            known = before.present.get(ingress_id, report)
            for name, said in report.items():
                more = said.spent - known.get(name, KeyReport()).spent
                spent[name] = spent.get(name, 0) + more
        for name in {*self._accounts, *spent}:
            account = self._account(name)
            if account.name == name:
                account.hear(self._elsewhere(name), spent.get(name, 0))

    async def keep_in_step(
        self,
        exchange: Exchange,
        period_s: float = PERIOD_S,
        show: Show = lambda *_: None,
    ) -> None:
        """Exchanges reports until it is cancelled, and has changed keys read. `show`: is told each
        time how all keys stand here, and whether their file is wrong."""
        while True:
            try:
                await self.keys.renew()
                show(self.report(), self.keys.faulty)
                async with asyncio.timeout(PATIENCE_S):
                    others = await exchange(self.ingress_id, self.report())
                self.hear(others)
                self._silent = False
            except Exception as error:
                if not self._silent:
                    log.warning("limits of keys hold for each ingress by itself: %r", error)
                self._silent = True
                for account in self._accounts.values():
                    account.advance()
            await asyncio.sleep(period_s)

    def usage(self) -> list[KeyUsage]:
        """All keys, in the order of the configuration, then those that it holds no more; of
        requests without a key, if there were any or nobody has one."""
        listed = [entry.name for entry in self.keys.entries] or [NO_KEY]
        return [self.usage_of(name) for name in dict.fromkeys((*listed, *self._accounts))]

    def usage_of(self, name: str) -> KeyUsage:
        """One key at all ingresses together."""
        account, others, entry = self._account(name), self._elsewhere(name), self.keys.named(name)
        here = account.report()
        totals = here.totals + self._others.gone.get(name, KeyTotals())
        for report in self._others.present.values():
            totals += report.get(name, KeyReport()).totals
        return KeyUsage(
            key=name,
            admin=entry is not None and entry.admin,
            requests=KeyRequests(
                answered=totals.answered,
                refused=totals.refused,
                failed=totals.failed,
                cancelled=totals.cancelled,
                moderated=totals.moderated,
            ),
            images=totals.images,
            work=totals.work,
            work_left=account.work_left(),
            running=here.running + others.running,
            waiting=here.waiting + others.waiting,
            limits=KeyLimits()
            if entry is None
            else KeyLimits.model_validate(entry, from_attributes=True),
        )

    def _elsewhere(self, name: str) -> Elsewhere:
        said = [r[name] for r in self._others.present.values() if name in r]
        return Elsewhere(
            running=sum(each.running for each in said),
            waiting=sum(each.waiting for each in said),
            oldest_s=max((each.oldest_s for each in said), default=0.0),
            heard=self._clock(),
        )

    def _account(self, name: str) -> Account:
        """Its own for every key; another application may name whomever it likes, and has those
        counted together."""
        if self.keys.named(name) is None and name not in self._accounts:
            name = NO_KEY
        if name not in self._accounts:
            self._accounts[name] = Account(name, lambda: self.keys.named(name), self._clock)
        return self._accounts[name]
