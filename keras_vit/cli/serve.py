"""Serves a trained model over HTTP, to clients of KServe and of TensorFlow Serving.

  keras-vit serve RUN                           at http://127.0.0.1:8000, until Ctrl-C
  keras-vit serve RUN/export/onnx --port 9000   an export, in its own runtime
  keras-vit serve model.keras --class-names cat dog
  curl -s 127.0.0.1:8000/v1/models/RUN:predict -d "{\\"instances\\": [{\\"b64\\": \\"$(base64 -w0 photo.jpg)\\"}]}"

KServe's protocol (v2) is at /v2/models/RUN, TensorFlow Serving's (v1) at /v1/models/RUN; also /health, and /metrics for Prometheus.
Nothing is encrypted and nobody is asked for a name: beyond this machine, put it behind a proxy that does both.
"""

import importlib.util
import re
import signal
import sys
from pathlib import Path

from keras_vit.cli.command import Parser, add_model
from keras_vit.export.classifier import open_classifier
from keras_vit.terminal import Terminal

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def parse_options(arguments):
    parser = Parser("serve", __doc__, "MODEL")
    add_model(parser)
    parser.add_argument("--name", help="Of the model, in paths. Default: that of its folder.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen at; 0.0.0.0: every one. Default: 127.0.0.1.")
    parser.add_argument("--port", metavar="N", type=int, default=8000, help="Port; 0: a free one. Default: 8000.")
    parser.add_argument("--max-batch", metavar="N", type=int, default=64, help="Images in the model at a time. Default: 64.")
    parser.add_argument(
        "--max-delay", metavar="MS", type=float, default=5.0, help="Longest wait for further images of a batch. Default: 5."
    )
    parser.add_argument("--max-images", metavar="N", type=int, default=256, help="Images of a request. Default: 256.")
    parser.add_argument(
        "--max-queue", metavar="N", type=int, default=1024, help="Images that wait; more get status 503. Default: 1024."
    )
    parser.add_argument("--max-body", metavar="MIB", type=int, default=32, help="Size of a request. Default: 32.")
    parser.add_argument("--timeout", metavar="S", type=float, default=30.0, help="For a request to arrive. Default: 30.")
    options = parser.parse_args(arguments)
    if options.name is not None and not re.fullmatch(r"[A-Za-z0-9_.-]*[A-Za-z0-9_-][A-Za-z0-9_.-]*", options.name):
        raise ValueError(f"--name: received {options.name!r}; allowed: letters, digits, -, _ and .")
    return options


def main(arguments):
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # until the server obeys it
    options = parse_options(arguments)
    missing = [package for package in PACKAGES if not importlib.util.find_spec(package)]
    if missing:
        raise ImportError(f"serve: needs {', '.join(missing)}: pip install 'keras-vision-transformer[serve]'")
    from keras_vit.serve.limits import Limits
    from keras_vit.serve.server import address_of, listen, name_of, serve

    names = ("max_batch", "max_delay", "max_images", "max_queue", "max_body", "timeout")
    limits = Limits(**{name: getattr(options, name) for name in names})
    console, notes = Terminal(highlight=False, markup=False, emoji=False), []
    with listen(options.host, options.port) as opened, open_classifier(options, notes) as classifier:
        name = options.name or name_of(Path(options.model))
        for note in notes:
            console.print(note, soft_wrap=True)

        def ready():
            console.print(f"{name} ({classifier.platform}) at {address_of(opened)}; Ctrl-C ends it", soft_wrap=True)

        serve(opened, classifier, name, limits, ready)
    console.print("ended")
