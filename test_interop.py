"""python_env beside the official packages, both ways round, and its image under their validator.

PYTHON_ENV_PEERS names the interpreter of a virtual environment of their own (pip install openenv
mcp uvicorn aiohttp), which runs the scripts below. What is missing is a skip that says so, or a
failure where PYTHON_ENV_REQUIRED has its word in it: "interop" or "docker".
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import HERE
from conftest import Launched
from conftest import eventually
from python_env import EnvClient
from python_env import PythonAction
from python_env import PythonEnv
from python_env import ServerError

PEERS = os.environ.get("PYTHON_ENV_PEERS", "")
REQUIRED = os.environ.get("PYTHON_ENV_REQUIRED", "").split()
ENVIRONMENT = {**os.environ, "NO_PROXY": "127.0.0.1,localhost", "NO_COLOR": "1"}

ADD = {"prompt": "Write add(a, b).", "tests": "assert add(1, 2) == 3\nassert add(-1, 1) == 0"}
WRONG = "def add(a, b): return abs(a) + b"
RIGHT = "def add(a, b): return a + b"


def missing(word: str, reason: str) -> None:
    """Skip the test, or fail it where `word` is required."""
    if word in REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)


# ── The peers' interpreter ────────────────────────────────────────────────────────────────────────

# Runs in the peers' interpreter and is asked one script a line: one process for all, because it
# takes seconds to import openenv.
RUNNER = """
import asyncio, inspect, json, sys, traceback
from openenv.core import EnvClient, GenericEnvClient, MCPToolClient
from openenv.core.client_types import StepResult
from openenv.core.env_server.types import Action, Observation, State

answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    script, arguments = json.loads(line)
    names = dict(globals())
    try:
        exec(script, names)
        result = names["main"](*arguments)
        answer = {"returned": asyncio.run(result) if inspect.iscoroutine(result) else result}
    except Exception:
        answer = {"raised": traceback.format_exc()}
    print(json.dumps(answer), file=answers, flush=True)
"""

Official = Callable[..., Any]


@pytest.fixture(scope="module")
def official() -> Iterator[Official]:
    """official(script, *arguments): what the script's main() returns in the peers' interpreter."""
    if not PEERS:
        missing("interop", "PYTHON_ENV_PEERS names no interpreter with openenv and mcp")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([PEERS, "-c", RUNNER], env=ENVIRONMENT, **pipes) as runner:

        def run_script(script: str, *arguments: str) -> Any:
            print(json.dumps([textwrap.dedent(script), arguments]), file=runner.stdin, flush=True)
            answer = json.loads(runner.stdout.readline())
            assert "returned" in answer, answer["raised"]
            return answer["returned"]

        yield run_script


def validate(*arguments: str, **options: Any) -> tuple[int, dict[str, Any]]:
    """The exit code and the report of the official `openenv validate`."""
    command = (Path(PEERS).with_name("openenv"), "validate", *arguments, "--json")
    done = run(*command, env=ENVIRONMENT, **options)
    assert "{" in done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout[done.stdout.index("{") :])


# ── The official clients and our server ───────────────────────────────────────────────────────────

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
    "early": "call reset.*EXECUTION_ERROR",
    "late": "episode is over.*EXECUTION_ERROR",
    "key": "cod.*VALIDATION_ERROR",
    "type": "code.*string.*VALIDATION_ERROR",
    "none": "code.*VALIDATION_ERROR",
    "task": "parse-duration.*VALIDATION_ERROR",
}


@pytest.mark.parametrize("keywords", ["", r"\b(async|await) "], ids=["async", "sync"])
def test_the_official_client_plays_the_full_loop(official, server, keywords):
    # That client takes calls of either kind: so the script has its keywords taken out.
    script = re.sub(keywords, "", LOOP)
    seen = official(script, server.url, json.dumps(ADD), WRONG, RIGHT)
    assert seen["said"] == ["parse-duration", False, "hi\n", "21"]
    assert seen["state"].items() >= {"episode_id": "e-1", "step_count": 2}.items()
    assert seen["graded"] == [[0.5, False, 1], [1.0, True, 2]]
    for name, words in REFUSALS.items():
        assert re.search(f"Server error: .*{words}", str(seen[name])), (name, seen[name])


BAD_MESSAGES = """
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


def test_the_official_client_hears_of_bad_messages(official, server):
    said = official(BAD_MESSAGES, server.url, "", "{", '{"type": "foo"}')
    assert said == ["INVALID_JSON", "UNKNOWN_TYPE", "kept"]


def test_the_official_client_hears_why_it_gets_no_session(official, server, tmp_path):
    assert "(code: SESSION_ERROR)" in official(BAD_MESSAGES, server.url, "?session_id=nope")

    full = tmp_path / "full"
    full.mkdir()
    flags = ("--max-sessions", "1", "--session-wait", "0.5")
    with Launched(full, *flags) as small, small.session() as env:
        env.reset(task_id="repl")
        assert "(code: CAPACITY_REACHED)" in official(BAD_MESSAGES, small.url, "")

    broken = tmp_path / "broken"
    broken.mkdir()
    program = "import logging, python_env as p; logging.disable()\n"
    program += "p.serve(lambda: 1 / 0, p.PythonAction, port=0)"
    with Launched(broken, command=("-c", program)) as one:
        assert "(code: FACTORY_ERROR)" in official(BAD_MESSAGES, one.url, "")


def test_the_official_client_waits_for_a_place_on_a_full_server(official, tmp_path):
    with Launched(tmp_path, "--max-sessions", "1") as small:
        first = small.session()
        first.reset(task_id="repl")
        leaving = threading.Timer(1.0, first.close)
        leaving.start()
        assert official(BAD_MESSAGES, small.url, "") == ["kept"]
        leaving.join()


def test_a_typed_client_of_the_official_kind_needs_no_change(official, server):
    script = """
        class CodeAction(Action):
            code: str
            stdin: str | None = None
            timeout_s: float | None = None

        class CodeObservation(Observation):
            stdout: str
            stderr: str
            exit_code: int
            result: str | None
            task_id: str
            prompt: str
            tests_passed: int
            tests_total: int
            feedback: str

        class CodeEnv(EnvClient[CodeAction, CodeObservation, State]):
            def _step_payload(self, action):
                return action.model_dump()

            def _parse_state(self, payload):
                return State(**payload)

            def _parse_result(self, payload):
                beside = {name: payload[name] for name in ("reward", "done")}
                return StepResult(CodeObservation(**payload["observation"], **beside), **beside)

        def main(url, add, code):
            with CodeEnv(base_url=url) as env:
                env.reset(**json.loads(add), episode_id="typed")
                seen = env.step(action := CodeAction(code=code)).observation
                return [model.model_dump() for model in (action, seen, env.state())]
    """
    action, observation, state = official(script, server.url, json.dumps(ADD), RIGHT)
    assert action == {"metadata": {}, "code": RIGHT, "stdin": None, "timeout_s": None}
    assert observation.items() >= {"reward": 1.0, "done": True, "tests_passed": 2}.items()
    assert state.items() >= {"episode_id": "typed", "step_count": 1}.items()


def test_the_official_validator_passes_the_running_server(official, server):
    code, report = validate("--url", server.url)
    assert code == 0
    assert report["passed"]
    assert report["standard_profile"] == "openenv-http/1.x"
    assert len(report["criteria"]) >= 6
    assert all(each["passed"] for each in report["criteria"])


# ── MCP: names are kept from one call to the next ─────────────────────────────────────────────────


def test_openenvs_mcp_client_keeps_names_and_plays_an_episode(official, server):
    script = """
        async def main(url, add, code):
            async with MCPToolClient(base_url=url) as env:
                tools = [tool.name for tool in await env.list_tools()]
                await env.call_tool("run_python", code="x = 6")
                kept = await env.call_tool("run_python", code="x * 7")
                await env.reset(**json.loads(add))
                paid = await env.call_tool("run_python", code=code)
                return [tools, kept, paid, (await env.state()).step_count]
    """
    tools, kept, paid, steps = official(script, server.url, json.dumps(ADD), RIGHT)
    assert tools == ["run_python", "reset"]
    assert kept["result"] == "42"
    assert (paid["reward"], paid["done"]) == (1.0, True)
    assert steps == 1


def test_the_mcp_sdk_keeps_names_and_plays_an_episode(official, server):
    script = """
        from mcp import ClientSession
        from mcp.client.streamable_http import streamable_http_client

        async def main(url, *calls):
            async with streamable_http_client(url + "/mcp") as (read, write, _):
                async with ClientSession(read, write) as session:
                    said = [await session.initialize(), await session.send_ping()]
                    said.append(await session.list_tools())
                    for name, arguments in map(json.loads, calls):
                        said.append(await session.call_tool(name, arguments))
                    return [each.model_dump(mode="json") for each in said]
    """
    calls = [
        ("run_python", {"code": "x = 6; print('hi')"}),
        ("run_python", {"code": "x * 7"}),
        ("run_python", {"code": "1 / 0"}),
        ("reset", ADD),
        ("run_python", {"code": RIGHT}),
    ]
    said = official(script, server.url, *map(json.dumps, calls))
    hello, _, listed, good, kept, bad, first, paid = said
    assert hello["serverInfo"]["name"] == "python_env"
    assert "tools" in hello["capabilities"]
    assert [tool["name"] for tool in listed["tools"]] == ["run_python", "reset"]
    assert listed["tools"][0]["inputSchema"]["required"] == ["code"]
    assert good["structuredContent"]["stdout"] == "hi\n"
    assert not good["isError"]
    assert kept["structuredContent"]["result"] == "42"
    assert bad["isError"]
    assert "ZeroDivisionError" in bad["content"][0]["text"]
    assert first["structuredContent"]["prompt"] == ADD["prompt"]
    assert paid["structuredContent"]["reward"] == 1.0


def test_two_clients_of_the_mcp_sdk_do_not_see_each_others_names(official, server):
    script = """
        from mcp import ClientSession
        from mcp.client.streamable_http import streamable_http_client

        async def run(url, *codes):
            async with streamable_http_client(url + "/mcp") as (read, write, _):
                async with ClientSession(read, write) as session:
                    await session.initialize()
                    for code in codes:
                        last = await session.call_tool("run_python", {"code": code})
                    return last.isError

        async def main(url):
            return [await run(url, "secret = 1", "secret"), await run(url, "secret")]
    """
    assert official(script, server.url) == [False, True]


def test_aiohttps_websocket_plays_an_episode(official, server):
    script = """
        import aiohttp

        async def main(url, row, code):
            async with aiohttp.ClientSession() as http:
                async with http.ws_connect(url + "/ws", heartbeat=1) as socket:
                    replies = []
                    for kind, data in (("reset", json.loads(row)), ("step", {"code": code})):
                        await socket.send_json({"type": kind, "data": data})
                        replies.append(await socket.receive_json(timeout=60))
                    return replies
    """
    begun, paid = official(
        script, server.url, json.dumps(ADD), f"import time\ntime.sleep(2)\n{RIGHT}"
    )
    assert begun["data"]["observation"]["prompt"] == ADD["prompt"]
    assert paid["data"]["reward"] == 1.0


# ── Our client and an official server ─────────────────────────────────────────────────────────────

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


@pytest.fixture(scope="module")
def official_server(official) -> Iterator[str]:
    """The URL of an echo server as openenv serves it. It holds one session at a time."""
    command = [PEERS, "-c", textwrap.dedent(ECHO)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.wait(10)


def test_our_client_plays_on_an_official_server(official_server):
    with EnvClient(official_server) as env:
        first = env.reset(episode_id="ours", greeting="hello")
        assert (first.observation["echoed"], first.reward, first.done) == ("hello", None, False)
        result = env.step({"message": "hi"})
        assert (result.observation["echoed"], result.reward, result.done) == ("hi", 0.5, False)
        assert result.metadata == {"n": 1}
        for message, code in {"boom": "EXECUTION_ERROR", 5: "VALIDATION_ERROR"}.items():
            with pytest.raises(ServerError) as refused:
                env.step({"message": message})
            assert refused.value.code == code
        # Neither of which ended the session.
        assert env.step({"message": "bye"}).done
        assert env.state() == {"episode_id": "ours", "step_count": 2}


def test_our_client_tries_again_where_an_official_server_is_full(official_server):
    with EnvClient(official_server) as env:
        env.reset()
        hasty = EnvClient(official_server, connect_timeout_s=0.5)
        with pytest.raises(ServerError, match="1/1 sessions.*CAPACITY_REACHED"):
            hasty.reset()
        hasty.close()
        leaving = threading.Timer(0.5, env.close)
        leaving.start()
        with EnvClient(official_server) as patient:
            assert patient.reset().observation["echoed"] == "ready"
        leaving.join()


# ── The image, on a real engine ───────────────────────────────────────────────────────────────────

HARDENED = [
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--pids-limit=256",
    "--user=65532:65532",
    "--tmpfs=/tmp",
    "--health-interval=1s",
]


def docker(*arguments: str) -> str:
    """What docker prints. It must end well."""
    done = run("docker", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """The Dockerfile's image under a tag of its own; nothing of it may be left behind."""
    if not shutil.which("docker") or run("docker", "version").returncode:
        missing("docker", "no Docker engine answers `docker version`")
    volumes = docker("volume", "ls", "-q").split()
    tag = f"python-env:interop-{os.getpid()}"
    docker("build", "-q", "-t", tag, str(HERE))
    yield tag
    containers = docker("ps", "-a", "--format", "{{.Names}} {{.Image}}").splitlines()
    docker("rmi", "-f", tag)
    assert not [line for line in containers if tag in line or "openenv-validation" in line]
    eventually(lambda: set(docker("volume", "ls", "-q").split()) <= set(volumes), 20)


@contextlib.contextmanager
def container(*arguments: str) -> Iterator[str]:
    """A running container. It must obey SIGTERM within 2 s, as PID 1, and end with exit code 0."""
    key = docker("run", "-d", "-p", "127.0.0.1::8000", *arguments)
    try:
        yield key
        began = time.monotonic()
        docker("stop", key)
        took = time.monotonic() - began
        code = docker("inspect", "-f", "{{.State.ExitCode}}", key)
        assert (code, took < 2) == ("0", True), (took, run("docker", "logs", key))
    finally:
        docker("rm", "-f", "-v", key)


@pytest.mark.docker
def test_the_image_is_small_and_its_user_is_not_root(image):
    inspect = ("image", "inspect", "-f", "{{.Size}}")
    assert int(docker(*inspect, image)) - int(docker(*inspect, "python:3.12-slim")) < 10e6
    assert docker("run", "--rm", image, "id", "-u", "-n") == "env"
    assert docker("run", "--rm", image, "ls", "/app").split()[1:] == ["python_env.py", "server.py"]


@pytest.mark.docker
def test_a_locked_down_container_has_full_isolation_and_stops_at_once(image):
    with container(*HARDENED, image) as key:
        health = ("inspect", "-f", "{{.State.Health.Status}}", key)
        eventually(lambda: docker(*health) == "healthy", 20)
        url = "http://" + docker("port", key, "8000/tcp").splitlines()[0]
        with urllib.request.urlopen(f"{url}/health") as reply:
            isolation = json.load(reply)["isolation"]
        assert isolation["full"]
        assert isolation["seccomp"]
        assert isolation["landlock"]
        env = PythonEnv(base_url=url)
        env.reset(**ADD)
        assert env.step(PythonAction(RIGHT)).reward == 1.0
    env.close()  # its session was open when the container stopped


@pytest.mark.docker
def test_a_container_that_is_still_starting_stops_at_once(image):
    with container(image) as key:
        eventually(lambda: len(docker("top", key, "-o", "pid").split()) > 2, 20)


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
    graders = ("startup", "observation_schema", "reward_well_formed", "state_contract")
    assert code == 0
    assert passed >= {"static.manifest", *(f"runtime.{name}" for name in graders)}
    # The helper of its network policy would have to be pulled.
    for name in results.keys() - passed - {"runtime.network_policy"}:
        assert "not implemented" in str(results[name]["evidence"]), results[name]


FOREIGN = {
    "Dockerfile": """
        FROM python:3.12-slim
        RUN pip install --no-cache-dir openenv uvicorn
        COPY app.py /app.py
        CMD ["python3", "-m", "uvicorn", "app:app", "--host", "0.0.0.0", "--port", "8000"]
    """,
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

        app = create_app(Echo, Say, Heard, env_name="echo", max_concurrent_envs=4)
    """,
}


@pytest.mark.docker
def test_our_client_starts_and_plays_a_foreign_image(tmp_path):
    """An image with the official server inside: 600 MB and two minutes, so only where required."""
    if "docker" not in REQUIRED:
        pytest.skip("builds an image of the official stack; PYTHON_ENV_REQUIRED=docker asks for it")
    for name, text in FOREIGN.items():
        (tmp_path / name).write_text(textwrap.dedent(text))
    tag = f"python-env:foreign-{os.getpid()}"
    docker("build", "-q", "-t", tag, str(tmp_path))
    try:
        with EnvClient.from_docker_image(tag, timeout_s=180) as env:
            assert env.reset().observation["echo"] == "ready"
            result = env.step({"message": "hi"})
            assert (result.observation["echo"], result.reward, result.done) == ("hi", 0.5, False)
            assert env.state()["step_count"] == 1
            with pytest.raises(ServerError, match="VALIDATION_ERROR"):
                env.step({"massage": "hi"})
    finally:
        docker("rmi", "-f", tag)
