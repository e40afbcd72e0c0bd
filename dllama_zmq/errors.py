"""Every error this package raises on purpose.

    DllamaError                    catch this one to catch them all
    ├── UsageError                 a flag, an argument or a value given by the caller
    ├── ConfigError                cluster.yaml: says the place in the file
    ├── FormatError                a model or tokenizer file: says the file and the offset
    │   └── UnsupportedModel       a sound file of something this version does not run
    ├── PlanError                  the model cannot be split as asked; says which node counts can
    ├── RequestError               a request that cannot be answered: bad sampling values, a token that is none
    │   ├── ContextExceeded        its prompt is longer than the context; says both numbers
    │   └── QueueFull              too many requests wait already; the same one may be answered later
    ├── TrustError                 a key, or a file of keys: says the file and the command that mends it
    │   └── TokenError             a token that is damaged, used or expired
    ├── HubError                   a model hub that cannot be reached, or does not give what was asked
    ├── ClusterError               a cluster that does not start, stop or answer
    │   └── NotReady               nodes are missing, and a request has waited for them as long as it may
    ├── ClusterDefect              something failed on the root that should not have: a defect of this program
    └── BusError
        ├── ProtocolError          a message that is not what the protocol allows
        ├── WorkerLost             a worker that left, or did not answer before its deadline
        ├── RemoteError            an exception on another node, carried home under that node's name
        └── RootLost               a worker's or a client's root went away

A message says what happened and where (node, address, file offset), what was expected, and what to do.
"""

from __future__ import annotations

import re


class DllamaError(Exception):
    """Base of all errors raised on purpose by this package."""


class UsageError(DllamaError):
    """A flag, an argument or a value given by the caller is not usable."""


class ConfigError(DllamaError):
    """cluster.yaml does not say what it must; the message begins with the place."""


class FormatError(DllamaError):
    """A model or tokenizer file is not what its format says; the message names file and offset."""


class UnsupportedModel(FormatError):
    """A sound file of an architecture or type that this version does not run."""


class PlanError(DllamaError):
    """The model cannot be split over the nodes asked for; the message names the counts that can."""


class RequestError(DllamaError):
    """A request that this model or cluster cannot answer as it was put."""


class ContextExceeded(RequestError):
    """A prompt is longer than the context. The message has both numbers, as only a message travels."""

    @classmethod
    def of(cls, n_prompt_tokens: int, n_ctx: int, own_ctx: int) -> ContextExceeded:
        """For a prompt of `n_prompt_tokens`, where there is room for `n_ctx`; the model has `own_ctx` by itself."""
        whose = "this model's own context is" if n_ctx == own_ctx else "there is room for"
        cure = "" if n_ctx == own_ctx else f", or raise max_seq_len (at most {own_ctx})"
        return cls(
            f"the prompt has {n_prompt_tokens} tokens; {whose} {n_ctx}, of which an answer needs at least one: shorten "
            f"the prompt{cure}"
        )

    @property
    def numbers(self) -> tuple[int, int]:
        """Tokens of the prompt, and tokens that there is room for."""
        found = re.search(r"has (\d+) tokens; .* (\d+), of which", str(self))
        return (int(found[1]), int(found[2])) if found is not None else (0, 0)


class QueueFull(RequestError):
    """Too many requests wait already; the same one may be answered later."""


class TrustError(DllamaError):
    """A key, or a file of keys, is not usable; the message says the file and the command that mends it."""


class TokenError(TrustError):
    """A token is damaged, used or expired."""


class HubError(DllamaError):
    """A model hub cannot be reached, or does not give what was asked."""


class ClusterError(DllamaError):
    """A cluster did not start, stop or answer."""


class NotReady(ClusterError):
    """Nodes are missing, and a request has waited for them as long as it may."""


class ClusterDefect(DllamaError):
    """Something failed on the root that should not have: a defect of this program."""


class BusError(DllamaError):
    """Something went wrong between the nodes."""


class ProtocolError(BusError):
    """A message that the protocol does not allow: unknown kind, wrong type, out of bounds."""


class WorkerLost(BusError):
    """A worker left, or did not answer before its deadline."""


class RootLost(BusError):
    """The root went away, or did not answer before its deadline."""


class RemoteError(BusError):
    """An exception on another node. `node` is its name."""

    def __init__(self, node: str, message: str) -> None:
        super().__init__(f"{node} failed: {message}")
        self.node = node


def kind_and_text(error: BaseException) -> tuple[str, str]:
    """The class name and the text of an error, for the client of a request. An unexpected error is a ClusterDefect."""
    if not isinstance(error, DllamaError):
        error = ClusterDefect(f"{type(error).__name__}: {error}; the root's log has more")
    return type(error).__name__, str(error)[:4000]


def as_error(kind: str, text: str) -> DllamaError:
    """The error that `kind_and_text` describes, in the class that it has there."""
    if kind == RemoteError.__name__:
        node, _, text = text.partition(" failed: ")
        return RemoteError(node, text)
    found = globals().get(kind)
    return found(text) if isinstance(found, type) and issubclass(found, DllamaError) else ClusterError(text)
