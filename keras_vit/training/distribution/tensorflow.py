"""Devices and processes under TensorFlow: `tf.distribute`."""

import json
import os

import keras
import numpy as np
import tensorflow as tf

from keras_vit.private.keras import build_for_workers
from keras_vit.training.distribution.base import Processes, environment_int
from keras_vit.training.distribution.meeting import meet

SLURM = "SLURM_STEP_NUM_TASKS"  # srun sets it


class TensorFlowDistribution(Processes):
    """Data parallel under TensorFlow: over the devices of this process, or of several."""

    kind = "data"
    errors = (RuntimeError, tf.errors.OpError)

    def __init__(self, strategy: tf.distribute.Strategy):
        self.strategy = strategy
        self.replicas = self.devices = strategy.num_replicas_in_sync
        self.gathers = {}
        resolver = strategy.cluster_resolver
        if resolver is not None and cluster():
            self.processes, self.rank = len(resolver.cluster_spec().job_tasks("worker")), resolver.task_id

    def scope(self):
        return self.strategy.scope()

    def prepare(self, model):
        if self.processes == 1:
            return
        with self.scope():
            build_for_workers(model)
        step = model.train_step
        # Keras 3.15 averages each result over the workers along an axis, which numbers do not have.
        model.train_step = lambda data: {name: tf.expand_dims(value, 0) for name, value in step(data).items()}

    def batches(self, batches):
        if self.processes == 1:
            return batches  # Keras distributes them
        count = self.replicas // self.processes
        size = keras.tree.flatten(batches.element_spec)[0].shape[0] // count
        return self.strategy.distribute_datasets_from_function(lambda context: batches.rebatch(size))

    def gather(self, array):
        if self.processes == 1:
            return np.asarray(array)[None]
        array = np.asarray(array)
        if array.dtype not in self.gathers:  # rows of any length: TensorFlow warns of a new trace for each shape
            run, row = self.strategy.run, tf.TensorSpec([1, None], array.dtype)
            gather = tf.function(lambda value: self.strategy.gather(run(lambda: value), axis=0), input_signature=[row])
            self.gathers[array.dtype] = gather
        rows = self.gathers[array.dtype](tf.constant(array.reshape(1, -1))).numpy()
        return rows[:: self.replicas // self.processes].reshape(-1, *array.shape)


def cluster() -> str:
    """The variable of the environment that names other processes; empty if there are none."""
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        workers = json.loads(text).get("cluster", {}).get("worker", [])
    except (ValueError, AttributeError):
        example = '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'
        raise ValueError(f"TF_CONFIG: received {text!r}; allowed: JSON as {example}") from None
    if len(workers) > 1:
        return "TF_CONFIG"
    return SLURM if (environment_int(SLURM) or 1) > 1 else ""


def join(kind: str, seconds: int) -> TensorFlowDistribution:
    """Makes the strategy for the devices of this process, or for all processes of TF_CONFIG or Slurm."""
    named = cluster()
    if named:
        resolvers = tf.distribute.cluster_resolver
        resolver = resolvers.SlurmClusterResolver() if named == SLURM else resolvers.TFConfigClusterResolver()
        workers = resolver.cluster_spec().job_tasks("worker")
        meet(workers[0], int(resolver.task_id), len(workers), seconds)
        options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=seconds)
        return TensorFlowDistribution(tf.distribute.MultiWorkerMirroredStrategy(resolver, options))
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return TensorFlowDistribution(tf.distribute.MirroredStrategy([device.name for device in devices]))
