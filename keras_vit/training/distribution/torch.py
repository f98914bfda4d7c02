"""Processes under PyTorch: DistributedDataParallel or FSDP in processes that `torchrun` has started, one for each device."""

import atexit
import contextlib
import datetime
import os
import time
import warnings

import keras
import numpy as np
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.nn.parallel import DistributedDataParallel

from keras_vit.private.keras import flatten_layers, set_parameters, set_tensor
from keras_vit.training.distribution.base import Processes, environment_int

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets them


class TorchDistribution(Processes):
    """Data parallel under PyTorch."""

    kind = "data"

    def __init__(self):
        self.processes, self.rank = distributed.get_world_size(), distributed.get_rank()
        self.replicas = self.devices = self.counters = self.processes

    def prepare(self, model):
        # DDP sums gradients of what is called through it. In a closure: Keras would track it as a layer of the model.
        parallel = DistributedDataParallel(model)
        tracker = next(metric for metric in model.metrics if metric.name == "loss")

        def train_step(data):
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            y_pred = parallel(x, training=True)
            model.zero_grad()
            loss = model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
            tracker.update_state(loss.detach(), sample_weight=keras.tree.flatten(x)[0].shape[0])
            model.optimizer.scale_loss(loss).backward()
            weights = model.trainable_weights
            with torch.no_grad():
                model.optimizer.apply([weight.value.grad for weight in weights], weights)
            return model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

        model.train_step = train_step

    def gather(self, array):
        tensor = torch.from_numpy(np.array(array, order="C")).to(keras.ops.convert_to_tensor(0.0).device)
        parts = [torch.empty_like(tensor) for _ in range(self.processes)]
        distributed.all_gather(parts, tensor)
        return torch.stack(parts).cpu().numpy()


class ShardedDistribution(TorchDistribution):
    """Data parallel under PyTorch, with weights, gradients and the optimizer's variables divided among the processes (FSDP)."""

    kind = "model"

    def divide(self, model):
        # The backward pass needs what FSDP hangs on a block's result. The layers after it do not write to it.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        for layer in flatten_layers(model):
            set_parameters(layer, torch.nn.ParameterDict())
        blocks = [model.get_layer(f"block_{index}") for index in range(model.config.depth)]
        for block in blocks:
            model.add_module(block.name, block)  # Keras does not: FSDP has to see what it has divided
        for unit in [*blocks, model]:
            set_parameters(unit, Parameters([weight for weight in unit.weights if not is_divided(weight)]))
            fully_shard(unit, reshard_after_forward=True, shard_placement_fn=self.placement)

    def placement(self, parameter):
        """The first axis of a parameter that the processes divide evenly is divided; the first one if there is none."""
        return Shard(next((axis for axis, size in enumerate(parameter.shape) if size % self.processes == 0), 0))

    @contextlib.contextmanager
    def whole(self, model):
        parts = [(variable, variable.value) for variable in (*model.variables, *model.optimizer.variables) if is_divided(variable)]
        for variable, part in parts:
            set_tensor(variable, torch.nn.Parameter(part.full_tensor().detach().cpu(), requires_grad=False))
        try:
            yield
        finally:
            for variable, part in parts:
                whole = variable.value.to(part.device)
                with torch.no_grad():
                    part.copy_(distribute_tensor(whole, part.device_mesh, part.placements, src_data_rank=None))
                set_tensor(variable, part)

    def prepare(self, model):
        apply = model.optimizer.apply

        def apply_to_parts(*arguments):
            with implicit_replication():  # Keras resets accumulated gradients to whole zeros
                apply(*arguments)

        model.optimizer.apply = apply_to_parts

    def array(self, variable):
        return variable.value.full_tensor().detach().cpu().numpy() if is_divided(variable) else super().array(variable)


class Parameters(torch.nn.ParameterDict):
    """The parameters of some Keras variables. What FSDP puts in the place of one is the variable's, too."""

    def __init__(self, variables):
        super().__init__()
        self.variables = {variable.path: variable for variable in variables}
        self.update({variable.path: variable.value for variable in variables})

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if isinstance(value, torch.nn.Parameter):
            set_tensor(self.variables[name], value)


def is_divided(variable: keras.Variable) -> bool:
    """Whether this process has a part of a variable only."""
    return isinstance(variable.value, DTensor)


def cluster() -> str:
    """The variable of the environment that names other processes; empty if there are none."""
    return "WORLD_SIZE" if (environment_int("WORLD_SIZE") or 1) > 1 else ""


def join(kind: str, seconds: int) -> TorchDistribution:
    """Meets the other processes of `torchrun`.

    Raises:
        ValueError: If `torchrun` has not started this process, or not all have come after `seconds`.
    """
    if not all(os.environ.get(name) for name in VARIABLES):
        raise ValueError(
            f"distribute: received {kind}; allowed under PyTorch: none, or start one process a device with "
            "torchrun --nproc-per-node DEVICES experiments/train_cifar.py"
        )
    if not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        engine = "nccl" if torch.cuda.is_available() else "gloo"
        rank, count = (environment_int(name, 0) for name in VARIABLES[:2])
        wait = datetime.timedelta(seconds=seconds)
        try:
            store = meet(rank, count, wait)
            distributed.init_process_group(engine, store=store, rank=rank, world_size=count, timeout=wait)
        except (RuntimeError, distributed.DistError) as error:
            raise ValueError(f"distribute: not all processes have come after {seconds} s ({str(error).splitlines()[0]})") from None
        atexit.register(distributed.destroy_process_group)
    return ShardedDistribution() if kind == "model" else TorchDistribution()


def meet(rank: int, count: int, wait: datetime.timedelta) -> distributed.Store:
    """The store of all processes, once each has put its rank into it: that of `torchrun`, else the first process holds it.

    Raises:
        ValueError: That names the processes which have not come after `wait`.
    """
    host, port = (os.environ[name] for name in VARIABLES[2:])
    holds = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = distributed.TCPStore(host, int(port), count, holds, timeout=wait, wait_for_workers=False)
    store = distributed.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    store.set(str(rank), "here")
    missing, end = list(range(count)), time.monotonic() + wait.total_seconds()
    while missing := [other for other in missing if not store.check([str(other)])]:
        if time.monotonic() > end:
            names = ", ".join(map(str, missing))
            raise ValueError(f"distribute: received no process {names} after {wait.seconds} s; allowed: all {count} of WORLD_SIZE")
        time.sleep(0.1)
    return store
