"""Templates that loop, grow or reach for attributes: an error that says what and where, in bounded time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from dllama_zmq.errors import FormatError
from dllama_zmq.tokenizer import ChatTemplate, chat
from dllama_zmq.tokenizer.chat import RENDER_S, renderers
from dllama_zmq.tokenizer.child import BUSY_S as OTHERS_S
from dllama_zmq.tokenizer.child import Children

MESSAGES = [{"role": "user", "content": "hi"}]
SHORT_S = 0.2  # of CPU, instead of RENDER_S: what is endless takes as long as it may
BUSY_S = 20.0  # for what takes some tenths of a second, on a busy machine
NAMESPACE = "{% set ns = namespace(x='aa', y=['a'], z=['a']) %}"


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    """Where the templates of all tests here are rendered, as those of a tokenizer are: none may harm the next."""
    children = renderers()
    assert ChatTemplate({"default": "fine"}, {}, "good.t", children).render(MESSAGES) == "fine"
    yield children
    assert ChatTemplate({"default": "fine"}, {}, "good.t", children).render(MESSAGES) == "fine"


def refusal(text: str, children: Children, limit_s: float = RENDER_S) -> str:
    before = time.monotonic()
    with pytest.raises(FormatError) as caught:
        ChatTemplate({"default": text}, {}, "evil.t", children).render(MESSAGES)
    assert time.monotonic() - before < limit_s + OTHERS_S + 1
    assert "evil.t: chat template" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n{{ ''.__class__ }}", "line 2: it uses the attribute '__class__' of a str"),
        ("{{ ''['__class__'] }}", "'__class__' of a str"),
        ("{{ messages|attr('__init__') }}", "'__init__' of a list"),
        ("{{ [''] | map(attribute='__class__') | list }}", "'__class__' of a str"),
        ("{{ '{0.__class__}'.format(1) }}", "'__class__' of a int"),
        ("{{ cycler(1).__init__.__globals__ }}", "'__init__' of a Cycler"),
        ("{{ namespace.__init__ }}", "'__init__' of a type"),
        ("{{ raise_exception.__globals__ }}", "'__globals__' of a function"),
        ("{{ self.__class__ }}", "'__class__' of a TemplateReference"),
        ("{% macro m() %}{% endmacro %}{{ m.__call__ }}", "'__call__' of a Macro"),
        ("{{ messages.append(1) }}", "'append' of a list"),
        ("{{ messages[0].clear() }}", "'clear' of a dict"),
        ("\n\n{% include '/etc/passwd' %}", "line 3: it loads another template, /etc/passwd"),
        ("{% extends 'x' %}", "it loads another template"),
        ("{% import 'x' as y %}", "it loads another template"),
    ],
)
def test_an_attribute_that_a_template_must_not_reach_is_named(text, words, children):
    assert words in refusal(text, children)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ 'a' * 10**10 }}", "it makes a str of 10000000000 items"),
        ("{{ 10**10 * [1] }}", "it makes a list of 10000000000 items"),
        ("{{ 9**(9**9) }}", "it computes too large a power"),
        ("{{ '%0999999999d' % 1 }}", "memory"),
        ("{{ '%*d' % (10**10, 1) }}", "line 1"),
        ("{{ '{:>99999999999}'.format(1) }}", "memory"),
        ("{{ 'a'.ljust(10**11) }}", "memory"),
        ("{{ 'a'.zfill(10**11) }}", "memory"),
        ("{{ 'a' | center(10**11) }}", "memory"),
        ("{{ 'a' | indent(10**11, true) }}", "memory"),
        (NAMESPACE + "{% for i in range(40) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}", "memory"),
        (NAMESPACE + "{% for i in range(90) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "memory"),
        (NAMESPACE + "{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}", "memory"),
        ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "its text is longer than"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it recurses too deeply"),
        ("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "it recurses too deeply"),
        ("{{ " + "(" * 3000 + ")" * 3000 + " }}", "it recurses too deeply"),
        ("{% if 1 %}" * 3000, "evil.t: chat template"),
    ],
)
def test_growth_is_refused_before_its_time_is_over(text, words, children, monkeypatch):
    monkeypatch.setattr(chat, "RENDER_S", BUSY_S)
    assert words in refusal(text, children, BUSY_S)


@pytest.mark.parametrize(
    "text",
    [
        "\n{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "\n{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "\n{{ lipsum(n=10**8) }}",
        "\n{{ ('a' * 16000000) | wordwrap(1) }}",
        NAMESPACE + "{% for i in range(60) %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}\n{{ ns.y }}",
    ],
)
def test_a_template_that_takes_too_long_is_ended_and_its_line_named(text, children, monkeypatch):
    monkeypatch.setattr(chat, "RENDER_S", SHORT_S)
    monkeypatch.setattr(chat, "BUSY_S", 6 * BUSY_S)  # CPU time takes more of the wall's where others compute too
    assert "line 2: it takes longer than 0.2 s" in refusal(text, children, SHORT_S + 6 * BUSY_S)


# Two lists that are equal, each 2 ** 60 long and 60 small: comparing them is one operation, which no signal interrupts.
ENDLESS = NAMESPACE + (
    "{% for i in range(60) %}{% set ns.y = [ns.y, ns.y] %}{% set ns.z = [ns.z, ns.z] %}{% endfor %}{{ ns.y == ns.z }}"
)


def test_one_endless_operation_is_ended_from_without_and_the_next_conversation_is_rendered(monkeypatch):
    monkeypatch.setattr(chat, "RENDER_S", SHORT_S)
    text = "{% if messages[0].evil %}" + ENDLESS + "{% else %}fine{% endif %}"
    template = ChatTemplate({"default": text}, {}, "evil.t")
    assert template.render(MESSAGES) == "fine"
    with pytest.raises(FormatError, match=r"evil\.t: chat template: it takes longer than 0\.2 s"):
        template.render([{"evil": True}])
    assert template.render(MESSAGES) == "fine"


def test_no_process_is_left_behind_when_a_template_is_dropped_or_its_program_is_killed():
    def renderers() -> set[int]:
        return {child.pid for child in psutil.Process().children(recursive=True)}

    before = renderers()
    chat = ChatTemplate({"default": "x"}, {}, "a.t")
    chat.render(MESSAGES)
    (pid,) = renderers() - before
    del chat
    assert not psutil.pid_exists(pid)
    program = (
        "import os, signal\nfrom dllama_zmq.tokenizer import ChatTemplate\n"
        "chat = ChatTemplate({'default': '{{ 1 }}'}, {}, 'a.t')\nchat.render([{}])\n"
        "print(chat._children._idle[0]._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False)
    orphan = int(killed.stdout)
    deadline = time.monotonic() + 30
    while psutil.pid_exists(orphan) and psutil.Process(orphan).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        os.sched_yield()


def test_a_template_file_too_large_to_be_one_is_refused(tmp_path):
    from dllama_zmq.tokenizer.config import MAX_TEMPLATE_CHARS, read_config

    for template in ("x" * (MAX_TEMPLATE_CHARS + 1), [{"name": "a", "template": "x" * (MAX_TEMPLATE_CHARS + 1)}]):
        with pytest.raises(FormatError, match=rf"chat_template.*: expected str of length <= {MAX_TEMPLATE_CHARS}"):
            read_config({"chat_template": template}, "a.json")
