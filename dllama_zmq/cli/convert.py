"""`dllama-zmq convert`: writes any readable model as a `.m` file, and its tokenizer unchanged."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dllama_zmq.cli import flags
from dllama_zmq.cli.notes import note
from dllama_zmq.cli.progress import Display
from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.formats import open_model
from dllama_zmq.formats.convert import convert_model
from dllama_zmq.formats.files import check_replaceable
from dllama_zmq.formats.tokenizers import check_writable, tokenizer_files, write_tokenizer
from dllama_zmq.reporting import human_bytes
from dllama_zmq.sources import model_at, tokenizer_beside
from dllama_zmq.spec import FloatType, Weights


def convert(
    *,
    source: flags.Source,
    out: Annotated[Path, Argument(metavar="OUT.m", help="The file to write")],
    weights: Annotated[
        Weights | None, flags.weights_flag("If not given: as they are where a .m file can have that, else q40")
    ] = None,
    tokenizer: Annotated[
        Path | None, Option("--tokenizer", metavar="OUT.t", help="Where the tokenizer goes; beside OUT.m if not given")
    ] = None,
    force: flags.Force = False,
) -> None:
    """Write a model of any format as a .m file, and its tokenizer beside it as it is.

    Examples:
        dllama-zmq convert path/to/folder model.m --weights q40
    """
    if out.suffix != ".m":
        raise UsageError(f"{out}: the output is a .m file; give a name that ends in .m")
    path = model_at(source)
    words_out = tokenizer or out.with_suffix(".t")
    check_replaceable(out)
    for file in (out, words_out):
        if file.exists() and not force:
            raise UsageError(f"{file} exists; --force replaces it")
        if file.exists() and path.exists() and file.samefile(path):
            raise UsageError(f"{file} is the model to convert; give another name")
    start = time.monotonic()
    with open_model(path) as model:
        words = None
        try:
            words = tokenizer_files(tokenizer_beside(path))
            check_writable(words_out, words)
        except FormatError as error:
            if tokenizer is not None:
                raise
            note(f"no tokenizer is written: {error}")
        with Display() as display:
            weight_type = FloatType[weights.upper()] if weights else None
            spec = convert_model(model, out, weight_type, lambda *amount: display.activity(out.name, *amount))
    if words is not None:
        write_tokenizer(words_out, words)
    seconds = time.monotonic() - start
    also = f" and {words_out}" if words is not None else ""
    note(f"{out}{also}: {human_bytes(out.stat().st_size)} in {seconds:.1f} s, weights in {spec.weight_type.name}")
