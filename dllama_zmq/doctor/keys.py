"""The own key of this user and the keys that a cluster admits: can their files be trusted?"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from dllama_zmq.cluster import ClusterFile, is_loopback
from dllama_zmq.doctor.findings import Finding, ok, problem, warning
from dllama_zmq.errors import ConfigError, TrustError
from dllama_zmq.reporting import plural
from dllama_zmq.trust import Ring, find, own_key
from dllama_zmq.trust.keys import own_key_path


def own_keys() -> Iterator[Finding]:
    """The file of the own key, and the file of known roots."""
    path = own_key_path()
    try:
        if path.exists() or path.is_symlink():
            public = own_key(create=False).public
            mode = stat.S_IMODE(path.stat().st_mode)
            yield ok("keys", f"the public key of this computer is {public}; {path} has mode {mode:04o}")
        else:
            yield ok("keys", f"no key in {path} yet; the first `up`, `worker` or `keygen` makes it")
    except TrustError as error:
        yield _mistrust(error)
    try:
        find("")  # reads all lines
    except TrustError as error:
        yield _mistrust(error)


def ring(file: ClusterFile) -> Iterator[Finding]:
    """Who may connect to the cluster from other computers."""
    cluster = file.cluster
    if not cluster.secured:
        if not is_loopback(cluster.root.host):
            cure = "only in a network that you trust; `security: curve` encrypts it"
            yield warning("security", "none: anybody who reaches its ports can use it and read its traffic", cure)
        return
    try:
        entries = Ring.of(file).entries
    except (ConfigError, TrustError) as error:
        yield _mistrust(error)
        return
    names = {entry.name for entry in entries}
    lacking = [one.name for one in cluster.workers if not is_loopback(one.host) and one.name not in names]
    text = f"curve; {plural(len(entries), 'key')} may connect"
    if lacking and "" not in names:
        yield ok("security", f"{text}; {', '.join(lacking)} will need a token: `{file.command('token')}`")
    else:
        yield ok("security", text)


def _mistrust(error: Exception) -> Finding:
    what, _, cure = str(error).partition("; ")
    return problem("keys", what, cure)
