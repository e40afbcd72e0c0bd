"""Keys for tests: those of a cluster, of its workers and clients, and sockets that have them on loopback too."""

from __future__ import annotations

from collections.abc import Sequence

from dllama_zmq.bus.security import Peer, Server
from dllama_zmq.trust import Entry, KeyPair, Ring, Role, Token


class Secured:
    """A root's key pair, its ring, and the key pairs of those on it by name."""

    def __init__(self, workers: Sequence[str] = ("worker1",), clients: Sequence[str] = ("laptop",)) -> None:
        self.root = KeyPair.new()
        self.own = {name: KeyPair.new() for name in (*workers, *clients)}
        self.tokens = {role: KeyPair.new() for role in Role}
        self.ring = Ring(
            [
                Entry(Role.client if name in clients else Role.worker, name, keys.public)
                for name, keys in self.own.items()
            ],
            [Token.lasting(role, "", keys.public) for role, keys in self.tokens.items()],
            workers,
        )

    def server(self, role: Role = Role.worker) -> Server:
        return Server(self.root, self.ring, role, everywhere=True)

    def peer(self, name: str) -> Peer:
        return Peer(self.own[name], self.root.public)

    def holder(self, role: Role = Role.worker) -> Peer:
        """Who has the secret of a token."""
        return Peer(self.tokens[role], self.root.public)
