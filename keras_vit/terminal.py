"""What commands print: names and texts of files, data sets and errors reach a terminal as text alone."""

import typing
from collections.abc import Iterable

from rich.console import Console
from rich.segment import Segment

from keras_vit.checks import visible


class Terminal(Console):
    """A rich console whose own control codes are the only ones: those in what it prints become escapes.

    A closed pipe, such as `| head -1`, is a BrokenPipeError, as for Python's own streams.
    """

    def render(self, renderable: typing.Any, options: typing.Any = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible_lines(segment.text))

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def visible_lines(text: str) -> str:
    """`visible` for a text of several lines."""
    return "\n".join(map(visible, text.split("\n")))
