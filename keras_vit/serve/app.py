"""The ASGI application: routes, bounded bodies, errors as JSON."""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import typing

import fastapi
import numpy as np
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from keras_vit.checks import shown
from keras_vit.report.page import version
from keras_vit.runs.prediction import Classifier
from keras_vit.serve import open_inference, tensorflow_serving
from keras_vit.serve.batcher import Batcher
from keras_vit.serve.inputs import Images, decode, read_json
from keras_vit.serve.limits import Limits, Refused, busy
from keras_vit.serve.metrics import Metrics

VERSION = "1"  # of the model
SMALL = 2**16  # bytes of a body that is read at once; larger ones would hold up others
JSON, BINARY, FORM = "application/json", "application/octet-stream", "application/x-www-form-urlencoded"
HEADER_LENGTH = "Inference-Header-Content-Length"


class Service:
    """A model behind HTTP.

    Args:
        classifier: The `Classifier`.
        name: Of the model, in paths.
        limits: The `Limits`.
    """

    def __init__(self, classifier: Classifier, name: str, limits: Limits):
        self.classifier, self.name, self.limits = classifier, name, limits
        self.metrics = Metrics(lambda: self.batcher.queued)
        self.batcher = Batcher(classifier, limits, self.metrics.observe_batch)
        self.pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "decode")
        self.held = 0  # bytes of bodies in memory

    @contextlib.asynccontextmanager
    async def running(self, app: fastapi.FastAPI) -> typing.AsyncIterator[None]:
        """Runs the model's thread."""
        await asyncio.to_thread(self.batcher.start)
        try:
            yield
        finally:
            await asyncio.to_thread(self.batcher.close)
            self.pool.shutdown()

    @contextlib.asynccontextmanager
    async def body(self, request: Request, types: tuple[str, ...]) -> typing.AsyncIterator[bytes]:
        """The body of a request, which counts as in memory until the end.

        Raises:
            Refused: For another content type, a body that is too large or too slow, and while too many are in memory.
        """
        kind = request.headers.get("content-type", types[0]).partition(";")[0].strip().lower()
        if kind not in types:
            raise Refused(415, f"content-type: received {shown(kind)}; allowed: {types[0]}")
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise Refused(415, f"content-encoding: received {shown(encoding)}; allowed: none")
        most, length = self.limits.bytes_of_body, request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise self.too_large(f"{int(length):,}")
        self.batcher.check_room()
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.timeout):
                async for part in request.stream():
                    size += len(part)
                    self.held += len(part)
                    if size > most:
                        raise self.too_large(f"more than {most:,}")
                    if self.held > self.limits.bytes_held:
                        raise busy(f"body: received more than {self.limits.bytes_held:,} bytes at a time; allowed: less, later")
                    parts.append(part)
            yield b"".join(parts)
        except TimeoutError:
            message = f"{size:,} bytes in {self.limits.timeout:g} s; allowed: the whole request within that time"
            raise Refused(408, f"body: received {message}", Connection="close") from None
        finally:
            self.held -= size

    def too_large(self, received):
        message = f"body: received {received} bytes; allowed: {self.limits.bytes_of_body:,}"
        return Refused(413, message, Connection="close")  # the rest of it is not read

    async def aside(self, size: int, function: typing.Callable, *arguments: typing.Any) -> typing.Any:
        """The result of a function of so many bytes: at once where they are few, else in a thread."""
        if size <= SMALL:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)

    async def probabilities(self, field: str, images: Images, over: typing.Callable[[], None]) -> np.ndarray:
        """float32 (N, K) of images; `over` is called once they are in the queue."""
        if not isinstance(images, np.ndarray):
            self.batcher.check_room(len(images))  # before they are decoded
            loop = asyncio.get_running_loop()
            tasks = [loop.run_in_executor(self.pool, decode, field, file, self.classifier) for file in images]
            images = await asyncio.gather(*tasks, return_exceptions=True)
            for image in images:
                if isinstance(image, BaseException):
                    raise image
            images = np.stack(images)
        future = self.batcher.submit(images)
        over()
        return await asyncio.wrap_future(future)

    async def predict(self, request: Request) -> Response:
        """POST /v1/models/NAME:predict"""
        with self.batcher.announced() as over:
            async with self.body(request, (JSON, FORM)) as body:  # curl says FORM where it is told nothing

                def read():
                    content = read_json(body, self.classifier, self.limits)
                    return tensorflow_serving.read_request(content, self.classifier, self.limits)

                images, rows = await self.aside(len(body), read)
            probabilities = await self.probabilities("instances" if rows else "inputs", images, over)

        def write():
            return json.dumps(tensorflow_serving.answer(probabilities, self.classifier, rows)).encode()

        return Response(await self.aside(16 * probabilities.size, write), media_type=JSON)

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/NAME/infer"""
        with self.batcher.announced() as over:
            async with self.body(request, (JSON, BINARY)) as body:
                text, binary = divided(body, request.headers.get(HEADER_LENGTH))

                def read():
                    content = read_json(text, self.classifier, self.limits)
                    wanted = open_inference.read_outputs(content, self.classifier)
                    return content.get("id"), wanted, open_inference.read_request(content, binary, self.classifier, self.limits)

                id, wanted, images = await self.aside(len(text), read)
            probabilities = await self.probabilities("inputs", images, over)
        write = open_inference.answer, probabilities, wanted, self.classifier, self.name, VERSION, id
        content, length = await self.aside(16 * probabilities.size, *write)
        if length is None:
            return Response(content, media_type=JSON)
        return Response(content, media_type=BINARY, headers={HEADER_LENGTH: str(length)})

    def check_ready(self) -> None:
        if self.batcher.fault is not None:
            raise busy(f"model: {self.batcher.fault}")

    def check_model(self, name: str, version: str = VERSION) -> None:
        if name != self.name:
            raise Refused(404, f"model: received {shown(name)}; allowed: {self.name}")
        if version != VERSION:
            raise Refused(404, f"version: received {shown(version)}; allowed: {VERSION}")


def divided(body, length):
    """The JSON of a body, and the bytes after it; the header says where they begin."""
    if length is None:
        return body, b""
    if not length.isdecimal() or len(length) > 12 or int(length) > len(body):
        raise Refused(400, f"{HEADER_LENGTH}: received {shown(length)}; allowed: 0 to {len(body):,}, the bytes of the body")
    return body[: int(length)], body[int(length) :]


def create_app(classifier: Classifier, name: str, limits: Limits | None = None) -> fastapi.FastAPI:
    """The application of a server for one model.

    Args:
        classifier: The `Classifier`; one thread of the application calls it.
        name: Of the model, in paths such as /v2/models/NAME/infer.
        limits: The `Limits`; None = the defaults.
    """
    service = Service(classifier, name, limits or Limits())
    # No pages that load scripts from elsewhere.
    app = fastapi.FastAPI(lifespan=service.running, docs_url=None, redoc_url=None, openapi_url=None)
    add_errors(app, service)

    @app.get("/health")
    async def health():
        service.check_ready()
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics():
        return Response(service.metrics.text(), headers={"Content-Type": service.metrics.content_type})

    add_open_inference(app, service)
    add_tensorflow_serving(app, service)
    app.add_middleware(lambda app: service.metrics.counted(app))
    return app


def add_open_inference(app, service):
    @app.get("/v2")
    async def server():
        return {"name": "keras_vit", "version": version(), "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live")
    async def live():
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready():
        service.check_ready()
        return {"ready": True}

    for place in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):

        @app.get(place)
        async def model(name: str, version: str = VERSION):
            service.check_model(name, version)
            return open_inference.metadata(name, VERSION, service.classifier)

        @app.get(f"{place}/ready")
        async def model_ready(name: str, version: str = VERSION):
            service.check_model(name, version)
            service.check_ready()
            return {"name": name, "ready": True}

        @app.post(f"{place}/infer")
        async def infer(request: Request, name: str, version: str = VERSION):
            service.check_model(name, version)
            return await service.infer(request)


def add_tensorflow_serving(app, service):
    for place in ("/v1/models/{name}", "/v1/models/{name}/versions/{version}"):

        @app.get(f"{place}/metadata")
        async def model_metadata(name: str, version: str = VERSION):
            service.check_model(name, version)
            return tensorflow_serving.metadata(name, VERSION, service.classifier)

        @app.post(f"{place}:predict")
        async def predict(request: Request, name: str, version: str = VERSION):
            service.check_model(name, version)
            return await service.predict(request)

        @app.get(place)
        async def status(name: str, version: str = VERSION):
            service.check_model(name, version)
            return tensorflow_serving.status(VERSION, service.batcher.fault)


def add_errors(app, service):
    """Every error is {"error": "field: received X; allowed: Y"}."""

    @app.exception_handler(Refused)
    async def refused(request, error):
        return answer(error.status, str(error), error.headers)

    @app.exception_handler(HTTPException)
    async def of_routes(request, error):
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "GET")
            return answer(405, f"method: received {request.method}; allowed: {allowed}", error.headers)
        places = f"/v1/models/{service.name}, /v2/models/{service.name}, /health, /metrics and what is below them"
        return answer(error.status_code, f"path: received {shown(request.url.path)}; allowed: {places}")

    @app.exception_handler(ClientDisconnect)
    async def gone(request, error):
        return Response(status_code=499)  # nobody reads it; it is counted

    @app.exception_handler(Exception)
    async def fault(request, error):
        return answer(500, f"server: received a request that led to a {type(error).__name__}; its log says more")


def answer(status, message, headers=None):
    return Response(json.dumps({"error": message}), status, headers, JSON)
