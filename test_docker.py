"""Chapter 10's Docker half on the real engine: no path may leak a container, volume or process.

Needs docker and python:3.12-slim (tools/base-image). Others may use the engine at the same time, so
before and after are compared for containers of our label and volumes which these tests could make.
"""

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

import pytest

import python_env
from python_env import ConnectionFailed, Container, DockerError, InvalidRequest, PythonAction, PythonEnv
from python_env import _space_slug

HERE = pathlib.Path(python_env.__file__).parent
TOOLS = HERE.parent / "shared" / "tools"
# The stub of a server that most of these tests start knows /health alone, so nothing connects.
STUB = "from python_env import *\nEnvClient.connect = lambda self: self\n"
IMAGE, REAL = "python-env-test-stub", "python-env-test-real"

class EnvClient(python_env.EnvClient):
    def connect(self):
        return self

SERVER = '''
import http.server, json, os, sys, time
mode = os.environ.get("MODE", "good")
print("mode", mode, "\\x1b[31mred", flush=True)
if mode == "die":
    print("fatal: no weights", file=sys.stderr, flush=True)
    sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if mode == "hang":
            time.sleep(600)
        good = {"status": "healthy", "secret": os.environ.get("SECRET")}
        body = b"<html>hello" if mode == "html" else json.dumps(good).encode()
        self.send_response({"404": 404, "503": 503}.get(mode, 200))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
'''

def docker(*args):
    return subprocess.run(["docker", *args], capture_output=True, text=True, check=True).stdout

def engine():
    try:
        docker("version")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no docker engine: {error}"

missing = engine()
required = "docker" in os.environ.get("PYTHON_ENV_REQUIRED", "").split()
pytestmark = [pytest.mark.docker, pytest.mark.skipif(bool(missing) and not required, reason=str(missing))]

def containers(pid=None):
    """Names of the containers that clients (or the one client `pid`) have, in any state."""
    label = "python_env.client" if pid is None else f"python_env.client={pid}"
    return set(docker("ps", "-a", "--filter", f"label={label}", "--format", "{{.Names}}").split())

def keepers(pid):
    """Processes of keepers which `pid` started: their environment names it (see run_client)."""
    found = set()
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and b"_keeper()" in (entry / "cmdline").read_bytes():
                if f"TEST_CLIENT={pid}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
    return found

def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "condition not met in time"
        time.sleep(0.05)
    return value

@pytest.fixture(scope="session")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    (folder / "srv.py").write_text(SERVER)
    (folder / "Dockerfile").write_text(
        'FROM python:3.12-slim\nCOPY srv.py /srv.py\nVOLUME /data\nCMD ["python3", "/srv.py"]\n'
    )
    docker("build", "-q", "-t", IMAGE, str(folder))
    yield IMAGE
    docker("rmi", "-f", IMAGE)

@pytest.fixture(autouse=True)
def nothing_left(request):
    """docker ps -a and docker volume ls are as before, and so are our children."""
    mine, volumes = containers(os.getpid()), set(docker("volume", "ls", "-q").split())
    yield
    gc.collect()
    assert containers(os.getpid()) == mine
    until(lambda: set(docker("volume", "ls", "-q").split()) <= volumes, 20)
    assert not [p for p in children(os.getpid()) if b"_keeper" in _cmdline(p)]

def _cmdline(pid):
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""

def health(url):
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return json.load(opener.open(f"{url}/health", timeout=10))

# The good paths

def test_start_use_close(image, caplog):
    caplog.set_level("INFO", "python_env")
    env = EnvClient.from_docker_image(image, env_vars={"SECRET": "a b\n'\"$x"}, docker_args=["-m", "200m"])
    assert health(env.base_url)["secret"] == "a b\n'\"$x"
    [name] = containers(os.getpid())
    info = json.loads(docker("inspect", name))[0]
    [bound] = info["NetworkSettings"]["Ports"]["8000/tcp"]
    assert bound["HostIp"] == "127.0.0.1" and env.base_url.endswith(":" + bound["HostPort"])
    assert info["HostConfig"]["Memory"] == 200 * 2**20
    env.close()
    assert not containers(os.getpid())  # close() has waited for it
    env.close()
    assert any("starting" in r.message for r in caplog.records)

def test_secrets_do_not_stay_in_ps(image):
    with EnvClient.from_docker_image(image, env_vars={"SECRET": "hunter2"}):
        for entry in pathlib.Path("/proc").iterdir():
            assert not entry.name.isdigit() or b"hunter2" not in _cmdline(entry.name)

def test_given_port_and_two_at_once(image):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with EnvClient.from_docker_image(image, port=port) as one, EnvClient.from_docker_image(image) as two:
        assert one.base_url == f"http://127.0.0.1:{port}" != two.base_url
        assert len(containers(os.getpid())) == 2

def test_host_network(image):
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("port 8000 is in use")
    with EnvClient.from_docker_image(image, docker_args=["--network=host"]) as env:
        assert env.base_url == "http://127.0.0.1:8000"

def test_proxies_are_not_asked(image, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    EnvClient.from_docker_image(image).close()

# Every way out removes the container

def test_exception_in_the_block(image):
    with pytest.raises(ZeroDivisionError):
        with EnvClient.from_docker_image(image):
            assert containers(os.getpid())
            1 / 0
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
    container = Container(image)
    keeper = container.close.peek()[2][0]
    os.kill(keeper.pid, signal.SIGKILL)
    container.close()
    assert container.name in caplog.text and "docker rm" in caplog.text
    docker("rm", "-f", "-v", container.name)

def run_client(body, before="", **options):
    """A client process of its own, in its own session; prints "up" once it uses the container."""
    marker = secrets.token_hex(8)
    code = f"import os, sys, time, signal\n{STUB}{before}\n{body}"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "TEST_CLIENT": marker}, **options,
    ), marker  # fmt: skip

USE = f"env = EnvClient.from_docker_image({IMAGE!r})\nprint('up', flush=True)\n"

def gone(process, marker):
    until(lambda: not containers(process.pid) and not keepers(marker), 60)

@pytest.mark.parametrize("ending", ["", "1 / 0", "os._exit(0)"])
def test_interpreter_exit(image, ending):
    process, marker = run_client(USE + ending)
    process.communicate(timeout=60)
    if "os." not in ending:  # an orderly exit has waited
        assert not containers(process.pid)
    gone(process, marker)

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("group", [True])
def test_signal_in_use(image, number, group):
    process, marker = run_client(USE + "time.sleep(600)")
    assert process.stdout.readline() == "up\n"
    assert containers(process.pid) and keepers(marker)
    (os.killpg if group else os.kill)(process.pid, number)
    process.communicate(timeout=60)
    gone(process, marker)

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("delay", [0.0, 0.06, 0.2])
def test_signal_during_start(image, number, delay):
    """Anywhere between Popen and ready: the keeper removes what docker run goes on to create."""
    body = f"print('go', flush=True)\nEnvClient.from_docker_image({IMAGE!r}, env_vars={{'MODE': 'hang'}})"
    process, marker = run_client(body)
    assert process.stdout.readline() == "go\n"
    time.sleep(delay)  # no wait for a condition: the point is to hit every moment
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    gone(process, marker)

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signal_during_the_health_wait(image, number):
    process, marker = run_client(f"EnvClient.from_docker_image({IMAGE!r}, env_vars={{'MODE': 'hang'}})")
    until(lambda: "Up" in docker("ps", "--filter", f"label=python_env.client={process.pid}"))
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    gone(process, marker)

FORK = USE + """
pid = os.fork()
if not pid:
    %s
print(pid, flush=True)
"""

@pytest.mark.parametrize("ending", ["env.close(); sys.exit()", "del env; sys.exit()", "sys.exit()"])
def test_a_fork_that_exits_removes_nothing(image, ending):
    process, marker = run_client(
        FORK % ending + "os.waitpid(pid, 0)\nprint('on', flush=True)\ntime.sleep(600)"
    )
    assert [process.stdout.readline() for _ in range(3)][2] == "on\n"
    removing = lambda pid: any(b"rm" in _cmdline(p) for p in children(pid))  # noqa: E731
    assert containers(process.pid) and not any(map(removing, keepers(marker)))
    process.kill()
    process.communicate(timeout=60)
    gone(process, marker)

def children(pid):
    return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), 9)", "env.close()"])
def test_a_fork_that_holds_the_pipe(image, ending):
    process, marker = run_client(FORK % "time.sleep(600)" + ending + "\nprint('closed', flush=True)\ntime.sleep(600)")
    assert process.stdout.readline() == "up\n"
    fork = int(process.stdout.readline())
    try:
        if "close" in ending:
            begun = time.monotonic()
            assert process.stdout.readline() == "closed\n"
            assert time.monotonic() - begun < 20 and process.poll() is None
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

# What goes wrong is said in one line, with the remedy

def refused(**options):
    with pytest.raises(DockerError) as info:
        EnvClient.from_docker_image(**options)
    assert not containers(os.getpid())
    assert "\x1b" not in str(info.value)
    return str(info.value)

def test_early_death(image):
    begun = time.monotonic()
    text = refused(image=image, env_vars={"MODE": "die"})
    assert time.monotonic() - begun < 20  # not the 60 s of timeout_s
    assert "exited with code 3" in text and "fatal: no weights" in text and "?[31mred" in text

@pytest.mark.parametrize("mode,words", [("hang", "timed out"), ("503", "HTTP 503")])
def test_never_healthy(image, mode, words):
    text = refused(image=image, env_vars={"MODE": mode}, timeout_s=2)
    assert words in text and "timeout_s=" in text and f"mode {mode}" in text

@pytest.mark.parametrize("mode,words", [("html", "no OpenEnv server"), ("404", "HTTP 404")])
def test_wrong_protocol(image, mode, words):
    assert words in refused(image=image, env_vars={"MODE": mode})

def test_taken_port(image):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is taken" in refused(image=image, port=port)

def test_missing_image():
    text = refused(image="python-env-no-such:thing")
    assert "docker build -t python-env-no-such:thing ." in text and "\n" not in text

@pytest.mark.parametrize("args", [["--no-such-flag"], ["--network=no-such"], ["--entrypoint=/no/such"]])
def test_bad_docker_args(image, args):
    text = refused(image=image, docker_args=args)
    assert "docker_args=" in text and "docker says: " in text and "\n" not in text

@pytest.mark.parametrize("pull", [False, True])
def test_docker_not_installed(monkeypatch, pull):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DockerError, match="no `docker` on PATH; install"):
        EnvClient.from_hub("a/b", pull=pull)

@pytest.mark.parametrize("host", ["tcp://127.0.0.1:1", "unix:///no/such.sock", "tcp://nosuch.invalid:2375"])
@pytest.mark.parametrize("pull", [False, True])
def test_dead_daemon(monkeypatch, host, pull):
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(DockerError, match="no docker daemon answers; start it, or mend DOCKER_HOST"):
        EnvClient.from_hub("a/b", pull=pull)
    monkeypatch.undo()

@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv")
def test_no_permission():
    nobody = ["setpriv", "--reuid", "65534", "--clear-groups", "docker"]
    done = subprocess.run([*nobody, "image", "inspect", "x"], capture_output=True, text=True)
    if not done.returncode or "permission denied" not in done.stderr:
        pytest.skip("nobody may use docker here")
    assert str(DockerError.for_words(done.stderr, "x")).startswith("no permission on docker's socket; ")

# The Hub

@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    if not (TOOLS / "hub-registry").exists():
        pytest.skip("no shared/tools/hub-registry beside the checkout: no registry to pull from")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = {**os.environ, "TMPDIR": str(tmp_path_factory.mktemp("hub"))}

    def run(*args):
        subprocess.run([TOOLS / "hub-registry", *args], env=env, check=True, stdout=subprocess.DEVNULL)

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

def test_our_own_image_plays_an_episode_from_here_and_from_a_hub(real, hub):
    registry, run = hub
    docker("tag", real, "python-env-test-hub")  # push drops the tag that it is given a name by
    run("push", "python-env-test-hub", "owner/python-env")
    docker("rmi", "python-env-test-hub")
    for env in (PythonEnv.from_docker_image(real, env_vars={"PYTHON_ENV_STEP_TIMEOUT": "5"}),
                PythonEnv.from_hub("owner/python-env", registry=registry)):
        with env:
            env.reset(prompt="Double it.", tests="assert f(2) == 4\nassert f(3) == 6")
            assert env.step(PythonAction("def f(x): return 4")).reward == 0.5
            result = env.step(PythonAction("def f(x): return 2 * x"))
            assert (result.reward, result.done, env.state().step_count) == (1.0, True, 2)
    docker("rmi", f"{registry}/owner-python-env:latest")

def test_pull_refused(hub):
    with pytest.raises(DockerError, match="the registry denies 127.*`docker login 127"):
        EnvClient.from_hub("owner/other", registry=hub[0])

def test_registry_unreachable():
    with pytest.raises(DockerError, match="127.0.0.1:1 cannot be reached; check the network"):
        EnvClient.from_hub("owner/other", registry="127.0.0.1:1")

def test_pull_on_a_terminal_shows_docker_s_progress(image, hub):
    registry, run = hub
    run("push", image, "owner/shown")
    parent, child = pty.openpty()
    body = f"EnvClient.from_hub('owner/shown', registry={registry!r}).close()"
    code = STUB + body
    done = subprocess.Popen([sys.executable, "-c", code], cwd=HERE, stderr=child, stdout=subprocess.PIPE)
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the terminal's other end is closed
        while piece := os.read(parent, 65536):
            shown += piece
    os.close(parent)
    assert done.communicate(timeout=60)[0] == b""
    docker("rmi", f"{registry}/owner-shown:latest")
    assert done.returncode == 0, shown
    assert b"Pulling from owner-shown" in shown and b"starting" in shown

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

@pytest.mark.parametrize("given,slug", [
    ("owner/name", "owner-name"), ("Owner/My_Env.v2", "owner-my-env-v2"), ("a/_x", "a--x"),
    ("https://huggingface.co/spaces/Owner/Name", "owner-name"), ("https://Owner-Name.hf.space/web?x", "owner-name"),
    ("https://huggingface.co/spaces/o/n?logs=build", "o-n"), (" o/n ", "o-n"),
])  # fmt: skip
def test_space_names(given, slug):
    assert _space_slug(given) == slug

@pytest.mark.parametrize("given", [
    "", "name", "a/b/c", "a/", "/b", "a b/c", "a/b--c", "a/b..c", "-a/b", "a/b-", "a/.b", "a/b\n/c", "é/b",
    "a/" + "b" * 97, "https://huggingface.co/datasets/a/b", "https://evil.example/a/b", "--privileged",
])  # fmt: skip
def test_bad_space_names(given):
    with pytest.raises(InvalidRequest, match="owner/name"):
        EnvClient.from_hub(given)

# The Space itself: an HTTP server of ours in its place

@pytest.fixture
def space(monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.seen.append((self.path, self.headers.get("Authorization")))
            status, headers, body = self.server.script.pop(0)
            self.send_response(status)
            for item in headers.items():
                self.send_header(*item)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.url = [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    real = EnvClient.__init__

    def init(self, base_url, **options):
        assert base_url == "https://owner-name.hf.space"
        real(self, server.url, **options)

    monkeypatch.setattr(EnvClient, "__init__", init)
    yield server
    server.shutdown()
    server.server_close()

GOOD = (200, {}, b'{"status": "healthy"}')

def test_a_space_wakes(space, caplog):
    caplog.set_level("INFO", "python_env")
    space.script = [(503, {}, b"<html>"), (503, {}, b""), GOOD]
    EnvClient.from_hub("owner/name", use_docker=False, token="hf_x")
    assert space.seen == [("/health", "Bearer hf_x")] * 3
    assert "waking" in caplog.text

def test_a_space_without_token(space):
    space.script = [GOOD]
    EnvClient.from_hub("owner/name", use_docker=False)
    assert space.seen == [("/health", None)]

def test_a_redirect_does_not_take_the_token_along(space):
    space.script = [(302, {"Location": f"http://localhost:{space.server_port}/login"}, b""), (200, {}, b"<html>")]
    with pytest.raises(ConnectionFailed, match="no OpenEnv server"):
        EnvClient.from_hub("owner/name", use_docker=False, token="hf_x")
    assert space.seen == [("/health", "Bearer hf_x"), ("/login", None)]

def test_a_private_space(space):
    space.script = [(404, {}, b"")]
    with pytest.raises(ConnectionFailed, match="HTTP 404.*token= if private"):
        EnvClient.from_hub("owner/name", use_docker=False)

def test_a_space_that_never_wakes(space):
    space.script = [(503, {}, b"")] * 1000
    with pytest.raises(ConnectionFailed, match="HTTP 503.*timeout_s="):
        EnvClient.from_hub("owner/name", use_docker=False, timeout_s=0.5)

@pytest.mark.parametrize("answer", [b"[" * 60000, b'{"status"', b"[1]", b"null", b"\xff", b"5"])
def test_strange_answers(space, answer):
    space.script = [(200, {}, answer)]
    with pytest.raises(ConnectionFailed, match="no OpenEnv server"):
        EnvClient.from_hub("owner/name", use_docker=False)

def test_not_even_http():
    with socket.create_server(("127.0.0.1", 0)) as strange:
        def answer():
            connection, _ = strange.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{strange.getsockname()[1]}"
        assert python_env._health(url, {}, 5.0)[0] == "wrong"
