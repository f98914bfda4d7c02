"""The server of the page: one address, bounded requests, nothing loaded from elsewhere."""

import asyncio
import errno
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import fastapi
import gradio as gr
import uvicorn

MAX_UPLOAD = 20 * 2**20  # bytes of a picture file
MAX_BODY = 2**18  # bytes of another request
ENVELOPE = 2**12  # bytes around an uploaded file
GRACE_SECONDS = 1  # for open requests when the server ends
API = "/gradio_api"
# What the page needs. Gradio has more: recordings that start another program, proxies, run histories.
READ = ("/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", "/static/", "/assets/", "/svelte/")
READ += tuple(API + part for part in ("/file=", "/info", "/heartbeat/", "/queue/data", "/upload_progress", "/call/", "/theme.css"))
WRITTEN = tuple(API + part for part in ("/upload", "/queue/join", "/run/", "/cancel", "/reset", "/call/"))
HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:",  # nothing from another host
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """Lets the requests through that the page needs, in bounded size, and forbids the page to load anything from elsewhere.

    Args:
        app: The ASGI application.
    """

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send) if scope["type"] == "lifespan" else None
        code, text = refusal(scope)
        if code:
            await send({"type": "http.response.start", "status": code, "headers": [(b"content-type", b"text/plain")]})
            return await send({"type": "http.response.body", "body": text.encode()})

        async def guarded(message):
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *ours]}
            await send(message)

        return await self.app(scope, receive, guarded)


def refusal(scope) -> tuple[int, str]:
    """The status code and the text of a request that is refused; 0 for one that is let through."""
    path, method = scope["path"], scope["method"]
    if method in ("GET", "HEAD"):
        return (0, "") if path == "/" or path.startswith(READ) else (404, "no such page")
    if method != "POST" or not path.startswith(WRITTEN):
        return 404, "no such page"
    stated = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
    if not stated.isdecimal():
        return 411, "the request must state its length"
    most = MAX_UPLOAD + ENVELOPE if path.rstrip("/") == f"{API}/upload" else MAX_BODY
    if int(stated[:20]) > most:
        return 413, f"received {stated[:20]} bytes; allowed: {most:,}"
    return 0, ""


class Server(uvicorn.Server):
    """A server that ends in silence: open connections of browsers are no fault then."""

    async def shutdown(self, sockets=None):
        logging.getLogger("uvicorn.error").disabled = True
        await super().shutdown(sockets)


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at an address, before it listens.

    Raises:
        ValueError: For a host that is none of this machine, and a port that is in use or not free to take.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError):
        raise ValueError(f"--host: received {host!r}; allowed: an address of this machine, such as 127.0.0.1") from None
    with socket.socket(family, kind, protocol) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
            found.listen(128)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ValueError(f"--host: received {host!r}; allowed: an address of this machine, such as 127.0.0.1") from None
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise ValueError(f"--port: received {port}, which {reason}; allowed: another port, or 0 for a free one") from None
        yield found


@contextmanager
def workspace() -> Iterator[str]:
    """A temporary folder for uploads and shown pictures, which Gradio then uses; it is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="keras-vit-demo-", ignore_cleanup_errors=True) as folder:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield folder
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def application(build: Callable[[], gr.Blocks], css: str) -> Guard:
    """The ASGI application of the page that `build` makes.

    It is made in an event loop that is then closed: outside of one, Gradio opens a loop for each of its locks and leaves it open.
    """

    async def made():
        app, page = fastapi.FastAPI(openapi_url=None), build()
        page.has_launched = (
            True  # else Gradio takes the page for a draft, and reads every file of this machine that a visitor names
        )
        theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        gr.mount_gradio_app(
            app, page, "/", theme=theme, css=css, max_file_size=MAX_UPLOAD, show_error=False, footer_links=[],
            run_history=False, ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False,
        )  # fmt: skip
        return Guard(app)

    return asyncio.run(made())


def serve(app: Guard, listening: socket.socket) -> None:
    """Serves until Ctrl-C (KeyboardInterrupt) or SIGTERM, whose handler is called at the end."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS, server_header=False)
    Server(config).run(sockets=[listening])
