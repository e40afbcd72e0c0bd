"""What `render compose` and `render kubernetes` write, read by those it is for: their schemas, kubectl, sh, and us."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from command_line import Cli, until
from integration.rendering import API_KEY, cluster_file, commands, containers, of, render, root_of
from surroundings import free_ports

from dllama_zmq.cluster import load_cluster, parse_cluster
from dllama_zmq.formats import open_model
from dllama_zmq.host import usable_cores
from dllama_zmq.node_config import WorkerConfig
from dllama_zmq.sharding import KVBudget, Plan, context_length
from dllama_zmq.trust import KeyPair

COMPOSE = json.loads((Path(__file__).parents[1] / "golden" / "compose_spec.json").read_text())
MIB = 1 << 20
COMPILING = 512 * MIB


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


def test_names_that_yaml_reads_as_numbers_and_paths_with_quotes_stay_what_they_are(cli: Cli) -> None:
    """Of a cluster, of its workers, and of the model's file."""
    model = cli.folder / 'my "é": {model}.m'
    for suffix in (".m", ".t"):
        shutil.copy(cli.model.with_suffix(suffix), model.with_suffix(suffix))
    keys = {"name": "123", "workers": [{"name": "456"}], "api": False}
    for form in ("compose", "kubernetes"):
        render(cli, form, model=str(model), **keys)
    services = of(cli.folder / "compose", "compose.yaml")[0]["services"]
    assert list(services) == ["root", "456"]
    assert str(model) in [mount["source"] for mount in services["root"]["volumes"][1:]]
    (namespace,) = of(cli.folder / "kubernetes", "manifests.yaml", "Namespace")
    assert namespace["metadata"]["name"] == "123"
    assert of(cli.folder / "kubernetes", "kustomization.yaml")[0]["namespace"] == "123"
    (waits,) = (one for name, one in containers(cli.folder / "kubernetes").items() if name.endswith("/models"))
    assert model.name in waits["command"][-1]


def test_pods_are_as_the_restricted_profile_of_kubernetes_wants_them(cli: Cli) -> None:
    folder = render(cli, "kubernetes")
    for one in of(folder, "manifests.yaml", "StatefulSet"):
        context = one["spec"]["template"]["spec"]["securityContext"]
        assert one["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
        assert context["fsGroup"] == context["runAsUser"] != 0  # who may read the keys of the Secret
        assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    for container in containers(folder).values():
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
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


def names(workers: list[WorkerConfig]) -> list[str]:
    return [worker.name for worker in workers]


def test_the_commands_of_compose_bring_a_cluster_up_and_its_health_check_says_when(cli: Cli) -> None:
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


@pytest.mark.parametrize("form", ["compose", "kubernetes"])
def test_a_key_in_which_compose_or_kubernetes_would_see_a_variable_arrives_as_it_is(cli: Cli, form: str) -> None:
    pair = KeyPair.new()
    while "$" not in pair.public:
        pair = KeyPair.new()
    own = cli.folder / form / "keys" / ("root" if form == "compose" else "root-0") / "key"
    own.parent.mkdir(parents=True)
    own.touch(0o600)
    own.write_text(pair.secret)
    text = (render(cli, form) / ("compose.yaml" if form == "compose" else "manifests.yaml")).read_text()
    assert f"--root-key={pair.public.replace('$', '$$')}" in text
    assert root_of(cli.folder / form) == pair.public


def test_pods_find_each_other_before_they_are_ready_and_start_at_once(cli: Cli) -> None:
    """A root is ready when its workers have found it; each worker has a name in the network by its service."""
    folder = render(cli, "kubernetes")
    services = {one["metadata"]["name"]: one["spec"] for one in of(folder, "manifests.yaml", "Service")}
    for name in ("root", "worker"):
        assert (services[name]["clusterIP"], services[name]["publishNotReadyAddresses"]) == ("None", True)
    assert {one["name"]: one["port"] for one in services["root"]["ports"]} == {
        "replies": 5570, "steps": 5571, "clients": 5572,
    }  # fmt: skip
    assert services["api"]["selector"]["app.kubernetes.io/component"] == "root"
    for one in of(folder, "manifests.yaml", "StatefulSet"):
        assert one["spec"]["podManagementPolicy"] == "Parallel"
        assert one["spec"]["serviceName"] == one["metadata"]["name"]
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert services[one["metadata"]["name"]]["selector"].items() <= labels.items()
        assert one["spec"]["replicas"] == (1 if one["metadata"]["name"] == "root" else 3)
    hosts = [worker.host for worker in load_cluster(folder / "cluster.yaml").cluster.workers]
    assert hosts == ["worker-0.worker", "worker-1.worker", "worker-2.worker"]
    (kustomization,) = of(folder, "kustomization.yaml")
    assert kustomization["generatorOptions"]["disableNameSuffixHash"]


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
    shown = cli.run_here("keygen", DLLAMA_ZMQ_HOME=str(home))
    assert shown.out.strip() == load_cluster(folder / "cluster.yaml").cluster.workers[1].key


def test_compose_shares_the_cores_of_its_computer(cli: Cli) -> None:
    folder = render(cli, "compose")
    share = max(1, usable_cores() // 4)
    assert load_cluster(folder / "cluster" / "cluster.yaml").cluster.root.threads == share
    assert all(words[4:6] == ["--threads", str(share)] for words in commands(folder, "compose") if words[0] != "up")
