"""What tests read from a page: its tags, texts, tables, figures and pictures."""

import base64
import html.parser
import io
import json

from PIL import Image


class Page(html.parser.HTMLParser):
    """What a page holds: tags with attributes, scripts and styles, the texts, and the texts of the tables' cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.raw, self.tables, self.texts, self.open = [], [], [], [], []
        self.marked = []  # texts of highlighted cells
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append("copy" if "title" in dict(attributes) else tag)
        if tag in ("script", "style"):
            self.raw.append((tag, dict(attributes), ""))
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.marks = dict(attributes).get("class") == "marked"

    def handle_endtag(self, tag):
        while self.open and self.open.pop() not in (tag, "copy"):
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            tag, attributes, text = self.raw[-1]
            self.raw[-1] = tag, attributes, text + data
        elif self.open and self.open[-1] != "copy":
            self.texts.append(data)
            if {"td", "th"} & set(self.open):
                self.tables[-1][-1][-1] += data
                if self.marks:
                    self.marked.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def figures(self):
        return [json.loads(text) for tag, attributes, text in self.raw if attributes.get("type") == "application/json"]

    def figure(self, title):
        titles = [attributes["aria-label"] for _, attributes in self.tags if attributes.get("class") == "plot"]
        return self.figures[titles.index(title)]

    @property
    def images(self):
        """The pictures by their alternative texts, as Pillow reads them."""
        found = {}
        for tag, attributes in self.tags:
            if tag == "img":
                content = base64.b64decode(attributes["src"].partition(";base64,")[2])
                found[attributes["alt"]] = Image.open(io.BytesIO(content))
        return found

    @property
    def policy(self):
        """The rules of the content security policy by their names."""
        content = next(given["content"] for _, given in self.tags if given.get("http-equiv") == "Content-Security-Policy")
        return dict(rule.split(maxsplit=1) for rule in content.split(";"))

    def table(self, name):
        """The rows of the table whose first column has this name, without its head."""
        return next(table for table in self.tables if table[0][0] == name)[1:]
