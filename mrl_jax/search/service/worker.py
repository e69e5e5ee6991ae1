"""One thread that owns the model and the index. What came in while it was busy is answered as one batch.

A batch of 32 queries reads the documents once, where 32 single ones read them 32 times. So the thread takes all that is
waiting, up to `max_batch` texts; where that is less, it waits for more until the oldest is `max_wait` seconds old.
Jobs of the same kind and options are answered together. What waits is bounded, and more is refused at once (`Busy`):
a queue that grows answers everybody late.
"""

import itertools
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from mrl_jax.system.errors import UserError

# (kind, options, items) → the answer to each item. It is called by the worker's thread only.
Answer = Callable[[str, Hashable, list[Any]], Sequence[Any]]

WRITES = ("upsert", "delete")  # kinds that change what others answer


class Busy(Exception):
    """As much is waiting as may wait, or the service is about to end."""


@dataclass(eq=False)
class Job:
    """Items of one request, that are answered alike."""

    kind: str
    options: Hashable
    items: list[Any]
    future: "Future[list[Any]]" = field(default_factory=Future)  # the answer to each item
    arrival: float = field(default_factory=time.monotonic)


class Worker:
    """Answers jobs in batches, from `start` to `stop`."""

    def __init__(
        self,
        make: Callable[[], Answer],
        max_wait: float = 0.005,
        max_batch: int = 64,
        max_waiting: int = 1024,
        watch: Callable[[int], None] = lambda items: None,
    ) -> None:
        """
        Args:
            make: opens model and index, within the thread: a connection of SQLite belongs to the thread that made it.
            max_wait: seconds that the oldest job may wait for others.
            max_batch: items of jobs that are taken together; one job may have more.
            max_waiting: items that may wait.
            watch: called with the number of items of each batch.
        """
        self._make, self._watch = make, watch
        self._max_wait, self._max_batch, self._max_waiting = max_wait, max_batch, max_waiting
        self._jobs: deque[Job] = deque()
        self._change = threading.Condition()
        self._stopped = False
        self.waiting = 0  # items of the jobs that wait
        self._ready: Future[Answer] = Future()
        self._thread = threading.Thread(target=self._run, name="search", daemon=True)

    def start(self) -> Answer:
        """Start the thread; returns what `make` returned, or raises what it raised."""
        self._thread.start()
        return self._ready.result()

    def stop(self) -> None:
        """Answer what is waiting, and end the thread."""
        with self._change:
            self._stopped = True
            self._change.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether jobs are answered."""
        return self._thread.is_alive()

    def submit(self, kind: str, options: Hashable, items: list[Any]) -> "Future[list[Any]]":
        """Queue items; the future has the answer to each. A future that is cancelled in time costs nothing."""
        job = Job(kind, options, items)
        with self._change:
            # A job that is larger than the queue is not refused for ever.
            if self._stopped or (self._jobs and self.waiting + len(items) > self._max_waiting):
                raise Busy
            self._jobs.append(job)
            self.waiting += len(items)
            self._change.notify()
        return job.future

    def _run(self) -> None:
        try:
            answer = self._make()
        except BaseException as error:
            self._ready.set_exception(error)
            return
        self._ready.set_result(answer)
        while jobs := self._take():
            live = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if live:
                self._watch(sum(len(job.items) for job in live))
            # In the order of their arrival, so that who adds a document and then searches finds it.
            for (kind, options), alike in _groups(live):
                self._answer(answer, kind, options, alike)
        close = getattr(answer, "close", None)
        if close is not None:
            close()

    def _take(self) -> list[Job]:
        """The jobs of the next batch; none once the thread is to end and nothing waits."""
        with self._change:
            while not self._jobs and not self._stopped:
                self._change.wait()
            if not self._jobs:
                return []
            until = self._jobs[0].arrival + self._max_wait
            while self.waiting < self._max_batch and not self._stopped and (left := until - time.monotonic()) > 0:
                self._change.wait(left)
            taken = [self._jobs.popleft()]
            count = len(taken[0].items)
            while self._jobs and count + len(self._jobs[0].items) <= self._max_batch:
                taken.append(self._jobs.popleft())
                count += len(taken[-1].items)
            self.waiting -= count
            return taken

    def _answer(self, answer: Answer, kind: str, options: Hashable, jobs: list[Job]) -> None:
        """Answer jobs together; where that fails, one by one, so that nobody gets the error of another."""
        try:
            answers = answer(kind, options, [item for job in jobs for item in job.items])
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._answer(answer, kind, options, [job])
                return
            if not isinstance(error, UserError | ValueError):  # the library's word for bad input
                traceback.print_exc(file=sys.stderr)
            jobs[0].future.set_exception(error)
            return
        each = iter(answers)
        for job in jobs:
            job.future.set_result(list(itertools.islice(each, len(job.items))))


def _groups(jobs: Sequence[Job]) -> list[tuple[tuple[str, Hashable], list[Job]]]:
    """Jobs of the same kind and options, in the order of the first of each; none crosses one that writes."""
    groups: list[tuple[tuple[str, Hashable], list[Job]]] = []
    open_: dict[tuple[str, Hashable], list[Job]] = {}
    for job in jobs:
        key = (job.kind, job.options)
        if key not in open_:
            if job.kind in WRITES or any(kind in WRITES for kind, _ in open_):
                open_ = {}
            open_[key] = []
            groups.append((key, open_[key]))
        open_[key].append(job)
    return groups
