"""Texts of others, such as names of classes, as text alone in Markdown."""

import re

from keras_vit.checks import visible

SIGNS = re.compile(r"[\\`*_{}\[\]<>#|~$&!]|:(?=//|\w+:)|(?<=www)\.|^[-+=]|(?<=^\d)[.)](?= )|(?<=^\d\d)[.)](?= )", re.IGNORECASE)


def literal(text: str) -> str:
    """A text that Markdown shows as it is, in one line: signs that mean something there get a backslash.

    So it is no HTML, no link of Markdown, no heading, no list, no formula, no emoji and no end of a table's cell. A number that
    begins a list has one or two digits here. Source: CommonMark 0.31, section 2.4, and GitHub's tables.
    """
    return SIGNS.sub(r"\\\g<0>", visible(str(text)))
