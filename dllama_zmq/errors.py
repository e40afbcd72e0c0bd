"""Every error this package raises on purpose.

    DllamaError                    catch this one to catch them all
    ├── UsageError                 a flag, an argument or a value given by the caller
    ├── ConfigError                cluster.yaml: says the place in the file
    ├── FormatError                a model or tokenizer file: says the file and the offset
    │   └── UnsupportedModel       a sound file of something this version does not run
    ├── PlanError                  the model cannot be split as asked; says which node counts can
    ├── RequestError               a request that cannot be answered: prompt too long, bad sampling values
    ├── HubError                   a model hub that cannot be reached, or does not give what was asked
    ├── ClusterError               a cluster that does not start, stop or answer
    ├── ClusterDefect              something failed on the root that should not have: a defect of this program
    └── BusError
        ├── ProtocolError          a message that is not what the protocol allows
        ├── WorkerLost             a worker that left, or did not answer before its deadline
        ├── RemoteError            an exception on another node, carried home under that node's name
        └── RootLost               a worker's or a client's root went away

A message says what happened and where (node, address, file offset), what was expected, and what to do.
"""


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


class HubError(DllamaError):
    """A model hub cannot be reached, or does not give what was asked."""


class ClusterError(DllamaError):
    """A cluster did not start, stop or answer."""


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


def told(error: Exception) -> tuple[str, str]:
    """What a client is told of the error that ended its request: its class and its words. A defect of ours is named."""
    if not isinstance(error, DllamaError):
        error = ClusterDefect(f"{type(error).__name__}: {error}; the root's log has more")
    return type(error).__name__, str(error)[:4000]
