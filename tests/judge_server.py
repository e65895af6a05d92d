"""An OpenAI-compatible endpoint for tests: a judge that reads, and misbehaves as it is told."""

import collections
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class JudgeServer(ThreadingHTTPServer):
    """Answers rightly after `delay` seconds, unless `misbehave(handler, prompt, nth)` does otherwise and returns True."""

    daemon_threads = True

    def __init__(self, handler=None):
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.delay, self.misbehave = 0.0, lambda handler, prompt, nth: None
        self.lock, self.released = threading.Lock(), threading.Event()
        self.asked, self.bodies, self.times = collections.Counter(), [], []
        self.now = self.most = self.answered = self.input_tokens = self.output_tokens = 0

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        pass  # clients that gave up


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = self.prompt_of(body)
        with server.lock:
            nth = server.asked[prompt]
            server.asked[prompt] += 1
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.now += 1
            server.most = max(server.most, server.now)
        server.released.wait(server.delay)
        if not server.misbehave(self, prompt, nth):
            self.answer(body)

    def prompt_of(self, body):
        return body["messages"][0]["content"]

    def answer(self, body):
        self.say(right_answer(self.prompt_of(body)))

    def say(self, content, *, counted=True, **changes):
        """A completion with this text, whose tokens are counted; `changes` replace fields of the reply."""
        tokens = {"prompt_tokens": 7 + len(content), "completion_tokens": 1 + len(content) // 2}
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        if counted:
            with self.server.lock:
                self.server.answered += 1
                self.server.input_tokens += tokens["prompt_tokens"]
                self.server.output_tokens += tokens["completion_tokens"]
        reply = {"object": "chat.completion", "choices": [choice], "usage": tokens if counted else None}
        return self.send(200, reply | changes)

    def send(self, status, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.leave()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": len(data)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data)
        return True

    def drop(self, sent=b""):
        """Ends the connection, in the middle of the reply if something was sent."""
        self.leave()
        self.wfile.write(sent)
        self.close_connection = True
        return True

    def leave(self):
        with self.server.lock:  # before the client can know of the reply, and send its next request
            self.server.now -= 1

    def log_message(self, *_):
        pass


def right_answer(prompt):
    """A judge that reads: a criterion "Says WORD." is met if the answer has the word, and so is the fault of a Pitfall."""
    answer = re.search(r"<answer-(\w+)>\n(.*)\n</answer-\1>", prompt, re.S).group(2)
    criteria = re.findall(r"^(\d+)\. \((met|fault)\) Says (\w+)\.$", prompt, re.M)
    return json.dumps(
        {"verdicts": [{"criterion": int(i), "reason": f"{w}?", name: w in answer.split()} for i, name, w in criteria]}
    )
