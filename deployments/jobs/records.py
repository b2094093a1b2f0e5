"""Where the records of jobs are, and what of them has been seen.

`jobs/ID` is there from when a job is accepted until it is forgotten. While it is open, what becomes
of it is written to `open/ID.FOLDER` (its own name, even if another had its id before); when it has
ended and nobody is to be told any more, its last revision goes to `jobs/ID`, and the open record is
removed. So whoever looks for work reads a list of what is open, however many jobs are kept.

What stands in `jobs/ID` counts if it has ended, else the open record, if it is there.
"""

import logging
import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple

from pydantic import ValidationError

from deployments.contracts.errors import StorageUnavailable
from deployments.jobs.objects import Listed, Objects, Written
from deployments.jobs.record import JobRecord

RECORDS, OPEN, FILES = "jobs/", "open/", "files/"
ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
log = logging.getLogger("ray.serve.tcd.jobs")


class Unreadable(StorageUnavailable):
    """A record is none, or of a release that knows more. `name`: of its object."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the record {name!r} of a job cannot be read")
        self.name = name


class Found(NamedTuple):
    """A record as it was read. `name`: of the object that it was read from."""

    record: JobRecord
    name: str
    tag: str

    @property
    def archived(self) -> bool:
        """Whether it changes no more."""
        return self.name.startswith(RECORDS) and is_settled(self.record)


def is_settled(job: JobRecord) -> bool:
    """Whether a job has ended, and nobody is to be told of it any more."""
    return job.ended and job.untold is None and job.call is None


class _Known(NamedTuple):
    """A record as it was read when the list named this version of it, or newer; or as it was
    written here, as the list will name it (empty: unknown)."""

    version: str
    found: Found


class Records:
    """The records of all jobs, for one process, from any of its threads; of each kind of look
    there is one at a time."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._open: dict[str, _Known] = {}
        self._archived: dict[str, _Known] = {}
        self._unclaimed: set[str] = set()  # names of open records without one in `jobs/`
        self._unreadable: dict[str, str] = {}  # names of records, and versions (empty: unknown)
        self._noting = threading.Lock()

    def add(self, job: JobRecord) -> Found | None:
        """Accepts a job that is new, or that was accepted without anybody hearing of it. Returns
        `None`, or what is there of its id already."""
        while (written := self._objects.create(_name(job), _text(job))) is None:
            if (known := self.find(job.id)) is not None:
                return known
        claim = _as_written(job, _name(job), written)
        self._note(claim if claim.found.archived else self._opened(claim.found) or claim)
        return None

    def find(self, job_id: str) -> Found | None:
        """A job as it stands. Raises `Unreadable`."""
        claim = self._read(RECORDS + job_id)
        while claim is not None and not claim.archived:
            found = self._read(_open_name(claim.record))
            if found is not None:
                return found
            again = self._read(RECORDS + job_id)
            if again == claim:
                return claim  # it was accepted, and is not open yet
            claim = again
        return claim

    def put(self, found: Found, record: JobRecord) -> bool:
        """Writes a job anew that is still as it was found."""
        held = self._opened_late(found) if found.name.startswith(RECORDS) else found
        if held is None:
            return False
        written = self._objects.replace(held.name, _text(record), held.tag)
        if written is not None and held.name in self._open:
            self._note(_as_written(record, held.name, written))
        return written is not None

    def open(self, found: Found) -> None:
        """Has a job seen by all that was accepted by somebody who did not get further."""
        if found.name.startswith(RECORDS):
            self._opened_late(found)

    def archive(self, found: Found) -> None:
        """Keeps a job that changes no more where nobody looks for work. An open record of none is
        removed."""
        record = found.record
        claim = self._read(_name(record))
        if claim is not None and claim.archived:
            self._note(_Known("", claim))
        elif claim is not None and claim.record.folder == record.folder:
            if not is_settled(record):
                return
            written = self._objects.replace(claim.name, _text(record), claim.tag)
            if written is None:
                return  # somebody else was quicker: it is seen at the next look
            self._note(_as_written(record, claim.name, written))
        self._objects.delete(found.name, found.tag)

    def forget(self, found: Found) -> None:
        """Forgets a job that has ended, with all its files. They go first: a record without them
        can be forgotten again, files without a record are found only by a search; the open record
        goes last: a job that stands in `jobs/` alone is taken for one that is not open yet."""
        record = found.record
        self.remove_files(record.folder)
        while (claim := self._read(_name(record))) is not None:
            if claim.record.folder != record.folder:
                break
            self._objects.delete(claim.name, claim.tag)
        self._objects.delete(_open_name(record))
        self._drop(record)

    def remove_files(self, folder: str) -> None:
        """Removes what is in a job's folder."""
        for file in list(self._objects.listed(folder)):
            self._objects.delete(file.name)

    def known(self, job: JobRecord) -> Found | None:
        """A job that is open, as it was seen last."""
        known = self._open.get(_open_name(job))
        return None if known is None else known.found

    def seen_open(self) -> Sequence[Found]:
        """The jobs that are open, as they were seen last."""
        with self._noting:
            return [known.found for known in self._newest().values()]

    def seen(self) -> Sequence[Found]:
        """All jobs, as they were seen last."""
        with self._noting:
            every = self._archived | self._newest()
        return [known.found for known in every.values()]

    @property
    def unreadable(self) -> int:
        """How many records the last looks could not read."""
        return len(self._unreadable)

    def seen_strays(self) -> Sequence[Found]:
        """Open records that may be of no job any more: their writer died, or stood still."""
        with self._noting:
            newest = self._newest()
            ids = Counter(known.found.record.id for known in self._open.values())
            return [
                known.found
                for name, known in self._open.items()
                if (job_id := known.found.record.id) not in newest
                or ids[job_id] > 1
                or name in self._unclaimed
            ]

    def drop(self, every: Iterable[Found]) -> None:
        """Of these, what was archived is not seen any more, until somebody looks at all."""
        with self._noting:
            for found in every:
                known = self._archived.get(found.record.id)
                if known is not None and known.found == found:
                    del self._archived[found.record.id]

    def _newest(self) -> dict[str, _Known]:
        """The open jobs by id, without those that are archived, or had an id before."""
        newest: dict[str, _Known] = {}
        for known in self._open.values():
            record = known.found.record
            for other in (newest.get(record.id), self._archived.get(record.id)):
                if other is not None and (
                    other.found.record.folder == record.folder
                    or other.found.record.created_at > record.created_at
                ):
                    break
            else:
                newest[record.id] = known
        return newest

    def look(self) -> None:
        """Reads what was written of open jobs since the last look. What is written here meanwhile
        is newer."""
        with self._noting:
            before = dict(self._open)
        opened: dict[str, _Known] = {}
        names = set[str]()
        for listed in self._objects.listed(OPEN):
            names.add(listed.name)
            known = self._read_anew(listed, before.get(listed.name))
            if known is not None:
                opened[listed.name] = known
        self._forget_unreadable(OPEN, names)
        closed = {name: known for name, known in before.items() if name not in opened}
        archived = {
            name: None if name in self._unreadable else self._closed(known)
            for name, known in closed.items()
        }
        with self._noting:
            for name, known in opened.items():
                if self._open.get(name) is before.get(name):
                    self._open[name] = known
            for name, known in closed.items():
                kept = archived[name]
                if self._open.get(name) is known and kept is not known:
                    del self._open[name]
                    if kept is not None:
                        self._archived[kept.found.record.id] = kept

    def _closed(self, before: _Known) -> _Known | None:
        """A job that is not in the list of open ones any more, as it was archived; as before, if it
        was accepted and never was in that list; `None`: it was forgotten."""
        job = before.found.record
        known = self._archived.get(job.id)
        if known is not None and known.found.record.folder == job.folder:
            return known
        claim = self._readable(_name(job), "")
        if claim == before.found:
            return before
        if claim is None or not claim.archived or claim.record.folder != job.folder:
            return None
        return _Known("", claim)

    def look_at_all(self) -> None:
        """The same for what is not open: what others have archived or forgotten, and jobs that were
        accepted by somebody who did not get further. For whoever has looked at what is open."""
        with self._noting:
            before = dict(self._archived)
            are_open = {n: k.found.record.id for n, k in self._open.items() if k.found.name == n}
            unopened = {n: k for n, k in self._open.items() if k.found.name != n}
        read = before | {known.found.record.id: known for known in unopened.values()}
        found: dict[str, _Known] = {}
        names = set[str]()
        skipped = set(are_open.values()) - before.keys()
        for listed in self._objects.listed(RECORDS):
            names.add(listed.name)
            job_id = listed.name.removeprefix(RECORDS)
            if job_id in skipped:
                continue
            known = self._read_anew(listed, read.get(job_id))
            if known is not None:
                found[job_id] = known
        self._forget_unreadable(RECORDS, names)
        archived = {job_id: known for job_id, known in found.items() if known.found.archived}
        opened = {_open_name(k.found.record): k for k in found.values() if not k.found.archived}
        new = {name: known for name, known in opened.items() if name not in self._unreadable}
        with self._noting:
            for job_id in before.keys() | archived.keys():
                if self._archived.get(job_id) is before.get(job_id):
                    _set(self._archived, job_id, archived.get(job_id))
            for name in unopened.keys() | new.keys():
                if self._open.get(name) is unopened.get(name):
                    _set(self._open, name, new.get(name))
            self._unclaimed = {
                name for name, job_id in are_open.items() if RECORDS + job_id not in names
            }

    def _read_anew(self, listed: Listed, before: _Known | None) -> _Known | None:
        """A job as it is listed."""
        if before is not None and (before.version, before.found.name) == (
            listed.version,
            listed.name,
        ):
            return before
        found = self._readable(listed.name, listed.version)
        return None if found is None else _Known(listed.version, found)

    def _readable(self, name: str, version: str) -> Found | None:
        """A record, if it is one: other files in its place, and what a later release has written,
        must stop no other job. `version`: empty: unknown."""
        try:
            return self._read(name)
        except Unreadable as error:
            self.note(error, version)
            return None

    def note(self, error: Unreadable, version: str = "") -> None:
        """Counts a record that cannot be read until it can, or is gone; and tells of each version
        once."""
        known = self._unreadable.get(error.name)
        is_another = bool(known and version) and known != version
        if known is None or is_another:
            log.error("%s: %s", error, error.__cause__)
        self._unreadable[error.name] = version or known or ""

    def _forget_unreadable(self, kind: str, names: Set[str]) -> None:
        """Those of this kind that are not there any more."""
        for name in list(self._unreadable):
            if name.startswith(kind) and name not in names:
                self._unreadable.pop(name, None)

    def _read(self, name: str) -> Found | None:
        if ID.fullmatch(name.partition("/")[2].partition(".")[0]) is None:
            return None
        stored = self._objects.read(name)
        if stored is None:
            return None
        try:
            found = Found(JobRecord.model_validate_json(stored.content), name, stored.tag)
        except ValidationError as error:
            raise Unreadable(name) from ValueError(_faults(error))
        self._unreadable.pop(name, None)
        return found

    def _opened(self, found: Found) -> _Known | None:
        """The open record of a job that had none; `None`: it has one by now, which was changed."""
        name = _open_name(found.record)
        written = self._objects.create(name, _text(found.record))
        return None if written is None else _as_written(found.record, name, written)

    def _opened_late(self, found: Found) -> Found | None:
        """The same for a record that was read a while ago, and that may be archived by now."""
        opened = None if found.archived else self._opened(found)
        if opened is None:
            return None
        if self._read(found.name) != found:
            self._objects.delete(opened.found.name, opened.found.tag)
            return None
        return opened.found

    def _note(self, written: _Known) -> None:
        """What was written here is known until somebody else writes."""
        job = written.found.record
        with self._noting:
            into, key = self._open, _open_name(job)
            if written.found.archived:
                into, key = self._archived, job.id
            known = into.get(key)
            if known is None or not _is_later(known.found.record, job):
                into[key] = written

    def _drop(self, job: JobRecord) -> None:
        with self._noting:
            self._open.pop(_open_name(job), None)
            known = self._archived.get(job.id)
            if known is not None and known.found.record.folder == job.folder:
                del self._archived[job.id]


def _faults(error: ValidationError) -> str:
    """What is wrong, and where, without what stands there, which may be a prompt."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)


def _set(known: dict[str, _Known], key: str, value: _Known | None) -> None:
    if value is None:
        known.pop(key, None)
    else:
        known[key] = value


def _as_written(job: JobRecord, name: str, written: Written) -> _Known:
    return _Known(written.version, Found(job, name, written.tag))


def _name(job: JobRecord) -> str:
    return RECORDS + job.id


def _open_name(job: JobRecord) -> str:
    return f"{OPEN}{job.id}.{job.folder.removeprefix(FILES).strip('/')}"


def _is_later(one: JobRecord, other: JobRecord) -> bool:
    """Whether both are of the same job, and the first has been written later."""
    return one.folder == other.folder and one.revision > other.revision


def _text(job: JobRecord) -> bytes:
    return job.model_dump_json().encode()
