"""deploy/: many replicas behind HAProxy, nginx with TLS and a prefix in front, Kubernetes' schemas.

Real engines, proxies and clients. Compose needs docker, docker-compose (or docker's own) and
haproxy:lts (tools/haproxy-image); nginx and openssl come by apt; kubernetes-validate by pip.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from typing import NamedTuple

import pytest

import test_docker
from conftest import HERE
from conftest import IN_REPL
from conftest import Launched
from conftest import ask
from conftest import call
from conftest import eventually
from conftest import step
from conftest import ws
from python_env import ConnectionFailed
from python_env import PythonEnv
from test_docker import docker
from test_docker import free_port

DEPLOY = HERE / "deploy"
REPLICAS = 4

# Requests of these tests go to loopback and to containers, never to the environment's proxy.
DIRECT = urllib.request.ProxyHandler({})

# The image of this checkout, built for this file and removed after it.
real = test_docker.real


# ── many replicas behind HAProxy ──────────────────────────────────────────────────────────────────


def compose_command() -> list[str]:
    """Docker's own `docker compose`, or the older docker-compose; [] where there is neither."""
    own = subprocess.run(["docker", "compose", "version"], capture_output=True)
    if own.returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else []


def lacking() -> str:
    """What this machine lacks to run the compose file, or nothing."""
    if test_docker.missing:
        return test_docker.missing
    if not compose_command():
        return "no docker-compose"
    if subprocess.run(
        ["docker", "image", "inspect", "haproxy:lts"], capture_output=True
    ).returncode:
        return "no image haproxy:lts"
    return ""


missing = lacking()
on_docker = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(missing) and not test_docker.required, reason=missing),
]


class Cluster:
    """deploy/compose.yaml, with the image `image` and a free port of 127.0.0.1: `port`, `url`."""

    def __init__(self, image: str, folder: Path) -> None:
        override = folder / "override.yaml"
        override.write_text(json.dumps({"services": {"env": {"image": image}}}))
        self.project = f"python-env-test-{os.getpid()}"
        self.files = ("-f", str(DEPLOY / "compose.yaml"), "-f", str(override))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def compose(self, *arguments: str) -> None:
        subprocess.run(
            [*compose_command(), "-p", self.project, *self.files, *arguments],
            env={**os.environ, "PORT": str(self.port), "REPLICAS": str(REPLICAS)},
            check=True,
            capture_output=True,
            text=True,
        )

    def start(self) -> None:
        """Have all replicas run, those again that a test has ended, and wait until they serve."""
        self.compose("up", "-d")
        eventually(self.serves_evenly, 60)

    def replicas(self) -> dict[str, str]:
        """The address of each replica that runs, by its container's id."""
        mine = f"label=com.docker.compose.project={self.project}"
        env = "label=com.docker.compose.service=env"
        form = "{{.Id}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        ids = docker("ps", "-q", "--filter", mine, "--filter", env).split()
        return dict(docker("inspect", "-f", form, each).split() for each in ids)

    def count(self, what: str) -> dict[str, int]:
        """What each replica's /health counts under that name, by its container's id."""
        opener = urllib.request.build_opener(DIRECT)
        found = {}
        for replica, address in self.replicas().items():
            with opener.open(f"http://{address}:8000/health", timeout=20) as answer:
                found[replica] = json.load(answer)[what]
        return found

    def sessions(self) -> dict[str, int]:
        """How many sessions each replica has, by its container's id."""
        return self.count("sessions")

    def serves_evenly(self) -> bool:
        """Whether as many clients as there are replicas land on one each."""
        clients = [PythonEnv(self.url, connect_timeout_s=0) for _ in range(REPLICAS)]
        try:
            for client in clients:
                client.reset(**IN_REPL)
            return [*self.sessions().values()] == [1] * REPLICAS
        except (ConnectionFailed, OSError):
            return False
        finally:
            for client in clients:
                client.close()

    def client(self) -> PythonEnv:
        """It waits for a place, because the machine may be busy."""
        return PythonEnv(self.url, connect_timeout_s=60)

    def client_on(self, replica: str) -> PythonEnv:
        """A client whose session is on that replica: leastconn has it there after a few tries."""
        others = []
        try:
            for _ in range(3 * REPLICAS):
                before = self.sessions()[replica]
                client = self.client()
                client.reset(**IN_REPL)
                if self.sessions()[replica] > before:
                    return client
                others.append(client)
        finally:
            for other in others:
                other.close()
        pytest.fail(f"no session came to {replica[:12]}")


@pytest.fixture(scope="module")
def started(real: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(real, tmp_path_factory.mktemp("cluster"))
    try:
        cluster.compose("up", "-d")
        yield cluster
    finally:
        cluster.compose("down", "--volumes", "--timeout", "1")


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    """All replicas serve, and none has a session."""
    started.start()
    eventually(lambda: not any(started.sessions().values()))
    return started


def mark(marks: list[Any]) -> Callable[[Any], Any]:
    """A decorator that sets several marks."""

    def decorate(test: Any) -> Any:
        for each in marks:
            test = each(test)
        return test

    return decorate


@mark(on_docker)
def test_sessions_spread_evenly(cluster: Cluster) -> None:
    clients = [cluster.client() for _ in range(10 * REPLICAS)]
    try:
        for number, client in enumerate(clients):
            client.reset(**IN_REPL)
            client.step(f"number = {number}")
        assert sorted(cluster.sessions().values()) == [10] * REPLICAS
        kept = [client.step("number").observation.result for client in clients]
        assert kept == [str(number) for number in range(10 * REPLICAS)]
    finally:
        for client in clients:
            client.close()


@mark(on_docker)
def test_http_sessions_stick_to_their_replica(cluster: Cluster) -> None:
    ids = [ask(cluster, "POST", "/reset", IN_REPL)[1]["X-Session-Id"] for _ in range(3 * REPLICAS)]
    assert all(cluster.sessions().values())
    for number, key in enumerate(ids):
        step(cluster, f"number = {number}", X_Session_Id=key)
    for number, key in enumerate(ids):
        assert step(cluster, "number", X_Session_Id=key) == str(number)
        assert ask(cluster, "GET", "/state", X_Session_Id=key)[2]["step_count"] == 2
    # A WebSocket that names such a session comes to it, too.
    for number, key in enumerate(ids):
        with ws(cluster, f"?session_id={key}") as peer:
            assert call(peer, "step", code="number")[1]["observation"]["result"] == str(number)
    for key in ids:
        assert ask(cluster, "DELETE", "/mcp", X_Session_Id=key)[0] == 200
    assert not any(cluster.sessions().values())


def rpc(where: Any, method: str, headers: dict[str, str], **params: Any) -> tuple[Any, Any]:
    """The headers and the result of an MCP request."""
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    _, answered, answer = ask(where, "POST", "/mcp", body, **headers)
    return answered, answer["result"]


def run_python(where: Any, code: str, headers: dict[str, str], **params: Any) -> Any:
    tool = {"name": "run_python", "arguments": {"code": code}}
    return rpc(where, "tools/call", headers, **tool, **params)[1]["data"]["result"]


@mark(on_docker)
def test_mcp_sessions_stick_to_their_replica(cluster: Cluster) -> None:
    """By the header, as the MCP SDK's client sends it, and by the body, as OpenEnv's does."""
    keys = [rpc(cluster, "initialize", {})[0]["Mcp-Session-Id"] for _ in range(2 * REPLICAS)]
    named = [{"Mcp_Session_Id": key} for key in keys]
    for number, header in enumerate(named):
        run_python(cluster, f"number = {number}", header)
    for number, header in enumerate(named):
        assert run_python(cluster, "number", header) == str(number)

    made = [rpc(cluster, "openenv/session/create", {})[1] for _ in range(2 * REPLICAS)]
    for number, params in enumerate(made):
        run_python(cluster, f"number = {number}", {}, **params)
    for number, params in enumerate(made):
        long = "number" + " " * 30_000
        assert run_python(cluster, long, {}, **params) == str(number)

    assert all(cluster.sessions().values())
    for key in [*keys, *(params["session_id"] for params in made)]:
        ask(cluster, "DELETE", "/mcp", Mcp_Session_Id=key)


def has_begun(replica: str, count: int) -> bool:
    """Whether so many steps have made their file `begun` there."""
    return len(docker("exec", replica, "find", "/tmp", "-name", "begun").split()) == count


@mark(on_docker)
def test_a_killed_replica_s_sessions_end_with_an_error_and_begin_anew_elsewhere(
    cluster: Cluster,
) -> None:
    victim = next(iter(cluster.replicas()))
    key = ask(cluster, "POST", "/reset", IN_REPL)[1]["X-Session-Id"]
    [home] = [replica for replica, count in cluster.sessions().items() if count]
    with cluster.client_on(victim) as busy, cluster.client_on(victim) as idle:
        failed: list[Exception] = []

        def sleep() -> None:
            try:
                busy.step("open('begun', 'w'); import time; time.sleep(60)", timeout_s=60)
            except ConnectionFailed as error:
                failed.append(error)

        thread = threading.Thread(target=sleep)
        thread.start()
        eventually(lambda: has_begun(victim, 1))
        docker("kill", *{victim, home})
        thread.join(30)
        assert not thread.is_alive(), "the client hangs"
        assert "the connection was lost" in str(*failed)
        assert "call reset()" in str(*failed)
        with pytest.raises(ConnectionFailed, match=r"call reset\(\)"):
            idle.step("1")
        for client in (busy, idle):
            client.reset(**IN_REPL)
            assert client.step("1 + 1").observation.result == "2"

    status, _, answer = ask(cluster, "POST", "/step", {"action": {"code": "1"}}, X_Session_Id=key)
    assert status == 404
    assert "no session" in answer["detail"]
    status, headers, _ = ask(cluster, "POST", "/reset", IN_REPL, X_Session_Id=key)
    assert status == 200
    ask(cluster, "DELETE", "/mcp", X_Session_Id=headers["X-Session-Id"])


@mark(on_docker)
def test_a_drained_replica_s_running_steps_are_answered(cluster: Cluster) -> None:
    victim = next(iter(cluster.replicas()))
    clients = [cluster.client_on(victim) for _ in range(3)]
    results: list[Any] = [None] * len(clients)

    def work(number: int) -> None:
        code = f"open('begun', 'w'); import time; time.sleep(3); {number}"
        results[number] = clients[number].step(code).observation.result

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    eventually(lambda: has_begun(victim, len(clients)))
    docker("stop", victim)
    for thread in threads:
        thread.join(30)
    assert results == ["0", "1", "2"]
    state = json.loads(docker("inspect", "-f", "{{json .State}}", victim))
    assert state["ExitCode"] == 0, "it was killed, because it did not end within the grace"
    for client in clients:
        with pytest.raises(ConnectionFailed, match=r"1001.*call reset\(\)"):
            client.step("1")
        client.reset(**IN_REPL)
        assert client.step("1 + 1").observation.result == "2"
        client.close()


class Load(threading.Thread):
    """A client that plays episodes until `enough` is set, each with a reward of its own.

    `rewards` counts (expected, got), `errors` what it was told, `resumed` the resets after that.
    """

    def __init__(self, cluster: Cluster, number: int, enough: threading.Event) -> None:
        super().__init__(daemon=True)
        self.client = cluster.client()
        self.number = number
        self.enough = enough
        self.rewards: Counter[tuple[float, float | None]] = Counter()
        self.errors: list[str] = []
        self.failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            with self.client:
                episode = 0
                while not self.enough.is_set():
                    episode += 1
                    self.play(1_000 * self.number + episode)
        except BaseException as error:
            self.failure = error

    def play(self, secret: int) -> None:
        """Two steps that only this episode's tests give 0.5 and 1.0."""
        tests = f"assert f(1) == {secret}\nassert f(2) == {-secret}"
        try:
            self.client.reset(tests=tests)
            got = self.client.step(f"def f(x): return {secret}").reward
            self.rewards[0.5, got] += 1
            got = self.client.step(f"def f(x): return {secret} if x == 1 else -{secret}").reward
            self.rewards[1.0, got] += 1
        except ConnectionFailed as error:
            self.errors.append(str(error))


@mark(on_docker)
def test_under_load_no_reward_is_wrong_and_no_client_hangs(cluster: Cluster) -> None:
    enough = threading.Event()
    clients = 3 * REPLICAS
    loads = [Load(cluster, number, enough) for number in range(1, clients + 1)]

    def steps() -> int:
        return sum(load.rewards.total() for load in loads)

    def progress(more: int) -> None:
        goal = steps() + more
        eventually(lambda: steps() >= goal or not all(load.is_alive() for load in loads), 120)

    progress(60)
    killed, drained, *_ = cluster.replicas()
    docker("kill", killed)
    progress(60)
    docker("stop", drained)
    progress(60)
    enough.set()
    for load in loads:
        load.join(90)
        assert not load.is_alive(), "the client hangs"
    assert [load.failure for load in loads if load.failure] == []
    wrong = [pair for load in loads for pair in load.rewards if pair[0] != pair[1]]
    assert wrong == []
    # Each client had one session at a time: it can have lost one by the kill, one by the drain.
    assert all(len(load.errors) <= 2 for load in loads)
    errors = [text for load in loads for text in load.errors]
    assert errors
    assert all("call reset()" in text for text in errors)


@mark(on_docker)
def test_score_loses_no_sample_with_a_replica_killed_and_one_drained(cluster: Cluster) -> None:
    secrets = range(1, 901)
    codes = ["def f(x): return {}", "def f(x): return {} * x", "def f(x): return None"]
    completions = [codes[number % 3].format(number) for number in secrets]
    tests = [f"assert f(1) == {number}\nassert f(2) == {2 * number}" for number in secrets]
    before = sum(cluster.count("steps").values())
    lost, drained, *_ = cluster.replicas()
    got: list[float | None] = []

    def has_taken(steps: int) -> bool:
        return sum(cluster.count("steps").values()) >= before + steps or bool(got)

    with cluster.client() as env:
        scoring = threading.Thread(
            target=lambda: got.extend(env.score(completions, tests=tests, workers=8)), daemon=True
        )
        scoring.start()
        eventually(lambda: has_taken(50), 60)
        docker("kill", lost)
        before = sum(cluster.count("steps").values())
        eventually(lambda: has_taken(50), 60)
        assert not got, "it was over before the replica is drained"
        docker("stop", drained)
        scoring.join(120)
    assert got == [[0.5, 1.0, 0.0][number % 3] for number in secrets]


# ── the image's own health check ──────────────────────────────────────────────────────────────────


def health_of(container: str) -> str:
    return docker("inspect", "-f", "{{.State.Health.Status}}", container).strip()


@mark(on_docker)
@pytest.mark.parametrize("command", [[], ["sleep", "60"]], ids=["serves", "does not"])
def test_the_health_check_tells_whether_the_server_serves(real: str, command: list[str]) -> None:
    """And soon: the first check comes after one interval, which was 30 s."""
    options = ["--health-start-period=1ms", "--health-retries=1"] if command else []
    container = docker("run", "-d", *options, real, *command).strip()
    try:
        wanted = "unhealthy" if command else "healthy"
        eventually(lambda: health_of(container) == wanted, 25)
    finally:
        docker("rm", "-f", "-v", container)


# ── nginx, with TLS and a prefix ──────────────────────────────────────────────────────────────────


class Proxy(NamedTuple):
    """nginx in front of a server: the address below the prefix, and what trusts it."""

    url: str
    trust: ssl.SSLContext


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that is its own authority, and its key."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    out = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names, *out], check=True, capture_output=True)
    return certificate, key


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """deploy/nginx.conf in front of a server; only the names in it are this machine's."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if not program or not shutil.which("openssl"):
        pytest.skip("no nginx, or no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("nginx")
    certificate, key = make_certificate(folder)
    port = free_port()
    (folder / "tmp").mkdir()
    with Launched(folder / "tmp", "--allow-host", "localhost") as server:
        site = (DEPLOY / "nginx.conf").read_text()
        ours = {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "env.example.org;": "localhost;",
            "/etc/ssl/env.example.org.pem": str(certificate),
            "/etc/ssl/env.example.org.key": str(key),
            "http://127.0.0.1:8000/": f"{server.url}/",
        }
        for theirs, mine in ours.items():
            assert theirs in site
            site = site.replace(theirs, mine)
        (folder / "site.conf").write_text(site)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
        (folder / "nginx.conf").write_text(
            f"pid {folder}/pid;\nerror_log {folder}/error.log;\ndaemon off;\nevents {{}}\n"
            f"http {{ access_log off;\n{temporary}\ninclude {folder}/site.conf; }}\n"
            + ("user root;\n" if os.getuid() == 0 else "")
        )
        process = subprocess.Popen(
            [program, "-p", str(folder), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
        )
        trust = ssl.create_default_context(cafile=certificate)
        proxy = Proxy(f"https://localhost:{port}/python", trust)
        try:
            eventually(lambda: is_up(proxy, process))
            yield proxy
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait(20)


def is_up(proxy: Proxy, process: subprocess.Popen) -> bool:
    assert process.poll() is None, "nginx has ended; its error log says why"
    try:
        return fetch(proxy, "/health").status == 200
    except OSError:
        return False


def fetch(proxy: Proxy, path: str, data: dict | None = None, **headers: str) -> Any:
    """Status, headers, body and (after redirects) the URL of a request below the prefix."""
    opener = urllib.request.build_opener(DIRECT, urllib.request.HTTPSHandler(context=proxy.trust))
    body = None if data is None else json.dumps(data).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    names.setdefault("Content-Type", "application/json")
    request = urllib.request.Request(proxy.url + path, body, names)
    with opener.open(request, timeout=20) as answer:
        return SimpleNamespace(
            status=answer.status, headers=answer.headers, body=answer.read(), url=answer.url
        )


def test_the_client_plays_behind_tls_and_a_prefix(nginx: Proxy) -> None:
    with PythonEnv(base_url=nginx.url, ssl=nginx.trust) as env:
        env.reset(tests="assert f(4) == 8\nassert f(5) == 10")
        assert env.step("def f(x): return 8").reward == 0.5
        result = env.step("def f(x): return 2 * x" + "\n" * 200_000)
        assert (result.reward, result.done) == (1.0, True)
        assert "ledger" in [task["task_id"] for task in env.tasks()]
    with pytest.raises(ConnectionFailed, match="certificate"):
        PythonEnv(base_url=nginx.url, connect_timeout_s=1).connect()


@pytest.mark.parametrize("path", ["", "/", "/web", "/web/", "/docs", "/docs/"])
def test_the_page_is_found_behind_a_prefix(nginx: Proxy, path: str) -> None:
    answer = fetch(nginx, path)
    assert answer.url.rstrip("/") == f"{nginx.url}/docs"
    assert b"<!doctype html>" in answer.body.lower()
    # What it names is below the prefix as well: nothing in it begins at the root.
    assert not re.findall(rb"""(?:src|href|action)=["']?/|fetch\(["'`]/""", answer.body)


def test_a_page_s_websocket_comes_with_its_origin(nginx: Proxy) -> None:
    import websockets.sync.client

    options: Any = {"proxy": None, "ssl": nginx.trust}
    url = nginx.url.replace("https", "wss") + "/ws"
    origin = nginx.url.removesuffix("/python")
    with websockets.sync.client.connect(url, origin=origin, **options) as peer:
        assert call(peer, "reset", **IN_REPL)[0] == "observation"
    with pytest.raises(websockets.exceptions.InvalidStatus, match="403"):
        websockets.sync.client.connect(url, origin="https://other.example", **options)


def test_http_and_mcp_sessions_behind_a_prefix(nginx: Proxy) -> None:
    key = fetch(nginx, "/reset", IN_REPL).headers["X-Session-Id"]
    fetch(nginx, "/step", {"action": {"code": "x = 6"}}, X_Session_Id=key)
    seen = json.loads(fetch(nginx, "/step", {"action": {"code": "x * 7"}}, X_Session_Id=key).body)
    assert seen["observation"]["result"] == "42"

    def rpc(method: str, headers: dict[str, str], **params: Any) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return fetch(nginx, "/mcp", body, **headers)

    headers = {"Mcp_Session_Id": rpc("initialize", {}).headers["Mcp-Session-Id"]}
    for code, result in (("x = 6", None), ("x * 7", "42")):
        answer = rpc("tools/call", headers, name="run_python", arguments={"code": code})
        assert json.loads(answer.body)["result"]["data"]["result"] == result


# ── Kubernetes ────────────────────────────────────────────────────────────────────────────────────


def validate(path: Path, *flags: str) -> subprocess.CompletedProcess:
    """What kubernetes-validate, which brings the real schemas, says of a manifest."""
    pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", *flags, str(path)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("version", ["1.27", "1.30", None])
def test_the_manifest_fits_kubernetes_schemas(version: str | None, tmp_path: Path) -> None:
    flags = ["-k", version] if version else []
    done = validate(DEPLOY / "kubernetes.yaml", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = re.findall(r"passed for resource (\w+)/", done.stdout + done.stderr)
    assert kinds == ["deployment", "poddisruptionbudget", "service", "service"]
    wrong = tmp_path / "wrong.yaml"
    text = (DEPLOY / "kubernetes.yaml").read_text()
    wrong.write_text(text.replace("readOnlyRootFilesystem", "readonlyRootFilesystem"))
    assert validate(wrong, *flags).returncode != 0


@mark(on_docker)
def test_the_image_runs_as_the_manifest_has_it(real: str) -> None:
    """With the pod's user, limits and environment, as far as an engine without Kubernetes can."""
    yaml = pytest.importorskip("yaml", reason="kubernetes-validate, which brings it, is missing")
    manifests = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = next(each for each in manifests if each["kind"] == "Deployment")["spec"]["template"][
        "spec"
    ]
    [container] = pod["containers"]
    own = container["securityContext"]
    everyone = pod["securityContext"]
    assert everyone["runAsNonRoot"]
    assert own["readOnlyRootFilesystem"]
    assert not own["allowPrivilegeEscalation"]
    assert not pod["enableServiceLinks"]
    flags = [
        "--read-only",
        "--security-opt=no-new-privileges",
        f"--user={everyone['runAsUser']}:{everyone['runAsGroup']}",
        *(f"--cap-drop={name}" for name in own["capabilities"]["drop"]),
        *(f"--tmpfs={mount['mountPath']}" for mount in container["volumeMounts"]),
    ]
    given = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    with PythonEnv.from_docker_image(real, env_vars=given, docker_args=flags) as env:
        env.reset(tests="assert f(4) == 8")
        assert env.step("def f(x): return 2 * x").reward == 1.0
        assert test_docker.health(env.base_url)["isolation"]["full"]
