"""Which public keys may connect to a cluster: those listed in cluster.yaml, learned keys, and unused tokens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from dllama_zmq.cluster import Cluster, ClusterFile, load_cluster
from dllama_zmq.errors import ConfigError, TokenError, TrustError
from dllama_zmq.trust.files import locked, stamp
from dllama_zmq.trust.keys import Role, check_public
from dllama_zmq.trust.learned import Entry, learned_path, read_learned, with_entry, write_learned
from dllama_zmq.trust.tokens import Token, read_tokens, tokens_path, write_tokens

logger = logging.getLogger(__name__)

_Stamps = tuple[tuple[int, ...], ...]


class _State(Struct, frozen=True):
    """Everything that a ring knows at one time.

    listed: from cluster.yaml. learned: from tokens or over ssh. workers: the names of the cluster's workers.
    """

    listed: tuple[Entry, ...] = ()
    learned: tuple[Entry, ...] = ()
    tokens: tuple[Token, ...] = ()
    workers: frozenset[str] = frozenset()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The keys that count: if cluster.yaml lists a name, its key there is the only one."""
        bound = {(entry.role, entry.name) for entry in self.listed}
        return (*self.listed, *(one for one in self.learned if not one.name or (one.role, one.name) not in bound))

    def names(self, public: str, role: Role) -> frozenset[str]:
        """See `Ring.admits`."""
        entries = [entry for entry in self.entries if entry.role is role]
        found = {entry.name for entry in entries if entry.public == public}
        if "" in found and role is Role.worker:
            found |= self.workers - {entry.name for entry in entries}
        return frozenset(found)


class Ring:
    """The keys that a cluster admits. For any thread: its state is replaced as a whole."""

    def __init__(
        self, entries: Iterable[Entry] = (), tokens: Iterable[Token] = (), workers: Iterable[str] = ()
    ) -> None:
        """A ring without files. workers: the names of the cluster's workers, for keys that may take any place."""
        self._state = _State((), tuple(entries), tuple(tokens), frozenset(workers))
        self._file: ClusterFile | None = None
        self._stamps: _Stamps = ()
        self._writing = threading.Lock()

    @classmethod
    def of(cls, file: ClusterFile) -> Ring:
        """The ring of a cluster, from its file and its files of keys. Raises ConfigError, TrustError."""
        ring = cls()
        ring._file, ring._stamps = file, _stamps(file)
        ring._state = _read(file.cluster)
        return ring

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The keys that may connect."""
        return self._state.entries

    def admits(self, public: str, role: Role) -> frozenset[str]:
        """The names that this key may use; empty if it may not connect.

        If "" is among them, the key may take any free place, and the set has the names of all workers without a key of
        their own.
        """
        return self._state.names(public, role)

    def token(self, public: str) -> Token | None:
        """The token with this key, if it is unused and has not expired."""
        return next((token for token in self._state.tokens if token.public == public and not token.expired), None)

    def use(self, token: Token, public: str) -> Entry:
        """Admit `public` with a token, which is then used up.

        Raises TokenError if it was used before, or if cluster.yaml lists a key for its name; TrustError if the files
        cannot be written, and then the key is not admitted.
        """
        entry = Entry(token.role, token.name, check_public(public))
        with self._writing:
            if self._file is None:
                self._check(token, entry, self._state.tokens)
                self._state = replace(
                    self._state,
                    learned=tuple(with_entry(self._state.learned, entry)),
                    tokens=tuple(one for one in self._state.tokens if one != token),
                )
                return entry
            name = self._file.cluster.name
            with locked(learned_path(name)):
                tokens = read_tokens(name)
                self._check(token, entry, tokens)
                write_tokens(name, [one for one in tokens if one.public != token.public and not one.expired])
                write_learned(name, with_entry(read_learned(name), entry))
        self.reload()
        return entry

    def reload(self) -> bool:
        """Read the files again if one has changed. Returns True if a key was removed or may use fewer names than
        before.

        If a file cannot be read, everything stays as it was, and the error is logged once.
        """
        file = self._file
        if file is None:
            return False
        with self._writing:
            stamps = _stamps(file)
            if stamps == self._stamps:
                return False
            self._stamps = stamps
            before = self._state
            try:
                cluster = load_cluster(file.path).cluster if file.path.exists() else None
                state = _read(file.cluster)
            except (ConfigError, TrustError) as error:
                logger.warning("the keys stay as they were: %s", error)
                return False
            # the file may be gone, or be another cluster's by now: its keys then count as they were
            if cluster is None or cluster.name != file.cluster.name:
                listed = before.listed
            else:
                listed = tuple(listed_entries(cluster))
            after = self._state = replace(state, listed=listed)
        pairs = {(entry.public, entry.role) for entry in before.entries}
        return any(not before.names(*pair) <= after.names(*pair) for pair in pairs)

    def _check(self, token: Token, entry: Entry, tokens: Sequence[Token]) -> None:
        """Raise TokenError if the token can no longer be used."""
        state = self._state
        if token.expired:
            raise TokenError("this token has expired; make another one on the root's computer: dllama-zmq token")
        if token.public not in (one.public for one in tokens):
            raise TokenError("this token has been used; make another one on the root's computer: dllama-zmq token")
        listed = next(
            (one for one in state.listed if one.name and (one.role, one.name) == (entry.role, entry.name)), None
        )
        if listed is not None and listed.public != entry.public:
            raise TokenError(f"{entry.name} has its key in the cluster's file; write its new key there")


def _read(cluster: Cluster) -> _State:
    return _State(
        tuple(listed_entries(cluster)),
        tuple(read_learned(cluster.name)),
        tuple(token for token in read_tokens(cluster.name) if not token.expired),
        frozenset(worker.name for worker in cluster.workers),
    )


def listed_entries(cluster: Cluster) -> list[Entry]:
    """The keys in cluster.yaml."""
    workers = [Entry(Role.worker, worker.name, worker.key) for worker in cluster.workers if worker.key]
    return workers + [Entry(Role.client, client.name, client.key) for client in cluster.clients]


def _stamps(file: ClusterFile) -> _Stamps:
    name = file.cluster.name
    paths: list[Path] = [file.path, learned_path(name), tokens_path(name)]
    return tuple(map(stamp, paths))
