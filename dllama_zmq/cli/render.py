"""`dllama-zmq render`: the files that keep a cluster running under systemd, compose or Kubernetes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from dllama_zmq import __version__
from dllama_zmq.cli import flags
from dllama_zmq.cli.chosen import chosen_path
from dllama_zmq.cli.flag_kinds import word
from dllama_zmq.cli.notes import note
from dllama_zmq.cli.progress import Display
from dllama_zmq.cluster import load_cluster
from dllama_zmq.errors import UsageError
from dllama_zmq.render import compose, kubernetes, systemd, write

DEFAULT_IMAGE = f"dllama-zmq:{__version__}"
_IMAGE = r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,255}"

Form = Literal["systemd", "compose", "kubernetes"]


def render(
    *,
    form: Annotated[Form, word(of=Form, help="What will run the cluster")],
    which: flags.AnyCluster,
    out: Annotated[
        Path | None, Option("-o", "--out", metavar="FOLDER", help="Where they go; ./FORM if not given")
    ] = None,
    image: Annotated[str, Option("--image", metavar="NAME", help="What its image is called")] = DEFAULT_IMAGE,
    force: Annotated[bool, Option("--force", help="Replace what was rendered there; keys stay")] = False,
) -> None:
    """Write the files that run a cluster under systemd, docker compose or Kubernetes, from its cluster file.

    Examples:
        dllama-zmq render systemd home.yaml
        dllama-zmq render compose -o deploy
        dllama-zmq render kubernetes home.yaml --image registry.example/dllama-zmq:1
    """
    if not re.fullmatch(_IMAGE, image):
        raise UsageError(
            f"--image {image}: not the name of an image; expected a name such as registry.example/{DEFAULT_IMAGE}"
        )
    file, folder = load_cluster(chosen_path(which.file, which.option)), out or Path(form)
    with Display() as display:
        display.activity(f"reading {file.cluster.model}")
        if form == "systemd":
            rendered = systemd(file)
        else:
            rendered = {"compose": compose, "kubernetes": kubernetes}[form](file, image, folder)
    write(rendered, folder, force)
    note(f"wrote {', '.join([*rendered.files, *rendered.secrets])} in {shlex.quote(str(folder))}; next:")
    for command in rendered.then:
        note(command)
