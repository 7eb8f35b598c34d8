"""The index beside hnswlib, faiss and usearch: recall@10 against queries per second, build, memory, first use.

All libraries run in one process and take turns, round by round, so that neighbours on the machine hurt all alike. Times
are process CPU time on one thread; with two threads (`threads`) they are wall time, each library against itself, beside a
control that shows whether two cores were free. Squared Euclidean distance, M 16, ef_construction 200; near-duplicates:
M 8, ef_construction 100.

    python benchmarks/hnsw_peers.py                      everything (about 15 minutes on two cores)
    python benchmarks/hnsw_peers.py --only uniform       one part: a set, or memory, first-use, one-query, threads, simple
    python benchmarks/hnsw_peers.py --report             only the table and the plot, from the JSON in results/

The set "text" needs the wordllama wheel (see hnsw_sets.py) and is left out with the reason where it is absent.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import common
import numba
import numpy as np
from common import RESULTS, write
from hnsw_sets import SETS, Unavailable, recall, split, true_neighbours
from llvmlite import binding
from tqdm import tqdm

K = 10
EFS = (10, 14, 20, 28, 40, 60, 80, 120, 200, 400)
RECALLS = (0.90, 0.95, 0.99)
PEERS = ("hnswlib", "faiss", "usearch", "ours")
RATIO_SETS = ("uniform", "clusters", "text")  # those of the geometric means
PARTS = (*SETS, "memory", "first-use", "one-query", "threads", "simple")


class Ours:
    def __init__(self, X: np.ndarray, M: int, ef_construction: int, threads: int = 1):
        from hnsw import Index

        self.index = Index(X.shape[1], M=M, ef_construction=ef_construction, num_threads=threads)
        self.index.add(X, progress=False)

    def search(self, Q: np.ndarray, ef: int) -> np.ndarray:
        return self.index.search(Q, K, ef)[0]


class Hnswlib:
    def __init__(self, X: np.ndarray, M: int, ef_construction: int, threads: int = 1):
        import hnswlib

        self.index = hnswlib.Index("l2", X.shape[1])
        self.index.init_index(len(X), M=M, ef_construction=ef_construction)
        self.index.set_num_threads(threads)
        self.index.add_items(X, num_threads=threads)

    def search(self, Q: np.ndarray, ef: int) -> np.ndarray:
        self.index.set_ef(ef)
        return self.index.knn_query(Q, K)[0]


class Faiss:
    def __init__(self, X: np.ndarray, M: int, ef_construction: int, threads: int = 1):
        import faiss

        faiss.omp_set_num_threads(threads)
        self.index = faiss.IndexHNSWFlat(X.shape[1], M)
        self.index.hnsw.efConstruction = ef_construction
        self.index.add(X)

    def search(self, Q: np.ndarray, ef: int) -> np.ndarray:
        self.index.hnsw.efSearch = ef
        return self.index.search(Q, K)[1]


class Usearch:
    def __init__(self, X: np.ndarray, M: int, ef_construction: int, threads: int = 1):
        from usearch.index import Index

        self.threads = threads
        self.index = Index(ndim=X.shape[1], metric="l2sq", dtype="f32", connectivity=M, expansion_add=ef_construction)
        self.index.add(np.arange(len(X)), X, threads=threads)

    def search(self, Q: np.ndarray, ef: int) -> np.ndarray:
        self.index.expansion_search = ef
        return self.index.search(Q, K, threads=self.threads).keys


LIBRARIES = dict(zip(PEERS, (Hnswlib, Faiss, Usearch, Ours)))


def versions_of_peers() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("hnswlib", "faiss-cpu", "usearch", "numba", "numpy")}


def record(name: str, **values) -> dict:
    """One measurement, with what decides about its figures: the libraries, the kind of CPU, the machine's other work."""
    machine = {"cpu": binding.get_host_cpu_name(), "load_average": os.getloadavg()[0]}
    return common.record(name, **values, peers=versions_of_peers(), **machine)


def cpu_seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def warm_up() -> None:
    """Compile, outside of every measurement."""
    Ours(np.random.default_rng(0).random((300, 8), dtype=np.float32), 4, 20).search(np.zeros((20, 8), np.float32), 10)


def measure_set(name: str, rounds: int) -> None:
    """Builds, and rounds of searches at every ef, the libraries taking turns."""
    X, Q = split(name)
    truth = true_neighbours(X, Q, K)
    M, ef_construction = (8, 100) if name == "near-duplicates" else (16, 200)
    builds: dict[str, list[float]] = {peer: [] for peer in PEERS}
    made = {}
    for _ in range(3 if len(X) <= 10_000 else 1):
        for peer in PEERS:

            def build(peer=peer):
                made[peer] = LIBRARIES[peer](X, M, ef_construction)

            builds[peer].append(cpu_seconds(build))
    seconds = {(peer, ef): [] for peer in PEERS for ef in EFS}
    found = {}
    for _ in tqdm(range(rounds), desc=name):
        for ef in EFS:
            for peer in PEERS:
                start = time.process_time()
                found[peer, ef] = made[peer].search(Q, ef)
                seconds[peer, ef].append(time.process_time() - start)
    for peer in PEERS:
        curve = [
            {
                "ef": ef,
                "recall": recall(found[peer, ef], truth),
                "queries_per_second": [len(Q) / s for s in seconds[peer, ef]],
            }
            for ef in EFS
        ]
        extra = {}
        if peer == "ours":
            index = made[peer].index
            extra = {"reachable": 1 - len(index.unreachable()) / len(index), "nbytes": index.nbytes}
        write(
            record(
                f"hnsw_{name.replace('-', '_')}",
                engine=peer,
                metric="queries/s at ef 40, CPU time",
                samples=curve[EFS.index(40)]["queries_per_second"],
                workload={"set": name, "n": len(X), "dim": X.shape[1], "M": M, "ef_construction": ef_construction}
                | {"queries": len(Q), "k": K, "threads": 1, "seed": 1},
                curve=curve,
                build_seconds=builds[peer],
                **extra,
            )
        )


def measure_memory() -> None:
    """Resident bytes a vector on `clusters`: each library in a process of its own."""
    for peer in PEERS:
        samples = [float(run_self("--resident", peer)) for _ in range(1)]
        write(
            record(
                "hnsw_memory",
                engine=peer,
                metric="resident bytes a vector",
                samples=samples,
                workload={"set": "clusters", "n": 100_000, "dim": 64, "M": 16, "ef_construction": 20},
            )
        )


def resident(peer: str) -> float:
    """Growth of this process by one index of `clusters`, in bytes a vector. Links take the room that M asks for,
    whatever ef_construction found them."""
    import gc

    import psutil

    X, Q = split("clusters")
    warm_up()
    first = LIBRARIES[peer](X[:500], 16, 20)  # stays: memory that it had freed would hide a part of the next
    first.search(Q[:10], 20)
    gc.collect()
    before = psutil.Process().memory_full_info().uss
    index = LIBRARIES[peer](X, 16, 20)
    index.search(Q[:100], 40)
    gc.collect()
    return (psutil.Process().memory_full_info().uss - before) / len(X)


FIRST_USE = """
import time
start = time.perf_counter()
import numpy as np
from hnsw import Index
index = Index(4)
index.add(np.eye(4))
index.search(np.eye(4), 2)
print(time.process_time(), time.perf_counter() - start)
"""
ONE_FUNCTION = """
import time
start = time.perf_counter()
import numpy as np
import numba

@numba.njit(cache=True)
def total(x):
    return x.sum()

total(np.eye(4))
print(time.process_time(), time.perf_counter() - start)
"""


def measure_first_use(rounds: int) -> None:
    """Seconds from the start of Python to the first answer, with an empty and with a filled compiler cache.

    Beside them what numba alone takes with a filled cache: a program of one compiled function.
    """
    environment = {**os.environ, "PYTHONPATH": str(RESULTS.parents[1])}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # Python's own cache is kept, as it is by default
    programs = {"cold": FIRST_USE, "cached": FIRST_USE, "fill": ONE_FUNCTION, "numba": ONE_FUNCTION}
    samples = {state: [] for state in programs}
    wall = {state: [] for state in programs}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for state, program in programs.items():
                script = Path(cache, f"{len(program)}.py")  # a file: numba caches nothing that has none
                script.write_text(program)
                out = subprocess.run(
                    [sys.executable, str(script)],
                    env={**environment, "NUMBA_CACHE_DIR": cache},
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.split()
                samples[state].append(float(out[0]))
                wall[state].append(float(out[1]))
    for state in ("cold", "cached", "numba"):
        what = "one compiled function" if state == "numba" else "import, add 4 vectors, search"
        write(
            record(
                "hnsw_first_use",
                engine=state,
                metric="CPU seconds of the process, imports included",
                samples=samples[state],
                wall_seconds=wall[state],
                workload={"what": what},
            )
        )


def measure_one_query(rounds: int) -> None:
    """Microseconds of a call with a single query, ef 40, on `uniform`."""
    X, Q = split("uniform")
    made = {peer: LIBRARIES[peer](X, 16, 200) for peer in ("hnswlib", "ours")}
    samples = {peer: [] for peer in made}
    made["ours"].search(Q[:1], 40)  # compiles what one query alone takes
    for _ in range(rounds):
        for peer, library in made.items():
            start = time.process_time()
            for q in Q:
                library.search(q[None], 40)
            samples[peer].append((time.process_time() - start) / len(Q) * 1e6)
    for peer in made:
        write(
            record(
                "hnsw_one_query",
                engine=peer,
                metric="microseconds a call, CPU time",
                samples=samples[peer],
                workload={"set": "uniform", "ef": 40, "k": K, "calls": len(Q)},
            )
        )


@numba.njit(nogil=True)
def spin(turns: int) -> float:
    total = 0.0
    for i in range(turns):
        total += np.sin(i)
    return total


FREE = 1.8  # a control of this much and more: two cores were free


def found_free(tries: list[dict]) -> list[dict]:
    """The tries whose controls before and after show two free cores."""
    return [t for t in tries if min(t["controls"]) >= FREE]


def measure_threads(rounds: int) -> None:
    """Two threads against one, wall time, ours and hnswlib: building 20,000 points of `clusters`, and searching them.

    The control is arithmetic that shares nothing: what two threads can gain on this machine beside its other work. It
    runs before and after everything that is measured. Up to three times `rounds` are tried, until as many have found
    two free cores; the others are in the JSON, too. On a busy machine, the CPU seconds still say what sharing costs.
    """
    X, Q = split("clusters")
    X = X[:20_000]
    Q = np.concatenate([Q, X[:4000]])
    made: dict[tuple[str, int], Ours | Hnswlib] = {}

    def compare(work) -> dict[str, float]:
        seconds, cpu = [], []
        for threads in (1, 2):
            start, cpu_start = time.perf_counter(), time.process_time()
            work(threads)
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - cpu_start)
        return {"gain": seconds[0] / seconds[1], "cpu_ratio": cpu[1] / cpu[0]}

    def control(threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(spin, [10_000_000 // threads] * threads))

    def build(peer: str, threads: int) -> None:
        made[peer, threads] = LIBRARIES[peer](X, 16, 200, threads)

    works = {}
    for peer, prefix in (("ours", ""), ("hnswlib", "hnswlib-")):
        works[prefix + "build"] = lambda threads, peer=peer: build(peer, threads)
        works[prefix + "search"] = lambda threads, peer=peer: made[peer, threads].search(Q, 80)
    for work in (spin, *works.values()):  # compiles, and starts the threads
        work(1)
        work(2)
    tries: dict[str, list[dict]] = {what: [] for what in works}
    before = compare(control)["gain"]
    for _ in tqdm(range(3 * rounds), desc="threads"):
        if all(len(found_free(tries[what])) >= rounds for what in works):
            break
        for what, work in works.items():
            measured = compare(work)
            after = compare(control)["gain"]
            tries[what].append({**measured, "controls": [before, after]})
            before = after
    every = [t for of_one in tries.values() for t in of_one]
    tries["control"] = [{"gain": sum(t["controls"]) / 2, "controls": t["controls"]} for t in every]
    for what, of_one in tries.items():
        write(
            record(
                "hnsw_threads",
                engine=what,
                metric="times as fast with two threads as with one, wall time",
                samples=[t["gain"] for t in found_free(of_one) or of_one],
                rule=f"samples: the tries whose controls before and after are {FREE} or more; all where none is",
                tries=of_one,
                cores=os.cpu_count(),
                workload={"set": "clusters", "n": len(X), "queries": len(Q), "ef": 80},
            )
        )


def measure_simple(rounds: int) -> None:
    """HNSWSimple's queries a second on `uniform`, ef 40, on the graph of `Index`, which is the same."""
    X, Q = split("uniform")
    made = {peer: LIBRARIES[peer](X, 16, 200) for peer in ("hnswlib", "ours")}
    made["ours"].index.ef = 40
    simple = made["ours"].index.readable()
    answers = [[e for e, _ in simple.search(q, K)] for q in Q[:200]]
    assert answers == made["ours"].search(Q[:200], 40).tolist()
    samples = {"simple": [], "hnswlib": []}
    for _ in range(rounds):
        samples["simple"].append(200 / cpu_seconds(lambda: [simple.search(q, K) for q in Q[:200]]))
        samples["hnswlib"].append(len(Q) / cpu_seconds(lambda: made["hnswlib"].search(Q, 40)))
    for peer in samples:
        write(
            record(
                "hnsw_simple",
                engine=peer,
                metric="queries/s, CPU time",
                samples=samples[peer],
                workload={"set": "uniform", "ef": 40, "k": K, "M": 16},
            )
        )


def run_self(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


# From the results to the figures


def load(folder: Path = RESULTS) -> dict[tuple[str, str], dict]:
    """{(name, engine): record} of all hnsw_* results."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("hnsw_*-*.json"))]
    return {(r["name"], r["engine"]): r for r in results}


def speed_at(curve: list[dict], target: float) -> float | None:
    """Queries/s at a recall, between the two measured points around it (linear in log queries/s); the smallest ef's
    where that has it already, None where no ef reaches it."""
    points = [(p["recall"], statistics.median(p["queries_per_second"])) for p in curve]
    if points[0][0] >= target:
        return points[0][1]
    for (r0, s0), (r1, s1) in zip(points, points[1:]):
        if r0 < target <= r1:
            share = (target - r0) / (r1 - r0)
            return float(np.exp(np.log(s0) * (1 - share) + np.log(s1) * share))
    return None


def geometric_mean(values: list[float | None]) -> float:
    """Of the values that exist."""
    return float(np.exp(np.mean(np.log([value for value in values if value]))))


def summary(results: dict[tuple[str, str], dict]) -> dict:
    """Every figure that the report shows."""
    figures: dict = {"sets": {}}
    figures["machines"] = sorted(
        {f"{r['device']['count']} cores of {r['device']['name']} ({r['cpu']})" for r in results.values() if "cpu" in r}
    )
    figures["loads"] = [r["load_average"] for r in results.values() if "load_average" in r]
    for name in SETS:
        key = f"hnsw_{name.replace('-', '_')}"
        if (key, "ours") not in results:
            continue
        base = results[key, "hnswlib"]
        figures["sets"][name] = {
            peer: {
                "build_s": statistics.median(r["build_seconds"]),
                "build_ratio": statistics.median(base["build_seconds"]) / statistics.median(r["build_seconds"]),
                "at_ef": {
                    p["ef"]: {"recall": p["recall"], "qps": statistics.median(p["queries_per_second"])}
                    for p in r["curve"]
                },
                "ratio_at": {
                    target: speed_at(r["curve"], target) / speed_at(base["curve"], target)
                    if speed_at(r["curve"], target) and speed_at(base["curve"], target)
                    else None
                    for target in RECALLS
                },
            }
            for peer in PEERS
            for r in [results[key, peer]]
        }
    measured = [name for name in RATIO_SETS if name in figures["sets"]]
    if measured:
        ours = {name: figures["sets"][name]["ours"] for name in measured}
        figures["qps_ratio_at_95"] = geometric_mean([s["ratio_at"][0.95] for s in ours.values()])
        figures["worst_qps_ratio"] = min(v for s in ours.values() for v in s["ratio_at"].values() if v)
        figures["build_ratio"] = geometric_mean([s["build_ratio"] for s in ours.values()])
        figures["lowest_recall_difference"] = min(
            ours[name]["at_ef"][ef]["recall"] - figures["sets"][name]["hnswlib"]["at_ef"][ef]["recall"]
            for name in measured
            for ef in EFS
        )
        figures["geometric_mean_over"] = measured
    if "near-duplicates" in figures["sets"]:
        r = results["hnsw_near_duplicates", "ours"]
        point = next(p for p in r["curve"] if p["ef"] == 40)
        figures["near_duplicates"] = {"recall_at_ef_40": point["recall"], "reachable": r["reachable"]}

    def median_of(name, engine):
        return results[name, engine]["median"] if (name, engine) in results else None

    def ratio(name, a, b):
        return median_of(name, a) / median_of(name, b) if median_of(name, a) and median_of(name, b) else None

    figures["memory_bytes"] = {peer: median_of("hnsw_memory", peer) for peer in PEERS}
    figures["memory_ratio"] = ratio("hnsw_memory", "ours", "hnswlib")
    figures["one_query_us"] = {peer: median_of("hnsw_one_query", peer) for peer in ("hnswlib", "ours")}
    figures["one_query_ratio"] = ratio("hnsw_one_query", "ours", "hnswlib")
    threads = ("build", "search", "hnswlib-build", "hnswlib-search", "control")
    figures["two_threads"] = {what: median_of("hnsw_threads", what) for what in threads}
    tries = {what: results.get(("hnsw_threads", what), {}).get("tries", []) for what in ("build", "search")}
    figures["two_threads_tries"] = {what: (len(found_free(t)), len(t)) for what, t in tries.items()}
    figures["two_threads_cpu"] = {what: statistics.median(u["cpu_ratio"] for u in t) for what, t in tries.items() if t}
    figures["first_use_s"] = {state: median_of("hnsw_first_use", state) for state in ("cold", "cached", "numba")}
    figures["simple_slower_than_hnswlib"] = ratio("hnsw_simple", "hnswlib", "simple")
    return figures


def report(figures: dict) -> str:
    """The figures as Markdown."""

    def show(value, form="{:.2f}"):
        return "-" if value is None else form.format(value)

    lines = [
        "# The index beside its peers",
        "",
        "Written by `python benchmarks/hnsw_peers.py`; the samples, versions and commands are in the JSON beside it.",
        "Thousands of queries a second on one thread, CPU time, with recall@10; ratios are to hnswlib.",
        *(
            [
                f"Machine: {', '.join(figures['machines'])}; load average {show(statistics.median(figures['loads']))} "
                f"(median), {show(max(figures['loads']))} (most)."
            ]
            if figures["machines"]
            else []
        ),
        "",
        "| set | library | build s | build ratio | ef 10 | ef 40 | ef 120 | ratio at .90 | at .95 | at .99 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, peers in figures["sets"].items():
        for peer, f in peers.items():
            at = [f"{f['at_ef'][ef]['qps'] / 1e3:.1f} ({f['at_ef'][ef]['recall']:.3f})" for ef in (10, 40, 120)]
            ratios = [show(f["ratio_at"][target]) for target in RECALLS]
            cells = [name, peer, f"{f['build_s']:.2f}", f"{f['build_ratio']:.2f}", *at, *ratios]
            lines.append("| " + " | ".join(cells) + " |")
    near = figures.get("near_duplicates", {})
    bytes_, first, two = figures["memory_bytes"], figures["first_use_s"], figures["two_threads"]
    memory = ", ".join(f"{peer} {show(size, '{:.0f}')}" for peer, size in bytes_.items())
    over = ", ".join(figures.get("geometric_mean_over", []))
    lines += [
        "",
        "| figure | target | measured |",
        "|---|---|---|",
        f"| queries/s at recall .95, geometric mean ({over}) | 1.6 | {show(figures.get('qps_ratio_at_95'))} |",
        f"| the same, worst set and recall | 1.15 | {show(figures.get('worst_qps_ratio'))} |",
        f"| build speed, geometric mean | 1.75 | {show(figures.get('build_ratio'))} |",
        f"| recall at the same ef, least difference to hnswlib | -.01 "
        f"| {show(figures.get('lowest_recall_difference'), '{:+.4f}')} |",
        f"| memory a vector, ratio | .8 | {show(figures['memory_ratio'])} ({memory} bytes) |",
        f"| one-query call, ratio of times | .75 | {show(figures['one_query_ratio'])} |",
        f"| two threads: build, search (hnswlib; arithmetic that shares nothing) | 1.9 "
        f"| {show(two['build'])}, {show(two['search'])} ({show(two['hnswlib-build'])}, "
        f"{show(two['hnswlib-search'])}; {show(two['control'])}) |",
        f"| near-duplicates, M 8, ef 40: recall, reachable | .95, 99.9 % "
        f"| {show(near.get('recall_at_ef_40'), '{:.3f}')}, {show(near.get('reachable'), '{:.2%}')} |",
        f"| first use, cold and cached, CPU seconds (numba alone, cached) | 8, 0.8 "
        f"| {show(first['cold'])}, {show(first['cached'])} ({show(first['numba'])}) |",
        f"| HNSWSimple, times slower than hnswlib | 50 | {show(figures['simple_slower_than_hnswlib'], '{:.0f}')} |",
        "",
    ]
    if cpu := figures["two_threads_cpu"]:
        (free, tried), (free_search, _) = figures["two_threads_tries"].values()
        lines += [
            f"Two cores were free in {free} (build) and {free_search} (search) of {tried} tries, says arithmetic that "
            f"shares nothing and gains {FREE} or more then.",
            "The figures of two threads are the medians of these tries."
            if free and free_search
            else "Where they never were, the figure is the median of all tries: it says how busy the machine was, not "
            "what a second thread gives.",
            f"Busy or not, two threads need {cpu['build']:.2f} (build) and {cpu['search']:.2f} (search) times the CPU "
            "seconds of one.",
            "",
        ]
    return "\n".join(lines)


def plot(figures: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "hnsw"
    fig, axes = plt.subplots(1, len(figures["sets"]), figsize=(4 * len(figures["sets"]), 3.6), squeeze=False)
    for axis, (name, peers) in zip(axes[0], figures["sets"].items()):
        for peer, f in peers.items():
            points = f["at_ef"].values()
            axis.plot([p["recall"] for p in points], [p["qps"] for p in points], "o-", ms=3, label=peer)
        axis.set(title=name, xlabel="recall@10", yscale="log")
    axes[0][0].set_ylabel("queries/s, one thread")
    axes[0][0].legend()
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of searches (default: 5)")
    parser.add_argument("--report", action="store_true", help="measure nothing, write report and plot")
    parser.add_argument("--resident", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.resident:
        print(resident(arguments.resident))
        return
    if not arguments.report:
        warm_up()
        others = {
            "memory": measure_memory,
            "first-use": lambda: measure_first_use(3),
            "one-query": lambda: measure_one_query(arguments.rounds),
            "threads": lambda: measure_threads(arguments.rounds),
            "simple": lambda: measure_simple(arguments.rounds),
        }
        for part in arguments.only:
            try:
                others[part]() if part in others else measure_set(part, arguments.rounds)
            except Unavailable as reason:
                print(f"left out: {reason}", file=sys.stderr)
    figures = summary(load())
    text = report(figures)
    (RESULTS / "hnsw_peers.md").write_text(text)
    plot(figures, RESULTS / "hnsw_peers.svg")
    print(text)


if __name__ == "__main__":
    main()
