"""python_env beside the official packages, both ways round, and its image under their validator.

PYTHON_ENV_PEERS names the interpreter of a virtual environment of their own (pip install openenv
mcp uvicorn), which runs the scripts below. What is missing is a skip that says so, or a failure
where PYTHON_ENV_REQUIRED has its word in it: "interop" or "docker".
"""

import contextlib, json, os, re, shutil, subprocess, sys, textwrap, threading, time
import urllib.request
from pathlib import Path

import pytest

import python_env

HERE = Path(python_env.__file__).parent
PEERS = os.environ.get("PYTHON_ENV_PEERS", "")
ENVIRONMENT = {**os.environ, "NO_PROXY": "127.0.0.1,localhost", "NO_COLOR": "1"}
SERVER = sys.executable, "server.py", "--port", "0"
WRONG, RIGHT = "def add(a, b): return abs(a) + b", "def add(a, b): return a + b"
ADD = {"prompt": "Write add(a, b).", "tests": "assert add(1, 2) == 3\nassert add(-1, 1) == 0"}


def missing(word, reason):
    required = word in os.environ.get("PYTHON_ENV_REQUIRED", "").split()
    (pytest.fail if required else pytest.skip)(reason)


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)


@contextlib.contextmanager
def running(*command):
    """A server process: the URL in its first line. In the end it must obey SIGTERM."""
    options = {"stdout": subprocess.PIPE, "text": True, "cwd": HERE, "env": ENVIRONMENT}
    with subprocess.Popen(command, **options) as process:
        try:
            yield re.search(r"http://\S+", process.stdout.readline())[0]
        finally:
            process.terminate()
            code = process.wait(10)
    assert code in (0, -15)


SCRIPT = """
import asyncio, inspect, json, sys
from openenv.core import EnvClient, GenericEnvClient
from openenv.core.client_types import StepResult
from openenv.core.env_server.types import Action, Observation, State
%s
result = main(*sys.argv[1:])
print(json.dumps(asyncio.run(result) if inspect.iscoroutine(result) else result))
"""


@pytest.fixture(scope="module")
def official():
    """official(script, *arguments): what the script's main() returns in the peers' interpreter."""
    if not PEERS:
        missing("interop", "PYTHON_ENV_PEERS names no interpreter with openenv and mcp")

    def official(script, *arguments):
        done = run(PEERS, "-c", SCRIPT % textwrap.dedent(script), *arguments, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return official


@pytest.fixture(scope="module")
def server(official):
    with running(*SERVER) as url:
        yield url


def validate(*arguments, **options):
    """The exit code and the report of the official `openenv validate`."""
    command = Path(PEERS).with_name("openenv"), "validate", *arguments, "--json"
    done = run(*command, env=ENVIRONMENT, **options)
    assert "{" in done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout[done.stdout.index("{") :])


# --- The official clients and our server ----------------------------------------------------------

LOOP = """
    async def refusal(call):
        try:
            await call()
        except RuntimeError as error:
            return str(error)

    async def main(url, add, wrong, right):
        async with GenericEnvClient(base_url=url) as env:
            seen = {"early": await refusal(lambda: env.step({"code": "1"}))}
            first = await env.reset(task_id="parse-duration", seed=1, episode_id="e-1")
            await env.step({"code": "x = 20", "metadata": {}, "timeout_s": None})
            second = (await env.step({"code": "print('hi')\\nx + 1"})).observation
            said = [first.observation["task_id"], first.done, second["stdout"], second["result"]]
            seen |= {"said": said, "state": await env.state()}
            for name, action in {"key": {"cod": "1"}, "type": {"code": 5}, "none": {}}.items():
                seen[name] = await refusal(lambda: env.step(action))
            seen["task"] = await refusal(lambda: env.reset(task_id="parse-duratoin"))
            await env.reset(**json.loads(add))
            results = [await env.step({"code": code}) for code in (wrong, right)]
            seen["graded"] = [[r.reward, r.done, r.observation["tests_passed"]] for r in results]
            seen["late"] = await refusal(lambda: env.step({"code": "1"}))
        return seen
"""
REFUSALS = {
    "early": "call reset.*EXECUTION_ERROR", "late": "episode is over.*EXECUTION_ERROR",
    "key": "cod.*VALIDATION_ERROR", "type": "code.*string.*VALIDATION_ERROR",
    "none": "code.*VALIDATION_ERROR", "task": "parse-duration.*VALIDATION_ERROR",
}  # fmt: skip


@pytest.mark.parametrize("keywords", ["", r"\b(async|await) "], ids=["async", "sync"])
def test_the_official_client_plays_the_full_loop(official, server, keywords):
    script = re.sub(keywords, "", LOOP)  # that client takes calls of either kind
    seen = official(script, server, json.dumps(ADD), WRONG, RIGHT)
    assert seen["said"] == ["parse-duration", False, "hi\n", "21"]
    assert seen["state"].items() >= {"episode_id": "e-1", "step_count": 2}.items()
    assert seen["graded"] == [[0.5, False, 1], [1.0, True, 2]]
    for name, words in REFUSALS.items():
        assert re.search(f"Server error: .*{words}", str(seen[name])), (name, seen[name])


def test_the_official_client_hears_of_bad_messages_and_why_it_gets_no_session(official):
    script = """
        async def main(url, query, *texts):
            client = GenericEnvClient(base_url=url)
            client._ws_url += query
            try:
                async with client as env:
                    await env.reset(task_id="repl", episode_id="kept")
                    for text in texts:
                        await env._ws.send(text)
                    codes = [(await env._receive())["data"]["code"] for _ in texts]
                    return [*codes, (await env.state())["episode_id"]]
            except RuntimeError as error:
                return str(error)
    """
    with running(*SERVER, "--max-sessions", "1") as url:
        with python_env.PythonEnv(base_url=url) as env:
            env.reset(task_id="repl")
            assert "(code: CAPACITY_REACHED)" in official(script, url, "")
        said = official(script, url, "", "{", '{"type": "foo"}')
        assert said == ["INVALID_JSON", "UNKNOWN_TYPE", "kept"]
        assert "(code: SESSION_ERROR)" in official(script, url, "?session_id=nope")
    broken = "import python_env as p; p.serve(lambda: 1 / 0, p.PythonAction, port=0)"
    with running(sys.executable, "-c", broken) as url:
        assert "(code: FACTORY_ERROR)" in official(script, url, "")


def test_a_typed_client_of_the_official_kind_needs_no_change(official, server):
    script = """
        class CodeAction(Action):
            code: str
            timeout_s: float | None = None

        class CodeObservation(Observation):
            stdout: str; stderr: str; exit_code: int; result: str | None; task_id: str
            prompt: str; tests_passed: int; tests_total: int; feedback: str

        class CodeEnv(EnvClient[CodeAction, CodeObservation, State]):
            _step_payload = lambda self, action: action.model_dump()
            _parse_state = lambda self, payload: State(**payload)

            def _parse_result(self, payload):
                beside = {name: payload[name] for name in ("reward", "done")}
                return StepResult(CodeObservation(**payload["observation"], **beside), **beside)

        def main(url, add, code):
            with CodeEnv(base_url=url) as env:
                env.reset(**json.loads(add), episode_id="typed")
                seen = env.step(action := CodeAction(code=code)).observation
                return [model.model_dump() for model in (action, seen, env.state())]
    """
    action, observation, state = official(script, server, json.dumps(ADD), RIGHT)
    assert action == {"metadata": {}, "code": RIGHT, "timeout_s": None}  # and so it was sent
    assert observation.items() >= {"reward": 1.0, "done": True, "tests_passed": 2}.items()
    assert state.items() >= {"episode_id": "typed", "step_count": 1}.items()


def test_the_official_validator_passes_the_running_server(server):
    code, report = validate("--url", server)
    assert (code, report["passed"], report["standard_profile"]) == (0, True, "openenv-http/1.x")
    assert len(report["criteria"]) >= 6 and all(each["passed"] for each in report["criteria"])


def test_the_mcp_sdk_lists_and_calls_the_tool(official, server):
    script = """
        from mcp import ClientSession
        from mcp.client.streamable_http import streamable_http_client

        async def main(url):
            async with streamable_http_client(url + "/mcp") as (read, write, _):
                async with ClientSession(read, write) as session:
                    said = [await session.initialize(), await session.send_ping()]
                    said.append(await session.list_tools())
                    for code in ("print(6 * 7)", "1 / 0"):
                        said.append(await session.call_tool("run_python", {"code": code}))
                    return [each.model_dump(mode="json") for each in said]
    """
    hello, _, listed, good, bad = official(script, server)
    assert hello["serverInfo"]["name"] == "python_env" and "tools" in hello["capabilities"]
    assert [tool["name"] for tool in listed["tools"]] == ["run_python"]
    assert listed["tools"][0]["inputSchema"]["required"] == ["code"]
    assert good["structuredContent"]["stdout"] == "42\n" and not good["isError"]
    assert "ZeroDivisionError" in bad["content"][0]["text"] and bad["isError"]


# --- Our client and an official server ------------------------------------------------------------

ECHO = """
    import socket, uvicorn
    from openenv.core.env_server import Environment, create_app
    from openenv.core.env_server.types import Action, Observation, State

    class EchoAction(Action):
        message: str

    class EchoObservation(Observation):
        echoed: str

    class EchoEnvironment(Environment):
        state = State()

        def reset(self, seed=None, episode_id=None, greeting="ready", **options):
            self.state = State(episode_id=episode_id)
            return EchoObservation(echoed=greeting)

        def step(self, action, timeout_s=None, **options):
            if action.message == "boom":
                raise RuntimeError("boom")
            self.state.step_count += 1
            done = action.message == "bye"
            return EchoObservation(echoed=action.message, reward=0.5, done=done, metadata={"n": 1})

    app = create_app(EchoEnvironment, EchoAction, EchoObservation)
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
"""


def test_our_client_plays_on_an_official_server(official):
    with running(PEERS, "-c", textwrap.dedent(ECHO)) as url, python_env.EnvClient(url) as env:
        first = env.reset(episode_id="ours", greeting="hello")
        assert (first.observation["echoed"], first.reward, first.done) == ("hello", None, False)
        result = env.step({"message": "hi"})
        assert (result.observation["echoed"], result.reward, result.done) == ("hi", 0.5, False)
        assert result.metadata == {"n": 1}
        for message, code in {"boom": "EXECUTION_ERROR", 5: "VALIDATION_ERROR"}.items():
            with pytest.raises(python_env.ServerError) as refused:
                env.step({"message": message})
            assert refused.value.code == code  # and the session goes on:
        assert env.step({"message": "bye"}).done
        assert env.state() == {"episode_id": "ours", "step_count": 2}

        hasty = python_env.EnvClient(url, connect_timeout_s=0.5)  # the server holds one session
        with pytest.raises(python_env.ServerError, match="1/1 sessions.*CAPACITY_REACHED"):
            hasty.reset()
        hasty.close()
        leaving = threading.Timer(0.5, env.close)
        leaving.start()
        with python_env.EnvClient(url) as patient:
            assert patient.reset().observation["echoed"] == "ready"
        leaving.join()


# --- The image, on a real engine ------------------------------------------------------------------

HARDENED = """--read-only --cap-drop ALL --security-opt no-new-privileges --pids-limit 256
    --user 65532:65532 --tmpfs /tmp --health-interval 1s""".split()


def docker(*arguments):
    done = run("docker", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def eventually(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def image():
    """The Dockerfile's image under a tag of its own; nothing of it may be left behind."""
    if not shutil.which("docker") or run("docker", "version").returncode:
        missing("docker", "no Docker engine answers `docker version`")
    volumes, tag = docker("volume", "ls", "-q").split(), f"python-env:interop-{os.getpid()}"
    docker("build", "-q", "-t", tag, str(HERE))
    yield tag
    containers = docker("ps", "-a", "--format", "{{.Names}} {{.Image}}").splitlines()
    docker("rmi", "-f", tag)
    assert not [line for line in containers if tag in line or "openenv-validation" in line]
    eventually(lambda: set(docker("volume", "ls", "-q").split()) <= set(volumes))


@contextlib.contextmanager
def container(*arguments):
    """A running container. It must obey SIGTERM within 2 s, as PID 1, and end with exit code 0."""
    key = docker("run", "-d", "-p", "127.0.0.1::8000", *arguments)
    try:
        yield key
        began = time.monotonic()
        docker("stop", key)
        took, code = time.monotonic() - began, docker("inspect", "-f", "{{.State.ExitCode}}", key)
        assert code == "0" and took < 2, (code, took, run("docker", "logs", key))
    finally:
        docker("rm", "-f", "-v", key)


@pytest.mark.docker
def test_the_image_is_small_and_its_user_is_not_root(image):
    inspect = "image", "inspect", "-f", "{{.Size}}"
    assert int(docker(*inspect, image)) - int(docker(*inspect, "python:3.12-slim")) < 10e6
    assert docker("run", "--rm", image, "id", "-u", "-n") == "env"
    assert docker("run", "--rm", image, "ls", "/app").split()[1:] == ["python_env.py", "server.py"]


@pytest.mark.docker
def test_a_locked_down_container_has_full_isolation_and_stops_at_once(image):
    with container(*HARDENED, image) as key:
        health = "inspect", "-f", "{{.State.Health.Status}}", key
        eventually(lambda: docker(*health) == "healthy")
        url = "http://" + docker("port", key, "8000/tcp").splitlines()[0]
        with urllib.request.urlopen(f"{url}/health") as reply:
            isolation = json.load(reply)["isolation"]
        assert isolation["full"] and isolation["seccomp"] and isolation["landlock"]
        env = python_env.PythonEnv(base_url=url)
        env.reset(**ADD)
        assert env.step(python_env.PythonAction(RIGHT)).reward == 1.0
    env.close()  # its session was open when the container stopped
    with container(image) as key:
        eventually(lambda: len(docker("top", key, "-o", "pid").split()) > 2)  # it is starting


@pytest.mark.docker
def test_the_official_client_starts_and_removes_our_image(official, image):
    script = """
        def main(image, add, code):
            with GenericEnvClient.from_docker_image(image).sync() as env:
                env.reset(**json.loads(add))
                return env.step({"code": code}).reward
    """
    assert official(script, image, json.dumps(ADD), RIGHT) == 1.0


@pytest.mark.docker
def test_the_official_validator_passes_the_image(official, image, tmp_path):
    # It refuses folders with links in them, or that change meanwhile: so it gets a copy.
    aside = ".git", ".venv*", "venv*", "__pycache__", ".*_cache", "*.egg-info", "build", "dist"
    package = shutil.copytree(HERE, tmp_path / "package", ignore=shutil.ignore_patterns(*aside))
    code, report = validate(".", "--level", "runtime", cwd=package)
    results = {result["check_id"]: result for result in report["results"]}
    built = results["runtime.startup"]["measured"].get("image_ref", image)
    if built not in (image, docker("image", "inspect", "-f", "{{.Id}}", image)):
        docker("rmi", built)  # the validator keeps it
    passed = {name for name, result in results.items() if result["status"] == "pass"}
    graders = "startup", "observation_schema", "reward_well_formed", "state_contract"
    assert code == 0 and passed >= {"static.manifest", *(f"runtime.{name}" for name in graders)}
    for name in results.keys() - passed - {"runtime.network_policy"}:  # its helper is a pull away
        assert "not implemented" in str(results[name]["evidence"]), results[name]

FOREIGN = {
    "Dockerfile": """FROM python:3.12-slim
        RUN pip install --no-cache-dir openenv uvicorn
        COPY app.py /app.py
        CMD ["python3", "-m", "uvicorn", "app:app", "--host", "0.0.0.0", "--port", "8000"]""",
    "app.py": """
        from openenv.core.env_server.http_server import create_app
        from openenv.core.env_server.interfaces import Environment
        from openenv.core.env_server.types import Action, Observation, State

        class Say(Action):
            message: str

        class Heard(Observation):
            echo: str = ""

        class Echo(Environment):
            SUPPORTS_CONCURRENT_SESSIONS = True
            steps = 0
            def reset(self, seed=None, episode_id=None, **options):
                return Heard(echo="ready")
            def step(self, action, timeout_s=None, **options):
                self.steps += 1
                return Heard(echo=action.message, reward=0.5)
            @property
            def state(self):
                return State(episode_id="e", step_count=self.steps)

        app = create_app(Echo, Say, Heard, env_name="echo", max_concurrent_envs=4)""",
}

@pytest.mark.docker
def test_our_client_starts_and_plays_a_foreign_image(tmp_path):
    """An image with the official server inside: 600 MB and two minutes, so only where required."""
    if "docker" not in os.environ.get("PYTHON_ENV_REQUIRED", "").split():
        pytest.skip("builds an image of the official stack; PYTHON_ENV_REQUIRED=docker asks for it")
    for name, text in FOREIGN.items():
        (tmp_path / name).write_text(re.sub("(?m)^ {8}", "", text))
    tag = f"python-env:foreign-{os.getpid()}"
    docker("build", "-q", "-t", tag, str(tmp_path))
    try:
        with python_env.EnvClient.from_docker_image(tag) as env:
            assert env.reset().observation["echo"] == "ready"
            result = env.step({"message": "hi"})
            assert (result.observation["echo"], result.reward, result.done) == ("hi", 0.5, False)
            assert env.state()["step_count"] == 1
            with pytest.raises(python_env.ServerError, match="VALIDATION_ERROR"):
                env.step({"massage": "hi"})
    finally:
        docker("rmi", "-f", tag)
