"""What somebody sees who waits: on a terminal something moves all the time, in a pipe lines say what goes on."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import Cli, kill, until
from terminal import COLUMNS, Terminal, at_terminal
from tiny import tiny_spec, tiny_tensors, tiny_tokenizer_data

from dllama_zmq.formats import write_m, write_t
from dllama_zmq.spec import FloatType

PROMPT = "a b c d " * 47
"""378 tokens, which are 3 steps."""
WAIT_S = 60.0
SILENT_S = 2.0


@contextmanager
def command(cli: Cli, *words: str) -> Iterator[Terminal]:
    with at_terminal([sys.executable, "-m", "dllama_zmq", *words], cli.folder, cli.environment()) as terminal:
        yield terminal


@pytest.fixture(scope="module")
def larger_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which the reference kernels evaluate some 400 tokens a second."""
    spec = tiny_spec(
        dim=512, hidden_dim=1408, n_layers=4, n_heads=8, n_kv_heads=8, seq_len=512, weight_type=FloatType.Q40
    )
    path = tmp_path_factory.mktemp("larger") / "larger.m"
    write_m(path, spec, tiny_tensors(spec, seed=7))
    write_t(path.with_suffix(".t"), tiny_tokenizer_data(spec.vocab_size))
    return path


@pytest.fixture
def slow(cli: Cli, larger_model: Path) -> Iterator[Cli]:
    """A running cluster whose steps take seconds: its root is stopped nine tenths of the time, as on a slow board."""
    cli.up(1, kernels="numpy", model=str(larger_model))
    pid, ended = cli.pid("root"), threading.Event()

    def slow_down() -> None:
        while not ended.wait(0.04):
            kill(pid, signal.SIGSTOP)
            ended.wait(0.36)
            kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=slow_down)
    thread.start()
    yield cli
    ended.set()
    thread.join()
    cli.down()


def test_on_a_terminal_a_long_prompt_is_a_living_line_that_is_gone_when_the_text_comes(slow: Cli) -> None:
    with command(slow, "generate", PROMPT, "--temp", "0", "-n", "5") as terminal:
        assert terminal.to_the_end(WAIT_S) == 0, terminal.text()
    assert terminal.longest_silence_s() < SILENT_S, terminal.times
    amount = r"evaluating the .* \d+ of 378 tokens, [\d.]+ tokens/s, \d+ s left"
    assert re.search(amount, terminal.text()), terminal.text()
    screen = terminal.screen()
    assert re.fullmatch(r"5 tokens, [\d.]+ tokens/s; prompt 378 tokens, [\d.]+ tokens/s", screen[-2]), screen
    assert screen[-3].startswith(PROMPT)
    assert not any("evaluating" in line or "asking" in line for line in screen), screen


def test_without_a_terminal_a_long_prompts_progress_is_lines_without_escape_codes(slow: Cli) -> None:
    result = slow.run("generate", PROMPT, "--temp", "0", "-n", "5")
    assert (result.code, result.out.startswith(PROMPT)) == (0, True), result.said
    lines = [line for line in result.err.splitlines() if not line.startswith("asking the root")]
    assert 2 <= len(lines) <= 3 + result.seconds / 5, result.said
    line = r"evaluating the prompt: \d+ of 378 tokens, ([\d.]+ tokens/s, )?\d+ s( left)?"
    assert [bool(re.fullmatch(line, one)) for one in lines] == [True] * len(lines), lines
    # Neither escape codes nor, for nobody watches, the speed of the answer.


def test_text_that_goes_through_a_pipe_to_the_terminal_is_not_written_over(cli: Cli) -> None:
    cli.up(1)
    script = f"{sys.executable} -m dllama_zmq generate 'a b' --temp 0 -n 1000 | cat"
    with at_terminal(["sh", "-c", script], cli.folder, cli.environment()) as terminal:
        assert terminal.to_the_end(WAIT_S) == 0, terminal.text()
    assert [line for line in terminal.screen() if line.startswith("a b")], terminal.seen
    assert not any("generating" in line for line in terminal.screen())
    cli.down()


def test_where_the_text_goes_to_a_file_the_terminal_sees_tokens(slow: Cli) -> None:
    script = f"{sys.executable} -m dllama_zmq generate 'a b' --temp 0 -n 40 > text"
    with at_terminal(["sh", "-c", script], slow.folder, slow.environment()) as terminal:
        assert terminal.to_the_end(WAIT_S) == 0, terminal.text()
    assert re.search(r"generating .*\d+ of 40 tokens, [\d.]+ tokens/s, \d+ s left", terminal.text()), terminal.text()
    assert (slow.folder / "text").read_text().startswith("a b")


def test_where_text_and_progress_go_to_one_file_the_text_stays_whole(slow: Cli) -> None:
    script = f"{sys.executable} -m dllama_zmq generate 'a b' --temp 0 -n 40"
    both = f"{script} > one 2>&1 && {script} > text 2> notes"
    subprocess.run(["sh", "-c", both], cwd=slow.folder, env=slow.environment(), check=True, timeout=WAIT_S)
    assert "generating" in (slow.folder / "notes").read_text()
    assert (slow.folder / "text").read_text() in (slow.folder / "one").read_text()


def test_status_and_inspect_fit_80_columns(cli: Cli) -> None:
    cli.up(4)
    for words in (["status"], ["inspect", str(cli.model)]):
        with command(cli, *words) as terminal:
            assert terminal.to_the_end(WAIT_S) == 0, terminal.text()
        paths = ("model: ", str(cli.model))
        assert [line for line in terminal.screen() if len(line) > COLUMNS and not line.startswith(paths)] == []
    with command(cli, "down") as terminal:
        assert terminal.to_the_end(WAIT_S) == 0, terminal.text()
    assert "small is down" in terminal.screen()[-2]


def test_on_a_terminal_up_waits_beyond_the_limit_for_scripts_and_says_for_whom(cli: Cli) -> None:
    far = [{"name": "far", "host": "192.0.2.1"}]
    cli.write(2, host="0.0.0.0", security="none", workers=far, limits={"join_s": 1})
    with command(cli, "up") as terminal:
        text = terminal.until(lambda text: re.search(r"far has not joined yet +3 s", text), WAIT_S)
        assert "start on 192.0.2.1: dllama-zmq worker " in text
        terminal.process.terminate()
        terminal.to_the_end(WAIT_S)
    assert all(len(line) <= COLUMNS for line in terminal.screen() if "start on" not in line)
    until(lambda: not cli.processes(), 10, "the root to end with its caller")


def test_messages_at_a_terminal_break_between_words(cli: Cli) -> None:
    flags = ["--kernels", "numpy", "-n", "2", "--stats=tokens"]
    for words in (
        ["run", "demo", "Once upon", *flags],
        ["run", "nosuch/model.gguf", "hi"],
        ["up", "nosuch"],
        ["--promt"],
    ):
        with command(cli, *words) as terminal:
            terminal.to_the_end(WAIT_S)
        lines = [line.rstrip() for line in terminal.screen()]
        assert max(map(len, lines)) <= COLUMNS, lines
        assert "error: " in terminal.text() or "starting demo on 1 node for this call (" in lines[0], lines
        if "run" in words and "demo" in words:
            assert lines[0].endswith("keeps it running)")
            (head,) = (line for line in lines if line.startswith("ms in all (G)"))
            assert head.endswith(" (S) and"), lines
