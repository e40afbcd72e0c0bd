"""The loop of a child process: answers lines of JSON by the function `answer` of a script, under limits.

It imports nothing of this package. Its argument is the path of the script, which may have MEMORY_BYTES, its limit. A
request may have `seconds`, its limit of CPU time; wall time would fail good requests on a busy computer. A script that
has something to say of that handles SIGPROF itself.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import signal
import sys
from typing import Any

_MAX_ERROR_CHARACTERS = 2000


def main(script: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it ends this process
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    found = importlib.util.spec_from_file_location("script", script)
    if found is None or found.loader is None:
        raise SystemExit(f"{script} is not a script of Python")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    if hasattr(module, "MEMORY_BYTES"):
        resource.setrlimit(resource.RLIMIT_AS, (module.MEMORY_BYTES, module.MEMORY_BYTES))
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line)
            if "seconds" in request:
                limit_time(request["seconds"])
            reply: dict[str, Any] = module.answer(request)
        except BaseException as error:  # a panic of a Rust library is not an Exception
            reply = {"error": str(error)[:_MAX_ERROR_CHARACTERS] or type(error).__name__}
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


def limit_time(seconds: float) -> None:
    """Limit this process's further CPU time: the kernel kills it inside a library too.

    A script that handles SIGPROF is killed at most 2 s later where no handler can interrupt it; that limit is in whole
    seconds.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    used_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used_s + seconds) + 2, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main(sys.argv[1])
