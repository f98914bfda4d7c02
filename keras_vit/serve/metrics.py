"""What a server counts, for Prometheus."""

import time
import typing

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = tuple(2**power for power in range(13))
PROTOCOLS = {"/v1/": "tensorflow_serving", "/v2/": "open_inference"}


class Metrics:
    """Counts of one server, in a registry of its own; also middleware of ASGI that counts requests.

    Args:
        queued: Gives the images that wait.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, queued: typing.Callable[[], int]):
        self.registry = CollectorRegistry()
        known = {"registry": self.registry}
        self.requests = Counter("keras_vit_requests", "Requests by protocol and status.", ("protocol", "status"), **known)
        self.seconds = Histogram(
            "keras_vit_request_seconds", "Seconds from head to last byte of a request.", ("protocol",), buckets=SECONDS, **known
        )
        self.batches = Histogram("keras_vit_batch_images", "Images of a batch.", buckets=IMAGES, **known)
        self.model_seconds = Histogram("keras_vit_batch_seconds", "Seconds of a batch in the model.", buckets=SECONDS, **known)
        Gauge("keras_vit_queued_images", "Images that wait for the model.", **known).set_function(queued)

    def observe_batch(self, images: int, seconds: float) -> None:
        self.batches.observe(images)
        self.model_seconds.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def counted(self, app: typing.Callable) -> typing.Callable:
        """The ASGI application `app`, with its requests counted."""

        async def counting(scope, receive, send):
            if scope["type"] != "http":
                return await app(scope, receive, send)
            protocol, status, start = PROTOCOLS.get(scope["path"][:4], "other"), "500", time.perf_counter()

            async def sending(message):
                nonlocal status
                if message["type"] == "http.response.start":
                    status = str(message["status"])
                await send(message)

            try:
                await app(scope, receive, sending)
            finally:
                self.requests.labels(protocol, status).inc()
                self.seconds.labels(protocol).observe(time.perf_counter() - start)

        return counting
