"""Does a training give the same numbers on one device and on many? How fast are two processes, each with a core of its own?

    python benchmarks/devices.py [--backends jax torch] [--json devices.json]
    python benchmarks/devices.py --speed [--json devices-speed.json]

The devices are virtual ones of this processor (KERAS_VIT_CPU_DEVICES) or processes on it. The first command trains 50 steps of one
global batch on the embedded digits and compares the loss of every fifth step, and the validation, with those of one device. The
second one trains with one process, with two that have nothing to do with each other and with two that train together, each process
with a core and 64 images of its own: what the last ones lack of the second ones is the communication.
"""

import argparse
import csv
import functools
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile

from keras_vit.processes import run_command

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "experiments" / "train_cifar.py"
BATCH, TURNS = 64, 3
SETTINGS = ("--recipe=digits", "--train.precision=float32", "--model.drop_path=0")
STEPS = (f"--train.batch_size={BATCH}", "--train.epochs=10", "--train.steps_per_epoch=5", "--train.validate_every=10")
# Kind, devices of a process, processes.
RUNS = {
    "jax": (("none", 1, 1), ("data", 2, 1), ("data", 4, 1), ("data", 1, 2), ("data", 2, 2), ("model", 2, 1), ("model", 4, 1)),
    "tensorflow": (("none", 1, 1), ("data", 2, 1), ("data", 4, 1), ("data", 1, 2)),
    "torch": (("none", 1, 1), ("data", 1, 2), ("data", 1, 4), ("model", 1, 2), ("model", 1, 4)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=list(RUNS), choices=list(RUNS), help="default: all")
    parser.add_argument("--speed", action="store_true", help="time one and two processes with one core each")
    parser.add_argument("--json", type=pathlib.Path, help="file to write: the results")
    options = parser.parse_args()
    rows = []
    for backend in options.backends:
        rows += speeds(backend) if options.speed else curves(backend)
    if options.json:
        from record import write_record

        write_record(options.json, settings=[*SETTINGS, *([] if options.speed else STEPS)], rows=rows)


def curves(backend):
    """A row for each run: how far its losses and its validation are from those of one device."""
    rows, alone = [], None
    for kind, devices, processes in RUNS[backend]:
        metrics, summary = train(backend, processes, [*SETTINGS, *STEPS, f"--train.distribute={kind}"], devices=devices)
        alone = alone or metrics
        row = {"backend": backend, "distribute": kind, "devices": summary["devices"], "processes": summary["processes"]}
        for name in ("loss", "val_loss", "val_accuracy"):
            pairs = [(float(a[name]), float(b[name])) for a, b in zip(metrics, alone, strict=True) if a[name]]
            row[name] = max(abs(a - b) for a, b in pairs)
        rows.append({**row, "losses": [float(each["loss"]) for each in metrics]})
        print(*(f"{name} {value}" for name, value in row.items()), flush=True)
    return rows


def speeds(backend):
    """Images/s of one process, of two that have nothing to do with each other, and of two that train together, in turns."""
    rates = {"one": [], "two apart": [], "two together": []}
    for _ in range(TURNS):
        for name, found in rates.items():
            processes = 2 if name == "two together" else 1
            steps = [f"--train.batch_size={BATCH * processes}", "--train.epochs=4", "--train.steps_per_epoch=15"]
            kind = "data" if processes > 1 else "none"
            settings = [*SETTINGS, *steps, "--train.validate_every=4", f"--train.distribute={kind}"]
            runs = train_at_once(backend, processes, settings, 2 if name == "two apart" else 1)
            # The processes of one training have measured the same steps; those of two trainings add up.
            found.append(sum(max(float(each["images_per_second"]) for each in metrics) for metrics, _ in runs))
            parameters = runs[0][1]["parameters"]
    together = [each / other for each, other in zip(rates["two together"], rates["two apart"], strict=True)]
    shared = {
        "bytes_per_step": round(2 * 4 * parameters * 1 / 2)
    }  # a ring sends each gradient twice, but for a process's own share
    rows = [
        {"backend": backend, "run": name, "images_per_second": statistics.median(found), "all": found}
        for name, found in rates.items()
    ]
    rows[-1] |= {**shared, "communication": 1 - statistics.median(together)}
    for row in rows:
        print(*(f"{name} {value}" for name, value in row.items()), flush=True)
    return rows


def environments(backend, processes, devices=1):
    """What each of several processes on this machine has in its environment to find the others; `torchrun` sets PyTorch's."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(processes)]
    for rank in range(processes):
        environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), "KERAS_VIT_CPU_DEVICES": str(devices)}
        if processes > 1 and backend == "jax":
            environment["KERAS_DISTRIBUTION_JOB_ADDRESSES"] = addresses[0]
            environment["KERAS_DISTRIBUTION_NUM_PROCESSES"] = str(processes)
            environment["KERAS_DISTRIBUTION_PROCESS_ID"] = str(rank)
        if processes > 1 and backend == "tensorflow":
            task = {"type": "worker", "index": rank}
            environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
        if processes > 1 and backend == "torch":
            host, port = addresses[0].split(":")
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": host, "MASTER_PORT": port}
            environment |= {name: str(value) for name, value in names.items()}
            environment["OMP_NUM_THREADS"] = "1"
        yield environment


def start(backend, processes, arguments, devices=1, first_core=None):
    """Starts a command of this library in several processes on this machine, as schedulers do.

    `arguments` is a list, or a function of the rank that gives one. With `first_core` each process has a core of its own, from that
    one on.
    """
    started = []
    for rank, environment in enumerate(environments(backend, processes, devices)):
        core = None if first_core is None else sorted(os.sched_getaffinity(0))[first_core + rank]
        pin = None if core is None else functools.partial(os.sched_setaffinity, 0, {core})
        command = [sys.executable, *map(str, arguments(rank) if callable(arguments) else arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
        started.append(subprocess.Popen(command, env=environment, preexec_fn=pin, **pipes))
    return started


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def train(backend, processes, settings, devices=1):
    """Metrics and summary of a training."""
    with tempfile.TemporaryDirectory() as folder:
        return ended(start(backend, processes, [SCRIPT, *settings, f"--out={folder}/run"], devices), f"{folder}/run")


def train_at_once(backend, processes, settings, count):
    """Metrics and summary of each of some trainings at the same time, each process with a core of its own."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [f"{folder}/{index}" for index in range(count)]
        started = []
        for index, run in enumerate(runs):
            started.append(start(backend, processes, [SCRIPT, *settings, f"--out={run}"], first_core=index * processes))
        return [ended(each, run) for each, run in zip(started, runs, strict=True)]


def ended(started, run):
    """Metrics and summary of a training once its processes have ended."""
    from keras_vit.runs.folder import RunFolder

    said = [process.communicate(timeout=900)[1] for process in started]
    if any(process.returncode for process in started):
        raise ValueError(f"{len(started)} processes: {' | '.join(text.strip()[-400:] for text in said)}")
    with open(f"{run}/metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file)), RunFolder(run).summary


if __name__ == "__main__":
    run_command(main)
