"""Batches of concurrent requests, full queues, and models that fail."""

import asyncio
import json
import threading

import numpy as np
import pytest

from keras_vit.runs.prediction import Classifier
from keras_vit.serve.batcher import Batcher
from keras_vit.serve.limits import Limits, Refused

SECONDS = 20


class Model:
    """Logits that tell images apart; it waits until it may go on, and keeps the sizes of its batches."""

    def __init__(self, **settings):
        self.sizes, self.go, self.started, self.fails = [], threading.Event(), threading.Event(), None
        self.go.set()
        self.classifier = Classifier((1, 1, 1), ["a", "b"], self.logits, **settings)

    def logits(self, images):
        self.sizes.append(len(images))
        self.started.set()
        assert self.go.wait(SECONDS)
        if self.fails:
            raise self.fails
        first = images[:, 0, 0, 0].astype("float32")
        return np.stack([np.where(first == 255, np.nan, first), np.zeros_like(first)], axis=1)


@pytest.fixture
def made():
    batchers = []

    def make(model, **limits):
        batcher = Batcher(model.classifier, Limits(**limits))
        batchers.append(batcher)
        batcher.start()
        model.sizes.clear()
        model.started.clear()
        return batcher

    yield make
    for batcher in batchers:
        batcher.close()


def images(*values):
    return np.array(values, np.uint8).reshape(-1, 1, 1, 1)


def check(future, *values):
    expected = [[1 / (1 + np.exp(-float(value))), 1 / (1 + np.exp(float(value)))] for value in values]
    np.testing.assert_allclose(future.result(SECONDS), expected, atol=1e-6)
    assert future.result().dtype == np.float32


def test_images_that_come_while_the_model_runs_are_one_batch(made):
    model = Model()
    batcher = made(model, max_batch=8, max_delay=0)
    model.go.clear()
    first = batcher.submit(images(1))
    assert model.started.wait(SECONDS)
    others = [batcher.submit(images(*range(start, start + 3))) for start in (2, 5, 8)]
    large = batcher.submit(images(*range(20)))  # more than a batch
    assert batcher.queued == 29
    model.go.set()
    check(first, 1)
    for start, future in zip((2, 5, 8), others, strict=True):
        check(future, *range(start, start + 3))
    check(large, *range(20))
    assert model.sizes == [1, 6, 3, 8, 8, 4]


def test_a_batch_waits_for_requests_that_are_being_read(made):
    model = Model()
    batcher = made(model, max_batch=8, max_delay=10_000)
    with batcher.announced() as first, batcher.announced() as second:
        one = batcher.submit(images(1))
        first()
        two = batcher.submit(images(2))
        second()  # nobody else is coming: the batch need not wait for its time
        check(one, 1)
        check(two, 2)
    assert model.sizes == [2]
    check(batcher.submit(images(3)), 3)
    with batcher.announced():  # which never gives images
        check(batcher.submit(images(*range(8))), *range(8))  # a full batch does not wait
    assert model.sizes == [2, 1, 8]


def test_sizes_that_the_model_takes(made):
    fixed = Model(batch_size=4)
    batcher = made(fixed)
    check(batcher.submit(images(*range(5))), *range(5))
    assert fixed.sizes == [4, 4]
    compiled = Model(compiled=True)
    batcher = Batcher(compiled.classifier, Limits(max_batch=6))
    batcher.start()
    assert compiled.sizes == [1, 2, 4, 6]  # compiled before the first request
    check(batcher.submit(images(*range(9))), *range(9))
    assert compiled.sizes[4:] == [6, 4]
    batcher.close()


def test_a_full_queue_is_refused(made):
    model = Model()
    batcher = made(model, max_images=4, max_queue=4)
    model.go.clear()
    running = batcher.submit(images(1))
    assert model.started.wait(SECONDS)
    waiting = batcher.submit(images(2, 3, 4))
    with pytest.raises(Refused, match="queue: received 3 images that wait, and 2 more; allowed: 4") as caught:
        batcher.submit(images(5, 6))
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
    model.go.set()
    check(running, 1)
    check(waiting, 2, 3, 4)
    check(batcher.submit(images(5, 6)), 5, 6)


def test_a_model_that_fails(made):
    model = Model()
    batcher = made(model)
    model.fails = RuntimeError("out of\nmemory")
    with pytest.raises(Refused, match="model: out of memory") as caught:
        batcher.submit(images(1)).result(SECONDS)
    assert caught.value.status == 500
    assert batcher.fault == "out of memory"
    model.fails = None
    check(batcher.submit(images(2)), 2)
    assert batcher.fault is None
    model.go.clear()
    running = batcher.submit(images(3))
    assert model.started.wait(SECONDS)
    broken, good = batcher.submit(images(4, 255)), batcher.submit(images(5))
    model.go.set()
    check(running, 3)
    check(good, 5)  # of the same batch
    with pytest.raises(Refused, match="logits: received NaN or infinity for 1 of 2 images; allowed: finite numbers"):
        broken.result(SECONDS)


def test_what_waits_at_the_end_is_answered():
    model = Model()
    batcher = Batcher(model.classifier, Limits())
    batcher.start()
    model.go.clear()
    futures = [batcher.submit(images(value)) for value in range(3)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    model.go.set()
    closing.join(SECONDS)
    for value, future in enumerate(futures):
        check(future, value)
    assert not batcher.thread.is_alive()


def test_limits_that_do_not_fit():
    with pytest.raises(ValueError, match="max_queue: received 8; allowed: at least 256, that of max_images"):
        Limits(max_queue=8)
    with pytest.raises(ValueError, match="max_delay: received -1; allowed: a number of at least 0"):
        Limits(max_delay=-1)


def test_server_with_a_model_that_fails_or_is_busy():
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from keras_vit.serve.app import create_app

    model = Model()
    with TestClient(create_app(model.classifier, "m", Limits(max_images=2, max_queue=2))) as client:

        def ask(*values):
            return client.post("/v1/models/m:predict", json={"instances": images(*values).tolist()})

        assert ask(1).status_code == 200
        model.fails = RuntimeError("no device")
        assert (ask(1).status_code, ask(1).json()) == (500, {"error": "model: no device"})
        for path in ("/health", "/v2/health/ready", "/v2/models/m/ready"):
            assert (client.get(path).status_code, client.get(path).json()) == (503, {"error": "model: no device"})
        assert client.get("/v1/models/m").json()["model_version_status"][0]["state"] == "UNAVAILABLE"
        assert client.get("/v2/health/live").status_code == 200
        model.fails = None
        assert ask(1).status_code == 200
        assert client.get("/health").json() == {"status": "ok"}
        model.go.clear()
        model.started.clear()
        threads = [threading.Thread(target=ask, args=(1,))]
        threads[0].start()
        assert model.started.wait(SECONDS)
        threads.append(threading.Thread(target=ask, args=(1, 2)))
        threads[1].start()
        while (response := client.post("/v1/models/m:predict", content=b"{")).status_code != 503:
            assert response.status_code == 400
        assert response.json() == {"error": "queue: received 2 images that wait, and 1 more; allowed: 2"}
        assert response.headers["retry-after"] == "1"
        model.go.set()
        for thread in threads:
            thread.join(SECONDS)
        assert ask(1).status_code == 200


def test_clients_that_hang_up_or_send_nothing():
    """Their requests end without an error in the log; the body that was there counts no longer."""
    pytest.importorskip("fastapi")
    from keras_vit.serve.app import Service, create_app

    model, services = Model(), []

    class Kept(Service):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            services.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras_vit.serve.app.Service", Kept)
        app = create_app(model.classifier, "m", Limits(timeout=0.2))
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/models/m:predict",
        "headers": [],
        "query_string": b"",
        "http_version": "1.1",
    }
    sent = []

    async def send(message):
        sent.append(message)

    async def ask(*messages):
        left, sent[:] = [*messages], []

        async def receive():
            if left:
                return left.pop(0)
            await asyncio.sleep(SECONDS)

        await app(dict(scope), receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

    async def main():
        part = {"type": "http.request", "body": b"{" * 1000, "more_body": True}
        status, _ = await ask(part, {"type": "http.disconnect"})
        assert status == 499
        status, text = await ask(part)
        assert (status, json.loads(text)) == (
            408,
            {"error": "body: received 1,000 bytes in 0.2 s; allowed: the whole request within that time"},
        )
        services[0].held = services[0].limits.bytes_held
        status, text = await ask(part)
        assert (status, json.loads(text)["error"][:38]) == (503, "body: received more than 268,435,456 b")

    asyncio.run(main())
    assert services[0].held == services[0].limits.bytes_held
    assert services[0].batcher.coming == 0
