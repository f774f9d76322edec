"""Chapter 10 on the real engine: no path may leak a container, a volume or a process.

Needs docker and python:3.12-slim (tools/base-image). Others may use the engine at the same time, so
before and after are compared for containers of our label and volumes which these tests could make.
"""

from __future__ import annotations

import contextlib
import gc
import http.server
import json
import os
import pathlib
import pty
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

import python_env
from conftest import HERE
from conftest import Hosted
from conftest import command_line
from conftest import descendants
from conftest import eventually
from fakes import Gate
from fakes import response
from python_env import ConnectionFailed
from python_env import Container
from python_env import DockerError
from python_env import InvalidRequest
from python_env import PythonAction
from python_env import PythonEnv
from python_env import birth_of
from python_env import docker_error
from python_env import space_slug

TOOLS = HERE.parent / "shared" / "tools"
IMAGE = f"python-env-test-stub-{os.getpid()}"
REAL = f"python-env-test-real-{os.getpid()}"


# The stub of a server that most of these tests start knows /health alone, so nothing connects.
STUB = "from python_env import *\nEnvClient.connect = lambda self: self\n"


class EnvClient(python_env.EnvClient):
    def connect(self):
        return self


SERVER = """
import http.server, json, os, sys, time

mode = os.environ.get("MODE", "good")
print("mode", mode, "\\x1b[31mred", flush=True)
if mode == "die":
    print("fatal: no weights", file=sys.stderr, flush=True)
    sys.exit(3)
if mode == "sleep":
    time.sleep(600)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if mode == "hang":
            time.sleep(600)
        health = {"status": "healthy", "secret": os.environ.get("SECRET")}
        if mode != "foreign":
            health["nonce"] = os.environ["PYTHON_ENV_NONCE"]
        body = b"<html>hello" if mode == "html" else json.dumps(health).encode()
        self.send_response({"404": 404, "503": 503}.get(mode, 200))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""

DOCKERFILE = """
FROM python:3.12-slim
COPY srv.py /srv.py
VOLUME /data
CMD ["python3", "/srv.py"]
"""


def docker(*args):
    return subprocess.run(["docker", *args], capture_output=True, text=True, check=True).stdout


def engine():
    """Why there is no engine, or nothing."""
    try:
        docker("version")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no docker engine: {error}"
    return ""


missing = engine()
required = "docker" in os.environ.get("PYTHON_ENV_REQUIRED", "").split()
pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(missing) and not required, reason=missing),
]


def containers(pid=None):
    """Names of the containers that clients (or the one client `pid`) have, in any state."""
    mine = "label=python_env.client" if pid is None else f"name=^python-env-{pid}-"
    return set(docker("ps", "-a", "--filter", mine, "--format", "{{.Names}}").split())


def keepers(marker):
    """The keepers that a client has started: their environment names it (see run_client)."""
    found = set()
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (entry / "environ").read_bytes().split(b"\0")
            is_keeper = "python-env: keeper" in command_line(int(entry.name))
            if is_keeper and f"TEST_CLIENT={marker}".encode() in variables:
                found.add(int(entry.name))
    return found


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    (folder / "srv.py").write_text(SERVER)
    (folder / "Dockerfile").write_text(DOCKERFILE)
    docker("build", "-q", "-t", IMAGE, str(folder))
    yield IMAGE
    docker("rmi", "-f", IMAGE)


@pytest.fixture(autouse=True)
def nothing_left():
    """docker ps -a and docker volume ls are as before, and so are our children."""
    mine = containers(os.getpid())
    volumes = set(docker("volume", "ls", "-q").split())
    yield
    gc.collect()
    assert containers(os.getpid()) == mine
    eventually(lambda: set(docker("volume", "ls", "-q").split()) <= volumes, 20)
    assert not [pid for pid in descendants(os.getpid()) if "keeper" in command_line(pid)]


def health(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/health", timeout=10) as answer:
        return json.load(answer)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ── the good paths ────────────────────────────────────────────────────────────────────────────────


def test_start_use_close(image, caplog):
    caplog.set_level("INFO", "python_env")
    secret = "a b\n'\"$x"
    env = EnvClient.from_docker_image(
        image, env_vars={"SECRET": secret}, docker_args=["-m", "200m"]
    )
    assert health(env.base_url)["secret"] == secret
    [name] = containers(os.getpid())
    info = json.loads(docker("inspect", name))[0]
    [bound] = info["NetworkSettings"]["Ports"]["8000/tcp"]
    assert bound["HostIp"] == "127.0.0.1"
    assert env.base_url.endswith(":" + bound["HostPort"])
    assert info["HostConfig"]["Memory"] == 200 * 2**20
    env.close()
    assert not containers(os.getpid())  # close() has waited for it
    env.close()
    assert any("starting" in record.message for record in caplog.records)


def test_neither_secrets_nor_programs_stand_in_ps(image):
    with EnvClient.from_docker_image(image, env_vars={"SECRET": "hunter2"}):
        keeper = [pid for pid in descendants(os.getpid()) if "keeper" in command_line(pid)]
        assert len(command_line(*keeper)) < 200
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            assert "hunter2" not in command_line(int(entry.name))


def test_given_port_and_two_at_once(image):
    port = free_port()
    one = EnvClient.from_docker_image(image, port=port)
    two = EnvClient.from_docker_image(image)
    with one, two:
        assert one.base_url == f"http://127.0.0.1:{port}"
        assert one.base_url != two.base_url
        assert len(containers(os.getpid())) == 2


def test_proxies_are_not_asked(image, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    EnvClient.from_docker_image(image).close()


# ── whose server is it? ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def port_8000():
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("port 8000 is in use")


def test_our_image_proves_itself_on_the_host_s_network(image, port_8000):
    with EnvClient.from_docker_image(image, docker_args=["--network=host"]) as env:
        assert env.base_url == "http://127.0.0.1:8000"
        assert len(health(env.base_url)["nonce"]) == 32


def test_a_foreign_image_is_known_by_its_port_mapping(image):
    with EnvClient.from_docker_image(image, env_vars={"MODE": "foreign"}) as env:
        assert "nonce" not in health(env.base_url)


def test_a_foreign_image_on_the_host_s_network_is_refused(image, port_8000):
    text = refused(image=image, env_vars={"MODE": "foreign"}, docker_args=["--network=host"])
    assert "cannot be told" in text
    assert "--network=host" in text


@pytest.mark.parametrize("stranger", [{}, {"nonce": "another's"}], ids=["foreign", "ours"])
def test_whatever_else_listens_there_is_not_taken_for_the_container(image, port_8000, stranger):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"status": "healthy", **stranger}).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        text = refused(image=image, env_vars={"MODE": "sleep"}, docker_args=["--network=host"])
    finally:
        server.shutdown()
        server.server_close()
    assert "127.0.0.1:8000" in text
    assert "cannot be told" in text


# ── every way out removes the container ───────────────────────────────────────────────────────────


def test_exception_in_the_block(image):
    with pytest.raises(ZeroDivisionError), EnvClient.from_docker_image(image):
        assert containers(os.getpid())
        raise ZeroDivisionError
    assert not containers(os.getpid())


def test_garbage_collection(image):
    env = EnvClient.from_docker_image(image)
    assert containers(os.getpid())
    del env
    gc.collect()
    assert not containers(os.getpid())


def test_bad_client_options(image):
    with pytest.raises(TypeError):
        EnvClient.from_docker_image(image, nonsense=1)
    assert not containers(os.getpid())


def test_a_failed_connection(image, monkeypatch):
    def refuse(self):
        raise ConnectionFailed("no")

    monkeypatch.setattr(EnvClient, "connect", refuse)
    with pytest.raises(ConnectionFailed):
        EnvClient.from_docker_image(image)
    assert not containers(os.getpid())


def test_removed_by_somebody_else(image):
    env = EnvClient.from_docker_image(image)
    docker("rm", "-f", "-v", *containers(os.getpid()))
    env.close()


def test_keeper_killed(image, caplog):
    """The one case in which close() cannot keep its promise; it says what is left."""
    container = Container(image, None, {}, 60.0, ())
    [keeper] = [pid for pid in descendants(os.getpid()) if "keeper" in command_line(pid)]
    os.kill(keeper, signal.SIGKILL)
    container.close()
    assert container.name in caplog.text
    assert "docker rm" in caplog.text
    docker("rm", "-f", "-v", container.name)


def run_client(body, **options):
    """A client process of its own, in its own session; prints "up" once it uses the container."""
    marker = secrets.token_hex(8)
    process = subprocess.Popen(
        [sys.executable, "-c", f"import os, sys, time, signal\n{STUB}\n{body}"],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TEST_CLIENT": marker},
        **options,
    )
    return process, marker


USE = f"env = EnvClient.from_docker_image({IMAGE!r})\nprint('up', flush=True)\n"


def gone(process, marker):
    eventually(lambda: not containers(process.pid) and not keepers(marker), 60)


@pytest.mark.parametrize("ending", ["", "1 / 0", "os._exit(0)"])
def test_interpreter_exit(image, ending):
    process, marker = run_client(USE + ending)
    process.communicate(timeout=60)
    if "os." not in ending:  # an orderly exit has waited
        assert not containers(process.pid)
    gone(process, marker)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_signal_in_use(image, number):
    process, marker = run_client(USE + "time.sleep(600)")
    assert process.stdout.readline() == "up\n"
    assert containers(process.pid)
    assert keepers(marker)
    os.killpg(process.pid, number)
    process.communicate(timeout=60)
    gone(process, marker)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("delay", [0.0, 0.06, 0.2])
def test_signal_during_start(image, number, delay):
    """Anywhere between Popen and ready: the keeper removes what docker run goes on to create."""
    start = f"EnvClient.from_docker_image({IMAGE!r}, env_vars={{'MODE': 'hang'}})"
    process, marker = run_client(f"print('go', flush=True)\n{start}")
    assert process.stdout.readline() == "go\n"
    time.sleep(delay)  # no wait for a condition: the point is to hit every moment
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    gone(process, marker)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signal_during_the_health_wait(image, number):
    process, marker = run_client(
        f"EnvClient.from_docker_image({IMAGE!r}, env_vars={{'MODE': 'hang'}})"
    )
    mine = f"name=^python-env-{process.pid}-"
    eventually(lambda: "Up" in docker("ps", "--filter", mine), 60)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    gone(process, marker)


FORK = (
    USE
    + """
pid = os.fork()
if not pid:
    %s
print(pid, flush=True)
"""
)


@pytest.mark.parametrize("ending", ["env.close(); sys.exit()", "del env; sys.exit()", "sys.exit()"])
def test_a_fork_that_exits_removes_nothing(image, ending):
    ending = FORK % ending + "os.waitpid(pid, 0)\nprint('on', flush=True)\ntime.sleep(600)"
    process, marker = run_client(ending)
    assert [process.stdout.readline() for _ in range(3)][2] == "on\n"
    assert containers(process.pid)
    for keeper in keepers(marker):
        assert not [pid for pid in descendants(keeper) if " rm " in command_line(pid)]
    process.kill()
    process.communicate(timeout=60)
    gone(process, marker)


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), 9)", "env.close()"])
def test_a_fork_that_holds_the_pipe(image, ending):
    process, marker = run_client(
        f"{FORK % 'time.sleep(600)'}{ending}\nprint('closed', flush=True)\ntime.sleep(600)"
    )
    assert process.stdout.readline() == "up\n"
    fork = int(process.stdout.readline())
    try:
        if "close" in ending:
            began = time.monotonic()
            assert process.stdout.readline() == "closed\n"
            assert time.monotonic() - began < 20
            assert process.poll() is None
        gone(process, marker)
        os.kill(fork, 0)  # it lives on
    finally:
        os.kill(fork, signal.SIGKILL)
        process.kill()
        process.communicate(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_to_the_keeper_too(image, number):
    """As when a service manager stops all that a unit has started."""
    process, marker = run_client(USE + "time.sleep(600)")
    assert process.stdout.readline() == "up\n"
    for pid in keepers(marker):
        os.kill(pid, number)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    gone(process, marker)


# ── leftovers ─────────────────────────────────────────────────────────────────────────────────────


def test_what_client_and_keeper_left_behind_goes_at_the_next_start(image):
    process, marker = run_client(USE + "time.sleep(600)")
    assert process.stdout.readline() == "up\n"
    [keeper] = keepers(marker)
    os.kill(keeper, signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert containers(process.pid)
    EnvClient.from_docker_image(image).close()
    assert not containers(process.pid)


def test_the_leftovers_of_others_are_not_ours(image):
    """A living client's container stays, and one whose client cannot be seen from here."""
    birth = birth_of(os.getpid())
    namespace = birth.partition(" ")[2]
    victim = f"victim-{os.getpid()}"
    labels = {
        "alive": [f"python_env.client={os.getpid()} {birth}"],
        "elsewhere": ["python_env.client=1 1 pid:[1]"],
        "unknown": ["python_env.client=1"],
        "another of that pid": [f"python_env.client={os.getpid()} 1 {namespace}"],
        "of another boot": [f"python_env.client=4194304 1 {namespace}"],
        "a foreign image's": [f'python_env.client=\n{victim} "4194304 1 {namespace}"'],
        "that it names": [],
    }
    made = {}
    for name, each in labels.items():
        options = [f"--label={label}" for label in each]
        options += [f"--name={victim}"] if name == "that it names" else []
        made[name] = docker("run", "-d", *options, "-e", "MODE=sleep", image).strip()
    try:
        EnvClient.from_docker_image(image).close()
        present = docker("ps", "-a", "-q", "--no-trunc").split()
        left = {name for name, number in made.items() if number in present}
        assert left == {"alive", "elsewhere", "unknown", "a foreign image's", "that it names"}
    finally:
        docker("rm", "-f", "-v", *[number for number in made.values() if number in present])


# ── what goes wrong is said in one line, with the remedy ──────────────────────────────────────────


def refused(**options):
    """The words of the DockerError; nothing may be left of the attempt."""
    with pytest.raises(DockerError) as caught:
        EnvClient.from_docker_image(**options)
    assert not containers(os.getpid())
    return str(caught.value)


def test_early_death(image):
    began = time.monotonic()
    text = refused(image=image, env_vars={"MODE": "die"})
    assert time.monotonic() - began < 20  # not the 60 s of timeout_s
    assert "exited with code 3" in text
    assert "fatal: no weights" in text


NEVER_HEALTHY = [
    ("hang", "timed out"),
    ("503", "Error 503"),
    ("404", "Error 404"),
    ("html", "no OpenEnv server answers"),
]


@pytest.mark.parametrize("mode, words", NEVER_HEALTHY)
def test_never_healthy(image, mode, words):
    text = refused(image=image, env_vars={"MODE": mode}, timeout_s=6)
    assert words in text
    assert "timeout_s=" in text
    assert f"mode {mode}" in text


def test_taken_port(image):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is taken" in refused(image=image, port=port)


def test_missing_image():
    text = refused(image="python-env-no-such:thing")
    assert "docker build -t python-env-no-such:thing ." in text
    assert "\n" not in text


BAD_ARGUMENTS = [["--no-such-flag"], ["--network=no-such"], ["--entrypoint=/no/such"]]


@pytest.mark.parametrize("args", BAD_ARGUMENTS)
def test_bad_docker_args(image, args):
    text = refused(image=image, docker_args=args)
    assert "docker_args=" in text
    assert "docker says: " in text
    assert "\n" not in text


@pytest.mark.parametrize("pull", [False, True])
def test_docker_not_installed(monkeypatch, pull):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DockerError, match="no `docker` on PATH; install"):
        EnvClient.from_hub("a/b", pull=pull)
    monkeypatch.undo()


DEAD = ["tcp://127.0.0.1:1", "unix:///no/such.sock", "tcp://nosuch.invalid:2375"]


@pytest.mark.parametrize("host", DEAD)
@pytest.mark.parametrize("pull", [False, True])
def test_dead_daemon(monkeypatch, host, pull):
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(DockerError, match="no docker daemon answers; start it, or mend DOCKER_"):
        EnvClient.from_hub("a/b", pull=pull)
    monkeypatch.undo()


@pytest.mark.parametrize("pull", [False, True])
def test_a_daemon_that_never_answers_is_not_waited_for(monkeypatch, pull):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(DockerError, match="did not end within 1 s"):
            EnvClient.from_hub("a/b", pull=pull, pull_timeout_s=1, timeout_s=1)
        assert time.monotonic() - began < 10
        monkeypatch.undo()


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="wants root, setpriv")
def test_no_permission():
    nobody = ["setpriv", "--reuid", "65534", "--clear-groups", "docker"]
    done = subprocess.run([*nobody, "image", "inspect", "x"], capture_output=True, text=True)
    if not done.returncode or "permission denied" not in done.stderr:
        pytest.skip("nobody may use docker here")
    text = str(docker_error(done.stderr, "x"))
    assert text.startswith("no permission on docker's socket; ")


# ── the Hub ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A registry (its address), and a function that runs the tool that serves it."""
    if not (TOOLS / "hub-registry").exists():
        pytest.skip("no shared/tools/hub-registry beside the checkout: no registry to pull from")
    port = str(free_port())
    env = {**os.environ, "TMPDIR": str(tmp_path_factory.mktemp("hub"))}

    def run(*args):
        tool = [TOOLS / "hub-registry", *args]
        subprocess.run(tool, env=env, check=True, stdout=subprocess.DEVNULL)

    run("start", port)
    yield f"127.0.0.1:{port}", run
    run("stop")


def test_from_hub(image, hub):
    registry, run = hub
    run("push", image, "Owner/My_Env.1")
    name = f"{registry}/owner-my-env-1:latest"
    try:
        with EnvClient.from_hub("Owner/My_Env.1", registry=registry, token="hf_secret") as env:
            assert env.headers == {}  # a Hub token is for the Hub
            [mine] = containers(os.getpid())
            assert docker("inspect", "-f", "{{.Config.Image}}", mine).strip() == name
        url = "https://huggingface.co/spaces/Owner/My_Env.1/tree/main"
        EnvClient.from_env(url, registry=registry, pull=False).close()
        EnvClient.from_hub("a/b", image=name).close()
    finally:
        docker("rmi", name)


@pytest.fixture(scope="module")
def real():
    docker("build", "-q", "-t", REAL, str(HERE))
    yield REAL
    docker("rmi", "-f", REAL)


def play(env):
    """An episode of two steps, the second of which is right."""
    with env:
        env.reset(prompt="Double it.", tests="assert f(2) == 4\nassert f(3) == 6")
        assert env.step(PythonAction("def f(x): return 4")).reward == 0.5
        result = env.step(PythonAction("def f(x): return 2 * x"))
        assert result.reward == 1.0
        assert result.done
        assert env.state().step_count == 2


def test_our_own_image_plays_an_episode_from_here(real):
    play(PythonEnv.from_docker_image(real, env_vars={"PYTHON_ENV_STEP_TIMEOUT": "5"}))


def test_our_own_image_plays_an_episode_from_a_hub(real, hub):
    registry, run = hub
    docker("tag", real, f"{REAL}-hub")  # push drops the tag that it is given a name by
    run("push", f"{REAL}-hub", "owner/python-env")
    docker("rmi", f"{REAL}-hub")
    play(PythonEnv.from_hub("owner/python-env", registry=registry))
    docker("rmi", f"{registry}/owner-python-env:latest")


def test_pull_refused(hub):
    with pytest.raises(DockerError, match="the registry denies 127.*`docker login 127"):
        EnvClient.from_hub("owner/other", registry=hub[0])


def test_registry_unreachable():
    with pytest.raises(DockerError, match="127.0.0.1:1 cannot be reached; check the network"):
        EnvClient.from_hub("owner/other", registry="127.0.0.1:1")


def test_a_registry_that_never_answers_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        registry = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DockerError, match="`docker pull` did not end within 1 s"):
            EnvClient.from_hub("owner/slow", registry=registry, pull_timeout_s=1)


def test_pull_on_a_terminal_shows_docker_s_progress(image, hub):
    registry, run = hub
    run("push", image, "owner/shown")
    parent, child = pty.openpty()
    code = f"{STUB}EnvClient.from_hub('owner/shown', registry={registry!r}).close()"
    client = subprocess.Popen(
        [sys.executable, "-c", code], cwd=HERE, stderr=child, stdout=subprocess.PIPE
    )
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the terminal's other end is closed
        while piece := os.read(parent, 65_536):
            shown += piece
    os.close(parent)
    assert client.communicate(timeout=60)[0] == b""
    docker("rmi", f"{registry}/owner-shown:latest")
    assert client.returncode == 0, shown
    assert b"Pulling from owner-shown" in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signal_during_pull(number):
    """The registry is a socket that never answers, so that the pull is certainly under way."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        registry = f"127.0.0.1:{silent.getsockname()[1]}"
        process, marker = run_client(f"EnvClient.from_hub('owner/slow', registry={registry!r})")
        connection, _ = silent.accept()
        os.kill(process.pid, number)
        assert process.wait(60) != 0
        connection.close()
    process.communicate(timeout=60)
    gone(process, marker)


SLUGS = {
    "owner/name": "owner-name",
    "Owner/My_Env.v2": "owner-my-env-v2",
    "a/_x": "a--x",
    "https://huggingface.co/spaces/Owner/Name": "owner-name",
    "https://Owner-Name.hf.space/web?x": "owner-name",
    "https://huggingface.co/spaces/o/n?logs=build": "o-n",
    " o/n ": "o-n",
}


@pytest.mark.parametrize("given", SLUGS)
def test_space_names(given):
    assert space_slug(given) == SLUGS[given]


NO_SPACES = [
    "",
    "name",
    "a/b/c",
    "a/",
    "/b",
    "a b/c",
    "a/b\n/c",
    "é/b",
    "https://huggingface.co/datasets/a/b",
    "https://evil.example/a/b",
    "--privileged",
]


@pytest.mark.parametrize("given", NO_SPACES)
def test_bad_space_names(given):
    with pytest.raises(InvalidRequest, match="owner/name"):
        EnvClient.from_hub(given)


# ── the Space itself: a server of ours in its place ───────────────────────────────────────────────


@pytest.fixture
def from_space(monkeypatch):
    """from_hub(use_docker=False), with the address of a server of ours for the Space's."""
    aim = python_env.Link.aim

    def start(url, **options):
        def go_there(self, base_url):
            assert base_url == "https://owner-name.hf.space"
            aim(self, url)

        monkeypatch.setattr(python_env.Link, "aim", go_there)
        return python_env.EnvClient.from_hub("owner/name", use_docker=False, **options)

    return start


def test_a_space_wakes(from_space, caplog):
    caplog.set_level("DEBUG", "python_env")
    asleep = [response(503, body=b"<html>"), response(503)]
    with Hosted() as hosted, Gate(hosted, *asleep) as gate:
        with from_space(gate.url, token="hf_x") as env:
            assert env.reset().observation["hint"] == "0..10"
        assert len(gate.times) == 3
    assert all("Authorization: Bearer hf_x" in text for text in gate.requests)
    assert "trying again" in caplog.text


def test_a_space_without_token(from_space):
    with Hosted() as hosted, Gate(hosted, response(503)) as gate:
        from_space(gate.url).close()
    assert "Authorization" not in gate.requests[0]


def test_a_space_s_redirect_does_not_take_the_token_along(from_space):
    with Gate(None, response(404)) as login:
        moved = response(302, f"Location: {login.url.replace('http', 'ws')}/login")
        with Gate(None, moved) as gate, pytest.raises(ConnectionFailed):
            from_space(gate.url, token="hf_x")
    assert "Authorization: Bearer hf_x" in gate.requests[0]
    assert not [text for text in login.requests if "Authorization" in text]


def test_a_private_space(from_space):
    words = "HTTP 404.*private Space wants a token="
    with Gate(None, response(404)) as gate, pytest.raises(ConnectionFailed, match=words):
        from_space(gate.url)


def test_a_space_that_never_wakes(from_space):
    with Gate(None, *[response(503)] * 1_000) as gate:
        began = time.monotonic()
        with pytest.raises(ConnectionFailed, match="HTTP 503.*timeout_s="):
            from_space(gate.url, timeout_s=0.5)
        assert time.monotonic() - began < 5
