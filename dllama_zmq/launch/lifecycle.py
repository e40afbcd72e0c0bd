"""Bring a cluster up in the background, and take it down. Every wait has a deadline and says what it waited for."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from msgspec import Struct, field

from dllama_zmq.bus.client_messages import Status
from dllama_zmq.client import Client
from dllama_zmq.cluster import ClusterFile, is_loopback
from dllama_zmq.errors import BusError, ClusterError, RootLost
from dllama_zmq.launch import locks, registry
from dllama_zmq.launch.children import Child, await_ends, last_error, warnings
from dllama_zmq.launch.gateway import listen
from dllama_zmq.launch.invitations import invite, root_for
from dllama_zmq.launch.locks import POLL_S
from dllama_zmq.launch.parent_watch import STAY
from dllama_zmq.launch.paths import ClusterPaths
from dllama_zmq.launch.ports import check_ports
from dllama_zmq.launch.registry import AlreadyRunning, Record
from dllama_zmq.launch.remote import check_computers
from dllama_zmq.node_config import WorkerConfig
from dllama_zmq.reporting import Reporter, SilentReporter
from dllama_zmq.trust import Role, own_key
from dllama_zmq.trust.learned import read_learned


class Listener(Struct, frozen=True):
    """Callbacks for the progress of a start.

    status: called with each status of the root. on_checked: called when all but the tokenizer was checked.
    patient: workers may take any time to join, because a person watches and can press Ctrl-C.
    """

    status: Callable[[Status], None] = lambda status: None
    reporter: Reporter = field(default_factory=SilentReporter)
    on_checked: Callable[[], None] = lambda: None
    patient: bool = False


class _Start(Struct, frozen=True):
    """A root that this process started. It ends with this process, unless `stay` or `leave` was called."""

    child: Child
    paths: ClusterPaths
    said: list[str]
    """The warnings that people have seen already."""

    def stay(self) -> None:
        """Let the root outlive this process."""
        self.child.write(STAY)
        self.leave()

    def leave(self) -> None:
        """Release the root: it ends after the last command that uses it, or when it is stopped."""
        self.child.close_stdin()
        self.child.process.returncode = 0  # else Popen warns that the process still runs

    def end(self, stop_s: float) -> None:
        """Terminate the root, and kill it after `stop_s`. Its workers end with it."""
        self.child.terminate()
        if await_ends({"root": self.child}, stop_s):
            locks.cleared(self.paths)


def bring_up(file: ClusterFile, listener: Listener, install: bool = False) -> Status:
    """Start the cluster in the background and return when every node is ready.

    install: first install this version on the computers whose workers are started over ssh. Raises what `run_cluster`
    raises; ClusterError if the cluster runs already, or if a node is not ready within its limits (it is then taken down
    again).
    """
    start = _start(file, listener, stays=True, install=install)
    try:
        status = _await_ready(file, start, listener)
        start.stay()
    except BaseException:
        start.end(file.cluster.limits.stop_s)
        raise
    return status


@contextmanager
def for_one_call(file: ClusterFile, listener: Listener, on_shared: Callable[[], None]) -> Iterator[Record]:
    """Yield the running cluster of `file`. If it is not running, it is started for this block and ends after it.

    A cluster that was started here ends if this process is killed. If other commands use it at the end of the block, it
    ends after the last of them, and `on_shared` is called. Raises as `bring_up` does.
    """
    limits = file.cluster.limits
    if file.private:
        registry.remove_left_by_calls()
    while True:
        running = registry.await_running(file, limits.load_s, listener.reporter)
        if running is None:
            try:
                start = _start(file, listener, stays=False)
                break
            except AlreadyRunning:  # another command was quicker
                continue
            except BaseException:
                if file.private:
                    ClusterPaths.of(file.cluster.name).remove()
                raise
        with locks.in_use(ClusterPaths.of(running.name), 3 * limits.stop_s):
            if registry.find_running(file) == running:  # else it ended before `in_use` held it
                yield running
                return
    shared = keep_logs = False
    try:
        _await_ready(file, start, listener)
        with locks.in_use(start.paths, limits.stop_s) as use:
            try:
                running = registry.find_running(file)
                if running is None:
                    raise ClusterError(_last_error(start))
                yield running
            finally:
                shared = locks.used_by_others(use)
                if not shared:
                    start.end(limits.stop_s)  # while no other command can begin to use it
    except (ClusterError, BusError):
        keep_logs = True  # the error names the log files
        raise
    finally:
        if shared:
            start.leave()
            on_shared()
        else:
            start.end(limits.stop_s)
            if file.private and not keep_logs:
                start.paths.remove()


def take_down(file: ClusterFile) -> bool:
    """Stop the cluster of `file` by SIGTERM, then by SIGKILL. Returns False if it was not running.

    A root on another computer is asked to stop. Raises RootLost if it does not answer; ClusterError if it does not end,
    if the name is another cluster's, or if a process cannot be killed.
    """
    stop_s = file.cluster.limits.stop_s
    if (address := registry.address_elsewhere(file.cluster)) is not None:
        with Client(address, file.cluster.security) as client:
            client.stop(file.cluster.limits.step_s + stop_s, 2 * stop_s)  # the root reads messages between two steps
        return True
    was_running = False
    for number, wait_s in ((signal.SIGTERM, 2 * stop_s), (signal.SIGKILL, stop_s)):
        running = registry.find_running(file)
        if running is None:
            break
        was_running = True
        with suppress(ProcessLookupError):  # it may have ended since
            os.kill(running.pid, number)
        if _await_unlocked(ClusterPaths.of(running.name), wait_s):
            _await_end(running.pid, stop_s)
    running = registry.find_running(file)
    if running is not None or not locks.cleared(ClusterPaths.of(file.cluster.name)):
        process = f"process {running.pid}" if running is not None else "a process of another version"
        raise ClusterError(f"cluster {file.cluster.name!r}: {process} cannot be ended; look at it with `ps`")
    return was_running


def _start(file: ClusterFile, listener: Listener, stays: bool, install: bool = False) -> _Start:
    """Check ports, files and other computers in this process, which shows errors. Start the root.

    The root alone reads the tokenizer, for which most tokenizers take longer than all else here. Raises AlreadyRunning.

    stays: the cluster outlives this command, so it has an API server.
    """
    # imported here, because modules that read models take 0.1 s to import, and most commands read none
    from dllama_zmq.kernels import prepare_kernels, reported_to
    from dllama_zmq.launch.installing import install as install_there
    from dllama_zmq.launch.local_nodes import needs_of, open_checked_model

    said: list[str] = []

    def warn(sentence: str) -> None:
        said.append(sentence)
        reporter.line(f"warning: {sentence}")

    reporter = listener.reporter
    paths = ClusterPaths.of(file.cluster.name)
    with registry.only_one(file, paths) as lock, ExitStack() as cleanup:
        check_ports(file.cluster)
        api = listen(file) if stays else None
        passed, words = [lock], ["root", file.cluster.name, "--lock", str(lock)]
        if api is not None:
            cleanup.callback(api.close)
            passed, words = [*passed, api.fileno()], [*words, "--api", str(api.fileno())]
        reporter.activity(f"reading {file.model_path().name}")
        model = cleanup.enter_context(open_checked_model(file, warn))
        if install:
            install_there(file, reporter)
        check_computers(file, reporter)
        prepare_kernels(file.cluster.kernels, needs_of(file, model), reported_to(reporter), reporter.line)
        paths.begin_logs()
        listener.on_checked()
        return _Start(Child.start("root", words, paths, passed), paths, said)


def _await_ready(file: ClusterFile, start: _Start, listener: Listener) -> Status:
    limits = file.cluster.limits
    begun = time.monotonic()
    listener.reporter.activity("starting the root")
    client: Client | None = None
    try:
        while True:
            if start.child.process.poll() is not None:
                raise ClusterError(_last_error(start))
            if client is None:
                running = registry.find_running(file)
                now = time.monotonic()
                if running is not None and running.clients:
                    client = Client(running.clients)
                elif now > begun + limits.load_s:
                    log = start.paths.log("root")
                    raise ClusterError(f"the root did not start within {limits.load_s:.0f} s; see {log}")
                elif running is not None and running.doing[0]:
                    listener.reporter.activity(*running.doing)
            else:
                try:
                    status = client.status(wait_s=limits.step_s)
                except RootLost:
                    with suppress(subprocess.TimeoutExpired):
                        start.child.process.wait(limits.stop_s)  # the root is ending, and has logged the reason
                        continue
                    raise
                listener.status(status)
                if status.state == "ready":
                    for sentence in warnings(start.paths.log("root")):  # of the tokenizer
                        if sentence not in start.said:
                            listener.reporter.line(f"warning: {sentence}")
                    return status
                deaf = [node for node in status.nodes if node.state == "loaded" and node.reason]
                if deaf:
                    raise ClusterError("; ".join(f"{node.name} {node.reason}" for node in deaf))
                absent = {node.name: node.reason for node in status.nodes if node.state == "absent"}
                if absent and not listener.patient and time.monotonic() > begun + limits.join_s:
                    raise ClusterError(not_there(file, absent))
            time.sleep(POLL_S)
    finally:
        if client is not None:
            client.close()


def commands_elsewhere(file: ClusterFile, new_tokens: bool = False) -> dict[str, str]:
    """The command that starts each worker on another computer that the root does not start, by the worker's name.

    new_tokens: with a new token for each worker whose key is not known; else with the command that prints a token.
    """
    cluster = file.cluster
    learned = {entry.name for entry in read_learned(cluster.name)} if cluster.secured else set()

    def command(worker: WorkerConfig) -> str:
        if not cluster.secured:
            return f"{root_for(cluster, worker.host)} --security none"
        if worker.key is not None:
            return f"{root_for(cluster, worker.host)} --root-key '{own_key().public}'"
        if worker.name in learned:
            return root_for(cluster, worker.host)
        if new_tokens:
            return f"--join {invite(file, Role.worker, worker.name).text}"
        return f"--join TOKEN, which `{file.command(f'token {worker.name}')}` prints here"

    return {
        worker.name: f"on {worker.host}: dllama-zmq worker {command(worker)}"
        for worker in cluster.workers
        if not worker.ssh and not is_loopback(worker.host)
    }


def not_there(file: ClusterFile, absent: Mapping[str, str]) -> str:
    """A sentence about absent workers (name to reason), with what to do for each."""
    elsewhere = commands_elsewhere(file)

    def cure(worker: str) -> str:
        if worker in elsewhere:
            return elsewhere[worker]
        log = ClusterPaths.of(file.cluster.name).log(worker)  # no command finds a private cluster
        return f"see its log: {log if file.private else file.command(f'logs {worker}')}"

    missing = "; ".join(f"{worker} {reason}: {cure(worker)}" for worker, reason in absent.items())
    return f"not every worker is there after {file.cluster.limits.join_s:.0f} s (limits.join_s): {missing}"


def _last_error(start: _Start) -> str:
    """The last error of the root."""
    path = start.paths.log("root")
    return last_error(path) or f"the root ended without a message; see {path}"


def _await_end(pid: int, wait_s: float) -> None:
    """Wait for a process that has released its lock; its interpreter ends a moment later."""
    with suppress(OSError):  # it has ended, or this kernel has no pidfd
        descriptor = os.pidfd_open(pid)
        try:
            if select.select([descriptor], [], [], wait_s)[0]:
                os.waitpid(pid, os.WNOHANG)  # in case it is a child of this process
        finally:
            os.close(descriptor)


def _await_unlocked(paths: ClusterPaths, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while locks.is_up(paths):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
