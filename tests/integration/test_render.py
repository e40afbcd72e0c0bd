"""What `render` writes, read by those it is for: systemd's tools, the schemas of compose and Kubernetes, sh, and us."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from command_line import Cli, until
from surroundings import free_ports

from dllama_zmq.api_config import ApiConfig, ApiLimits
from dllama_zmq.cli.app import app
from dllama_zmq.cluster import Cluster, Limits, load_cluster, parse_cluster
from dllama_zmq.formats import open_model
from dllama_zmq.host import usable_cores
from dllama_zmq.node_config import ClientConfig, RootConfig, WorkerConfig
from dllama_zmq.render.deployed import cluster_yaml
from dllama_zmq.render.systemd import PROGRAM
from dllama_zmq.sharding import KVBudget, Plan, context_length
from dllama_zmq.trust import KeyPair

COMPOSE = json.loads((Path(__file__).parents[1] / "golden" / "compose_spec.json").read_text())
COMMANDS: Any = typer.main.get_command(app).commands
FORMS = ["systemd", "compose", "kubernetes"]
MIB = 1 << 20
COMPILING = 512 * MIB
API_KEY = "sk-rendered-0001"
HOME = {
    "name": "Home_1",
    "root": {"host": "192.168.1.10"},
    "workers": [
        {"name": "pi2", "host": "192.168.1.11"},
        {"name": "pi3", "host": "192.168.1.12", "threads": 3},
        {"name": "here"},
    ],
    "limits": {"join_s": 90},
    "api": {"keys": [API_KEY], "limits": {"n": 4}},
}


def render(cli: Cli, form: str, *words: str, model: str = "demo", **keys: Any) -> Path:
    """Write a cluster's file and the files of `form`; the folder of those."""
    (cli.folder / "home.yaml").write_text(yaml.safe_dump({"model": model, **HOME, **keys}))
    done = cli.told("render", form, "home.yaml", *words)
    assert done.code == 0, done.said
    return cli.folder / form


def of(folder: Path, name: str, kind: str = "") -> list[Any]:
    """The documents of a YAML file, those of a kind."""
    return [one for one in yaml.safe_load_all((folder / name).read_text()) if not kind or one["kind"] == kind]


def containers(folder: Path) -> dict[str, Any]:
    """The containers of Kubernetes' pods by name, those that run first too."""
    specs = [one["spec"]["template"]["spec"] for one in of(folder, "manifests.yaml", "StatefulSet")]
    return {f"{spec['containers'][0]['name']}/{one['name']}": one for spec in specs for one in all_of(spec)}


def all_of(spec: dict[str, Any]) -> list[Any]:
    return [*spec["initContainers"], *spec["containers"]]


def cluster_file(folder: Path) -> Path:
    (path,) = folder.rglob("cluster.yaml")
    return path


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


def commands(folder: Path, form: str) -> list[list[str]]:
    """The words after `dllama-zmq` of all that is rendered."""
    if form == "compose":
        services = of(folder, "compose.yaml")[0]["services"].values()
        return [[word.replace("$$", "$") for word in one["command"]] for one in services]
    if form == "kubernetes":
        given = [one["args"] for one in containers(folder).values() if "args" in one]
        return [[word.replace("$$", "$") for word in words] for words in given]
    lines = [line for path in folder.glob("*.service") for line in path.read_text().splitlines()]
    starts = [shlex.split(line.partition("=")[2]) for line in lines if line.startswith("ExecStart=")]
    assert all(words[0] == PROGRAM for words in starts)
    return [[word for word in words[1:] if word != "$FLAGS"] for words in starts]


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
def test_workers_of_an_open_bus_are_told_that_it_is_open(cli: Cli, form: str) -> None:
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
    said = cli.told("render", "systemd", "home.yaml").error(2)
    assert said.startswith("model: /home/pi/story.gguf is in a home folder")
    assert "/srv/dllama-zmq/story.gguf" in said


def test_compose_takes_the_file_and_no_container_may_more_than_it_must(cli: Cli) -> None:
    (document,) = of(render(cli, "compose"), "compose.yaml")
    jsonschema.Draft201909Validator(COMPOSE).validate(document)
    assert list(document["services"]) == ["root", "pi2", "pi3", "here"]
    for service in document["services"].values():
        assert service["user"].partition(":")[0] not in ("0", "root", "")
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert [port.partition(":")[0] for port in document["services"]["root"]["ports"]] == ["127.0.0.1"]


@pytest.mark.parametrize("version", ["1.28", "1.37"])
def test_kubernetes_takes_each_manifest(cli: Cli, version: str) -> None:
    for document in of(render(cli, "kubernetes"), "manifests.yaml"):
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_makes_the_secret_of_each_nodes_key_and_the_cluster_file(cli: Cli) -> None:
    folder = render(cli, "kubernetes")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    for document in made:
        kubernetes_validate.validate(document, "1.37", strict=True)
    (secret,) = (one for one in made if one["kind"] == "Secret")
    (config,) = (one for one in made if one["kind"] == "ConfigMap")
    assert sorted(secret["data"]) == ["api.keys", "root-0", "worker-0", "worker-1", "worker-2"]
    assert parse_cluster(config["data"]["cluster.yaml"]) == load_cluster(folder / "cluster.yaml").cluster
    assert {one["metadata"].get("namespace") for one in made if one["kind"] != "Namespace"} == {"home-1"}


def test_pods_are_as_the_restricted_profile_of_kubernetes_wants_them(cli: Cli) -> None:
    folder = render(cli, "kubernetes")
    for one in of(folder, "manifests.yaml", "StatefulSet"):
        context = one["spec"]["template"]["spec"]["securityContext"]
        assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    for container in containers(folder).values():
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert containers(folder)["root/root"]["readinessProbe"]["httpGet"] == {"path": "/health", "port": "api"}


@pytest.mark.parametrize("form", ["compose", "kubernetes"])
def test_each_worker_has_a_key_of_its_own_that_stays_and_the_file_binds_its_name_to_it(cli: Cli, form: str) -> None:
    folder = render(cli, form)
    secret = {path: path.read_text() for path in folder.rglob("*") if path.name in ("key", "api.keys")}
    assert len(secret) == 5
    for path in secret:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    workers = load_cluster(cluster_file(folder)).cluster.workers
    own = {name: KeyPair.of_secret((folder / "keys" / name / "key").read_text().strip()) for name in names(workers)}
    assert {worker.name: worker.key for worker in workers} == {name: pair.public for name, pair in own.items()}
    assert len({pair.public for pair in own.values()}) == 3
    public = [path for path in folder.rglob("*") if path.is_file() and path not in secret]
    assert not [path for path in public for text in secret.values() if text.strip().encode() in path.read_bytes()]
    assert API_KEY in secret[next(path for path in secret if path.name == "api.keys")]
    render(cli, form, "--force")
    assert {path: path.read_text() for path in secret} == secret


def root_of(folder: Path) -> str:
    """The root's public key."""
    (path,) = (folder / "keys").glob("root*/key")
    return KeyPair.of_secret(path.read_text().strip()).public


def names(workers: list[WorkerConfig]) -> list[str]:
    return [worker.name for worker in workers]


def test_what_compose_runs_comes_up_and_its_health_check_says_when(cli: Cli) -> None:
    """As processes in place of containers: the rendered commands, with this computer's ports and folders."""
    folder, (api, replies, steps, clients) = render(cli, "compose", workers=1), free_ports(4)
    ports = f"{{replies: {replies}, steps: {steps}, clients: {clients}}}"
    text = cluster_file(folder).read_text().replace("port: 9990", f"port: {api}")
    text = text.replace("host: 0.0.0.0\n  threads", f"host: 0.0.0.0\n  ports: {ports}\n  threads")
    (cli.folder / "cluster.yaml").write_text(text.replace("/run/secrets/api.keys", str(folder / "keys/api.keys")))
    services = of(folder, "compose.yaml")[0]["services"]
    root = [word.replace("/etc/dllama-zmq", str(cli.folder)) for word in services["root"]["command"]]
    worker = [word.replace("$$", "$") for word in services["worker1"]["command"]]
    assert worker[:2] == ["worker", "root"]
    python, *check = services["root"]["healthcheck"]["test"][1:]
    assert python == "python"

    def is_healthy() -> bool:
        command = [sys.executable, *(word.replace("9990", str(api)) for word in check)]
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0

    homes = {}
    for name in services:
        homes[name] = {"DLLAMA_ZMQ_HOME": str(cli.home / name)}
        shutil.copytree(folder / "keys" / name, cli.home / name / "keys")
        if os.geteuid() == 0:  # there they are the image's user's
            os.chown(cli.home / name / "keys" / "key", 0, 0)
            os.chown(cli.home / name / "keys", 0, 0)
    with (
        cli.started(*root, **homes["root"]) as up,
        cli.started("worker", f"127.0.0.1:{replies}", *worker[2:], **homes["worker1"]),
    ):
        until(is_healthy, 60, "every node to be ready")
        up.send_signal(signal.SIGTERM)
        assert up.wait(20) == 0


def test_what_is_there_is_not_replaced_unasked(cli: Cli) -> None:
    folder = render(cli, "systemd")
    assert "--force replaces" in cli.told("render", "systemd", "home.yaml").error(2)
    (folder / "cluster.yaml").write_text("changed")
    render(cli, "systemd", "--force")
    assert (folder / "cluster.yaml").read_text() != "changed"


def test_without_workers_there_is_only_a_root(cli: Cli) -> None:
    folder = render(cli, "kubernetes", workers=0)
    assert list(containers(folder)) == ["root/keys", "root/root"]
    assert list(of(render(cli, "compose", workers=0), "compose.yaml")[0]["services"]) == ["root"]


@pytest.mark.parametrize("form", ["compose", "kubernetes"])
def test_a_node_may_use_as_much_memory_as_its_full_kv_cache_needs(cli: Cli, form: str) -> None:
    folder = render(cli, form, model=str(cli.model), tokenizer=str(cli.model.with_suffix(".t")))
    limits = memory(folder, form)
    cluster = load_cluster(cli.folder / "home.yaml").cluster
    with open_model(cli.model) as model:
        plan, seq_len = Plan.make(model.spec, 4), context_length(model.spec)
    budget = KVBudget(plan, cluster.kv_cache, seq_len, cluster.max_sequences)
    for node, mib in enumerate((limits["root"], *[limits["worker"]] * 3)):
        assert budget.pages([node], mib * MIB - COMPILING) == budget.wanted
        assert budget.pages([node], mib * MIB - COMPILING - 8 * MIB) < budget.wanted or node  # and not much more


def memory(folder: Path, form: str) -> dict[str, int]:
    """MiB of the root and of a worker."""
    if form == "compose":
        services = of(folder, "compose.yaml")[0]["services"]
        return {kind: int(services[name]["mem_limit"].removesuffix("m")) for kind, name in ROLES.items()}
    nodes = {kind: containers(folder)[f"{kind}/{kind}"]["resources"] for kind in ROLES}
    assert all(one["requests"]["memory"] == one["limits"]["memory"] for one in nodes.values())
    return {kind: int(one["limits"]["memory"].removesuffix("Mi")) for kind, one in nodes.items()}


ROLES = {"root": "root", "worker": "pi2"}


def test_compose_mounts_each_file_of_the_model_where_the_cluster_file_says(cli: Cli) -> None:
    folder = render(cli, "compose", model=str(cli.model))
    root = of(folder, "compose.yaml")[0]["services"]["root"]
    mounted = {one["target"]: Path(one["source"]) for one in root["volumes"] if isinstance(one, dict)}
    made = load_cluster(folder / "cluster" / "cluster.yaml").cluster
    assert mounted[made.model].samefile(cli.model)
    assert mounted[made.model.replace(".m", ".t")].samefile(cli.model.with_suffix(".t"))
    for source in mounted.values():
        assert (folder / source).exists()


def test_the_root_of_kubernetes_waits_until_its_model_is_whole(cli: Cli, tmp_path: Path) -> None:
    folder, models = render(cli, "kubernetes", model=str(cli.model)), tmp_path / "models"
    models.mkdir()
    *shell, script = containers(folder)["root/models"]["command"]
    command = [*shell, script.replace("/models", str(models)).replace("sleep 5", "sleep 0.05")]
    shutil.copy(cli.model.with_suffix(".t"), models)
    (models / cli.model.name).write_bytes(cli.model.read_bytes()[:-1])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline().startswith(f"waiting for {cli.model.name}")
        assert waiting.poll() is None
        shutil.copy(cli.model, models)
        waiting.communicate(timeout=20)
    assert waiting.returncode == 0


def test_a_pod_gets_its_own_key_as_a_file_of_its_user(cli: Cli, tmp_path: Path) -> None:
    folder, home = render(cli, "kubernetes"), tmp_path / "home"
    key = containers(folder)["worker/keys"]
    (mount,) = (one for one in key["volumeMounts"] if "subPathExpr" in one)
    assert (mount["name"], mount["subPathExpr"]) == ("keys", "$(POD_NAME)")
    *shell, script = key["command"]
    given = folder / "keys" / "worker-1" / "key"
    script = script.replace("/var/lib/dllama-zmq", str(home)).replace(mount["mountPath"], str(given))
    subprocess.run([*shell, script], check=True, timeout=20)
    shown = cli.told("keygen", DLLAMA_ZMQ_HOME=str(home))
    assert shown.out.strip() == load_cluster(folder / "cluster.yaml").cluster.workers[1].key


def test_compose_shares_the_cores_of_its_computer(cli: Cli) -> None:
    folder = render(cli, "compose")
    share = max(1, usable_cores() // 4)
    assert load_cluster(folder / "cluster" / "cluster.yaml").cluster.root.threads == share
    assert all(words[4:6] == ["--threads", str(share)] for words in commands(folder, "compose") if words[0] != "up")
