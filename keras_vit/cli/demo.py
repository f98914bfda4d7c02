"""Opens a page in the browser on which a trained model can be tried.

  keras-vit demo RUN                   http://127.0.0.1:7860; Ctrl-C ends it
  keras-vit demo RUN_A RUN_B           two runs side by side
  keras-vit demo RUN --port 0          a free port
  keras-vit demo RUN --host 0.0.0.0    for others in the network too

The page shows the likeliest classes of a picture, where the model looks, and how long that took. Nothing leaves this machine.
Pictures are deleted after ten minutes, and when the page ends.
"""

import contextlib
import functools
import signal
import sys
from pathlib import Path

import numpy as np

from keras_vit.checks import check_int, visible
from keras_vit.cli.command import Parser
from keras_vit.machine import tune
from keras_vit.runs.folder import RunFolder
from keras_vit.terminal import Terminal

MOST_RUNS = 3
LOOPBACK = ("127.0.0.1", "::1")


def parse_options(arguments):
    parser = Parser("demo", __doc__, "RUN [RUN ...]")
    parser.add_argument("runs", metavar="RUN", nargs="+", help=f"A run folder, or up to {MOST_RUNS}.")
    parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="Where to listen. Default: %(default)s.")
    parser.add_argument("--port", metavar="N", type=int, default=7860, help="0 = any free one. Default: %(default)s.")
    parser.add_argument("--title", metavar="TEXT", help="Title of the page. Default: the names of the runs.")
    parser.add_argument("--examples", metavar="N", type=int, default=8, help="Test images to choose from. Default: %(default)s.")
    options = parser.parse_args(arguments)
    if len(options.runs) > MOST_RUNS:
        raise ValueError(f"RUN: received {len(options.runs)}; allowed: 1 to {MOST_RUNS}")
    check_int("--port", options.port, at_least=0, at_most=65_535)
    check_int("--examples", options.examples, at_least=0, at_most=100)
    return options


def main(arguments):
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # cleans up as after Ctrl-C
    options = parse_options(arguments)
    # They need Gradio; the help does not.
    from keras_vit.demo.page import CSS
    from keras_vit.demo.server import application, bound, serve, workspace

    console = Terminal(highlight=False, markup=False, emoji=False, soft_wrap=True)
    tune()
    runs = [RunFolder(path) for path in options.runs]
    with workspace() as folder, bound(options.host, options.port) as listening:
        app = application(page_of(runs, options, Path(folder), console), CSS)
        host, port, *_ = listening.getsockname()
        console.print(f"http://{f'[{host}]' if ':' in host else host}:{port}   Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            serve(app, listening)
    return 0


def page_of(runs, options, folder, console):
    """Makes the page of some runs. Their models have run once: the first visitor waits for no compilation."""
    from keras_vit.demo.answers import Viewer
    from keras_vit.demo.examples import write_examples
    from keras_vit.demo.page import build

    viewers = [Viewer.of_run(run) for run in runs]
    for viewer in viewers:
        viewer.look(np.zeros(viewer.classifier.shape, np.uint8))
    examples, notes = write_examples(runs[0], folder, options.examples)
    for note in notes:
        console.print(note)
    if options.host not in LOOPBACK:
        console.print(f"{options.host}: whoever reaches this address can use the page")
    title = visible(options.title) if options.title else " and ".join(viewer.name for viewer in viewers)
    return functools.partial(build, viewers, title, examples, notes)
