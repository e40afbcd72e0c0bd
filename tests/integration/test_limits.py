"""Where a computer has too little of something: memory, open files, room on a disk. One sentence, and no node that is
gone without a word."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Cli, Result, clean_cli, finish
from integration.nodes import Context, a_root, a_worker, tcp
from tiny import tiny_spec, write_tiny_model

import dllama_zmq
from dllama_zmq.errors import ClusterError, PlanError
from dllama_zmq.formats import write_t
from dllama_zmq.formats.m_header import data_bytes, header_bytes
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.shapes import shape
from dllama_zmq.spec import FloatType, ModelSpec

sys.path.append(str(Path(__file__).parents[2] / "tools"))
from make_model import made_up_vocabulary

HUGE = shape("grok-1", FloatType.F32, {"vocab": 1024})  # 1.3 TB of weights
LONG = tiny_spec(n_layers=8, seq_len=1 << 22)
"""2.1 GB of keys and values on each of two nodes: asked for, and hardly any of it used."""


def write_sparse(path: Path, spec: ModelSpec) -> Path:
    """A model of zeros that takes no room on the disk, and its vocabulary."""
    head = header_bytes(spec)
    path.write_bytes(head)
    os.truncate(path, len(head) + data_bytes(spec))
    write_t(path.with_suffix(".t"), made_up_vocabulary(spec.vocab_size))
    return path


@pytest.fixture
def huge(tmp_path: Path) -> Iterator[Cli]:
    with clean_cli(tmp_path, write_sparse(tmp_path / "big.m", HUGE)) as cli:
        yield cli


@pytest.fixture
def small(tmp_path: Path, small_model: Path) -> Iterator[Cli]:
    with clean_cli(tmp_path, small_model) as cli:
        yield cli


def limited(cli: Cli, limit: str, *words: str, wait_s: float = 60.0) -> Result:
    """A command under `ulimit`."""
    command = f"ulimit {limit} && exec {shlex.join([sys.executable, '-m', 'dllama_zmq', *words])}"
    start = time.monotonic()
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=cli.folder,
        env=cli.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    return finish(process, wait_s, start)


@pytest.mark.parametrize("command", [["up"], ["up", "--foreground"], ["generate", "hi"]])
def test_a_model_too_large_for_this_computer_is_refused_before_it_is_read(huge: Cli, command: list[str]) -> None:
    huge.write(1)
    result = huge.run(*command)
    sentence = result.error()
    assert sentence.startswith("big.m needs 1.")
    assert " TB on each of 1 nodes; this computer has " in sentence
    assert "nodes need" in sentence
    assert "--force" in sentence
    assert huge.processes() == []


def test_all_nodes_of_this_computer_count(huge: Cli) -> None:
    huge.write(4)
    assert "for the 4 of them on this computer" in huge.run_here("up").error()


def test_load_refuses_too_large_a_model_too(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"big\.m needs .*B on each of 2 nodes, .*force=True"):
        dllama_zmq.load(write_sparse(tmp_path / "big.m", HUGE), nodes=2)


def test_force_starts_and_memory_that_is_really_lacking_is_one_sentence(tmp_path: Path) -> None:
    spec = tiny_spec(n_layers=32, seq_len=1 << 24)
    with clean_cli(tmp_path, write_sparse(tmp_path / "long.m", spec)) as cli:
        cli.write(1, max_seq_len=spec.seq_len, kv_cache="f32")
        assert "with max_seq_len: " in cli.run_here("up").error()
        sentence = limited(cli, "-v 8000000", "up", "--force").error()
        assert "not enough memory" in sentence
        assert "`ulimit -v`" in sentence


def pump_while(root: Root, thread: threading.Thread) -> str:
    """What the root says of its worker when the thread, which ends with it, has ended."""
    deadline, sentence = time.monotonic() + 40, ""
    while thread.is_alive() or "could not load" not in sentence:  # its last word may be on its way when it has ended
        assert time.monotonic() < deadline, sentence
        root.serve_bus(time.monotonic() + 0.1)
        sentence = root.missing_sentence()
    return sentence


def test_a_worker_that_lacks_memory_says_so_at_home_and_at_the_root(
    context: Context, tmp_path: Path, small: Cli
) -> None:
    places = tcp()
    settings = RootSettings(names=["worker1"], kernels="numpy", max_seq_len=LONG.seq_len, check_memory=False)
    with write_tiny_model(tmp_path / "long.m", LONG) as model:
        root = Root(context, model, settings, places)
        ended: list[Result] = []
        words = ["worker", "--root", places.replies[0], "--threads", "1"]
        thread = threading.Thread(target=lambda: ended.append(limited(small, "-v 2000000", *words)))
        thread.start()
        sentence = pump_while(root, thread)
        root.close("the test is over")
    assert sentence.startswith(
        "worker1 could not load: not enough memory: a process may have 2000000 kB here (`ulimit -v`)"
    )
    assert "not enough memory" in ended[0].error()


def test_a_library_that_has_no_room_in_the_address_space_is_an_error_of_memory() -> None:
    lines = [
        "import resource",
        "from dllama_zmq.host import refused_by_system",
        "pages = int(open('/proc/self/statm').read().split()[0])",
        "most = pages * resource.getpagesize() + (30 << 20)",  # libllvmlite alone takes more
        "resource.setrlimit(resource.RLIMIT_AS, (most, most))",
        "try:",
        "    import llvmlite.binding",
        "except OSError as error:",
        "    print(refused_by_system(error) or error)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    assert re.match(r"not enough memory: a process may have \d+ kB here \(`ulimit -v`\)", done.stdout), done


def test_a_worker_whose_kernels_cannot_run_says_so_at_the_root(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, ends = tcp(), []

    def work() -> None:
        try:
            a_worker(context, places).run()
        except ClusterError as error:
            ends.append(str(error))

    with (
        write_tiny_model(tmp_path / "m.m", tiny_spec()) as model,
        a_root(context, model, places, kernels="simd") as root,
    ):
        monkeypatch.setattr("dllama_zmq.kernels.simd_obstacle", lambda: "llvmlite is not installed")
        thread = threading.Thread(target=work)
        thread.start()
        sentence = pump_while(root, thread)
    assert sentence.startswith("worker1 could not load: kernels simd cannot run here: llvmlite is not installed")
    assert "use kernels: numpy" in ends[0]


@pytest.mark.few(3)
@pytest.mark.parametrize("n_files", [8, 11, 14, 16, 17, 20])
def test_too_few_open_files_are_one_sentence(small: Cli, n_files: int) -> None:
    """libzmq ends the process, by abort(), at some of these numbers."""
    small.write(2)
    sentence = limited(small, f"-n {n_files}", "up").error()
    assert "`ulimit -n" in sentence
    assert str(n_files) in sentence


def test_a_limit_of_open_files_that_may_be_raised_is(small: Cli) -> None:
    small.write(2)
    result = limited(small, "-Sn 12", "generate", "hi", "-n", "2")
    assert result.code == 0, result.said


def test_a_worker_that_dies_again_and_again_is_not_without_a_reason(small: Cli) -> None:
    small.write(2, workers=[{"name": "worker1", "threads": 60}])
    sentence = limited(small, "-n 40", "up").error()
    assert "worker1" in sentence
    assert "`ulimit -n`" in sentence


def test_a_disk_without_room_is_named(small: Cli) -> None:
    small.write(1)
    run = small.home / "run" / "small"
    run.mkdir(parents=True)
    for name in ("cluster.draft", "started.draft"):
        (run / name).symlink_to("/dev/full")
    sentence = small.run("up").error()
    assert str(run) in sentence
    assert "o space left" in sentence


def test_more_nodes_than_cores_are_said_once(small: Cli) -> None:
    small.write(8)
    result = limited(small, "-n 1024", "up", wait_s=60)
    assert result.code == 0, result.said
    n_cores = len(os.sched_getaffinity(0))
    assert result.err.count("slower than one node") == (1 if n_cores < 8 else 0), result.said
    small.down()


def test_a_context_beyond_the_models_is_said_and_a_long_prompt_names_the_models_own(small: Cli) -> None:
    result = small.up(1, max_seq_len=8192)
    assert "max_seq_len is 8192, and the context of small.m is 2048: 2048 positions are used" in result.err
    sentence = small.run("generate", "~" * 3000).error()
    assert "this model's own context is 2048" in sentence
    assert "raise" not in sentence
    small.down()
    small.up(1, max_seq_len=64)
    assert "raise max_seq_len (at most 2048)" in small.run("generate", "~" * 300).error()
    small.down()
