"""Servers that misbehave, and a user's program: for the tests of the clients."""

from __future__ import annotations

import contextlib
import http
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time

import websockets.sync.server

from conftest import HERE


class Fake:
    """A WebSocket server that answers each message with what `answer(message)` returns.

    None: it does not answer; an exception: it cuts the connection. `heard` are the messages.
    GET /tasks lists one. `options` go to websockets.
    """

    def __init__(self, answer, scheme="http", **options):
        self.answer = answer
        self.heard = []
        self.connections = 0
        self.server = websockets.sync.server.serve(
            self.talk, "127.0.0.1", 0, process_request=self.tasks, compression=None, **options
        )
        self.port = self.server.socket.getsockname()[1]
        self.url = f"{scheme}://localhost:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever)

    def tasks(self, connection, request):
        if request.path != "/tasks":
            return None
        body = {"tasks": [{"task_id": "t", "token": request.headers.get("Authorization")}]}
        return connection.respond(http.HTTPStatus.OK, json.dumps(body))

    def talk(self, connection):
        self.connections += 1
        for text in connection:
            message = json.loads(text)
            self.heard.append(message)
            try:
                reply = self.answer(message)
            except ConnectionError:
                connection.close_socket()
                return
            if reply is not None:
                connection.send(reply if isinstance(reply, str) else json.dumps(reply))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join(10)


def observation(message):
    """The answer of a server to which every action is welcome."""
    return {"type": "observation", "data": {"observation": {"echo": message}, "done": False}}


class Gate:
    """Answers the first connections with `replies` (bytes), and joins later ones to `target`.

    `requests` are the texts that the first ones sent, `times` those of all connections.
    """

    def __init__(self, target, *replies):
        self.target = target
        self.replies = list(replies)
        self.requests = []
        self.times = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                peer = self.listener.accept()[0]
                self.times.append(time.monotonic())
                if self.replies:
                    with peer:
                        self.requests.append(peer.recv(10_000).decode())
                        peer.sendall(self.replies.pop(0))
                    continue
                server = socket.create_connection(("127.0.0.1", self.target.port))
                for one, other in ((peer, server), (server, peer)):
                    threading.Thread(target=self.pump, args=(one, other), daemon=True).start()

    @staticmethod
    def pump(source, sink):
        with source:
            with contextlib.suppress(OSError):
                while piece := source.recv(65_536):
                    sink.sendall(piece)
            for each in (source, sink):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)  # which ends accept()
        self.listener.close()


def response(status, *headers, body=b""):
    """The bytes of an HTTP response."""
    lines = [f"HTTP/1.1 {status} Words", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def run_program(tmp_path, source, *arguments):
    """What a user's script prints. It must end well."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(source))
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]
