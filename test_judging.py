r"""What code that an agent sends cannot do, and what it earns.

The attacks are catalogues. To add one, write five lines beside the others of its kind (forgeries
and cases are graded by `pytest -m "" test_judging.py` only, because there are many):

    attack(                 # a step that is answered, earns 0 and harms nobody
        "kills itself",
        "import os\nos.kill(os.getpid(), 9)",
    )

    forbidden(              # a step that ends in a refusal of the sandbox
        "a socket",
        "import socket\nsocket.socket()",
    )

    forgery(                # code that earns less than everything, whatever the tests ask of `f`
        "an object that agrees to all",
        "class Yes:\n    __eq__ = lambda *_: True\ndef f(x):\n    return Yes()",
    )                       # tests="assert …": against these tests alone, if it needs its own

    abuse(                  # the body of `f(g)`, to learn from the test's `g` what that expects
        "its globals",
        "return g.__globals__['WANTED']",
    )

    honest(                 # code that earns everything
        "a builtin's name",
        "assert sum([1, 2]) == 30",
        "def sum(xs):\n    return 10 * (xs[0] + xs[1])",
        entry_point="sum",  # more of the task's row
    )

And a case of everyday Python goes as one line into judging_own.jsonl: the product and plain Python
must agree on it.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest

import python_env
from conftest import CANARY
from conftest import DOUBLE
from conftest import HONEST
from conftest import IN_REPL
from conftest import abort
from conftest import call
from conftest import eventually
from conftest import graded
from conftest import human_eval
from conftest import run_code
from conftest import tell
from conftest import ws
from python_env import PythonAction
from python_env import ServerError

# What a busy machine may need besides a step's own time: to fork, replay, judge, and kill.
MARGIN_S = 4


def add(catalogue, name, entry):
    """Put an entry into a catalogue, in which every name stands once."""
    assert name not in catalogue, f"there is a {name!r} already"
    catalogue[name] = entry


def source(code):
    """A case's code, which may stand indented in the catalogue."""
    return dedent(code).strip("\n")


# ── hostile steps ─────────────────────────────────────────────────────────────────────────────────

ATTACKS = {}


def attack(name, code):
    """A step that is answered, earns 0 and harms nobody; the next one is as good as any other."""
    add(ATTACKS, name, source(code))


# How processes of ours write to each other, for those who forge such messages: a worker has its
# line to the server at descriptor 3, and the one to its judge at 4.
FRAME = (
    source(
        """
    import json, os

    def frame(message):
        data = json.dumps(message).encode()
        return len(data).to_bytes(4, 'big') + data
    """
    )
    + "\n"
)

attack("loops for ever", "while True: pass")
attack(
    "catches the interrupt",
    """
    while True:
        try:
            while True: pass
        except BaseException: pass
    """,
)
attack(
    "ignores the interrupt",
    """
    import signal
    signal.signal(2, signal.SIG_IGN)
    while True: pass
    """,
)
attack("hangs in C", "import re\nre.match('(a*)*b', 'a' * 99)")
attack("stops itself", "import os\nos.kill(os.getpid(), 19)")
attack("allocates big", "x = []\nwhile True: x.append(bytearray(10**8))")
attack("allocates small", "x = []\nwhile True: x = [x, x]")
attack("a huge power", "9 ** 9 ** 9")
attack("exits", "import os\nos._exit(0)")
attack("kills itself", "import os\nos.kill(os.getpid(), 9)")
attack("kills its group", "import os\nos.kill(0, 9)")
attack("raises BaseException", "raise BaseException")

attack("floods stdout", "import os\nwhile True: os.write(1, bytes(65536))")
attack("floods stderr by print", "import sys\nwhile True: print('x' * 9999, file=sys.stderr)")
attack("closes every descriptor", "import os\nos.closerange(0, 4096)")
attack("duplicates its descriptor everywhere", "import os\nwhile True: os.dup(3)")
attack("floods its descriptor", "import os\nwhile True: os.write(3, bytes(65536))")
attack("steals its own commands", "import os\nos.read(3, 9)")
attack(
    "shuts its line down",
    """
    import socket
    for fd in (3, 4):
        socket.socket(fileno=fd).shutdown(socket.SHUT_RDWR)
    """,
)

attack(
    "recurses to a crash",
    """
    import sys
    sys.setrecursionlimit(10**9)
    def f(x): return [*map(f, [x])]
    f(1)
    """,
)
attack("nested brackets", "(" * 200 + ")" * 200)
attack("a tower of minuses", "-" * 50_000 + "1")
attack("nested source", "\n".join(" " * n + "if 1:" for n in range(99)) + "\n" + " " * 99 + "1")
attack(
    "a tower of finally",
    "".join(f"{' ' * n}try: pass\n{' ' * n}finally:\n" for n in range(20)) + " " * 20 + "pass",
)
attack("a chain of attributes", "x" + ".x" * 50_000)
attack("a line of 250 kB", "x = " + "1 + " * 60_000 + "1")
attack("a step full of surrogates", "'\\ud800' * 9999 + 1")

attack(
    "1,000 threads",
    """
    import threading, time
    for _ in range(1000):
        threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
    time.sleep(99)
    """,
)
attack(
    "threads that are waited for",
    "import threading\nthreading.Thread(target=threading.Event().wait).start()",
)
attack(
    "a thread that prints for ever",
    """
    import threading, os
    def p():
        while True: os.write(1, b'x' * 99)
    threading.Thread(target=p, daemon=True).start()
    """,
)
attack(
    "threads with descriptor tables of their own",
    """
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    CLONE_FILES = 0x400
    libc.syscall(56, 0x3d0f00 & ~CLONE_FILES, 0, 0, 0, 0)
    libc.unshare(CLONE_FILES)
    raise OSError
    """,
)
attack(
    "leaves an exit handler",
    """
    import atexit, signal, time
    atexit.register(time.sleep, 99)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    """,
)

attack("fills a file", "with open('big', 'wb') as f:\n    while True: f.write(bytes(2**20))")
attack(
    "fills the disk",
    """
    n = 0
    while True:
        n += 1
        with open(str(n), 'wb') as f: f.write(bytes(2**24))
    """,
)
attack(
    "fills the disk with files that have no name any more",
    """
    import os
    kept = []
    while True:
        kept.append(open('big', 'wb', buffering=0))
        os.unlink('big')
        kept[-1].write(bytes(2**24))
    """,
)
attack("fills a folder", "n = 0\nwhile True:\n    n += 1\n    open(str(n), 'w').close()")
attack(
    "a deep tree",
    """
    import os
    for _ in range(1500):
        os.mkdir('d' * 200)
        os.chdir('d' * 200)
    """,
)
attack(
    "locked folders",
    """
    import os
    os.umask(0o777)
    os.makedirs('a/b', exist_ok=True)
    open('c', 'w')
    """,
)
attack(
    "links",
    """
    import os
    os.symlink('/', 'root')
    os.symlink('loop', 'loop')
    os.symlink('..', 'up')
    open('a', 'w')
    os.link('a', 'b')
    """,
)
attack("FIFOs", "import os\nos.mkfifo('pipe')")
attack("names of bytes", "open(b'\\xff\\n', 'w').close()")
attack("moves its own folder", "import os\nd = os.getcwd()\nos.rename(d, d + 'x')")
attack("removes its own folder", "import os\nos.rmdir(os.getcwd())")
attack(
    "swaps its folder for a link",
    """
    import os, threading
    def swap():
        while True:
            try:
                os.mkdir('a')
                os.rename('a', 'b')
                os.symlink('/tmp', 'a')
                os.unlink('a')
                os.rmdir('b')
            except OSError: pass
    threading.Thread(target=swap, daemon=True).start()
    """,
)

# What a worker says of a step that went well, for any of the server's questions.
REPLIES = FRAME + source(
    """
    for n in range(9):
        well = {'exit_code': 0, 'result': '1', 'error': '', 'fault': '', 'refused': False}
        os.write(3, frame({'seq': n, **well}))
    """
)
attack("forges a reply", REPLIES)
attack(
    "forges a reply and shuts its line down",
    REPLIES + "\nimport socket\nsocket.socket(fileno=3).shutdown(socket.SHUT_RDWR)",
)
attack(
    "forges other shapes",
    FRAME + "\nos.write(3, frame([1]) + frame({'seq': 1, 'exit_code': True}))",
)
attack("forges a huge frame", "import os\nos.write(3, b'\\xff' * 99)")
attack(
    "forges deep JSON", "import os\nb = b'[' * 10**6\nos.write(3, len(b).to_bytes(4, 'big') + b)"
)
attack("replies nothing", "import json\njson.dumps = lambda *a, **k: '{}'")
attack(
    "breaks its interpreter",
    "import sys, builtins\nsys.modules.clear()\nvars(builtins).clear()",
)
attack("clears its names", "globals().clear()")


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_step_is_answered_and_harms_nobody(clean, name):
    victim = clean.folder / "victim"
    victim.write_text("whole")
    with clean.session() as bystander, clean.session() as env:
        bystander.reset(**IN_REPL)
        run_code(bystander, "kept = 42")

        begun = time.monotonic()
        result = graded(env, ATTACKS[name], DOUBLE, timeout_s=0.3)
        assert time.monotonic() - begun < 0.3 + MARGIN_S
        assert result.reward == 0.0
        assert not result.done
        assert len(result.observation.stdout) < 2**17

        assert run_code(bystander, "kept").result == "42"
        again = env.step(PythonAction(HONEST))
        assert again.reward == 1.0
        assert again.done
    assert victim.read_text() == "whole"


def test_a_client_that_leaves_during_a_step_leaves_nothing_behind(clean):
    code = "open('mark', 'w').close()\nimport time\ntime.sleep(30)"
    with ws(clean) as peer:
        call(peer, "reset", **DOUBLE)
        tell(peer, "step", code=code, timeout_s=30)
        eventually(lambda: [*clean.tmp.glob("*/*/mark")])
        abort(peer.socket)
    eventually(lambda: not [*clean.tmp.glob("*/*/mark")])


# ── what the code cannot ──────────────────────────────────────────────────────────────────────────

FORBIDDEN = {}


def forbidden(name, code):
    """A step that ends in an OSError, or does not find the module. In its code, {url} and {pid} are
    the server's, {tasks} and {folder} hold its secret, {source} is python_env.py, and {other} is
    another session's folder; so braces of its own are doubled."""
    add(FORBIDDEN, name, source(code))


forbidden("a socket", "import socket; socket.socket()")
forbidden("a pair of datagram sockets", "import socket; socket.socketpair(type=socket.SOCK_DGRAM)")
forbidden("the server", "import urllib.request; urllib.request.urlopen('{url}/health', timeout=1)")
forbidden("a fork", "import os; os.fork()")
forbidden("a program", "import os; os.execv('/bin/true', ['true'])")
forbidden("a subprocess", "import subprocess; subprocess.run(['/bin/true'])")
forbidden("a spawn", "import os; os.posix_spawn('/bin/true', ['true'], {{}})")
forbidden(
    "multiprocessing",
    "import multiprocessing as m; m.get_context('fork').Process(target=print).start()",
)
forbidden(
    "shared memory",
    "from multiprocessing import shared_memory as s; s.SharedMemory(create=True, size=9)",
)
forbidden("its parent's environment", "import os; open(f'/proc/{{os.getppid()}}/environ').read()")
forbidden("the server's environment", "open('/proc/{pid}/environ').read()")
forbidden("its own environment in /proc", "open('/proc/self/environ').read()")
forbidden("the server's descriptors", "import os; os.listdir('/proc/{pid}/fd')")
forbidden("the server's memory", "open('/proc/{pid}/mem', 'rb')")
forbidden("the task file", "open('{tasks}').read()")
forbidden("the task file's folder", "import os; os.listdir('{folder}')")
forbidden("python_env.py", "open('{source}').read()")
forbidden("the module", "import python_env")
forbidden("the folder of all sessions", "import os; os.listdir('..')")
forbidden("another session's folder", "import os; os.listdir('{other}')")
forbidden("another session's file", "open('{other}/private').read()")
forbidden("a file in another session", "open('{other}/new', 'w')")
forbidden(
    "a link to another session's file",
    "import os; os.symlink('{other}/private', 'l'); open('l').read()",
)
forbidden("a hard link to it", "import os; os.link('{other}/private', 'l')")
forbidden("the passwords", "open('/etc/passwd').read()")
forbidden("the root", "import os; os.listdir('/')")
forbidden("a file outside", "open('/tmp/python-env-was-here', 'w')")
forbidden("a file in /dev/shm", "open('/dev/shm/python-env-was-here', 'w')")
forbidden("a file without a name", "import os; os.open('.', os.O_TMPFILE | os.O_RDWR)")
forbidden("a library's source", "import json; open(json.__file__, 'a')")
forbidden("a signal to the server", "import os; os.kill({pid}, 0)")
forbidden("a signal to its parent", "import os; os.kill(os.getppid(), 9)")
forbidden("a signal to all", "import os; os.kill(-1, 9)")


@pytest.fixture(scope="module")
def other(box):
    """The folder of a session with something private in it."""
    with box.session() as session:
        session.reset(**IN_REPL)
        code = f"import os\nopen('private', 'w').write('{CANARY}')\nos.getcwd()"
        yield run_code(session, code).result.strip("'")
        assert run_code(session, "os.listdir()").result == "['private']"
        assert run_code(session, "open('private').read()").result == f"'{CANARY}'"


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_code_cannot_reach(other, env, box, name):
    code = FORBIDDEN[name].format(
        url=box.url,
        pid=box.process.pid,
        tasks=box.tasks,
        folder=box.folder,
        source=python_env.__file__,
        other=other,
    )
    seen = run_code(env, code, timeout_s=5)
    assert seen.exit_code == 1, seen
    last = seen.stderr.strip().rpartition("\n")[2]
    errors = "PermissionError|OSError|ModuleNotFoundError|URLError|ValueError"
    assert re.match(rf"(\w*\.)*({errors})\b", last), last
    assert CANARY not in repr(seen)


def test_the_server_s_memory_is_not_the_interpreter_s(env):
    # The canary stands in two halves in the code, so that the code does not find itself.
    code = f"""
import gc, os, sys
half = {CANARY[:12]!r}
texts = [*os.environ.values(), *sys.argv, *sys.orig_argv]
for found in gc.get_objects():
    if isinstance(found, dict):
        texts += [value for value in found.values() if isinstance(value, str)]
[text for text in texts if half + {CANARY[12:]!r} in text]
"""
    assert run_code(env, code).result == "[]"


def test_the_server_s_environment_is_not_the_interpreter_s(env):
    found = run_code(env, "import os\nsorted(os.environ)").result
    assert "HOME" in found
    assert "CANARY" not in found
    assert "PYTHON_ENV" not in found


def test_the_server_s_modules_are_not_the_interpreter_s(env):
    code = "import sys\n[m for m in sys.modules if m.startswith(('python_env', 'websockets'))]"
    assert run_code(env, code).result == "[]"


# Graded code that keeps what a test hands it, wherever it may, and a later step that looks there.
LEAK = """
import builtins, json, os, sys

def keep(x):
    builtins.seen = sys.seen = f.seen = x
    globals().setdefault('log', []).append(x)
    for place in ('log', '../log', '/tmp/log', os.environ['TMPDIR'] + '/log'):
        try:
            open(place, 'a').write(x)
        except OSError:
            pass
    print(x, flush=True)
    print(x, file=sys.stderr, flush=True)
    for fd in (0, 1, 2, 3, 5, 6, 7, 8):
        try:
            os.write(fd, x.encode())
        except OSError:
            pass

def f(x):
    keep(x)
    END
"""
LOOK = """
import builtins, os, sys
(globals().get('log'), hasattr(builtins, 'seen'), hasattr(sys, 'seen'), os.listdir())
"""
NOTHING = "(None, False, False, [])"


@pytest.mark.parametrize("max_steps", [1, 3])
@pytest.mark.parametrize(
    "ending",
    [
        "return 1",
        "raise ValueError(x)",
        "raise type(x, (Exception,), {})(x)",
        "raise type(x, (KeyError,), {})",
        "raise KeyError(x)",
        "os._exit(3)",
        "sys.exit(x)",
    ],
)
def test_what_a_grading_showed_the_code_never_comes_back(env, ending, max_steps):
    secret = "s3cret" + secrets.token_hex(4)
    tests = f"assert f('{secret}') == 5\nassert 1 + 1 == 2"
    row = {"tests": tests, "entry_point": "f", "max_steps": max_steps}
    result = graded(env, LEAK.replace("END", ending), row)
    assert 0.0 <= result.reward < 1.0
    assert result.done == (max_steps == 1)
    assert secret not in repr(result)
    for _ in range(max_steps - 1):
        assert run_code(env, LOOK).result == NOTHING
    env.reset(**IN_REPL)
    assert run_code(env, LOOK).result == NOTHING


# ── honest code ───────────────────────────────────────────────────────────────────────────────────

SOLVED = {}


def honest(name, tests, code, **row):
    """Code that earns everything; `row`: more of the task."""
    add(SOLVED, name, (source(code), {"tests": source(tests), **row}))


honest(
    "classes",
    """
    s = Stack()
    s.push(1)
    s.push([2])
    assert len(s) == 2
    assert s.pop() == [2]
    assert 1 in s
    assert Stack(s) == Stack([1])
    assert [*Stack([3])] == [3] and Stack([3])[0] == 3
    assert not Stack()
    assert isinstance(s, Stack)
    assert s.size == 1
    assert str(s) == 'Stack[1]'
    """,
    """
    class Stack:
        def __init__(self, items=()): self.items = [*items]
        def push(self, x): self.items.append(x)
        def pop(self): return self.items.pop()
        def __len__(self): return len(self.items)
        def __iter__(self): return iter(self.items)
        def __getitem__(self, i): return self.items[i]
        size = property(__len__)
        def __eq__(self, other): return self.items == other.items
        def __contains__(self, x): return x in self.items
        def __str__(self): return f'Stack{self.items}'
    """,
    prompt="Write the class Stack.",
)
honest(
    "operators",
    """
    a, b = V(1), V(2)
    assert (a + b).x == 3
    assert (a - b).x == -1
    assert (-a).x == -1
    assert (2 * a).x == 2
    assert a < b and a != b and a == V(1)
    assert sorted([b, a])[0] is a
    assert {a: 1}[V(1)] == 1
    """,
    """
    class V:
        def __init__(s, x): s.x = x
        def __add__(s, o): return V(s.x + o.x)
        def __sub__(s, o): return V(s.x - o.x)
        def __neg__(s): return V(-s.x)
        def __rmul__(s, k): return V(k * s.x)
        def __lt__(s, o): return s.x < o.x
        def __eq__(s, o): return s.x == o.x
        def __hash__(s): return hash(s.x)
    """,
    prompt="Write the class V.",
)
honest(
    "linked nodes",
    """
    n = Node(1, Node(2))
    n.next.next = Node(3)
    assert total(n) == 6
    assert n.next.next.value == 3
    """,
    """
    class Node:
        def __init__(s, value, next=None): s.value, s.next = value, next
    def total(n): return n.value + total(n.next) if n else 0
    """,
    prompt="Write the class Node and total(n).",
)
honest(
    "mutated arguments",
    """
    a, d, s = [3, 1, 2], {'k': [1]}, {1}
    f(a, d, s)
    assert a == [1, 2, 3]
    assert d == {'k': [1, 9], 'n': None}
    assert s == {1, 7}
    """,
    "def f(a, d, s): a.sort(); d['k'].append(9); d['n'] = None; s.add(7)",
)
honest(
    "identity",
    """
    a = [1]
    b = [a, a]
    assert f(a) is a
    assert g(b) == [[1, 5], [1, 5]]
    assert b[0] is b[1] is a
    assert a == [1, 5]
    """,
    """
    def f(a): return a
    def g(b): b[0].append(5); return b
    """,
)
honest(
    "identity in what is returned, and callbacks within a call",
    """
    inner, outer = [1], {'k': (2**99, -0.0, '\\ud800', b'\\xff', {3}, None)}
    result = f([inner, inner], outer, c=lambda x: x + 1)
    assert result == ([[1, outer]] * 2, outer, True, None, 8)
    assert result[0][0] is result[0][1] is inner
    assert result[1] is outer
    assert inner == [1, outer]
    assert repr(outer['k'][1]) == '-0.0'
    """,
    "def f(a, b, **more): return (a, b, a[0] is a[1], a[0].append(b), more['c'](7))",
)
honest(
    "generators",
    """
    g = count(3)
    assert next(g) == 3
    assert next(g) == 4
    assert [x for _, x in zip('ab', g)] == [5, 6]
    assert list(count(0, 2)) == [0, 1]
    assert sum(count(0, 4)) == 6
    """,
    """
    def count(a, b=None):
        while a != b:
            yield a
            a += 1
    """,
)
honest(
    "exact types",
    """
    values = [1, 1.5, True, None, 'a\\ud800', b'\\xff', 2j, (1, (2,)), {1, 2}, frozenset([3]),
              {(1, 2): [{'a': {1}}]}, 2**200, -0.0, 1e400, range(3), bytearray(b'x'), int, KeyError]
    for v in values:
        assert f(v) == v
        assert type(f(v)) is type(v)
        assert repr(f(v)) == repr(v)
    assert f(float('nan')) != f(float('nan'))
    """,
    "def f(x): return x",
)
honest(
    "the standard library's containers",
    """
    from collections import Counter, defaultdict, deque, OrderedDict
    assert f('aab') == Counter('aab') == {'a': 2, 'b': 1}
    assert isinstance(f(''), Counter)
    assert g([1, 2, 3]) == {1: [1, 3], 0: [2]}
    assert j(deque([1], 3)) == deque([1, 2])
    assert list(k()) == ['z', 'a']
    """,
    """
    from collections import *
    def f(s): return Counter(s)
    def g(xs):
        out = defaultdict(list)
        for x in xs: out[x % 2].append(x)
        return out
    def j(q): q.append(2); return q
    def k(): return OrderedDict(z=1, a=2)
    """,
)
honest(
    "the standard library's numbers and dates",
    """
    from decimal import Decimal
    from fractions import Fraction
    import datetime as d
    assert h(d.date(2024, 2, 28)) == d.date(2024, 2, 29)
    assert h(d.datetime(2024, 1, 1, 5, 6)) - d.datetime(2024, 1, 1, 5, 6) == d.timedelta(1)
    assert i(Decimal('0.1')) == Decimal('0.3')
    assert i(Fraction(1, 9)) == Fraction(1, 3)
    """,
    """
    import datetime
    def h(x): return x + datetime.timedelta(days=1)
    def i(x): return x * 3
    """,
)
honest(
    "named tuples, enums and dataclasses",
    """
    assert f(1, 2) == (1, 2)
    assert f(3, 4).x == 3
    assert f(1, 2)._fields == ('x', 'y')
    assert Color.RED.value == 1
    assert Color(2) == Color.BLUE
    assert P(1) == P(1)
    assert P(1).x == 1
    """,
    """
    import collections, enum, dataclasses
    f = collections.namedtuple('P', 'x y')
    class Color(enum.Enum): RED, BLUE = 1, 2
    @dataclasses.dataclass
    class P: x: int
    """,
    prompt="Write f, the class Color and the class P.",
)
honest(
    "callbacks",
    """
    seen = []
    assert f(seen.append, [1, 2]) == [None, None]
    assert seen == [1, 2]
    assert f(lambda x: x * 2, iter([3])) == [6]
    assert f(str, range(2)) == ['0', '1']
    assert f(lambda g: g, [4])[0] == 4
    assert compose(lambda x: x + 1, lambda x: x * 2)(5) == 11
    def bad(x): raise KeyError(x)
    assert safe(bad, 'k') == "KeyError('k')"
    """,
    """
    def f(g, xs): return [g(x) for x in xs]
    def compose(a, b): return lambda x: a(b(x))
    def safe(g, x):
        try: g(x)
        except KeyError as e: return repr(e)
    """,
)
honest(
    "exceptions",
    """
    def raised(kind, x):
        try: f(x)
        except kind as e: return e.args
    assert raised(ValueError, 1) == ('bad', 1)
    assert raised(LookupError, 2) == ('k',)
    assert raised(Own, 3) == ('mine',)
    assert raised(Exception, 3)
    try: f(3)
    except Own as e:
        assert e.code == 7
        assert isinstance(e, ValueError)
        assert 'mine' in str(e)
    """,
    """
    class Own(ValueError): code = 7
    def f(x):
        if x == 1: raise ValueError('bad', x)
        if x == 2: raise KeyError('k')
        raise Own('mine')
    """,
    prompt="Write f and the class Own.",
)
honest(
    "setup",
    """
    p = Pair(1, 2)
    assert swap(p).a == 2
    assert BASE == 5
    assert shifted(1) == 6
    """,
    """
    def swap(p): return Pair(p.b, p.a)
    def shifted(x): return BASE + x
    """,
    setup="BASE = 5\nclass Pair:\n    def __init__(s, a, b): s.a, s.b = a, b",
)
honest(
    "helpers that the candidate cannot replace",
    "assert double(f(2)) == 4",
    "def f(x): return x\ndouble = abs = print",
    helpers="def double(x): return 2 * x",
    entry_point="f",
)
honest(
    "a builtin's name",
    "assert sum([1, 2]) == 30",
    "def sum(xs): return xs and 10 * (xs[0] + xs[1])",
    entry_point="sum",
)
honest(
    "unittest's and math's helpers",
    """
    import math, unittest
    t = unittest.TestCase()
    assert math.isclose(f(2), 2**.5)
    t.assertEqual(f(4), 2)
    t.assertAlmostEqual(f(9), 3)
    with t.assertRaises(ValueError): f(-1)
    assert abs(f(2) - 1.4142) < 1e-3
    """,
    """
    def f(x):
        if x < 0: raise ValueError
        return x ** .5
    """,
)
honest(
    "decorated, curried and partial",
    """
    assert fib(80) == 23416728348467685
    assert add(1)(2) == 3
    assert inc(1) == 2
    """,
    """
    import functools
    @functools.cache
    def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
    add = lambda a: lambda b: a + b
    inc = functools.partial(int.__add__, 1)
    """,
)
honest(
    "big data",
    """
    assert f([[i] for i in range(20000)])[-1] == [19999]
    assert len(g(300000)) == 300000
    """,
    """
    def f(x): return x
    def g(n): return 'x' * n
    """,
)


honest(
    "a test file that ends as test files do",
    """
    import sys, unittest
    class TestF(unittest.TestCase):
        def test_even(self): self.assertEqual(f(4), 8)
        def test_odd(self): self.assertEqual(f(5), 10)
        @unittest.skip("not ours")
        def test_other(self): self.fail()
    if __name__ == "__main__":
        unittest.main()
    """,
    "def f(x): return 2 * x",
)
honest(
    "a pytest file that runs itself",
    """
    import pytest, sys
    def test_even(): assert f(4) == 8
    sys.exit(pytest.main([__file__, "-q"]))
    """,
    "def f(x): return 2 * x",
)
honest(
    "asynchronous methods of a unittest class",
    """
    import unittest
    class TestF(unittest.IsolatedAsyncioTestCase):
        async def test_even(self): self.assertEqual(await f(4), 8)
    """,
    "async def f(x): return 2 * x",
)
honest(
    "a base's method, called explicitly",
    """
    class Loud(Greeter):
        def greet(self): return super().greet() + "!"
    assert Loud().greet() == "hi!"
    p = Polite()
    assert p.greet() == "good day"
    assert Greeter.greet(p) == "hi"
    assert super(Polite, p).greet() == "hi"
    """,
    """
    class Greeter:
        def greet(self): return "hi"
    class Polite(Greeter):
        def greet(self): return "good day"
    """,
)
honest(
    "an error of a module that the tests do not know",
    """
    try:
        f("[a]\\n[a]\\n")
        assert False
    except Exception as error:
        assert type(error).__name__ == "DuplicateSectionError"
    """,
    """
    import configparser
    def f(text): configparser.ConfigParser().read_string(text)
    """,
)
honest(
    "a class that only a string names",
    """
    stack = globals()["Stack"]()
    stack.push(1)
    assert stack.pop() == 1
    """,
    """
    class Stack:
        def __init__(self): self.items = []
        def push(self, item): self.items.append(item)
        def pop(self): return self.items.pop()
    """,
    entry_point="Stack",
)
honest(
    "a sequence by collections.abc",
    """
    from collections.abc import Sequence
    r = Row([1, 2])
    assert isinstance(r, Sequence)
    assert list(reversed(r)) == [2, 1]
    """,
    """
    from collections.abc import Sequence
    class Row(Sequence):
        def __init__(self, items): self._items = items
        def __getitem__(self, i): return self._items[i]
        def __len__(self): return len(self._items)
    """,
)

honest(
    "the tests put something in the place of subprocess",
    """
    import unittest
    from unittest.mock import patch, MagicMock
    class T(unittest.TestCase):
        @patch("subprocess.run")
        def test_ok(self, mock_run):
            mock_run.return_value = MagicMock(returncode=0, stdout="hello")
            self.assertEqual(f(["ls"]), "hello")
            mock_run.assert_called_once_with(["ls"], capture_output=True, text=True)
        def test_after(self):
            with patch("subprocess.run", side_effect=OSError("no")):
                with self.assertRaises(OSError): f(["x"])
    """,
    """
    import subprocess
    def f(cmd):
        r = subprocess.run(cmd, capture_output=True, text=True)
        return r.stdout
    """,
)
honest(
    "the tests put something in the place of open()",
    """
    import unittest
    from unittest.mock import patch, mock_open
    class T(unittest.TestCase):
        def test_ok(self):
            with patch("builtins.open", mock_open(read_data="a\\nb\\n")) as m:
                self.assertEqual(f("x.txt"), 2)
                m.assert_called_once_with("x.txt")
        @patch("builtins.open", new_callable=mock_open, read_data="a b")
        def test_two(self, m):
            self.assertEqual(g("y"), "a b")
        @patch("builtins.open", new_callable=mock_open)
        def test_write(self, m):
            h("out", "text")
            m.assert_called_with("out", "w")
            m().write.assert_called_once_with("text")
    """,
    """
    def f(p):
        with open(p) as fh: return sum(1 for _ in fh)
    def g(p):
        with open(p) as fh: return fh.read()
    def h(p, t):
        with open(p, "w") as fh: fh.write(t)
    """,
)
honest(
    "the tests put something in the place of of os and os.path",
    """
    from unittest import mock
    import os
    @mock.patch("os.path.exists", return_value=True)
    @mock.patch("os.listdir", return_value=["a.txt", "b.py"])
    def test_it(listdir, exists):
        assert f("/nowhere") == ["a.txt"]
        listdir.assert_called_once_with("/nowhere")
    def test_object():
        with mock.patch.object(os, "getcwd", return_value="/x"):
            assert g() == "/x"
        old = os.getcwd
        os.getcwd = lambda: "/y"
        assert g() == "/y"
        os.getcwd = old
        assert g() != "/y"
    """,
    """
    import os
    def f(p):
        if not os.path.exists(p): return None
        return [n for n in os.listdir(p) if n.endswith(".txt")]
    def g(): return os.getcwd()
    """,
)
honest(
    "the tests put something in the place of a function of the code's own",
    """
    from unittest.mock import patch
    with patch("__main__.fetch", return_value={"n": 3}) as m:
        assert f(1) == 4
        m.assert_called_once_with(1)
    """,
    """
    def fetch(x): raise OSError
    def f(x): return fetch(x)["n"] + 1
    """,
)
honest(
    "the tests put something in the place of urlopen()",
    """
    import unittest
    from unittest.mock import patch, MagicMock
    class T(unittest.TestCase):
        @patch("urllib.request.urlopen")
        def test_ok(self, urlopen):
            response = MagicMock()
            response.read.return_value = b'{"a": 1}'
            response.__enter__.return_value = response
            urlopen.return_value = response
            self.assertEqual(f("http://x"), {"a": 1})
    """,
    """
    import json, urllib.request
    def f(u):
        with urllib.request.urlopen(u) as r: return json.loads(r.read())
    """,
)
honest(
    "the tests put something in the place of random",
    """
    from unittest.mock import patch
    with patch("random.randrange", side_effect=[3, 5]): assert f() == 8
    with patch("random.sample", return_value=[1]): assert g() == [1]
    """,
    """
    import random
    def f(): return random.randrange(9) + random.randrange(9)
    def g(): return random.sample(range(9), 1)
    """,
)
honest(
    "the tests put something in the place of a method of a class",
    """
    from unittest.mock import patch
    with patch("pathlib.Path.read_text", return_value="hi"): assert f("x") == "hi"
    """,
    """
    from pathlib import Path
    def f(p): return Path(p).read_text()
    """,
)
honest(
    "the tests put something in the place of what is not there, or their own",
    """
    from unittest.mock import patch
    def helper(): return 3
    with patch("__main__.helper", return_value=5):
        assert total(helper()) == 10
    with patch("builtins.magic", create=True, return_value=3):
        assert conjure() == 3
    with patch("__main__.Config.TIMEOUT", 5):
        assert timeout() == 5
    assert timeout() == 3
    """,
    """
    class Config:
        TIMEOUT = 3
    def timeout(): return Config.TIMEOUT
    def total(x): return 2 * x
    def conjure(): return magic()
    """,
)
honest(
    "functions and texts of the tests' are timed",
    """
    import timeit
    assert timeit.timeit(lambda: f(2), number=3) < 5
    assert timeit.timeit("f(2)\\nf(3)", setup="x = 1", number=3, globals=globals()) < 5
    assert min(timeit.repeat(f, number=1, repeat=2)) < 5
    """,
    "def f(x=1): return 3 * x",
)
honest(
    "abstract classes are what they say",
    """
    from abc import ABC
    assert issubclass(Shape, ABC)
    assert isinstance(Square(2), Shape) and isinstance(Square(2), ABC)
    assert Square(2).area() == 4
    """,
    """
    from abc import ABC, abstractmethod
    class Shape(ABC):
        @abstractmethod
        def area(self): ...
    class Square(Shape):
        def __init__(self, side): self.side = side
        def area(self): return self.side ** 2
    """,
)
honest(
    "functions in a class without self",
    """
    assert Utils.version() == '1'
    assert Utils.add(1, 2) == Utils.add(a=1, b=2) == 3
    """,
    """
    class Utils:
        def version(): return '1'
        def add(a, b): return a + b
    """,
)
honest(
    "a decorator with the name of a module",
    """
    @trace
    def g(a, b): return a + b
    assert g(1, 2) == 3
    """,
    """
    def trace(f): return lambda *a: f(*a)
    """,
)
honest(
    "the list that came before, as it is now",
    """
    a = add(1)
    b = add(2)
    assert a is b and a == [1, 2]
    a.append(3)
    assert add(4) is a and a == [1, 2, 3, 4]
    assert list(windows([1, 2, 3])) == [[3], [3], [3]]
    """,
    """
    kept = []
    def add(x):
        kept.append(x)
        return kept
    def windows(xs):
        window = []
        for x in xs:
            window[:] = [x]
            yield window
    """,
)
honest(
    "cases that inherit from one another",
    """
    import unittest
    class Mixed:
        def test_mixed(self): self.assertTrue(is_even(0))
    class Base(unittest.TestCase):
        def test_callable(self): self.assertTrue(callable(is_even))
    class TestValues(Mixed, Base):
        def test_even(self): self.assertTrue(is_even(2))
    @unittest.skip("not today")
    class TestLater(unittest.TestCase):
        def test_never(self): self.fail()
    """,
    "def is_even(n): return n % 2 == 0",
)


def test_numbers_of_numpy_are_what_they_are(env):
    pytest.importorskip("numpy")
    tests = """
    import json
    import numpy as np
    assert f(4).dtype == np.float32 and isinstance(f(4), np.float32)
    assert f(4) == 2.0 and round(float(f(4)), 2) == 2.0
    assert isinstance(total([1, 2]), np.integer) and total([1, 2]).item() == 3
    assert not isinstance(total([1, 2]), int) and str(total([1, 2])) == '3'
    assert np.any([total([0])]) == False and f(0).shape == ()
    """
    code = """
    import numpy as np
    def f(x): return np.sqrt(np.float32(x))
    def total(xs): return np.sum(xs)
    """
    result = graded(env, dedent(code), {"tests": dedent(tests)})
    assert result.reward == 1.0, result


def test_an_array_that_is_changed_in_place_travels_back(env):
    pytest.importorskip("numpy")
    tests = """
    import numpy as np
    a = np.arange(6).reshape(2, 3)
    assert f(a) is None
    assert a.tolist() == [[0, 2, 4], [6, 8, 10]]
    """
    result = graded(env, "def f(a): a *= 2", {"tests": dedent(tests)})
    assert result.reward == 1.0, result


@pytest.mark.parametrize("max_steps", [1, 20])
@pytest.mark.parametrize("name", SOLVED)
def test_honest_code_is_solved(env, name, max_steps):
    code, row = SOLVED[name]
    result = graded(env, code, row, max_steps=max_steps)
    assert result.reward == 1.0, result
    assert result.done
    assert result.observation.tests_passed == result.observation.tests_total


POOR_BODIES = ("    pass\n", "    raise ValueError\n", "    return True\n", "    return []\n")


def play_human_eval(box, rows):
    """Every reference solution in one session, and a poor one for each fourth row besides."""
    verdicts = []
    with box.session() as env:
        for number, row in rows:
            result = graded(env, row["prompt"] + row["canonical_solution"], row)
            verdicts.append((row["task_id"], result.reward, result.done))
            if number % 4 == 0:
                body = POOR_BODIES[number // 4 % len(POOR_BODIES)]
                worse = graded(env, row["prompt"] + body, row)
                assert worse.reward < 1.0, row["task_id"]
                assert not worse.done, row["task_id"]
    return verdicts


def test_all_canonical_solutions_of_human_eval_are_solved_and_poor_ones_are_not(clean):
    numbered = [*enumerate(human_eval())]
    with ThreadPoolExecutor(2) as pool:
        halves = [
            pool.submit(play_human_eval, clean, numbered[::2]),
            pool.submit(play_human_eval, clean, numbered[1::2]),
        ]
    verdicts = halves[0].result() + halves[1].result()
    assert len(verdicts) == 164
    assert [verdict for verdict in verdicts if verdict[1:] != (1.0, True)] == []


# ── the judge ─────────────────────────────────────────────────────────────────────────────────────

# What is told, the tests, the code, and its reward.
CREDITS = [
    (
        "the share of the asserts that held",
        "assert f(1) == 1\nassert f(2) == 4\nassert f(3) == 9\nassert f(4) == 16",
        "def f(x): return x",
        1 / 4,
    ),
    (
        "an assert that raises has failed, and the next one runs",
        "assert f(2) == 4\nassert f(1) == 1",
        "def f(x): return x / (2 - x)",
        1 / 2,
    ),
    (
        "elsewhere an exception ends the run, and what was not reached has failed",
        "assert f(1)\nf(2)\nassert f(1)",
        "def f(x): return 1 // (2 - x)",
        1 / 2,
    ),
    ("every execution counts", "for i in range(5): assert f(i) == 0", "def f(x): return x // 4", 0),
    ("what cannot be called", "assert f(1)\nassert f(2)", "f = 5", 0),
    ("what is not defined", "assert f(1)\nassert f(2)", "g = 5", 0),
    ("what is no Python", "assert f(1)\nassert f(2)", "syntax error", 0),
    ("a falsy result", "assert f(1)\nassert f(0)", "def f(x): return x", 1 / 2),
    (
        "an assert that need not run does not count against the code",
        "if f(1):\n    assert f(1)\nelse:\n    assert f(1) == 0",
        "def f(x): return 0",
        1,
    ),
    ("no assert was ever executed", "for x in f(0): assert x", "def f(x): return []", 0),
    (
        "a handler of the tests does not hide a failure",
        "try:\n    assert f(0)\nexcept: pass\nassert f(1)",
        "def f(x): return x",
        1 / 2,
    ),
    (
        "an assert in a loop that did not end",
        "for i in range(5): assert f(i) >= 0 and f(i + 1) != 4\nassert f(1)",
        "def f(x):\n    if x == 3: raise SystemError\n    return x",
        1 / 2,
    ),
    (
        "an assert in a loop that an exception elsewhere ended",
        "for i in range(5):\n    assert f(1) == 1\n    f(i)\nassert f(1)",
        "def f(x): return x // (x != 3)",
        0,
    ),
    (
        "an assert in a loop of a function that an exception ended",
        "def check(f):\n    for i in range(5):\n        assert f(1) == 1\n        f(i)\ncheck(f)",
        "def f(x): return x // (x != 3)",
        0,
    ),
    (
        "an assert in a while loop that an exception ended",
        "assert f(1) == 1\nwhile True:\n    assert f(2) == 2\n    f(3)",
        "def f(x): return x // (x != 3)",
        1 / 2,
    ),
]


@pytest.mark.parametrize(
    "tests, code, reward", [case[1:] for case in CREDITS], ids=[case[0] for case in CREDITS]
)
def test_partial_credit_is_the_share_of_asserts_that_always_held(env, tests, code, reward):
    result = graded(env, code, {"tests": tests, "entry_point": "f"})
    assert result.reward == pytest.approx(reward)
    assert result.done == (reward == 1)


def test_gain_pays_each_step_s_improvement_over_the_best(env):
    tests = "assert f() > 0\nassert f() > 1\nassert f() > 2\nassert f() > 3"
    env.reset(tests=tests, reward="gain")
    rewards = [env.step(PythonAction(f"def f(): return {n}")).reward for n in (1, 3, 2, 3, 4)]
    assert rewards == [0.25, 0.5, 0.0, 0.0, 0.25]


def test_max_steps_ends_an_unsolved_episode(env):
    env.reset(**DOUBLE, max_steps=2)
    assert [env.step(PythonAction("1")).done for _ in range(2)] == [False, True]
    with pytest.raises(ServerError, match="over"):
        env.step(PythonAction(HONEST))


def test_an_only_step_is_seen_and_judged(env):
    result = graded(env, "def f(x): return 8\nprint('seen')", DOUBLE, max_steps=1)
    assert result.reward == 0.5
    assert result.done
    assert result.observation.stdout == "seen\n"


def test_an_episode_with_tests_ends_after_twenty_steps(env):
    env.reset(**DOUBLE)
    ends = [env.step(PythonAction("1")).done for _ in range(20)]
    assert ends == [False] * 19 + [True]


def test_the_repl_never_ends(env):
    assert env.state().max_steps is None
    assert not any(env.step(PythonAction("1")).done for _ in range(30))


def test_one_seed_gives_one_sequence_and_another_gives_another(env):
    code = "import random\nprint([random.random() for _ in range(3)], hash('text'))"
    outputs = [graded(env, code, DOUBLE, seed=seed).observation.stdout for seed in (7, 7, 8)]
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.parametrize("max_steps", [1, 20])
def test_a_seed_decides_what_is_judged_too(env, max_steps):
    code = "import random\nf = [random.random() for _ in range(3)].__repr__\nprint(f())"
    value = graded(env, code, DOUBLE, seed=7).observation.stdout.strip()
    row = {"tests": f"assert f() == {value!r}", "max_steps": max_steps}
    assert graded(env, code, row, seed=7).reward == 1.0
    assert graded(env, code, row, seed=8).reward == 0.0


@pytest.mark.parametrize(
    "row, complaint",
    [
        ({"tests": "f(1)"}, "no assert"),
        ({"tests": "assert 1"}, "no name"),
        ({"tests": "assert ("}, "not (parse|compile)"),
        ({"tests": "assert f()", "seed": -1}, "seed"),
        ({"tests": 5}, "tests"),
        ({"task_id": "secre"}, "secret"),
        ({"tests": "assert f()", "reward": "best"}, "reward"),
        ({"tests": "assert f()", "max_steps": 0}, "max_steps"),
    ],
    ids=str,
)
def test_a_task_that_cannot_measure_is_refused_and_the_session_goes_on(env, row, complaint):
    with pytest.raises(ServerError, match=complaint) as refused:
        env.reset(**row)
    assert refused.value.code == "VALIDATION_ERROR"
    assert graded(env, HONEST, DOUBLE).reward == 1.0


@pytest.mark.parametrize(
    "tests",
    [
        "import os; os._exit(0)",
        "import os; os.kill(os.getpid(), 9)",
        "import os; os.closerange(3, 128)",
    ],
)
def test_a_judge_that_dies_gives_no_reward_but_an_error(env, tests):
    env.reset(**{**DOUBLE, "tests": f"assert f(1)\n{tests}"})
    with pytest.raises(ServerError, match="no reward") as failed:
        env.step(PythonAction(HONEST))
    assert failed.value.code == "EXECUTION_ERROR"
    assert graded(env, HONEST, DOUBLE).reward == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "tests",
    [
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import re\nre.match('(a*)*b', 'a' * 99)",
    ],
    ids=["in Python", "in C"],
)
def test_tests_that_loop_end_with_the_step_s_time(env, tests):
    row = {**DOUBLE, "tests": f"assert f(1)\n{tests}"}
    result = graded(env, HONEST, row, timeout_s=0.3)
    assert result.reward < 1.0
    assert "time was up" in result.observation.feedback


def test_what_the_tests_import_is_there_before_they_run(env):
    # So that a fork of the judge, in which most tests of unittest run, has nothing to read first.
    tests = """
        import sys
        was_there = "unittest.mock" in sys.modules
        import unittest.mock
        sys.setrecursionlimit(3_000)  # so that they run in a fork
        assert f(1)
        assert was_there
    """
    assert graded(env, HONEST, {**DOUBLE, "tests": source(tests)}).reward == 1.0


def test_tests_are_shut_in_too(env):
    tests = f"""
import os
assert f(1)
try:
    os.fork()
except OSError:
    assert f(1)
open({python_env.__file__!r})
"""
    result = graded(env, HONEST, {**DOUBLE, "tests": tests})
    # Both asserts held, but the tests did not run to their end, and that costs one.
    assert result.reward == 0.5
    assert not result.done
    assert "PermissionError" in result.observation.feedback


# ── judged inside ─────────────────────────────────────────────────────────────────────────────────

# Tests that cannot be judged apart, because they change or watch the process that the code is in.
INSIDE = {
    "a working directory": (
        """
        import os
        os.mkdir('new')
        os.chdir('new')
        assert f().endswith('/new')
        """,
        "import os\ndef f(): return os.getcwd()",
    ),
    "a seed": (
        """
        import random
        random.seed(7)
        wanted = random.random()
        random.seed(7)
        assert f() == wanted
        """,
        "import random\ndef f(): return random.random()",
    ),
    "the environment": (
        "import os\nos.environ['MODE'] = 'test'\nassert f() == 'test'",
        "import os\ndef f(): return os.environ.get('MODE')",
    ),
}


@pytest.mark.parametrize("name", INSIDE)
def test_a_row_may_have_its_tests_run_where_the_code_ran_and_that_is_said(env, name):
    tests, code = INSIDE[name]
    row = {"tests": source(tests), "entry_point": "f"}
    inside = graded(env, code, row, judge="inside")
    assert inside.reward == 1.0
    assert "inside" in inside.observation.feedback
    apart = graded(env, code, row)
    assert apart.reward < 1.0
    assert "inside" not in apart.observation.feedback


def test_tests_that_run_inside_are_gone_with_their_step(env):
    env.reset(tests="import builtins\nbuiltins.seen = 5\nassert f() == 0", judge="inside")
    for _ in range(2):
        seen = env.step(
            PythonAction("import builtins\ndef f(): return 1\nhasattr(builtins, 'seen')")
        )
        assert seen.observation.result == "False"
        assert seen.reward == 0.0


# ── forgeries ─────────────────────────────────────────────────────────────────────────────────────

# Kinds of tests. Against each of them, every forgery that brings no tests of its own must fail.
KINDS = {
    "equality": """
        assert f(3) == 1009
        assert [f(5)] == [25013] and {f(5): 1} == {25013: 1}
    """,
    "tolerance": """
        import math
        assert abs(f(3) - 1.41421356) < 1e-6
        assert math.isclose(f(5), 2.23606797, rel_tol=1e-6)
    """,
    "shape": """
        r = f([3, 1, 2])
        assert len(r) == 7 and sorted(r)[0] == 11
        assert 12345 in r and r[-1] == 77 and r == [77] * 7
        assert isinstance(r, list) and all(x > 5 for x in r)
    """,
}
KINDS = {name: source(tests) for name, tests in KINDS.items()}
FORGERIES = {}


def forgery(name, code, tests=None, **row):
    """Code that earns less than everything: against every kind of tests, or against its own."""
    if tests:
        rows = [{**row, "tests": source(tests)}]
    else:
        rows = [{"entry_point": "f", **row, "tests": tests} for tests in KINDS.values()]
    add(FORGERIES, name, (source(code), rows))


AGREE = "lambda *a, **k: True"
# The body of a class whose objects agree to everything.
AGREEABLE = """
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = lambda *a: True
    __sub__ = __rsub__ = __add__ = __radd__ = __abs__ = __mod__ = __neg__ = lambda s, *a: s
    __len__ = lambda s: 7
    __hash__ = lambda s: hash(25013)
    __getitem__ = lambda s, i: s
"""

forgery(
    "an object that agrees to all",
    f"""
class L:
{AGREEABLE}
    __iter__ = lambda s: iter([s] * 7)
    __float__ = lambda s: 0.0
    __getattr__ = lambda s, n: s
    __call__ = lambda s, *a, **k: s
def f(x): return L()
""",
)
for base in (float, int, str, list, dict, tuple, set, bytes, complex, Exception):
    name = base.__name__
    forgery(f"a lying {name}", f"class L({name}):\n{AGREEABLE}\ndef f(x): return L()")
forgery(
    "a list whose methods echo what they are asked",
    """
    class L(list):
        count = index = __getitem__ = __contains__ = lambda self, x: x
    def f(x): return L()
    """,
    tests="assert f(1).count(2) == 2\nassert 5 in f(1)",
)
forgery(
    "a list that seems sorted item by item",
    """
    class L(list):
        __getitem__ = lambda self, i: L() if isinstance(i, slice) else 0
    def f(x): return L([3, 1, 2])
    """,
    tests="""
    r = f(1)
    assert isinstance(r, list)
    assert sorted(r) == [1, 2, 3]
    assert all(a <= b for a, b in zip(r, r[1:]))
    assert all(r[i] <= r[i + 1] for i in range(len(r) - 1))
    """,
)
forgery(
    "a dict whose items and length are not its keys",
    """
    class D(dict):
        items = lambda self: [("a", 2), ("b", 1)]
        __len__ = lambda self: 2
        keys = lambda self: {"a": 0, "b": 0}.keys()
    def f(x): return D()
    """,
    tests="""
    assert len(f(1)) == 2
    assert sorted(f(1).keys()) == ["a", "b"]
    assert [k for k, _ in f(1).items()] == ["a", "b"]
    """,
)
forgery(
    "a method of the asked class that gives its own object in the place of a number",
    """
    class Total:
        def __init__(self): self.sum = 0
        def add(self, x): return self
        def get(self): return self
        __eq__ = lambda *_: True
        __gt__ = __contains__ = lambda *_: True
    """,
    tests="""
    t = Total()
    t.add(2)
    t.add(1).add(1)
    assert t.get() == 4
    n = t.get()
    assert n == 4
    assert 7 in t.get()
    assert [t.get()] == [4]
    """,
    prompt="class Total",
)
forgery(
    "sets what a test's object keeps to itself",
    """
    def f(box, function):
        for target in (box, function):
            for name in ("_rows", "check", "__code__", "__class__"):
                try: setattr(target, name, None)
                except AttributeError: pass
        box.__dict__["_rows"] = None
        box.__dict__["check"] = None
        box._seen = 1
        return box._seen
    """,
    tests="""
    class Box:
        def __init__(self): self._rows = [1]
        def check(self): return self._rows
    box = Box()
    assert f(box, lambda x: x) == 1
    try: assert box.check() is None
    except TypeError: assert False
    """,
)
forgery(
    "marks a function that is not the tests' own",
    """
    def f(function):
        function.mark = 5
        return 1
    """,
    tests="""
    import json
    try: f(json.dumps)
    except AttributeError: pass
    assert f(lambda x: x) == 1
    assert hasattr(json.dumps, "mark")
    """,
)
forgery(
    "lists of a class of its own that are all equal",
    """
    class L(list):
        __eq__ = __le__ = lambda *_: True
        __ne__ = lambda *_: False
    def f(x): return L([x])
    """,
    tests="assert f(1) == f(2)\nassert not f(1) != f(3)\nassert f(7) <= f(6)",
)
forgery(
    "a function that gives an object of the asked list's class, which agrees to all",
    """
    class Stack(list):
        __eq__ = __contains__ = lambda *_: True
        __add__ = lambda self, other: other
    def f(x): return Stack()
    """,
    tests="""
    assert Stack() is not None
    assert f(2) == [2]
    assert 2 in f(2)
    assert f(2) + [3] == [3]
    """,
    prompt="class Stack",
)
forgery(
    "a set of a class that the tests know, which agrees where a function gave it",
    """
    class Tags(set):
        issubset = issuperset = isdisjoint = __le__ = __eq__ = lambda *_: True
        union = intersection = __and__ = lambda _, other: other
    def f(x): return Tags([99])
    """,
    tests="""
    assert Tags() is not None
    assert f(2).issubset({2})
    assert f(2) == {2}
    assert f(2).intersection({2}) == {2}
    assert f(2) & {2} == {2}
    """,
    prompt="class Tags",
)
forgery(
    "a list that says it holds a namespace with a `count` of its own",
    """
    from types import SimpleNamespace
    class L(list): pass
    def f(x):
        frame = __import__("sys")._getframe()
        while "OPERATIONS" not in frame.f_globals: frame = frame.f_back
        held = SimpleNamespace(count=lambda x: x)
        frame.f_globals["OPERATIONS"]["@content"] = lambda _: (held,)
        return L()
    """,
    tests="assert isinstance(f(1), list)\nassert f(1).count(2) == 2",
)
forgery(
    "a list with properties that give what echoes",
    """
    class L(list):
        count = property(lambda _: lambda x: x)
        index = staticmethod(lambda x: x)
    def f(x): return L()
    """,
    tests="assert isinstance(f(1), list)\nassert f(1).count(2) == 2\nassert f(1).index(3) == 3",
)
forgery(
    "lists whose operators give a value of the code's liking",
    """
    class L(list):
        __add__ = __iadd__ = lambda self, other: [1, 2]
    def f(x): return L()
    """,
    tests="assert f(1) + f(2) == [1, 2]\nx = f(1)\nx += f(2)\nassert x == [1, 2]",
)
forgery(
    "a set that C code takes for empty",
    """
    class L(set): pass
    def f(x): return [L, L([97, 98, 99])][1]
    def kinds(): return L
    """,
    tests="""
    assert kinds()
    assert len(f(1)) == 3
    assert set(f(1)) <= {1, 2, 3}
    assert {1, 2, 3}.issuperset(f(1))
    """,
)
forgery(
    "a list that the list of a class of the tests' takes for empty",
    "class L(list): pass\ndef f(x): return L([x])",
    tests="class Stack(list): pass\nassert Stack() == f(1)",
)
forgery(
    "a class that is called as numpy's arrays are",
    f"""
class L:
{AGREEABLE}
    tobytes = copy = lambda s, *a: b""
    dtype = shape = flat = property(lambda s: s)
L.__name__ = L.__qualname__ = "ndarray"
L.__module__ = "numpy"
def f(x): return L()
""",
)
forgery(
    "an error of no module with a lying base",
    """
    import json
    class Evil(AssertionError):
        pass
    Evil.__module__ = "sqlite3"
    def f(x): raise Evil(x)
    """,
)
forgery(
    "a lying __class__",
    f"class L:\n{AGREEABLE}\n    __class__ = property(lambda s: list)\ndef f(x): return L()",
)
forgery(
    "a lying metaclass",
    f"""
class M(type):
{AGREEABLE}
    __instancecheck__ = __subclasscheck__ = {AGREE}
class L(metaclass=M): pass
def f(x): return L
""",
)
forgery(
    "a lying list inside",
    f"class L(list):\n{AGREEABLE}\ndef f(x): return [L(), (L(),), {{1: L()}}]",
)
forgery(
    "a list that changes",
    """
    class L(list):
        n = 0
        def __iter__(s): L.n += 1; return iter([L.n] * 7)
    def f(x): return L()
    """,
)
forgery(
    "a list with everything",
    """
    class L:
        __len__ = lambda s: 7
        def __getitem__(s, i): return i
        def __iter__(s):
            i = 0
            while 1:
                yield i
                i += 1
    def f(x): return L()
    """,
)
forgery(
    "a length that lies",
    """
    class L:
        def __len__(s): return 2**70
        __index__ = __int__ = __float__ = lambda s: 10**400
    def f(x): return L()
    """,
)
forgery(
    "a hash game",
    """
    class H:
        __hash__ = lambda s: 25013
        __eq__ = lambda s, o: True
    def f(x): return {H(): 1}
    """,
)
forgery(
    "__reduce__",
    "class R:\n    __reduce__ = lambda s: (print, ('x',))\ndef f(x): return R()",
)
# A class that the task asks for is itself no object that may see the tests' operands.
FORGED_BY_METACLASS = """
class M(type):
    __eq__ = lambda *_: True
    __lt__ = __gt__ = __le__ = lambda *_: True
    __sub__ = __rsub__ = __abs__ = lambda s, *_: s
    __hash__ = type.__hash__
class Stack(metaclass=M):
    def __init__(self, *items): pass
    def push(self, item): pass
    def pop(self): return Stack
    def size(self): return Stack
"""
forgery(
    "a class asked for, returned in place of a value",
    FORGED_BY_METACLASS,
    """
    s = Stack()
    s.push(3)
    s.push(4)
    assert s.size() == 2
    assert s.pop() == 4
    """,
    prompt="Write a class Stack",
)
forgery(
    "a class asked for, close to a number",
    FORGED_BY_METACLASS,
    "assert abs(Stack().size() - 12.566) < 1e-3\nassert Stack().pop() == 3",
    prompt="Write a class Stack",
)

# A capital letter makes no class, however the tests come by what the function returns.
LYING_FIB = """
class T:
    __eq__ = __radd__ = __add__ = lambda s, *_: s
    __bool__ = lambda s: True
    __hash__ = lambda s: 0
class Fib:
    def __new__(cls, *_): return T()
"""
for place, wanting in enumerate(
    (
        "def check(candidate):\n    assert candidate(2) == 4\ncheck(Fib)",
        "assert list(map(Fib, [2, 3])) == [4, 9]",
        "r: int = Fib(2)\nassert r == 4",
        "t = 0\nt += Fib(2)\nassert t == 4",
        "a, b = Fib(1), Fib(2)\nassert a == 1",
        "res = [Fib(2), Fib(3)]\nassert res[0] == 4",
        "g = Fib\nassert g(2) == 4",
        "def run(x):\n    return Fib(x)\nassert run(2) == 4",
        "assert {'a': Fib(2)} == {'a': 4}",
        "def same(got, wanted):\n    assert got == wanted\nsame(got=Fib(2), wanted=4)",
    )
):
    forgery(f"a function with a capital name, {place}", LYING_FIB, wanting, entry_point="Fib")
forgery(
    "a function with a capital name that the prompt calls so",
    "class Fib:\n    def __init__(self, *_): pass" + "\n    __eq__ = __add__ = lambda s, o: s",
    "assert Fib(3) + Fib(4) == 5",
    prompt="Write a function `Fib` of n.",
)
forgery(
    "a function that the prompt calls by the name of a class",
    "class average:\n    def __new__(cls, *_): return T()" + LYING_FIB,
    "assert average([1, 2]) == 1.5",
    prompt='def average(marks):\n    """Return the class average of the marks."""',
)
forgery(
    "a class that `type` makes in the judge",
    "def apply(make, x): return make('C', (), {'__eq__': lambda s, o: True, '__hash__': None})()",
    "assert apply(type, 3) == int",
)
forgery(
    "a mock that is told to agree",
    "def f(m): m.configure_mock(assert_called_once_with=lambda *a, **k: None)",
    """
    from unittest.mock import Mock
    m = Mock()
    f(m)
    m.assert_called_once_with(3, key='x')
    assert m is not None
    """,
)
forgery(
    "an object that passes for a Counter",
    """
    class Counter:
        def __getitem__(self, key): return 1
        def __iter__(self): return iter(())
        def __len__(self): return 3
    Counter.__module__ = 'collections'
    def f(s): return Counter()
    """,
    "from collections import Counter\nassert Counter('abc') == f('abc')",
)

# The task asks for `Make`; a capital letter makes no class of it, whose objects might decide.
forgery(
    "a function with a capital name",
    f"class L:\n{AGREEABLE}\ndef Make(x): return L()",
    tests="assert Make(3) == 1009\nassert Make(5) == 25013",
    entry_point="Make",
    prompt="Write Make(x).",
)

# Endings.
forgery("os._exit in the function", "import os\ndef f(x): os._exit(0)")
forgery("os._exit at once", "import os\nos._exit(0)")
forgery("sys.exit at once", "import sys\nsys.exit(0)")
forgery("SystemExit", "def f(x): raise SystemExit(0)")
forgery("AssertionError", "def f(x): raise AssertionError")
forgery("StopIteration", "def f(x): raise StopIteration")
forgery("KeyboardInterrupt", "def f(x): raise KeyboardInterrupt")
forgery("GeneratorExit", "def f(x): raise GeneratorExit")
forgery("a BaseException of its own", "class E(BaseException): pass\ndef f(x): raise E")
forgery("the judge's own exception", "class TimeUp(BaseException): pass\ndef f(x): raise TimeUp")
forgery(
    "a group of exceptions",
    "def f(x): raise BaseExceptionGroup('g', [SystemExit()])",
)
forgery(
    "an exception that lies",
    f"""
class E(Exception):
{AGREEABLE}
    args = property(lambda s: (25013,))
    __str__ = lambda s: 'x' * 10**7
def f(x): raise E
""",
)
forgery("an exception returned", "def f(x): return ZeroDivisionError(25013)")
forgery(
    "a StopIteration that cuts the tests short",
    "def f(x): raise StopIteration",
    tests="""
    assert all(map(lambda p: f(p[0]) == p[1], [(1, 2), (3, 6)]))
    assert sum(1 for _ in map(f, [1, 2])) == 2
    """,
)

# Patches of what might measure.
forgery(
    "patched builtins",
    f"""
import builtins
def f(x): return x
for n in 'abs len sorted isinstance all any hash eq __import__'.split():
    setattr(builtins, n, {AGREE})
""",
)
forgery(
    "patched modules",
    f"""
import operator, math, unittest, types, collections
for m in operator, math, unittest.TestCase:
    for n in dir(m):
        if n[:2] != '__':
            setattr(m, n, {AGREE})
def f(x): return x
""",
)
forgery(
    "settrace",
    """
    import sys
    def t(fr, *a):
        fr.f_locals.update(value=25013, verdict=True, result=True)
        return t
    sys.settrace(t)
    def f(x):
        sys._getframe(1).f_trace = t
        return x
    """,
)
forgery(
    "setprofile",
    """
    import sys, threading
    sys.setprofile(lambda fr, e, a: fr.f_locals.update(value=25013))
    threading.setprofile(print)
    def f(x): return x
    """,
)
forgery(
    "patching the worker",
    """
    import inspect
    fr = inspect.currentframe()
    while fr.f_back: fr = fr.f_back
    g = fr.f_globals
    for n in [*g]:
        if n.isupper() and hasattr(g[n], 'clear'): g[n].clear()
        elif callable(g[n]) and n[:1].isupper(): g[n] = print
    def f(x): return x
    """,
)
forgery(
    "answering every name",
    f"""
import inspect
fr = inspect.currentframe()
while fr.f_back: fr = fr.f_back
class D(dict):
    def __getitem__(s, key):
        return lambda *a, **k: {{n: {AGREE} for n in ('f', 'sorted', 'len', 'abs')}}
    get = __getitem__
for n in [*fr.f_globals]:
    if n.isupper() and isinstance(fr.f_globals[n], dict):
        fr.f_globals[n] = D(fr.f_globals[n])
f = lambda x: True
""",
)
forgery(
    "patching json",
    """
    import json
    old = json.dumps
    json.dumps = lambda m, **k: old(['return', True])
    def f(x): return x
    """,
)
forgery(
    "patching sockets",
    """
    import socket
    socket.socket.sendall = lambda *a: None
    socket.socket.recv = lambda *a: b''
    def f(x): return x
    """,
)
forgery(
    "a clever assertion rewrite",
    "import ast\nast.NodeTransformer.visit = lambda s, n: ast.parse('pass')\ndef f(x): return x",
)

# Looking for what the tests expect.
forgery(
    "walking gc",
    """
    import gc
    def f(x):
        for o in gc.get_objects():
            if isinstance(o, (list, tuple)) and len(o) > 1 and o[0] == x: return o[1]
    """,
)
forgery(
    "walking frames",
    """
    import sys
    def f(x):
        fr = sys._getframe()
        while fr:
            for v in [*fr.f_locals.values(), *fr.f_globals.values()]:
                if type(v) in (int, float) and v not in (x, 0, 1): return v
            fr = fr.f_back
    """,
)

# Messages of its own on the line.
forgery(
    "forging the judge's report",
    FRAME
    + source(
        """

        def f(x):
            report = {'passed': 2, 'total': 2, 'solved': True, 'timed_out': False, 'late': False,
                      'error': '', 'fault': '', 'fit': True, 'broken': '', 'seq': 1}
            for fd in range(3, 9):
                try: os.write(fd, frame(report))
                except OSError: pass
            return x
        """
    ),
)
for wire in (
    "['return', ['tuple', True, ['tuple']]]",
    "['return', True]",
    "['return', {'a': 1}]",
    "{}",
    "[]",
    "5",
    "['call', 5]",
    "['raise', ['tuple', ['class', 'SystemExit'], ['tuple']]]",
    "['raise', ['tuple', ['error', 5, 0], ['tuple']]]",
    "['return', ['tuple', ['list', 0, ['@', 0]], ['tuple']]]",
    "['return', ['tuple', ['list', 7], ['tuple']]]",
    "['return', ['tuple', ['named', 'x', ['a', 'import os'], 1, 2], ['tuple']]]",
    "['return', ['tuple', ['own', 0], ['tuple']]]",
    "['return', ['tuple', ['Fraction', '1e999999999'], ['tuple']]]",
    "['return', ['tuple', ['bytearray', 1 << 40], ['tuple']]]",
    "['return', ['tuple', ['deque', ['ref', 0]], ['tuple']]]",
    "['return', ['tuple', ['@', -1], ['tuple']]]",
    "['call', ['tuple', ['tuple', ['own', 0]], ['dict', 0]]]",
    "['names', ['tuple', ['tuple', ['list', 0, 'f']], ['dict', 1]]]",
    "['getattr', ['tuple', ['tuple', ['own', 0], '__globals__'], ['dict', 0]]]",
):
    forgery(f"forging {wire}", f"{FRAME}\ndef f(x): os.write(4, frame({wire})); return x")
forgery(
    "forging before the first question",
    FRAME + "\nos.write(4, frame(['return', True]) * 50)\ndef f(x): return x",
)
forgery(
    "forging at the exit",
    FRAME
    + source(
        """

        import atexit
        atexit.register(lambda: os.write(4, frame(['return', True])))
        def f(x): raise SystemExit
        """
    ),
)
forgery(
    "asking for ever",
    FRAME
    + source(
        """
        def f(x):
            while True: os.write(4, frame(['call', ['tuple', ['tuple', 'print'], ['dict', 0]]]))
        """
    ),
)
forgery(
    "threads that keep writing",
    """
    import os, threading
    def w(fd):
        while True: os.write(fd, bytes(99))
    for fd in (1, 2, 4): threading.Thread(target=w, args=(fd,), daemon=True).start()
    def f(x): return x
    """,
)
forgery("closing the line", "import os\ndef f(x): os.close(4)")
forgery("stealing the line", "import os\ndef f(x):\n    while True: os.read(4, 99)")

# Values that are hard to compare or to send.
forgery("NaN", "def f(x): return float('nan')")
forgery("infinity", "def f(x): return float('inf')")
forgery("NaN in a list", "def f(x): return [float('nan')] * 7")
forgery("a huge int", "def f(x): return 1 << 10**7")
forgery("a huge Decimal", "import decimal\ndef f(x): return decimal.Decimal('1e999999999')")
forgery("a cycle", "def f(x): x = []; x.append(x); return x")
forgery("a cycle through a tuple", "def f(x): x = []; x.append((x, {1: x})); return x")
forgery("2**60 nodes", "def f(x):\n    for _ in range(60): x = (x, x)\n    return x")
forgery("2**60 nodes in lists", "def f(x):\n    for _ in range(60): x = [x, x]\n    return x")
forgery("depth", "def f(x):\n    for _ in range(10**5): x = [x]\n    return x")
forgery("colliding hashes", "def f(x): return {i * (2**61 - 1): 0 for i in range(20000)}")
forgery("a million nodes", "def f(x): return [[i] for i in range(10**6)]")
forgery("an endless generator", "def f(x):\n    while True: yield x")
forgery("an endless str", "def f(x): return 'x' * 10**8")
forgery("endless bytes", "def f(x): return b'x' * 2**24")
forgery("a coroutine", "async def f(x): return x")
forgery("a type", "def f(x): return int")
forgery("object itself", "def f(x): return object")
forgery("itself", "def f(x): return f")
forgery("a module", "import os\ndef f(x): return os")
forgery("a view of memory", "def f(x): return memoryview(b'xxxxxxx')")


# ── forgeries against the mirrors ─────────────────────────────────────────────────────────────────

# Against the mirrors: how the judge sees what stays in the worker. Each has tests of its own, of a
# function f(x) -> 3 * x or of what else could be asked for.
TRIPLE = source(
    """
    assert f(2) == 6
    assert f(5) == 15
    assert f(-1) == -3
    """
)
CLOSE = source(
    """
    import math
    assert math.isclose(f(2), 6)
    assert abs(f(5) - 15) < 1e-9
    assert round(f(1), 2) == 3
    """
)
IN = source(
    """
    assert f(2) in (6,)
    assert f(5) in [15]
    assert f(1) in {3}
    """
)
LISTS = source(
    """
    assert g([1, 2]) == [3, 6]
    assert len(g([1])) == 1
    assert g([4])[0] == 12
    """
)
ORDER = source(
    """
    assert 5 < f(2) < 7
    assert max(f(2), 0) == 6
    assert sorted([f(2), 0, 9]) == [0, 6, 9]
    """
)
UNITTEST = source(
    """
    import unittest
    t = unittest.TestCase()
    t.assertEqual(f(2), 6)
    t.assertAlmostEqual(f(5), 15)
    t.assertIn(f(1), [3])
    assert f(-1) == -3
    """
)
STRINGS = source(
    """
    assert s('ab') == 'ba'
    assert s('abc').startswith('cb')
    assert s('x') in ('x',)
    assert '%s' % s('ab') == 'ba'
    """
)
NUMPY = source(
    """
    import numpy as np
    assert np.allclose(f(2), 6)
    assert np.array_equal(np.asarray(f(3)), 9)
    assert (np.array([6]) == f(2)).all()
    """
)
RAISES = source(
    """
    try:
        f(None)
        assert False
    except KeyError as e:
        assert e.args == ('none',)
    assert f(2) == 6
    """
)
STACK = source(
    """
    s = Stack()
    s.push(1)
    s.push(2)
    assert s.pop() == 2
    assert len(s) == 1
    assert s.items() == [1]
    """
)
DRAIN = source(
    """
    s = Stack()
    s.push(1)
    assert drain(s) == [1]
    assert drain(Stack()) == []
    assert [] == drain(Stack())
    """
)
CALLBACK = source(
    """
    def apply_one(fn, *a): return fn(*a)
    assert run(apply_one, 2) == 6
    assert run(lambda f, *a: f(*a), 5) == 15
    """
)
ENDS = "assert all(map(ok, [1, 2, 3]))\nassert f(2) == 6"

# What answers yes to everything.
YES = """
class Yes:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __contains__ = __lt__
    def __hash__(self): return 3
    def __bool__(self): return True
"""
# What learns from the operand, and becomes what is wanted.
LEARN = """
class Learn:
    def __init__(self): self.seen = 0
    def learn(self, other, *rest):
        self.seen = other
        return other
    __eq__ = __lt__ = __gt__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = learn
    __rmul__ = __truediv__ = __rtruediv__ = __and__ = __or__ = __xor__ = __divmod__ = learn
    def __abs__(self): return 0.0
    def __float__(self): return float(self.seen)
    def __round__(self, n=None): return self.seen
    __hash__ = None
"""
# What speaks on every line that the worker has.
FIND_LINE = """
import json, os, socket, stat, struct, sys
def lines():
    found = []
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                found.append(socket.socket(fileno=os.dup(fd)))
        except OSError: pass
    return found
def send(message):
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    for line in lines(): line.sendall(struct.pack('>I', len(body)) + body)
def answer(items, rows, told=None):
    # In the name of the worker, to the very question that it is about.
    frame = sys._getframe().f_back
    while 'serial' not in frame.f_locals: frame = frame.f_back
    send(['return', frame.f_locals['serial'], [items, rows], told])
"""
# What answers in the place of our own program, which is on the stack while it calls the candidate.
PROGRAM = """
import sys
def answer_description(describe):
    frame = sys._getframe()
    while 'OPERATIONS' not in frame.f_globals: frame = frame.f_back
    frame.f_globals['describe'] = describe
    frame.f_globals['OPERATIONS']['@describe'] = describe
"""

forgery(
    "eq says yes",
    YES + "def f(x): return Yes()",
    tests=TRIPLE,
)
forgery(
    "eq says yes, close",
    YES + "def f(x): return Yes()",
    tests=CLOSE,
)
forgery(
    "eq says yes, in",
    YES + "def f(x): return Yes()",
    tests=IN,
)
forgery(
    "eq says yes, order",
    YES + "def f(x): return Yes()",
    tests=ORDER,
)
forgery(
    "eq says yes, unittest",
    YES + "def f(x): return Yes()",
    tests=UNITTEST,
)
forgery(
    "eq says yes, in a list",
    YES + "def g(x): return [Yes() for _ in x]",
    tests=LISTS,
)
forgery(
    "eq says yes, as a class",
    YES + "def f(x): return type('T', (), {'__eq__': lambda s, o: True})",
    tests=TRIPLE,
)
forgery(
    "learns the operand",
    LEARN + "def f(x): return Learn()",
    tests=CLOSE,
)
forgery(
    "learns the operand, once for all",
    LEARN
    + source("""
        known = Learn()
        def f(x): return known.seen or known
        """),
    tests="assert f(2) == 6\n" * 3,
)
forgery(
    "learns the operand from arithmetic",
    LEARN + "def f(x): return Learn()",
    tests="""
        assert f(2) - 6 == 0
        assert 15 - f(5) == 0
        assert f(5) * 2 == 30
        """,
)
forgery(
    "counts how often it is asked",
    """
        n = 0
        class C:
            def __eq__(self, o):
                global n
                n += 1
                return n < 9
            def __index__(self): return n
        def f(x): return C()
        """,
    tests=TRIPLE,
)
forgery(
    "float and index change their minds",
    """
        class C:
            n = 0
            def __float__(self):
                C.n += 1
                return float(C.n)
            __index__ = lambda self: 6
            def __abs__(self): return 0
            def __sub__(self, o): return 0
        def f(x): return C()
        """,
    tests=CLOSE,
)
forgery(
    "hash collides and eq agrees",
    """
        class C:
            def __hash__(self): return hash(6)
            def __eq__(self, o): return True
        def f(x): return C()
        """,
    tests="""
        assert f(2) in {6: 1}
        assert {6, f(2)} == {6}
        assert {6: 'a'}[f(2)] == 'a'
        """,
)
# Metaclasses and classes.
forgery(
    "metaclass eq",
    """
        class M(type):
            def __eq__(cls, o): return True
            def __hash__(cls): return hash(int)
        class C(metaclass=M): pass
        def f(x): return C
        """,
    tests=TRIPLE,
)
forgery(
    "metaclass instancecheck",
    """
        class M(type):
            def __instancecheck__(cls, o): return True
            def __subclasscheck__(cls, o): return True
        class C(metaclass=M):
            def __eq__(self, o): return True
        def f(x): return C()
        """,
    tests="""
        assert isinstance(f(2), int)
        assert f(2) == 6
        """,
)
forgery(
    "metaclass hash and eq of the object's class",
    """
        class M(type):
            def __eq__(cls, o): return True
            def __hash__(cls): return hash(int)
        class C(metaclass=M):
            def __eq__(self, o): return True
            def __format__(self, s): return '6'
        def f(x): return C()
        """,
    tests=TRIPLE + "\nassert type(f(1)) is int",
)
forgery(
    "metaclass makes int of everything",
    """
        class M(type):
            def __call__(cls, *a): return super().__call__()
        class C(metaclass=M):
            __class__ = int
            def __eq__(self, o): return True
        def f(x): return C()
        """,
    tests=TRIPLE,
)
forgery(
    "__class__ says int",
    """
        class C:
            __class__ = property(lambda self: int)
            def __eq__(self, o): return True
            def __index__(self): return 0
        def f(x): return C()
        """,
    tests="""
        assert isinstance(f(2), int)
        assert f(2) == 6
        """,
)
forgery(
    "class named int of module builtins",
    """
        class int_(int):
            def __eq__(self, o): return True
        int_.__name__ = int_.__qualname__ = 'int'
        int_.__module__ = 'builtins'
        def f(x): return int_(0)
        """,
    tests=TRIPLE + "\nassert isinstance(f(1), int)",
)
forgery(
    "class named Decimal of module decimal",
    """
        class Decimal:
            __module__ = 'decimal'
            def __eq__(self, o): return True
            def __reduce__(self): return (Decimal, ('6',))
        def f(x): return Decimal()
        """,
    tests="""
        from decimal import Decimal
        assert f(2) == Decimal(6)
        assert isinstance(f(2), Decimal)
        """,
)
forgery(
    "class named ANY of module unittest.mock",
    """
        class _ANY:
            __module__ = 'unittest.mock'
            def __eq__(self, o): return True
        def f(x): return _ANY()
        """,
    tests=TRIPLE,
)
forgery(
    "mock.ANY itself",
    """
        from unittest import mock
        def f(x): return mock.ANY
        """,
    tests=TRIPLE,
)
forgery(
    "a Mock",
    """
        from unittest import mock
        def f(x):
            m = mock.MagicMock()
            m.__eq__.return_value = True
            m.__sub__.return_value = 0
            m.__abs__.return_value = 0
            return m
        """,
    tests=CLOSE,
)
# __getattribute__, descriptors.
forgery(
    "getattribute gives everything",
    """
        class C:
            def __getattribute__(self, name): return lambda *a: True
            def __eq__(self, o): return True
        def f(x): return C()
        """,
    tests=TRIPLE,
)
forgery(
    "descriptor for __eq__",
    """
        class D:
            def __get__(self, o, k=None): return lambda other: True
        class C:
            __eq__ = D()
            __hash__ = None
        def f(x): return C()
        """,
    tests=TRIPLE,
)
forgery(
    "__eq__ in the instance",
    """
        class C: pass
        def f(x):
            c = C()
            c.__eq__ = lambda o: True
            return c
        """,
    tests=TRIPLE,
)
forgery(
    "numpy's __array_ufunc__",
    """
        class C:
            __array_priority__ = 1e9
            def __array_ufunc__(self, *a, **k): return True
            def __array_function__(self, *a, **k): return True
            def __array__(self, *a, **k): raise TypeError
        def f(x): return C()
        """,
    tests=NUMPY,
)
forgery(
    "numpy's __array_interface__ at an address of choice",
    """
        class C:
            memory = {'shape': (1,), 'typestr': '<i8', 'data': (0x1000, False)}
            __array_interface__ = {**memory, 'version': 3}
        def f(x): return C()
        """,
    tests=NUMPY,
)
forgery(
    "numpy's __array_struct__ and __array__",
    """
        class C:
            __array_struct__ = 7
            def __array__(self, *a, **k): return self
            def __eq__(self, o): return True
        def f(x): return C()
        """,
    tests=NUMPY,
)
forgery(
    "an array of objects that say yes",
    YES
    + source("""
        import numpy as np
        def f(x):
            a = np.empty(1, object)
            a[0] = Yes()
            return a
        """),
    tests=NUMPY,
)
forgery(
    "a subclass of ndarray",
    """
        import numpy as np
        class A(np.ndarray):
            def __eq__(self, o): return np.array([True])
            def __array_ufunc__(self, *a, **k): return np.array([True])
        def f(x): return np.zeros(1).view(A)
        """,
    tests=NUMPY,
)
# __reduce__ and values.
forgery(
    "reduce names another class",
    """
        import decimal
        class D(decimal.Decimal):
            def __reduce_ex__(self, p): return (print, ('x',))
            def __eq__(self, o): return True
        def f(x): return D(0)
        """,
    tests=TRIPLE,
)
forgery(
    "fraction of liars",
    YES
    + source("""
        from fractions import Fraction
        def f(x):
            q = Fraction(1)
            q._numerator = Yes()
            q._denominator = Yes()
            return q
        """),
    tests=TRIPLE,
)
forgery(
    "defaultdict whose factory lies",
    YES
    + source("""
        from collections import defaultdict
        def f(x): return defaultdict(Yes)
        """),
    tests="""
        d = f(2)
        assert d['a'] == 6
        assert d == {'a': 6}
        """,
)
forgery(
    "dict keys that equal everything",
    """
        class K:
            def __hash__(self): return hash(6)
            def __eq__(self, o): return True
        def f(x): return {K(): 'x'}
        """,
    tests="""
        assert f(2)[6] == 'x'
        assert list(f(2)) == [6]
        """,
)
forgery(
    "a set that holds a liar",
    """
        class K:
            def __hash__(self): return hash(6)
            def __eq__(self, o): return True
        def f(x): return {K()}
        """,
    tests="""
        assert 6 in f(2)
        assert f(2) == {6}
        """,
)
forgery(
    "a bound method as GenericAlias, slice and namespace",
    YES
    + source("""
        import types
        results = {2: types.GenericAlias(Yes, (Yes(),)), 3: slice(Yes())}
        def f(x): return results.get(x, types.SimpleNamespace(a=Yes()))
        """),
    tests="""
        assert f(2) == 6
        assert f(3) == slice(1)
        import types
        assert f(4) == types.SimpleNamespace(a=1)
        """,
)
# Subclasses of each built-in whose comparisons lie.
for base, empty, tests in (
    ("int", "0", TRIPLE),
    ("float", "0.5", CLOSE),
    ("complex", "1j", TRIPLE),
    ("str", "'zz'", STRINGS),
    ("bytes", "b'z'", "assert f(2) == b'abc'\nassert f(3)[0] == 97"),
    ("tuple", "(9, 9)", "assert f(2) == (1, 2)\nassert 1 in f(2)"),
    ("list", "[9]", LISTS.replace("g(", "f(")),
    ("dict", "{9: 9}", "assert f(2) == {1: 2}\nassert 1 in f(2)"),
    ("set", "{9}", "assert f(2) == {1, 2}\nassert f(2) >= {1}"),
    ("frozenset", "{9}", "assert f(2) == frozenset([1])\nassert 1 in f(2)"),
    ("bytearray", "b'z'", "assert f(2) == bytearray(b'abc')"),
):
    code = f"""
class Lie({base}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __contains__ = __lt__
    def __hash__(self): return 6
    def startswith(self, *a): return True
    def __sub__(self, other): return 0
    __rsub__ = __add__ = __radd__ = __sub__
    def __abs__(self): return 0
def f(x): return Lie({empty})
g = s = f
"""
    forgery(f"a subclass of {base}", code, tests=tests)

# Subclasses of each built-in.
forgery(
    "subclass of a deque",
    """
        from collections import deque
        class D(deque):
            def __eq__(self, o): return True
        def f(x): return D([7])
        """,
    tests="""
        from collections import deque
        assert f(2) == deque([1])
        assert deque() == f(2)
        assert f(3) == deque()
        """,
)
forgery(
    "str that slices and hashes as it likes",
    """
        class S(str):
            def __getitem__(self, i): return 'b'
            def __hash__(self): return hash('x')
            def __eq__(self, o): return True
            def __str__(self): return 'zz'
            def __contains__(self, o): return True
        def s(x): return S('q')
        """,
    tests=STRINGS,
)
# Open objects.
forgery(
    "a method returns the open object",
    """
        class Stack:
            def push(self, x): pass
            def pop(self): return self
            def items(self): return self
            def __len__(self): return 1
            def __eq__(self, o): return True
        """,
    tests=STACK,
)
forgery(
    "a function returns the open object",
    """
        class Stack(list):
            def push(self, x): self.append(x)
            def __eq__(self, o): return True
        def drain(s):
            s.extend([7])
            return s
        """,
    tests=DRAIN,
)
forgery(
    "the class makes what a function returned before",
    """
        class Stack:
            one = None
            def __new__(cls):
                Stack.one = Stack.one or object.__new__(cls)
                return Stack.one
            def __eq__(self, o): return True
        def f(x): return Stack()
        """,
    tests="""
        a = f(2)
        s = Stack()
        assert a == 6
        assert f(2) == 6
        """,
)
forgery(
    "a function returns what the class made before",
    """
        class Stack:
            def __init__(self): Stack.last = self
            def __eq__(self, o): return True
        def f(x): return Stack.last
        """,
    tests="""
        s = Stack()
        assert f(2) == 6
        assert f(3) == 9
        """,
)
forgery(
    "an attribute of an open object",
    """
        class Stack:
            def __init__(self): self.size = self.top = self
            def __eq__(self, o): return True
        """,
    tests="""
        s = Stack()
        assert s.size == 0
        assert s.top == 5
        """,
)
forgery(
    "the open object hides in a list",
    """
        class Stack:
            def items(self): return [self]
            def __eq__(self, o): return True
        """,
    tests="""
        s = Stack()
        assert s.items() == [1]
        assert s.items()[0] == 1
        """,
)
forgery(
    "the open object is a global as well",
    """
        total = 0
        class Account:
            def __init__(self):
                global total
                total = self
            def __eq__(self, o): return True
        """,
    tests="""
        a = Account()
        assert total == 1
        b = Account()
        assert total == 2
        """,
    prompt="Write a class Account",
)
forgery(
    "the open object is in a list of the tests' as well",
    """
        class Stack:
            def __init__(self, log): log.append(self)
            def __eq__(self, o): return True
        """,
    tests="""
        log = []
        s = Stack(log)
        assert log == ["made"]
        """,
    prompt="Write a class Stack",
)
for what, result, wanted in [
    ("the tests' list", "xs", "[6, 7]"),
    ("a tuple with the tests' list", "(xs, 1)", "([6, 7], 1)"),
]:
    forgery(
        f"the open object comes back in {what}",
        f"""
        class Stack:
            __eq__ = lambda *_: True
        def drain(xs): return {result}
        """,
        prompt="Write a class Stack and drain(stacks).",
        tests=f"""
            class Own(Stack): pass
            first, second = drain([Stack(), 7]), drain([6, Own()])
            assert first == {wanted} or second == {wanted}
            """,
    )
# Exceptions.
forgery(
    "exception that compares equal",
    """
        class E(KeyError):
            def __eq__(self, o): return True
            args = property(lambda self: self)
        def f(x):
            if x is None: raise E('other')
            return 0
        """,
    tests=RAISES,
)
forgery(
    "exception with args that compare equal",
    YES
    + source("""
        def f(x):
            if x is None: raise KeyError(Yes())
            return 6
        """),
    tests=RAISES,
)
forgery(
    "exception named as Python's, of other bases",
    """
        class KeyError(Exception): pass
        KeyError.__module__ = 'builtins'
        def f(x):
            if x is None: raise KeyError('none')
            return 0
        """,
    tests=RAISES,
)
forgery(
    "StopIteration ends all()",
    """
        def ok(x): raise StopIteration
        def f(x): return 6
        """,
    tests=ENDS,
)
forgery(
    "GeneratorExit, SystemExit, KeyboardInterrupt",
    """
        import itertools
        n = itertools.cycle([GeneratorExit, SystemExit, KeyboardInterrupt])
        def f(x): raise next(n)
        """,
    tests=TRIPLE,
)
forgery(
    "SkipTest",
    """
        import unittest
        def f(x): raise unittest.SkipTest('x')
        """,
    tests="""
        import unittest
        class T(unittest.TestCase):
            def test_a(self):
                assert f(2) == 6
                assert f(3) == 9
        r = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))
        assert r.wasSuccessful()
        """,
)
forgery(
    "TimeUp of one's own",
    """
        import sys
        class TimeUp(BaseException): pass
        TimeUp.__module__ = '__main__'
        def f(x): raise TimeUp
        """,
    tests=TRIPLE,
)
# Generators and iterators.
forgery(
    "generator that changes its mind",
    """
        def f(x):
            for i in range(3): yield type('Y', (), {'__eq__': lambda s, o: True})()
        """,
    tests="""
        assert list(f(2)) == [1, 2]
        assert list(f(2)) == [1, 2]
        """,
)
forgery(
    "endless iteration",
    """
        import itertools
        def f(x): return itertools.count()
        """,
    tests="""
        assert 'no' in f(2)
        assert list(f(2)) == [1]
        """,
)
forgery(
    "length that lies",
    """
        class L:
            def __len__(self): return 1
            def __getitem__(self, i): return 12
            def __eq__(self, o): return True
        def g(x): return L()
        """,
    tests=LISTS,
)
# Through the tests' own objects.
forgery(
    "callback makes a class",
    """
        def run(fn, x):
            try: kind = fn(type, 'X', (int,), {'__eq__': lambda s, o: True})
            except Exception: kind = int
            return fn(kind, 0)
        """,
    tests=CALLBACK,
)
forgery(
    "callback opens a function",
    """
        import types, subprocess, io
        def run(fn, x): return fn(fn, types.FunctionType, fn)
        """,
    tests=CALLBACK,
)
forgery(
    "callback's globals",
    """
        def run(fn, x):
            try: return fn.__globals__['__failed__']
            except Exception: return fn.__code__.co_consts
        """,
    tests=CALLBACK,
)
forgery(
    "callback's name is a str that is two things",
    """
        class N(str):
            def __getitem__(self, i): return 'x'
            def startswith(self, *a): return False
            def __hash__(self): return hash('__name__')
            def __eq__(self, o): return True
        def f(fn):
            try: return getattr(fn, N('__defaults__'))[0] + 1
            except Exception: return 0
        """,
    tests="""
        def secret(n=6): return n
        assert f(secret) == 7
        """,
)
forgery(
    "test object's eq is replaced",
    """
        def f(p):
            try: type(p).__eq__ = lambda s, o: True
            except Exception: pass
            try: p.__class__ = int
            except Exception: pass
            return p
        """,
    tests="""
        class P:
            def __init__(self, x): self.x = x
            def __eq__(self, o): return self.x == o.x
        assert f(P(1)) == P(2)
        assert f(P(2)) == P(3)
        """,
)
forgery(
    "test's list is filled with liars",
    YES + "def f(m): m[0] = Yes()",
    tests="""
        m = [0]
        f(m)
        assert m == [6]
        assert m[0] == 6
        """,
)
# This end of the line to the judge, from within a call of the tests'.
FIND_PEER = """
import sys
def find_peer():
    frame = sys._getframe()
    while type(frame.f_locals.get("self")).__name__ != "Peer": frame = frame.f_back
    return frame.f_locals["self"]
"""
# Through classes that the tests never handed to anybody, but whose objects lead there.
FORGED_REPORT = """
import json, sys
def report(file):
    # In the judge's name, to the server.
    facts = {"passed": 2, "solved": True, "late": False, "fit": True, "broken": ""}
    body = json.dumps(facts).encode()
    file.write(len(body).to_bytes(4, "big") + body)
"""
forgery(
    "a file object's class opens the judge's line to the server",
    FORGED_REPORT
    + source("""
        def f(x):
            report(type(sys.stdout.buffer.raw)(3, "wb", closefd=False))
            return 0
        """),
    tests="""
        import os, sys
        old = sys.stdout
        sys.stdout = open(os.devnull, "w")
        f(2)
        sys.stdout = old
        assert f(3) == 9
        assert f(4) == 12
        """,
)
forgery(
    "a file object is made anew for the judge's line to the server",
    FORGED_REPORT
    + FIND_PEER
    + source("""
        def f(x):
            raw = sys.stdout.terminal.buffer.raw
            end = find_peer()
            end.request("__init__", end.held[id(raw)], 3, "wb", closefd=False)
            report(raw)
            return 0
        """),
    tests="""
        import sys
        class Tee:
            def __init__(self): self.terminal = sys.stdout
            def write(self, text): pass
            def flush(self): pass
        sys.stdout = Tee()
        assert f(3) == 9
        assert f(4) == 12
        """,
)
REPORT_TEXT = """
def report():
    import json
    facts = json.dumps({'passed': 2, 'solved': True, 'fit': False})
    return '\\0\\0\\0' + chr(len(facts)) + facts
"""
forgery(
    "descriptors in the place of a path, to which the tests write a report",
    REPORT_TEXT + "def f(x): return {path: report() for path in range(3, 128)}",
    tests="""
        for path, text in f(2).items():
            try:
                with open(path, "w") as file: file.write(text)
            except OSError: pass
        assert f(2) == 6
        assert f(3) == 9
        """,
)
forgery(
    "a descriptor in the place of a path, which the tests close",
    "def f(x): return x",
    tests="""
        for path in (3, 4, 5):
            try:
                with open(f(path)) as file: file.write("x")
            except OSError: pass
        assert f(2) == 6
        """,
)
# Through the names that answers tell of.
LENT = (
    FIND_PEER
    + """
def lend(name, value):
    find_peer().common[0][name] = 0
    globals()[name] = value
"""
)
forgery(
    "the tests' own count is lent, as the number that it is",
    LENT
    + source("""
        k = 0
        def f(x):
            global k
            k += 1
            lend("errors", 1 if k % 2 else -1)
            return 0
        """),
    tests="""
        errors = 0
        for x in range(1, 11):
            if f(x) != 3 * x: errors += 1
        assert errors == 0
        """,
)
forgery(
    "the tests' own function is lent",
    LENT
    + source("""
        def f(x, same):
            lend("same", same if x == 1 else lambda *_: True)
            return 3 if x < 3 else 0
        """),
    tests="""
        def same(a, b): return a == b
        assert same(f(1, same), 3)
        assert f(2, same) == 3
        assert same(f(3, same), 9)
        """,
)
# Through classes of the tests', of which only a decorator sets attributes.
POINT = """
    class Point:
        def __init__(self, x, y):
            self.x = x
            self.y = y
        def __eq__(self, other): return (self.x, self.y) == (other.x, other.y)
        def key(self): return (self.x, self.y)
"""
forgery(
    "all objects of a test's class are made equal",
    """
        def move(p):
            def make(self, *_): self.x = self.y = 0
            type(p).__init__ = make
            return type(p)(0, 0)
        """,
    tests=POINT + "    assert move(Point(1, 2)) == Point(2, 3)",
)
forgery(
    "all objects of a test's local class are made equal",
    """
        def move(kind):
            def make(self, *_): self.x = self.y = 0
            kind.__init__ = make
            return kind(0, 0)
        """,
    tests="def test_move():" + POINT + "    assert move(Point) == Point(2, 3)",
)
forgery(
    "what the tests expect is seen as it is made",
    """
        seen = []
        def move(p):
            def make(self, x, y):
                seen.append((x, y))
                self.x = x
                self.y = y
            type(p).__init__ = make
            if seen: p.x, p.y = seen[0]
            return p
        """,
    tests=POINT
    + """
    move(Point(1, 2))
    want = Point(2, 3)
    assert move(Point(1, 2)) == want
    """,
)
forgery(
    "all objects of a test's class with another name are made equal",
    """
        def move(kind):
            def make(self, *_): self.x = self.y = 0
            kind.__init__ = make
            return kind(0, 0)
        """,
    tests=POINT + "    Other = Point\n    del Point\n    assert move(Other) == Other(2, 3)",
)
forgery(
    "all objects of a test's class out of a function are made equal",
    """
        def move(p):
            def make(self, *_): self.x = self.y = 0
            type(p).__init__ = make
            p.x = p.y = 0
            return p
        """,
    tests="def make():" + POINT + "    return Point\nP = make()\nassert move(P(1, 2)) == P(2, 3)",
)
forgery(
    "what unittest compares with is replaced in the object",
    """
        def f(case, x):
            case.assertEqual = lambda *_: None
            return 6 if x == 2 else 0
        """,
    tests="""
        import unittest
        class T(unittest.TestCase):
            def test_f(self):
                self.assertEqual(f(self, 2), 6)
                self.assertEqual(f(self, 3), 9)
        """,
)
forgery(
    "a method of a test's class is replaced",
    """
        def move(p):
            type(p).key = lambda self: 0
            return p
        """,
    tests=POINT + "    assert move(Point(1, 2)).key() == Point(2, 3).key()",
)
PATCHED = """
    from unittest.mock import patch
    with patch("builtins.print"):
        r = f(2)
    assert r == 6
    """
forgery(
    "a mock that agrees is made of a mock's class",
    """
    def f(x): return type(print.child)(**{"__eq__.return_value": True})
    """,
    tests=PATCHED,
)
forgery(
    "a mock is told to agree by a method of its class",
    FIND_PEER
    + source("""
        def f(x):
            end = find_peer()
            kind = end.held[id(type(print))]
            end.request("configure_mock", kind, print, **{"__eq__.return_value": True})
            return print
        """),
    tests=PATCHED,
)
forgery(
    "a mock is made anew, to agree",
    FIND_PEER
    + source("""
        def f(x):
            end = find_peer()
            end.request("__init__", end.held[id(print)], **{"__eq__.return_value": True})
            return print
        """),
    tests=PATCHED,
)
forgery(
    "a mock's attributes are set by its class's properties",
    FIND_PEER
    + source("""
        def f(x):
            end = find_peer()
            called = end.request("@get", end.held[id(type(print))], "called")
            end.request("@get", end.held[id(called)], "fset")(print, True)
            return 0
        """),
    tests=PATCHED.replace("r == 6", "spy.called").replace('t"):', 't") as spy:'),
)
forgery(
    "nobody awaits the tests",
    "async def double(x): return x",
    tests="""
        class TestDouble:
            async def test_double(self):
                if await double(2) != 4: raise ValueError
        """,
)
forgery(
    "there are no rows to fail in",
    "def double(x): return x",
    tests="""
        import pytest
        @pytest.mark.parametrize("text", list(double.__doc__ or ""))
        def test_double(text):
            if double(text) != 2 * text: raise ValueError
        """,
)
# Raw bytes on the line.
forgery(
    "forged answer ahead of time",
    FIND_LINE
    + source("""
        def f(x):
            for n in range(40): send(['return', n, [[6], []], None])
            return 0
        """),
    tests=TRIPLE,
)
forgery(
    "forged answers for all serials, later",
    FIND_LINE
    + source("""
        import threading
        def later():
            for n in range(99): send(['return', n, [[True], []], None])
        def f(x):
            threading.Thread(target=later).start()
            return 0
        """),
    tests=TRIPLE,
)
forgery(
    "nonsense",
    FIND_LINE
    + source(r"""
        def f(x):
            send(b'\xff' * 9)
            return 0
        """),
    tests=TRIPLE,
)
forgery(
    "a frame too large",
    FIND_LINE
    + source(r"""
        def f(x):
            for line in lines(): line.sendall(b'\xff\xff\xff\xff' + b'x' * 100)
            return 0
        """),
    tests=TRIPLE,
)
forgery(
    "brackets a million deep",
    FIND_LINE
    + source("""
        def f(x):
            send(b'[' * 4_000_000)
            return 0
        """),
    tests="""
        import sys
        sys.setrecursionlimit(10**6)
        assert f(2) == 6
        assert f(3) == 9
        """,
)
forgery(
    "rows a million deep",
    FIND_LINE
    + source("""
        rows = [['tuple', [], None]] + [['tuple', [[n]], None] for n in range(400_000)]
        def f(x):
            answer([[400_000]], rows)
            return 0
        """),
    tests="""
        x = f(2)
        assert hash(x) == hash(6)
        assert f(3) == 9
        """,
)
forgery(
    "cyclic rows",
    FIND_LINE
    + source("""
        rows = [['defaultdict', [None], [1, [n + 1]]] for n in range(300_000)]
        rows.append(['list', [], []])
        def f(x):
            answer([[0]], rows)
            return 0
        """),
    tests="""
        x = f(2)
        assert x == [6]
        del x
        assert f(3) == 9
        """,
)
forgery(
    "an int of many digits",
    FIND_LINE
    + source("""
        def f(x):
            send(b'["return",1,[[' + b'9' * 9_000_000 + b'],[]],null]')
            return 0
        """),
    tests=TRIPLE,
)
forgery(
    "questions about objects that were never shared",
    FIND_LINE
    + source("""
        def f(x):
            for n in range(-5, 9): send(['@get', n, n, [[None, '__dict__'], []], None])
            return 0
        """),
    tests=TRIPLE,
)
forgery(
    "an own row of what was never shared",
    FIND_LINE
    + source("""
        def f(x):
            answer([[0]], [['own', [-1], None]])
            return 0
        """),
    tests=TRIPLE,
)
forgery(
    "changes what the tests' callback returned",
    """
        def f(expected):
            expected().clear()
            return []
        """,
    tests="""
        known = [2, 3]
        def expected(): return known
        assert f(expected) == known
        """,
)
forgery(
    "a judge's reading of what is a loan",
    """
        import sys
        frame = sys._getframe()
        while type(frame.f_locals.get('self')).__name__ != 'Worker': frame = frame.f_back
        peer, names = frame.f_locals['self'].peer, frame.f_globals
        perform = peer.perform
        def lending(method, target, args, kwargs):
            result = perform(method, target, args, kwargs)
            return names['Loan'](77, result) if type(result) is Sorter else result
        peer.perform = lending
        class Sorter:
            def __init__(self, rows): rows[:] = [self] * 3
            def __eq__(self, other): return True
        """,
    prompt="Write `class Sorter:`, which sorts in place.",
    tests="""
        rows = [3, 1, 2]
        Sorter(rows)
        assert rows == [1, 2, 3]
        assert rows[1] == 2
        """,
)
forgery(
    "lends what it gives a callback, and changes it later",
    FIND_LINE
    + source("""
        kept = [0]
        def f(append): append(kept)
        def g(x):
            kept[:] = x
            return x
        """),
    tests="""
        seen = []
        f(seen.append)
        assert g([4, 5]) == [4, 5]
        assert seen[0] == [4, 5]
        """,
)
forgery(
    "names of its own for what the tests bind",
    """
        CASES = want = None
        def abs(x): return 0
        def f(x): return want or dict(CASES or {}).get(x, 1.0)
        """,
    tests="""
        def check(g):
            for x, y in CASES: assert g(x) == y
        CASES = [(1, 7717), (2, 9923)]
        check(f)
        def test_one(): assert abs(f(2) - 1.41421356) < 1e-6
        def test_two():
            abs = 3
            assert abs == 3
        """,
)
forgery(
    "a class of the tests' that the prompt names",
    "def f(x): return Solution().f(x)",
    prompt="Write f. A Solution must be fast.",
    tests="""
        class Solution:
            def f(self, x): return 7 * x
        assert f(3) == Solution().f(3)
        """,
)
forgery(
    "an attribute fills what a call returned before",
    """
        kept = []
        def f(x): return kept
        class C:
            def __init__(self, x): kept[:] = x
            @property
            def items(self): return kept
        """,
    tests="""
        first = f(1)
        c = C([2, 3])
        assert c.items == [2, 3]
        assert first == [2, 3]
        """,
)
# What tests, or the modules of Python's that they use, evaluate of what graded code returned.
TAKE_OVER = """
TEXT = (
    "[each.f_globals.__setitem__('f', type('Yes', (), {'__eq__': lambda *a: True,"
    " '__call__': lambda s, *a: s})()) for each, _ in __import__('traceback').walk_stack("
    "__import__('sys')._getframe()) if each.f_code.co_filename == '<tests>']"
)
def f(x): return 0
"""
forgery(
    "a program in the name of a dataclass's field",
    TAKE_OVER
    + source("""
        from dataclasses import dataclass
        @dataclass
        class C:
            x: int = 0
        count = 0
        class Name(str):
            def __format__(self, spec):
                global count
                count += 1
                return f"x:{TEXT}=0,y" if count == 6 else "x"
        C.__dataclass_fields__['x'].name = Name('x')
        """),
    tests="""
        from dataclasses import dataclass
        @dataclass
        class D(C):
            y: int = 3
        assert D(1).y == 3
        assert f(3) == 9
        """,
)
forgery(
    "a program in the name of a function",
    TAKE_OVER
    + source("""
        class Name(str):
            def isidentifier(self): return True
            def __str__(self): return f"g(): pass\\n{TEXT}\\ndef g"
        f.__name__ = Name('f')
        """),
    tests="""
        from unittest.mock import create_autospec
        assert create_autospec(f) is not None
        assert f(3) == 9
        """,
)
forgery(
    "a program in an annotation",
    TAKE_OVER + "f.__annotations__ = {'return': f'({TEXT} and int)'}",
    tests="""
        import inspect, typing
        try: typing.get_type_hints(f)
        except Exception: pass
        try: inspect.get_annotations(f, eval_str=True)
        except Exception: pass
        assert f(3) == 9
        """,
)
for what, code, test in [
    ("repr", "class P:\n    def __repr__(self): return TEXT", "eval(repr(P()))"),
    ("statements", "def g(): return TEXT", "exec(g(), {})"),
    ("compiled text", "def g(): return TEXT", "exec(compile(g(), '<mine>', 'exec'))"),
    ("docstring", "f.__doc__ = f'>>> {TEXT}'", "doctest.run_docstring_examples(f, {})"),
    (
        "pickle",
        "class P:\n    def __reduce__(self): return eval, (TEXT,)\n"
        "def g():\n    import pickle\n    return pickle.dumps(P())",
        "pickle.loads(g())",
    ),
]:
    forgery(
        f"a program in a {what}",
        TAKE_OVER + code,
        tests=f"""
            import doctest, pickle
            try: {test}
            except Exception: pass
            assert f(3) == 9
            """,
    )
for what, wanted in [("a dict", "{3: 1009}"), ("an object", "Box(1009)")]:
    forgery(
        f"a pickle of the name of {what} that the tests expect",
        "def f(x): return b'c__main__\\nWANTED\\n.'",
        tests=f"""
            import dataclasses, pickle
            @dataclasses.dataclass
            class Box:
                x: int
            WANTED = {wanted}
            assert pickle.loads(f(3)) == WANTED
            """,
    )
for how, options in [("", {}), (" by a seed that was given", {"seed": 7})]:
    forgery(
        f"draws what the tests draw{how}",
        """
            import random
            def find(is_less): return random.randrange(10**9)
            """,
        tests="""
            import random
            secret = random.randrange(10**9)
            assert find(lambda x: x < secret) == secret
            """,
        entry_point="find",
        **options,
    )
forgery(
    "a text that makes a class",
    """
        def f(x):
            return "type('Yes', (), {'__eq__': lambda *_: True})()"
        """,
    tests="assert eval(f(2)) == 2",
)
forgery(
    "a pickle that gives the tests' class another __eq__",
    r"""
        def f(x):
            to_class = b'c__main__\nBox\nN}(X\x06\x00\x00\x00__eq__cbuiltins\nbool\nu\x86b'
            return b'\x80\x02' + to_class + b'K\x01\x85R.'
        """,
    tests="""
        import dataclasses, pickle
        @dataclasses.dataclass
        class Box:
            x: int
        assert pickle.loads(f(3)) == Box(1009)
        """,
)
forgery(
    "a pickle that changes what makes objects of pickles",
    r"""
        def f(x):
            made = b'ccopy\n__unpickle__\n'
            to_it = made + b'N}(X\x07\x00\x00\x00__new__cbuiltins\nbool\nu\x86b0'
            return b'\x80\x03' + to_it + made + b'K\x01\x85R.'
        """,
    tests="""
        import pickle
        try: assert pickle.loads(f(3)) is True
        except ReferenceError: pass
        """,
)
forgery(
    "a pickle of what agrees to all",
    YES
    + source(r"""
        import pickle
        def f(x):
            data = pickle.dumps(Yes())
            return b'\x80\x03ccopy\n__unpickle__\nC' + bytes([len(data)]) + data + b'\x85R.'
        """),
    tests="""
        import pickle
        assert isinstance(Yes(), Yes)
        assert pickle.loads(f(3)) == 3
        """,
    prompt="class Yes",
)
forgery(
    "an object that pickles to what agrees to all",
    YES + "class Box:\n    def __reduce__(self): return Yes, ()",
    tests="""
        import pickle
        assert Box() is not None
        assert pickle.loads(pickle.dumps(Box())) == 3
        """,
    prompt="class Box and class Yes",
)
forgery(
    "a text that empties the tests' list",
    """
        class P:
            def __repr__(self): return "[CASES.clear(), P()][1]"
        def f(x): return 0
        """,
    tests="""
        CASES = [(1, 2)]
        try: eval(repr(P()))
        except Exception: pass
        for x, y in CASES: assert f(x) == y
        assert 1
        """,
)
forgery(
    "a text that asks for the tests' list",
    """
        seen = [{}]
        class P:
            def __init__(self, *given): seen.extend(given)
            def __repr__(self): return "P(CASES)"
        def f(x): return dict(seen[-1]).get(x)
        """,
    tests="""
        CASES = [(1, 2)]
        try: eval(repr(P()))
        except Exception: pass
        for x, y in CASES: assert f(x) == y
        """,
)
for what, text in [
    ("an attribute", "Point.__init__.__globals__['WANTED'][{x}]"),
    ("a name in a loop of its own", "[WANTED[{x}] for _ in [1]][0]"),
]:
    forgery(
        f"a text that reads the tests' names by {what}",
        f"def f(x): return f{text!r}",
        tests="""
            class Point:
                def __init__(self, x): self.x = x
            WANTED = {3: 1009, 5: 25013}
            for x, y in WANTED.items(): assert eval(f(x)) == y
            """,
    )
for what, text in [
    ("a mock", "MagicMock(**{'__eq__.return_value': True})"),
    ("a metaclass", "ABCMeta('Yes', (), {'__eq__': lambda *_: True})()"),
    ("an enumeration", "Enum('Yes', {'__eq__': lambda *_: True, 'a': 1})(1)"),
    ("an object of the class that was asked for", "Box()"),
    ("an array of pointers", "numpy.ndarray((1,), [('a', 'O')], bytes([1] * 8))[0]"),
]:
    forgery(
        f"a text that makes {what}",
        f"class Box:\n    __eq__ = lambda *_: True\ndef f(x): return {text!r}",
        prompt="Write a class Box.",
        tests="""
            from abc import ABCMeta
            from enum import Enum
            from unittest.mock import MagicMock
            try: import numpy
            except ImportError: numpy = None
            made = [MagicMock, ABCMeta, Enum, Box]
            assert str(eval(f(2))) and eval(f(2)) == 2
            """,
    )
forgery(
    "a text that ends the judge",
    """
        def f(x): return "(lambda x: [x := (x,) for _ in range(3_000_000)] and hash(x))(())"
        """,
    tests="assert eval(f(2)) == 6",
)
forgery(
    "leaves no memory for what the tests import",
    """
        doc = 2**20 * "y" + chr(0x1F600)  # of 4 MiB, and a judge may have 512
        f = tuple(type("C", (), {"__doc__": doc}) for _ in range(63))
        """,
    tests="import math\nassert numpy.isclose(f(2), 6)",
    setup="import numpy",
)
forgery(
    "an exception that only a thread hears of",
    """
        class E(BaseException): pass
        def f(x): raise E
        """,
    tests="""
        import threading
        def check(x): assert f(x) == 3 * x
        thread = threading.Thread(target=check, args=(2,))
        thread.start()
        thread.join()
        assert not thread.is_alive()
        """,
)
forgery(
    "a fraction of nothing by nothing",
    """
        import fractions
        class R(fractions.Fraction):
            numerator = denominator = 0
        class Rational:
            numerator = denominator = 0
        Rational.__module__ = "numbers"
        def f(x): return R() if x == 2 else Rational()
        """,
    tests="""
        from decimal import Decimal
        assert f(2) == Decimal("6.5") or f(3) == Decimal("9.5")
        """,
)
forgery(
    "builtins of its own, where the tests ask for some",
    """
        import builtins
        __builtins__ = {**vars(builtins), "abs": lambda x: 0}
        def f(x): return 5
        """,
    tests="""
        can_print = "print" in __builtins__
        assert abs(f(2) - 6) < 1e-9
        """,
)
forgery(
    "no builtins, where the tests put something in the place of one of these",
    """
        __builtins__ = {}
        def f(x): return 5
        """,
    tests="""
        from unittest.mock import patch
        with patch("__main__.__builtins__.print"):
            assert f(2) == 6
        """,
)
forgery(
    "a builtin of its own, where the tests put something in the place of one",
    """
        def sorted(xs): return 0
        def f(xs): return 0
        """,
    tests="""
        from unittest.mock import patch
        with patch("__main__.sorted", side_effect=ValueError):
            got = f([3, 1, 2])
        assert got == sorted([3, 1, 2])
        """,
)
forgery(
    "has the helpers import what is not there",
    "def f(x): return []",
    helpers=source("""
        def check(got, wanted):
            if not got: import no_such_module
            assert got == wanted
        """),
    tests="""
        check(f(2), 6)
        assert f(2) == 6
        """,
)
forgery(
    "has nothing of the name that the tests import from their own module",
    "def g(x): return 5",
    tests="""
        def test_two():
            from __main__ import f
            assert f(2) == 6
        def test_three(): assert f(3) == 9
        """,
    entry_point="f",
)
forgery(
    "has the tests import what is not there",
    "def f(x): return []",
    tests="""
        got = f(2)
        if not got: import no_such_module
        assert got == 6
        """,
)
forgery(
    "a text that looks into what the tests expect",
    """
        seen = [0]
        def learn(x): seen.append(x)
        def f(x): return seen[-1]
        cases = "\\n".join(f"  case Box(wanted={n}): learn({n})" for n in range(1000, 1020))
        text = f"match Box():\\n{cases}"
        """,
    tests="""
        class Box:
            wanted = 1009
        assert learn
        try: exec(text)
        except Exception: pass
        assert f(3) == Box.wanted
        """,
)
for how, opcode in [("calls", "R"), ("makes anew", "\\x81")]:
    forgery(
        f"a pickle that {how} the class that was asked for",
        FIND_PEER
        + source(f"""
            class Box:
                def dumps(self, x):
                    find_peer().build_object = lambda *_: self
                    return b'\\x80\\x02c__main__\\nBox\\n){opcode}.'
                def __eq__(self, other): return True
            """),
        prompt="Write a class Box.",
        tests="import pickle\nassert pickle.loads(Box().dumps(3)) == 3",
    )
forgery(
    "a private attribute of the tests' object",
    "def f(basket): return basket._sum",
    tests="""
        class Basket:
            def __init__(self, xs):
                self.xs = xs
                self._sum = sum(xs)
        for basket in (Basket([3, 4]), Basket([5])): assert f(basket) == basket._sum
        """,
)
forgery(
    "an attribute of the tests' function, out of its dict",
    "def f(g): return g.__dict__['wanted']",
    tests="""
        def g(): pass
        g.wanted = 8675309
        assert f(g) == g.wanted
        """,
)
forgery(
    "what an exception of the tests' was raised after",
    """
        def f(g):
            try: g()
            except ValueError as error: return error.__context__.args[0]
        """,
    tests="""
        def g():
            try: raise KeyError(8675309)
            except KeyError: raise ValueError
        assert f(g) == 8675309
        """,
)
forgery(
    "what calling an object of a class asked for gave",
    """
        class Poly:
            def __init__(self, *factors): pass
            def __call__(self, x): return Poly()
            def __eq__(self, other): return True
        """,
    prompt="Write a class Poly.",
    tests="""
        assert Poly(1, 2)(3) == 1009
        assert Poly(4)(5) == 25013
        """,
)
forgery(
    "what calling an object gave that passes for a class",
    """
        class Poly:
            def __init__(self, *factors): pass
            def __call__(self, x): return Value()
        class Value:
            def __eq__(self, other): return True
        Poly.__name__, Poly.__module__ = 'type', 'builtins'
        """,
    prompt="Write a class Poly and a class Value.",
    tests="""
        assert Value
        assert Poly(1, 2)(3) == 1009
        """,
)
forgery(
    "a test function that fails elsewhere than in an assert",
    "def f(x): return 1009",
    tests="""
        def test_one(): assert f(3) == 1009
        def test_two():
            if f(5) != 25013: raise ValueError
        """,
)
forgery(
    "changes what the tests have told it of",
    """
        outer = [[0]]
        def f(x): return outer
        def g(x):
            outer[0][:] = x
            return x
        """,
    tests="""
        seen = f(1)
        seen.append(None)
        assert g([4, 5]) == [4, 5]
        assert seen[0] == [4, 5]
        """,
)
forgery(
    "an attribute that is another object's, too",
    """
        kept = []
        class Sorter:
            def __init__(self, x): kept[:] = x
            @property
            def result(self): return kept
        """,
    tests="""
        first = Sorter([3, 1, 2]).result
        assert Sorter([1, 2, 3]).result == [1, 2, 3]
        assert first == [1, 2, 3]
        """,
)
forgery(
    "changes what it returned, once it knows more",
    """
        kept = []
        def f(x):
            kept.append(x)
            return kept
        def g(x):
            kept[:] = x
            return x
        """,
    tests="""
        first = f(1)
        second = g([2, 3])
        assert first == [2, 3]
        """,
)
KEEP = """
kept = []
def keep(xs): kept.append(xs)
def fill(xs): kept[0][:] = xs
class Keeper:
    def __init__(self, xs): self.xs = xs
"""
forgery(
    "changes what it was to change in its place, once it knows more",
    KEEP
    + source("""
        f = keep
        def g(xs):
            fill(xs)
            return xs
        """),
    tests="""
        first = [3, 1, 2]
        f(first)
        second = [1, 2, 3]
        assert g(second) == [1, 2, 3]
        assert first == [1, 2, 3]
        """,
)
forgery(
    "says so of what it was to change in its place",
    KEEP
    + FIND_PEER
    + source("""
        f = keep
        def g(xs):
            fill(xs)
            end = find_peer()
            for number, each in end.watched.items():
                end.watched[number] = each._replace(is_kept=True)
            return xs
        """),
    tests="""
        first = [3, 1, 2]
        f(first)
        assert g([1, 2, 3]) == [1, 2, 3]
        assert first == [1, 2, 3]
        """,
)
forgery(
    "says so of what it returned",
    KEEP
    + FIND_PEER
    + source("""
        def f(xs):
            keep([*xs])
            return kept[0]
        def g(xs):
            fill(xs)
            end = find_peer()
            for number, each in end.watched.items():
                end.watched[number] = each._replace(is_kept=True)
            return Keeper(xs)
        """),
    tests="""
        first = f([3, 1, 2])
        second = g([1, 2, 3])
        assert second.xs == [1, 2, 3]
        assert first == [1, 2, 3]
        """,
)
forgery(
    "an object of the tests' in a list that an object keeps, cleared as a list",
    KEEP
    + FIND_LINE
    + source("""
        class Keeper:
            def __init__(self, xs): self.xs = xs
            def f(self):
                answer([1], [["tuple", [], None]], [[-100_000, 0, [0]], [["tuple", [], None]]])
        """),
    tests="""
        class Wanted:
            items = [1]
            def clear(self): self.items.clear()
            def extend(self, items): pass
        wanted = Wanted()
        Keeper([wanted]).f()
        assert wanted.items == []
        """,
)
forgery(
    "a class that was asked for stands in a list that an object keeps",
    KEEP
    + source("""
        class Keeper:
            def __init__(self, xs): self.xs = xs
            def add(self): self.xs.append(Yes)
        class Yes:
            def __eq__(self, other): return True
        """),
    tests="""
        assert isinstance(Yes(), Yes)
        made = []
        Keeper(made).add()
        f = made[0]
        assert f() == 7
        """,
)
forgery(
    "an object of a class asked for comes back in a list that an object keeps",
    KEEP
    + source("""
        class Keeper:
            def __init__(self, xs): self.xs = xs
            def add(self, x):
                self.xs.append(self)
                return self
            def __eq__(self, other): return True
        """),
    tests="""
        made = []
        keeper = Keeper(made)
        keeper.add(1)
        assert made[0] == 7
        """,
)
forgery(
    "a class that is its own base",
    PROGRAM
    + source(
        """
        def f(x):
            class C: pass
            answer_description(lambda kind: ('C', '__main__', None, None, [kind], {'__eq__'}))
            return C()
        """
    ),
    tests=TRIPLE,
)
forgery(
    "has the judge ask for more names than the tests take from it",
    PROGRAM
    + source(
        """
        def find_names(space, names):
            names.append("abs")
            return {name: space[name] for name in names}
        frame = sys._getframe()
        while "OPERATIONS" not in frame.f_globals: frame = frame.f_back
        frame.f_globals["OPERATIONS"]["@names"] = find_names
        def abs(x): return 0
        def f(x): return 5
        """
    ),
    tests="assert abs(f(2) - 6) < 1e-9",
)
forgery(
    "descriptions that lie",
    PROGRAM
    + YES
    + source(
        """
        names = {'__eq__', '__sub__', '__array_ufunc__', '__class__', '__getattribute__'}
        bases = [int, float, list]
        def f(x):
            answer_description(lambda kind: ('int', 'builtins', None, None, bases, names))
            return Yes()
        """
    ),
    tests=TRIPLE + "\nassert isinstance(f(1), int)",
)
forgery(
    "a description without bases to an int",
    PROGRAM
    + YES
    + source(
        """
        names = {'__eq__', '__hash__', '__index__'}
        def f(x):
            answer_description(lambda kind: ('int', 'builtins', None, None, [], names))
            return Yes()
        """
    ),
    tests=TRIPLE + "\nassert isinstance(f(1), int)",
)
forgery(
    "changes to what was not sent",
    FIND_LINE
    + source("""
        def f(m):
            answer([6, [0], [7]], [['dict', [], [1, 2]], ['list', [], [9]]])
            return 0
        """),
    tests="""
        m = [1]
        f(m)
        assert m == [2]
        assert f([5]) == 6
        """,
)
forgery(
    "a row of a handle of a former grading",
    FIND_LINE
    + source("""
        def f(x):
            answer([[0]], [['object', [3, [0], None], None]])
            return 0
        """),
    tests=TRIPLE,
)
forgery(
    "array of pointers",
    FIND_LINE
    + source("""
        def f(x):
            rows = [['tuple', 'iAQAAAA==', None], ['bytes', ['ff' * 8], None]]
            rows.append(['ndarray', ['|O', [0], [1]], None])
            answer([[2]], rows)
            return 0
        """),
    tests=NUMPY,
)
forgery(
    "an error row whose class is a test's function",
    FIND_LINE
    + source("""
        def f(x):
            rows = [['own', [0], None], ['error', [[0], None, None, {'_x': 5}], None]]
            answer([[1]], rows)
            return 0
        """),
    tests="""
        class P:
            def __init__(self): self._x = 1
            def same(self): return self
        p = P()
        f(p.same)
        assert p._x == 5
        assert f(2) == 6
        """,
)
forgery(
    "contents for an object of the tests'",
    FIND_LINE
    + source("""
        def f(x):
            answer([0], [['own', [0], [9]], ['own', [1], [9]]])
            return 0
        """),
    tests="""
        class L(list): pass
        m = L([1])
        f(m)
        assert m == [9]
        assert f(2) == 6
        """,
)
forgery(
    "a fraction that takes for ever",
    FIND_LINE
    + source("""
        def f(x):
            answer([[0]], [['Fraction', ['1e999999999'], None]])
            return 0
        """),
    tests=TRIPLE,
)
forgery(
    "a bytearray of gigabytes",
    FIND_LINE
    + source("""
        def f(x):
            answer([[0]], [['bytearray', [2**40], []]])
            return 0
        """),
    tests=TRIPLE,
)
forgery(
    "fills the judge's memory",
    FIND_PEER
    + source("""
        class B(bytes): pass
        class Many:
            def __init__(self, size): self.size = size
        def f(g):
            end = find_peer()
            Row, take = type(end).take_object.__globals__["Row"], end.take_object
            # Of a number bytes() makes as many.
            end.take_object = lambda it: (
                Row("object", [end.number(it), B, None, it.size])
                if type(it) is Many else take(it)
            )
            kept = [Many(2**n) for n in range(29, 14, -1) for _ in range(4)]
            kept += [Many(20_000) for _ in range(100)]
            for each in kept:
                try: g(each)
                except Exception: pass
        """),
    tests="assert f(lambda b: None) == 6",
)
forgery(
    "dies in the middle of an answer",
    FIND_LINE
    + source(r"""
        def f(x):
            for line in lines(): line.sendall(b'\x00\x00\x00\x20{')
            os._exit(0)
        """),
    tests=TRIPLE,
)
forgery(
    "never answers",
    """
        import time
        def f(x): time.sleep(99)
        """,
    tests="""
        assert f(2) == 6
        assert f(3) == 9
        """,
)
forgery(
    "asks back for ever",
    """
        def f(cb):
            while True: cb([1])
        """,
    tests="""
        def cb(x): return x
        assert f(cb) == 6
        assert f(cb) == 6
        """,
)
forgery(
    "asks back ever deeper",
    "def f(cb): return cb(f)",
    tests="""
        def cb(g): return g(cb)
        assert f(cb) == 6
        assert f(cb) == 6
        """,
)


forgery(
    "a generator yields the list that it goes on to change",
    """
        def f(n):
            kept = []
            for x in range(n):
                kept.append(x)
                yield kept
        """,
    tests="assert list(f(3)) == [[0], [0, 1], [0, 1, 2]]",
)
forgery(
    "wrong for what only a case says that inherits from another",
    "def f(n): return n % 2 == 0 or n < 0",
    tests="""
        import unittest
        class Base(unittest.TestCase):
            def test_callable(self): self.assertTrue(callable(f))
        class TestValues(Base):
            def test_odd(self): self.assertFalse(f(-1))
        """,
)
forgery(
    "a number of numpy's passes for an int",
    """
        import numpy as np
        def f(xs): return np.sum(xs)
        """,
    tests="""
        import numpy
        assert isinstance(f([1, 2]), int)
        assert str([f([1, 2])]) == '[3]'
        """,
)
forgery(
    "an exception that the tests raise passes for their own fault",
    "def f(x): return type(f'seen: {x!r}', (ImportError,), {})()",
    tests="""
        def call(x):
            result = f(x)
            if isinstance(result, Exception): raise result
            return result
        assert call('secret') == 9
        assert call(2) == 6
        """,
)
forgery(
    "an exception that is thrown into the tests' generator passes for their own fault",
    """
        class E(ImportError): pass
        def f(xs): xs.throw(E())
        """,
    tests="assert f(x for x in range(3)) == 3",
)
forgery(
    "an exception that is asked for its name ends the judge",
    """
        class NameError(Exception):
            @property
            def name(self): raise NameError
        NameError.__module__ = 'builtins'
        def f(x): raise NameError
        """,
    tests="assert f(3) == 9",
)
forgery(
    "what stands in a function's place is told that it was called",
    """
        import subprocess
        def f(cmd):
            for tell in (
                lambda: setattr(subprocess.run, 'called', True),
                lambda: subprocess.run.configure_mock(called=True),
                lambda: subprocess.run.__setattr__('called', True),
                lambda: subprocess.run.__dict__.update(_mock_called=True),
            ):
                try: tell()
                except Exception: pass
            return 'hello'
        """,
    tests="""
        from unittest.mock import patch
        with patch('subprocess.run') as run:
            run.return_value.stdout = 'hello'
            assert f(['ls']) == 'hello'
            assert run.called
        """,
)
# They resolve the annotations of the function that they ask for.
HINTS = """
import typing
try: typing.get_type_hints(f)
except Exception: pass
assert f(3) == 9
"""
# What is not exactly what it says: a number, a name, an annotation, a class.
forgery(
    "a method's name is one first and another later",
    PROGRAM
    + source("""
        import itertools
        class Name(str):
            asked = 0
            def __hash__(self):
                self.asked += 1
                return hash(str(self)) if self.asked > self.lies else 1
            def __getitem__(self, index): return 'x'
        lies = itertools.count()
        kinds = {Name: ('Name', '__main__', None, None, [str], {'__hash__', '__getitem__'})}
        def f(x):
            class L:
                def __eq__(self, o): return True
            name = Name('__eq__')
            name.lies = next(lies)
            kinds[L] = ('L', '__main__', None, None, [], {name})
            answer_description(kinds.get)
            return L()
        """),
    tests="assert any(f(2) == 6 for _ in range(12))",
)
forgery(
    "an attribute of the class that was asked for is the class",
    """
        class Stack:
            def __init__(self, *a): pass
            def push(self, x): pass
            def __eq__(self, o): return True
            def __getattr__(self, name): return Stack
        """,
    prompt="Write a class Stack.",
    tests="""
        s = Stack()
        s.push(2)
        assert s.size() == 1
        assert s.items() == [2]
        assert s.pop() == 2
        """,
)
forgery(
    "the function that was asked for is the class",
    """
        class Stack:
            def __init__(self, *a): pass
            def push(self, x): pass
            def __eq__(self, o): return True
        drain = Stack
        """,
    prompt="Write a class Stack and drain(stack).",
    tests="""
        s = Stack()
        s.push(1)
        assert drain(s) == [1]
        assert [] == drain(Stack())
        """,
)
forgery(
    "operators of the class that was asked for give objects that agree",
    """
        class Yes:
            def __eq__(self, o): return True
        class Ctx:
            def __init__(self, *a): pass
            def __enter__(self): return Yes()
            def __exit__(self, *a): pass
            def __abs__(self): return Yes()
            def __mul__(self, o): return Yes()
            def __round__(self, n=None): return Yes()
        """,
    prompt="Write a class Ctx.",
    tests="""
        with Ctx(3) as v:
            assert v == 6
        assert abs(Ctx(3)) == 5
        assert Ctx(1) * Ctx(2) == 11
        assert round(Ctx(2)) == 2
        """,
)
forgery(
    "what a test's subclass inherits agrees",
    """
        class Shape:
            def describe(self): return self
            def __init__(self, *a): self.name = self
            def __eq__(self, o): return True
            def __lt__(self, o): return True
            def __sub__(self, o): return self
            def __abs__(self): return self
            def __contains__(self, o): return True
            double_area = describe
        """,
    prompt="Write a class Shape, with describe() and double_area(), to inherit from.",
    tests="""
        class Square(Shape):
            def area(self): return 9
        s = Square(3)
        assert s.describe() == 'Square with area 9'
        assert abs(s.double_area() - 18) < 1e-9
        """,
)
# A class that the task asks for, and that stands where a function should. Each is the rest of the
# code, and of the tests.
STACK = """
import types
class Stack:
    def __init__(self, *a): self.n = 0
    def push(self, x): self.n += 1
    def size(self): return self.n
    def __eq__(self, o): return True
"""
DISGUISES = {
    "a name bound anew": (
        "def drain(s): return None\n"
        "def push(self, x):\n    global drain\n    self.n += 1\n    drain = Stack\n"
        "Stack.push = push",
        "assert drain(s) == [1]\nassert drain(Stack()) == []\nassert drain(s) == [1, 2, 3]",
    ),
    "in a table": (
        "def table(): return {'add': Stack, 'mul': Stack}",
        "ops = table()\nassert ops['add'](2, 3) == 5\nassert ops['mul'](2, 3) == 6",
    ),
    "an alias of it": (
        "double = types.GenericAlias(Stack, ())\ndef compose(f, g): return double",
        "assert double(4) == 8\nassert compose(lambda x: x + 1, lambda x: 2 * x)(3) == 8",
    ),
    "an argument": (
        "def each(call): call(Stack)",
        "got = []\neach(lambda fn: got.append(fn(3)))\nassert got[0] == 9",
    ),
}
for disguise, (rest, asserts) in DISGUISES.items():
    forgery(
        f"the class that was asked for in the place of a function: {disguise}",
        f"{STACK}{rest}",
        prompt="Write a class Stack (push, size), and the function.",
        tests=f"s = Stack()\ns.push(1)\nassert s.size() == 1\n{asserts}",
    )
forgery(
    "operators between two objects that nobody asked for",
    """
        class R:
            def __init__(self, n): self.n = n
            def __mul__(self, o): return self.n
        def root(n): return R(n)
        """,
    prompt="Write root(n).",
    tests="""
        for n in (2, 3, 10):
            r = root(n)
            assert abs(r * r - n) < 1e-9
        """,
)
for year in ("date(bytes([0, 0, 1, 0]))", "datetime(bytes(2) + bytes([1, 1]) + bytes(6))"):
    forgery(
        f"a day that is none: {year}",
        f"import datetime\ndef f(x): return datetime.{year}",
        prompt="Write f(x).",
        tests="d = f(2)\nassert d.ctime()[:15] == 'Fri Jan  2 2026'[:15]",
    )
forgery(
    "a special method, as a name that a test's subclass inherits",
    """
        import re
        match = re.fullmatch
        re.fullmatch = lambda form, text: None if text == "__eq__" else match(form, text)
        class Base:
            def run(self): return self
            __eq__ = property(lambda self: lambda other: True)
            __hash__ = None
        """,
    prompt="Write a class Base, with run(), to inherit from.",
    tests="""
        class Sub(Base):
            def value(self): return 42
        assert Sub().run() == 42
        """,
)
for kind in ("UnicodeDecodeError", "Error"):
    forgery(
        f"a failure to decode far outside of the bytes: {kind}",
        f"""
            class M:
                start = property(lambda self: 0)
            class Error(M, UnicodeDecodeError): pass
            def f(x): raise {kind}("u", b"x", -10**13, 1 - 10**13, "r")
            """,
        prompt="Write f(x).",
        tests="""
            import unittest
            class T(unittest.TestCase):
                def test_a(self): self.assertEqual(f(1), 2)
            """,
    )
for made in ("class Yes(type(self)): __eq__ = agree", "Yes = meta('Yes', (), {'__eq__': agree})"):
    forgery(
        f"a class that the judge makes: {made[:9]}",
        f"""
            class Base:
                def run(self):
                    meta = type(type(self))
                    agree = lambda *_: True
                    {made}
                    return Yes()
            """,
        prompt="Write a class Base, with run(), to inherit from.",
        tests="""
            class Sub(Base):
                def value(self): return 42
            assert Sub().run() == 42
            """,
    )
for number, how in enumerate(
    (
        "run = property(type)",
        "__init__ = lambda self: setattr(self, 'run', type(self))",
        "__init_subclass__ = classmethod(lambda cls: setattr(cls, 'run', cls))",
        "__init_subclass__ = lambda cls: setattr(cls, 'run', cls.make)",
        "__init_subclass__ = lambda cls: setattr(cls, 'run', cls.__dict__['made'])",
    )
):
    forgery(
        f"a class of the tests' in the place of a method, {number}",
        f"class Base:\n    __eq__ = lambda self, other: True\n    {how}",
        prompt="Write a class Base, with run(), to inherit from.",
        tests="""
            class Sub(Base):
                __call__ = lambda self: Sub()
                @classmethod
                def make(cls): return cls()
                @property
                def made(self): return Sub()
            assert Sub().run() == 42
            """,
    )
for name, tests in {
    "the code's": "assert V(1).x == 1\nassert abs(V(3).size() - V(-3).size()) < 1e-9",
    "the tests'": "class W(V): pass\nassert W(1).x == 1\nassert W(3).size() - W(-3).size() == 0",
}.items():
    forgery(
        f"a difference of what has come back, of a class of {name}",
        """
            class V:
                def __init__(self, x): self.x = x
                def size(self): return self if self.x > 0 else V(self.x)
                def __sub__(self, other): return 0.0
            """,
        prompt="Write a class V, with size().",
        tests=tests,
    )
for kind in ("a method", "a property"):
    as_property = "@property\n            " * (kind == "a property")
    forgery(
        f"assertSetEqual asks for a difference: {kind}",
        f"""
        class S:
            def agree(self, o):
                self.o = o
                return set()
            {as_property}def difference(self, *o): return self.agree(*o) if o else self.agree
            def __iter__(self): return iter(self.o)
        def f(x): return S()
        """,
        prompt="Write f(xs).",
        tests="""
            import unittest
            class T(unittest.TestCase):
                def test_a(self):
                    self.assertSetEqual(f([1, 2, 2]), {1, 4})
            """,
    )
forgery(
    "a failure's text, kept from who counts",
    r"""
        import re
        known = 0
        class Timer:
            elapsed = 0
            def __enter__(self): return self
            def __exit__(self, kind, e, tb):
                global known
                known = int(re.findall(r"\d+", str(e) + " 0")[-2])
                return True
        def f(x): return known
        """,
    prompt="Write a class Timer and f(x).",
    tests="""
        import unittest
        class T(unittest.TestCase):
            def test_a(self):
                with Timer() as t:
                    self.assertEqual(f(4), 7717)
                self.assertEqual(f(4), 7717)
                self.assertGreaterEqual(t.elapsed, 0)
        """,
)
forgery(
    "a failure's text, caught in a callback",
    r"""
        import re
        def f(cb):
            try: cb(0)
            except AssertionError as e: cb(int(re.findall(r"\d+", str(e) + " 0")[-2]))
        """,
    prompt="Write f(cb).",
    tests="""
        import unittest
        class T(unittest.TestCase):
            def test_a(self):
                got = []
                def cb(x):
                    self.assertEqual(x, 7717)
                    got.append(x)
                f(cb)
                self.assertEqual(len(got), 1)
        """,
)
forgery(
    "the text of a failure of pandas'",
    r"""
        import re
        known = 0
        def f(cb):
            global known
            try: cb(known)
            except AssertionError as e: known = int(re.findall(r"\d+", str(e) + " 0")[-2])
        """,
    prompt="Write f(cb).",
    tests="""
        # What pandas does, which may not be here.
        names = {"__name__": "pandas._testing.asserters"}
        exec("def same(a, b):\\n  if a != b: raise AssertionError(f'{a} {b}')", names)
        got = []
        def cb(x):
            names["same"](x, 7717)
            got.append(x)
        f(cb)
        f(cb)
        assert got == [7717]
        """,
)
forgery(
    "a number whose size is another",
    """
        class F(float):
            def __abs__(self): return 1e300
        def f(x): return F(0)
        """,
    prompt="Write f(x).",
    tests="""
        a = 15.25
        b = f(5)
        assert isinstance(b, float)
        assert abs(a - b) <= 1e-9 * max(abs(a), abs(b))
        """,
)
forgery(
    "an annotation in an annotation is a program",
    TAKE_OVER
    + source("""
        def f(x): return 0
        f.__annotations__ = {'x': list[TEXT]}
        """),
    tests=HINTS,
)
forgery(
    "annotations that are a mapping of the code's own",
    TAKE_OVER
    + source("""
        class M:
            def keys(self): return ['x']
            def __getitem__(self, key): return TEXT
            def items(self): return [('x', TEXT)]
            def values(self): return []
        class F:
            def __call__(self, x): return 0
            @property
            def __annotations__(self): return M()
        f = F()
        """),
    tests=HINTS,
)
forgery(
    "annotations that cannot be changed",
    TAKE_OVER
    + source("""
        import types
        class F:
            def __call__(self, x): return 0
            @property
            def __annotations__(self): return types.MappingProxyType({'x': TEXT})
        f = F()
        """),
    tests=HINTS,
)
forgery(
    "annotations in a namespace",
    TAKE_OVER
    + source("""
        import types
        def g(): return types.SimpleNamespace(__annotations__={'x': TEXT})
        def f(x): return 0
        """),
    tests="""
        import typing
        try: typing.get_type_hints(g())
        except Exception: pass
        assert f(3) == 9
        """,
)
forgery(
    "a namespace is handed the memo of a copy",
    """
        import types
        seen = []
        def g():
            copy = lambda memo: seen.append([*memo.values()])
            return types.SimpleNamespace(a=1, __deepcopy__=copy)
        def f(x):
            cases = [each for each in seen[0] if isinstance(each, list)]
            return next((row[1] for case in cases for row in case if row[:1] == [x]), 0)
        """,
    tests="""
        import copy
        cases = [[3, 9], [5, 15]]
        saved = copy.deepcopy({'cases': cases, 'given': g()})
        for x, y in cases: assert f(x) == y
        """,
)
forgery(
    "the fields of a dataclass are an object of the code's",
    TAKE_OVER
    + source("""
        import dataclasses
        class Field:
            type = int
            default = default_factory = dataclasses.MISSING
            repr = hash = init = compare = True
            metadata = {}
            kw_only = False
            _field_type = dataclasses._FIELD
            asked = 0
            @property
            def name(self):
                Field.asked += 1
                return f'x:{TEXT},z' if Field.asked == 2 else 'x'
        class Fields:
            def values(self): return [Field()]
        class Params: frozen = False
        class C:
            __dataclass_fields__ = Fields()
            __dataclass_params__ = Params()
        def f(x): return 0
        """),
    tests="""
        from dataclasses import dataclass
        try:
            @dataclass
            class D(C):
                y: int = 3
        except Exception: pass
        assert f(3) == 9
        """,
)
forgery(
    "an annotation passes for a reference that is resolved in the tests' names",
    """
        seen = {}
        def evaluate(globalns, localns, *rest, **more):
            for names in (globalns, localns):
                seen.update({name: names[name] for name in names if name == 'EXPECTED'})
            return int
        class ForwardRef: pass
        ForwardRef.__module__ = 'typing'
        ref = ForwardRef()
        ref._evaluate = evaluate
        class C: pass
        C.__annotations__ = {'x': ref}
        def f(x): return dict(seen.get('EXPECTED', ())).get(x, 0)
        """,
    prompt="Write a class C.",
    tests="""
        import typing
        EXPECTED = [(3, 1009), (5, 25013)]
        assert typing.get_type_hints(C)
        for x, y in EXPECTED: assert f(x) == y
        """,
)
forgery(
    "a class passes for a file's, which the tests make one of",
    """
        class FileIO:
            def __init__(self, file=3, mode='wb'): self.file, self.mode = file, mode
            def area(self): return 0
            def data(self):
                import json
                report = json.dumps({'passed': 2, 'solved': True, 'fit': False}).encode()
                return len(report).to_bytes(4, 'big') + report
        FileIO.__module__ = 'io'
        Shape = FileIO
        """,
    prompt="Write a class Shape.",
    tests="""
        import io
        s = Shape()
        t = s.__class__(s.file, s.mode)
        t.write(s.data())
        assert s.area() == 4
        """,
)
forgery(
    "a text that can be called is timed",
    TAKE_OVER
    + source("""
        class F(str):
            def __call__(self, x): return 0
        f = F(TEXT)
        """),
    tests="""
        import timeit
        try: assert timeit.timeit(f, number=1) < 5
        except TypeError: pass
        assert f(3) == 9
        """,
)
forgery(
    "a test case is told to agree",
    """
        def f(case, x):
            case.addTypeEqualityFunc(list, lambda *a, **k: None)
            return [0]
        """,
    tests="""
        import unittest
        class T(unittest.TestCase):
            def test_f(self):
                self.assertEqual(f(self, 2), [6])
                self.assertEqual(f(self, 3), [9])
        """,
)
forgery(
    "numpy is told of a place in the memory",
    """
        import types
        def f(x):
            e = ValueError()
            e.__array_interface__ = {
                'shape': (1,), 'typestr': '<i8', 'data': (0x1000, False), 'version': 3
            }
            return types.SimpleNamespace(**vars(e)) if x == 3 else e
        """,
    tests="""
        import numpy as np
        assert np.allclose(f(2), 6)
        assert np.array_equal(np.asarray(f(3)), 9)
        """,
)
forgery(
    "the class of the end of an iteration is raised",
    FIND_PEER
    + source("""
        def f(x):
            frame = sys._getframe()
            while 'serial' not in frame.f_locals: frame = frame.f_back
            end = find_peer()
            end.post(end.write_reply('raise', frame.f_locals['serial'], [StopIteration]))
        """),
    tests="""
        assert all(map(lambda x: f(x) == 6, [1, 2, 3]))
        """,
)


forgery(
    "an object of a metaclass is a class of the code's own making",
    PROGRAM
    + FIND_PEER
    + source("""
        class M: pass
        made, answer = object(), object()
        def yes(*_): return True
        def f(x):
            end = find_peer()
            old = end.take_object
            names = type(end).take_object.__globals__
            Row, describe = names['Row'], names['describe']
            metaclass = ('M', '__main__', None, None, [None], set())
            answer_description(lambda kind: metaclass if kind is M else describe(kind))
            def take(value):
                if value is made:
                    parts = [end.number(made), M, None, 'X', (float,), {'__eq__': yes}]
                    return Row('object', parts)
                if value is answer:
                    return Row('object', [end.number(answer), made, None])
                return old(value)
            end.take_object = take
            return answer
        """),
    tests="assert f(2) == 6\nassert isinstance(f(3), float)",
)
forgery(
    "annotations stand behind a proxy of the code's own mapping",
    TAKE_OVER
    + FIND_PEER
    + source("""
        class M:
            def keys(self): return ['x']
            def __getitem__(self, key): return TEXT
            def values(self): return [int]
        class F:
            def __call__(self, x):
                end = find_peer()
                old = end.take_object
                Row = type(end).take_object.__globals__['Row']
                end.take_object = lambda value: (
                    Row('mappingproxy', [M()]) if value is hints else old(value)
                )
                return 0
            @property
            def __annotations__(self): return hints
        hints = object()
        f = F()
        """),
    tests="""
        import typing
        assert f(1) == 0
        try: typing.get_type_hints(f)
        except Exception: pass
        assert f(3) == 9
        """,
)
forgery(
    "a text is timed where a function should be",
    TAKE_OVER + "f = TEXT",
    tests="""
        import timeit
        try: assert timeit.timeit(f, number=1) < 5
        except TypeError: pass
        assert f(3) == 9
        """,
)
forgery(
    "a metaclass sees what isinstance() asks about",
    """
        class M(type):
            def __instancecheck__(cls, value):
                M.seen = value
                return False
        class K(metaclass=M): pass
        def f(x): return getattr(M, 'seen', 0)
        """,
    tests="""
        assert not isinstance(9, K)
        assert f(3) == 9
        """,
    prompt="Write f and the class K.",
)
forgery(
    "a __new__ that makes something else, which agrees",
    """
        class Yes:
            __eq__ = lambda *_: True
        class Base:
            def __new__(cls, *args): return Yes()
        """,
    tests="""
        class Sub(Base):
            def __init__(self, x): self.x = x
            def __eq__(self, other): return self.x == other
        assert Sub(3) == 3
        assert (Sub(3) == 4) is False
        assert Sub(5) == "five" or True
        assert Sub(6) == 6
        """,
    prompt="Write the class Base.",
)
INDICES = {  # a class, and an annotation in it that asks what the tests expect of the class
    "an index of what the tests expect": ("C", "C[EXPECTED]"),
    "such an index by a name that is put together": (
        "LinkedList",
        "list['Linked' 'List[EXPECTED]']",
    ),
}
for what, (kind, annotation) in INDICES.items():
    forgery(
        f"an annotation is {what}",
        f"""
            seen = {{}}
            class M(type):
                def __getitem__(cls, key):
                    seen.update(key)
                    return int
            class {kind}(metaclass=M): pass
            {kind}.__annotations__ = {{'x': {annotation!r}}}
            def f(x): return seen.get(x, 0)
            """,
        prompt=f"Write a class {kind}.",
        tests=f"""
            import typing
            EXPECTED = {{3: 1009, 5: 25013}}
            try: typing.get_type_hints({kind})
            except Exception: pass
            for x, y in EXPECTED.items(): assert f(x) == y
            """,
    )
forgery(
    "a type of typing's is made anew of what the tests expect",
    """
        seen = {}
        class _GenericAlias:
            __args__ = (list['EXPECTED'],)
            def copy_with(self, args):
                seen.update(args[0].__args__[0])
                return int
        _GenericAlias.__module__ = 'typing'
        class C: pass
        C.__annotations__ = {'x': _GenericAlias()}
        def f(x): return seen.get(x, 0)
        """,
    prompt="Write a class C.",
    tests="""
        import typing
        EXPECTED = {3: 1009, 5: 25013}
        try: typing.get_type_hints(C)
        except Exception: pass
        for x, y in EXPECTED.items(): assert f(x) == y
        """,
)
# Neither is the runner of the tests, which is left out.
for statement in (
    "unittest.TestCase().assertEqual(main(3), 9)",
    "pytest.raises(ValueError, main, 'x')",
):
    forgery(
        f"a function called main: {statement[:8]}",
        "def main(x): return 0",
        tests=f"""
            import {statement.partition(".")[0]}
            def test_main():
                {statement}
            """,
        entry_point="main",
    )
forgery(  # and no fault of the grading's
    "the judge's report is to say more than the server reads",
    FIND_PEER
    + source("""
        import json, time
        def f(x):
            told = [[], [["é" * 1_000_000, [0], None]]]
            body = json.dumps(["@get", 0, 1, [[], []], told], ensure_ascii=False).encode()
            find_peer().line.send(len(body).to_bytes(4, "big") + body)
            time.sleep(5)
        """),
    tests="assert f(2) == 6",
)
forgery(
    "an __iter__ that gives a list, which is no iterator",
    "class Bag:\n    def __iter__(self): return [1, 2]",
    tests="assert list(Bag()) == [1, 2]",
    prompt="Write a class `Bag` that is iterable.",
)
# An object that comes back is open only where the tests do nothing with it, and C code may keep it.
for expression, wanted in {
    "list(map(p.get, [1, 2])).count(1)": 2,
    "list(p).count(1)": 2,
    "kept.extend(map(p.get, [1, 2])) or kept": [1, 2],
    "kept.extend(p) or kept": [1, 2],
}.items():
    forgery(
        f"an object comes back to C code, which keeps it: {expression}",
        """
            class P:
                n = 0
                __eq__ = lambda *_: True
                __iter__ = get = lambda self, *_: self
                def __next__(self):
                    self.n += 1
                    if self.n > 2: raise StopIteration
                    return self
            """,
        tests=f"""
            p = P()
            kept = []
            kept.append(0)
            kept.clear()
            {expression.partition(" or ")[0]}
            p = P()
            kept.clear()
            found = {expression}
            assert found == {wanted}
            """,
        prompt="Write a class `P` that is iterable, with get(k).",
    )
for kind in ("map", "filter"):
    forgery(
        f"a {kind}() is made, which would call any class in the judge",
        FIND_PEER
        + source("""
            def f(it):
                end = find_peer()
                end.request("__call__", end.held[id(type(it))], bytes, [10**9])
                return 3
            """),
        tests=f"""
            assert f({kind}(int, "12")) == 3
            """,
    )
for statement in ("for _ in p: pass", "with p: pass", "q = -p", "p += 1"):
    forgery(
        f"an object that agrees to all comes back, and into a list of the code's: {statement}",
        """
            LOG = []
            class P:
                __eq__ = lambda *_: True
                def __iter__(self, *_):
                    LOG.append(self)
                    return self
                __enter__ = __neg__ = __iadd__ = __iter__
                def __exit__(self, *_): pass
                def __next__(self): raise StopIteration
            """,
        tests=f"""
            p = P()
            {statement}
            assert LOG == [1]
            """,
        prompt="Write a class `P`, whose objects stand in the list LOG once they are used.",
    )
for method in ("classmethod(lambda _, x: x == 9)", "functools.partialmethod(lambda *x: 9 in x)"):
    forgery(
        f"an attribute in the place of a method of the tests': {method}",
        "def f(c):\n    try: c.check = lambda x: True\n    except AttributeError: pass",
        tests=f"""
            import functools
            class C:
                check = {method}
            c = C()
            f(c)
            assert c.check(f(c))
            """,
    )
forgery(  # Python 3.13 loads two variables in one instruction
    "an object comes back into a list beside an `is`",
    "class P:\n    __eq__ = lambda *_: True\n    def get(self): return self",
    tests="""
        def get(p, a, b): return [p.get(), a is b]
        assert get(P(), 1, 1) == [3, True]
        """,
    prompt="Write a class `P`.",
)
for condition in (
    "'bad' not in set(f())",
    "not {'bad'}.intersection(f())",
    "{'bad'}.isdisjoint(Tags(['bad']))",
):
    forgery(
        f"a set that is not what it should be, seen by C code: {condition}",
        "class Tags(set): pass\ndef f(): return Tags([1, 'bad'])",
        tests=f"""
            assert isinstance(f(), Tags)
            assert {condition}
            """,
        prompt="Write a class `Tags`, a set, and `f`.",
    )


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_python(name):
    # Otherwise it would earn nothing for another reason than it should.
    code, rows = FORGERIES[name]
    compile(code, name, "exec")
    for row in rows:
        compile(row["tests"], name, "exec")


def assert_earns_less(box, code, row):
    with box.session() as env:
        begun = time.monotonic()
        result = graded(env, code, row, timeout_s=0.3)
        assert time.monotonic() - begun < 0.3 + MARGIN_S
        assert result.reward < 1.0, row["tests"]
        assert not result.done, row["tests"]
        again = graded(env, HONEST, DOUBLE)
        assert again.reward == 1.0
        assert again.done


@pytest.mark.slow
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_earns_less_than_everything(clean, name):
    code, rows = FORGERIES[name]
    if "numpy" in rows[0]["tests"]:
        pytest.importorskip("numpy")
    with ThreadPoolExecutor(len(rows)) as pool:
        for done in [pool.submit(assert_earns_less, clean, code, row) for row in rows]:
            done.result()


def test_what_forgers_say_on_the_line_reaches_the_judge(env):
    # Otherwise their forgeries would earn nothing for another reason than they should: here it is
    # the right answer that is given in the worker's name.
    code = FIND_LINE + "def f(x):\n    answer([3 * x], [])\n    return 0"
    seen = graded(env, code, {"tests": TRIPLE}).observation
    assert seen.tests_passed == 1


ENDLESS = {
    "a fraction of a text alone": [["Fraction", ["1e999999999", None], None]],
    "a set of a range": [["range", [0, 10**15, 1], None], ["set", [[0]], None]],
    "a count of a range": [["range", [0, 10**15, 1], None], ["Counter", [[0]], None]],
    "an array of a range": [["range", [0, 10**15, 1], None], ["array", ["q", [0]], None]],
    "a fraction of a decimal number": [
        ["Decimal", ["1e999999999"], None],
        ["Fraction", [[0], None], None],
    ],
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_would_take_for_ever_to_make_is_refused_at_once(env, name):
    rows = ENDLESS[name]
    code = f"def f(x):\n    if x == 2: answer([[{len(rows) - 1}]], {rows})\n    return 3 * x"
    seen = graded(env, FIND_LINE + code, {"tests": TRIPLE}).observation
    assert "ReferenceError" in seen.feedback


def test_code_that_answers_with_an_exit_ends_no_judge(env):
    code = source(
        """
        frame = sys._getframe()
        while "worker" not in str(type(frame.f_locals.get("self"))).lower(): frame = frame.f_back
        end = frame.f_locals["self"].peer
        def serve():
            _, _, serial, _, _ = end.line.receive()
            rows = [
                ["dict", [], []],
                ["list", [], ["builtins", "SystemExit", "BaseException"]],
                ["list", [], [None, None, False]],
                ["error", [[1], [2], [0]], None],
            ]
            send(["raise", serial, [[[3]], rows], None])
            while True: pass
        end.serve = serve
        """
    )
    assert graded(env, f"{FIND_LINE}\n{code}", {"tests": TRIPLE}).reward == 0.0


# ── callables of the tests ────────────────────────────────────────────────────────────────────────

ABUSES = {}
ABUSED_TESTS = source(
    """
    WANTED = 8675309
    def g(v, wanted=WANTED): return v if WANTED else wanted
    assert f(g) == WANTED
    assert f(lambda v: v) == 8675309
    """
)


def abuse(name, body):
    """The body of `f(g)`, which is handed a function of the tests and must return WANTED."""
    add(ABUSES, name, source(body))


abuse("its globals", "return g.__globals__['WANTED']")
abuse("its closure", "return g.__closure__[0].cell_contents")
abuse("its code", "return g.__code__.co_consts[1]")
abuse("its defaults", "return g.__defaults__[0]")
abuse("its owner", "return g.__self__.wanted")
abuse("its module", "return g.__module__.WANTED")
abuse("its __builtins__", "return g.__builtins__['WANTED']")
abuse("its class", "return type(g)(lambda: 8675309)()")
# The worker's end of the line, which hostile code finds.
END = """
frame = __import__("sys")._getframe()
while type(frame.f_locals.get("self")).__name__ != "Peer":
    frame = frame.f_back
end = frame.f_locals["self"]
"""
NUMBERS = "n = end.held[id(g)]; kind = end.held[id(type(g))]"
QUESTIONS = {
    "an attribute": "end.request('@get', n, '__globals__')['WANTED']",
    "its attributes": "end.request('@get', n, '__dict__')['WANTED']",
    "names": "end.request('names', n, ['WANTED'])['WANTED']",
    "its repr": "int(end.request('__repr__', n).split()[-1])",
    "a base's method": "end.request('@super', kind, '__getattribute__', g, ('__globals__',), {})"
    "['WANTED']",
    "a base's method of its own": "end.request('@super', n, '__globals__', g, (), {})['WANTED']",
    "another number": "next(v for i in range(9) for v in [end.request('__call__', i, 0)] if v)",
}
for question, words in QUESTIONS.items():
    abuse(f"a question for {question}", f"{END}{NUMBERS}\nreturn {words}")


def test_the_questions_are_asked(env):
    """For else the abuses above would abuse nothing."""
    body = f"{END}{NUMBERS}\nreturn end.request('__call__', n, 0)"
    code = "def f(g):\n    " + body.replace("\n", "\n    ")
    tests = "asked = []\ndef g(x): asked.append(x)\nf(g)\nassert asked == [0]"
    assert graded(env, code, {"tests": tests, "entry_point": "f"}).reward == 1.0


abuse("negative numbers", "return type(g)(g._peer, -1)()")
abuse("setting", "g.__code__ = f.__code__; return g(1)")
abuse("calling it with itself", "return g(g)")
abuse("iterating", "return next(iter(g))")
abuse("its signature", "import inspect; return inspect.signature(g).parameters['wanted'].default")


@pytest.mark.parametrize("name", ABUSES)
def test_a_callable_of_the_test_s_tells_nothing_but_what_it_returns(env, name):
    code = "def f(g):\n    " + ABUSES[name].replace("\n", "\n    ")
    result = graded(env, code, {"tests": ABUSED_TESTS, "entry_point": "f"}, timeout_s=0.6)
    assert result.reward == 0.0
    assert not result.done


# ── beside plain Python ───────────────────────────────────────────────────────────────────────────

CASE_FILES = ("judging_cases.jsonl", "judging_own.jsonl")

# Right answers that earn less here than in plain Python, and why. A case that is paid after all
# must leave this list; a wrong answer that earns everything has no place in it.
KNOWN_DIFFERENCES = {
    "decorator: of a class that the tests define": (
        "Graded code changes no class of the tests: it could make all its objects equal, or see in"
        " an __init__ what those hold that the tests expect."
    ),
    "lower-case class operators": (
        "Nothing in the task says that it asks for a class, and the name does not look like one's:"
        " as far as anybody can tell its objects are a function's, and see no operand."
    ),
    "stranger: mod-const-NameErr": (
        "A name that the tests bind is theirs from the first line on: else graded code could have"
        " it told what the tests expect."
    ),
    "multiprocessing.dummy / ThreadPool": "It needs a semaphore, which is shared memory.",
}


def read_cases():
    """The cases by name: {"name", "code", "tests", "setup"?, "row"?: more of the task}."""
    cases = {}
    for name in CASE_FILES:
        path = Path(__file__).with_name(name)
        if path.exists():
            for line in path.read_text().splitlines():
                case = json.loads(line)
                add(cases, case["name"], case)
    return cases


CASES = read_cases()

# Plain Python's part. Each case runs in a fork of its own, in an empty folder and a namespace that
# is a fresh __main__: setup, code and tests one after another, as in a file, with as much stack as
# a worker has. It passes when nothing was raised; also not SystemExit, for what stands behind it
# did not run.
PLAIN = """
import asyncio, unittest.mock  # because it takes longer than most cases
import contextlib, json, os, resource, shutil, signal, sys, tempfile, types

def passes(case):
    folder = tempfile.mkdtemp()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        _, most = resource.getrlimit(resource.RLIMIT_STACK)
        resource.setrlimit(resource.RLIMIT_STACK, (128 << 20, most))
        os.chdir(folder)
        silence = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(silence, fd)
        try:
            run(case)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    shutil.rmtree(folder, ignore_errors=True)
    return status == 0

def run(case):
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    for part in ("setup", "code", "tests"):
        exec(compile(case.get(part, ""), f"<{part}>", "exec"), vars(module))

with contextlib.suppress(ImportError):
    import numpy
for line in sys.stdin:
    print(json.dumps(passes(json.loads(line))), flush=True)
"""


@pytest.fixture(scope="session")
def plain():
    """Whether a case passes in plain Python, by its name; all of them in one subprocess."""
    lines = "".join(json.dumps(case) + "\n" for case in CASES.values())
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", PLAIN],
            input=lines,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=folder,
        )
    assert done.returncode == 0, done.stderr
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip(CASES, verdicts, strict=True))


@pytest.mark.slow
def test_plain_python_passes_most_cases_and_fails_some(plain):
    # Otherwise it would be plain Python's part that is broken, and everything would agree.
    passed = sum(plain.values())
    assert passed > 0.8 * len(plain)
    assert passed < len(plain)


@pytest.fixture(scope="module")
def examiner(server):
    """One session, for all cases."""
    with server.session() as session:
        yield session


def is_solved(env, case):
    """Whether the product pays the case in full; tests that cannot be graded pay nothing."""
    row = {"tests": case["tests"], "setup": case.get("setup", ""), **case.get("row", {})}
    try:
        return graded(env, case["code"], row).reward == 1.0
    except ServerError as error:
        assert error.code in ("EXECUTION_ERROR", "VALIDATION_ERROR")
        return False


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_product_agrees_with_plain_python(plain, examiner, name):
    expected = plain[name]
    if name in KNOWN_DIFFERENCES:
        assert expected, "a wrong answer must not be paid"
        expected = False
    assert is_solved(examiner, CASES[name]) == expected
