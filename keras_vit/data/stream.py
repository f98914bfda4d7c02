"""A function of the step -> a stream of batches for `model.fit`: a tf.data pipeline or a `keras.utils.PyDataset`, same numbers."""

import atexit
import concurrent.futures
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import keras

from keras_vit.backend import import_tensorflow
from keras_vit.checks import check_choice

PIPELINES = ("tf.data", "PyDataset")


def stream(
    batch: Callable,
    start: int,
    count: int | None,
    image_shape: tuple,
    target_shape: tuple,
    pipeline: str | None = None,
    *,
    order_shape: tuple | None = None,
) -> Iterable:
    """batch(start), batch(start + 1), ...: images and targets.

    Args:
        batch: Gives float32 images and targets of a step; with `order_shape` a pair of images and int32 orders in the place of the
            images. Called by several threads.
        start: The first step.
        count: Number of batches; None = endless.
        image_shape, target_shape: Shapes of a batch, with None for a batch size that varies.
        order_shape: Shape of the orders of its patches; None = there are none.
        pipeline: `tf.data` or `PyDataset`; None = `tf.data` under TensorFlow, else `PyDataset`, which does not need TensorFlow.
    """
    check_choice("pipeline", pipeline, (None, *PIPELINES))
    if (pipeline or ("tf.data" if keras.backend.backend() == "tensorflow" else "PyDataset")) == "PyDataset":
        return Batches(batch, start, count)
    tf = import_tensorflow()

    batch = until_exit(batch)

    def load(step):
        if order_shape is None:
            images, targets = tf.numpy_function(batch, [step], (tf.float32, tf.float32))
            return tf.ensure_shape(images, image_shape), tf.ensure_shape(targets, target_shape)
        flat = lambda step: keras.tree.flatten(batch(step))  # noqa: E731
        images, orders, targets = tf.numpy_function(flat, [step], (tf.float32, tf.int32, tf.float32))
        return (tf.ensure_shape(images, image_shape), tf.ensure_shape(orders, order_shape)), tf.ensure_shape(targets, target_shape)

    steps = tf.data.Dataset.counter(start) if count is None else tf.data.Dataset.range(start, start + count)
    return steps.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


class Guard:
    """Ends every tf.data stream before Python exits, and remembers the first error of a batch, of which tf.data keeps the text.

    At exit the interpreter destroys iterators that are still alive (an endless one that a module or an exception holds). Such an
    iterator waits for its Python calls, which wait for the interpreter: the process would hang for ever.
    """

    def __init__(self):
        self.exiting, self.calls, self.last = threading.Event(), set(), 0.0
        self.error = None
        atexit.register(self.wait)

    def __call__(self, batch):
        def guarded(step):
            call = object()
            self.calls.add(call)
            try:
                if self.exiting.is_set():
                    raise StopIteration  # for tf.data, the end
                return batch(step)
            except Exception as error:
                self.error = self.error or error
                raise
            finally:
                self.last = time.monotonic()
                self.calls.discard(call)

        return guarded

    def wait(self):
        self.exiting.set()
        while self.calls or time.monotonic() < self.last + 0.1:  # after 0.1 seconds without a call no more come
            time.sleep(0.01)


until_exit = Guard()


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Raises the error of a batch itself in the place of the one that TensorFlow makes of it."""
    until_exit.error = None
    try:
        yield
    except Exception as error:
        own, until_exit.error = until_exit.error, None
        if own is None or not type(error).__module__.startswith("tensorflow."):
            raise
        raise own from None


class Batches(keras.utils.PyDataset):
    """batch(start + index), made ahead by threads, which end with this object.

    Keras's own workers are not used: they stop at the end of every epoch, and drop the batch that building the model reads.
    Threads do run in parallel, because NumPy releases Python's lock in all slow operations.
    """

    def __init__(self, batch, start, count):
        super().__init__(workers=1)
        self.batch, self.start, self.count = on_device(batch), start, count
        threads = min(os.cpu_count() or 1, 8)
        self.pool, self.ahead = concurrent.futures.ThreadPoolExecutor(threads, "batches"), 2 * threads
        self.futures, self.lock = {}, threading.Lock()

    @property
    def num_batches(self):
        return self.count

    def __getitem__(self, index):
        end = index + self.ahead if self.count is None else min(index + self.ahead, self.count)
        with self.lock:
            window = range(index, max(end, index + 1))
            self.futures = {i: self.futures.get(i) or self.pool.submit(self.batch, self.start + i) for i in window}
            future = self.futures.pop(index)
        return future.result()


def on_device(batch):
    """`batch` with JAX's arrays where JAX is the backend: the thread that makes them copies them to the device.

    On a CPU, a step that has to wait for its images runs on another thread with other memory, slower. Where several devices share
    a batch, Keras divides it.
    """
    if keras.backend.backend() != "jax" or keras.distribution.distribution() is not None:
        return batch
    import jax

    return lambda step: jax.block_until_ready(jax.device_put(batch(step)))
