"""How a command ends: an exit code and one sentence on stderr, never a traceback unless DLLAMA_ZMQ_DEBUG asks for it.

0 done, 1 failed, 2 wrong use, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

import typer

from dllama_zmq.errors import DllamaError, UsageError

P = ParamSpec("P")


def with_exit_codes(command: Callable[P, None]) -> Callable[P, None]:
    """Make every way out of `command` one of the exit codes above."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except UsageError as error:
            raise _failed(str(error), 2) from None
        except DllamaError as error:
            raise _failed(str(error), 1) from None
        except BrokenPipeError:
            # Whoever read our output has had enough; keep the interpreter from complaining about it at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            raise _failed(f"{error.filename or 'the system'}: {error.strerror or error}", 1) from None
        except typer.Exit:
            raise
        except Exception as error:
            if isinstance(error.__cause__, KeyboardInterrupt):  # it came while a module was loaded
                raise typer.Exit(130) from None
            hint = "set DLLAMA_ZMQ_DEBUG=1 to see where, and please report it"
            raise _failed(f"a defect of dllama-zmq: {type(error).__name__}: {error}; {hint}", 1) from None

    return guarded


def _failed(text: str, code: int) -> typer.Exit:
    if os.environ.get("DLLAMA_ZMQ_DEBUG"):
        logging.getLogger(__name__).exception("failed")
    typer.echo(f"error: {text}", err=True)
    return typer.Exit(code)
