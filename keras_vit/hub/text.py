"""Texts of others, such as names of classes, as text alone in Markdown."""

import re

from keras_vit.checks import visible


def literal(text: str) -> str:
    """A text that Markdown shows as it is, in one line: every ASCII punctuation mark gets a backslash.

    So it is no HTML, no link, no heading, no formula and no end of a table's cell. Source: CommonMark 0.31, section 2.4.
    """
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", visible(" ".join(str(text).split(" "))))
