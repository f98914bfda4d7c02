"""Devices and processes under JAX: `keras.distribution`, which partitions one program for all of them."""

import contextlib
import os

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils

from keras_vit.private.jax import leave_cluster
from keras_vit.processes import GRACE_SECONDS
from keras_vit.training.distribution.base import Processes, environment_int
from keras_vit.training.distribution.meeting import LOOPBACK, meet

# What tells of other processes: Keras's own variables, or those of Slurm, Open MPI and Kubernetes, which JAX reads itself.
KERAS_VARIABLES = ("KERAS_DISTRIBUTION_JOB_ADDRESSES", "KERAS_DISTRIBUTION_NUM_PROCESSES", "KERAS_DISTRIBUTION_PROCESS_ID")
COUNTS = ("KERAS_DISTRIBUTION_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
KUBERNETES = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")

# Which axis of a weight is divided among the devices (Megatron-LM, arXiv 1909.08053): the first product of attention and MLP by its
# columns, the second by its rows, so that a block needs one sum over the devices for each.
LAYOUT = {
    r".*/(qkv|fc1)/kernel": (None, "model"),
    r".*/(qkv|fc1)/bias": ("model",),
    r".*/(projection|fc2)/kernel": ("model", None),
}


class JaxDistribution(Processes):
    """Data or model parallel under JAX.

    Args:
        kind: `data`, or `model`: the weights are divided among all devices, and every device sees the whole batch.
    """

    errors = (RuntimeError, ValueError)

    def __init__(self, kind: str):
        self.kind = kind
        self.processes, self.rank = jax.process_count(), jax.process_index()
        devices = [f"{device.platform}:{device.id}" for device in jax.devices()]
        self.devices = len(devices)
        if kind == "data":
            self.replicas = self.devices
            self.keras = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
        else:
            self.replicas = 1
            mesh = keras.distribution.DeviceMesh((1, self.devices), ("batch", "model"), devices)
            layout = keras.distribution.LayoutMap(mesh)
            for path, axes in LAYOUT.items():
                layout[path] = axes
            self.keras = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False)

    @property
    def part(self):
        return (0, 1) if self.kind == "model" else (self.rank, self.processes)

    def scope(self):
        return self.keras.scope()

    def training(self):
        return self.scope()

    def leave(self):
        leave_cluster()

    @contextlib.contextmanager
    def alone(self):
        before = keras.distribution.distribution()
        keras.distribution.set_distribution(None)
        try:
            with jax.default_device(jax.local_devices()[0]):
                yield
        finally:
            keras.distribution.set_distribution(before)

    def array(self, variable):
        value = variable.value
        if value.is_fully_addressable or value.is_fully_replicated:
            return np.array(value)  # a copy: the next step overwrites what it has
        return np.asarray(multihost_utils.process_allgather(value, tiled=True))

    def gather(self, array):
        if self.processes == 1:
            return np.asarray(array)[None]
        return np.asarray(multihost_utils.process_allgather(np.asarray(array)))


def cluster() -> str:
    """The variable of the environment that names other processes; empty if there are none."""
    counted = next((name for name in COUNTS if (environment_int(name) or 1) > 1), "")
    return counted or (KUBERNETES[1] if all(os.environ.get(name) for name in KUBERNETES) else "")


def join(kind: str, seconds: int) -> JaxDistribution:
    """Meets the other processes, if there are any.

    Raises:
        ValueError: If not all have come after `seconds`, or for `model` in several processes.
    """
    if kind == "model" and cluster():
        # A process could not read the weights that others hold, which it validates.
        raise ValueError(f"distribute: received model in one of several processes ({cluster()}); allowed under JAX: data")
    if cluster() and not jax.distributed.is_initialized():
        address, count, rank = os.environ.get(KERAS_VARIABLES[0]), *(environment_int(name, 0) for name in KERAS_VARIABLES[1:])
        if address and None in (count, rank):
            raise ValueError(f"distribute: received {KERAS_VARIABLES[0]} alone; allowed: with {' and '.join(KERAS_VARIABLES[1:])}")
        settings = {"initialization_timeout": seconds, "heartbeat_timeout_seconds": seconds}
        settings["shutdown_timeout_seconds"] = GRACE_SECONDS
        if address:
            address = address.split(",")[0]
            meet(address, rank, count, seconds)
            settings |= {"coordinator_address": address, "num_processes": count, "process_id": rank}
            if address.partition(":")[0] in LOOPBACK:
                settings["coordinator_bind_address"] = address  # JAX listens to every network otherwise
        try:
            jax.distributed.initialize(**settings)
        except RuntimeError as error:
            words = " ".join(str(error).split())[:300]  # they name those that have not come, in JAX's way
            raise ValueError(f"distribute: not all processes have come after {seconds} s ({words})") from None
    return JaxDistribution(kind)
