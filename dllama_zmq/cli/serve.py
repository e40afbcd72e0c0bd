"""`dllama-zmq serve`: a cluster and its API server in the foreground."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec.structs import replace
from typer import Argument, Option

from dllama_zmq.api_config import ApiConfig
from dllama_zmq.cli import completion, flags
from dllama_zmq.cli.chosen import chosen_path, to_bring_up
from dllama_zmq.cli.flag_kinds import number
from dllama_zmq.cli.overrides import fetched
from dllama_zmq.cluster import ClusterFile, is_loopback
from dllama_zmq.errors import UsageError


def serve(
    *,
    source: Annotated[
        str | None,
        Argument(
            metavar="MODEL", help="Its model; that of ./cluster.yaml if not given", autocompletion=completion.models
        ),
    ] = None,
    host: Annotated[
        str | None, Option("--host", metavar="ADDRESS", help="Where it listens; 127.0.0.1 if nothing says otherwise")
    ] = None,
    port: Annotated[int | None, number("--port", least=1, most=65535, help="Its port; 9990 if nothing does")] = None,
    api_key: Annotated[
        list[str] | None,
        Option("--api-key", metavar="KEY", show_default=False, help="What clients must send; may be given again"),
    ] = None,
    cluster: flags.Cluster = None,
    overrides: flags.Overrides,
) -> None:
    """Serve a model over HTTP, with OpenAI's API and a web page, until Ctrl-C. The same as `up --foreground`.

    Examples:
        dllama-zmq serve demo
        dllama-zmq serve story.gguf --host 0.0.0.0 --api-key sk-mine-0001
        dllama-zmq serve --cluster home.yaml
    """
    if source is not None:
        if overrides.model is not None:
            raise UsageError("the model is given twice; give it once: dllama-zmq serve MODEL")
        overrides = replace(overrides, model=source)
    file = to_bring_up(chosen_path(None, cluster), fetched(overrides))
    from dllama_zmq.cli.root import be_root

    be_root(_with_api(file, host, port, api_key))


def _with_api(file: ClusterFile, host: str | None, port: int | None, keys: list[str] | None) -> ClusterFile:
    """`file` with an API server as the flags say. Raises UsageError."""
    written = file.cluster.api if isinstance(file.cluster.api, ApiConfig) else ApiConfig()
    said: dict[str, object] = {"host": host, "port": port, "keys": keys}
    changed = replace(written, **{key: value for key, value in said.items() if value is not None})
    try:
        api = msgspec.convert(msgspec.to_builtins(changed), ApiConfig)
    except msgspec.ValidationError as error:
        name = "--api-key" if "keys" in str(error) else "--host"
        raise UsageError(f"{name}: {str(error).partition(' - at ')[0]}") from None
    if not api.keys and not is_loopback(api.host):
        raise UsageError(f"--host: {api.host} can be reached from a network; give --api-key KEY too")
    return replace(file, cluster=replace(file.cluster, api=api))
