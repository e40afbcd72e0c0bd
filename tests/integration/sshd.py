"""Another computer, played by a real sshd on loopback with a home folder of its own; and the ssh of who uses it.

Both have no file in common with the user's own: `ssh`, found first in PATH, is the installed one with a configuration
of the test's. The home has a space and a $ in its name.
"""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from command_line import gone, until
from surroundings import free_ports

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
MISSING = "" if SSHD and shutil.which("ssh") else "no sshd is installed (Debian: openssh-server)"

HOME = "far home $HOME"


class Computer:
    """`start` and `stop` its sshd; `destination` is what `ssh:` in cluster.yaml says."""

    def __init__(self, folder: Path, home: str = HOME, **env: str) -> None:
        """`env` is added to what a session there has. `folder` is new."""
        folder.mkdir()
        self.folder = folder
        self.home = folder / home
        self.home.mkdir()
        self.port = free_ports(1)[0]
        self.user = getpass.getuser()
        self.destination = f"{self.user}@127.0.0.1"
        self._listener: subprocess.Popen[bytes] | None = None
        (self.home / ".cache").symlink_to(Path.home() / ".cache")  # compiled kernels
        for name in ("host_key", "key"):
            self.make_key(name)
        self.note_host_key("host_key")
        shutil.copy(folder / "key.pub", folder / "authorized_keys")
        session = {"HOME": str(self.home), "DLLAMA_ZMQ_HOME": str(self.home / "clusters"), "LC_ALL": "C.UTF-8", **env}
        words = " ".join(f'"{name}={value}"' for name, value in session.items())
        (folder / "sshd_config").write_text(f"""
Port {self.port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
SetEnv {words}
""")
        (folder / "ssh_config").write_text(f"""
Host *
Port {self.port}
IdentityFile {folder}/key
IdentitiesOnly yes
IdentityAgent none
UserKnownHostsFile {folder}/known_hosts
GlobalKnownHostsFile /dev/null
""")
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.script(self.bin / "ssh", f'exec {shutil.which("ssh")} -F {folder}/ssh_config "$@"')

    @property
    def path(self) -> str:
        """The PATH of the person here."""
        return f"{self.bin}:{os.environ['PATH']}"

    def script(self, path: Path, line: str) -> Path:
        """Write a script of one line."""
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
        return path

    def install(self, line: str = "") -> None:
        """Put a `dllama-zmq` into the PATH of its login shells: this code, or a script that runs `line`."""
        there = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "PYTHONSAFEPATH": "1"}
        own = shlex.join(["env", *(f"{k}={v}" for k, v in there.items()), sys.executable, "-m", "dllama_zmq"])
        self.script(self.home / "my $bin" / "dllama-zmq", line or f'exec {own} "$@"')
        (self.home / ".profile").write_text('echo "welcome to $HOME"\nPATH="$HOME/my \\$bin:$PATH"\n')

    def make_key(self, name: str) -> None:
        """A new key pair in the folder."""
        with suppress(FileNotFoundError):
            (self.folder / name).unlink()
        words = ["-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
        subprocess.run(["ssh-keygen", *words], check=True, stdin=subprocess.DEVNULL)

    def note_host_key(self, name: str) -> None:
        """Let the person here know `name` as its host key."""
        kind, key, *_ = (self.folder / f"{name}.pub").read_text().split()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def start(self) -> None:
        """Start its sshd, and return when it listens."""
        assert SSHD is not None
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # it refuses to start as root without
        log = (self.folder / "sshd.log").open("ab")
        with log:
            self._listener = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", self.folder / "sshd_config"], stdin=subprocess.DEVNULL, stderr=log
            )
        until(self._listens, 20, f"sshd to listen; its log is {self.folder / 'sshd.log'}")

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1.0).close()
        except OSError:
            return False
        return True

    def connections(self) -> list[psutil.Process]:
        """The processes of sshd that hold a connection each."""
        if self._listener is None:
            return []
        found = []
        for process in psutil.Process(self._listener.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.name() == "sshd":
                    found.append(process)
        return found

    def cut(self) -> None:
        """Cut every connection."""
        for process in self.connections():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def stop(self) -> None:
        """Kill its sshd and cut every connection."""
        if self._listener is not None:
            self._listener.send_signal(signal.SIGSTOP)  # it takes no more connections, and still has its children
            children = self.connections()
            self.cut()
            self._listener.kill()
            self._listener.wait()
            self._listener = None
            until(lambda: all(gone(one.pid) for one in children), 20, "sshd to end")  # one may hold the port still

    def processes(self) -> list[psutil.Process]:
        """Every process with this home."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, psutil.NoSuchProcess):
                if f"HOME={self.home}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(psutil.Process(int(folder.name)))
        return found

    def end(self) -> list[str]:
        """Stop it; the processes that have not ended by themselves then, which are killed, as words."""
        self.stop()
        with suppress(TimeoutError):
            until(lambda: not self.processes(), 20, "its processes to end")
        left = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                left.append(f"process {process.pid}: {' '.join(process.cmdline())}")
                process.kill()
        return left


@contextmanager
def a_computer(folder: Path, home: str = HOME, **env: str) -> Iterator[Computer]:
    """One whose sshd runs, and whose `ssh` comes first in PATH; fails where a process of it is left at the end."""
    computer = Computer(folder, home, **env)
    computer.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", computer.path)
        try:
            yield computer
        finally:
            left = computer.end()
    assert not left, "\n".join(left)
