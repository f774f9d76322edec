"""Chapters 6, 7 and 9: the server, the command line, HTTP and the messages, driven as peers do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import http.client
import itertools
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.client
import websockets.server
from websockets.frames import Frame
from websockets.frames import Opcode

import python_env
from conftest import HERE
from conftest import Guess
from conftest import GuessClient
from conftest import Guessing
from conftest import GuessState
from conftest import Hint
from conftest import Hosted
from conftest import Launched
from conftest import Models
from conftest import abort
from conftest import ask
from conftest import call
from conftest import close_code
from conftest import eventually
from conftest import hear
from conftest import named
from conftest import nothing_left
from conftest import open_tcp
from conftest import processes
from conftest import request
from conftest import rest
from conftest import result
from conftest import sessions
from conftest import step
from conftest import tell
from conftest import ws
from python_env import LIMITS
from python_env import ROUTES
from python_env import Action
from python_env import Environment
from python_env import HTTPError
from python_env import InvalidRequest
from python_env import Observation
from python_env import PythonAction
from python_env import PythonEnv
from python_env import Reply
from python_env import Request
from python_env import ServerError
from python_env import State
from python_env import Task
from python_env import builtin_tasks
from python_env import encode_response
from python_env import json_schema
from python_env import main
from python_env import read_request
from python_env import to_json

# ── HTTP: reading a request ───────────────────────────────────────────────────────────────────────

NEXT = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n"
CHUNKED_HEAD = b"Transfer-Encoding: chunked"


class Written:
    """Stands in for a StreamWriter."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def head(*lines: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes | None = b"Host: h") -> bytes:
    return b"\r\n".join([start, *([host] if host else []), *lines, b"", b""])


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return head(*lines, start=b"POST /s HTTP/1.1") + body


def chunked(body: bytes) -> bytes:
    return post(CHUNKED_HEAD, body=body)


async def read_pieces(data: bytes, size: int, eof: bool, limits: Any) -> tuple[list[Any], bytes]:
    reader = asyncio.StreamReader(limit=limits.head_bytes)
    writer = Written()
    found: list[Any] = []

    async def read_all() -> None:
        try:
            while True:
                found.append(await read_request(reader, writer, limits))
                if found[-1] is None:
                    return
        except HTTPError as error:
            assert str(error).isascii()
            assert str(error).isprintable()
            found.append(error.status)

    reading = asyncio.create_task(read_all())
    for at in range(0, len(data), size):
        if reading.done():
            break
        reader.feed_data(data[at : at + size])
        await asyncio.sleep(0)
    if eof:
        reader.feed_eof()
        await asyncio.wait_for(reading, 10)
    for _ in range(50):
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    return found, writer.data


def read(data: bytes, size: int = 2**30, eof: bool = False, limits: Any = LIMITS) -> list[Any]:
    """What a peer sends, in pieces of `size`, as it is read: requests, None at a clean end, and
    last, the status of a refusal."""
    return asyncio.run(read_pieces(data, size, eof, limits))[0]


def good(data: bytes) -> Request:
    """The one request of `data`, however it comes and whatever follows."""
    found = read(data, eof=True)
    assert len(found) == 2, found
    assert found[1] is None
    for size in (1, 3):
        assert read(data, size, eof=True) == found
    first, second = read(data + NEXT)
    assert first == found[0]
    assert second.path == "/next"
    return first


def refused(data: bytes) -> int:
    """The status with which `data` is refused, however it comes and whatever follows."""
    (status,) = read(data)
    assert read(data, 1) == read(data, 3) == read(data + NEXT) == [status]
    assert isinstance(status, int), f"accepted: {status}"
    return status


def test_a_plain_request_is_read_with_its_headers():
    data = head(b"Accept: a", b"accept:\t b ", b"X:", b"X-Obs: \xe9")
    seen = good(data)
    assert (seen.method, seen.path, seen.query, seen.version) == ("GET", "/", {}, "1.1")
    assert seen.headers == {"host": "h", "accept": "a, b", "x": "", "x-obs": "\xe9"}
    assert seen.head == data
    assert seen.keep_alive
    assert not seen.is_upgrade


@pytest.mark.parametrize(
    "data",
    [
        head(b"Content-Length: 12", start=b"POST /s HTTP/1.1") + b'{"a": 1}\r\n\r\n',
        head(b"Content-Length: 00012", start=b"POST /s HTTP/1.0") + b'{"a": 1}\r\n\r\n',
        chunked(b'C\r\n{"a": 1}\r\n\r\n\r\n0\r\n\r\n'),
        chunked(b'004;x="\xff";y\r\n{"a"\r\n8\t;\r\n: 1}\r\n\r\n\r\n000\r\nT: x\r\nU: 7\r\n\r\n'),
    ],
    ids=["length", "length in 1.0", "a chunk", "chunks, extensions, trailers"],
)
def test_a_body_comes_by_its_length_or_in_chunks(data):
    assert good(data).body == b'{"a": 1}\r\n\r\n'


@pytest.mark.parametrize(
    "target, path, query",
    [
        (b"/", "/", {}),
        (b"/a%20b%2520?x=1&y=%26+&z=&x=2&f", "/a b%20", {"x": "2", "y": "& ", "z": "", "f": ""}),
        (b"/caf%C3%A9/%ff?q=%E2%82%AC", "/caf\xe9/\ufffd", {"q": "\u20ac"}),
        (b"//evil/..//x", "//evil/..//x", {}),
        (b"/?next=http://x/?y", "/", {"next": "http://x/?y"}),
        (b"/" + b"a" * 8191, "/" + "a" * 8191, {}),
    ],
)
def test_a_target_is_decoded_once(target, path, query):
    seen = good(head(start=b"GET " + target + b" HTTP/1.1"))
    assert (seen.path, seen.query) == (path, query)


@pytest.mark.parametrize(
    "target, path",
    [
        (b"http://real:80/a?b=c", "/a"),
        (b"HTTPS://real:80?b=c", "/"),
        (b"http://real:80/?b=c", "/"),
        (b"http://real:80//a?b=c", "//a"),
    ],
)
def test_the_host_of_an_absolute_target_wins(target, path):
    seen = good(head(start=b"GET " + target + b" HTTP/1.1"))
    assert (seen.path, seen.query) == (path, {"b": "c"})
    assert seen.headers["host"] == "real:80"


def test_an_asterisk_and_unknown_methods_are_read():
    assert good(head(start=b"OPTIONS * HTTP/1.1")).path == "*"
    assert good(head(start=b"M-SEARCH! /x HTTP/1.1")).method == "M-SEARCH!"


@pytest.mark.parametrize(
    "version, lines, keep",
    [
        (b"1.1", [], True),
        (b"1.1", [b"Connection: x, Close"], False),
        (b"1.1", [b"Connection: x", b"Connection: close"], False),
        (b"1.1", [b"Connection: not-close"], True),
        (b"1.0", [], False),
        (b"1.0", [b"Connection: Keep-Alive"], True),
        (b"1.0", [b"Connection: keep-alive, close"], False),
    ],
)
def test_keep_alive_is_the_default_of_1_1_alone(version, lines, keep):
    assert good(head(*lines, start=b"GET / HTTP/" + version)).keep_alive is keep


def test_http_1_0_needs_no_host():
    assert good(head(start=b"GET / HTTP/1.0", host=None)).headers == {}


@pytest.mark.parametrize(
    "start, lines, upgrade",
    [
        (b"GET /ws HTTP/1.1", [b"Connection: keep-alive, Upgrade", b"Upgrade: WebSocket"], True),
        (b"GET /ws HTTP/1.1", [b"Upgrade: websocket"], False),
        (b"GET /ws HTTP/1.1", [b"Connection: upgrade", b"Upgrade: h2c"], False),
        (b"GET /ws HTTP/1.0", [b"Connection: upgrade", b"Upgrade: websocket"], False),
    ],
)
def test_an_upgrade_needs_both_headers_and_1_1(start, lines, upgrade):
    seen = good(b"\r\n" + head(*lines, start=start))
    assert seen.is_upgrade is upgrade
    assert seen.head == head(*lines, start=start)  # without the empty line before


def test_the_head_satisfies_websockets():
    lines = [
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    protocol = websockets.server.ServerProtocol()
    protocol.receive_data(good(head(*lines, start=b"GET /ws?session_id=a HTTP/1.1")).head)
    (event,) = protocol.events_received()
    assert protocol.accept(event).status_code == 101


REFUSED_LINES = {
    400: [
        b"GET  / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b" GET / HTTP/1.1",
        b"GET /",
        b"GET / http/1.1",
        b"GET / HTTP/1.10",
        b"GET / HTTP/11",
        b"G(T / HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET /\xe9 HTTP/1.1",
        b"GET /\0 HTTP/1.1",
        b"GET / x HTTP/1.1",
        b"\rGET / HTTP/1.1",
        b"GET * HTTP/1.1",
        b"GET x HTTP/1.1",
        b"CONNECT h:443 HTTP/1.1",
        b"GET h:80 HTTP/1.1",
        b"GET /#f HTTP/1.1",
        b"GET http://h#f HTTP/1.1",
        b"GET http://u@h/ HTTP/1.1",
        b"GET http:///x HTTP/1.1",
        b"GET ftp://h/ HTTP/1.1",
        b"GET ?x HTTP/1.1",
        b"GET /%4 HTTP/1.1",
        b"GET /%zz HTTP/1.1",
        b"GET /?a=% HTTP/1.1",
        b"GET /%u0041 HTTP/1.1",
    ],
    414: [b"GET /" + b"a" * 8192 + b" HTTP/1.1", b"GET /" + b"a" * 16_384 + b" HTTP/1.1"],
    505: [b"GET / HTTP/2.0", b"PRI * HTTP/2.0", b"GET / HTTP/1.2", b"GET / HTTP/0.9"],
}
REFUSED_HEADERS = {
    400: [
        [b"Host: h"],
        [b"host: other"],
        [b"Origin: a", b"Origin: a"],
        [b"Authorization: a", b"authorization: b"],
        [b"Content-Type: a", b"Content-Type: a"],
        [b"A : b"],
        [b" A: b"],
        [b"A: b", b" folded"],
        [b"A: b", b"\tfolded"],
        [b": b"],
        [b"A"],
        [b"A: b\0"],
        [b"A: b\rc"],
        [b"A: b\x7f"],
        [b"A: b\x0b"],
        [b"A\xe9: b"],
        [b"A: b\nC: d"],
        [b"A: b\r\r"],
        [b"Content-Length: +1"],
        [b"Content-Length: 1_0"],
        [b"Content-Length: "],
        [b"Content-Length: 1, 1"],
        [b"Content-Length: 1 1"],
        [b"Content-Length: -1"],
        [b"Content-Length: 0x1"],
        [b"Content-Length: \xb2"],
        [b"Content-Length: 1", b"Content-Length: 1"],
        [b"Content-Length: " + b"9" * 5000],
        [CHUNKED_HEAD, b"Content-Length: 1"],
        [b"Content-Length: 0", CHUNKED_HEAD],
        [CHUNKED_HEAD, CHUNKED_HEAD],
    ],
    413: [
        [b"Content-Length: 2097153"],
        [b"Content-Length: 999999999999999999"],
        [b"Content-Length: 2097153", b"Expect: 100-continue"],
    ],
    417: [[b"Expect: 200-ok"], [b"Expect: 100-continue, x"]],
    431: [
        [b"A: b"] * 64,
        [b"A%d: b" % i for i in range(64)],
        [b"A: " + b"b" * 16_384],
    ],
    501: [
        [b"Transfer-Encoding: gzip, chunked"],
        [b"Transfer-Encoding: identity"],
        [b"Transfer-Encoding: chunked, chunked"],
        [b"Transfer-Encoding:"],
        [b"Transfer-Encoding: \xa0chunked"],
    ],
}
REFUSED_CHUNKS = {
    400: [
        b"\r\n",
        b"g\r\n",
        b"0x1\r\nx\r\n",
        b"+1\r\nx\r\n",
        b" 1\r\nx\r\n",
        b"1 \r\nx\r\n",
        b"1\nx\r\n",
        b"1;\0\r\nx\r\n",
        b"1;a\rb\r\nx\r\n",
        b"1\r\nxy\r\n",
        b"1\r\nx\n0\r\n\r\n",
        b"0" * 17 + b"\r\n",
        b"-1\r\n",
        b"1_0\r\n",
        b"\xb2\r\n",
        b"0\r\nbad\r\n\r\n",
        b"0\r\nA: b\n\r\n",
        b"0\r\n\n",
        b"0\r\n folded: x\r\n\r\n",
    ],
    413: [b"200001\r\n", b"f" * 16 + b"\r\n", b"1\r\nx\r\n200000\r\n"],
    431: [
        b"1;" + b"x" * 16_384 + b"\r\n",
        b"1;" + b"x" * 9_000 + b"\r\nx\r\n1;" + b"y" * 9_000 + b"\r\n",
        b"0\r\n" + b"A: b\r\n" * 3_000 + b"\r\n",
    ],
}
REFUSED = [
    *[(status, head(start=line)) for status, lines in REFUSED_LINES.items() for line in lines],
    *[(status, head(*lines)) for status, cases in REFUSED_HEADERS.items() for lines in cases],
    *[(status, chunked(body)) for status, bodies in REFUSED_CHUNKS.items() for body in bodies],
    (400, head(host=None)),
    (400, b"\r\n\r\n"),
    (400, b"\r\n\r\n" + NEXT),
    (400, head(CHUNKED_HEAD, start=b"POST / HTTP/1.0")),
]


@pytest.mark.parametrize("status, data", REFUSED, ids=lambda value: ascii(value)[:60])
def test_what_is_malformed_or_too_large_is_refused_with_its_status(status, data):
    assert refused(data) == status


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\r\nHost: h\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n\n",
    ],
)
def test_a_bare_lf_is_refused_at_once(data):
    assert refused(data) == 400


def test_the_limits_hold_to_the_byte():
    base = head(b"A: ")
    fits = head(b"A: " + b"b" * (LIMITS.head_bytes - len(base)))
    assert len(fits) == LIMITS.head_bytes
    assert good(fits)
    assert refused(fits.replace(b"A: ", b"A: b")) == 431
    assert good(head(*[b"A: b"] * 63)).headers["a"] == ", ".join("b" * 63)

    big = b"x" * LIMITS.message_bytes
    (seen,) = read(post(b"Content-Length: %d" % len(big), body=big), 65_536)
    assert seen.body == big
    chunks = b"".join(b"10000\r\n" + big[:65_536] + b"\r\n" for _ in range(32))
    (seen,) = read(chunked(chunks + b"0\r\n\r\n"), 65_536)
    assert seen.body == big


def test_an_oversized_head_is_refused_before_it_ends():
    assert read(b"GET /" + b"a" * 16_400, 1) == [414]
    assert read(b"GET / HTTP/1.1\r\nA: " + b"a" * 16_400, 1) == [431]


def test_a_truncated_request_is_refused_and_a_clean_end_is_none():
    data = chunked(b"1;a\r\nx\r\n0\r\nA: b\r\n\r\n")
    for end in range(1, len(data)):
        assert read(data[:end], eof=True) == [400], data[:end]
    assert read(b"", eof=True) == [None]


def test_pipelined_requests_are_read_one_after_the_other():
    one = head(b"Content-Length: 3", start=b"POST /1 HTTP/1.1") + b"abc"
    two = head(CHUNKED_HEAD, start=b"POST /2 HTTP/1.1") + b"1\r\nx\r\n0\r\n\r\n"
    *found, end = read(one + b"\r\n" + two + NEXT + one, eof=True)
    assert [(each.path, each.body) for each in found] == [
        ("/1", b"abc"),
        ("/2", b"x"),
        ("/next", b""),
        ("/1", b"abc"),
    ]
    assert end is None
    assert read(one + b"bad\r\n\r\n" + two)[1:] == [400]


@pytest.mark.parametrize(
    "data, times",
    [
        (post(b"Content-Length: 2", b"Expect: 100-Continue"), 1),
        (post(CHUNKED_HEAD, b"Expect: 100-continue"), 1),
        (post(b"Expect: 100-continue", b"Content-Length: 0"), 0),
        (post(b"Content-Length: 9999999", b"Expect: 100-continue"), 0),
        (head(b"Content-Length: 2", b"Expect: x", start=b"POST / HTTP/1.0"), 0),
    ],
)
def test_100_continue_is_said_when_a_body_is_to_come(data, times):
    written = asyncio.run(read_pieces(data, 2**20, False, LIMITS))[1]
    assert written == b"HTTP/1.1 100 Continue\r\n\r\n" * times


def test_a_request_that_is_not_whole_in_time_gets_408_and_an_idle_peer_nothing():
    limits = dataclasses.replace(LIMITS, request_s=0.05, keep_alive_s=0.05)

    async def wait_for(data: bytes) -> Any:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        return await read_request(reader, Written(), limits)

    with pytest.raises(ConnectionError):
        asyncio.run(wait_for(b""))
    for data in (b"G", post(b"Content-Length: 2", body=b"x"), chunked(b"1\r\nx")):
        with pytest.raises(HTTPError) as caught:
            asyncio.run(wait_for(data))
        assert caught.value.status == 408


STALL_S = 0.1  # the promise is half of it, but a busy machine takes twice as long

MANY_TINY = {
    "chunks": chunked(b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n"),
    "pipelined requests": NEXT * 5_000,
}


@pytest.mark.parametrize("name", MANY_TINY)
def test_what_is_in_the_buffer_already_does_not_hold_up_the_loop(name):
    with Hosted() as hosted, open_tcp(hosted) as sock:
        longest = measure_stalls(hosted)
        with contextlib.suppress(OSError):
            sock.sendall(MANY_TINY[name])
        sock.shutdown(socket.SHUT_WR)
        assert rest(sock)
        assert longest() < STALL_S


def measure_stalls(hosted: Hosted) -> Any:
    """A function that tells for how long the server's loop was busy with one thing at most: by its
    thread's own clock, because the client's thread is in this process, too."""
    times: list[float] = []

    async def tick() -> None:
        while True:
            times.append(time.thread_time())
            await asyncio.sleep(0)

    ticking = asyncio.run_coroutine_threadsafe(tick(), hosted.loop)

    def longest() -> float:
        ticking.cancel()
        return max(after - before for before, after in itertools.pairwise(times))

    return longest


@pytest.mark.parametrize(
    "data",
    [
        b"A" * 16_383 + b"\r\n",
        b"GET " + b"/" * 16_000 + b"\r\n",
        b"GET /" + b" " * 16_000 + b"\r\n",
        head(b"A:" + b"\t " * 8_000 + b"\0"),
        head(b"A: b\r\n" * 2_500 + b"\0"),
        head(b"A" * 16_000),
        head(b"Connection: " + b", " * 8_000),
        chunked(b"1" + b" \t" * 8_000 + b"\r\n"),
        head(start=b"GET /?" + b"&=" * 4_000 + b" HTTP/1.1"),
        head(start=b"GET /" + b"%C3" * 2_700 + b" HTTP/1.1"),
    ],
    ids=lambda data: ascii(data)[:40],
)
def test_no_pattern_backtracks(data):
    began = time.perf_counter()
    read(data)
    assert time.perf_counter() - began < 0.25


# ── HTTP: writing a reply ─────────────────────────────────────────────────────────────────────────


def parse_response(data: bytes) -> tuple[str, dict[str, str], bytes]:
    lines, _, body = data.partition(b"\r\n\r\n")
    start, *fields = lines.decode("latin-1").split("\r\n")
    return start, dict(field.split(": ", 1) for field in fields), body


def test_a_response_has_its_length_type_and_headers():
    start, fields, body = parse_response(encode_response(Reply({}, headers={"A": "\xe9"})))
    assert start == "HTTP/1.1 200 OK"
    assert fields == {
        "Content-Type": "application/json",
        "Content-Length": "2",
        "A": "\xe9",
        "Connection": "keep-alive",
        "X-Content-Type-Options": "nosniff",
    }
    assert body == b"{}"


def test_a_head_response_is_the_same_without_its_body():
    assert encode_response(Reply({}), head_only=True) == encode_response(Reply({}))[:-2]


def test_the_last_response_says_close():
    start, fields, _ = parse_response(encode_response(Reply(b"", 405, {}, "text/html"), False))
    assert start == "HTTP/1.1 405 Method Not Allowed"
    assert fields["Connection"] == "close"
    assert fields["Content-Type"] == "text/html"


@pytest.mark.parametrize(
    "name, value",
    [
        ("A", "b\r\nSet-Cookie: x"),
        ("A", "b\nc"),
        ("A", "b\rc"),
        ("A", "\0"),
        ("A", "\u20ac"),
        ("A\r\nB", "c"),
        ("", "b"),
        ("A b", "c"),
        ("A ", "b"),
        ("A:b", "c\n"),
    ],
)
def test_a_response_header_cannot_begin_another(name, value):
    with pytest.raises(ValueError):
        encode_response(Reply(b"", headers={name: value}))


# ── Messages and the lifecycle ────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with Launched(tmp_path_factory.mktemp("server")) as launched:
        yield launched


def as_step(data: str) -> str:
    return f'{{"type": "step", "data": {{{data}}}}}'


def as_reset(data: str) -> str:
    return f'{{"type": "reset", "data": {{{data}}}}}'


BAD_MESSAGES = {
    "INVALID_JSON": [
        "",
        "{",
        "{}{}",
        "[" * 9_999,
        "1" * 5_000,
        "[]",
        '"x"',
        "null",
        b"\xff",
        b"{}",
    ],
    "UNKNOWN_TYPE": ["{}", '{"type": null}', '{"type": ["step"]}', '{"type": {"a": NaN}}'],
    "VALIDATION_ERROR": [
        '{"type": "step"}',
        '{"type": "step", "data": []}',
        '{"type": "reset", "data": 1}',
        as_step('"code": 1'),
        as_step('"code": "1", "cod": 1'),
        as_step('"code": "1", "timeout_s": 61'),
        as_step('"code": "1", "timeout_s": NaN'),
        as_reset('"seed": -1'),
        as_reset('"seed": true'),
        as_reset('"episode_id": 5'),
        as_reset('"tests": "no assert"'),
        as_reset('"task_id": "lodger"'),
    ],
}


def test_bad_messages_get_their_code_and_the_session_goes_on(server):
    with ws(server) as peer:
        call(peer, "reset", task_id="repl")
        result(peer, "x = 42")
        for code, text in [(code, text) for code, texts in BAD_MESSAGES.items() for text in texts]:
            peer.send(text)
            kind, data = hear(peer)
            assert (kind, data["code"]) == ("error", code), (text[:80], data)
            assert 10 < len(data["message"]) < 1_000, text[:80]
            assert len(to_json(data)) < 3_000, text[:80]
        assert result(peer, "x") == "42"


class OverHTTP(contextlib.nullcontext):
    """A session over HTTP with the calls of one over WebSocket."""

    def __init__(self, where: Any) -> None:
        super().__init__(self)
        self.where = where
        self.headers: dict[str, str] = {}

    def call(self, kind: str, **data: Any) -> tuple[str, dict[str, Any]]:
        if kind == "state":
            answer = ask(self.where, "GET", "/state", **self.headers)
        elif kind == "step":
            answer = ask(self.where, "POST", "/step", {"action": data}, **self.headers)
        else:
            answer = ask(self.where, "POST", "/reset", data, **self.headers)
            self.headers = {"X-Session-Id": answer[1]["X-Session-Id"]}
        status, _, body = answer
        if status == 200:
            return ("state" if kind == "state" else "observation"), body
        assert (status, body["code"]) == (409, "EXECUTION_ERROR")
        return "error", {"message": body["detail"]}


class OverWebSocket(contextlib.ExitStack):
    def __init__(self, where: Any) -> None:
        super().__init__()
        self.call = functools.partial(call, self.enter_context(ws(where)))


STAGES = {  # how to get there; over HTTP no session is ever without an episode
    "no episode": [],
    "running": [("reset", {"task_id": "repl"})],
    "done": [("reset", {"task_id": "repl", "max_steps": 1}), ("step", {"code": "1"})],
}
STEP_REFUSED = {"no episode": "call reset() first", "done": "the episode is over"}


@pytest.mark.parametrize(
    "transport, stage",
    [*itertools.product([OverWebSocket], STAGES), (OverHTTP, "running"), (OverHTTP, "done")],
)
class TestLifecycle:
    @pytest.fixture
    def session(self, server, transport, stage):
        with transport(server) as session:
            for kind, data in STAGES[stage]:
                reached = session.call(kind, **data)[1]
                assert reached["done"] is (kind == "step")
            yield session

    def test_a_step_is_refused_without_an_episode_and_changes_nothing_then(self, session, stage):
        before = session.call("state")
        answered, answer = session.call("step", code="n = 1")
        if stage == "running":
            assert answered == "observation"
        else:
            assert answered == "error"
            assert STEP_REFUSED[stage] in answer["message"]
            assert session.call("state") == before

    def test_a_reset_begins_anew(self, session):
        answered, answer = session.call("reset", task_id="repl")
        assert (answered, answer["done"]) == ("observation", False)
        assert session.call("state")[1]["step_count"] == 0
        assert session.call("step", code="n")[1]["observation"]["exit_code"] == 1

    def test_the_state_is_always_told(self, session):
        assert session.call("state")[0] == "state"


def test_an_episode_ends_when_solved_or_at_max_steps(server):
    task = {"tests": "assert f(2) == 4\nassert f(3) == 9", "max_steps": 2, "episode_id": "mine"}
    with ws(server) as peer:
        reset = call(peer, "reset", **task)[1]
        assert (reset["reward"], reset["done"]) == (None, False)
        assert reset["observation"]["tests_total"] == 2
        assert not {"reward", "done"} & reset["observation"].keys()
        for code, done in [("f = lambda x: x + x", False), ("1", True)]:
            data = call(peer, "step", code=code, metadata={})[1]
            assert (data["reward"], data["done"]) == (0.5, done)
        state = call(peer, "state")[1]
        assert (state["episode_id"], state["step_count"], state["done"]) == ("mine", 2, True)
        call(peer, "reset", **task)
        data = call(peer, "step", code="f = lambda x: x * x")[1]
        assert (data["reward"], data["done"]) == (1.0, True)


# ── The server: HTTP ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "line, body, status, keys",
    [
        ("GET /health", None, 200, "status version isolation sessions max_sessions waiting"),
        ("GET /health/", None, 200, "status"),
        ("GET /metadata", None, 200, "name description version author documentation_url"),
        ("GET /schema", None, 200, "action observation state"),
        ("GET /tasks", None, 200, "tasks"),
        ("GET /openapi.json", None, 200, "openapi info paths"),
        ("GET /state", None, 200, "episode_id step_count"),
        ("POST /reset", None, 200, "observation reward done metadata"),
        ("POST /reset/", {"task_id": "repl", "column": [1]}, 200, "observation reward done"),
        ("POST /reset", {"task_id": "nope"}, 422, "detail"),
        ("POST /mcp", {}, 200, "jsonrpc id error"),
        ("POST /step", {"action": {"code": "1"}, "extra": 1}, 200, "observation reward done"),
        ("GET /ws", None, 426, "detail"),
        ("GET /nope", None, 404, "detail"),
    ],
    ids=str,
)
def test_every_route_has_its_status_and_shape(server, line, body, status, keys):
    got, _, answer = ask(server, *line.split(), body)
    assert got == status
    assert {*keys.split()} <= answer.keys()


@pytest.mark.parametrize(
    "line, allowed",
    [("DELETE /health", "GET"), ("GET /step", "POST"), ("GET /mcp", "POST, DELETE")],
)
def test_a_wrong_method_is_told_the_right_ones(server, line, allowed):
    status, headers, _ = ask(server, *line.split())
    assert (status, headers["Allow"]) == (405, allowed)


@pytest.mark.parametrize("path, location", [("/", "docs"), ("/web", "docs"), ("/web/", "../docs")])
def test_redirects_are_relative_so_that_a_prefix_works(server, path, location):
    status, headers, _ = ask(server, "GET", path)
    assert (status, headers["Location"]) == (307, location)


def test_the_documents_tell_what_the_server_is(server):
    health = ask(server, "GET", "/health")[2]
    assert health["status"] == "healthy"
    assert {"seccomp", "landlock"} <= health["isolation"].keys()
    document = ask(server, "GET", "/openapi.json")[2]
    assert document["info"]["version"] == "1.0.0"
    routes = {path: {m.upper() for m in methods} for path, methods in document["paths"].items()}
    assert routes == {path: {*methods} for path, methods in ROUTES.items()}
    schema = ask(server, "GET", "/schema")[2]["action"]
    assert schema == json.loads(to_json(json_schema(PythonAction)))
    (ledger,) = [t for t in ask(server, "GET", "/tasks")[2]["tasks"] if t["task_id"] == "ledger"]
    assert ledger["tests_total"] == builtin_tasks()["ledger"].tests_total
    assert {"difficulty", "prompt"} <= ledger.keys()


def test_the_page_needs_nothing_from_outside_and_head_tells_its_length(server):
    status, headers, page = ask(server, "GET", "/docs")
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert not re.findall(rb"""(?:src|href)=["']?https?://""", page)
    status, headers, body = ask(server, "HEAD", "/docs")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(page)))


def test_health_counts_and_tells_the_nonce(monkeypatch):
    monkeypatch.setenv("PYTHON_ENV_NONCE", "n0nce")
    with Hosted(options={"counters": lambda: {"steps": 7}}) as hosted:
        health = ask(hosted, "GET", "/health")[2]
        assert (health["steps"], health["nonce"]) == (7, "n0nce")
    monkeypatch.delenv("PYTHON_ENV_NONCE")
    with Hosted() as hosted:
        assert "nonce" not in ask(hosted, "GET", "/health")[2]


@pytest.mark.parametrize(
    "body, expected",
    [
        (None, "missing body"),
        (b"{", "json_invalid body.1"),
        (b"\xff", "json_invalid body.0"),
        ([1], "dict_type body"),
        (b"null", "dict_type body"),
        ({}, "missing body.action"),
        ({"action": "x"}, "dict_type body.action"),
        ({"action": {}}, "missing code"),
        ({"action": {"code": 5}}, "string_type code"),
        ({"action": {"code": "1", "zz": 1}}, "extra_forbidden zz"),
        ({"action": {"code": "1"}, "timeout_s": 0}, "greater_than body.timeout_s"),
    ],
    ids=str,
)
def test_a_bad_body_is_422_with_pydantics_entries(server, body, expected):
    status, _, answer = ask(server, "POST", "/step", body)
    entry = answer["detail"][0]
    assert status == 422
    assert {"type", "loc", "msg", "input"} <= {*entry}
    assert " ".join([entry["type"], ".".join(map(str, entry["loc"]))]) == expected


def test_a_row_may_have_a_column_called_self(server):
    status, _, answer = ask(server, "POST", "/reset", {"self": 1})
    assert status == 422
    assert "got the columns ['self']" in answer["detail"][0]["msg"]
    with Hosted() as hosted:
        assert ask(hosted, "POST", "/reset", {"self": 1})[0] == 200


def test_a_session_over_http_follows_its_header(server):
    keys = []
    for episode in ("e1", "e2"):
        headers = ask(server, "POST", "/reset", {"task_id": "repl", "episode_id": episode})[1]
        assert "Set-Cookie" not in headers
        keys.append(headers["X-Session-Id"])
    one, two = keys
    code = "n = globals().get('n', 0) + 1; n"
    counted = [step(server, code, X_Session_Id=key) for key in (one, two, one, one)]
    assert counted == ["1", "1", "2", "3"]
    state = ask(server, "GET", "/state", X_Session_Id=one)[2]
    assert (state["episode_id"], state["step_count"]) == ("e1", 3)
    again = ask(server, "POST", "/reset", {"task_id": "repl"}, X_Session_Id=one)[1]
    assert again["X-Session-Id"] == one
    assert step(server, code, X_Session_Id=one) == "1"
    assert step(server, code, X_Session_Id=two) == "2"


def test_a_step_without_a_session_runs_once_in_a_fresh_interpreter(server):
    before = sessions(server)
    action = {"code": "n = 1 + globals().get('n', 0); n"}
    for _ in range(2):
        status, headers, answer = ask(server, "POST", "/step", {"action": action})
        assert (status, headers["X-Session-Id"], answer["done"]) == (200, None, False)
        assert answer["observation"]["result"] == "1"
    assert sessions(server) == before


def test_an_unknown_session_is_404_for_a_step_and_begins_anew_for_a_reset(server):
    status, _, answer = ask(server, "POST", "/step", {"action": {"code": "1"}}, X_Session_Id="gone")
    assert (status, answer["code"]) == (404, "SESSION_ERROR")
    assert ask(server, "POST", "/reset", {"task_id": "repl"}, X_Session_Id="gone")[0] == 200


STEP = b'{"action": {"code": "6 * 7"}}'
LENGTH = f"Content-Length: {len(STEP)}"
CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    "data, status",
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\nHost: h\r\n\r\n", 505),
        (request("POST /step", LENGTH, CHUNKED, body=STEP), 400),
        (request("POST /step", LENGTH, LENGTH, body=STEP), 400),
        (request("POST /step", "Content-Length: 9999999"), 413),
        (request("POST /step", "Content-Length: 9999999", body=b"x" * 4_000_000), 413),
        (request("POST /step", CHUNKED, body=b"FFFFFFF\r\n"), 413),
        (b"GET /" + b"a" * 20_000, 414),
        (request("GET /", "A: " + "a" * 20_000), 431),
        (request("GET /", *["A: b"] * 99), 431),
        (b"GET /health HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n", 403),
        (request("GET /health", "Origin: http://[", "Connection: close"), 403),
        (request("GET /ws", "Upgrade: websocket", "Connection: upgrade"), "4.."),
        (b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_requests_end_with_their_status_and_the_server_goes_on(server, data, status):
    with open_tcp(server) as sock:
        sock.sendall(data)
        answer, _, body = rest(sock).partition(b"\r\n\r\n")
    assert re.match(f"HTTP/1.1 {status} ", answer.decode()), answer
    assert body
    assert ask(server, "GET", "/health")[0] == 200


def test_pipelined_requests_of_a_half_closed_peer_are_answered_in_order(server):
    chunks = b"5;x=y\r\n%b\r\n%x\r\n%b\r\n0\r\nT: r\r\n\r\n" % (STEP[:5], len(STEP[5:]), STEP[5:])
    with open_tcp(server) as sock:
        sock.sendall(
            request("POST /step", LENGTH, body=STEP)
            + request("GET /nope")
            + request("POST /step", CHUNKED, body=chunks)
        )
        sock.shutdown(socket.SHUT_WR)
        answers = rest(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"404", b"200"]
    assert answers.count(b'"result":"42"') == 2


def test_100_continue_invites_the_body(server):
    with open_tcp(server) as sock:
        sock.sendall(request("POST /step", "Expect: 100-continue", "Connection: close", LENGTH))
        assert sock.recv(1_000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(STEP)
        assert b'"result":"42"' in rest(sock)


@pytest.mark.slow
@pytest.mark.parametrize("pause", [20, 0.02])
def test_a_slow_sender_gets_408_even_if_it_never_pauses(pause):
    with Hosted(request_s=0.3) as hosted, open_tcp(hosted) as sock:
        sock.sendall(request("POST /step")[:-2] + b"A: ")
        sock.settimeout(pause)
        answer = b""
        end = time.monotonic() + 10
        while not answer and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                answer = sock.recv(1_000)
            with contextlib.suppress(OSError):
                sock.sendall(b"a")
        assert answer.startswith(b"HTTP/1.1 408")


def test_idle_and_aborted_connections_leave_nothing_behind():
    with Hosted(keep_alive_s=0.2) as hosted:
        with open_tcp(hosted) as sock:
            sock.sendall(request("GET /health"))
            assert rest(sock).startswith(b"HTTP/1.1 200")
        pieces = (
            b"",
            b"G",
            request("POST /reset", LENGTH, body=b"{"),
            b"\0\xff",
            request("POST /reset", LENGTH, body=STEP),
        )
        for piece, end in itertools.product(pieces, (abort, socket.socket.close)):
            sock = open_tcp(hosted)
            sock.sendall(piece)
            end(sock)
        eventually(lambda: not hosted.server.listener.connections)
        assert ask(hosted, "GET", "/health")[0] == 200


@pytest.mark.parametrize("last", ["bad request", "bad frame", "close frame"])
def test_a_peer_that_closes_after_its_last_words_is_no_error_in_the_log(caplog, last):
    with Hosted() as hosted:
        for _ in range(20):
            if last == "bad request":
                sock = open_tcp(hosted)
                sock.sendall(b"garbage\r\n\r\n")
            else:
                sock = raw_ws(hosted)
                opcode = Opcode.CLOSE if last == "close frame" else Opcode.CONT
                sock.sendall(Frame(opcode, b"").serialize(mask=True))
            sock.close()
        assert sessions(hosted) == 0  # so the server has looked at its sockets since
        eventually(lambda: not hosted.server.listener.connections)
    gc.collect()
    assert not caplog.records


def test_a_peer_that_has_vanished_ends_its_step(monkeypatch, caplog):
    def be_impatient(sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 100)

    monkeypatch.setattr(python_env, "keep_alive", be_impatient)
    with Hosted() as hosted, socket.socket() as sock:
        key = ask(hosted, "POST", "/reset", {})[1]["X-Session-Id"]
        body = to_json({"action": {"number": 404}})
        headers = (f"X-Session-Id: {key}", f"Content-Length: {len(body)}")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)  # and it does not read
        sock.connect(("127.0.0.1", hosted.port))
        sock.sendall(request("GET /docs") + request("POST /step", *headers, body=body))
        eventually(lambda: Guessing.killed == 1)
        eventually(lambda: not hosted.server.listener.connections)
    gc.collect()
    assert not caplog.records


def test_connections_beyond_the_limit_are_cut_off():
    with Hosted(connections=2) as hosted, open_tcp(hosted), open_tcp(hosted):
        eventually(lambda: len(hosted.server.listener.connections) == 2)
        with open_tcp(hosted) as third, contextlib.suppress(ConnectionResetError):
            assert third.recv(1) == b""


@pytest.mark.parametrize("end", [abort, socket.socket.close, "half close"])
def test_a_reset_whose_peer_has_gone_before_the_reply_leaves_no_session(end):
    class Slow(Guessing):
        async def reset(self, seed=None, episode_id=None, high: int = 10) -> Hint:
            began.set()
            await asyncio.to_thread(go_on.wait, 10)
            return super().reset(seed, episode_id, high)

    began = threading.Event()
    go_on = threading.Event()
    with Hosted(Slow) as hosted:
        sock = open_tcp(hosted)
        sock.sendall(request("POST /reset", "Content-Length: 0"))
        assert began.wait(10)
        assert sessions(hosted) == 1
        if end == "half close":
            sock.shutdown(socket.SHUT_WR)
        else:
            end(sock)
        assert sessions(hosted) >= 0  # so the server has looked at its sockets since
        go_on.set()
        eventually(lambda: sessions(hosted) == 0)
        sock.close()


@pytest.mark.parametrize("how", ["close message", "close frame", "abort", "abort over HTTP"])
def test_a_client_that_goes_away_during_a_step_ends_it_and_disturbs_nobody(server, how):
    action = {"code": "while True: pass", "timeout_s": 60}
    with ws(server) as other, contextlib.ExitStack() as stack:
        call(other, "reset", task_id="repl")
        assert result(other, "1") == "1"
        before = processes(server.tmp)

        def begun() -> set[int]:
            return processes(server.tmp) - before

        if how == "abort over HTTP":
            sock = open_tcp(server)
            body = json.dumps({"action": action}).encode()
            sock.sendall(request("POST /step", f"Content-Length: {len(body)}", body=body))
        elif how == "abort":
            sock = raw_ws(server)
            send_raw(sock, "reset", task_id="repl")
            send_raw(sock, "step", **action)
        else:
            peer = stack.enter_context(ws(server))
            call(peer, "reset", task_id="repl")
            tell(peer, "step", **action)
        eventually(begun)
        assert result(other, "2") == "2"
        if how == "close message":
            tell(peer, "close")
            assert close_code(peer) == 1000
        elif how == "close frame":
            peer.close()
        else:
            abort(sock)
        eventually(lambda: not begun())
        assert result(other, "3") == "3"


def test_a_close_message_with_data_is_no_step(server):
    with ws(server) as peer:
        call(peer, "reset", task_id="repl")
        tell(peer, "close", code="1 + 1")
        assert close_code(peer) == 1000


HANDSHAKE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


def raw_ws(where: Any) -> socket.socket:
    """A WebSocket without a client: just the socket, so that it can be cut off as by a crash."""
    sock = open_tcp(where)
    sock.sendall(request("GET /ws", *HANDSHAKE))
    assert sock.recv(1_000).startswith(b"HTTP/1.1 101")
    return sock


def send_raw(sock: socket.socket, kind: str, **data: Any) -> None:
    text = json.dumps({"type": kind, "data": data}).encode()
    sock.sendall(Frame(Opcode.TEXT, text).serialize(mask=True))


# ── The server: WebSocket ─────────────────────────────────────────────────────────────────────────


def test_pings_are_answered_while_a_step_runs_and_steps_queue_in_order(server):
    with ws(server) as peer:
        call(peer, "reset", task_id="repl")
        tell(peer, "step", code="import time; time.sleep(0.8); n = 1")
        tell(peer, "step", code="n += 1; n")
        tell(peer, "state")
        began = time.monotonic()
        assert peer.ping().wait(5)
        assert time.monotonic() - began < 0.7
        assert [hear(peer)[1]["observation"]["result"] for _ in range(2)] == [None, "2"]
        assert hear(peer)[1]["step_count"] == 2


def test_fragments_make_one_message_even_with_a_ping_between_them(server):
    text = '{"type": "step", "data": {"code": "\'\u20ac\' * 3"}}'.encode()
    cut = text.index(b"\xe2") + 1  # inside a character
    frames = [
        (Opcode.TEXT, text[:5], False),
        (Opcode.CONT, text[5:cut], False),
        (Opcode.PING, b"p"),
        (Opcode.CONT, b"", False),
        (Opcode.CONT, text[cut:]),
    ]
    with ws(server) as peer:
        call(peer, "reset", task_id="repl")
        for frame in frames:
            peer.socket.sendall(Frame(*frame).serialize(mask=True))
        assert hear(peer)[1]["observation"]["result"] == "'\u20ac\u20ac\u20ac'"


@pytest.mark.parametrize(
    "frames, code",
    [
        ([(Opcode.TEXT, b"\xff\xfe")], 1007),
        ([(Opcode.TEXT, b'"\xe2', False), (Opcode.CONT, b'"')], 1007),
        ([(Opcode.TEXT, b"x" * 1_001)], 1009),
        ([(Opcode.TEXT, b"x" * 3_000_000)], 1009),
        ([(Opcode.TEXT, b"x" * 600, False), (Opcode.CONT, b"x" * 600)], 1009),
        ([(Opcode.CONT, b"x")], 1002),
        ([(Opcode.TEXT, b"x", False), (Opcode.TEXT, b"x")], 1002),
        ([(Opcode.CLOSE, struct.pack("!H", 1000))], 1000),
    ],
    ids=lambda value: str(value)[:50],
)
def test_frames_against_the_protocol_close_with_their_code(frames, code):
    with Hosted(message_bytes=1_000) as hosted, ws(hosted) as other:
        with ws(hosted) as peer:
            with contextlib.suppress(ConnectionError):
                for frame in frames:
                    peer.socket.sendall(Frame(*frame).serialize(mask=True))
            assert close_code(peer) == code
        assert call(other, "reset")[0] == "observation"
        eventually(lambda: len(hosted.server.listener.connections) == 1)


def test_messages_far_ahead_are_all_answered_one_by_one():
    with Hosted(queued_messages=4) as hosted, ws(hosted) as peer:
        call(peer, "reset", seed=3)
        for _ in range(500):
            tell(peer, "step", number=1)
        tell(peer, "state")
        assert [hear(peer)[0] for _ in range(500)] == ["observation"] * 500
        assert hear(peer)[1]["step_count"] == 500


def flood(hosted: Hosted, peer: Any, data: bytes, most: int) -> int:
    """Send `data` again and again until the server does not read it any more; the bytes sent."""
    peer.socket.settimeout(0.5)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < most:
            sent += peer.socket.send(data)
    return sent


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 500_000])
def test_queued_messages_are_bounded_in_number_and_in_bytes(size):
    text = json.dumps({"type": "step", "data": {"number": 1, "metadata": {"x": "x" * size}}})
    frame = Frame(Opcode.TEXT, text.encode()).serialize(mask=True)
    options = {"queued_messages": 64, "message_bytes": 1_000_000}
    with Hosted(**options) as hosted, ws(hosted, close_timeout=0.1) as peer:
        call(peer, "reset")
        tell(peer, "step", number=404)  # which does not end
        assert flood(hosted, peer, frame * max(1, 100_000 // size), 60_000_000) < 30_000_000
        (session,) = hosted.server.sessions.by_id.values()
        assert session.socket.messages.qsize() <= 64
        assert session.socket.queued <= 1_000_000 + len(text)


def test_pongs_are_only_for_who_reads():
    frame = Frame(Opcode.PING, b"x" * 100).serialize(mask=True)
    with Hosted() as hosted:
        seen = watch_connections(hosted)
        sock = raw_ws(hosted)
        sock.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 60_000_000:
                sent += sock.send(frame * 500)
        assert sent < 30_000_000
        (writer,) = seen
        assert writer().transport.get_write_buffer_size() < 1_000_000
        sock.close()


def test_a_flood_of_tiny_frames_does_not_hold_up_the_loop():
    frame = Frame(Opcode.PING, b"").serialize(mask=True)
    with Hosted() as hosted, ws(hosted) as peer:
        longest = measure_stalls(hosted)
        peer.socket.sendall(frame * 50_000)
        assert call(peer, "reset")[0] == "observation"
        assert longest() < STALL_S


LONG_TO_READ = {
    "white space": " " * 2_000_000,
    "white space after a close": '{"type": "close"' + " " * 2_000_000,
    "lists": "[" + "[]," * 600_000 + "[]]",
    "fields": "{" + ",".join(f'"{number}":0' for number in range(180_000)) + "}",
    "numbers": "[" + "1," * 1_000_000 + "1]",
    "quotes": '"' * 2_000_000,
    "escapes": '"' + "\\n" * 1_000_000,
    "escaped quotes": '["' + '\\"' * 1_000_000,
    "digits": "1" * 2_000_000,
    "depth": "[" * 2_000_000,
}


@pytest.mark.parametrize("name", LONG_TO_READ)
def test_no_message_holds_up_the_loop(name):
    with Hosted() as hosted, ws(hosted) as peer:
        longest = measure_stalls(hosted)
        peer.send(LONG_TO_READ[name])
        assert hear(peer)[1]["code"] == "INVALID_JSON"
        assert longest() < STALL_S


def test_a_long_source_with_many_values_in_it_is_one_value():
    with Hosted() as hosted, ws(hosted) as peer:
        call(peer, "reset")
        source = '[1, 2, "a", {}], ' * 50_000
        assert call(peer, "step", number=1, metadata={"source": source})[0] == "observation"


def test_a_slow_reader_costs_only_itself():
    with Hosted() as hosted, ws(hosted) as other, ws(hosted, max_queue=1) as slow:
        call(slow, "reset")
        call(other, "reset")
        for _ in range(60):
            tell(slow, "step", number=1000)  # whose reply has 1 MB
        eventually(lambda: Guessing.steps)
        for _ in range(200):
            assert call(other, "step", number=1)[0] == "observation"
        assert Guessing.steps < 200 + 30  # the server does not pile up what nobody reads
        replies = [hear(slow)[1]["observation"]["hint"] for _ in range(60)]
        assert [*map(len, replies)] == [1_000_000] * 60


@pytest.mark.parametrize("end", ["close", "abort", "vanish in a step", "bad frame", "http"])
def test_a_dead_connection_is_not_kept_alive_by_a_cycle(end):
    with Hosted() as hosted:
        seen = watch_connections(hosted)
        gc.collect()
        gc.disable()
        try:
            end_connection(hosted, end)
            assert seen
            eventually(lambda: not [ref for ref in seen if ref()])
        finally:
            gc.enable()


def watch_connections(hosted: Hosted) -> list[Any]:
    """Weak references to the writers of the connections that the server gets from now on."""
    seen: list[Any] = []

    async def serve_request(reader: Any, writer: Any) -> Any:
        seen.append(weakref.ref(writer))
        return await type(hosted.server.listener).serve_request(
            hosted.server.listener, reader, writer
        )

    hosted.server.listener.serve_request = serve_request
    return seen


def end_connection(hosted: Hosted, end: str) -> None:
    if end == "http":
        ask(hosted, "GET", "/health")
    elif end == "close":
        with ws(hosted) as peer:
            call(peer, "reset")
    else:
        sock = raw_ws(hosted)
        send_raw(sock, "reset")
        assert b"observation" in sock.recv(1_000)
        if end == "vanish in a step":
            send_raw(sock, "step", number=404)
            eventually(lambda: Guessing.steps)
        if end == "bad frame":
            sock.sendall(b"\xff\xff\xff\xff\xff\xff")
            assert rest(sock)
        abort(sock)


# ── The table of sessions ─────────────────────────────────────────────────────────────────────────


def test_a_full_server_refuses_after_the_wait_and_goes_on():
    with Hosted(max_sessions=1, session_wait_s=0.1) as hosted:
        with ws(hosted) as first:
            call(first, "reset")
            with ws(hosted) as second:
                assert call(second, "reset")[1]["code"] == "CAPACITY_REACHED"
                assert close_code(second) == 1013
            for path, body in (("/reset", {}), ("/step", {"action": {"number": 1}})):
                status, headers, answer = ask(hosted, "POST", path, body)
                assert (status, answer["code"]) == (503, "CAPACITY_REACHED")
                assert int(headers["Retry-After"]) >= 1
            assert call(first, "step", number=1)[0] == "observation"
        eventually(lambda: ask(hosted, "POST", "/reset", {})[0] == 200)


def test_a_first_message_waits_for_a_place_and_who_came_first_gets_it():
    served = []

    def play(number: int) -> None:
        with ws(hosted) as peer:
            assert call(peer, "reset")[0] == "observation"
            served.append(number)

    with Hosted(max_sessions=1, session_wait_s=20) as hosted:
        with ws(hosted) as first:
            call(first, "reset")
            players = []
            for number in range(5):
                players.append(threading.Thread(target=play, args=(number,)))
                players[-1].start()
                eventually(lambda: ask(hosted, "GET", "/health")[2]["waiting"] == len(players))
            assert not served
        for player in players:
            player.join(10)
        assert served == [0, 1, 2, 3, 4]
        assert ask(hosted, "GET", "/health")[2]["waiting"] == 0


def test_who_leaves_the_queue_takes_no_place():
    with Hosted(max_sessions=1, session_wait_s=20) as hosted:
        with ws(hosted) as first:
            call(first, "reset")
            sock = raw_ws(hosted)
            send_raw(sock, "reset")
            eventually(lambda: hosted.server.sessions.waiting == 1)
            abort(sock)
            eventually(lambda: hosted.server.sessions.waiting == 0)
        eventually(lambda: sessions(hosted) == 0)


def test_a_silent_connection_takes_no_place():
    with Hosted(max_sessions=1) as hosted, ws(hosted), ws(hosted), ws(hosted) as third:
        assert sessions(hosted) == 0
        third.send("{")
        assert hear(third)[1]["code"] == "INVALID_JSON"
        assert sessions(hosted) == 0
        assert call(third, "reset")[0] == "observation"


def test_the_longest_idle_http_session_gives_way_to_a_new_one():
    with Hosted(max_sessions=2) as hosted:
        old = ask(hosted, "POST", "/reset", {})[1]["X-Session-Id"]
        idle = ask(hosted, "POST", "/reset", {})[1]["X-Session-Id"]
        assert ask(hosted, "GET", "/state", X_Session_Id=old)[0] == 200
        with ws(hosted) as peer:
            assert call(peer, "reset")[0] == "observation"
            assert ask(hosted, "GET", "/state", X_Session_Id=idle)[0] == 404
            assert ask(hosted, "GET", "/state", X_Session_Id=old)[0] == 200


def test_idle_sessions_end_and_busy_ones_do_not():
    with Hosted(ws_idle_s=0.3, http_idle_s=0.3) as hosted, ws(hosted) as busy:
        call(busy, "reset")
        tell(busy, "step", number=404)
        for _ in range(2):  # the housekeeper survives its work
            key = ask(hosted, "POST", "/reset", {})[1]["X-Session-Id"]
            with ws(hosted) as idle:
                call(idle, "reset")
                assert close_code(idle) == 1001
            eventually(lambda key=key: ask(hosted, "GET", "/state", X_Session_Id=key)[0] == 404)
        assert len(hosted.server.sessions) == 1
        assert not Guessing.killed
        assert ask(hosted, "POST", "/reset", {}, X_Session_Id=key)[0] == 200


def test_a_session_without_an_episode_idles_less_than_a_trainer():
    with Hosted(http_idle_s=0.2) as hosted, ws(hosted) as peer:
        call(peer, "state")
        assert close_code(peer) == 1001
        eventually(lambda: sessions(hosted) == 0)


def test_a_websocket_may_join_a_session_of_http(server):
    key = ask(server, "POST", "/reset", {"task_id": "repl"})[1]["X-Session-Id"]
    step(server, "n = 5", X_Session_Id=key)
    with ws(server, f"?session_id={key}") as peer:
        assert result(peer, "n += 1; n") == "6"
    assert step(server, "n", X_Session_Id=key) == "6"


def test_a_websocket_cannot_join_what_does_not_exist(server):
    with ws(server, "?session_id=nope") as peer:
        data = hear(peer)[1]
        assert data["code"] == "SESSION_ERROR"
        assert "nope" in data["message"]
        assert close_code(peer) == 1008


def test_one_websocket_a_session_that_began_over_http(server):
    key = ask(server, "POST", "/reset", {"task_id": "repl"})[1]["X-Session-Id"]
    with ws(server, f"?session_id={key}") as first:
        assert result(first, "n = 1; n") == "1"
        with ws(server, f"?session_id={key}") as second:
            assert hear(second)[1]["code"] == "SESSION_ERROR"
            assert close_code(second) == 1008
        assert result(first, "n + 1") == "2"


# ── Getting in ────────────────────────────────────────────────────────────────────────────────────

ALLOWED = {"allow_origin": ("https://A.example:443/",), "allow_host": ("My.Box:8000",)}
TOKEN = {"token": "s3cret\n"}


@pytest.mark.parametrize(
    "options, headers, status",
    [
        ({}, {}, 200),
        ({}, {"Host": "LOCALHOST:99"}, 200),
        ({}, {"Host": "[::1]:1"}, 200),
        ({}, {"Host": "evil.example"}, 403),
        ({}, {"Host": "127.0.0.1.evil.example"}, 403),
        ({}, {"Host": "localhost@evil.example"}, 403),
        ({}, {"Host": ""}, 403),
        (ALLOWED, {"Host": "my.box:80"}, 200),
        (ALLOWED, {"Host": "MY.BOX"}, 200),
        (ALLOWED, {"Host": "your.box"}, 403),
        ({}, {"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({}, {"Host": "localhost", "Origin": "http://LOCALHOST:80"}, 200),
        ({}, {"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({}, {"Origin": "http://evil.example"}, 403),
        ({}, {"Origin": "null"}, 403),
        ({}, {"Origin": ""}, 403),
        (ALLOWED, {"Origin": "https://a.example"}, 200),
        (ALLOWED, {"Origin": "HTTPS://a.Example:443"}, 200),
        (ALLOWED, {"Origin": "http://a.example"}, 403),
        (ALLOWED, {"Origin": "https://b.example"}, 403),
        ({"allow_origin": ("*",)}, {"Origin": "https://b.example"}, 200),
        ({"allow_origin": ("*",)}, {"Origin": "null"}, 200),
        (TOKEN, {}, 401),
        (TOKEN, {"Authorization": "Bearer s3cre"}, 401),
        (TOKEN, {"Authorization": "Bearer \xe9"}, 401),
        (TOKEN, {"Authorization": "Basic s3cret"}, 401),
        (TOKEN, {"Authorization": "s3cret"}, 401),
        (TOKEN, {"Authorization": "Bearer s3cret"}, 200),
        (TOKEN, {"Authorization": "bearer  s3cret"}, 200),
    ],
    ids=str,
)
def test_strangers_and_other_sites_are_refused_over_http_and_websocket(options, headers, status):
    with Hosted(options=options) as hosted:
        got, reply, answer = ask(hosted, "GET", "/metadata", **headers)
        assert got == status
        assert got == 200 or len(answer["detail"]) > 10
        assert (reply["WWW-Authenticate"] == "Bearer") is (status == 401)
        lines = {"Host": "localhost", **headers}
        with open_tcp(hosted) as sock:
            fields = [f"{name}: {value}" for name, value in lines.items()]
            text = "\r\n".join(["GET /ws HTTP/1.1", *fields, *HANDSHAKE, "", ""])
            sock.sendall(text.encode("latin-1"))
            expected = 101 if status == 200 else status
            assert sock.recv(1_000).startswith(b"HTTP/1.1 %d" % expected)


def test_health_and_the_page_need_no_token():
    with Hosted(options=TOKEN) as hosted:
        for path in ("/health", "/health/", "/docs", "/"):
            assert ask(hosted, "GET", path)[0] in (200, 307)


def test_a_preflight_is_answered_and_replies_to_an_allowed_origin_say_so():
    origin = {"Origin": "https://a.example"}
    with Hosted(options={**ALLOWED, **TOKEN}) as hosted:
        wanted = {"Access-Control-Request-Method": "POST"}
        status, headers, _ = ask(hosted, "OPTIONS", "/step", **origin, **wanted)
        assert status == 200
        assert headers["Access-Control-Allow-Origin"] == "https://a.example"
        assert "POST" in headers["Access-Control-Allow-Methods"]
        assert "authorization" in headers["Access-Control-Allow-Headers"].lower()
        assert "x-session-id" in headers["Access-Control-Allow-Headers"].lower()

        right = {"Authorization": "Bearer s3cret"}
        status, headers, _ = ask(hosted, "POST", "/reset", {}, **origin, **right)
        assert status == 200
        assert headers["Access-Control-Allow-Origin"] == "https://a.example"
        assert "X-Session-Id" in headers["Access-Control-Expose-Headers"]
        assert headers["Vary"] == "Origin"

        status, headers, _ = ask(hosted, "POST", "/reset", {}, **origin)
        assert status == 401
        assert headers["Access-Control-Allow-Origin"] == "https://a.example"


def test_a_preflight_of_another_site_is_refused():
    with Hosted(options=ALLOWED) as hosted:
        status, headers, _ = ask(hosted, "OPTIONS", "/step", Origin="https://b.example")
        assert status == 403
        assert headers["Access-Control-Allow-Origin"] is None
        assert ask(hosted, "GET", "/health")[1]["Access-Control-Allow-Origin"] is None


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


@contextlib.contextmanager
def listening(host: str, port: int = 0):
    """A Server on that host, in this thread's event loop while it is asked by other threads."""
    with Hosted() as hosted:
        server = python_env.Server(hosted.server.service)
        hosted.run(server.start(host, port))
        try:
            yield server
        finally:
            hosted.run(server.close())


@needs_ipv6
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_all_of_ipv6_takes_ipv4_as_well(address):
    with listening("::") as server:
        link = http.client.HTTPConnection(address, server.port, timeout=10)
        with contextlib.closing(link):
            link.request("GET", "/health")
            assert link.getresponse().status == 200


def test_port_0_is_one_port_for_all_addresses_of_a_name(monkeypatch):
    real = socket.getaddrinfo
    names = {"two.example": ["127.0.0.1", "127.0.0.2"]}

    def resolve(host, *given, **named):
        return [found for each in names.get(host, [host]) for found in real(each, *given, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with listening("two.example") as server:
        for address in names["two.example"]:
            with socket.create_connection((address, server.port), timeout=10) as sock:
                sock.sendall(request("GET /health", "Connection: close"))
                assert rest(sock).startswith(b"HTTP/1.1 200")


def test_a_vanished_peer_is_found_within_a_minute():
    with Hosted() as hosted:
        seen = watch_connections(hosted)
        ask(hosted, "GET", "/health")
        with open_tcp(hosted) as sock:
            sock.sendall(request("GET /health"))
            assert sock.recv(10_000)
            ours = seen[-1]().get_extra_info("socket")
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, pause, count = (
                ours.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
            )
            assert idle + pause * count <= 60


# ── The server: its end, and its log ──────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_short_steps_finish_says_1001_and_leaves_nothing(tmp_path, end):
    with Launched(tmp_path) as server, ws(server) as idle, ws(server) as short, ws(server) as long:
        for peer in (idle, short, long):
            call(peer, "reset", task_id="repl")
        ask(server, "POST", "/reset", {})
        tell(long, "step", code="while True: pass", timeout_s=60)
        tell(short, "step", code="open('f', 'w'); import time; time.sleep(0.7); 'done'")
        assert result(idle, "1") == "1"
        began = time.monotonic()
        os.killpg(server.process.pid, end)  # as a terminal does for Ctrl-C
        assert hear(short)[1]["observation"]["result"] == "'done'"
        assert [close_code(peer) for peer in (idle, short, long)] == [1001] * 3
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 10  # or docker stop would kill it


def test_a_second_signal_ends_what_still_runs(tmp_path):
    with Launched(tmp_path) as server, ws(server) as busy:
        call(busy, "reset", task_id="repl")
        tell(busy, "step", code="open('f', 'w')\nwhile True: pass", timeout_s=60)
        eventually(lambda: [*tmp_path.glob("*/*/f")])
        server.process.send_signal(signal.SIGINT)
        eventually(lambda: "1 calls have 7 s to end" in server.log.read_text())
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(5) == 0  # sooner than these 7 s
        assert close_code(busy) == 1001


def test_no_session_begins_while_the_server_drains():
    with Hosted(drain_s=5) as hosted, ws(hosted) as busy, ws(hosted) as late:
        call(busy, "reset")
        tell(busy, "step", number=404)
        eventually(lambda: Guessing.steps)
        closing = asyncio.run_coroutine_threadsafe(hosted.server.close(), hosted.loop)
        eventually(lambda: hosted.server.sessions.closing)
        assert call(late, "reset")[1]["code"] == "CAPACITY_REACHED"
        busy.close()
        closing.result(10)
        hosted.run(hosted.server.start(port=0))  # for the end of the test, which closes it again


def test_a_session_ends_with_its_call_while_the_server_drains():
    """However long the call of another one runs: under load there is always one."""
    with Hosted(drain_s=60) as hosted, ws(hosted) as busy, ws(hosted) as idle:
        for peer in (busy, idle):
            call(peer, "reset")
        over_http = ask(hosted, "POST", "/reset", {})[1]["X-Session-Id"]
        tell(busy, "step", number=404)
        eventually(lambda: Guessing.steps)
        closing = asyncio.run_coroutine_threadsafe(hosted.server.close(), hosted.loop)
        assert close_code(idle) == 1001
        eventually(lambda: over_http not in hosted.server.sessions.by_id)
        assert len(hosted.server.sessions) == 1
        busy.close()
        closing.result(10)
        hosted.run(hosted.server.start(port=0))  # for the end of the test, which closes it again


def test_a_killed_server_takes_everything_with_it(tmp_path):
    with Launched(tmp_path) as server, ws(server) as one, ws(server) as two:
        for peer in (one, two):
            call(peer, "reset", task_id="parse-duration")
            result(peer, "import os; os.makedirs('a/b'); open('a/b/c', 'w').write('x')")
        tell(two, "step", code="while True: pass", timeout_s=60)
        assert len(processes(tmp_path)) >= 5
        assert os.listdir(tmp_path)
        server.process.kill()
        eventually(lambda: nothing_left(tmp_path))


def test_the_log_has_a_line_a_session_and_at_debug_a_step_but_never_code(tmp_path):
    with Launched(tmp_path, "--log-level", "debug") as server, ws(server) as peer:
        call(peer, "reset", task_id="ledger")
        call(peer, "step", code="s3cret = 1")
        peer.close()
        eventually(lambda: "ended after 1 step" in server.log.read_text())
        text = server.log.read_text()
        assert re.search(r"DEBUG session \S+: step 1, task ledger, [\d.]+ ms, reward 0", text)
        assert "s3cret" not in text


# ── MCP ───────────────────────────────────────────────────────────────────────────────────────────


def rpc_message(method: str, key: Any = 0, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": key, "method": method, "params": params}


def rpc(where: Any, method: str, /, key: Any = 0, headers: Any = None, **params: Any) -> Any:
    status, _, answer = ask(
        where, "POST", "/mcp", rpc_message(method, key, **params), **(headers or {})
    )
    assert (status, answer["id"]) == (200, key)
    return answer["result"] if "result" in answer else answer["error"]


def tool(where: Any, name: str, /, headers: Any = None, session_id: Any = None, **arguments: Any):
    """The result, or the error, of a tools/call."""
    params = {"name": name, "arguments": arguments}
    if session_id:
        params["session_id"] = session_id
    return rpc(where, "tools/call", headers=headers, **params)


def initialize(where: Any) -> dict[str, str]:
    """The headers of a new MCP session."""
    status, headers, _ = ask(where, "POST", "/mcp", rpc_message("initialize"))
    assert status == 200
    return {"Mcp-Session-Id": headers["Mcp-Session-Id"]}


def call_rpc(peer: Any, method: str, key: Any = 0, **params: Any) -> dict[str, Any]:
    """The response to a JSON-RPC request in a WebSocket."""
    kind, answer = call(peer, "mcp", **rpc_message(method, key, **params))
    assert (kind, answer["id"]) == ("mcp", key)
    return answer


@pytest.mark.parametrize(
    "message, code",
    [
        (b"{bad", -32700),
        ({}, -32600),
        ([], -32600),
        (b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}', -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": 5}, -32600),
        ({"jsonrpc": "2.0", "id": [], "method": "ping"}, -32600),
        ({"jsonrpc": "2.0", "id": 1.5, "method": "ping"}, -32600),
        (rpc_message("nope", 1), -32601),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": [1]}, -32602),
        (rpc_message("tools/call", 1), -32602),
        (rpc_message("tools/call", 1, name="rm"), -32602),
        (rpc_message("tools/call", 1, name=["run_python"]), -32602),
        (rpc_message("tools/call", 1, name="run_python", arguments={"cod": "1"}), -32602),
        (rpc_message("tools/call", 1, name="run_python", arguments=[1]), -32602),
        (rpc_message("tools/call", 1, name="reset", arguments={}), -32602),
        (rpc_message("tools/list", 1, session_id="nope"), -32602),
        (rpc_message("tools/list", 1, session_id=[1]), -32602),
        (rpc_message("openenv/session/close", 1), -32602),
    ],
    ids=str,
)
def test_mcp_refuses_with_the_codes_of_json_rpc(server, message, code):
    status, _, answer = ask(server, "POST", "/mcp", message)
    assert (status, answer["jsonrpc"], answer["error"]["code"]) == (200, "2.0", code)
    assert len(answer["error"]["message"]) > 10
    if code in (-32601, -32602):
        assert answer["id"] == 1


def test_mcp_says_hello_in_the_peers_version(server):
    for asked in ("2024-11-05", "2025-06-18"):
        hello = rpc(server, "initialize", protocolVersion=asked, capabilities={}, clientInfo={})
        assert hello["protocolVersion"] == asked
        assert "tools" in hello["capabilities"]
    assert rpc(server, "initialize", protocolVersion=["1999"])["protocolVersion"] > "2025-06"
    assert rpc(server, "ping", "a-key") == {}


def test_mcp_notifications_get_no_answer(server):
    notification = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert ask(server, "POST", "/mcp", notification)[::2] == (202, b"")


def test_mcp_tools_have_schemas(server):
    tools = {each["name"]: each for each in rpc(server, "tools/list")["tools"]}
    assert {*tools} == {"run_python", "reset"}
    assert "code" in tools["run_python"]["inputSchema"]["properties"]
    assert "task_id" in tools["reset"]["inputSchema"]["properties"]


@pytest.mark.parametrize(
    "code, failed, words",
    [("print('hi'); 1 / 1", False, "hi.*1.0"), ("1 / 0", True, "ZeroDivisionError")],
)
def test_a_tool_call_without_a_session_runs_once_in_a_fresh_one(server, code, failed, words):
    before = sessions(server)
    answer = tool(server, "run_python", code=code)
    assert answer["isError"] is failed
    assert re.search(words, answer["content"][0]["text"], re.S)
    assert sessions(server) == before


def test_an_mcp_session_keeps_names_until_it_is_deleted(server):
    mine = initialize(server)
    assert not tool(server, "run_python", mine, code="n = 41")["isError"]
    seen = tool(server, "run_python", mine, code="n + 1")["structuredContent"]
    assert seen["result"] == "42"
    assert ask(server, "DELETE", "/mcp", **mine)[0] == 200
    assert ask(server, "DELETE", "/mcp", **mine)[0] == 404
    assert ask(server, "POST", "/mcp", rpc_message("tools/list"), **mine)[0] == 404


def test_an_mcp_session_plays_a_task_and_is_told_reward_and_feedback(server):
    mine = initialize(server)
    seen = tool(server, "reset", mine, tests="assert f(1) == 2\nassert f(2) == 4")
    assert seen["structuredContent"]["tests_total"] == 2
    seen = tool(server, "run_python", mine, code="f = lambda x: 2")["structuredContent"]
    assert (seen["reward"], seen["done"]) == (0.5, False)
    assert "1 of 2" in seen["feedback"]
    seen = tool(server, "run_python", mine, code="f = lambda x: 2 * x")["structuredContent"]
    assert (seen["reward"], seen["done"]) == (1.0, True)
    over = tool(server, "run_python", mine, code="1")
    assert over["isError"]
    assert "reset" in over["content"][0]["text"]
    assert tool(server, "reset", mine, task_id="no such task")["code"] == -32602
    assert ask(server, "DELETE", "/mcp", **mine)[0] == 200


def test_a_session_that_is_deleted_during_its_step_says_so_to_who_waits(server):
    answers = []

    def play():
        body = {"action": {"code": "while True: pass"}}
        answers.append(ask(server, "POST", "/step", body, **mine))

    mine = {"X-Session-Id": ask(server, "POST", "/reset", {})[1]["X-Session-Id"]}
    before = ask(server, "GET", "/health")[2]["steps"]
    player = threading.Thread(target=play)
    player.start()
    eventually(lambda: ask(server, "GET", "/health")[2]["steps"] > before)
    assert ask(server, "DELETE", "/mcp", **mine)[0] == 200
    player.join(20)
    status, _, answer = answers[0]
    assert (status, answer["code"]) == (404, "SESSION_ERROR")
    assert "closed while this ran" in answer["detail"]


SLOW = "import time\ndef f(x):\n    time.sleep(1)\n    return 2 * x"
CLOSED_IN = {
    "a grading": ({"tests": "assert f(1) == 2"}, "/step", {"action": {"code": SLOW}}),
    "a pair": (
        {"inputs": ["1", "2"], "outputs": ["1", "2"]},
        "/step",
        {"action": {"code": "import time\ntime.sleep(1)\nprint(input())"}},
    ),
    "the reading of tests": (
        {"task_id": "repl"},
        "/reset",
        {"tests": "\n".join(f"assert f({n}) == {n}" for n in range(9_000))},
    ),
}


@pytest.mark.parametrize("where", CLOSED_IN)
def test_a_session_that_is_closed_at_work_says_so_and_leaves_no_process(tmp_path, where):
    row, path, body = CLOSED_IN[where]

    def reading():
        return path == "/reset" and named(server.process.pid, "judge")

    with Launched(tmp_path) as server:
        before = len(processes(tmp_path))
        mine = {"X-Session-Id": ask(server, "POST", "/reset", row)[1]["X-Session-Id"]}
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(ask, server, "POST", path, body, **mine)
            eventually(lambda: ask(server, "GET", "/health")[2]["gradings"] or reading())
            assert ask(server, "DELETE", "/mcp", **mine)[0] == 200
            status, _, answer = call.result(20)
        assert (status, answer["code"]) == (404, "SESSION_ERROR")
        eventually(lambda: len(processes(tmp_path)) <= before)


MANY_HEADS = "\n".join(f"def f{n}(x): pass" for n in range(6_000))
SLOW_ROWS = {
    "many heads": {"test_list": ["assert f1(1)\n" * 5_000], "code": MANY_HEADS},
    "arrows": {"test_list": ["assert f(1)"], "code": "def f(" + ")->" * 60_000},
    "many names in the set-up": {
        "test_list": ["assert f1(1)"],
        "code": MANY_HEADS,
        "test_setup_code": "x = 1\n" * 20_000,
    },
    "many pairs": {"input_output": json.dumps({"inputs": [0] * 200_000, "outputs": [0] * 200_000})},
    "many arguments": {
        "public_test_cases": [
            {"input": "1\n" * 200_000 + "1", "output": "2", "testtype": "functional"}
        ]
    },
    "many lines of arrows": {
        "test_list": ["assert f(1)"],
        "code": ("def f(" + ")->" * 160 + "\n") * 2_000,
    },
    "a fence and empty lines": {"tests": "assert f(1)", "solution": "```" + "\n" * 40_000},
    "many fences": {"tests": "assert f(1)", "solution": "```\n" * 250_000},
    "many words": {"test_list": "a " * 1_000_000},
    "many calls": {"test_list": ("assert " + "f(" * 1_000 + "\n") * 950},
    "many words in the set-up": {
        "test_list": ["assert f1(1)"],
        "code": MANY_HEADS,
        "test_setup_code": "x " * 1_000_000,
    },
    "many heads in the set-up": {"test_list": ["f"], "test_setup_code": "def f(x):\n" * 180_000},
    "a long name": {"fn_name": "f" * 30_000, "inputs": [0] * 9_000, "outputs": [0] * 9_000},
}


@pytest.mark.parametrize("name", SLOW_ROWS)
def test_reading_a_row_takes_no_time(name):
    began = time.thread_time()
    with contextlib.suppress(InvalidRequest):
        Task.from_row(SLOW_ROWS[name])
    assert time.thread_time() - began < STALL_S


@pytest.mark.parametrize("row", [{"a": []}, {"a": "x" * 70_000}, dict.fromkeys(range(2_000), 1)])
def test_a_row_that_may_take_long_is_read_in_a_thread(row):
    reading = python_env.read_aside(lambda *_: threading.current_thread(), None, row)
    assert asyncio.run(reading) is not threading.current_thread()


def test_one_table_of_sessions_for_mcp_http_and_websocket(server):
    key = rpc(server, "openenv/session/create")["session_id"]
    tool(server, "run_python", session_id=key, code="n = 1")
    with ws(server, f"?session_id={key}") as peer:
        assert result(peer, "n += 1; n") == "2"
        step_call = {"name": "run_python", "arguments": {"code": "n += 1; n"}}
        answer = call_rpc(peer, "tools/call", **step_call)
        assert answer["result"]["structuredContent"]["result"] == "3"
        assert step(server, "n", X_Session_Id=key) == "3"
    closed = rpc(server, "openenv/session/close", session_id=key)
    assert closed == {"session_id": key, "closed": True}
    assert ask(server, "GET", "/state", X_Session_Id=key)[0] == 404


def test_a_websocket_speaks_mcp_in_its_own_session():
    with Hosted() as hosted, ws(hosted) as peer:
        answer = call_rpc(peer, "openenv/session/create", "k")
        assert answer["result"]["session_id"] in hosted.server.sessions.by_id
        assert call(peer, "mcp", jsonrpc="1.0")[1]["error"]["code"] == -32600
        assert call(peer, "mcp", jsonrpc="2.0", method="notifications/initialized") == ("mcp", {})
        tools = call_rpc(peer, "tools/list")["result"]["tools"]
        assert [each["name"] for each in tools] == ["step", "reset"]
        call(peer, "reset", seed=3)
        answer = call_rpc(peer, "tools/call", name="step", arguments={"number": 3})
        assert answer["result"]["structuredContent"]["reward"] == 1.0


def test_a_session_that_is_closed_over_mcp_ends_its_websocket():
    with Hosted() as hosted:
        key = rpc(hosted, "openenv/session/create")["session_id"]
        with ws(hosted, f"?session_id={key}") as peer:
            call(peer, "reset")
            rpc(hosted, "openenv/session/close", session_id=key)
            assert call(peer, "state")[1]["code"] == "SESSION_ERROR"
            assert close_code(peer) == 1008


# ── Extending ─────────────────────────────────────────────────────────────────────────────────────


class Plain(Guessing):
    def step(self, action: Guess) -> Hint:
        assert threading.current_thread() is not threading.main_thread()
        return asyncio.run(super().step(action))

    def state(self) -> GuessState:
        return self.now


class Stateless(Environment[Guess, Hint]):
    """Keeps no state, and forgets to return its observations after the first."""

    def reset(self, **options: Any) -> Hint:
        return Hint()

    def step(self, action: Guess) -> Any:
        if action.number == 4:
            raise InvalidRequest("4 is off the board")
        return None if action.number == 3 else Hint()


def test_the_server_counts_the_steps_of_an_environment_that_does_not():
    with Hosted(Stateless) as hosted, GuessClient(hosted.url) as client:
        assert client.state().step_count == 0
        client.reset(episode_id="e")
        client.step(Guess(number=1))
        client.step(Guess(number=2))
        assert (client.state().episode_id, client.state().step_count) == ("e", 2)
        client.reset()
        assert client.state().step_count == 0
        assert client.state().episode_id not in (None, "e")


def test_what_an_environment_refuses_or_returns_wrongly_is_said():
    with Hosted(Stateless) as hosted, GuessClient(hosted.url) as client:
        client.reset()
        with pytest.raises(ServerError, match="4 is off the board") as refused:
            client.step(Guess(number=4))
        assert refused.value.code == "VALIDATION_ERROR"
        with pytest.raises(ServerError, match=r"step\(\) returned NoneType, not an Observation"):
            client.step(Guess(number=3))
        assert client.state().step_count == 0


@pytest.mark.parametrize("environment", [Guessing, Plain])
def test_an_environment_of_twenty_lines_is_served(environment):
    with Hosted(environment) as hosted, GuessClient(hosted.url) as client:
        assert client.reset(seed=7, high=8, episode_id="e").observation == Hint(hint="0..8")
        assert client.step(Guess(number=3)).observation == Hint(hint="no", reward=0.0)
        with pytest.raises(ServerError, match="ZeroDivisionError") as caught:
            client.step(Guess(number=0))
        assert caught.value.code == "EXECUTION_ERROR"
        seen = client.step({"number": 7})
        assert (seen.reward, seen.done) == (1.0, True)
        assert client.state() == GuessState(episode_id="e", step_count=3, high=8)
        for number, words in ((1, "the episode is over"), (-5, "number: Input should be")):
            with pytest.raises(ServerError, match=words):
                client.step({"number": number})
            client.reset()
        assert ask(hosted, "GET", "/schema")[2]["action"]["required"] == ["number"]


def failing(environment: type, error: BaseException) -> Any:
    class Failing(environment):
        def fail(self, action: Guess) -> Hint:
            raise error

        async def fail_inline(self, action: Guess) -> Hint:
            raise error

        step = fail if environment is Plain else fail_inline

    return Failing


@pytest.mark.parametrize("environment", [Guessing, Plain])
@pytest.mark.parametrize("error", [SystemExit(3), StopIteration(), KeyError("x")], ids=repr)
def test_whatever_an_environment_raises_is_an_answer(environment, error):
    with Hosted(failing(environment, error)) as hosted, ws(hosted) as peer:
        call(peer, "reset")
        for _ in range(2):
            kind, data = call(peer, "step", number=1)
            assert (kind, data["code"]) == ("error", "EXECUTION_ERROR")
        assert call(peer, "state")[0] == "state"


def test_a_thread_is_started_only_for_plain_functions():
    def threads() -> int:
        return sum("environment" in thread.name for thread in threading.enumerate())

    class Coroutines(Guessing):
        async def reset(self, seed=None, episode_id=None, high: int = 10) -> Hint:
            return super().reset(seed, episode_id, high)

    for environment, count in ((Coroutines, 0), (Plain, 1)):
        with Hosted(environment) as hosted, ws(hosted) as peer:
            before = threads()
            call(peer, "reset")
            call(peer, "step", number=1)
            assert threads() - before == count
        eventually(lambda before=before: threads() == before)


def test_a_factory_that_fails_is_said_and_ends_only_that_session(caplog):
    with Hosted(lambda: 1 / 0) as hosted:
        with pytest.raises(ServerError, match="ZeroDivisionError.*FACTORY_ERROR"):
            GuessClient(hosted.url).reset()
        assert ask(hosted, "POST", "/reset", {})[0] == 503
        assert sessions(hosted) == 0
    assert "division by zero" in caplog.text


@dataclass
class Inner:
    size: int = 3


@dataclass(kw_only=True)
class Board(Observation):
    inner: Inner = field(default_factory=Inner)
    cells: Any = ()


@dataclass(kw_only=True)
class Pairs(Observation):
    legal: list[tuple[int, int]] = field(default_factory=list)


class Bare(Action):
    number: int


class Unfinished(python_env.Environment):
    def reset(self):
        return Observation()


def first_observation_of(board):
    class Boards(Guessing):
        async def reset(self) -> Board:
            return board

    with Hosted(Boards, models=Models(Guess, Board, State)) as hosted:
        return ask(hosted, "POST", "/reset", {})[2]


def test_a_nested_dataclass_travels_as_an_object():
    assert first_observation_of(Board())["observation"]["inner"] == {"size": 3}


def test_numpy_s_values_travel_as_json():
    numpy = pytest.importorskip("numpy")
    board = Board(cells=numpy.eye(2), done=numpy.bool_(False), reward=numpy.float32(0.5))
    answer = first_observation_of(board)
    assert answer["observation"]["cells"] == [[1.0, 0.0], [0.0, 1.0]]
    assert answer["reward"] == 0.5
    assert answer["done"] is False


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((Guessing, Guess, Pairs), r"Pairs\.legal: tuple\[int, int\] is no type that JSON has"),
        ((Guessing, Bare), "Bare: expected a dataclass"),
        ((Guessing, Guess(number=1)), "action: expected a class"),
        ((Guessing(), Guess), "expected its class, or what makes one, got an instance"),
        ((Unfinished, Guess), r"Unfinished: expected it to define step\(\)"),
    ],
)
def test_serve_says_at_once_what_could_only_fail_later(given, words):
    with pytest.raises(TypeError, match=words):
        python_env.serve(*given, port=0)


@pytest.mark.parametrize("environment", [Guessing, Plain])
def test_serve_reads_the_models_off_the_annotations(tmp_path, environment):
    name = environment.__name__
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import python_env\n"
        f"from test_server import Guess, Guessing, Plain; python_env.serve({name}, Guess, port=0)"
    )
    with Launched(tmp_path, command=("-c", code)) as served, GuessClient(served.url) as client:
        assert served.line.startswith(f"{name} on http://")
        assert client.reset(seed=2).done is False
        schema = ask(served, "GET", "/schema")[2]
        assert "hint" in schema["observation"]["properties"]
        assert "high" in schema["state"]["properties"]
    assert served.process.returncode == 0


# ── The command line ──────────────────────────────────────────────────────────────────────────────


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {key: text for key, text in os.environ.items() if not key.startswith("PYTHON_ENV_")}
    return subprocess.run(
        [sys.executable, "-m", "python_env", *arguments],
        cwd=HERE,
        text=True,
        capture_output=True,
        timeout=30,
        env={**clean, **variables},
    )


FLAGS = [
    "host",
    "port",
    "tasks",
    "max-sessions",
    "session-wait",
    "step-timeout",
    "max-step-timeout",
    "memory-mb",
    "idle-timeout",
    "preload",
    "allow-origin",
    "allow-host",
    "require-isolation",
    "log-level",
]


def test_help_names_every_flag_with_its_default_and_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    assert [flag for flag in FLAGS if not re.search(rf"--{flag}\s", text)] == []
    assert len(re.findall(r"\(default:\s", text)) == len(set(re.findall(r"\n  --([\w-]+)", text)))
    assert "PYTHON_ENV_STEP_TIMEOUT" in text
    assert "PYTHON_ENV_TOKEN" in text
    assert "curl" in text


@pytest.mark.parametrize("command", ["serve", "check", "demo"])
def test_each_command_has_help_with_an_example(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"\n  python-env {command}" in capsys.readouterr().out


def on_a_terminal(*arguments: str, **variables: str) -> str:
    """What a command writes where its standard output is a terminal."""
    here, there = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    subprocess.run(
        [sys.executable, "-m", "python_env", *arguments],
        stdout=there,
        stderr=subprocess.DEVNULL,
        cwd=HERE,
        env={**clean, **variables},
        timeout=60,
    )
    os.close(there)
    text = os.read(here, 65_536).decode()
    os.close(here)
    return text


def test_colour_is_for_terminals_and_no_color_is_honoured(tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    row = {"task_id": "a", "tests": "assert f() == 1", "solution": "def f(): return 1"}
    tasks.write_text(json.dumps(row))
    command = ("check", str(tasks))
    words = "1 of 1 rows are sound"
    assert on_a_terminal(*command) == f"\x1b[32m{words}\x1b[0m\r\n"
    assert on_a_terminal(*command, NO_COLOR="1") == f"{words}\r\n"
    piped = [sys.executable, "-m", "python_env", *command]
    assert subprocess.check_output(piped, cwd=HERE, text=True) == f"{words}\n"
    tasks.write_text(json.dumps({**row, "solution": "def f(): return 2"}))
    assert "\x1b[33m0 of 1 rows are sound\x1b[0m\r\n" in on_a_terminal(*command)


def test_version_is_told(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert python_env.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("", "COMMAND"),
        ("dance", "dance"),
        ("serve --port x", "--port"),
        ("serve --port -1", "--port"),
        ("serve --port 70000", "port"),
        ("serve --max-sessions 0", "at least 1"),
        ("serve --nope", "--nope"),
        ("serve --step-timeout nan", "--step-timeout"),
        ("serve --session-wait -1", "--session-wait"),
        ("serve --log-level loud", "info"),
        ("serve --tasks /nowhere/t", "/nowhere/t"),
        ("serve PYTHON_ENV_PORT=x", "port"),
        ("serve PYTHON_ENV_MEMORY_MB=1.5", "memory-mb"),
        ("serve PYTHON_ENV_LOG_LEVEL=loud", "loud"),
        ("serve MAX_CONCURRENT_ENVS=many", "max-sessions"),
    ],
)
def test_bad_values_exit_2_and_say_what_was_expected(arguments, words):
    given = arguments.split()
    flags = [word for word in given if "=" not in word]
    done = run(*flags, **dict(word.split("=") for word in given if "=" in word))
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_server_py_is_a_launcher_that_variables_configure(tmp_path):
    variables = {
        "PYTHON_ENV_TOKEN": "s3cret\n",
        "PYTHON_ENV_MAX_SESSIONS": "7",
        "MAX_CONCURRENT_ENVS": "8",
        "PYTHON_ENV_STEP_TIMEOUT": "60",
        "PYTHON_ENV_ALLOW_HOST": "my.box, other.box",
    }
    command = ("server.py", "--port", "0")
    with Launched(tmp_path, "--step-timeout", "0.4", command=command, **variables) as server:
        assert "landlock" in server.line
        assert ask(server, "GET", "/health")[2]["max_sessions"] == 7
        assert ask(server, "GET", "/health", Host="other.box")[0] == 200
        assert ask(server, "GET", "/health", Host="box")[0] == 403
        assert ask(server, "GET", "/tasks")[0] == 401
        with PythonEnv(server.url, token="s3cret") as env:
            env.reset(task_id="repl")
            seen = env.step(PythonAction("while True: pass")).observation
            assert seen.exit_code == 124
            assert "0.4 s" in seen.feedback


@pytest.mark.parametrize(
    "flags, variables, words",
    [
        (["--host", "0.0.0.0"], {}, "PYTHON_ENV_TOKEN"),
        (["--host", "0.0.0.0"], {"PYTHON_ENV_TOKEN": "x"}, None),
        ([], {"PYTHON_ENV_TOKN": "x"}, "PYTHON_ENV_TOKN.*PYTHON_ENV_TOKEN"),
        ([], {"PYTHON_ENV_PORT": "0"}, None),
    ],
    ids=str,
)
def test_what_is_probably_a_mistake_is_warned_of(tmp_path, flags, variables, words):
    log = tmp_path / "log"
    clean = {key: text for key, text in os.environ.items() if not key.startswith("PYTHON_ENV_")}
    with open(log, "w") as err:
        server = subprocess.Popen(
            [sys.executable, "-m", "python_env", "serve", "--port", "0", *flags],
            cwd=HERE,
            stdout=subprocess.PIPE,
            stderr=err,
            env={**clean, **variables},
        )
        assert server.stdout.readline()
        server.terminate()
        assert server.wait(10) == 0
        server.stdout.close()
    if words:
        assert re.search(f"WARNING.*{words}", log.read_text())
    else:
        assert "WARNING" not in log.read_text()


def test_a_taken_port_exits_1_with_a_remedy_in_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        done = run("serve", "--port", port, TMPDIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert port in line
    assert line.count("in use") == line.count("cannot listen") == 1
    assert line.endswith("port 0 (--port 0) takes any free one")
    eventually(lambda: nothing_left(tmp_path))


def test_an_unknown_host_exits_1_in_one_line(tmp_path):
    done = run("serve", "--port", "0", "--host", "no.such.host.invalid", TMPDIR=str(tmp_path))
    assert done.returncode == 1
    assert "no.such.host.invalid" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_demo_plays_a_solved_episode(tmp_path):
    done = run("demo", TMPDIR=str(tmp_path))
    assert done.returncode == 0
    assert done.stdout.count("reward") >= 2
    assert not done.stderr
    assert "reward 1.00  done True" in done.stdout
    assert nothing_left(tmp_path)


# ── Load ──────────────────────────────────────────────────────────────────────────────────────────


async def play(port: int, graded: bool) -> bool:
    options = {"proxy": None, "compression": None, "open_timeout": 60, "ping_interval": None}
    url = f"ws://127.0.0.1:{port}/ws"
    async with websockets.asyncio.client.connect(url, **options) as peer:

        async def exchange(kind: str, **data: Any) -> dict[str, Any]:
            await peer.send(json.dumps({"type": kind, "data": data}))
            reply = json.loads(await peer.recv())
            assert reply["type"] == "observation", reply
            return reply["data"]

        if graded:
            await exchange("reset", tests="assert f(3) == 4\nassert f([0]) == [1]")
            half = await exchange("step", code="f = lambda x: x + 1")
            full = await exchange("step", code="f = lambda x: [1] if x == [0] else x + 1")
            return (half["reward"], full["reward"]) == (0.5, 1.0)
        await exchange("reset", task_id="repl")
        for number in range(20):
            data = await exchange("step", code=f"n = globals().get('n', 0) + {number}; n")
        return data["observation"]["result"] == "190"


@pytest.mark.slow
def test_200_sessions_at_once_then_40_graded_ones_leave_no_trace(tmp_path):
    async def crowd(count: int, graded: bool) -> bool:
        return all(await asyncio.gather(*(play(server.port, graded) for _ in range(count))))

    def footprint() -> tuple[int, int, int]:
        proc = Path("/proc", str(server.process.pid))
        return (
            len(processes(tmp_path)),
            len([*tmp_path.glob("*/*")]),
            len(os.listdir(proc / "fd")),
        )

    with Launched(tmp_path) as server:
        assert asyncio.run(crowd(2, True))  # what is made once, is made
        eventually(lambda: sessions(server) == 0 and footprint()[1] == 0)
        before = footprint()
        assert asyncio.run(crowd(200, False))
        assert asyncio.run(crowd(40, True))
        eventually(
            lambda: all(now <= then for now, then in zip(footprint(), before, strict=True)), 60
        )
