"""Run commands on another computer with the installed `ssh`: its options, the command line, and what its errors mean.

The user's own configuration, keys, agent, known hosts and jump hosts apply. ssh must never ask a question, because
nobody may be there to answer it.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence

from dllama_zmq.errors import ClusterError

FAILED = 255
"""The exit code of ssh itself; any other is that of the command there."""
NOT_FOUND = 127
"""The exit code of a shell that does not find the command."""

VENV = ".local/share/dllama-zmq/venv"
"""Where `up --install` puts this package, in the home folder there."""

CONNECT_S = 10
ALIVE_S = 10
_ALIVE_MISSES = 3
DEAD_S = ALIVE_S * _ALIVE_MISSES
"""Seconds without a sign of life from the other computer after which ssh ends."""

_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": CONNECT_S,
    "ServerAliveInterval": ALIVE_S,
    "ServerAliveCountMax": _ALIVE_MISSES,
    "ControlMaster": "no",  # use an existing connection, but do not become one that others depend on
    "ClearAllForwardings": "yes",  # two connections to one computer cannot both forward the same port
    "RemoteCommand": "none",
    "PermitLocalCommand": "no",
}

_OWN = f'"$HOME/{VENV}/bin/dllama-zmq"'


def command(destination: str, line: str) -> list[str]:
    """The command to run here so that the shell of `destination` runs `line`. Raises ClusterError if ssh is missing."""
    program = shutil.which("ssh")
    if program is None:
        raise ClusterError(
            f"{destination}: there is no ssh on this computer; install it (Debian: sudo apt install openssh-client), "
            "or take `ssh:` out of the cluster file and start that worker by hand"
        )
    options = [word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}")]
    return [program, "-T", "-x", "-a", *options, "--", destination, line]


def dllama_line(*commands: Sequence[str]) -> str:
    """The line that runs `dllama-zmq WORDS` there for each of `commands`, as long as they succeed.

    The program is that of `up --install` if there is one, else the one in the PATH of a login shell. The last command
    replaces the shell, so that it ends with the connection.
    """
    found = f"{{ {_chain(_OWN, commands)}; }}"
    login = f'exec "${{SHELL:-/bin/sh}}" -lc {shlex.quote(_chain("dllama-zmq", commands))}'
    return shell_line(f"if [ -x {_OWN} ]; then {found}; else {login}; fi")


def shell_line(script: str, *arguments: str) -> str:
    """The line that runs a POSIX sh script there, whatever that user's shell is."""
    return f"exec /bin/sh -c {shlex.join([script, 'sh', *arguments])}"


def _chain(program: str, commands: Sequence[Sequence[str]]) -> str:
    lines = [f"{program} {shlex.join(words)}" for words in commands]
    return " && ".join([*lines[:-1], f"exec {lines[-1]}"])


def failure(destination: str, said: str) -> str:
    """Why `ssh DESTINATION` failed and what to do, from all that it wrote to stderr. Without a full stop."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for pattern, cure in _FAILURES:
        line = next((line for line in lines if re.search(pattern, line)), None)
        if line is not None:
            remove = next((line for line in lines if line.startswith("ssh-keygen -f")), None)
            host = destination.removeprefix("ssh://").rpartition("@")[2]
            words = cure.format(to=destination, remove=remove or f"ssh-keygen -R {shlex.quote(host)}")
            return f"ssh {destination}: {line.strip('@ ').removeprefix('ssh: ')}: {words}"
    if lines:
        return f"ssh {destination}: {lines[-1].removeprefix('ssh: ')}: try `ssh {destination}` by hand"
    return (
        f"ssh {destination}: it ended without a message: the worker there was killed (for lack of memory?), or the "
        "connection was cut"
    )


_FAILURES = (
    (
        "IDENTIFICATION HAS CHANGED",
        "the computer was reinstalled, or another answers in its place; only if you know that it was reinstalled, run "
        "`{remove}`, then `ssh {to}`",
    ),
    ("Host key verification failed", "run `ssh {to}` once by hand, compare the host key and accept it"),
    (
        "Permission denied|Too many authentication failures",
        "that computer knows no key of yours, or not that user; `ssh-copy-id {to}` adds your key, and ssh-agent must "
        "hold it if it has a passphrase",
    ),
    (
        "Connection refused",
        "that computer is on, but no ssh server listens there; start one, or correct the port",
    ),
    ("Could not resolve hostname", "correct the name in the cluster file or in ~/.ssh/config"),
    (
        "No route to host|Network is unreachable",
        "is that computer on, and are both in one network?",
    ),
    (
        "Timeout, server|[Tt]imed out",
        "is that computer on, is this its address, and does its firewall let ssh through?",
    ),
    ("closed by|Connection reset|Connection closed|Broken pipe", "the connection was cut, or its ssh server ended"),
)
"""Patterns of ssh's error lines, the most specific first, and what to do."""
