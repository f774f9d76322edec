"""Chapter 5: the client, driven as a user would: processes, threads, servers that misbehave."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import dataclasses
import gc
import gzip
import os
import pickle
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import websockets.exceptions

import python_env
from conftest import BUSY_S
from conftest import HERE
from conftest import GuessClient
from conftest import Guessing
from conftest import Hosted
from conftest import Launched
from conftest import eventually
from conftest import nothing_left
from conftest import processes
from conftest import sessions
from fakes import Fake
from fakes import Gate
from fakes import observation
from fakes import response
from fakes import run_program
from python_env import ConnectionFailed
from python_env import EnvClient
from python_env import InvalidRequest
from python_env import Observation
from python_env import PythonAction
from python_env import PythonEnv
from python_env import PythonEnvError
from python_env import PythonObservation
from python_env import PythonState
from python_env import ReplyTimeout
from python_env import ServerError

# ── episodes ──────────────────────────────────────────────────────────────────────────────────────


def test_the_client_plays_an_episode_at_a_url(server):
    with PythonEnv(base_url=server.url) as env:
        reset = env.reset(task_id="parse-duration", seed=1, episode_id="e")
        assert reset.reward is None
        assert reset.done is False
        expected = python_env.builtin_tasks()["parse-duration"].tests_total
        assert reset.observation.tests_total == expected

        seen = env.step(PythonAction("print('hi'); 40 + 2"))
        assert isinstance(seen.observation, PythonObservation)
        assert (seen.reward, seen.done) == (0.0, False)
        assert (seen.observation.stdout, seen.observation.result) == ("hi\n", "42")
        state = PythonState(episode_id="e", step_count=1, task_id="parse-duration", max_steps=20)
        assert env.state() == state

        for seconds in (-1, -1e300, 1e300, 10**400):
            with pytest.raises(ServerError, match="timeout_s") as caught:
                env.step(PythonAction("1", timeout_s=seconds))
            assert caught.value.code == "VALIDATION_ERROR"
        assert caught.value.errors[0]["loc"] == ["timeout_s"]
        assert env.step(PythonAction("_ = 1")).reward == 0.0  # which did not end the session
    env.close()
    env.close()
    with pytest.raises(ConnectionFailed, match=r"closed.*reset\(\)"):
        env.step(PythonAction("1"))


def test_text_is_an_action_and_a_task_may_stand_first(server):
    with PythonEnv(server.url) as env:
        assert env.reset("ledger").observation.task_id == "ledger"
        assert env.reset("repl", seed=1).observation.task_id == "repl"
        assert env.step("6 * 7").observation.result == "42"
        assert env.step({"code": "6 * 8"}).observation.result == "48"
        with pytest.raises(InvalidRequest, match="expected an action or a dict, got list"):
            env.step(["6 * 7"])


def test_the_tasks_of_a_server_are_listed(server):
    listed = PythonEnv(server.url).tasks()
    assert {each["task_id"] for each in listed} >= {*python_env.builtin_tasks()} - {"repl"}
    assert all("prompt" in each or "difficulty" in each for each in listed)
    with pytest.raises(ConnectionFailed, match="127.0.0.1:1/tasks lists no tasks"):
        PythonEnv("http://127.0.0.1:1").tasks()


FORMS = ["http://127.0.0.1:{}", "127.0.0.1:{}/", "ws://localhost:{}", "ws://127.0.0.1:{}/ws"]


@pytest.mark.parametrize("form", FORMS)
def test_a_plain_client_takes_dicts_and_every_form_of_url(server, form):
    with contextlib.closing(EnvClient(form.format(server.port)).sync()) as client:
        assert client.reset(task_id="repl").observation["task_id"] == "repl"
        for action in ({"code": "1 + 1", "metadata": {}}, PythonAction("1 + 1")):
            assert client.step(action).observation["result"] == "2"
        assert client.state()["step_count"] == 2


@pytest.mark.parametrize("url", [None, "", "http://", "ftp://localhost:1"])
def test_a_url_that_is_none_is_refused_at_once(url):
    with pytest.raises(InvalidRequest, match="base_url"):
        EnvClient(url)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"x", object()], ids=str)
def test_what_json_cannot_express_is_refused_and_costs_nothing(server, value):
    with PythonEnv(server.url) as env:
        env.reset("repl")
        env.step("x = 1")
        with pytest.raises(InvalidRequest, match="step: expected what JSON can express"):
            env.step({"code": "1", "metadata": {"value": value}})
        assert env.step("x").observation.result == "1"


def test_what_is_too_large_for_a_message_costs_no_session(server):
    with PythonEnv(server.url) as env:
        env.reset("repl")
        env.step("x = 1")
        with pytest.raises(InvalidRequest, match="reset: has 3,.* bytes as JSON; the limit is 2,"):
            env.reset(tests="assert f() == 1\n" * 200_000)
        with pytest.raises(InvalidRequest, match="step: has 3,.* bytes"):
            env.step(PythonAction("1", stdin="x" * 3_000_000))
        for action in ("#" * 3_000_000, PythonAction("#" * 3_000_000), {"code": "é" * 3_000_000}):
            seen = env.step(action).observation
            assert seen.exit_code == 1
            assert "262,144" in seen.feedback
        assert env.step("x").observation.result == "1"


def test_a_step_s_own_time_is_sent_and_added_to_the_patience():
    def slow(message):
        time.sleep(0.5)  # because the point is what is longer than message_timeout_s
        return observation(message)

    with Fake(slow) as fake:
        with pytest.raises(ReplyTimeout), EnvClient(fake.url, message_timeout_s=0.2) as client:
            client.step({"code": "1"})
        with EnvClient(fake.url, message_timeout_s=0.2) as client:
            assert client.step({"code": "1"}, timeout_s=2).reward is None
            assert client.step({"code": "1", "timeout_s": 3}, timeout_s=2).reward is None
            assert client.step({"code": "1", "timeout_s": None}, timeout_s=4).reward is None
        with PythonEnv(fake.url, message_timeout_s=0.2) as env:
            assert env.step(PythonAction("1"), timeout_s=5).reward is None
        steps = [message["data"] for message in fake.heard if message["type"] == "step"]
        assert [data.get("timeout_s") for data in steps] == [None, 2, 3, 4, 5]


def test_a_server_stops_a_step_at_the_time_that_was_named(server):
    with PythonEnv(server.url) as env:
        env.reset("repl")
        assert env.step("while True: pass", timeout_s=0.5).observation.exit_code == 124


# ── connecting ────────────────────────────────────────────────────────────────────────────────────


NO_SERVERS = [
    (b"", "is an OpenEnv server running there"),
    (b"220 mail.example ESMTP\r\n", "is an OpenEnv server running there"),
    (response(401), "HTTP 401; its token= is missing or wrong"),
    (response(404), "HTTP 404; check the address"),
    (response(500), "HTTP 500; is an OpenEnv server running there"),
    (b"HTTP/1.1 200 OK\r\n\r\n", "HTTP 200"),
]


@pytest.mark.parametrize("reply, words", NO_SERVERS)
def test_what_is_no_server_is_named_with_a_remedy(reply, words):
    with Gate(None, reply) as gate:
        address = gate.url.removeprefix("http://")
        with pytest.raises(ConnectionFailed, match=f"ws://{address}.*{words}"):
            EnvClient(gate.url, connect_timeout_s=5).reset()


def test_where_nobody_listens_is_named_with_a_remedy():
    with pytest.raises(ConnectionFailed, match="refused.*is an OpenEnv server running there"):
        EnvClient("http://127.0.0.1:1").connect()


def test_a_token_and_headers_are_sent():
    with Hosted(options={"token": "s3cret"}) as hosted:
        with pytest.raises(ConnectionFailed, match="token="):
            GuessClient(hosted.url).connect()
        by_header = {"headers": {"Authorization": "Bearer s3cret"}}
        for options in ({"token": "s3cret"}, {"token": "s3cret\n"}, by_header):
            with GuessClient(hosted.url, **options) as client:
                assert client.reset().observation.hint == "0..10"


def test_the_tasks_are_asked_for_with_the_token():
    with Fake(observation) as fake:
        assert PythonEnv(fake.url, token="t").tasks() == [{"task_id": "t", "token": "Bearer t"}]


STRANGE = [
    b"SSH-2.0-OpenSSH\r\n",
    b"",
    response(500),
    response(200, body=b"<html>"),
    response(200, body=b"[" * 60_000),
    response(200, body=b'{"tasks"'),
    response(200, body=b"[1]"),
    response(200, body=b"null"),
    response(200, body=b"\xff"),
    response(200, body=b"{}"),
]


@pytest.mark.parametrize("reply", STRANGE, ids=lambda reply: ascii(reply)[-30:])
def test_a_list_of_tasks_that_is_none_is_said(reply):
    with Gate(None, reply) as gate:
        env = PythonEnv(gate.url)
        with pytest.raises(ConnectionFailed, match="lists no tasks"):
            env.tasks()


def test_an_answer_that_comes_byte_by_byte_is_not_waited_for():
    before = {*threading.enumerate()}
    over = threading.Event()

    def drip():
        peer = listener.accept()[0]
        with peer, contextlib.suppress(OSError):
            peer.sendall(b"HTTP/1.1 200 OK\r\n")
            while not over.wait(0.02):
                peer.sendall(b"A")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        env = PythonEnv(f"http://127.0.0.1:{listener.getsockname()[1]}", message_timeout_s=0.3)
        with pytest.raises(ConnectionFailed, match="no whole answer within 0.3 s"):
            env.tasks()
        assert time.monotonic() - began < BUSY_S
        over.set()
        thread.join()
        eventually(lambda: {*threading.enumerate()} <= before)


def test_a_redirect_does_not_take_the_token_along():
    with Gate(None, response(404)) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        moved = response(302, f"Location: {elsewhere}/tasks")
        with Gate(None, moved) as gate, pytest.raises(ConnectionFailed):
            PythonEnv(gate.url, token="t").tasks()
    assert "Authorization: Bearer t" in gate.requests[0]
    assert "Authorization" not in other.requests[0]


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_server_that_is_not_ready_is_tried_again(status):
    with Hosted() as hosted, Gate(hosted, response(status), response(status)) as gate:
        with GuessClient(gate.url) as client:
            assert client.reset().observation.hint == "0..10"
        assert len(gate.times) == 3


def test_the_wait_that_a_server_asks_for_is_honoured():
    busy = response(503, "Retry-After: 1")
    with Hosted() as hosted, Gate(hosted, busy) as gate, GuessClient(gate.url):
        first, second = gate.times
        assert second - first >= 1.0


WISHES = ["3600", "-1", "0", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "9" * 500]


@pytest.mark.parametrize("wish", [*WISHES, "3600\r\nRetry-After: 1"])
def test_the_wait_that_a_server_asks_for_is_bounded(wish):
    with Gate(None, *[response(503, f"Retry-After: {wish}")] * 50) as gate:
        began = time.monotonic()
        with pytest.raises(ConnectionFailed, match="HTTP 503.*connect_timeout_s="):
            GuessClient(gate.url, connect_timeout_s=0.7).connect()
        assert 0.6 < time.monotonic() - began < 5
        assert 1 < len(gate.times) < 20


@pytest.mark.parametrize("connected", [False, True])
def test_a_full_server_is_tried_again_until_the_time_is_up(connected):
    limits = {"max_sessions": 1}
    if hasattr(python_env.LIMITS, "session_wait_s"):
        limits["session_wait_s"] = 0.1
    with Hosted(**limits) as hosted, GuessClient(hosted.url) as first:
        first.reset()
        began = time.monotonic()
        with pytest.raises(ServerError, match="CAPACITY_REACHED"):
            GuessClient(hosted.url, connect_timeout_s=0.5).reset()
        assert 0.4 < time.monotonic() - began < 5

        second = GuessClient(hosted.url)
        if connected:
            second.connect()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reset = pool.submit(second.reset)
            assert first.step({"number": 1}).reward == 0.0
            assert not reset.done()
            first.close()
            assert reset.result(10).observation.hint == "0..10"
        second.close()


def test_no_proxy_is_asked_for_this_machine(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with Fake(observation) as fake, PythonEnv(fake.url) as env:
        assert env.state() is not None
        assert env.tasks()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate for localhost, signed by nobody that is known, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem"
    try:
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate with")
    return folder / "cert.pem", folder / "key.pem"


def test_https_is_served_by_an_authority_of_one_s_own(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority)
    ours = ssl.create_default_context(cafile=authority[0])
    strange = pytest.raises(ConnectionFailed, match="certificate")
    with Fake(observation, "https", ssl=context) as fake, strange:
        EnvClient(fake.url).connect()

    def connected():
        # websockets' threads in the fake may block each other in the handshake: then again.
        with contextlib.suppress(ConnectionFailed):
            return PythonEnv(fake.url, ssl=ours, connect_timeout_s=3).connect()
        return None

    with Fake(observation, "https", ssl=context) as fake, eventually(connected) as env:
        assert env.ws_url == f"wss://localhost:{fake.port}/ws"
        assert env.reset().done is False
        assert env.tasks()


def test_a_vanished_peer_is_found_within_a_minute_and_a_slow_one_is_left_alone():
    with Fake(observation) as fake, EnvClient(fake.url) as client:
        connection = client._wire.connection
        assert connection.ping_timeout is None
        read = connection.socket.getsockopt
        assert read(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle = read(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        between = read(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
        count = read(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
        assert idle + between * count <= 60
        assert read(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000
        assert 0 < read(socket.SOL_SOCKET, socket.SO_SNDTIMEO) <= 60


class Flooding(Fake):
    """Sends replies that nobody asked for."""

    def talk(self, connection):
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            while True:
                connection.send(bytes(8_388_608))
                self.connections += 1


def test_few_replies_that_nobody_asked_for_are_held():
    with Flooding(None) as fake, EnvClient(fake.url) as client:
        frames = client._wire.connection.recv_messages
        eventually(lambda: frames.paused)
        assert frames.frames.qsize() <= 2
        client._wire.connection.socket.shutdown(socket.SHUT_RDWR)


# ── what ends a session ───────────────────────────────────────────────────────────────────────────


def test_a_time_out_ends_the_connection_and_no_reply_comes_late():
    with Hosted() as hosted, GuessClient(hosted.url, message_timeout_s=0.3) as client:
        client.reset(seed=3)
        with pytest.raises(ReplyTimeout, match="0.3 s .message_timeout_s"):
            client.step({"number": 404})
        for lost in (lambda: client.step({"number": 3}), client.state):
            with pytest.raises(ConnectionFailed, match=r"no reply.*reset\(\)"):
                lost()
        eventually(lambda: Guessing.killed == 1)
        assert client.reset(seed=3).reward is None
        assert client.step({"number": 3}).reward == 1.0


def test_ctrl_c_in_a_call_drops_the_reply_that_was_to_come():
    thread = threading.get_ident()

    def interrupt():
        eventually(lambda: Guessing.steps)
        signal.pthread_kill(thread, signal.SIGINT)

    with Hosted() as hosted, GuessClient(hosted.url) as client:
        client.reset()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(interrupt)
            with pytest.raises(KeyboardInterrupt):
                client.step({"number": 404})
        with pytest.raises(ConnectionFailed, match="interrupted"):
            client.step({"number": 1})
        assert client.reset().reward is None


def test_reset_after_an_idle_close_connects_again_by_itself():
    with Hosted(ws_idle_s=0.1) as hosted, GuessClient(hosted.url) as client:
        client.reset(seed=3)
        eventually(lambda: sessions(hosted) == 0)
        assert client.reset(seed=3).observation.hint == "0..10"
        assert client.step({"number": 3}).reward == 1.0


def test_reset_after_a_restart_of_the_server_connects_again_by_itself(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    with Launched(tmp_path / "1") as first:
        env = PythonEnv(first.url)
        env.reset("repl")
    with pytest.raises(ConnectionFailed, match=r"lost.*reset\(\)"):
        env.step("1")
    with Launched(tmp_path / "2", "--port", str(first.port)), contextlib.closing(env):
        with pytest.raises(ConnectionFailed, match=r"reset\(\)"):
            env.state()
        assert env.reset("repl").done is False
        assert env.step("1").observation.result == "1"


def test_reset_tries_a_lost_connection_once_more_and_no_more():
    def cut(message):
        raise ConnectionResetError

    with Fake(cut) as fake, EnvClient(fake.url) as client:
        with pytest.raises(ConnectionFailed, match="lost"):
            client.reset()
        assert fake.connections == 2
        with pytest.raises(ConnectionFailed, match="lost"):
            client.reset()
        assert fake.connections == 3


BAD_REPLIES = [
    "no JSON",
    "[" * 100_000,
    "[]",
    "null",
    '"text"',
    "{}",
    '{"type": "observation", "data": [1]}',
    '{"type": "observation", "data": "text"}',
    '{"type": "error", "data": {"errors": 5}}',
]


@pytest.mark.parametrize("reply", BAD_REPLIES, ids=lambda reply: reply[:40])
def test_a_server_that_speaks_something_else_is_said(reply):
    with Fake(lambda message: reply) as fake, contextlib.closing(EnvClient(fake.url)) as client:
        with pytest.raises(ConnectionFailed, match="does not speak OpenEnv"):
            client.state()
        assert client.connect().base_url == fake.url


@dataclasses.dataclass
class Lamp(Observation):
    """An observation that must have something."""

    is_on: bool


class LampClient(EnvClient):
    observation_model = Lamp
    state_model = PythonState


SHORT = [{}, {"observation": None}, {"observation": [1]}, {"observation": {"is_off": True}}]


@pytest.mark.parametrize("data", SHORT, ids=str)
def test_a_reply_that_lacks_a_field_is_said(data):
    answer = {"type": "observation", "data": data}
    with Fake(lambda message: answer) as fake, LampClient(fake.url) as client:
        with pytest.raises(ConnectionFailed, match="the server's reply is no Lamp: .*"):
            client.reset()
        answer["data"] = {"observation": {"is_on": True}, "reward": 1}
        assert client.reset().observation == Lamp(True, reward=1)


def test_a_client_that_is_dropped_gives_its_session_back():
    with Hosted() as hosted:
        client = GuessClient(hosted.url)
        client.reset()
        assert sessions(hosted) == 1
        del client
        gc.collect()
        eventually(lambda: sessions(hosted) == 0)


# ── threads and processes ─────────────────────────────────────────────────────────────────────────


def test_threads_take_turns():
    with Fake(observation) as fake, EnvClient(fake.url) as client:
        client.reset()

        def play(number):
            replies = [client.step({"number": number}) for _ in range(20)]
            return {each.observation["echo"]["data"]["number"] for each in replies}

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert list(pool.map(play, range(16))) == [{number} for number in range(16)]
        assert fake.connections == 1


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_client_is_not_copied(duplicate):
    with pytest.raises(PythonEnvError, match="GuessClient is one session.*same base_url"):
        duplicate(GuessClient("http://localhost:1"))


def all_errors():
    """One of each exception that may reach a user."""
    entry = {"type": "missing", "loc": ["code"], "msg": "Field required", "input": None}
    special = {
        InvalidRequest: ("wrong", [entry]),
        ServerError: ("refused", "VALIDATION_ERROR", [entry]),
        python_env.HTTPError: (405, "not so", {"Allow": "GET"}),
    }
    for kind in vars(python_env).values():
        if isinstance(kind, type) and issubclass(kind, PythonEnvError):
            yield kind(*special.get(kind, ("words",))) if kind.__name__ != "RPCError" else None


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_error_pickles(protocol):
    for error in filter(None, all_errors()):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
        assert str(copy.copy(error)) == str(error)


POOL = """
    import multiprocessing, sys
    from python_env import PythonEnv, ServerError

    def play(number):
        with PythonEnv(sys.argv[1]) as env:
            env.reset("repl")
            env.step({"code": "1", "timeout_s": -1} if number == 3 else f"{number}")
        return number

    if __name__ == "__main__":
        with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
            try:
                pool.map(play, range(4))
            except ServerError as error:
                print(error.code, error.errors[0]["loc"])
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_of_processes_hands_errors_on(server, tmp_path, method):
    assert run_program(tmp_path, POOL, server.url, method) == ["VALIDATION_ERROR ['timeout_s']"]


FORK = """
    import os, sys
    from python_env import ConnectionFailed, PythonEnv

    env = PythonEnv(*sys.argv[1:])
    env.reset("repl")
    env.step("x = 'the parent'")
    child = os.fork()
    if not child:
        try:
            env.step("x")
        except ConnectionFailed as error:
            assert "call reset()" in str(error), error
        env.reset("repl")
        env.step("x = 'the child'")
        assert env.step("x").observation.result == "'the child'"
        assert env.state().step_count == 2
        env.close()
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
    print(env.step("x").observation.result, env.state().step_count)
    child = os.fork()
    if not child:
        del env  # what a child drops is the parent's, too
        sys.exit()
    os.waitpid(child, 0)
    print(env.step("x").observation.result, env.state().step_count)
    env.close()
    print("closed")
"""


@pytest.mark.parametrize("embedded", [False, True])
def test_a_fork_has_a_session_of_its_own_and_leaves_the_parent_s_alone(server, tmp_path, embedded):
    arguments = [] if embedded else [server.url]
    said = run_program(tmp_path, FORK, *arguments)
    assert said == ["'the parent' 2", "'the parent' 3", "closed"]


FORK_IN_A_STEP = """
    import os, signal, sys, threading
    from python_env import PythonEnv

    env = PythonEnv(sys.argv[1])
    env.reset("repl")
    results = []
    step = "import time; time.sleep(1.5); 'long'"
    thread = threading.Thread(target=lambda: results.append(env.step(step)))
    thread.start()
    lock = env._wire._locks[os.getpid()]
    while lock.acquire(blocking=False):  # until the thread has it
        lock.release()
    child = os.fork()
    if not child:
        signal.alarm(20)  # should the lock be one that nobody releases
        env.reset("repl")
        assert env.step("'short'").observation.result == "'short'"
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
    print(results[0].observation.result)
"""


def test_a_fork_in_the_middle_of_another_thread_s_call(server, tmp_path):
    assert run_program(tmp_path, FORK_IN_A_STEP, server.url) == ["'long'"]


def test_a_client_inherited_before_it_connected_simply_connects(server, tmp_path):
    source = """
        import os, sys
        from python_env import PythonEnv

        env = PythonEnv(sys.argv[1])
        child = os.fork()
        env.reset("repl")
        # In one piece, because both write at once.
        os.write(1, f'{env.step("1 + 1").observation.result}\\n'.encode())
        if child:
            os.waitpid(child, 0)
    """
    assert run_program(tmp_path, source, server.url) == ["2", "2"]


# ── the embedded server ───────────────────────────────────────────────────────────────────────────


def test_an_embedded_server_takes_tasks_and_flags(tmp_path):
    tasks = tmp_path / "tasks.jsonl.gz"
    row = b'{"task_id": "t", "prompt": "p", "tests": "assert f() == 1"}\n'
    tasks.write_bytes(gzip.compress(row))
    with PythonEnv(tasks=tasks, server_args=["--max-step-timeout", "70"]) as env:
        assert env.reset().observation.prompt == "p"
        assert env.step(PythonAction("f = lambda: 1", timeout_s=65)).reward == 1.0
        assert "t" in {each["task_id"] for each in env.tasks()}
    with pytest.raises(InvalidRequest, match="base_url"):
        PythonEnv("http://localhost:1", tasks=tasks)
    with pytest.raises(ConnectionFailed, match="did not start: .*missing.jsonl.*No such file"):
        PythonEnv(tasks=tmp_path / "missing.jsonl")


def test_an_embedded_server_that_says_nothing_is_not_waited_for(tmp_path, monkeypatch):
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nread line\n")
    silent.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(silent))
    waits = []
    monkeypatch.setattr("select.select", lambda *sets: waits.append(sets[3]) or ([], [], []))
    with pytest.raises(ConnectionFailed, match="did not start"):
        PythonEnv(connect_timeout_s=40)
    assert waits == [40]


def test_an_embedded_server_that_died_is_started_again_by_reset():
    with PythonEnv() as env:
        env.reset("repl")
        first = env._wire.server.process.pid
        os.kill(first, signal.SIGKILL)
        with pytest.raises(ConnectionFailed, match=r"reset\(\)"):
            env.step("1")
        assert env.reset("repl").done is False
        assert env._wire.server.process.pid != first
        assert env.step("1 + 1").observation.result == "2"

        os.kill(env._wire.server.process.pid, signal.SIGKILL)
        assert env.reset("repl").done is False  # even where nothing had noticed
        last = env._wire.server.process
    assert last.returncode is not None


ENDS = {
    "env.close(); env.close()": 0,
    "pass": 0,
    "1 / 0": 1,
    "os._exit(3)": 3,
    "os.kill(os.getpid(), 9)": -9,
    "os.kill(os.getpid(), 2)": -2,
    "del env; gc.collect(); input()": 0,
}

USE = """
import gc, os, sys
from python_env import PythonAction, PythonEnv
env = PythonEnv()
env.reset(task_id='ledger')
env.step(PythonAction('open("f", "w"); 6 * 7')).observation.result
"""


@pytest.mark.slow
def test_no_embedded_server_outlives_its_program(tmp_path):
    running = []
    for number, end in enumerate(ENDS):
        folder = tmp_path / f"{number}-"
        folder.mkdir()
        program = subprocess.Popen(
            [sys.executable, "-c", USE + end],
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        running.append((folder, program))

    # The last one has dropped its client, and lives on.
    folder, program = running[-1]
    eventually(lambda: len(processes(folder)) > 1)
    eventually(lambda: processes(folder) == {program.pid} and not os.listdir(folder))
    for (folder, program), code in zip(running, ENDS.values(), strict=True):
        program.communicate(b"\n", timeout=30)
        assert program.returncode == code
        eventually(lambda folder=folder: nothing_left(folder))


def test_a_fork_that_lives_on_does_not_keep_the_embedded_server(tmp_path):
    source = """
        import os, sys, time
        from python_env import PythonEnv

        env = PythonEnv()
        ready, wait = os.pipe()
        child = os.fork()
        if not child:
            os.close(wait)
            os.read(ready, 1)  # it ends with its parent
            os._exit(0)
        began = time.monotonic()
        env.close()
        assert env._wire.server.process.returncode is not None
        print(time.monotonic() - began < 4)
    """
    assert run_program(tmp_path, source) == ["True"]


# ── typed, and importable anywhere ────────────────────────────────────────────────────────────────


def test_the_client_imports_where_only_linux_has_a_module(tmp_path):
    source = """
        import os, sys

        for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "seccomp"):
            sys.modules[name] = None
        for name in ("fork", "register_at_fork", "getuid", "pidfd_open", "setsid", "memfd_create"):
            if hasattr(os, name):
                delattr(os, name)
        import python_env

        python_env.EnvClient("http://localhost:1")
        try:
            python_env.EnvClient("http://127.0.0.1:1").connect()
        except python_env.ConnectionFailed as error:
            print("refused" in str(error))
    """
    assert run_program(tmp_path, source) == ["True"]


TYPED = """
    from python_env import EnvClient, PythonEnv

    with PythonEnv() as env:
        reveal_type(env)
        reveal_type(env.connect().sync())
        reveal_type(env.reset("repl").observation)
        reveal_type(env.step("1").reward)
        reveal_type(env.state())
    reveal_type(PythonEnv.from_docker_image("x"))
    reveal_type(PythonEnv.from_hub("a/b"))
"""


@pytest.mark.slow
def test_a_type_checker_knows_what_comes_back(tmp_path):
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(TYPED))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "cache", script],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(HERE)},
        capture_output=True,
        text=True,
    )
    found = re.findall(r'script.py:\d+: note: Revealed type is "(.*?)"', done.stdout)
    assert [each.replace("python_env.", "") for each in found] == [
        "PythonEnv",
        "PythonEnv",
        "PythonObservation",
        "float | None",
        "PythonState",
        "PythonEnv",
        "PythonEnv",
    ], done.stdout
