"""What the command line says of a cluster instead of its file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dllama_zmq.cli.kinds import KernelChoice, choice, model_flag, number
from dllama_zmq.errors import ClusterError
from dllama_zmq.spec import Sync, Weights

if TYPE_CHECKING:
    from dllama_zmq.cluster import ClusterFile
    from dllama_zmq.launch.registry import Running

_SETTINGS = "Instead of what the file says"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What the command line says instead of the file. A model's path is relative to where the command runs."""

    model: Annotated[
        str | None,
        model_flag("-m", "--model", help="A file or folder of any format, hf:REPO[:FILE] or demo"),
    ] = None
    weights: Annotated[
        Weights | None,
        choice("--weights", of=Weights, help="Type in which a folder's weights are read", rich_help_panel=_SETTINGS),
    ] = None
    threads: Annotated[
        int | None,
        number("-t", "--threads", "--nthreads", help="Threads of every node here", rich_help_panel=_SETTINGS),
    ] = None
    sync: Annotated[
        Sync | None,
        choice(
            "--sync", "--buffer-float-type", of=Sync, help="Type of activations on the bus", rich_help_panel=_SETTINGS
        ),
    ] = None
    kernels: Annotated[
        KernelChoice | None,
        choice("--kernels", of=KernelChoice, help="Back end of the arithmetic", rich_help_panel=_SETTINGS),
    ] = None

    def apply(self, file: ClusterFile) -> ClusterFile:
        """`file` with these values in it."""
        import msgspec

        cluster = file.cluster
        if self.threads is not None:
            root = msgspec.structs.replace(cluster.root, threads=self.threads)
            workers = [msgspec.structs.replace(worker, threads=self.threads) for worker in cluster.workers]
            cluster = msgspec.structs.replace(cluster, root=root, workers=workers)
        if self.model is not None:  # the file's tokenizer is that of the file's model
            cluster = msgspec.structs.replace(cluster, model=self._model_from_anywhere(), tokenizer=None)
        changes = {"sync": self.sync, "kernels": self.kernels, "weights": self.weights}
        given = {key: value for key, value in changes.items() if value is not None}
        return replace(file, cluster=msgspec.structs.replace(cluster, **given))

    def check_running(self, running: Running, asked: ClusterFile) -> None:
        """Say which of these values a cluster that runs already does not take; `asked` has them in it.

        Raises ClusterError where they, or the file by now, ask for another model, which would answer otherwise.
        """
        from dllama_zmq.cli.show import note

        if not asked.runs_the_same(running.file):
            given = self.model is not None or self.weights is not None
            raise ClusterError(
                f"{running.name} runs {_described(running.file)}, and {'the command' if given else asked.path} asks "
                f"for {_described(asked)}: take it down first ({running.down_command()})"
                + (", or leave -m and --weights out" if given else "")
            )
        values = {"--threads": self.threads, "--sync": self.sync, "--kernels": self.kernels}
        given_flags = [f"{flag} {value}" for flag, value in values.items() if value is not None]
        if given_flags:
            verb = "has" if len(given_flags) == 1 else "have"
            note(f"{running.name} is running already: {' '.join(given_flags)} {verb} no effect on it")

    def _model_from_anywhere(self) -> str | None:
        from dllama_zmq.cluster import DEMO, PULLED

        if self.model is None or self.model == DEMO or self.model.startswith(PULLED):
            return self.model
        return str(Path(self.model).expanduser().absolute())


def _described(file: ClusterFile) -> str:
    weights = "" if file.cluster.weights is None else f" with weights {file.cluster.weights}"
    tokenizer = "" if file.cluster.tokenizer is None else f" with tokenizer {file.cluster.tokenizer}"
    return f"{file.model_place().resolve()}{weights}{tokenizer}"
