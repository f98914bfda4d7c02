"""A server on a port, from its start to its end by a signal."""

import signal
import socket
import typing
import warnings
from pathlib import Path

import uvicorn

from keras_vit.checks import check_int
from keras_vit.export.runtimes import FILES
from keras_vit.runs.prediction import Classifier
from keras_vit.serve.app import create_app
from keras_vit.serve.limits import Limits

BACKLOG = 1024  # connections that wait to be accepted
IDLE_SECONDS = 30  # after which an open connection without a request is closed


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; with port 0 at a free one.

    Raises:
        ValueError: For a port in use, and an address that is not this machine's.
    """
    check_int("--port", port, 0, 65535)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ValueError(f"--host: received {host!r}; allowed: an address or name of this machine") from None
    family, kind, protocol, _, address = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was in use until now is free
        opened.bind(address)
        opened.listen(BACKLOG)  # clients that come while the model is loaded wait
    except OSError as error:
        opened.close()
        field, value = ("--host", repr(host)) if error.errno == 99 else ("--port", port)
        raise ValueError(
            f"{field}: received {value} ({error.strerror}); allowed: an address of this machine with a free port"
        ) from None
    return opened


def address_of(opened: socket.socket) -> str:
    """The address of a listening socket for a client."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    opened: socket.socket, classifier: Classifier, name: str, limits: Limits, ready: typing.Callable[[], None] = lambda: None
) -> None:
    """Serves until SIGTERM or SIGINT; requests that have arrived are answered first.

    Args:
        opened: A socket of `listen`.
        classifier: The `Classifier`.
        name: Of the model.
        limits: The `Limits`.
        ready: Called once requests are answered.
    """
    for message in ("Image size", "Palette images"):  # the size is checked here, in words of this library
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # pictures that are read in spite of a fault
    app = create_app(classifier, name, limits)
    settings = {"timeout_keep_alive": IDLE_SECONDS, "timeout_graceful_shutdown": round(limits.timeout), "server_header": False}
    server = Server(uvicorn.Config(app, log_level="warning", access_log=False, backlog=BACKLOG, **settings))
    server.ready = ready

    def end(number, frame):
        server.should_exit = True

    # uvicorn repeats the signal at its end: by then it has been obeyed, and this process ends as one without a fault.
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run([opened])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Server(uvicorn.Server):
    """A server that says when it is ready."""

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.ready()


def name_of(path: Path) -> str:
    """A model's name in paths: that of its run, folder or file."""
    path = path.expanduser().resolve()
    if path.name == "best.keras" or path.name in FILES.values():
        path = path.parent
    if path.parent.name == "export":  # RUN/export/onnx
        path = path.parent.parent
    name = path.stem if path.suffix == ".keras" else path.name
    return "".join(sign if sign.isascii() and (sign.isalnum() or sign in "-_.") else "-" for sign in name).strip(".") or "model"
