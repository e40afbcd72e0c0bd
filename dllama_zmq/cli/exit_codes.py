"""How a command ends: an exit code and one sentence on stderr. DLLAMA_ZMQ_DEBUG shows tracebacks.

0 done, 1 failed, 2 wrong use, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import codecs
import functools
import io
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, ParamSpec

import typer

from dllama_zmq.cli.notes import note
from dllama_zmq.errors import UsageError
from dllama_zmq.host import in_words

P = ParamSpec("P")

_ESCAPED = {code: f"\\u{code:04x}" for code in range(127, 160)}  # DEL and C1, which json.dumps does not escape


def with_exit_codes(command: Callable[P, None]) -> Callable[P, None]:
    """Make `command` end with one of the exit codes above."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            _discard_output()  # the reader of stdout has closed the pipe
        except typer.Exit:
            raise
        except Exception as error:
            cause = error.__cause__  # a signal that came while a C module was loaded, which made an error of it
            if isinstance(cause, KeyboardInterrupt):
                raise typer.Exit(130) from None
            if isinstance(cause, SystemExit):
                raise cause from None
            raise _failed(in_words(error), 2 if isinstance(error, UsageError) else 1) from None

    return guarded


class Output(io.FileIO):
    """stdout; its errors carry the file name "stdout"."""

    def write(self, data: Any) -> Any:
        """As FileIO's."""
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "stdout"
            raise


def open_output() -> None:
    """Make sys.stdout an Output. A terminal without UTF-8 shows ? for other characters."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        output, encoding = Output(sys.stdout.fileno(), "w", closefd=False), sys.stdout.encoding
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(output), encoding, errors="replace", line_buffering=output.isatty()
        )


def as_json(value: object) -> str:
    """`value` as one line of JSON. Control characters are escaped, and all non-ASCII ones if stdout is not UTF-8."""
    import msgspec

    plain = codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=plain).translate(_ESCAPED)


def with_output(run: Callable[[], int]) -> int:
    """The exit code of `run`, or that of an error of stdout."""
    try:
        code = run()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_output()
        return 0
    except OSError as error:
        _discard_output()
        error.filename = "stdout"
        note(f"error: {in_words(error)}")
        return 1
    except SystemExit as ending:
        if isinstance(ending.__context__, BrokenPipeError):  # rich exits with 1 if the reader has closed the pipe
            return 0
        raise


def _flushed() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _discard_output() -> None:
    """Send the rest of stdout to /dev/null; else the interpreter would report an error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(text: str, code: int) -> typer.Exit:
    if os.environ.get("DLLAMA_ZMQ_DEBUG"):
        logging.getLogger(__name__).exception("failed")
    note(f"error: {text}")
    if not _flushed():
        _discard_output()
    return typer.Exit(code)
