"""The front in a process of its own, forked from the root's, so it has the tokenizer and all code.

Fork before there are sockets and kernel threads: the child has only the thread that forked.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

from dllama_zmq.bus import sockets
from dllama_zmq.bus.peers import Peers
from dllama_zmq.bus.security import Server
from dllama_zmq.errors import ClusterError
from dllama_zmq.front.front import Front
from dllama_zmq.own_code import signal_at_parents_end
from dllama_zmq.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_END_POLL_S = 0.01


class FrontProcess:
    """A child process that runs a Front. It ends when this process does, or with `end`."""

    def __init__(
        self, address: str, tokenizer: Tokenizer, close_fds: Sequence[int], security: Server | None = None
    ) -> None:
        """address: the ipc endpoint of the engine's PAIR socket. close_fds: descriptors that the child must not hold.

        security: the keys that clients on other computers may have; None: any client may connect.
        """
        readable, self._pipe = os.pipe()
        os.set_inheritable(readable, False)
        self._ended = ""
        self.pid = os.fork()
        if self.pid:
            os.close(readable)
            return
        code = 1
        try:
            os.close(self._pipe)
            for descriptor in close_fds:
                os.close(descriptor)
            _be_front(address, readable, tokenizer, security)
            code = 0
        except BaseException:
            logger.exception("the process for clients ends")
        finally:
            logging.shutdown()
            os._exit(code)  # skips the root's cleanup, which is not the child's

    def check(self) -> None:
        """Raise ClusterError if the process has ended."""
        if not self._ended:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._ended = _ending(status) if pid else ""
        if self._ended:
            raise ClusterError(f"the process for clients ended with {self._ended}; the root's log says why")

    def end(self, wait_s: float) -> None:
        """Let the process end; kill it if it has not after `wait_s`."""
        os.close(self._pipe)
        if self._ended:
            return
        until = time.monotonic() + wait_s
        with suppress(ChildProcessError):
            while not os.waitpid(self.pid, os.WNOHANG)[0]:
                if time.monotonic() > until:
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    return
                time.sleep(_END_POLL_S)


def _be_front(address: str, alive: int, tokenizer: Tokenizer, security: Server | None) -> None:
    """The child's main function. Signals are for the root, which tells clients how it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal_at_parents_end(signal.SIGCONT)  # a stopped child could not see the end of its pipe
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # only the root may hold the pipe to the process that started it
    os.close(nothing)
    context = sockets.Context()
    engine = sockets.pair(context, address)
    Front(
        engine, alive, tokenizer, lambda endpoints: Peers(context, endpoints, sockets.CLIENTS, security=security)
    ).run()
    context.destroy()


def _ending(status: int) -> str:
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {os.WEXITSTATUS(status)}"
