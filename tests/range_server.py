"""A local web server that gives parts of files, and errors when it is told to."""

import http.server
from typing import ClassVar


class RangeServer(http.server.SimpleHTTPRequestHandler):
    """Python's file server with ranges; the next ``failures`` requests of images are answered 503."""

    ranges = True
    failures = 0
    requests: ClassVar[list] = []

    def do_GET(self):
        type(self).requests.append((self.path, self.headers.get("Range")))
        if type(self).failures:
            type(self).failures -= 1
            self.send_error(503)
            return
        if not self.ranges or "Range" not in self.headers:
            super().do_GET()
            return
        with open(self.translate_path(self.path), "rb") as file:
            content = file.read()
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_):
        pass
