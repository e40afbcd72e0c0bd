"""`dllama-zmq keygen`: this user's own key."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from dllama_zmq.cli.notes import note
from dllama_zmq.trust.keys import new_own_key, own_key, own_key_path


def keygen(
    *, new: Annotated[bool, Option("--new", help="Make another key; roots must then admit it anew")] = False
) -> None:
    """Print your public key on this computer, which a cluster's file may list. It is made if there is none yet.

    Examples:
        dllama-zmq keygen
    """
    path = own_key_path()
    is_there = path.exists()
    keys = new_own_key() if new else own_key()
    if new and is_there:
        note("this is your new key: join each cluster again with a token of its root, or write the key into its file")
    elif not is_there:
        note(f"your secret key is in {path}; keep it there. The public key is:")
    print(keys.public)  # noqa: T201
