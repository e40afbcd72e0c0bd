"""What faults between computers do to requests: each node in its own network namespace, and each fault many times.

    python tools/make_model.py --shape tinyllama --layers 4 t.m --tokenizer t.t
    sudo .venv/bin/python tools/fault_links.py t.m [--times 20] [--only WORDS] [--names dzfault]

4 nodes under CURVE, 3 clients. A loop on each computer starts its node again whenever it ends, as systemd does. The
nodes of a row stay for all its runs, so that what one fault leaves meets the next. Each request must end with the text
of an undisturbed run, byte for byte, or with the error that is promised for the row, and the cluster must be whole
again afterwards, each within a time limit. The table has, as median / maximum in seconds: until the root's log names
the lost worker; the longest time in which no client got a token, progress of its prompt or an error; until all nodes
are ready again, since the fault or since what was missing is back; and the bytes of weights that were sent for that.
`--names`: what the names of namespaces begin with, so that several can run at once. Ends with exit code 1 where a run
failed. Needs Linux, root, iproute2; for clocks Debian's libfaketime, for memory control groups of version 1.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fault_cluster import LIBFAKETIME, LOADED, Cluster, cluster
from fault_requests import Failed, Requests, figures, until
from namespaces import network

from dllama_zmq.formats import open_model
from dllama_zmq.sharding import Plan, node_memory

N_NODES, N_WORDS = 4, 60
RUN_S, WHOLE_S, SOON_S = 180.0, 90.0, 30.0
REJOIN_S = 8.0  # in rows whose worker does not come back: until then the requests wait
NEW_ADDRESS = "192.0.2.99"
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")

Fault = Callable[[Cluster], None]


@dataclass(frozen=True)
class Row:
    """fault: breaks something while requests run. error: how each of them ends, a pattern; "": with its text.

    mend: what the cluster needs to be whole again, once they have ended. reset: what the next run needs.
    clocks: its nodes have clocks that can be set. two: another cluster on the same computers must notice nothing.
    """

    fault: Fault
    error: str = ""
    mend: Fault = lambda cluster: None
    reset: Fault = lambda cluster: None
    rejoin_s: float = 120.0
    n_tokens: int = 30
    clocks: bool = False
    two: bool = False


def link_down(seconds: float) -> Fault:
    """The cable of a worker is pulled for so long."""

    def fault(cluster: Cluster) -> None:
        cluster.fault()
        cluster.faulty.computer.cut()
        time.sleep(seconds)
        cluster.faulty.computer.mend()

    return fault


def power_off(cluster: Cluster) -> None:
    """A worker's computer is gone, without a word."""
    cluster.fault()
    cluster.faulty.computer.cut()
    cluster.faulty.end()


def power_on(cluster: Cluster) -> None:
    """A worker's computer starts."""
    cluster.fault()
    cluster.faulty.computer.mend()
    cluster.faulty.start()


def elsewhere(cluster: Cluster) -> None:
    """A worker's computer is gone, and comes back with another address."""
    power_off(cluster)
    until(cluster.known_s, SOON_S, "the root to miss it")
    cluster.faulty.computer.move(NEW_ADDRESS)
    cluster.faulty.computer.mend()
    cluster.faulty.start()


def moved(cluster: Cluster) -> None:
    """A worker's computer gets another address; its worker goes on."""
    cluster.fault()
    cluster.faulty.computer.move(NEW_ADDRESS)


def home_again(cluster: Cluster) -> None:
    """The worker's computer has its own address again."""
    cluster.fault()
    cluster.faulty.computer.move(cluster.faulty.computer.address)
    until(lambda: cluster.known_s() and cluster.whole_s(), WHOLE_S, "the cluster to be whole at the old address")


def root_killed(cluster: Cluster) -> None:
    cluster.fault()
    cluster.root.kill()


def worker_killed(cluster: Cluster) -> None:
    cluster.fault()
    cluster.faulty.kill()


def clocks_set(offset: str) -> Fault:
    """The clocks of all computers are set."""

    def fault(cluster: Cluster) -> None:
        cluster.fault()
        for node in (cluster.root, *cluster.workers):
            node.clock.write_text(offset)

    return fault


def clock_set(cluster: Cluster) -> None:
    """The clock of a worker's computer is set to tomorrow."""
    cluster.fault()
    cluster.faulty.clock.write_text("+1d")


def half_memory(cluster: Cluster) -> None:
    """A worker's computer starts again with half of the memory that the worker needs."""
    with open_model(cluster.model) as model:
        need = node_memory(Plan.make(model.spec, N_NODES), cluster.faulty.computer.node, model.spec.seq_len)
    power_off(cluster)
    group = MEMORY_GROUPS / cluster.faulty.computer.name
    group.mkdir(exist_ok=True)
    until_empty(group)
    (group / "memory.force_empty").write_text("0")
    (group / "memory.limit_in_bytes").write_text(str(need.total // 2))
    cluster.faulty.computer.mend()
    cluster.faulty.start("bash", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "limited")


def more_memory(cluster: Cluster) -> None:
    """The limit is gone; the loop starts the worker again."""
    cluster.fault()
    group = MEMORY_GROUPS / cluster.faulty.computer.name
    (group / "memory.limit_in_bytes").write_text("-1")


def until_empty(group: Path) -> None:
    """Wait until nothing runs in a control group. Raises Failed."""
    until(lambda: not (group / "cgroup.procs").read_text(), SOON_S, "the group to be empty")


def remove_groups(names: str) -> None:
    """Remove the control groups of computers, once what ran in them has ended."""
    for group in MEMORY_GROUPS.glob(f"{names}[0-9]"):
        until_empty(group)
        group.rmdir()


GONE = r"NotReady: .*worker2"
ROWS = {
    "a link down for 1 s": Row(link_down(1.0)),
    "a link down for 3 s": Row(link_down(3.0)),
    "a link down for 30 s": Row(link_down(30.0)),
    "computer gone for good": Row(power_off, GONE, power_on, rejoin_s=REJOIN_S),
    "computer gone, back with another address": Row(elsewhere, reset=home_again),
    "another address while it runs": Row(moved, reset=home_again),
    "root kill -9": Row(root_killed, "the root went away"),
    "all clocks a day on": Row(clocks_set("+1d"), reset=clocks_set("+0"), clocks=True, n_tokens=100),
    "all clocks a day back": Row(clocks_set("-1d"), reset=clocks_set("+0"), clocks=True, n_tokens=100),
    "a worker's clock a day on": Row(clock_set, reset=clocks_set("+0"), clocks=True, n_tokens=100),
    "computer back with half the memory": Row(half_memory, GONE + ".*memory", more_memory, rejoin_s=REJOIN_S),
    "kill -9 beside another cluster": Row(worker_killed, two=True),
}


def asked(cluster: Cluster, texts: Sequence[str], row: Row) -> Requests:
    """Requests, with the fault among them, that end as the row says. Raises Failed."""
    requests = Requests(cluster.address, row.n_tokens, N_WORDS)
    beside = [Requests(other.address, row.n_tokens, N_WORDS) for other in cluster.others]
    for some in (requests, *beside):
        some.start()
    until(lambda: requests.decode or requests.errors, SOON_S, "tokens")
    row.fault(cluster)
    requests.finish(RUN_S)
    errors = requests.errors
    if row.error:
        promised = len(errors) == len(texts) and all(re.search(row.error, error) for error in errors)
    else:
        promised = requests.texts == texts and not errors
    if not promised:
        raise Failed(f"{requests.n_pieces} tokens; {errors or requests.texts}")
    for some, other in zip(beside, cluster.others, strict=True):
        some.finish(RUN_S)
        if some.texts != texts or not other.is_whole() or other.n_ready() != 1:
            raise Failed(f"the other cluster: {some.errors}, ready {other.n_ready()} times")
    return requests


def run(cluster: Cluster, texts: Sequence[str], row: Row, columns: Sequence[list[float]]) -> None:
    """One run of a row; adds its figures to the columns. Raises Failed."""
    requests = asked(cluster, texts, row)
    known_s, silent_s = cluster.known_s(), requests.silence_s(cluster.faults[-1])
    row.mend(cluster)
    if known_s or row.error:
        until(cluster.whole_s, WHOLE_S, "the cluster to be whole again")
    until(cluster.is_whole, WHOLE_S, "the cluster to be whole")
    sent_bytes = float(sum(int(found[2]) for _, found in cluster.lines(LOADED)))
    for column, values in zip(columns, (known_s, [silent_s], cluster.whole_s(), [sent_bytes]), strict=True):
        column.extend(values)
    row.reset(cluster)
    if row.error:
        asked(cluster, texts, Row(lambda cluster: None, n_tokens=row.n_tokens))


def measure(model: Path, names: str, row: Row, times: int) -> tuple[int, str]:
    """How many of the runs of a row were as promised, and its figures. What went wrong goes to stderr."""
    columns: list[list[float]] = [[], [], [], []]
    n_done = n_right = 0
    while n_done < times:
        log: list[tuple[float, str]] = []
        try:
            with ExitStack() as stack:
                stack.callback(remove_groups, names)
                base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=names, dir="/tmp")))
                computers = stack.enter_context(network(names, N_NODES))
                clusters = [
                    stack.enter_context(cluster(model, computers, base, row.rejoin_s, number, row.clocks))
                    for number in range(1 + row.two)
                ]
                first, log = clusters[0], clusters[0].seen
                first.others += clusters[1:]
                whole = Requests(first.address, row.n_tokens, N_WORDS)
                whole.start()
                whole.finish(RUN_S)
                if whole.errors:
                    raise Failed(f"undisturbed: {whole.errors}")
                while n_done < times:
                    run(first, whole.texts, row, columns)
                    n_done, n_right = n_done + 1, n_right + 1
        except Failed as error:
            print(error, *(line.rstrip() for _, line in log[-30:]), sep="\n", file=sys.stderr, flush=True)
            n_done += 1
    return n_right, figures(*columns)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(description="Faults between computers, and what requests notice of them.")
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--times", type=int, default=20, metavar="N")
    parser.add_argument("--only", default="", metavar="WORDS", help="rows that have these words")
    parser.add_argument("--names", default="dzfault", help="what the names of namespaces begin with")
    args = parser.parse_args(argv)
    rows = {name: row for name, row in ROWS.items() if args.only in name}
    if any(row.clocks for row in rows.values()) and not Path(LIBFAKETIME).exists():
        sys.exit(f"{LIBFAKETIME}: no such file; it sets clocks (Debian: apt install libfaketime)")
    if (
        any(row.fault is half_memory for row in rows.values())
        and not (MEMORY_GROUPS / "memory.limit_in_bytes").exists()
    ):
        sys.exit(f"{MEMORY_GROUPS}: no control groups of version 1; leave the row about memory out with --only")
    n_failed = 0
    print("| fault | runs | as promised | known after s | silence s | whole again after s | weights sent |")
    print("| :-- | --: | --: | --: | --: | --: | --: |", flush=True)
    for name, row in rows.items():
        n_right, columns = measure(args.model, args.names, row, args.times)
        n_failed += args.times - n_right
        print(f"| {name} | {args.times} | {n_right} | {columns} |", flush=True)
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
