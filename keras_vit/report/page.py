"""What all pages have in common, those of a search too: one base template, one style, one content security policy.

A page is one file. Its policy lets it load nothing and run the scripts that it names by their hashes, and no others. Jinja2 escapes
every text; control characters, such as a line break in the name of a class, become visible escapes.
"""

import base64
import datetime
import hashlib
import typing
from collections.abc import Iterable
from importlib import metadata

import jinja2
from markupsafe import Markup

from keras_vit.checks import visible

TALL = 40  # rows of a table that scrolls on its own beyond that


def render(template: str, *, package: str = "keras_vit.report", scripts: Iterable[str] = (), **content) -> str:
    """The text of a page.

    Args:
        template: Name of a template that extends base.html.
        package: Whose templates it is among; base.html and parts.html are this package's.
        scripts: JavaScript that runs before the page's own, page.js.
        **content: The variables of the template, among them `title` and `source`, the command that made the page; `now`, a date
            and time, is that of this call unless it is given.
    """
    loaders = [jinja2.PackageLoader(name) for name in dict.fromkeys((package, "keras_vit.report"))]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        finalize=shown,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    scripts = [*scripts, environment.loader.get_source(environment, "page.js")[0]]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    known = {
        "now": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "version": version(),
        "scripts": [Markup(text) for text in scripts],
        "hashes": [Markup(f"'sha256-{digest}'") for digest in digests],
        "tall": TALL,
    }
    return environment.get_template(template).render(**known | content)


def shown(value):
    """A value as a page shows it: no text has control characters."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def version() -> str:
    """The version of this distribution; empty where it is not installed."""
    try:
        return metadata.version("keras-vision-transformer")
    except metadata.PackageNotFoundError:
        return ""


def cell(text: str, number: float | None = None, *, marked: bool = False) -> dict[str, typing.Any]:
    """A cell of a table; a number sorts it, a marked one is highlighted."""
    return {"text": text, "number": None if number is None else repr(number), "command": False, "marked": marked}


def command_cell(text: str | None) -> dict[str, typing.Any]:
    """A cell with a command, to be copied."""
    return {**cell(text or ""), "command": True}


def data_uri(content: bytes, kind: str = "png") -> str:
    """A picture's file as the source of an image that needs no request."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def duration(seconds: float) -> str:
    """A time for people: 8.3 s, 59 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
