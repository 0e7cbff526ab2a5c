#!/usr/bin/env python3
"""Runs retort-transport and POT alternately on the same clouds and prints a table of both."""

import argparse
import dataclasses
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

sys.dont_write_bytecode = True

from compare import (MAX_STEPS, MIN_STEPS, at_least_one, busiest, busy_seconds, cpu_model, doubtful_list, extent,
                     failure_list, failures, median_of, number, tail, write)

OURS, POT = "retort", "pot"
SIZES = (64, 128, 256, 512, 1000)
WIDTH, DIRECTIONS, SHIFT = 64, 128, 0.3
WARM_UPS = 2
# Summed absolute error of the marginals that entropic plans are computed to, on both sides.
TOLERANCE = 1e-6
# Sweeps times cells of the matrix after which POT's Sinkhorn iteration is cut short.
MOST_CELLS = 100_000_000
# Thresholds that are tried at most.
TRIALS = 8
# How many times as fast as POT we should be at least.
TARGETS = {"exact": 2.0, "sinkhorn": 2.0, "sliced": 3.0}


@dataclasses.dataclass
class Row:
    """One line of the table."""

    work: str
    n: int
    eps: float | None = None
    pot_method: str | None = None

    @property
    def id(self):
        """Its name."""
        kind = self.work if self.eps is None else f"{self.pot_method} {self.eps}"
        return f"{kind}, n = {self.n}"


def all_rows(sizes):
    """Every row, in the order of the table."""
    entropic = [("sinkhorn", eps, method) for eps in (0.05, 0.01) for method in ("sinkhorn", "sinkhorn_log")]
    kinds = [("exact", None, None), *entropic, ("sliced", None, None)]
    return [Row(work, n, eps, method) for work, eps, method in kinds for n in sizes]


def draw(folder, sizes, seed):
    """Writes the clouds and directions: a folder for every size."""
    for n in sizes:
        random = np.random.default_rng([seed, n])
        directions = random.normal(size=(DIRECTIONS, WIDTH))
        arrays = {
            "x": random.normal(size=(n, WIDTH)),
            "y": random.normal(size=(n, WIDTH)) + SHIFT,
            "directions": directions / np.linalg.norm(directions, axis=1, keepdims=True),
        }
        place = Path(folder, str(n))
        place.mkdir()
        for name, array in arrays.items():
            array.astype("<f8").tofile(place / f"{name}.f64")


def pot_work(job):
    """(the timed work as a function of the threshold, its report as a function of the result)."""
    import ot  # here, since only the process that measures needs it

    x, y, directions = (np.fromfile(Path(job["folder"], f"{name}.f64"), "<f8").reshape(-1, WIDTH)
                        for name in ("x", "y", "directions"))
    a, b = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
    cost = ot.dist(x, y)
    if job["work"] == "exact":
        return lambda _: ot.emd(a, b, ot.dist(x, y)), lambda plan: {"value": float((plan * cost).sum())}
    if job["work"] == "sliced":
        projections = directions.T
        return (lambda _: ot.sliced_wasserstein_distance(x, y, projections=projections, seed=None),
                lambda root: {"value": float(root) ** 2})
    cap = MOST_CELLS // cost.size

    def solve(threshold):
        costs = ot.dist(x, y)
        return ot.sinkhorn(a, b, costs, job["eps"] * costs.mean(), method=job["method"], stopThr=threshold,
                           numItermax=cap, log=True, warn=False)

    def report(result):
        plan, log = result
        error = float(np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum())
        return {"value": float((plan * cost).sum()), "eps": float(job["eps"] * cost.mean()), "marginal_error": error,
                "converged": error <= TOLERANCE, "sweeps": int(log["niter"]) + 1,
                "capped": error > TOLERANCE and log["niter"] + 1 >= cap}

    return solve, report


def pot_side(job):
    """One measurement of POT, or, without steps, a first look: the threshold and a rough time."""
    run, report = pot_work(job)

    def timed(threshold):
        start = time.perf_counter()
        result = run(threshold)
        return (time.perf_counter() - start) * 1e3, result

    if job["steps"] is None:
        return pot_probe(timed, report)
    for _ in range(WARM_UPS):
        run(job["threshold"])
    times, results = zip(*(timed(job["threshold"]) for _ in range(job["steps"])))
    return {"ms": statistics.median(times), **report(results[-1]), "threshold": job["threshold"]}


def pot_probe(timed, report):
    """The loosest threshold, as far as some trials can say, at which the plan's error is small enough.

    POT compares the Euclidean norm of the error of one marginal, and only every ten sweeps.
    """
    threshold = TOLERANCE
    timed(threshold)
    for _ in range(TRIALS):
        ms, result = timed(threshold)
        found = report(result)
        first = {"ms": ms, "threshold": threshold}
        error = found.get("marginal_error", 0.0)
        if not error > TOLERANCE or found["capped"]:
            break
        threshold *= 0.99 * TOLERANCE / error
    return first


def command(side, row, steps, threshold, args):
    """Command line of a side and what is added to its environment."""
    folder = str(Path(args.folder, str(row.n)))
    if side == OURS:
        words = [args.retort_speed, folder, "--work", row.work, "--n", str(row.n), "--d", str(WIDTH)]
        words += ["--steps", str(steps)]
        words += ["--eps", str(row.eps)] if row.eps else []
        return words, {"RAYON_NUM_THREADS": str(args.threads)}
    job = {"work": row.work, "eps": row.eps, "method": row.pot_method, "folder": folder, "steps": steps,
           "threshold": threshold}
    return [sys.executable, __file__, "--pot-side", json.dumps(job)], {"OMP_NUM_THREADS": str(args.threads)}


def run(side, row, steps, threshold, args):
    """One process: its report, or {"failed": why}, with the share of all cores that others used meanwhile."""
    line, env = command(side, row, steps, threshold, args)
    before, start = busy_seconds(), time.monotonic()
    try:
        done = subprocess.run(line, env=os.environ | env, capture_output=True, text=True,
                              timeout=args.timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"longer than {args.timeout} s"}
    except OSError as error:
        return {"failed": f"{type(error).__name__}: {error.strerror}"}
    after, wall = busy_seconds(), time.monotonic() - start
    if done.returncode != 0:
        return {"failed": f"exit code {done.returncode}: {tail(done.stderr, 1)}"}
    report = json.loads(done.stdout)
    if before and after:
        others = (after[0] - before[0]) - (after[1] - before[1])
        report["other_cpu"] = round(max(others, 0.0) / (wall * os.cpu_count()), 3)
    return report


def steps_for(first, args):
    """As many timed steps as fill the wanted seconds, by a first look at a side."""
    return min(max(round(args.seconds * 1e3 / first.get("ms", float("inf"))), MIN_STEPS), MAX_STEPS)


def run_row(row, args):
    """All rounds of one row, the sides taking turns."""
    first = {OURS: run(OURS, row, MIN_STEPS, None, args), POT: run(POT, row, None, None, args)}
    steps = {side: steps_for(report, args) for side, report in first.items()}
    threshold = first[POT].get("threshold")
    raw = {side: [] for side in first}
    for count in range(args.rounds):
        for side, reports in raw.items():
            print(f"{row.id}: round {count + 1}/{args.rounds}, {side}", file=sys.stderr)
            failed = "failed" in first[side]
            reports.append(first[side] if failed else run(side, row, steps[side], threshold, args))
    return {"id": row.id, **dataclasses.asdict(row), "steps": steps, "at_least": TARGETS[row.work],
            **summarise(raw), "other_cpu": busiest(raw), "failures": failures(raw), "raw": raw}


def summarise(raw):
    """Medians of both sides, their ratio, and how far the values lie apart."""
    middle = {f"{side}_{key}": median_of(raw[side], key) for side in raw for key in ("ms", "value", "marginal_error")}
    pairs = [(a["ms"], b["ms"]) for a, b in zip(raw[OURS], raw[POT]) if "ms" in a and "ms" in b]
    both = bool(middle["retort_ms"] and middle["pot_ms"])
    ours, theirs = middle["retort_value"], middle["pot_value"]
    return {
        **middle,
        "ratio": middle["pot_ms"] / middle["retort_ms"] if both else None,
        "round_ratios": [b / a for a, b in pairs],
        "difference": abs(ours - theirs) / abs(theirs) if both else None,
        "pot_capped": any(r.get("capped") for r in raw[POT]),
    }


def scientific(value):
    """A cell with a small number, or a dash."""
    return "-" if value is None else f"{value:.1e}"


def table(results):
    """The results as Markdown; > where POT was cut short."""
    lines = ["| work | ours ms | POT ms | ratio | single rounds | at least | value ours | value POT | difference "
             "| error ours | error POT |", "|---|" + "---:|" * 10]
    for r in results:
        more = "> " if r["pot_capped"] else ""
        cells = [r["id"], number(r["retort_ms"], 3), more + number(r["pot_ms"], 3), more + number(r["ratio"], 2),
                 extent(r["round_ratios"]), number(r["at_least"], 1),
                 number(r["retort_value"], 9), number(r["pot_value"], 9), scientific(r["difference"]),
                 scientific(r["retort_marginal_error"]), scientific(r["pot_marginal_error"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def missed_list(results):
    """Every row in which an entropic plan of either side missed the tolerance."""
    return [f"not converged: {r['id']}, {side}: error {report['marginal_error']:.1e} after {report['sweeps']} sweeps"
            for r in results for side, reports in r["raw"].items() for report in reports[:1]
            if report.get("converged") is False and "marginal_error" in report]


def setting(args):
    """Where and when this was measured."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        **{name: metadata.version(name) for name in ("POT", "numpy", "scipy")},
        "threads": args.threads,
        "rounds": args.rounds,
        "seed": args.seed,
        "width": WIDTH,
        "directions": DIRECTIONS,
        "tolerance": TOLERANCE,
    }


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--retort-speed", required=True, metavar="PATH", help="the example `speed` of retort-transport")
    parser.add_argument("--sizes", type=at_least_one, nargs="+", default=SIZES, help="points of either cloud")
    parser.add_argument("--rounds", type=at_least_one, default=5)
    parser.add_argument("--threads", type=at_least_one, default=2, help="of both sides")
    parser.add_argument("--seconds", type=float, default=1.0, help="timed seconds of a process, but 3 to 2000 steps")
    parser.add_argument("--seed", type=int, default=0, help="of clouds and directions")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds a process may take")
    parser.add_argument("--out", help="JSON file with everything, written after every row")
    return parser.parse_args()


def main():
    """Measures all rows; exit code 1 if a side failed."""
    if sys.argv[1:2] == ["--pot-side"]:
        print(json.dumps(pot_side(json.loads(sys.argv[2]))))
        return 0
    args = parse()
    report = {"setting": setting(args), "results": []}
    with tempfile.TemporaryDirectory() as args.folder:
        draw(args.folder, args.sizes, args.seed)
        for row in all_rows(args.sizes):
            report["results"].append(run_row(row, args))
            if args.out:
                write(args.out, report)
    results = report["results"]
    print(table(results))
    failed = failure_list(results)
    for line in failed + missed_list(results) + doubtful_list(results):
        print(f"\n{line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
