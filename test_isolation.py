"""Chapter 12, isolation: what a locked-down process can do, and what it cannot.

The cases are functions that run in a real child. Their source goes to a fresh interpreter, which
gives up its privileges as the zygote does, forks as the zygote does, and calls the function there:

    def test_something():
        def case():
            assert error_of(os.fork) == "EPERM"

        ended_well(in_child(case))

So a case may use what is imported here, the TOOLS below, and its arguments; nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import inspect
import json
import mmap
import os
import platform
import random
import re
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import pytest

import python_env

HERE = Path(python_env.__file__).parent
X86 = platform.machine() == "x86_64"
ONES = 2**64 - 1

# ── the only access to the module's insides ───────────────────────────────────────────────────────


def restrict_zygote(module, hidden):
    """What the zygote gives up for itself and its children; it returns what lock_down() takes."""
    isolation = module.Isolation(hidden)
    isolation.restrict_zygote()
    return isolation


def lock_down(isolation, role, folder, limits):
    """What a child of it gives up besides. Its own descriptors are 0 to 4."""
    isolation.lock_down(role, folder, limits)


def probe(isolation):
    """The isolation that was truly reached, as /health tells it."""
    return isolation.probe()


def build_filters(machine, role="worker"):
    """The filters that a process meets, the newest first; of (code, if true, if false, operand)."""
    own = {"worker": "", "judge": python_env.JUDGE_CALLS, "sweeper": python_env.SWEEPER_CALLS}[role]
    return [
        python_env.build_child_filter(machine, own),
        python_env.build_base_filter(machine),
    ]


TABLES = "\n".join(
    getattr(python_env, name)
    for name in ("SYSTEM_CALLS", "JUDGE_CALLS", "SWEEPER_CALLS", "ZYGOTE_CALLS")
)
WORKER_TABLE = python_env.SYSTEM_CALLS
PID = python_env.PID  # stands for a process's own pid in a filter
AUDIT_ARCHITECTURES = {machine: number for machine, (_, number) in python_env.MACHINES.items()}


# ── cases in real children ────────────────────────────────────────────────────────────────────────


def system_call(number, *arguments):
    """A raw system call: its result, or -errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    libc.syscall.argtypes = [ctypes.c_ulong] * 7
    result = libc.syscall(number, *arguments, *[0] * (6 - len(arguments)))
    return -ctypes.get_errno() if result == -1 else result


def error_of(function, *arguments, **options):
    """The errno's name with which it fails, or None."""
    try:
        function(*arguments, **options)
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)
    return None


def address_of(value):
    return ctypes.addressof(value)


def be_zygote(module, case, arguments, role, hidden, folder, limits, line, report):
    """The fresh interpreter's part: lock down a child, have it run the case, tell how it ended."""
    report = fcntl.fcntl(report, fcntl.F_DUPFD, 100)
    for number in (3, 4):
        os.dup2(line, number)
    isolation = restrict_zygote(module, hidden)
    child = os.fork()
    if child == 0:
        be_child(isolation, case, arguments, role, folder, limits)
    os.closerange(3, 5)
    os.write(report, f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    os.write(report, f"{status}\n".encode())


def be_child(isolation, case, arguments, role, folder, limits):
    try:
        os.chdir(folder)
        os.environ.update(HOME=folder, TMPDIR=folder)
        lock_down(isolation, role, folder, limits)
        case(*arguments)
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(99)


TOOLS = [restrict_zygote, lock_down, system_call, error_of, address_of, be_zygote, be_child]
IMPORTS = """
import contextlib, ctypes, errno, fcntl, json, mmap, os, random, re, resource, select, signal
import socket, struct, sys, tempfile, threading, time, traceback
from pathlib import Path
"""


def source_of(function):
    return textwrap.dedent(inspect.getsource(function))


class Ended(NamedTuple):
    """How a case ended: the status as wait() tells it, and what it printed."""

    status: int
    stdout: str
    stderr: str

    def signal(self):
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else None


def in_child(case, *arguments, **options):
    """Run the case in a locked-down child. Options: its role (worker, judge, sweeper), `hidden`
    paths, `limits`; `outside` is called meanwhile with that child's pid and the other end of the
    socket that the child has as its descriptor 3."""
    folder = tempfile.mkdtemp(prefix="case-")
    try:
        return run_case(folder, case, arguments, **options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_case(folder, case, arguments, role="worker", hidden=(), limits=None, outside=None):
    hidden = [*hidden, str(HERE / "python_env.py")]
    limits = {"AS": 2 << 30, "NOFILE": 64, **(limits or {})}
    mine, theirs = socket.socketpair()
    reading, report = os.pipe()
    program = "\n".join(
        [
            "import sys",
            "sys.path[:] = [path for path in sys.path if path]",
            f"sys.path.insert(0, {str(HERE)!r})",
            "import python_env",
            f"sys.path[:] = [path for path in sys.path if path != {str(HERE)!r}]",
            IMPORTS,
            *map(source_of, TOOLS),
            source_of(case),
            f"be_zygote(python_env, {case.__name__}, {arguments!r}, {role!r}, {hidden!r},"
            f" {folder!r}, {limits!r}, {theirs.fileno()}, {report})",
        ]
    )
    process = subprocess.Popen(
        [sys.executable, "-s", "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        pass_fds=[theirs.fileno(), report],
    )
    with process, mine, os.fdopen(reading) as told:
        theirs.close()
        os.close(report)
        child = told.readline()
        if outside and child:
            outside(int(child), mine)
        stdout, stderr = process.communicate(timeout=60)
        status = told.readline()
    assert status, stdout + stderr
    return Ended(int(status), stdout, stderr)


def ended_well(ended):
    assert ended.status == 0, f"status {ended.status}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


# From the kernel's headers (x86_64, asm-generic), not from our table.
HEADER_NUMBERS = """
access=21/-, alarm=37/-, brk=12/214, chdir=80/49, chmod=90/-, clock_getres=229/114,
clock_gettime=228/113, clock_nanosleep=230/115, clone=56/220, clone3=435/435, close=3/57,
close_range=436/436, copy_file_range=326/285, dup=32/23, dup2=33/-, dup3=292/24,
epoll_create1=291/20, epoll_ctl=233/21, epoll_pwait=281/22, epoll_wait=232/-, execve=59/221,
exit=60/93, exit_group=231/94, faccessat=269/48, faccessat2=439/439, fchdir=81/50, fchmod=91/52,
fchmodat=268/53, fchmodat2=452/452, fcntl=72/25, fdatasync=75/83, flock=73/32, fstat=5/80,
fsync=74/82, ftruncate=77/46, futex=202/98, getcwd=79/17, getdents64=217/61, getegid=108/177,
geteuid=107/175, getgid=104/176, getitimer=36/102, getpid=39/172, getppid=110/173,
getrandom=318/278, getrlimit=97/163, getrusage=98/165, getsockname=51/204, getsockopt=55/209,
gettid=186/178, gettimeofday=96/169, getuid=102/174, io_uring_setup=425/425, ioctl=16/29,
kill=62/129, landlock_add_rule=445/445, landlock_create_ruleset=444/444,
landlock_restrict_self=446/446, link=86/-, linkat=265/37, listxattr=194/11, llistxattr=195/12,
lseek=8/62, lstat=6/-, madvise=28/233, memfd_create=319/279, mkdir=83/-, mkdirat=258/34,
mmap=9/222, mprotect=10/226, mremap=25/216, munmap=11/215, nanosleep=35/101, newfstatat=262/79,
open=2/-, openat=257/56, pause=34/-, pidfd_open=434/434, pipe=22/-, pipe2=293/59, poll=7/-,
ppoll=271/73, prctl=157/167, pread64=17/67, prlimit64=302/261, pselect6=270/72, ptrace=101/117,
pwrite64=18/68, read=0/63, readlink=89/-, readlinkat=267/78, readv=19/65, recvfrom=45/207,
recvmsg=47/212, rename=82/-, renameat=264/38, restart_syscall=219/128, rmdir=84/-, rseq=334/293,
rt_sigaction=13/134, rt_sigpending=127/136, rt_sigprocmask=14/135, rt_sigreturn=15/139,
rt_sigsuspend=130/133, rt_sigtimedwait=128/137, sched_getaffinity=204/123, sched_yield=24/124,
select=23/-, sendfile=40/71, sendmsg=46/211, sendto=44/206, set_robust_list=273/99,
set_tid_address=218/96, setitimer=38/103, setpriority=141/140, setsid=112/157, shutdown=48/210,
sigaltstack=131/132, socket=41/198, socketpair=53/199, stat=4/-, statx=332/291, symlink=88/-,
symlinkat=266/36, tgkill=234/131, time=201/-, times=100/153, tkill=200/130, truncate=76/45,
umask=95/166, uname=63/160, unlink=87/-, unlinkat=263/35, utimensat=280/88, wait4=61/260,
write=1/64, writev=20/66
"""
HEADERS = {
    name: (x86, arm) for name, x86, arm in re.findall(r"(\w+)=(\d+)/(\d+|-)", HEADER_NUMBERS)
}


@pytest.fixture(scope="module")
def numbers():
    """Every system call of this machine's headers, by its name."""
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip(f"there is no {header}")
    found = re.findall(r"#define __NR_(\w+)\s+(\d+)", header.read_text())
    return {name: int(number) for name, number in found}


# ── what must work ────────────────────────────────────────────────────────────────────────────────


def test_common_modules_can_be_imported():
    def case():
        names = """asyncio bz2 concurrent.futures csv ctypes datetime decimal email fractions
            hashlib html inspect json logging lzma multiprocessing pickle secrets shelve sqlite3
            ssl statistics tarfile threading unittest urllib.request uuid xml.etree.ElementTree
            zipfile zlib zoneinfo"""
        for name in names.split():
            __import__(name)

    ended_well(in_child(case))


def test_common_modules_work():
    def case():
        import datetime
        import decimal
        import faulthandler
        import secrets
        import uuid
        import zoneinfo

        assert json.loads(json.dumps({"a": [1, 2]})) == {"a": [1, 2]}
        assert decimal.Decimal("0.1") * 3 == decimal.Decimal("0.3")
        random.random()
        secrets.token_hex()
        uuid.uuid4()
        os.urandom(5)
        datetime.datetime.now(zoneinfo.ZoneInfo("Europe/Paris"))
        time.localtime()
        time.sleep(0.01)
        os.cpu_count()
        __import__("platform").platform()
        sys.stdout.isatty()
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
        assert callback(lambda x: x + 1)(4) == 5
        try:
            raise ValueError
        except ValueError:
            assert "ValueError" in traceback.format_exc()
        with open("x", "w") as file:
            faulthandler.dump_traceback(file=file)

    ended_well(in_child(case))


def test_what_is_granted_can_be_read():
    def case():
        assert Path(json.__file__).read_text()
        Path("/dev/null").write_text("x")
        with open("/dev/urandom", "rb") as file:
            assert len(file.read(3)) == 3

    ended_well(in_child(case))


def test_threads_work():
    def case():
        from concurrent.futures import ThreadPoolExecutor

        hits = []
        threads = [threading.Thread(target=hits.append, args=(n,)) for n in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(hits) == [*range(10)]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(abs, [-1, -2])) == [1, 2]

    ended_well(in_child(case))


def test_asyncio_works():
    def case():
        import asyncio

        async def double(x):
            await asyncio.sleep(0.01)
            return 2 * x

        async def both():
            return await asyncio.gather(double(1), asyncio.to_thread(abs, -3))

        assert asyncio.run(both()) == [2, 3]

    ended_well(in_child(case))


def test_questions_about_oneself_are_answered():
    def case():
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        assert os.getpid()
        assert os.getppid()
        assert os.getuid() >= 0

    ended_well(in_child(case))


def test_pipes_can_be_waited_for():
    def case():
        reading, writing = os.pipe()
        os.write(writing, b"x")
        assert select.select([reading], [], [], 1)[0]
        poll = select.poll()
        poll.register(reading)
        assert poll.poll(10)
        epoll = select.epoll()
        epoll.register(reading, select.EPOLLIN)
        assert epoll.poll(1)

    ended_well(in_child(case))


def test_a_timer_rings():
    def case():
        rung = threading.Event()
        signal.signal(signal.SIGALRM, lambda *_: rung.set())
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert rung.wait(5)

    ended_well(in_child(case))


def test_files_in_the_folder():
    def case():
        import shutil

        Path("a").write_text("hello")
        assert Path("a").read_text() == "hello"
        os.rename("a", "b")
        os.mkdir("sub")
        os.rename("b", "sub/b")
        os.link("sub/b", "c")
        os.symlink("c", "l")
        assert Path("l").read_text() == "hello"
        assert sorted(os.listdir()) == ["c", "l", "sub"]
        shutil.copy("c", "d")
        shutil.copy2("c", "e")
        shutil.copytree("sub", "sub2")
        shutil.move("e", "sub2/e")
        with open("c", "r+") as file:
            file.truncate(2)
        assert os.stat("c").st_size == 2
        os.chmod("c", 0o600)
        os.utime("c")
        Path("t").touch()
        Path("t").touch()
        shutil.rmtree("sub2")
        os.remove("d")
        os.unlink("l")
        os.chdir("sub")
        os.chdir("..")

    ended_well(in_child(case))


def test_temporary_files():
    def case():
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "x").touch()
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x")
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
            file.seek(0)
            assert file.read() == b"x"

    ended_well(in_child(case))


def test_sqlite():
    def case():
        import sqlite3

        one = sqlite3.connect("x.db")
        one.execute("create table t(a)")
        one.executemany("insert into t values (?)", [(1,), (2,)])
        one.commit()
        other = sqlite3.connect("x.db")
        assert other.execute("select sum(a) from t").fetchone() == (3,)
        one.close()
        other.close()

    ended_well(in_child(case))


def test_archives():
    def case():
        import shutil
        import tarfile
        import zipfile

        os.mkdir("sub")
        Path("sub/b").write_text("he")
        with zipfile.ZipFile("z.zip", "w") as archive:
            archive.write("sub/b")
        with tarfile.open("z.tar", "w") as archive:
            archive.add("sub")
        with tarfile.open("z.tar") as archive:
            archive.extract("sub/b", "out")
        assert Path("out/sub/b").read_text() == "he"
        shutil.rmtree("out")

    ended_well(in_child(case))


def test_a_module_of_ones_own_and_a_log():
    def case():
        import importlib
        import logging

        Path("m.py").write_text("x = 5")
        sys.path.append(os.getcwd())
        assert importlib.import_module("m").x == 5
        logging.basicConfig(filename="log")
        logging.error("noted")
        assert "noted" in Path("log").read_text()

    ended_well(in_child(case))


def test_the_own_socket_works():
    def case():
        line = socket.socket(fileno=3)
        for _ in range(2):
            assert line.recv(100) == b"ping"
            line.sendall(b"pong")
        again = socket.socket(fileno=os.dup(3))
        again.settimeout(5)
        assert again.recv(9) == b"data"
        again.setblocking(True)
        again.sendall(b"x" * 100_000)
        os.write(again.fileno(), b"end")
        again.shutdown(socket.SHUT_WR)

    def outside(_, line):
        for _ in range(2):
            line.sendall(b"ping")
            assert line.recv(9) == b"pong"
        line.sendall(b"data")
        got = b"".join(iter(lambda: line.recv(1 << 20), b""))
        assert len(got) == 100_003

    ended_well(in_child(case, outside=outside))


def test_numpy():
    pytest.importorskip("numpy")

    def case():
        import numpy as np

        a = np.random.default_rng(1).random((200, 200))
        assert np.allclose(a @ np.linalg.inv(a), np.eye(200))
        np.save("a.npy", a)
        assert np.load("a.npy").shape == (200, 200)
        np.fft.fft(a)
        np.linalg.svd(a)

    ended_well(in_child(case))


def test_a_sleep_goes_on_after_stop_and_continue():
    def case():
        began = time.monotonic()
        os.write(3, b"go")
        time.sleep(0.4)
        assert time.monotonic() - began > 0.39

    def outside(pid, line):
        assert line.recv(2) == b"go"
        for _ in range(3):
            os.kill(pid, signal.SIGSTOP)
            os.kill(pid, signal.SIGCONT)

    ended_well(in_child(case, outside=outside))


# ── signals, of oneself and of others ─────────────────────────────────────────────────────────────


def abort():
    os.abort()


def abort_in_c():
    ctypes.CDLL(None).abort()


def kill_oneself():
    os.kill(os.getpid(), 9)


def raise_a_signal():
    signal.raise_signal(15)


def signal_ones_thread():
    signal.pthread_kill(threading.get_ident(), 15)


def crash():
    import faulthandler

    with open("f", "w") as file:
        faulthandler.enable(file=file)
        faulthandler._sigsegv()


SUICIDES = [
    (abort, signal.SIGABRT),
    (abort_in_c, signal.SIGABRT),
    (kill_oneself, signal.SIGKILL),
    (raise_a_signal, signal.SIGTERM),
    (signal_ones_thread, signal.SIGTERM),
    (crash, signal.SIGSEGV),
]


@pytest.mark.parametrize("case, number", SUICIDES)
def test_a_process_may_signal_itself(case, number):
    ended = in_child(case)
    assert ended.signal() == number, ended


def test_python_cannot_signal_others():
    def case():
        parent = os.getppid()
        me = os.getpid()
        for target in (parent, 0, -1, -me, 1):
            for number in (0, 9):
                assert error_of(os.kill, target, number) == "EPERM", (target, number)
        assert error_of(os.killpg, 0, 9) == "EPERM"

    ended_well(in_child(case))


def test_no_system_call_signals_the_parent(numbers):
    def case(numbers):
        parent = os.getppid()
        me = os.getpid()
        ones = 2**64 - 1
        high = me | parent << 32
        information = ctypes.create_string_buffer(struct.pack("iii", 9, 0, -1), 128)
        at = address_of(information)
        calls = {
            "kill": [(parent | (me << 32), 9), (parent | 0xFFFFFFFF00000000, 9)],
            "tkill": [(parent, 9)],
            "tgkill": [(parent, parent, 9), (0xFFFFFFFF, parent, 9)],
            "rt_sigqueueinfo": [(parent, 9, at)],
            "rt_tgsigqueueinfo": [(parent, parent, 9, at)],
            "pidfd_open": [(parent, 0)],
            "pidfd_send_signal": [(5, 9, 0, 0)],
            "timer_create": [(0, at, at)],
            "mq_notify": [(0, at)],
            "ptrace": [(16, parent)],
            "setpgid": [(0, parent)],
            "setsid": [()],
            "setpriority": [(0, parent, 19)],
            "sched_setaffinity": [(parent, 8, at)],
            "sched_setscheduler": [(parent, 0, at)],
            "ioprio_set": [(1, parent, 0)],
            "get_robust_list": [(parent, at, at)],
            "process_vm_readv": [(parent, 0, 0, 0, 0, 0)],
            "process_vm_writev": [(parent, 0, 0, 0, 0, 0)],
            "kcmp": [(parent, me, 0, 0, 0)],
            # PDEATHSIG, DUMPABLE, and who may trace us
            "prctl": [(1, 9), (4, 1), (0x59616D61, ones)],
        }
        for name, variants in calls.items():
            for arguments in variants:
                assert system_call(numbers[name], *arguments) == -errno.EPERM, (name, arguments)
        assert high

    ended_well(in_child(case, numbers))


def test_no_descriptor_signals_the_parent(numbers):
    def case(numbers):
        parent = os.getppid()
        owner = address_of(ctypes.create_string_buffer(struct.pack("ii", 1, parent)))
        pid = address_of(ctypes.c_int(parent))
        yes = address_of(ctypes.c_int(1))
        letter = address_of(ctypes.c_char(b"x"))
        folder = os.open(".", os.O_RDONLY)
        variants = [
            ("fcntl", 3, 8, parent),  # F_SETOWN, and with bits that the kernel ignores
            ("fcntl", 3, 8 | 1 << 40, parent),
            ("fcntl", 3, 8 | 0xFFFFFFFF << 32, parent),
            ("fcntl", 3, 9),  # F_GETOWN
            ("fcntl", 3, 10, 9),  # F_SETSIG
            ("fcntl", 3, 15, owner),  # F_SETOWN_EX
            ("fcntl", 3, 1024, 0),  # F_SETLEASE
            ("fcntl", folder, 1026, 0xFFFFFFFF),  # F_NOTIFY
            ("ioctl", 3, 0x8901, pid),  # FIOSETOWN
            ("ioctl", 3, 0x8901 | 1 << 33, pid),
            ("ioctl", 3, 0x8902, pid),  # SIOCSPGRP
            ("ioctl", 3, 0x5452, yes),  # FIOASYNC
            ("ioctl", 0, 0x5412, letter),  # TIOCSTI
            ("ioctl", 0, 0x5410, 0),  # TIOCSPGRP
        ]
        for name, *arguments in variants:
            assert system_call(numbers[name], *arguments) == -errno.EPERM, (name, arguments)

    ended_well(in_child(case, numbers))


# ── the system calls that are refused ─────────────────────────────────────────────────────────────

REFUSED = """
    accept accept4 acct add_key arch_prctl bind bpf cachestat capset chown chroot clock_settime
    connect execve execveat fanotify_init fchown fchownat finit_module fork fsopen getpgid
    getsid getxattr init_module inotify_init inotify_init1 io_uring_enter io_uring_register
    io_uring_setup iopl kcmp kexec_load keyctl landlock_restrict_self lchown listen memfd_create
    memfd_secret mincore mknod mknodat modify_ldt mount mq_open msgget name_to_handle_at
    open_by_handle_at openat2 perf_event_open personality pidfd_getfd pivot_root preadv2
    process_madvise ptrace quotactl reboot recvmmsg recvmsg remap_file_pages removexattr
    request_key sched_setaffinity seccomp semget sendmmsg sendmsg setdomainname setfsgid
    setfsuid setgid setgroups sethostname setns setpgid setpriority setregid setresgid setresuid
    setreuid setrlimit setsid setsockopt settimeofday setuid setxattr shmat shmget socket splice
    statfs swapon sysinfo syslog tee timer_create truncate umount2 unshare userfaultfd vfork
    vmsplice waitid
"""


def calls_in(table):
    """(name, number on x86_64, number on aarch64) of every call that stands in a table of ours."""
    lines = "\n".join(line for line in table.splitlines() if line.startswith(" "))
    return re.findall(r"(?<![\w=.])([a-z]\w*) (\d+) (\d+|-)(?=,| \||$)", lines, re.M)


def test_the_table_does_not_list_what_a_worker_must_not_do():
    listed = {name for name, _, _ in calls_in(WORKER_TABLE)}
    assert {"read", "mmap", "clone", "prlimit64"} <= listed
    assert listed.isdisjoint(REFUSED.split())


@pytest.mark.skipif(not X86, reason="the numbers are those of x86_64")
def test_every_unlisted_number_is_refused():
    allowed = {int(number) for _, number, _ in calls_in(WORKER_TABLE)}
    unlisted = {*range(335), *range(424, 471)} - allowed - {435}

    def case(unlisted):
        ones = 2**64 - 1
        for number in unlisted:
            assert system_call(number, ones, ones, ones, 0) == -errno.EPERM, number

    ended_well(in_child(case, sorted(unlisted)))


@pytest.mark.skipif(not X86, reason="the numbers are those of x86_64")
def test_what_libc_can_do_without_is_said_not_to_exist():
    def case():
        clone3 = 435
        for number in (clone3, 471, 600, 100_000, 0x3FFFFFFF):
            assert system_call(number, 0, 0) == -errno.ENOSYS, number

    ended_well(in_child(case))


@pytest.mark.skipif(not X86, reason="x32 is a half of x86_64")
@pytest.mark.parametrize(
    "number", [0x40000000 + 39, 0x40000000 + 520, 0x40000000, 0xFFFFFFFF, 0x40000000 | 471]
)
def test_a_call_of_x32_kills(number):
    def case(number):
        system_call(number)

    ended = in_child(case, number)
    assert ended.signal() == signal.SIGSYS, ended


def call_a_page(instruction):
    """mov eax, 20 (getpid of i386); the instruction; return."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    page = mmap.mmap(-1, 4096, flags=private, prot=7)
    page.write(b"\xb8\x14\0\0\0" + instruction + b"\xc3")
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    print(ctypes.CFUNCTYPE(ctypes.c_long)(start)(), flush=True)


@pytest.mark.skipif(not X86, reason="int 0x80 is of x86")
def test_int_0x80_kills():
    ended = in_child(call_a_page, b"\xcd\x80")
    assert ended.signal() == signal.SIGSYS, ended


@pytest.mark.skipif(not X86, reason="the page's code is of x86")
def test_the_page_itself_runs():
    two_nops = b"\x90\x90"
    assert ended_well(in_child(call_a_page, two_nops)) == "20\n"


def test_python_cannot_start_processes():
    def case():
        import subprocess

        assert error_of(os.fork) == "EPERM"
        assert error_of(os.forkpty) in ("EPERM", "EACCES", "ENOENT", "EBADF")  # the last: 3.15
        assert error_of(os.execv, sys.executable, ["x"]) == "EPERM"
        assert error_of(subprocess.run, ["true"]) in ("EPERM", "EACCES")
        assert error_of(os.posix_spawn, "/bin/true", ["x"], {}) == "EPERM"
        assert os.system("true") != 0

    ended_well(in_child(case))


# The flags of clone() that a thread of glibc has: VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS
# and the places of its id.
THREAD_FLAGS = 0x3D0F00
CLONES = {
    "a fork": 0,
    "a fork with SIGCHLD": 17,
    "a vfork": 0x4000 | 0x100 | 17,
    "a process that shares the memory": 0x100 | 17,
    "a new user": 0x10000000,
    "a thread of a new user": 0x10000 | 0x10000000,
    "a thread with new mounts": THREAD_FLAGS | 0x20000,
    "a thread with a new network": THREAD_FLAGS | 0x40000000,
    "a thread with new pids": THREAD_FLAGS | 0x20000000,
    "a thread with a new cgroup": THREAD_FLAGS | 0x02000000,
    "a thread that is none": THREAD_FLAGS & ~0x10000,
    "a thread with descriptors of its own": THREAD_FLAGS & ~0x400,
    "a flag in the upper half": 0x10000 << 32 | 17,
}


@pytest.mark.parametrize("name", CLONES)
def test_clone_makes_no_more_than_threads(numbers, name):
    def case(number, flags):
        assert system_call(number, flags) == -errno.EPERM

    ended_well(in_child(case, numbers["clone"], CLONES[name]))


def test_no_other_call_makes_a_process_or_a_namespace(numbers):
    def case(numbers):
        names = "execve execveat fork mount pivot_root setns unshare vfork"
        for name in names.split():
            assert system_call(numbers[name], 0x10000000) == -errno.EPERM, name

    ended_well(in_child(case, numbers))


def test_no_socket_reaches_anybody():
    def case():
        for family in range(46):
            for kind in (1, 2, 3, 5):
                assert error_of(socket.socket, family, kind, 0) == "EPERM", (family, kind)
        line = socket.socket(fileno=3)
        assert error_of(line.bind, b"") == "EPERM"
        assert error_of(line.connect, "/x") == "EPERM"
        assert error_of(line.accept) == "EPERM"
        assert error_of(line.sendmsg, [b"x"]) == "EPERM"
        assert error_of(line.setsockopt, 1, 7, 1) == "EPERM"

    ended_well(in_child(case))


def test_a_worker_takes_no_descriptors_and_asks_for_no_peer():
    def case():
        line = socket.socket(fileno=3)
        assert error_of(line.recvmsg, 1, 100) == "EPERM"
        # SO_PEERCRED and SO_PEERPIDFD
        assert error_of(line.getsockopt, 1, 17, 12) == "EPERM"
        assert error_of(line.getsockopt, 1, 77, 4) == "EPERM"

    ended_well(in_child(case))


def test_a_pair_of_sockets_is_each_the_others_only_peer():
    def case():
        one, other = socket.socketpair()
        one.send(b"x")
        assert other.recv(1) == b"x"
        kinds = [
            (socket.AF_UNIX, socket.SOCK_DGRAM),
            (socket.AF_UNIX, socket.SOCK_SEQPACKET),
            (socket.AF_INET, socket.SOCK_STREAM),
            (30, socket.SOCK_STREAM),  # AF_TIPC
        ]
        for family, kind in kinds:
            assert error_of(socket.socketpair, family, kind) == "EPERM", (family, kind)
        assert error_of(one.sendmsg, [b"x"]) == "EPERM"
        assert error_of(one.connect, "/x") == "EPERM"

    ended_well(in_child(case))


def test_shared_memory_is_refused(numbers):
    def case(numbers):
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mmap.mmap(-1, 4096, flags=private)
        assert error_of(mmap.mmap, -1, 4096) == "EPERM"
        assert error_of(os.memfd_create, "x") == "EPERM"
        ones = 2**64 - 1
        for flags in (0x21, 0x23, 0x01, 0x03, 0x21 | 1 << 40):
            refused = system_call(numbers["mmap"], 0, 4096, 3, flags, ones, 0)
            assert refused == -errno.EPERM, hex(flags)
        names = """memfd_create memfd_secret mlock mlockall mq_open msgget remap_file_pages semget
            shmat shmget"""
        for name in names.split():
            assert system_call(numbers[name]) == -errno.EPERM, name

    ended_well(in_child(case, numbers))


# ── limits ────────────────────────────────────────────────────────────────────────────────────────


def test_python_cannot_lift_its_limits():
    def case():
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (64, 64)
        assert resource.getrlimit(resource.RLIMIT_AS)[1] == 2 << 30
        assert resource.prlimit(0, resource.RLIMIT_CORE) == (0, 0)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        except ValueError:
            pass  # Python's answer to EPERM
        else:
            raise AssertionError
        assert error_of(os.nice, 5) == "EPERM"

    ended_well(in_child(case))


def test_no_system_call_lifts_limits(numbers):
    def case(numbers):
        prlimit = numbers["prlimit64"]
        new = ctypes.create_string_buffer(struct.pack("QQ", 1, 1))
        old = ctypes.create_string_buffer(16)
        into = address_of(old)
        refused = [
            (prlimit, 0, 7, address_of(new), into),
            (prlimit, 0, 7, 1 << 32, into),
            (prlimit, 0, 7, 1, into),
            (prlimit, os.getppid(), 7, 0, into),
            (numbers["setrlimit"], 7, address_of(new)),
        ]
        for call in refused:
            assert system_call(*call) == -errno.EPERM, call
        # Reading is fine, whatever stands in the half of the pid that the kernel ignores.
        for pid in (0, 1 << 32):
            assert system_call(prlimit, pid, 7, 0, into) == 0
            assert struct.unpack("QQ", old.raw) == (64, 64)

    ended_well(in_child(case, numbers))


def test_a_pointer_whose_lower_half_is_zero_lifts_no_limit(numbers):
    def case(numbers):
        # A filter that looks at the lower half alone would take this address for none.
        ones = 2**64 - 1
        page = system_call(numbers["mmap"], 7 << 32, 4096, 3, 0x100022, ones, 0)
        assert page == 7 << 32
        ctypes.memmove(page, struct.pack("QQ", 3, 3), 16)
        assert system_call(numbers["prlimit64"], 0, 7, page, 0) == -errno.EPERM
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (64, 64)

    ended_well(in_child(case, numbers))


def test_memory_and_descriptors_end():
    def case():
        try:
            bytearray(3 << 30)
        except MemoryError:
            pass
        else:
            raise AssertionError
        opened = []
        try:
            while True:
                opened.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            assert error.errno == errno.EMFILE
        assert len(opened) < 64

    ended_well(in_child(case))


def test_a_file_ends():
    def case():
        with open("big", "wb", buffering=0) as file:
            file.write(b"x" * 200_000)
            assert error_of(file.write, b"x") == "EFBIG"
        assert os.stat("big").st_size == 100_000

    ended_well(in_child(case, limits={"FSIZE": 100_000}))


def burn():
    while True:
        pass


def test_processor_time_ends():
    ended = in_child(burn, limits={"CPU": 1})
    assert ended.signal() in (signal.SIGKILL, signal.SIGXCPU), ended


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def other(tmp_path):
    """Another session's folder: with one file in it, which nobody may read or change."""
    (tmp_path / "secret").write_text("s")
    yield str(tmp_path)
    assert os.listdir(tmp_path) == ["secret"]
    assert (tmp_path / "secret").read_text() == "s"


def test_files_out_of_reach_cannot_be_opened(other):
    def case(other, here):
        paths = [
            "/proc/self/environ",
            "/proc/self/maps",
            "/proc/self/mem",
            "/proc/self/status",
            "/proc/1/environ",
            f"/proc/{os.getppid()}/environ",
            f"/proc/{os.getppid()}/cmdline",
            "/etc/passwd",
            "/etc/hostname",
            "/etc/shadow",
            "/sys/kernel/mm/transparent_hugepage/enabled",
            "/dev/tty",
            "/dev/kmsg",
            "/dev/shm/x",
            f"{other}/secret",
            f"{here}/python_env.py",
        ]
        flags = [
            os.O_RDONLY,
            os.O_WRONLY,
            os.O_RDWR,
            os.O_WRONLY | os.O_CREAT,
            os.O_WRONLY | os.O_APPEND,
            os.O_TRUNC,
            3,
            3 | os.O_TRUNC,
        ]
        for path in paths:
            for flag in flags:
                error = error_of(os.open, path, flag)
                missing = error == "ENOENT" and not os.path.exists(path)
                refused = error in ("EACCES", "EPERM", "EROFS", "ENXIO")
                assert refused or missing, (path, flag, error)

    ended_well(in_child(case, other, str(HERE)))


def test_folders_out_of_reach_cannot_be_listed(other):
    def case(other, here):
        folders = "/ /proc /proc/self /proc/self/fd /etc /root /tmp /home /var /dev"
        for path in [*folders.split(), other, here]:
            assert error_of(os.listdir, path) in ("EACCES", "ENOENT"), path

    ended_well(in_child(case, other, str(HERE)))


def test_links_lead_nowhere(other):
    def case(other):
        refused = ("EXDEV", "EACCES", "EPERM", "ENOENT")
        targets = (f"{other}/secret", "/etc/passwd", "/proc/self/environ")
        for place, target in enumerate(targets):
            os.symlink(target, f"s{place}")
            assert error_of(open, f"s{place}") == "EACCES"
            assert error_of(open, f"s{place}", "w") == "EACCES"
            assert error_of(os.link, target, f"h{place}") in refused, target
            assert error_of(os.rename, target, "r") in refused, target
        os.symlink(other, "folder")
        assert error_of(open, "folder/secret") == "EACCES"
        assert error_of(open, "folder/new", "w") == "EACCES"
        assert error_of(os.listdir, "folder") == "EACCES"

    ended_well(in_child(case, other))


def test_a_descriptor_without_rights_leads_nowhere(other):
    def case(other, linkat):
        refused = ("EXDEV", "EACCES", "EPERM", "ENOENT")
        for target in (f"{other}/secret", "/etc/passwd", "/proc/self/environ"):
            fd = os.open(target, os.O_PATH)
            assert error_of(os.read, fd, 1) == "EBADF"
            assert error_of(open, f"/proc/self/fd/{fd}") in refused
            assert error_of(os.link, f"/proc/self/fd/{fd}", "y", follow_symlinks=True) in refused
            # linkat(fd, "", AT_FDCWD, "x", AT_EMPTY_PATH)
            nothing = ctypes.create_string_buffer(b"")
            name = ctypes.create_string_buffer(b"x")
            here = -100 & (2**64 - 1)
            result = system_call(linkat, fd, address_of(nothing), here, address_of(name), 0x1000)
            assert errno.errorcode[-result] in refused

    number = int(HEADERS["linkat"][0 if X86 else 1])
    ended_well(in_child(case, other, number))


def test_a_working_directory_out_of_reach_gives_nothing(other):
    def case(other):
        Path("mine").write_text("x")
        here = os.open(".", os.O_PATH)
        there = os.open(other, os.O_PATH)
        os.fchdir(there)
        assert error_of(open, "secret") == "EACCES"
        assert error_of(open, "new", "w") == "EACCES"
        assert error_of(os.listdir, ".") == "EACCES"
        assert error_of(os.mkdir, "d") == "EACCES"
        assert error_of(os.unlink, "secret") == "EACCES"
        assert error_of(os.symlink, "a", "b") == "EACCES"
        assert error_of(os.rmdir, other) == "EACCES"
        assert error_of(os.truncate, "secret", 0) == "EPERM"
        assert error_of(os.open, "secret", os.O_RDONLY, dir_fd=there) == "EACCES"
        os.fchdir(here)
        assert error_of(os.rename, "mine", f"{other}/mine") in ("EACCES", "EXDEV")
        assert error_of(os.link, "mine", f"{other}/mine") in ("EACCES", "EXDEV")

    ended_well(in_child(case, other))


def test_no_devices_owners_and_attributes_in_the_own_folder():
    def case():
        Path("mine").write_text("x")
        assert error_of(os.mkfifo, "fifo") == "EPERM"
        assert error_of(os.mknod, "node") == "EPERM"
        assert error_of(os.chroot, ".") == "EPERM"
        assert error_of(os.chown, "mine", 1, 1) == "EPERM"
        assert error_of(os.setxattr, "mine", "user.x", b"1") == "EPERM"
        assert error_of(os.getxattr, "mine", "user.x") == "EPERM"
        assert error_of(os.statvfs, ".") == "EPERM"

    ended_well(in_child(case))


def test_no_files_without_a_name(other):
    def case(other):
        refused = ("EPERM", "EACCES", "EOPNOTSUPP")
        for folder in (".", other, os.path.dirname(json.__file__)):
            for flags in (os.O_TMPFILE | os.O_RDWR, os.O_TMPFILE | os.O_WRONLY | os.O_EXCL):
                assert error_of(os.open, folder, flags) in refused, folder
        # tempfile asks for one, and makes a file with a name where it gets none.
        with tempfile.TemporaryFile() as file:
            file.write(b"x")

    ended_well(in_child(case, other))


def test_chmod_and_utime_are_answered_but_not_done(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("v")
    victim.chmod(0o640)
    os.utime(victim, (5, 5))

    def case(victim):
        os.chmod(victim, 0o777)
        os.utime(victim)
        os.utime(victim, (1, 1))
        os.chmod(json.__file__, 0)
        with open(json.__file__) as file:
            os.fchmod(file.fileno(), 0)
            os.utime(file.fileno())

    ended_well(in_child(case, str(victim)))
    assert victim.stat().st_mode & 0o777 == 0o640
    assert victim.stat().st_mtime == 5
    assert os.stat(json.__file__).st_mode & 0o400


def test_nothing_readable_is_writable():
    def case():
        path = json.__file__
        folder = os.path.dirname(path)
        for flags in (1, 2, 3, os.O_TRUNC, 2 | os.O_TRUNC, 3 | os.O_TRUNC, os.O_CREAT | 1):
            assert error_of(os.open, path, flags) in ("EACCES", "EPERM"), flags
        assert error_of(os.truncate, path, 0) == "EPERM"
        assert error_of(os.unlink, path) == "EACCES"
        assert error_of(os.mkdir, f"{folder}/x") == "EACCES"
        assert error_of(open, "/dev/zero", "w") == "EACCES"

    ended_well(in_child(case))


@pytest.fixture
def hidden_module():
    """The files of a module in site-packages that no worker may read, beside one that it may."""
    import sysconfig

    site = Path(sysconfig.get_paths()["purelib"])
    (site / "__pycache__").mkdir(exist_ok=True)
    hidden = [site / "hidden_env.py", site / "__pycache__" / "hidden_env.cpython-xyz.pyc"]
    visible = [site / "visible_mod.py", site / "__pycache__" / "visible_mod.txt"]
    for file in hidden + visible:
        file.write_text("X = 1")
    yield [str(file) for file in hidden]
    for file in hidden + visible:
        file.unlink()


def test_hidden_files_stay_hidden_and_their_neighbours_do_not(hidden_module):
    def case(module, compiled):
        import importlib

        for path in (module, compiled):
            assert error_of(open, path) == "EACCES"
        os.symlink(module, "l")
        assert error_of(open, "l") == "EACCES"
        assert error_of(os.link, module, "h") in ("EXDEV", "EACCES")
        site = os.path.dirname(module)
        fd = os.open(site, os.O_RDONLY)
        assert error_of(os.open, "hidden_env.py", 0, dir_fd=fd) == "EACCES"
        assert os.listdir(site)
        assert importlib.import_module("visible_mod").X == 1
        assert Path(site, "__pycache__", "visible_mod.txt").read_text()
        try:
            importlib.import_module("hidden_env")
        except (OSError, ImportError):
            pass
        else:
            raise AssertionError

    ended_well(in_child(case, *hidden_module, hidden=hidden_module))


def test_a_process_without_a_folder_writes_nowhere():
    program = "\n".join(
        [
            "import os, sys",
            f"sys.path.insert(0, {str(HERE)!r})",
            "import python_env",
            source_of(restrict_zygote),
            source_of(lock_down),
            "isolation = restrict_zygote(python_env, [])",
            "child = os.fork()",
            "if child == 0:",
            "    lock_down(isolation, 'judge', None, {})",
            "    try:",
            "        open('/tmp/x', 'w')",
            "    except PermissionError:",
            "        os._exit(7)",
            "    os._exit(0)",
            "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))",
        ]
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=20).returncode == 7


def test_locks_are_no_channel():
    def case():
        file = os.open(json.__file__, os.O_RDONLY)
        assert error_of(fcntl.flock, file, fcntl.LOCK_EX) is None
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0)
        set_for_the_open_file = 37
        for command in (fcntl.F_SETLK, set_for_the_open_file):
            assert error_of(fcntl.fcntl, file, command, lock) is None
        os.write(3, b"locked")
        os.read(3, 1)

    def outside(_, line):
        assert line.recv(6) == b"locked"
        with open(json.__file__, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            question = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
            answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
        line.send(b"x")
        assert struct.unpack("hhqqi4x", answer)[0] == fcntl.F_UNLCK

    ended_well(in_child(case, outside=outside))


# ── what a process has left ───────────────────────────────────────────────────────────────────────


def test_no_descriptors_are_left_but_the_own_ones():
    def case():
        opened = []
        for fd in range(1024):
            with contextlib.suppress(OSError):
                os.fstat(fd)
                opened.append(fd)
        assert opened == [0, 1, 2, 3, 4], opened

    ended_well(in_child(case))


def test_a_death_signal_that_was_set_before_survives():
    program = "\n".join(
        [
            "import ctypes, os, sys, time",
            f"sys.path.insert(0, {str(HERE)!r})",
            "import python_env",
            source_of(restrict_zygote),
            source_of(lock_down),
            "reading, alive = os.pipe()",
            "ready, locked = os.pipe()",
            "if os.fork() == 0:",
            "    isolation = restrict_zygote(python_env, [])",
            "    if os.fork() == 0:",
            "        ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)",
            "        for number in (3, 4):",
            "            os.dup2(alive if number == 4 else locked, number)",
            "        lock_down(isolation, 'worker', None, {})",
            "        os.write(3, b'x')",
            "        time.sleep(30)",
            "        os.write(4, b'alive')",
            "        os._exit(0)",
            "    os.read(ready, 1)",
            "    os._exit(0)",
            "os.close(alive)",
            "print(os.read(reading, 9))",
        ]
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.stdout == "b''\n", done


def wait_for_the_other_side():
    os.write(3, b"ready")
    os.read(3, 1)


def test_the_rest_of_its_privileges_is_gone():
    found = {}

    def outside(pid, line):
        assert line.recv(5) == b"ready"
        found["oom"] = Path(f"/proc/{pid}/oom_score_adj").read_text().strip()
        found["status"] = Path(f"/proc/{pid}/status").read_text()
        found["niceness"] = os.getpriority(os.PRIO_PROCESS, pid)
        line.send(b"x")

    ended_well(in_child(wait_for_the_other_side, outside=outside))
    assert found["oom"] == "1000"
    assert found["niceness"] >= 3
    facts = dict(re.findall(r"(\w+):\s+(.*)", found["status"]))
    assert facts["Seccomp"] == "2"
    assert facts["NoNewPrivs"] == "1"
    dac_read_search = 4
    assert int(facts["CapEff"], 16) & ~dac_read_search == 0
    assert int(facts["CapPrm"], 16) & ~dac_read_search == 0


def test_the_probe_finds_out_what_was_reached():
    program = "\n".join(
        [
            "import json, sys",
            f"sys.path.insert(0, {str(HERE)!r})",
            "import python_env",
            source_of(restrict_zygote),
            source_of(probe),
            "print(json.dumps(probe(restrict_zygote(python_env, []))))",
        ]
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    reached = json.loads(done.stdout)
    assert reached["seccomp"] is True
    assert reached["no_new_privs"] is True
    assert reached["rlimits"] is True
    version = 1
    assert reached["landlock"] == max(0, system_call(444, 0, 0, version))


# ── judge and sweeper ─────────────────────────────────────────────────────────────────────────────


def test_a_judge_takes_descriptors_but_gives_none():
    def case():
        line = socket.socket(fileno=3)
        message, descriptors, _, _ = socket.recv_fds(line, 1, 1)
        assert message == b"x"
        os.write(descriptors[0], b"thanks")
        assert error_of(line.sendmsg, [b"x"]) == "EPERM"

    def outside(_, line):
        reading, writing = os.pipe()
        socket.send_fds(line, [b"x"], [writing])
        os.close(writing)
        assert os.read(reading, 6) == b"thanks"
        os.close(reading)

    ended_well(in_child(case, role="judge", outside=outside))


def test_a_judge_forks_and_its_fork_sets_its_death_signal():
    def case():
        child = os.fork()
        if child == 0:
            libc = ctypes.CDLL(None, use_errno=True)
            os._exit(0 if libc.prctl(1, 9, 0, 0, 0) == 0 else 1)
        assert os.waitpid(child, 0)[1] == 0

    ended_well(in_child(case, role="judge"))


def test_a_judge_starts_no_program_and_no_namespace(numbers):
    def case(clone):
        import subprocess

        assert error_of(os.execv, sys.executable, ["x"]) == "EPERM"
        assert error_of(subprocess.run, ["true"]) in ("EPERM", "EACCES")
        assert error_of(socket.socket) == "EPERM"
        for flags in (0x10000000, 0x20000, 0x40000000, 0x20000000):
            assert system_call(clone, flags | 17) == -errno.EPERM, hex(flags)

    ended_well(in_child(case, numbers["clone"], role="judge"))


def test_a_sweeper_enters_what_a_dead_worker_has_locked():
    def case():
        os.mkdir("locked", 0)
        os.chmod("locked", 0o700)
        assert os.stat("locked").st_mode & 0o777 == 0o700
        assert error_of(os.fork) == "EPERM"
        assert error_of(os.kill, os.getppid(), 9) == "EPERM"
        assert error_of(socket.socket) == "EPERM"

    ended_well(in_child(case, role="sweeper"))


def test_a_worker_enters_nothing_that_is_locked():
    def case():
        os.mkdir("locked", 0)
        os.chmod("locked", 0o700)
        assert os.stat("locked").st_mode & 0o777 == 0

    ended_well(in_child(case))


# ── the tables and the programs ───────────────────────────────────────────────────────────────────

ALLOW = 0x7FFF0000
EPERM = 0x50001
ENOSYS = 0x50026
IGNORED = 0x50000
KILL = 0x80000000
RETURN = 0x06
JUMP = 0x05


def test_the_tables_numbers_are_those_of_the_headers():
    found = calls_in(TABLES)
    assert len(found) > 110
    for name, x86, arm in found:
        assert HEADERS[name] == (x86, arm), name


def evaluate(program, pid, architecture, number, arguments=()):
    """What a filter answers: an interpreter of our own for the kernel's BPF machine."""
    signed = number if number < 2**31 else number - 2**32
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<iIQ6Q", signed, architecture, 0, *padded)
    place = 0
    value = 0
    while True:
        code, operand, if_true, if_false = program[place]
        operand = pid if operand == PID else operand
        place += 1
        if code == 0x20:
            value = struct.unpack_from("<I", data, operand)[0]
        elif code == 0x54:
            value &= operand
        elif code == JUMP:
            place += operand
        elif code == RETURN:
            return operand
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: value & operand != 0}
            place += if_true if holds[code] else if_false


def action(answer):
    """The part of an answer that says how grave it is; the smaller, the graver."""
    action = answer & 0xFFFF0000
    return action - 2**32 if action >= 2**31 else action


class Machine:
    """A process of this role on this kind of machine, for its filters alone; its pid is 77."""

    def __init__(self, machine, role="worker"):
        column = 1 if machine == "aarch64" else 0
        self.numbers = {
            name: int(pair[column]) for name, pair in HEADERS.items() if pair[column] != "-"
        }
        self.architecture = AUDIT_ARCHITECTURES[machine]
        self.filters = build_filters(machine, role)
        self.listed = {pair[1 + column] for pair in calls_in(WORKER_TABLE)}

    def answer(self, call, *arguments, architecture=None):
        """The gravest of the filters' answers; of equally grave ones the newest filter's."""
        number = self.numbers[call] if isinstance(call, str) else call
        architecture = architecture or self.architecture
        answers = [evaluate(f, 77, architecture, number, arguments) for f in self.filters]
        return min(answers, key=action)


@pytest.fixture(scope="module", params=["x86_64", "aarch64"])
def machine(request):
    return Machine(request.param)


def test_a_filter_kills_what_has_other_numbers(machine):
    assert machine.answer(20, architecture=0x40000003) == KILL  # i386
    assert machine.answer(20, architecture=0x40000028) == KILL  # arm
    assert machine.answer(0x40000000) == KILL  # x32


def test_a_filter_allows_what_is_always_fine(machine):
    for name in ["read", "write", "close", "futex", "exit_group", "getrandom", "statx"]:
        assert machine.answer(name) == ALLOW, name


def test_a_filter_refuses_what_is_never_fine(machine):
    names = """execve io_uring_setup memfd_create pidfd_open ptrace recvmsg sendmsg setpriority
        setsid socket truncate landlock_add_rule"""
    for name in names.split():
        assert machine.answer(name) == EPERM, name


def test_a_filter_says_that_newer_calls_do_not_exist(machine):
    assert machine.answer(471) == ENOSYS
    assert machine.answer("clone3") == ENOSYS


def test_a_filter_knows_the_own_pid(machine):
    for name in ("kill", "tkill", "tgkill"):
        assert machine.answer(name, 77) == ALLOW, name
        assert machine.answer(name, 76) == EPERM, name
        assert machine.answer(name, 0) == EPERM, name


@pytest.mark.parametrize(
    "call, arguments, answer",
    [
        ("clone", [0x3D0F00], ALLOW),
        ("clone", [0x7D0F00], ALLOW),
        ("clone", [0x3D0B00], EPERM),  # a thread with descriptors of its own
        ("clone", [17], EPERM),
        ("fcntl", [3, 1030], ALLOW),
        ("fcntl", [3, 6], IGNORED),
        ("fcntl", [3, 8], EPERM),
        ("fcntl", [3, 8 | 1 << 32], EPERM),
        ("fchmodat", [], IGNORED),
        ("prctl", [15], ALLOW),
        ("prctl", [1, 9], EPERM),
        ("prlimit64", [0, 7, 0], ALLOW),
        ("prlimit64", [0, 7, 1 << 32], EPERM),
        ("prlimit64", [5, 7, 0], EPERM),
        ("mmap", [0, 1, 1, 0x22], ALLOW),
        ("mmap", [0, 1, 1, 0x21], EPERM),
        ("openat", [0, 0, 0o1001], ALLOW),
        ("openat", [0, 0, 0o1000], EPERM),
        ("openat", [0, 0, 3], EPERM),
        ("openat", [0, 0, 0o20200002], EPERM),  # O_TMPFILE
        ("socketpair", [1, 1], ALLOW),
        ("socketpair", [1, 0o2000001], ALLOW),  # with SOCK_CLOEXEC
        ("socketpair", [1, 2], EPERM),
        ("socketpair", [2, 1], EPERM),
    ],
)
def test_a_filter_looks_at_the_arguments(machine, call, arguments, answer):
    assert machine.answer(call, *arguments) == answer


def test_a_filter_refuses_every_number_that_is_not_in_the_table(machine):
    clone3 = 435
    for number in {*range(471)} - {int(number) for number in machine.listed if number != "-"}:
        if number != clone3:
            assert machine.answer(number, ONES, ONES, ONES, ONES) == EPERM, number


@pytest.mark.parametrize("kind", ["x86_64", "aarch64"])
def test_a_judges_filter_allows_what_its_work_needs_and_no_more(kind):
    judge = Machine(kind, "judge")
    assert judge.answer("recvmsg") == ALLOW
    assert judge.answer("clone", 17) == ALLOW
    assert judge.answer("clone", 0x10000000 | 17) == EPERM
    assert judge.answer("prctl", 1, 9) == ALLOW
    assert judge.answer("prctl", 4, 1) == EPERM
    assert judge.answer("sendmsg") == EPERM
    assert judge.answer("fchmodat") == IGNORED


@pytest.mark.parametrize("kind", ["x86_64", "aarch64"])
@pytest.mark.parametrize("role", ["worker", "judge", "sweeper"])
def test_a_filter_is_sound(kind, role):
    for program in build_filters(kind, role):
        assert len(program) <= 4096
        assert program[-1][0] == RETURN
        for place, (code, operand, if_true, if_false) in enumerate(program):
            ahead = {RETURN: [0], JUMP: [operand]}.get(code, [if_true, if_false])
            assert all(hop >= 0 and place + 1 + hop <= len(program) for hop in ahead), place
            assert 0 <= if_true < 256
            assert 0 <= if_false < 256
            assert 0 <= operand < 2**32
