"""How much of a model's rate is left behind HTTP, and how long does a request take?

    python benchmarks/serving.py RUN RUN/export/onnx [--requests 2000] [--json FILE]

Each artifact is served by `keras-vit serve` on this machine, and asked by 1, 8 and 64 clients at a time: one image a request, and
as many as a batch has. Every answer is compared with the model's own. The artifact's own rate is that of the same batches in a
process without a server, before and after; if the two differ by more than a tenth, other work has disturbed the run, and it is
refused. Client and server share the machine.
"""

import argparse
import asyncio
import contextlib
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np

from keras_vit.processes import run_command

CLIENTS = (1, 8, 64)
CLOSE = 1e-5  # of probabilities
SAME = 0.1  # relative difference of the own rate, before and after
LARGE = 8  # times fewer requests of a whole batch
IMAGES = 64  # different ones
HEADER = "Inference-Header-Content-Length"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="run folders, .keras files, folders of exports")
    parser.add_argument("--requests", type=int, default=2000, help="of each number of clients (default: 2000)")
    parser.add_argument("--batch-size", type=int, default=64, help="--max-batch of the server (default: 64)")
    parser.add_argument("--seconds", type=float, default=5, help="for the artifact's own rate (default: 5)")
    parser.add_argument("--json", type=pathlib.Path, help="file to write")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # the process that measures the own rate
    options = parser.parse_args()
    if options.alone:
        measure_alone(*options.models, options)
        return
    rows = []
    for model in options.models:
        for row in measure(model, options):
            print(row, flush=True)
            rows.append(row)
    if options.json:
        from record import write_record

        write_record(options.json, batch_size=options.batch_size, requests=options.requests, rows=rows)


def measure_alone(model, options):
    """Prints the platform, the shape of images, the rate of batches, and writes the probabilities of the images."""
    from keras_vit.cli.serve import parse_options
    from keras_vit.export.classifier import open_classifier
    from keras_vit.runs.prediction import probabilities_of

    with open_classifier(parse_options([model]), []) as classifier:
        images = pictures(classifier.shape)
        batch = np.resize(images, (options.batch_size, *classifier.shape))
        wanted = probabilities_of(classifier.logits(images).astype("float64"), classifier.multi_label)
        classifier.logits(batch)
        spans, start = [], time.perf_counter()
        while time.perf_counter() - start < options.seconds:
            before = time.perf_counter()
            classifier.logits(batch)
            spans.append(time.perf_counter() - before)
        found = {"platform": classifier.platform, "shape": classifier.shape, "rate": len(batch) / np.median(spans)}
        print(json.dumps(found | {"wanted": wanted.tolist()}))


def pictures(shape):
    return np.random.default_rng(0).integers(0, 256, (IMAGES, *shape), dtype=np.uint8)


def measure(model, options):
    """A row for each number of clients and images a request."""
    before = alone(model, options)
    images, wanted = pictures(before["shape"]), np.array(before["wanted"])
    rows = []
    with server(model, options.batch_size) as address:
        for size in (1, options.batch_size):
            for clients in CLIENTS:
                count = max(options.requests // (1 if size == 1 else LARGE), 2 * clients)
                spans, seconds, errors = asyncio.run(load(address, images, wanted, clients, count, size))
                p50, p99 = (1000 * float(np.percentile(spans, share)) for share in (50, 99))
                row = {"platform": before["platform"], "images_a_request": size, "clients": clients, "requests": count}
                rows.append(row | {"rate": count * size / seconds, "p50_ms": p50, "p99_ms": p99, "errors": errors})
    rates = before["rate"], alone(model, options)["rate"]
    if max(rates) > (1 + SAME) * min(rates):
        found = f"{rates[0]:,.0f} images/s before, {rates[1]:,.0f} after"
        raise ValueError(f"own rate: received {found} ({rows}); allowed: a tenth apart, on an idle machine")
    return [row | {"own_rate": sum(rates) / 2, "own_rates": rates} for row in rows]


def alone(model, options):
    """What a process without a server measures."""
    command = [sys.executable, __file__, model, "--alone", f"--seconds={options.seconds}", f"--batch-size={options.batch_size}"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


@contextlib.contextmanager
def server(model, batch_size):
    """A running server; its address of the model."""
    command = [sys.executable, "-m", "keras_vit.cli", "serve", model, "--port=0", "--name=m", f"--max-batch={batch_size}"]
    command += [f"--max-queue={2 * CLIENTS[-1] * batch_size}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stdout if "Ctrl-C" in line)
        yield re.search(r"http://\S+\d", line)[0] + "/v2/models/m/infer"
        process.send_signal(signal.SIGTERM)
        if code := process.wait(30):
            raise ValueError(f"server: received exit code {code}; allowed: 0")
    finally:
        process.kill()
        process.wait()


async def load(address, images, wanted, clients, count, size):
    """Seconds of each request and of all, and the number of wrong answers, of so many requests by so many clients."""
    import aiohttp

    requests = [request(images, start, size) for start in range(IMAGES)]
    numbers, spans, errors = iter(range(count)), [], 0

    async def client(session):
        nonlocal errors
        for number in numbers:
            body, headers, rows = requests[number % IMAGES]
            before = time.perf_counter()
            async with session.post(address, data=body, headers=headers) as response:
                content = await response.read()
            spans.append(time.perf_counter() - before)
            length = int(response.headers.get(HEADER, 0))
            found = np.frombuffer(content[length:], "<f4") if response.status == 200 else np.empty(0)
            errors += found.size != wanted[rows].size or not np.allclose(
                found.reshape(wanted[rows].shape), wanted[rows], atol=CLOSE
            )

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=clients)) as session:
        start = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        return spans, time.perf_counter() - start, errors


def request(images, start, size):
    """Body and headers for images as bytes, and which of them they are."""
    rows = np.arange(start, start + size) % IMAGES
    binary = images[rows].tobytes()
    tensor = {
        "name": "images",
        "datatype": "UINT8",
        "shape": [size, *images.shape[1:]],
        "parameters": {"binary_data_size": len(binary)},
    }
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    text = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    return text + binary, {HEADER: str(len(text)), "Content-Type": "application/octet-stream"}, rows


if __name__ == "__main__":
    run_command(main)
