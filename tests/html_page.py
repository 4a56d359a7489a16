"""An HTML page as tests look at it."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image


class Page(HTMLParser):
    """The rows of all tables, headlines, sources of images and every address that a browser would ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows, self.images, self.addresses, self.tags, self._cell = [], [], [], set(), None
        self.headings, self._heading = [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        values = dict(attrs)
        if tag == "img":
            self.images.append(values["src"])
        self.addresses += [
            values[name] for name in ("src", "href", "data", "action", "srcset") if name in values
        ]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = ""
        if tag in ("h1", "h2", "h3"):
            self._heading = ""

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data
        if self._heading is not None:
            self._heading += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(self._cell.strip())
            self._cell = None
        if tag in ("h1", "h2", "h3"):
            self.headings.append(self._heading.strip())
            self._heading = None

    def pictures(self) -> list[Image.Image]:
        return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in self.images]
