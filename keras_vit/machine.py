"""The machine that this process runs on: device, backend, versions, memory, and what makes it faster."""

import contextlib
import ctypes
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import keras
import psutil

from keras_vit.private.jax import has_backend

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keras_vit"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SHORT_COMPILATION = 0.02  # seconds; shorter compilations are not kept. JAX's default is 1.0, but a model takes many short ones
XLA_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
CUBLAS_WORKSPACE = ":4096:8"  # with which cuBLAS repeats its numbers, says its documentation
AMPERE = 8.0  # compute capability of the first NVIDIA GPUs with bfloat16
PACKAGES = ("keras", "tensorflow", "jax", "torch", "numpy")
# When this process began, on a clock that nobody sets.
BEGAN = time.perf_counter() - max(0.0, time.time() - psutil.Process().create_time())


def process_seconds() -> float:
    """Seconds since this process began."""
    return time.perf_counter() - BEGAN


def use_cpu_devices() -> None:
    """Makes KERAS_VIT_CPU_DEVICES devices of this processor, to try a training on many; call it before the first tensor is made.

    PyTorch has one device a process, whatever the variable says.
    """
    count = os.environ.get("KERAS_VIT_CPU_DEVICES")
    if not count:
        return
    if not count.isdecimal() or not 1 <= int(count) <= 64:
        raise ValueError(f"KERAS_VIT_CPU_DEVICES: received {count!r}; allowed: 1 to 64")
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_num_cpu_devices", int(count))
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        processor = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * int(count))


def tune() -> None:
    """Makes training on a processor faster; call it before the first tensor is made. Numbers stay as they are.

    glibc keeps freed memory in the process; otherwise each step returns its buffers, and the next maps and clears them again,
    page by page. JAX computes a step when it is called: queued steps would each keep their buffers, and a processor gains nothing
    from a queue. JAX's compiled code is kept for other processes in `CACHE`, which can be deleted at any time.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, -1)
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)
        if not jax.config.jax_compilation_cache_dir:
            jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORT_COMPILATION)


def use_deterministic_operations() -> None:
    """Makes the backend use only operations that repeat their numbers bit for bit, until this process ends.

    On a processor all do; TensorFlow takes others of them there too. On GPUs others are faster, as those that sum in the order in
    which threads come.

    Raises:
        ValueError: Under JAX if it has used a GPU before: it reads the setting at its start.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif backend == "torch":
        import torch

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)  # cuBLAS reads it at its start
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads such memory
    elif XLA_DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        if has_backend() and accelerator():
            raise ValueError(
                "deterministic: received true after JAX has used a device; allowed: before that, or with "
                f"XLA_FLAGS={XLA_DETERMINISTIC} in the environment"
            )
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {XLA_DETERMINISTIC}".strip()


def return_memory() -> None:
    """Returns freed memory to the system, where the C library is glibc. What is used again is mapped anew."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)


def stay_on_processor() -> None:
    """Keeps this process, but not its children, off accelerators; call it before the first tensor is made."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
    elif backend == "jax":
        import jax

        jax.config.update("jax_platforms", "cpu")


def accelerator() -> str | None:
    """The name of the accelerator that the backend would use; None on a CPU."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        devices = tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("TPU")
        return tf.config.experimental.get_device_details(devices[0]).get("device_name", "GPU") if devices else None
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        return None if device.platform == "cpu" else device.device_kind
    import torch

    device = keras.ops.convert_to_tensor(0.0).device  # where Keras puts tensors: KERAS_TORCH_DEVICE may decide it
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return {"cpu": None, "mps": "Apple GPU"}.get(device.type, device.type)


def has_bfloat16() -> bool:
    """Whether the device has instructions for bfloat16; True for a CPU that does not list its instructions."""
    backend, name = keras.backend.backend(), accelerator()
    if name is None:
        cpuinfo = Path("/proc/cpuinfo")
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text() if cpuinfo.is_file() else "", re.MULTILINE)
        return not flags or bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags[1].split()))
    if backend == "torch":
        import torch

        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        capability = re.fullmatch(r"\d+\.\d+", str(getattr(device, "compute_capability", "")))  # ROCm has names, such as gfx942
        return device.platform == "tpu" or (capability is not None and float(capability[0]) >= AMPERE)
    import tensorflow as tf

    if tf.config.list_physical_devices("TPU"):
        return True
    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])
    return float("{}.{}".format(*details.get("compute_capability", (0, 0)))) >= AMPERE


def processor(field: str) -> str:
    """A field of Linux's /proc/cpuinfo, such as `model name`; on other systems a line about the processor, whatever the field."""
    if Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine() -> dict:
    """Device, backend, versions, and the commit of this library where git knows it."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    root = Path(__file__).resolve().parents[1]
    try:
        command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
        top, commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        if Path(top).resolve() != root:  # an installed copy, in an environment within another project's repository
            commit = None
    except (OSError, subprocess.CalledProcessError):
        commit = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = accelerator() or f"{processor('model name')}, {cores} cores"
    return {"device": device, "backend": keras.backend.backend(), "versions": versions, "commit": commit}


def peak_memory_mb() -> float | None:
    """The largest resident memory of this process so far; None if the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def memory_limit() -> int:
    """Bytes that the images of one part may take: a third of what is free now, within the container's limit."""
    available = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit ("max")
        limit, used = (int(Path("/sys/fs/cgroup", file).read_text()) for file in ("memory.max", "memory.current"))
        available.append(max(limit - used, 0))
    return min(available) // 3


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Multiplies float32 matrices in float32; on accelerators, backends may round the factors to ten bits (TF32)."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        config = tf.config.experimental
        before = config.tensor_float_32_execution_enabled()
        config.enable_tensor_float_32_execution(False)
        try:
            yield
        finally:
            config.enable_tensor_float_32_execution(before)
    elif backend == "jax":
        import jax

        with jax.default_matmul_precision("highest"):
            yield
    else:
        import torch

        switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
        before = [switch.allow_tf32 for switch in switches]
        try:
            for switch in switches:
                switch.allow_tf32 = False
            yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.allow_tf32 = value
