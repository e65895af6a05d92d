"""Google Cloud Storage's JSON API for tests, as far as tensorstore speaks it: objects of a dict, read and written over HTTP."""

import json
import re
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class GcsServer(ThreadingHTTPServer):
    """Serves objects, which others may change meanwhile, under `url`; takes none while `refuses`.

    Args:
      read: () -> {"bucket/name": bytes}, all objects.
      write: ("bucket/name", bytes) -> None; None instead of bytes deletes.
    """

    daemon_threads = True

    def __init__(self, read, write):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.read, self.write, self.lock, self.refuses = read, write, threading.Lock(), False

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def generation(data):
    """Of an object that is there; 0 stands for one that is not."""
    return "0" if data is None else str(1 + zlib.crc32(data))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, data=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer_json(self, value):
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def asked(self):
        """(bucket, name of an object or "", query, whether the request's conditions hold, the object's bytes or None)."""
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        bucket, name = re.search(r"/b/([^/]+)/o/?(.*)", parts.path).groups()
        name = unquote(name) or query.get("name", "")
        data = self.server.read().get(f"{bucket}/{name}")
        holds = query.get("ifGenerationMatch", generation(data)) == generation(data)
        return bucket, name, query, holds, data

    def do_GET(self):
        bucket, name, query, holds, data = self.asked()
        if not name:
            prefix = f"{bucket}/{query.get('prefix', '')}"
            names = sorted(path for path in self.server.read() if path.startswith(prefix))
            return self.answer_json({"items": [{"name": path.partition("/")[2], "size": "1"} for path in names]})
        if data is None:
            return self.answer(404)
        if not holds:
            return self.answer(412)
        if query.get("ifGenerationNotMatch") == generation(data):
            return self.answer(304)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return self.answer(200, data, x_goog_generation=generation(data))
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        where = f"bytes {first}-{last}/{len(data)}"
        self.answer(206, data[first : last + 1], x_goog_generation=generation(data), Content_Range=where)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            bucket, name, _, holds, _ = self.asked()
            if self.server.refuses:
                return self.answer(403, b"no permission to write")
            if not holds:
                return self.answer(412)
            self.server.write(f"{bucket}/{name}", body)
        self.answer_json({"name": name, "size": str(len(body)), "generation": generation(body)})

    def do_DELETE(self):
        with self.server.lock:
            bucket, name, _, holds, data = self.asked()
            if data is None or not holds:
                return self.answer(404 if data is None else 412)
            self.server.write(f"{bucket}/{name}", None)
        self.answer(204)
