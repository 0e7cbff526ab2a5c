#!/usr/bin/env python3
"""Runs retort and PyTorch alternately on the same work and prints a table of both."""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

TORCH_SIDE = Path(__file__).resolve().with_name("torch_side.py")
FORMATS = ("contiguous", "channels_last")
OURS = "retort"
MIN_STEPS, MAX_STEPS = 3, 2000
# Above this share of all cores, work of others makes a measurement doubtful.
OTHER_CPU = 0.05

TRAIN_MODELS = ("resnet8", "resnet20", "resnet56", "resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV2")
KD_PAIRS = (("resnet56", "resnet20"), ("resnet32x4", "resnet8x4"), ("wrn_40_2", "wrn_16_2"))
MAP_LOSSES = ("nst", "sp", "at", "fitnet", "vid", "ab", "ft", "fsp", "kdsvd", "ofd", "reviewkd")
LOSSES = ("crd", "rkd", "pkt", "cc", "ce", "label-smoothing", "kd", "dkd", *MAP_LOSSES)
SCALING_MODELS = ("resnet20", "resnet8x4")
SCALING_BATCHES = (1, 8, 64, 256)
SCALING_THREADS = (1, 2)
# What a ratio must reach at least, and what it should.
TARGETS = {
    "train": (1.5, 2.0), "kd": (2.0, 2.5), "loss:crd": (5.0, 10.0),
    **{f"loss:{name}": (2.0, 3.0) for name in ("nst", "sp", "rkd", "at", "pkt", "kd")},
}


@dataclasses.dataclass
class Row:
    """One line of the table: the same words start both sides."""

    group: str
    id: str
    words: list
    threads: int
    formats: tuple = FORMATS
    metric: str = "images_per_second"

    @property
    def faster_is_more(self):
        """Whether the metric is a speed, not a time."""
        return self.metric == "images_per_second"

    @property
    def targets(self):
        """(at least, goal), or nothing where none was set."""
        return TARGETS.get(self.id, TARGETS.get(self.group, (None, None)))


def image_words(batch):
    """Batch, image and classes of CIFAR-100."""
    return ["--batch", str(batch), "--image", "3x32x32", "--classes", "100"]


def train_row(group, row_id, model, batch, threads):
    """A training step."""
    words = ["train-step", "--model", model, *image_words(batch)]
    return Row(group, row_id, words, threads)


def kd_row(teacher, student, batch, threads):
    """A distillation step with the published recipe of KD."""
    words = ["kd-step", "--teacher", teacher, "--student", student, "--method", "kd"]
    return Row("kd", f"kd:{teacher}->{student}", words + image_words(batch), threads)


def loss_row(loss, batch, threads):
    """Value and gradient of one loss."""
    words = ["loss", "--loss", loss, "--batch", str(batch)]
    if loss == "crd":
        words += ["--rows", "50000", "--negatives", "16384", "--dim", "128"]
    formats = FORMATS if loss in MAP_LOSSES else FORMATS[:1]
    return Row("loss", f"loss:{loss}", words, threads, formats, "forward_backward_ms")


def all_rows(batch, threads):
    """Every row there is, in the order of the table."""
    rows = [train_row("train", f"train:{m}", m, batch, threads) for m in TRAIN_MODELS]
    rows += [kd_row(*pair, batch, threads) for pair in KD_PAIRS]
    rows += [loss_row(loss, batch, threads) for loss in LOSSES]
    for model in SCALING_MODELS:
        for b in SCALING_BATCHES:
            for t in SCALING_THREADS:
                rows.append(train_row("scaling", f"scaling:{model}/batch{b}/threads{t}", model, b, t))
    return rows


def chosen(rows, names):
    """The rows of the named sets or with the named ids."""
    unknown = set(names) - {r.group for r in rows} - {r.id for r in rows}
    if unknown:
        known = sorted({r.group for r in rows}) + [r.id for r in rows]
        sys.exit(f"unknown work {', '.join(sorted(unknown))}; known: {' '.join(known)}")
    return [r for r in rows if r.group in names or r.id in names]


def command(side, row, steps, args):
    """Command line of a side and what is added to its environment."""
    words = [*row.words, "--steps", str(steps), "--threads", str(row.threads)]
    if side == OURS:
        env = {"CANDLE_NUM_THREADS": "1", "RAYON_NUM_THREADS": str(row.threads)}
        return [args.retort, "bench", *words, "--json"], env
    return [args.python, str(TORCH_SIDE), *words, "--format", side], {}


def tail(text, lines=5):
    """The last lines of a text."""
    return "\n".join(text.strip().splitlines()[-lines:])


def busy_seconds():
    """(processor time of the whole system, of our finished processes), None where unknown."""
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, soft_irq, steal = map(int, fields)
    ticks = user + nice + system + irq + soft_irq + steal
    return ticks / os.sysconf("SC_CLK_TCK"), own.ru_utime + own.ru_stime


def measure(side, row, steps, args):
    """One process with the share of all cores that others used meanwhile."""
    before, start = busy_seconds(), time.monotonic()
    report = run(side, row, steps, args)
    after, wall = busy_seconds(), time.monotonic() - start
    if before and after:
        others = (after[0] - before[0]) - (after[1] - before[1])
        report["other_cpu"] = round(max(others, 0.0) / (wall * os.cpu_count()), 3)
    return report


def run(side, row, steps, args):
    """One process: its report, or {"failed": why}."""
    line, env = command(side, row, steps, args)
    try:
        done = subprocess.run(line, env=os.environ | env, capture_output=True, text=True,
                              timeout=args.timeout, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    if done.returncode != 0:
        return {"failed": f"exit code {done.returncode}: {tail(done.stderr)}"}
    try:
        report = json.loads(done.stdout)
        report[row.metric] = float(report[row.metric])
        return report
    except (ValueError, KeyError, TypeError) as error:
        return {"failed": f"no report ({error!r}) in: {tail(done.stdout)}"}


def steps_for(row, args):
    """As many timed steps as fill the wanted seconds, by one short run of PyTorch, else of ours."""
    if args.steps:
        return args.steps
    for side in (FORMATS[0], OURS):
        report = measure(side, row, MIN_STEPS, args)
        if "failed" not in report:
            value = report[row.metric]
            seconds = report["batch"] / value if row.faster_is_more else value / 1e3
            return min(max(round(args.seconds / seconds), MIN_STEPS), MAX_STEPS)
    return MIN_STEPS


def median_of(reports, key):
    """Median of a key over the rounds that did not fail, or None."""
    values = [r[key] for r in reports if r.get(key) is not None]
    return statistics.median(values) if values else None


def better_format(row, raw):
    """The memory format in which PyTorch is faster, or None if every one failed."""
    medians = {f: median_of(raw[f], row.metric) for f in row.formats}
    medians = {f: value for f, value in medians.items() if value is not None}
    if not medians:
        return None
    return (max if row.faster_is_more else min)(medians, key=medians.get)


def ratio(row, ours, torch):
    """How many times as fast as PyTorch we are."""
    if not ours or not torch:
        return None
    return ours / torch if row.faster_is_more else torch / ours


def summarise(row, raw):
    """Medians of both sides, ratio of the medians and the ratios of the single rounds."""
    best = better_format(row, raw)
    theirs = raw[best] if best else []
    ours, torch = median_of(raw[OURS], row.metric), median_of(theirs, row.metric)
    pairs = zip(raw[OURS], theirs)
    rounds = [ratio(row, a.get(row.metric), b.get(row.metric)) for a, b in pairs]
    return {
        "ours": ours,
        "torch": torch,
        "torch_format": best,
        "ratio": ratio(row, ours, torch),
        "round_ratios": rounds,
        "ours_peak_mb": median_of(raw[OURS], "peak_rss_mb"),
        "torch_peak_mb": median_of(theirs, "peak_rss_mb"),
    }


def failures(raw):
    """The first failure of every side that had one."""
    first = {}
    for side, reports in raw.items():
        for report in reports:
            if "failed" in report:
                first.setdefault(side, report["failed"])
    return first


def busiest(raw):
    """The largest share of all cores that others used during a process of this row."""
    shares = [r["other_cpu"] for reports in raw.values() for r in reports if "other_cpu" in r]
    return max(shares, default=None)


def run_row(row, args):
    """All rounds of one row, the sides taking turns."""
    steps = steps_for(row, args)
    raw = {side: [] for side in (OURS, *row.formats)}
    for number in range(args.rounds):
        for side, reports in raw.items():
            print(f"{row.id}: round {number + 1}/{args.rounds}, {side}", file=sys.stderr)
            reports.append(measure(side, row, steps, args))
    at_least, goal = row.targets
    return {
        "group": row.group, "id": row.id, "arguments": row.words, "threads": row.threads,
        "steps": steps, "metric": row.metric, "at_least": at_least, "goal": goal,
        **summarise(row, raw), "other_cpu": busiest(raw), "failures": failures(raw), "raw": raw,
    }


def speed(value, metric):
    """A cell with a speed or a time."""
    if value is None:
        return "failed"
    if metric == "images_per_second":
        return f"{value:.1f}"
    return f"{value:.2f} ms" if value >= 1 else f"{value:.4f} ms"


def number(value, digits):
    """A cell with a number, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def extent(ratios):
    """A cell with the smallest and the largest ratio of the rounds: how much the machine moved."""
    known = [r for r in ratios if r is not None]
    return f"{min(known):.2f} to {max(known):.2f}" if known else "-"


def table(results):
    """The results as Markdown."""
    lines = ["| work | ours img/s | PyTorch img/s (format) | ratio | single rounds | at least | goal "
             "| peak MB ours | peak MB PyTorch |",
             "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for r in results:
        torch = speed(r["torch"], r["metric"])
        torch += f" ({r['torch_format']})" if r["torch_format"] else ""
        cells = [r["id"], speed(r["ours"], r["metric"]), torch, number(r["ratio"], 2),
                 extent(r["round_ratios"]), number(r["at_least"], 1), number(r["goal"], 1),
                 number(r["ours_peak_mb"], 0), number(r["torch_peak_mb"], 0)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def failure_list(results):
    """Every side that failed, with the end of what it said."""
    return [f"failed: {r['id']}, {side}: {why}"
            for r in results for side, why in r["failures"].items()]


def doubtful_list(results):
    """Every row during which the machine was busy with something else."""
    return [f"doubtful: {r['id']}: others used {r['other_cpu']:.0%} of all cores meanwhile"
            for r in results if (r["other_cpu"] or 0) > OTHER_CPU]


def cpu_model():
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def first_line(words):
    """First line that a command prints, or None if it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else None


def setting(args):
    """Where and when this was measured."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "torch": first_line([args.python, "-c", "import torch; print(torch.__version__)"]),
        "retort": first_line([args.retort, "--version"]),
        "rounds": args.rounds,
    }


def write(path, content):
    """Writes JSON under a temporary name, then renames it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def at_least_one(text):
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, found {value}")
    return value


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME",
                        help="train, kd, loss, scaling, or single rows such as train:resnet20")
    parser.add_argument("--retort", required=True, help="the program to measure")
    parser.add_argument("--python", required=True, help="a Python that has torch")
    parser.add_argument("--rounds", type=at_least_one, default=5)
    parser.add_argument("--batch", type=at_least_one, default=64, help="of all sets but scaling")
    parser.add_argument("--threads", type=at_least_one, default=2, help="of all sets but scaling")
    parser.add_argument("--seconds", type=float, default=5.0,
                        help="timed seconds of a PyTorch process, but 3 to 2000 steps")
    parser.add_argument("--steps", type=at_least_one, help="fixed number of timed steps instead")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds a process may take")
    parser.add_argument("--out", help="JSON file with everything, written after every row")
    return parser.parse_args()


def main():
    """Measures the chosen rows; exit code 1 if a side failed."""
    args = parse()
    rows = chosen(all_rows(args.batch, args.threads), args.names)
    report = {"setting": setting(args), "results": []}
    for row in rows:
        report["results"].append(run_row(row, args))
        if args.out:
            write(args.out, report)
    print(table(report["results"]))
    failed = failure_list(report["results"])
    for line in failed + doubtful_list(report["results"]):
        print(f"\n{line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
