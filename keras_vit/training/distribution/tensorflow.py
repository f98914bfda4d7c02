"""Devices and processes under TensorFlow: `tf.distribute`."""

import json
import os

import numpy as np
import tensorflow as tf

from keras_vit.training.distribution.base import Processes


class TensorFlowDistribution(Processes):
    """Data parallel under TensorFlow: over the devices of this process, or of several."""

    kind = "data"

    def __init__(self, strategy: tf.distribute.Strategy):
        self.strategy = strategy
        self.replicas = self.devices = strategy.num_replicas_in_sync
        resolver = strategy.cluster_resolver
        if resolver is not None and is_cluster():
            self.processes, self.rank = len(resolver.cluster_spec().job_tasks("worker")), resolver.task_id

    def scope(self):
        return self.strategy.scope()

    def batches(self, batches):
        if self.processes == 1:
            return batches  # Keras distributes them
        count = self.replicas // self.processes
        size = batches.element_spec[0].shape[0] // count
        return self.strategy.distribute_datasets_from_function(lambda context: batches.rebatch(size))

    def gather(self, array):
        if self.processes == 1:
            return np.asarray(array)[None]
        value = tf.constant(np.asarray(array))[None]
        gathered = self.strategy.gather(self.strategy.run(lambda: value), axis=0)
        return gathered.numpy()[:: self.replicas // self.processes]


def is_cluster() -> bool:
    """Whether TF_CONFIG names other processes."""
    return len(json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {}).get("worker", [])) > 1


def join(seconds: int) -> TensorFlowDistribution:
    """Makes the strategy for the devices of this process, or for all processes of TF_CONFIG."""
    if is_cluster():
        options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=seconds)
        return TensorFlowDistribution(tf.distribute.MultiWorkerMirroredStrategy(communication_options=options))
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return TensorFlowDistribution(tf.distribute.MirroredStrategy([device.name for device in devices]))
