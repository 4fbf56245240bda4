"""One thread per model: loads it, gathers requests into batches and answers them until it is closed."""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from corerun.errors import CallFailed, CorerunError, RequestRefused, Transient
from corerun.redaction import redact
from corerun_transformers.batch import Batch
from corerun_transformers.loading import LoadedModel
from corerun_transformers.row import Job, Row

WINDOW_S = 0.005
"""How long the first request of a batch waits for others."""

MOST_ROWS = 8

LONGEST_STEP_S = 10.0
"""How long closing waits: neither loading nor reading a long prompt can be interrupted."""


class ModelWorker:
    """Answers jobs with one model in a thread of its own, which `load` runs in too.

    It begins with ``job``. When the model can't be loaded, all jobs fail with the reason and the
    worker is over.
    """

    def __init__(self, name: str, load: Callable[[], LoadedModel], job: Job) -> None:
        self._load = load
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._closing = False
        self._lock = threading.Lock()
        self.loaded = False
        self._inbox.put(job)
        self._thread = threading.Thread(target=self._run, name=f"corerun-{name}", daemon=True)
        # An interpreter that ends while a thread is inside torch aborts the process.
        atexit.register(self.close)
        self._thread.start()

    def submit(self, job: Job) -> bool:
        """Takes ``job`` on; False when the worker is over."""
        with self._lock:
            if not self._closing:
                self._inbox.put(job)
            return not self._closing

    def close(self) -> None:
        """Ends the thread after the token in work and waits for that; jobs left over fail."""
        self._over()
        self._thread.join(LONGEST_STEP_S)

    def _over(self) -> None:
        with self._lock:
            self._closing = True
            self._inbox.put(None)

    def _run(self) -> None:
        left: CorerunError = CallFailed("the model was closed before it answered")
        jobs: list[Job] = []
        try:
            model = self._load()
            self.loaded = True
            jobs = self._serve(model)
        except CorerunError as error:
            left = error
        except BaseException as error:
            left = _failure(error)
        finally:
            self._over()
            for job in (*jobs, *self._waiting, *self._drained()):
                job.fail(left)
            atexit.unregister(self.close)

    def _serve(self, model: LoadedModel) -> list[Job]:
        """Answers jobs until the worker is closed; those that were being answered then."""
        import torch

        batch = Batch(model)
        with torch.inference_mode():
            while True:
                self._gather(idle=not batch.rows)
                if self._closing:
                    return [row.job for row in batch.rows]
                started = self._startable(batch, model)
                rows = [row for job in started if (row := _row(job, model)) is not None]
                try:
                    if rows:
                        batch.add(rows)
                    elif batch.rows:
                        batch.step()
                except Exception as error:
                    failure = _failure(error)
                    for row in {*batch.rows, *rows}:
                        row.job.fail(failure)
                    batch.clear()

    def _gather(self, *, idle: bool) -> None:
        """Moves jobs from the inbox to those that wait; ``idle``: waits for one, and a window for others."""
        if idle and not self._waiting:
            self._receive(self._inbox.get())
            end = time.monotonic() + WINDOW_S
            while len(self._waiting) < MOST_ROWS and not self._closing:
                try:
                    self._receive(self._inbox.get(timeout=max(end - time.monotonic(), 0.0)))
                except Empty:
                    break
        for job in self._drained():
            self._receive(job)

    def _receive(self, job: Job | None) -> None:
        if job is not None:
            self._waiting.append(job)

    def _drained(self) -> Sequence[Job]:
        jobs: list[Job] = []
        while not self._inbox.empty():
            job = self._inbox.get()
            if job is not None:
                jobs.append(job)
        return jobs

    def _startable(self, batch: Batch, model: LoadedModel) -> list[Job]:
        """Takes the jobs that can begin now, in the order they came."""

        def alone(job: Job) -> bool:
            # Rounding to half precision depends on the rows beside; a seed promises the same answer.
            return job.request.seed is not None and not model.exact

        found: list[Job] = []
        if batch.open and not any(alone(row.job) for row in batch.rows):
            while self._waiting and len(batch.rows) + len(found) < MOST_ROWS:
                if alone(self._waiting[0]) and (batch.rows or found):
                    break
                found.append(self._waiting.popleft())
                if alone(found[-1]):
                    break
        return found


def _row(job: Job, model: LoadedModel) -> Row | None:
    if job.cancelled:
        return None
    try:
        return Row(job, model)
    except CorerunError as error:
        job.fail(error)
    except Exception as error:
        job.fail(_failure(error))
    return None


def _failure(error: BaseException) -> CallFailed:
    import torch

    said = redact(" ".join(f"{type(error).__name__}: {error}".split()))[:500]
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        torch.cuda.empty_cache()
        return Transient(f"no memory was left for the model to answer: {said}")
    return RequestRefused(f"the model failed: {said}")
