"""Renders one chat template after another for the process that started this one. A script: it imports nothing of ours.

A template is a program that came with a file. Whatever it does, it does it here: in Jinja's immutable sandbox, with
little memory, no files it could load, and a parent that ends this process when its time is over. Each line in is
{"template", "variables", "seconds", "chars"}, each line out {"text"} or {"kind", "what", "line"}.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import datetime
from types import FrameType
from typing import Any, NoReturn

import jinja2
from jinja2 import ext, nodes, sandbox
from jinja2.exceptions import SecurityError, TemplateNotFound, TemplateSyntaxError
from jinja2.parser import Parser

MEMORY_BYTES = 512 << 20
FILE = "<template>"  # what Jinja calls a template that has no name


class Refused(jinja2.TemplateError):
    """The template itself says that it cannot render this conversation."""


class OutOfTime(BaseException):
    """No Exception, which Jinja catches in places. `line` is the template's."""

    line = 0


class Sandbox(sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which here speaks up at once where it would hand out an undefined value."""

    intercepted_binops = frozenset({"*", "**"})

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"it reaches for the attribute {attribute!r} of a {type(obj).__name__}")

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (abs(left) < 1 << 64 and abs(right) < 64):
            raise SecurityError(f"it asks for a power that is too large: of {type(left).__name__} to {str(right)[:40]}")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int) and len(value) * times > 1 << 24:
                    raise SecurityError(f"it asks for a {type(value).__name__} of {len(value) * times} parts")
        return super().call_binop(context, operator, left, right)


class GenerationTag(ext.Extension):
    """`{% generation %}...{% endgeneration %}`, which marks what a model wrote, for training."""

    tags = {"generation"}  # noqa: RUF012 - so Jinja wants it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inner"), [], [], body).set_lineno(line)

    def _inner(self, caller: Callable[[], str]) -> str:
        return caller()


def refuse(message: str) -> NoReturn:
    raise Refused(message)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter writes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> Sandbox:
    made = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationTag, ext.loopcontrols],
        loader=jinja2.DictLoader({}),
    )
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def render(source: str, variables: dict[str, Any], max_chars: int) -> str:
    parts: list[str] = []
    n_chars = 0
    template = environment().from_string(source)
    try:
        for part in template.generate(**variables):
            n_chars += len(part)
            if n_chars > max_chars:
                raise SecurityError(f"its text is longer than {max_chars} characters")
            parts.append(part)
    except OutOfTime as error:
        # Jinja gives its own line to exceptions alone; here is still that of the code it made.
        error.line = template.get_corresponding_lineno(line_of(error))
        raise
    return "".join(parts)


def line_of(error: BaseException) -> int:
    """The line of the template at which `error` happened; 0 where it cannot be told."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno or 0
    lines = [frame.lineno or 0 for frame in traceback.extract_tb(error.__traceback__) if frame.filename == FILE]
    return lines[-1] if lines else 0


def answer(request: dict[str, Any]) -> dict[str, Any]:
    used_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    # The kernel ends what a signal cannot stop, should the parent be gone.
    resource.setrlimit(resource.RLIMIT_CPU, (int(used_s + 2 * request["seconds"]) + 2, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])
    try:
        return {"text": render(request["template"], request["variables"], request["chars"])}
    except Refused as error:
        kind, what, line = "refused", str(error), line_of(error)
    except TemplateSyntaxError as error:
        kind, what, line = "template", f"it is no Jinja template: {error.message}", line_of(error)
    except TemplateNotFound as error:
        kind, what, line = "template", f"it asks for another template, {error}; there is none", line_of(error)
    except (SecurityError, OverflowError) as error:
        kind, what, line = "template", str(error), line_of(error)
    except OutOfTime as error:
        kind, what, line = "template", f"it takes longer than {request['seconds']} s", error.line
    except MemoryError as error:
        kind, what, line = "template", f"it needs more than {MEMORY_BYTES >> 20} MB of memory", line_of(error)
    except RecursionError as error:
        kind, what, line = "template", "it calls itself too deeply", line_of(error)
    except Exception as error:
        kind, what, line = "conversation", f"{type(error).__name__}: {error}", line_of(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return {"kind": kind, "what": what[:500], "line": line}


def out_of_time(signum: int, frame: FrameType | None) -> NoReturn:
    raise OutOfTime


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that reads our answers
    signal.signal(signal.SIGALRM, out_of_time)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(json.dumps(answer(json.loads(line))).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
