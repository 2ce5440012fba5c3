"""Work for visitors: each has one piece at a time, which ends when they start another, stop it, or leave."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any


# Visitors whose images are worked on, or wait for it. Long work is of few at a time.
MOST_WAITING = 64
SHORT_THREADS, LONG_THREADS = 16, 2

# Seconds for which an answer waits for the work, and after which whoever does not ask again has left.
ANSWER_SECONDS = 1.0
LEASE_SECONDS = 20.0


class Stopped(Exception):
    """The visitor does not want the result any more."""


class Job:
    """A piece of work.

    Args:
        number: The visitor's number of it, which grows.
        work: Does it, and calls `step` of the job again and again.
    """

    def __init__(self, number: int, work: Callable[["Job"], dict[str, Any]]):
        self.number = number
        self.progress: dict[str, Any] = {}
        self.future: Future = Future()
        self._work = work
        self._stopped = threading.Event()
        self.renew()

    def renew(self):
        """The visitor is still there."""
        self._lease = time.monotonic() + LEASE_SECONDS

    def stop(self):
        self._stopped.set()

    def step(self, finished: int, total: int):
        """Notes how far the work is.

        Raises:
            Stopped: If it is not to go on.
        """
        if self._stopped.is_set() or time.monotonic() > self._lease:
            raise Stopped
        if total:
            self.progress = {"finished": finished, "total": total}

    def run(self):
        try:
            self.step(0, 0)
            self.future.set_result(self._work(self))
        except BaseException as error:
            self.future.set_exception(error)


class Jobs:
    """The work of all visitors."""

    def __init__(self):
        self._current: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._short = ThreadPoolExecutor(SHORT_THREADS, "short")
        self._long = ThreadPoolExecutor(LONG_THREADS, "long")

    def start(self, visitor: str, number: int, work: Callable[[Job], dict[str, Any]], is_long: bool) -> Job:
        """The visitor's work of that number, which starts if it is new and ends what they had before.

        Raises:
            Stopped: If they have asked for something newer; requests may come in another order than they were sent.
            ValueError: If too many others wait.
        """
        with self._lock:
            self._current = {
                name: job for name, job in self._current.items() if name == visitor or not job.future.done()
            }
            job = self._current.get(visitor)
            if job is not None and job.number == number:
                job.renew()
                return job
            if job is not None and job.number > number:
                raise Stopped
            if job is not None:
                job.stop()
            elif len(self._current) >= MOST_WAITING:
                raise ValueError("Too many visitors are waiting. Try again in a minute.")
            job = self._current[visitor] = Job(number, work)
            (self._long if is_long else self._short).submit(copy_context().run, job.run)
            return job

    def stop(self, visitor: str):
        """Ends what the visitor has."""
        with self._lock:
            if visitor in self._current:
                self._current[visitor].stop()

    @staticmethod
    async def wait(job: Job) -> dict[str, Any] | None:
        """The result, if it comes soon.

        Raises:
            Stopped: If the work was ended before there was one.
        """
        waiting = asyncio.wrap_future(job.future)
        waiting.add_done_callback(lambda future: future.cancelled() or future.exception())  # else it is logged as lost
        done, _ = await asyncio.wait([waiting], timeout=ANSWER_SECONDS)
        return job.future.result() if done else None
