"""One thread that runs the model, on the images of concurrent requests together.

Shapes: n images of one request, B of a batch, H x W pixels, C channels, K classes.
"""

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import numpy as np

from keras_vit.data.decode import one_line
from keras_vit.runs.prediction import Classifier
from keras_vit.serve.limits import Limits, Refused, busy


@dataclasses.dataclass(frozen=True)
class Job:
    """Images (n, H, W, C) of one request, and where their probabilities (n, K) go."""

    images: np.ndarray
    answer: Future


class Batcher:
    """A queue of images, and the thread that empties it.

    While the model runs, images of other requests gather; they are the next batch. An idle model starts at once, unless further
    requests are being read: it waits for these, up to `max_delay`.

    Args:
        classifier: The `Classifier`; only the thread calls it.
        limits: The `Limits`.
        observe: Called after each batch with its number of images, without fillers, and its seconds.

    Attributes:
        queued: Images that wait.
        fault: Why the last batch failed; None = it did not.
    """

    def __init__(
        self, classifier: Classifier, limits: Limits, observe: Callable[[int, float], None] = lambda images, seconds: None
    ):
        self.classifier, self.limits, self.observe = classifier, limits, observe
        self.max_batch = classifier.batch_size or limits.max_batch
        self.waiting: collections.deque[Job] = collections.deque()
        self.queued = self.coming = 0
        self.closed = False
        self.fault: str | None = None
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.run, name="model", daemon=True)

    def start(self) -> None:
        """Starts the thread and computes a batch of each usual size, so that no request waits for a compilation.

        Raises:
            ValueError: If the model fails.
        """
        self.thread.start()
        for size in self.usual_sizes():
            try:
                self.put(np.zeros((size, *self.classifier.shape), np.uint8)).result()
            except Refused as error:
                raise ValueError(str(error)) from None

    def usual_sizes(self) -> list[int]:
        if self.classifier.batch_size:
            return [self.max_batch]
        if self.classifier.compiled:
            return sorted({self.filled(2**power) for power in range(self.max_batch.bit_length() + 1)})
        return sorted({1, min(2, self.max_batch), self.max_batch})  # after two sizes TensorFlow's graph takes any

    def close(self) -> None:
        """Ends the thread once the queue is empty."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    @contextlib.contextmanager
    def announced(self) -> Iterator[Callable[[], None]]:
        """Says that a request is being read; the function that it gives says that this is over, at the latest the end does."""
        done = False

        def over():
            nonlocal done
            if not done:
                done = True
                with self.changed:
                    self.coming -= 1
                    if not self.coming:
                        self.changed.notify()

        with self.changed:
            self.coming += 1
        try:
            yield over
        finally:
            over()

    def check_room(self, images: int = 1) -> None:
        """Raises `Refused` if the queue has no room for so many images."""
        if self.queued + images > self.limits.max_queue:
            message = f"{self.queued:,} images that wait, and {images:,} more; allowed: {self.limits.max_queue:,}"
            raise busy(f"queue: received {message}")

    def submit(self, images: np.ndarray) -> Future:
        """Probabilities (n, K), float32, of images (n, H, W, C), later.

        Raises:
            Refused: If the queue is full; as the result of the future, if the model fails.
        """
        with self.changed:
            self.check_room(len(images))
        return self.put(images)

    def put(self, images):
        job = Job(images, Future())
        with self.changed:
            self.waiting.append(job)
            self.queued += len(images)
            if len(self.waiting) == 1 or not self.coming or self.queued >= self.max_batch:
                self.changed.notify()
        return job.answer

    def run(self):
        while jobs := self.collect():
            self.compute(jobs)

    def collect(self):
        """The jobs of the next batch, at least one; none when it is over."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closed)
            until = time.monotonic() + self.limits.max_delay / 1000
            while self.queued < self.max_batch and self.coming and not self.closed:
                if (left := until - time.monotonic()) <= 0:
                    break
                self.changed.wait(left)
            jobs, count = [], 0
            while self.waiting and (not jobs or count + len(self.waiting[0].images) <= self.max_batch):
                jobs.append(self.waiting.popleft())
                count += len(jobs[-1].images)
            self.queued -= count
            return jobs

    def compute(self, jobs):
        try:
            images = np.concatenate([job.images for job in jobs])
            logits = np.concatenate(
                [self.logits(part) for part in np.split(images, range(self.max_batch, len(images), self.max_batch))]
            )
        except Exception as error:  # whatever a runtime raises, the server goes on
            self.fault = one_line(error)
            for job in jobs:
                job.answer.set_exception(Refused(500, f"model: {self.fault}"))
            return
        self.fault, start = None, 0
        for job in jobs:
            part = logits[start : start + len(job.images)]
            start += len(job.images)
            if broken := np.count_nonzero(~np.isfinite(part).all(axis=1)):
                message = f"NaN or infinity for {broken:,} of {len(part):,} images; allowed: finite numbers"
                job.answer.set_exception(Refused(500, f"logits: received {message}"))
            else:
                job.answer.set_result(self.classifier.probabilities(part).astype(np.float32))

    def logits(self, images):
        """float64 (B, K) of images (B, H, W, C), filled up to a size that the model takes."""
        fillers = images[:1].repeat(self.filled(len(images)) - len(images), axis=0)
        before = time.perf_counter()
        logits = self.classifier.logits(np.concatenate([images, fillers]) if len(fillers) else images)[: len(images)]
        self.observe(len(images), time.perf_counter() - before)
        return logits.astype(np.float64)

    def filled(self, count):
        if self.classifier.batch_size:
            return self.max_batch
        return min(self.max_batch, 1 << (count - 1).bit_length()) if self.classifier.compiled else count
