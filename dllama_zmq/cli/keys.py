"""`dllama-zmq keys` and `dllama-zmq token`: who may connect to a cluster from other computers."""

from __future__ import annotations

from typing import Annotated

from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from dllama_zmq.cli import flags
from dllama_zmq.cli.chosen import chosen_path, running_here
from dllama_zmq.cli.exit_codes import as_json
from dllama_zmq.cli.notes import note
from dllama_zmq.cluster import ClusterFile
from dllama_zmq.errors import UsageError
from dllama_zmq.launch.invitations import check_root_is_here, invite
from dllama_zmq.reporting import plural
from dllama_zmq.trust import Ring, Role, own_key
from dllama_zmq.trust.learned import forget, read_learned
from dllama_zmq.trust.tokens import LIFETIME_S, read_tokens, withdraw


def token(
    *,
    name: Annotated[
        str | None, Argument(metavar="NAME", help="Which worker of the file joins with it; any free one if not given")
    ] = None,
    client: Annotated[bool, Option("--client", help="It is for a client, and NAME is any name for it")] = False,
    cluster: flags.Cluster = None,
) -> None:
    """Print a line to paste on another computer, which joins this cluster with it. It works once, for 10 minutes.

    Examples:
        dllama-zmq token pi2
        dllama-zmq token laptop --client
    """
    file = running_here(chosen_path(cluster), even_down=True)
    invitation = invite(file, Role.client if client else Role.worker, name or "")
    words = "join" if client else "worker --join"
    note(f"run this within {LIFETIME_S / 60:.0f} minutes on {name or 'one other computer'}:")
    print(f"dllama-zmq {words} {invitation.text}")  # noqa: T201


def keys(
    *,
    cluster: flags.Cluster = None,
    remove: Annotated[
        str | None, Option("--remove", metavar="NAME", help="Take back the key or the token of that name, or that key")
    ] = None,
    json: flags.Json = False,
) -> None:
    """List the keys that may connect to a cluster from other computers, and the tokens that are not used yet.

    Examples:
        dllama-zmq keys
        dllama-zmq keys --remove pi2
    """
    file = running_here(chosen_path(cluster), even_down=True)
    check_root_is_here(file, "keys")
    if remove is not None:
        _remove(file, remove)
        return
    ring, name = Ring.of(file), file.cluster.name
    learned = read_learned(name)
    rows = [
        (entry.role.value, entry.name, entry.public, "token" if entry in learned else str(file.path.name))
        for entry in ring.entries
    ]
    tokens = [one for one in read_tokens(name) if not one.expired]
    if json:
        keys = [dict(zip(("role", "name", "key", "from"), row, strict=True)) for row in rows]
        waiting = [{"role": one.role.value, "name": one.name, "seconds": round(one.left_s)} for one in tokens]
        print(as_json({"root": own_key().public, "keys": keys, "tokens": waiting}))  # noqa: T201
        return
    table = Table("role", "name", "public key", "from", box=None, pad_edge=False)
    table.add_row("root", "", own_key().public, "this computer")
    for row in rows:
        table.add_row(*row)
    for one in tokens:
        table.add_row(one.role.value, one.name, "", f"a token, for {one.left_s:.0f} s more")
    Console(highlight=False, markup=False, soft_wrap=True).print(table)


def _remove(file: ClusterFile, which: str) -> None:
    name = file.cluster.name
    gone, tokens = forget(name, which), withdraw(name, which)
    listed = [entry for entry in Ring.of(file).entries if which in (entry.name, entry.public)]
    if listed:
        raise UsageError(
            f"the key of {listed[0].name} is in {file.path}: remove `key:` there; a running root notices it"
        )
    if not gone and not tokens:
        raise UsageError(f"{name} has no key and no token of {which!r}; `{file.command('keys')}` lists them")
    note(f"removed {plural(len(gone), 'key')} and {plural(len(tokens), 'token')} of {which}")
