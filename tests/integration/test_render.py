"""What `render` writes, read by those it is for: systemd's tools and us; the same of all forms."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from command_line import Cli
from integration.rendering import FORMS, cluster_file, commands, render, root_of

from dllama_zmq.api_config import ApiConfig, ApiLimits
from dllama_zmq.cli.app import app
from dllama_zmq.cluster import Cluster, load_cluster, parse_cluster
from dllama_zmq.node_config import ClientConfig, Limits, RootConfig, WorkerConfig
from dllama_zmq.render.deployed import cluster_yaml
from dllama_zmq.render.systemd import PROGRAM
from dllama_zmq.trust import KeyPair

COMMANDS: Any = typer.main.get_command(app).commands


@pytest.mark.parametrize("form", FORMS)
def test_the_cluster_file_of_each_form_is_one_and_keeps_what_the_given_one_says(cli: Cli, form: str) -> None:
    given = load_cluster(render(cli, form).parent / "home.yaml").cluster
    made = load_cluster(cluster_file(cli.folder / form)).cluster
    kept = ("name", "model", "sync", "limits", "max_sequences")
    assert [getattr(made, name) for name in kept] == [getattr(given, name) for name in kept]
    assert made.api.limits == given.api.limits
    assert len(made.workers) == 3
    if form == "systemd":
        assert made == given


def test_a_cluster_file_says_all_that_differs_from_the_defaults() -> None:
    key = KeyPair.new().public
    cluster = Cluster(
        name="all", model="/srv/it's a model.gguf", tokenizer="/srv/x.t", weights="q40", sync="q80", kernels="simd",
        kv_cache="f32", max_seq_len=100, max_sequences=3, kv_memory="2GB", check_memory=False,
        root=RootConfig(host="192.168.1.10", threads=4),
        workers=[WorkerConfig(name="no", host="pi-2.local", key=key, threads=2)], limits=Limits(join_s=1.5),
        clients=[ClientConfig(name="laptop", key=key)], security="none",
        api=ApiConfig(host="::1", port=80, keys=["00000000", "yes-and-no"], origins=["*"], limits=ApiLimits(n=2)),
    )  # fmt: skip
    for one in (cluster, Cluster(name="little", model="demo", api=False)):
        assert parse_cluster(cluster_yaml(one, Path("x.yaml"))) == one


@pytest.mark.parametrize("form", FORMS)
def test_every_command_is_one_that_the_program_takes(cli: Cli, form: str) -> None:
    found = commands(render(cli, form), form)
    assert {name for name, *_ in found} == {"up", "worker"}
    for name, *words in found:
        COMMANDS[name].make_context(name, words)  # raises where it does not take them
    root_key = {word for words in found for word in words if word.startswith("--root-key=")}
    assert root_key == ({f"--root-key={root_of(cli.folder / form)}"} if form != "systemd" else set())
    up = next(words for words in found if words[0] == "up")
    assert up == ["up", "/etc/dllama-zmq/cluster.yaml", "--foreground"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_units_and_little_that_they_could_harm(cli: Cli) -> None:
    folder = render(cli, "systemd")
    for path in folder.glob("*.service"):  # it looks whether the program is there
        path.write_text(path.read_text().replace(PROGRAM, sys.executable))
    units = ["dllama-zmq-root.service", "dllama-zmq-worker@.service", "dllama-zmq-worker@pi3.service"]
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{folder}:", "SYSTEMD_LOG_LEVEL": "info"}
    for unit in units:
        words = ["systemd-analyze", "verify", "--man=no", str(folder / unit)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
        assert (done.returncode, done.stderr.strip()) == (0, ""), unit
    for unit in units[:2]:
        words = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(folder / unit)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
        level = re.search(r"Overall exposure level for .*: ([\d.]+)", done.stdout)
        assert level is not None, done.stderr
        assert float(level[1]) <= 1.5, done.stdout


def test_a_worker_with_threads_of_its_own_has_them_under_systemd(cli: Cli) -> None:
    folder = render(cli, "systemd")
    (dropped,) = folder.glob("*.d/*")
    assert dropped.parent.name == "dllama-zmq-worker@pi3.service.d"
    assert "--threads 3" in dropped.read_text()
    assert "dllama-zmq worker 192.168.1.10 " in (folder / "dllama-zmq-worker@.service").read_text()


@pytest.mark.parametrize("form", FORMS)
def test_workers_of_an_open_bus_are_started_with_security_none(cli: Cli, form: str) -> None:
    found = commands(render(cli, form, security="none"), form)
    assert all(words[-2:] == ["--security", "none"] for words in found if words[0] == "worker")
    assert load_cluster(cluster_file(cli.folder / form)).cluster.security == "none"


def test_a_worker_that_systemd_starts_is_not_started_over_ssh_too(cli: Cli) -> None:
    folder = render(cli, "systemd", workers=[{"name": "pi2", "ssh": "pi@192.168.1.11"}])
    (worker,) = load_cluster(folder / "cluster.yaml").cluster.workers
    assert (worker.host, worker.ssh) == ("192.168.1.11", None)
    assert (folder / "dllama-zmq-worker@.service").exists()


def test_a_cluster_of_one_computer_has_one_unit(cli: Cli) -> None:
    folder = render(cli, "systemd", root={}, workers=3)
    assert [path.name for path in folder.glob("*.service")] == ["dllama-zmq-root.service"]


def test_a_model_that_a_service_cannot_read_is_refused_with_where_to_put_it(cli: Cli) -> None:
    (cli.folder / "home.yaml").write_text(yaml.safe_dump({"model": "/home/pi/story.gguf"}))
    said = cli.run_here("render", "systemd", "home.yaml").error(2)
    assert said.startswith("model: /home/pi/story.gguf is in a home folder")
    assert "/srv/dllama-zmq/story.gguf" in said


def test_an_existing_file_is_not_replaced_unasked(cli: Cli) -> None:
    folder = render(cli, "systemd")
    assert "--force replaces" in cli.run_here("render", "systemd", "home.yaml").error(2)
    (folder / "cluster.yaml").write_text("changed")
    render(cli, "systemd", "--force")
    assert (folder / "cluster.yaml").read_text() != "changed"
