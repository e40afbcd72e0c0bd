"""README's commands do what README says: every block of them is run here."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Cli, await_words
from folders import arrays_of, write_hf
from gguf_writer import gguf_of
from hub_server import Repo, running_hub
from integration.api import chatty
from msgspec.structs import replace
from surroundings import free_ports
from terminal import COLUMNS, at_terminal
from tiny import tiny_tokenizer_data

from dllama_zmq.cluster import load_cluster, parse_cluster
from dllama_zmq.formats import open_m, write_t
from dllama_zmq.trust import Invitation

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(sh|python|yaml)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
OPENAI, LOAD, CHAT, FORM = (block for kind, block in BLOCKS if kind == "python")
INSTALLED = "~/dllama-zmq/.venv/bin/"
WORKER = f"{INSTALLED}dllama-zmq worker 192.168.1.10\n"
MAKE = "make demo\nmake test\n"


@pytest.fixture
def environment(cli: Cli) -> dict[str, str]:
    """A home of its own for clusters, where nothing may be left, and this interpreter's commands first in the path."""
    return cli.environment(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def run(script: str, environment: dict[str, str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a block as a person would paste it; the first command that fails ends it."""
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL
    )


SHELL = [block for kind, block in BLOCKS if kind == "sh"]
(PULL,) = (block for block in SHELL if block.startswith("dllama-zmq pull "))
(INIT,) = (block for block in SHELL if f"{INSTALLED}dllama-zmq init" in block)
(SERVE,) = (block for block in SHELL if block.startswith("dllama-zmq serve "))
(CURL,) = (block for block in SHELL if block.startswith("curl "))
SIMPLE = [block for block in SHELL if block not in (MAKE, WORKER, PULL, INIT, SERVE, CURL)]


def test_every_shell_block_is_known_to_these_tests() -> None:
    assert sorted(SHELL) == sorted([MAKE, *SIMPLE, PULL, WORKER, INIT, SERVE, CURL])


@pytest.mark.parametrize("block", SIMPLE, ids=lambda block: str(block).splitlines()[-1])
def test_block_runs_without_error(block: str, environment: dict[str, str]) -> None:
    # The environment of these tests is activated already, whatever it is called.
    done = run(block.replace("source .venv/bin/activate\n", ""), environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip()


def test_pull_block_runs_with_a_hub_that_has_the_model(
    environment: dict[str, str], small_model: Path, tmp_path: Path
) -> None:
    """The hub is one of this computer, and the model a small one under the name that README has."""
    (repo, quant), *_ = re.findall(r"pull (\S+):(\S+)", PULL)
    name = f"model.{quant}.gguf"
    (tmp_path / "cluster.yaml").write_bytes((ROOT / "cluster.yaml").read_bytes())
    with open_m(small_model) as file:
        write_hf(tmp_path / "folder", file.spec, arrays_of(file))
    with running_hub() as hub:
        data = gguf_of(small_model, small_model.with_suffix(".t"))
        hub.repos[repo] = Repo({name: data}, stored={name})
        cache = tmp_path / "hub"
        addresses = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_CACHE": str(cache)}
        done = run(PULL.replace("path/to/folder", "folder"), environment | addresses, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "can be split over 1, 2, 4, 8 nodes" in done.stdout
    assert "Once upon a time" in done.stdout
    with open_m(tmp_path / "model.m") as made, open_m(small_model) as source:
        assert made.spec == source.spec


def test_make_demo_ends_with_the_story_in_sight_and_leaves_nothing_running(environment: dict[str, str]) -> None:
    with at_terminal(["make", "demo"], ROOT, environment) as terminal:
        assert terminal.to_the_end(100) == 0, terminal.text()
    rows = [line[i : i + COLUMNS] for line in terminal.screen() for i in range(0, max(1, len(line)), COLUMNS)]
    seen = rows[-24:]
    assert any(row.startswith("Once upon a time") for row in seen), rows
    (verdict,) = (row for row in seen if row.startswith("measured "))
    # On a busy computer a worker may ask for a message again, which netstat then says.
    assert re.match(r"measured agrees with planned|.*; the plan does not count \d+ messages? sent again", verdict), (
        verdict
    )
    assert "is down" in seen[-2], rows
    assert not list(Path(environment["DLLAMA_ZMQ_HOME"]).rglob("*.sock"))


_APART = "not browser and not clients and not real"
MARKS = {"test": f"not release and {_APART}", "test-all": _APART}
"""What each target leaves out."""


@pytest.mark.parametrize("target", MARKS)
def test_make_test_is_what_runs_these_tests(target: str) -> None:
    command = ["make", "--no-print-directory", "--dry-run", target]  # it may be a make that runs these tests
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert planned.returncode == 0
    assert " -m pytest " in planned.stdout
    assert f"-m '{MARKS[target]}'" in planned.stdout
    assert ("--cases=each" in planned.stdout) == (target == "test")
    all_cases = subprocess.run([*command, "CASES=all"], cwd=ROOT, capture_output=True, text=True, timeout=20).stdout
    assert "--cases=each" not in all_cases
    assert (ROOT / ".ci" / "run").read_text().endswith("exec make test CASES=all\n")


def test_the_api_server_answers_curl_and_openais_client(
    cli: Cli, small_model: Path, environment: dict[str, str]
) -> None:
    """With a small model in place of the demo, which has no chat template, and a free port in place of 9990.

    Its answers are random: they must not end with their first token.
    """
    (port,) = map(str, free_ports(1))
    words = SERVE.replace("9990", port).replace("demo", str(chatty(small_model, cli.folder))).split()[1:]
    with cli.started(*words) as server:
        await_words(server, "up name=")
        endless = CURL.replace('"max_tokens": 40', '"max_tokens": 40, "ignore_eos": true')
        assert endless.count("ignore_eos") == 2
        curl = run(endless.replace("9990", port).replace("curl ", "curl -sSf "), environment)
        assert curl.returncode == 0, curl.stderr
        text, chat, health = map(json.loads, curl.stdout.replace("}{", "}\n{").splitlines())
        assert text["choices"][0]["text"]
        assert chat["choices"][0]["message"]["content"]
        assert health["status"] == "ok"
        endless = OPENAI.replace("max_tokens=200", 'max_tokens=200, extra_body={"ignore_eos": True}')
        assert "ignore_eos" in endless
        command = [sys.executable, "-c", endless.replace("9990", port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > 1
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0


def test_python_block_that_loads_a_model_runs(environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    assert "2048)" in done.stdout


def test_python_block_that_chats_runs_with_a_model_that_has_a_template(cli: Cli, small_model: Path) -> None:
    write_t(cli.folder / "chat.t", replace(tiny_tokenizer_data(), chat_template="{{ messages[0].content }}"))
    cli.up(tokenizer=str(cli.folder / "chat.t"))
    command = [sys.executable, "-c", "import dllama_zmq\n" + CHAT]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env=cli.environment(), cwd=cli.folder, check=False
    )
    cli.down()
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 1


def test_python_block_that_gives_an_answer_a_form_prints_json_of_its_schema(environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", "import dllama_zmq\n" + FORM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    answer, likeness = done.stdout.rstrip().rsplit("\n", 1)
    assert 0 <= json.loads(answer)["age"] <= 150
    assert -1 <= float(likeness) <= 1


def test_init_writes_the_yaml_block(environment: dict[str, str], tmp_path: Path) -> None:
    (yaml,) = (block for kind, block in BLOCKS if kind == "yaml")
    command = INIT.splitlines()[0].removeprefix(INSTALLED)
    done = run(f"{command} --host 192.168.1.10", environment, tmp_path)  # no way leads to the others from here
    assert done.returncode == 0, done.stderr
    assert load_cluster(tmp_path / "home.yaml").cluster == parse_cluster(yaml, tmp_path / "home.yaml")


def test_the_lines_that_up_prints_fill_the_places_of_the_yaml_block(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (yaml,) = (block for kind, block in BLOCKS if kind == "yaml")
    # 192.168.1.10 is not this machine's, and its ports may be taken; everything else stays as it is printed.
    replies, steps, clients = free_ports(3)
    ports = f"{{replies: {replies}, steps: {steps}, clients: {clients}}}"
    (tmp_path / "cluster.yaml").write_text(yaml.replace("192.168.1.10\n", f"0.0.0.0\n  ports: {ports}\n"))
    life = "dllama-zmq up && dllama-zmq generate 'One day' -n 5 --temp 0; dllama-zmq down"
    root = subprocess.Popen(
        ["bash", "-c", life], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    printed = await_words(root, "start on 192.168.1.13: ")
    printed += await_words(root, "\n") if not printed.endswith("\n") else ""
    commands = re.findall(r"start on 192\.168\.1\.1[123]: (dllama-zmq worker --join \S+)", printed)
    workers = [subprocess.Popen(command.split(), env=environment, stderr=subprocess.PIPE) for command in commands]
    try:
        out, err = root.communicate(timeout=100)
        assert (len(commands), root.returncode) == (3, 0), err.decode()
        assert all(f"{name} has its weights" in err.decode() for name in ("worker1", "worker2", "worker3"))
        assert out.decode().startswith("One day")
        # The command of README starts a worker that has joined before; its root is down, and it waits.
        again = subprocess.Popen(_later(commands[0]), env=environment, stderr=subprocess.PIPE)
        workers.append(again)
        assert "asking the root" in await_words(again, "asking the root")
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGINT)
        ends = [worker.communicate(timeout=10)[1] for worker in workers]
    assert not any(b"Traceback" in words for words in ends)


def _later(command: str) -> list[str]:
    """README's command for a worker that has joined before, for the address that was in its token."""
    (address,) = Invitation.read(command.split()[-1]).replies[:1]
    return WORKER.removeprefix(INSTALLED).replace("192.168.1.10", address).split()
