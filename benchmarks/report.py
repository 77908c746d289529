"""Makes the tables of README.md, benchmarks/README.md and the pages in docs/ from the results in benchmarks/results/.

pytest benchmarks/ --benchmark-only --benchmark-json=raw.json
python benchmarks/report.py --take raw.json    # keeps medians and quartiles in benchmarks/results/, makes the tables
python benchmarks/report.py --check            # exit status 1 where a table is not what the results say
python benchmarks/report.py --show raw.json    # the tables of such runs alone, printed, or written to the file --out
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DEVICES = ("cpu", "cuda")
OURS = ("native", "triton")
COMMON = ("device", "hardware", "threads", "versions", "commit", "boxes")
OF_EACH = ("op", "shape", "sizes", "dtype", "direction", "bytes", "rounds", "rivals", "left_out")
TRAINING_STEP = "training step"
OF_EACH_STEP = (
    *("op", "shape", "sizes", "dtype", "batch", "rounds", "rivals", "left_out"),
    *("flops", "flops_per_second", "breakdown", "decode"),
)
NO_GPU = "No GPU has run these benchmarks yet: there are no figures for CUDA. `make gpu-check` makes them."


@dataclass(frozen=True)
class Target:
    """What is to be reached on a device.

    Attributes:
        device, op, shape, direction: of the benchmark.
        what: "eager", "compiled" or "reference", at least `bound` times as fast as that; "copy", at least that share of
            the speed of a copy of the bytes that must be moved; "seconds" or "bytes" (extra memory), at most.
        bound: see there.
    """

    device: str
    op: str
    shape: str
    direction: str
    what: str
    bound: float

    def describe(self) -> str:
        """As a cell of a table."""
        if self.what == "seconds":
            return f"≤ {time(self.bound)}"
        if self.what == "bytes":
            return f"≤ {memory(self.bound)} extra"
        if self.what == "copy":
            return f"≥ {self.bound:.0%} of copy bandwidth"
        return f"≥ {self.bound:g} x {NAMES.get((self.op, self.what), self.what)}"

    def reached(self, benchmark: dict[str, Any]) -> str:
        """ "met" or "missed", or why neither can be told."""
        ours = best(benchmark)
        if self.what == "seconds":
            return verdict(seconds(ours) <= self.bound)
        if self.what == "bytes":
            return "not measured" if ours["extra_memory"] is None else verdict(ours["extra_memory"] <= self.bound)
        found = ratio(benchmark, self.what)
        return "not measured" if found is None else verdict(found >= self.bound)


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"


NAMES = {("max_iou_assign", "eager"): "torchvision", ("akdp_mask, dense", "reference"): "chunked eager"}
MASK, DENSE, ASSIGN = ("akdp_mask", "akdp_mask, dense", "max_iou_assign")
LOSS, UPSAMPLE = ("pa_l2_loss", "LA, P3", "both"), ("upsample_nearest2x with add", "P3", "both")
FOCAL = ("sigmoid_focal_loss", "fa, 512 px, 4 images", "both")
TARGETS = [
    Target("cpu", MASK, "1024 px, 54 boxes", "forward", "eager", 700),
    Target("cpu", MASK, "1024 px, 54 boxes", "forward", "compiled", 110),
    Target("cpu", MASK, "1024 px, 2000 boxes", "forward", "bytes", 8e6),
    Target("cpu", DENSE, "1024 px, 54 boxes", "forward", "reference", 8),
    Target("cpu", ASSIGN, "1024 px, 54 boxes", "forward", "eager", 150),
    Target("cpu", *LOSS, "eager", 12),
    Target("cpu", *LOSS, "compiled", 5),
    Target("cpu", *FOCAL, "eager", 5),
    Target("cpu", *FOCAL, "compiled", 2),
    Target("cpu", *UPSAMPLE, "eager", 1.2),
    Target("cuda", MASK, "1024 px, 16 images", "forward", "seconds", 40e-6),
    Target("cuda", MASK, "1024 px, 16 images", "forward", "eager", 300),
    Target("cuda", MASK, "1024 px, 16 images", "forward", "compiled", 60),
    Target("cuda", MASK, "1024 px, 16 images of 2000 boxes", "forward", "bytes", 32e6),
    Target("cuda", DENSE, "1024 px, 54 boxes", "forward", "compiled", 10),
    Target("cuda", ASSIGN, "1024 px, 16 images", "forward", "seconds", 80e-6),
    Target("cuda", *LOSS, "copy", 0.85),
    Target("cuda", *FOCAL, "compiled", 1),
    Target("cuda", *UPSAMPLE, "copy", 0.9),
]


def take(*raws: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of the JSON of pytest-benchmark, what is kept: a device's name to its results, and "train-step-" with that name to
    those of the training step. Numbers have four digits.

    Several runs, of some of the files each, are put together; where two have the same benchmark, the first one's stays.

    Raises:
        SystemExit: they are not of the same commit, machine, versions and number of threads.
    """
    kept: dict[str, dict[str, Any]] = {}
    seen = set()
    for raw in raws:
        for info in (benchmark["extra_info"] for benchmark in raw["benchmarks"]):
            if "rivals" not in info:
                continue
            common = {key: info[key] for key in COMMON}
            step = info["op"] == TRAINING_STEP
            command = f"pytest benchmarks/{'bench_train_step.py' * step} --benchmark-only --threads {info['threads']}"
            if step:
                command += f" --before {info['before']}" if info["before"] else ""
                command += " --compile" if "native, compiled" in info["rivals"] else ""
            head = {"command": command, "date": raw["datetime"][:10], **common}
            results = kept.setdefault(f"{'train-step-' * step}{info['device']}", {**head, "benchmarks": []})
            if other := [key for key in COMMON if results[key] != info[key]]:
                raise SystemExit(
                    f"report: runs that differ in {', '.join(other)} cannot be put together:"
                    f" {', '.join(f'{results[key]} and {info[key]}' for key in other)}"
                )
            name = (info["device"], info["op"], info["shape"], info["dtype"], info["direction"])
            if name not in seen:
                seen.add(name)
                keys = OF_EACH_STEP if step else OF_EACH
                results["benchmarks"].append(rounded({key: info[key] for key in keys}))
    for results in kept.values():
        results["benchmarks"].sort(key=lambda b: b["op"])
    return kept


def rounded(value: Any) -> Any:
    """The same with four significant digits in each fraction."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return value


def seconds(rival: dict[str, Any]) -> float:
    """Median: the device's own where it was measured, else the host's."""
    return rival.get("device_median", rival["median"])


def best(benchmark: dict[str, Any]) -> dict[str, Any]:
    """The faster of our kernels, or the reference where none ran."""
    rivals = benchmark["rivals"]
    return min((rivals[name] for name in OURS if name in rivals), key=seconds, default=rivals["reference"])


def ratio(benchmark: dict[str, Any], name: str) -> float | None:
    """How many times as long as ours a rival takes; None where it took no part."""
    rival = benchmark["rivals"].get(name)
    return None if rival is None else seconds(rival) / seconds(best(benchmark))


TURNED_BY_NOISE = 1.1
"""Ratio of two times below which the next run can turn their order: dense masks of 64 px took compiled code 1.04 times as
long as ours in one run (51a8399), 0.96 times in the next (927c151)."""


def fastest(results: dict[str, Any], operation: str) -> str:
    """What a backend `auto` should take for an operation by these results, dense forms and small shapes included.

    That is the quickest by the geometric mean over the shapes, of forward and backward together where there is a
    gradient; but of "native" and "triton" only one that ran at every shape, by that mean beats ``torch.compile``, and is
    nowhere slower than it by more than `TURNED_BY_NOISE`.
    """
    benchmarks = [b for b in results["benchmarks"] if b["op"].split()[0].rstrip(",") == operation]
    rivals = [b["rivals"] for b in benchmarks if b["direction"] == "both"] or [b["rivals"] for b in benchmarks]
    logarithms = {}
    for name in ("reference", *OURS):
        if all(rival.get(name) for rival in rivals):
            to_compiled = [seconds(r[name]) / seconds(r["compiled"]) for r in rivals if r.get("compiled")]
            beats = math.prod(to_compiled) < 1 and max(to_compiled) < TURNED_BY_NOISE if to_compiled else True
            if name == "reference" or beats:
                logarithms[name] = sum(math.log(seconds(rival[name])) for rival in rivals)
    return min(logarithms, key=logarithms.__getitem__)


def time(value: float) -> str:
    unit, factor = next((u, f) for u, f in (("s", 1), ("ms", 1e-3), ("us", 1e-6)) if value >= f or u == "us")
    return f"{value / factor:.3g} {unit}"


def memory(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.3g} MB" if value >= 1e5 else "< 0.1 MB"


def times(benchmark: dict[str, Any], name: str) -> str:
    """A cell: the ratio to ours."""
    found = ratio(benchmark, name)
    if found is None:
        return benchmark["left_out"].get(name, "-")
    once = " (1 call)" if benchmark["rivals"][name]["calls"] == 1 else ""
    return f"{found:.0f} x{once}" if found >= 100 else f"{found:.3g} x{once}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def caption(results: dict[str, Any]) -> str:
    """Where the figures come from."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    threads = "" if results["device"] == "cuda" else f", {results['threads']} thread(s) for every rival"
    boxes = "; boxes made up, those of the data set are not there" if results.get("boxes") == "made up" else ""
    return (
        f"`{results['command']}`, {results['hardware']}{threads}; {versions}; {results['date']}, commit"
        f" {results['commit']}{boxes}."
    )


def find(results: dict[str, Any], target: Target) -> dict[str, Any] | None:
    wanted = (target.op, target.shape, target.direction)
    return next((b for b in results["benchmarks"] if (b["op"], b["shape"], b["direction"]) == wanted), None)


def extra(benchmark: dict[str, Any], name: str) -> str:
    rival = best(benchmark) if name == "ours" else benchmark["rivals"].get(name)
    return "-" if rival is None else memory(rival["extra_memory"])


def targets_of(results: dict[str, Any]) -> list[str]:
    """The table of the targets of a device."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for target in TARGETS:
        if target.device != results["device"]:
            continue
        benchmark = find(results, target)
        told = "not run" if benchmark is None else target.reached(benchmark)
        key = (target.op, target.shape, target.direction)
        if key in rows:
            rows[key][-1] += f"; {target.describe()}: {told}"
            continue
        cells = ["-"] * 6
        if benchmark is not None:
            cells = [
                time(seconds(best(benchmark))),
                times(benchmark, "eager"),
                times(benchmark, "reference"),
                times(benchmark, "compiled"),
                extra(benchmark, "ours"),
                extra(benchmark, "eager"),
            ]
        rows[key] = [f"`{target.op.split()[0].rstrip(',')}`{name_of(key)}", *cells, f"{target.describe()}: {told}"]
    header = ["", "ours", "eager", "chunked", "compiled", "extra memory", "eager's", "target"]
    return table(header, rows.values())


def name_of(key: tuple[str, str, str]) -> str:
    """What follows the operator's name in the first cell."""
    op, shape, direction = key
    rest = op[len(op.split()[0].rstrip(",")) :].removeprefix(",")
    return f"{rest}, {shape}{'' if direction == 'forward' else ', forward + backward'}"


def details_of(results: dict[str, Any]) -> list[str]:
    """The table of all benchmarks of a device."""
    rows = []
    for benchmark in results["benchmarks"]:
        ours = best(benchmark)
        rivals = benchmark["rivals"]
        which = next((name for name in OURS if rivals.get(name) is ours), "reference")
        spread = "" if "device_median" in ours else f" ({time(ours['q1'])} to {time(ours['q3'])})"
        rows.append(
            [
                benchmark["op"],
                benchmark["shape"],
                benchmark["direction"],
                f"{which} {time(seconds(ours))}{spread}",
                *(times(benchmark, name) for name in ("eager", "reference", "compiled")),
                memory(benchmark["bytes"]),
                f"{ratio(benchmark, 'copy'):.2%}"
                if ratio(benchmark, "copy") < 0.1
                else f"{ratio(benchmark, 'copy'):.0%}",
                extra(benchmark, "ours"),
                extra(benchmark, "eager"),
            ]
        )
    header = ["op", "shape", "pass", "ours, median and quartiles", "eager", "chunked", "compiled"]
    return table([*header, "bytes", "of a copy's speed", "extra memory", "eager's"], rows)


def speed_section(kept: dict[str, dict[str, Any]]) -> list[str]:
    """What README.md says."""
    lines: list[str] = []
    for device in DEVICES:
        if device in kept:
            lines += ["", *targets_of(kept[device]), "", caption(kept[device])]
    if not any(name.endswith("cuda") for name in kept):
        lines += ["", NO_GPU]
    return lines[1:]


def details_section(kept: dict[str, dict[str, Any]]) -> list[str]:
    """What benchmarks/README.md says."""
    lines: list[str] = []
    for device in DEVICES:
        if device in kept:
            lines += ["", f"### {device}", "", *details_of(kept[device]), "", caption(kept[device])]
    if not any(name.endswith("cuda") for name in kept):
        lines += ["", NO_GPU]
    return lines[1:]


def steps_section(kept: dict[str, dict[str, Any]]) -> list[str]:
    """What benchmarks/README.md says of the training step."""
    lines: list[str] = []
    for device in DEVICES:
        if (results := kept.get(f"train-step-{device}")) is not None:
            [sizes] = {benchmark["sizes"] for benchmark in results["benchmarks"]}
            lines += ["", f"### Training step, {device}", "", f"{sizes}.", "", *steps_of(results), ""]
            lines += [*breakdown_of(results), "", caption(results)]
    return lines[1:]


def steps_of(results: dict[str, Any]) -> list[str]:
    """The table of all rivals of the training step on a device."""
    rows = []
    for benchmark in results["benchmarks"]:
        rivals = benchmark["rivals"]
        ours = next(name for name in (*OURS, "reference") if name in rivals)
        flops = min(benchmark["flops"].values())
        floor = flops / benchmark["flops_per_second"]
        rows += [
            [
                f"`{benchmark['shape']}`, {benchmark['dtype']}",
                name,
                f"{time(rival['median'])} ({time(rival['q1'])} to {time(rival['q3'])})",
                f"{benchmark['batch'] / rival['median']:.3g}",
                f"{rival['median'] / rivals[ours]['median']:.3g} x",
                f"{rival['median'] / floor:.3g} x",
                memory(rival["extra_memory"]),
            ]
            for name, rival in sorted(rivals.items(), key=lambda item: item[1]["median"])
        ]
        rate = benchmark["flops_per_second"]
        work = f"{flops / 2e9:.4g} G multiply-adds at {rate / 2e9:.4g} G/s"
        rows.append([f"`{benchmark['shape']}`, {benchmark['dtype']}", f"floor: {work}", time(floor), *[""] * 4])
    header = ["student", "step", "time, median and quartiles", "images/s", "of ours", "of the floor", "extra memory"]
    return table(header, rows)


def breakdown_of(results: dict[str, Any]) -> list[str]:
    """The table of where the time of our step goes, and beside it what the loader takes."""
    benchmarks = results["benchmarks"]
    columns = []
    for benchmark in benchmarks:
        parts = dict(benchmark["breakdown"])
        steps, convolutions = parts.pop("steps"), parts.pop("convolutions")
        parts["the rest"] = steps - sum(parts.values())
        parts |= {"all": steps, "convolutions": convolutions, "all but convolutions": steps - convolutions}
        # Nothing at all: a GPU whose kernels torch's profiler may not see.
        cells = {
            name: f"{time(part)} ({part / steps:.1%})" if steps else "not profiled" for name, part in parts.items()
        }
        decode = benchmark["decode"]
        cells["decode, by one process of the loader"] = "not measured" if decode is None else time(decode["median"])
        columns.append(cells)
    header = ["part of ours", *(f"`{b['shape']}`, {b['dtype']}" for b in benchmarks)]
    return table(header, ([name, *(column[name] for column in columns)] for name in columns[0]))


Section = Callable[[dict[str, dict[str, Any]]], list[str]]


def models_section(_: dict[str, dict[str, Any]]) -> list[str]:
    """What the shipped students score alone and distilled, as `train_demo_models.py` has measured it."""
    about = json.loads((ROOT / "zoominnet" / "models" / "shipped" / "models.json").read_text(encoding="utf-8"))
    models = about["models"]
    students = [name for name in models if f"{name}-plain" in models]
    header = ["model", "input px", "GFLOPs", "AP alone", "AP distilled", "AP50 alone", "AP50 distilled"]
    rows = []
    for name in reversed(students):
        own, plain = models[name], models[f"{name}-plain"]
        scores = [f"{entry[score]:.3f}" for score in ("AP", "AP50") for entry in (plain, own)]
        rows.append([f"`{name}`", str(own["image_size"]), f"{own['gflops']:.2f}", *scores])
    teacher = models["demo-teacher"]
    scores = [f"{teacher['AP']:.3f}", "", f"{teacher['AP50']:.3f}", ""]
    rows.append(["`demo-teacher`", str(teacher["image_size"]), f"{teacher['gflops']:.2f}", *scores])
    made = about["made"]
    return [
        *table(header, rows),
        "",
        f"COCO AP on {made['test_scenes']} drawn scenes that none was trained on; one seed each. `{made['command']}`, "
        f"{made['hardware']}, {made['threads']} thread a training, torch {made['torch']}, {made['date']}.",
    ]


REPRODUCED = ("table3", "beyond", "teachers", "best", "table2", "table9")
"""In the order of docs/reproduction.md."""
TABLE_3 = RESULTS / "table3-small.json"


def reproduced(item: str) -> Section:
    """A table as `zoominnet.reproduce` has run it at the small scale."""

    def section(_: dict[str, dict[str, Any]]) -> list[str]:
        results = RESULTS / f"{item}-small.json"
        if not results.exists():
            return ["Not run yet."]
        from zoominnet.reproduction.tables import markdown  # needs more than the tables of the kernels do

        return markdown(json.loads(results.read_text(encoding="utf-8")), item).splitlines()

    return section


def deployment_section(_: dict[str, dict[str, Any]]) -> list[str]:
    """What deployed models keep, and how fast they are."""
    kept = RESULTS / "deployment-cpu.json"
    if not kept.exists():
        return ["Not run yet."]
    results = json.loads(kept.read_text(encoding="utf-8"))
    cells = []
    for row in results["rows"]:
        difference = row.get("difference")
        speed = {each["batch"]: each for each in row["speed"]}
        cells.append(
            [
                f"`{row['model']}`",
                row["what"],
                f"{row['AP']:.4f}",
                "" if difference is None else f"{difference['boxes']:.1g} px, {difference['scores']:.1g}",
                "" if "bytes" not in row else f"{row['bytes'] / 1e6:.2f} MB",
                f"{speed[1]['median_ms']:.1f} ms",
                f"{speed[16]['images_per_second']:.0f}",
            ]
        )
    return [
        *table(["model", "runs as", "AP", "largest difference", "file", "an image", "images/s, batch 16"], cells),
        "",
        f"`{results['command']}`, {results['device']}, {results['threads']} threads of {results['cores']} cores, torch "
        f"{results['torch']}, onnxruntime {results['onnxruntime']}, {results['date']}, commit {results['commit']}. AP of the "
        "drawn scenes named there, other ones than README's; the difference is of the best boxes of four scenes, from PyTorch's.",
    ]


def students_section(results: dict[str, dict[str, Any]]) -> list[str]:
    """What each student takes and scores, of the same runs and of the benchmarks on the CPU."""
    run = json.loads(TABLE_3.read_text(encoding="utf-8"))
    done = [row for row in run["items"]["table3"]["rows"] if row["runs"]]
    rows = {row["runs"][0]["run"].rpartition("-seed")[0] or row["runs"][0]["run"]: row for row in done}
    cpu = results["cpu"]
    timed = {b["shape"]: b["rivals"] for b in cpu["benchmarks"] if b["op"] == "inference"}
    cells = []
    for name in ("snet", "la", "fa-thin", "fa"):
        if name in rows and f"{name}-cskd" in rows:
            alone, distilled = rows[name], rows[f"{name}-cskd"]
            scores = [f"{row['mean'][score]:.3f}" for score in ("AP", "AP_S", "AP_L") for row in (alone, distilled)]
            took = time(seconds(timed[name]["native"])) if name in timed else "not run"
            gain = distilled["gain"]
            gained = f"{100 * gain['mean']:+.1f} ± {100 * gain['standard_deviation']:.1f} %"
            cells.append([f"`{name}`", took, *scores[:2], gained, *scores[2:]])
    if teacher := rows.get("teacher"):
        scores = [cell for score in ("AP", "AP_S", "AP_L") for cell in (f"{teacher['mean'][score]:.3f}", "")]
        took = time(seconds(timed["snet"]["teacher"])) if "snet" in timed else "not run"
        cells.append(["(`teacher`)", took, *scores[:2], "", *scores[2:]])
    of_each = ("alone", "distilled")
    header = ["`--student`", "an image", *(f"AP {each}" for each in of_each), "gain"]
    return [
        *table([*header, *(f"{score} {each}" for score in ("AP_S", "AP_L") for each in of_each)], cells),
        "",
        f"Scores: `{run['command']}`, {run['device']}, {run['cores']} cores, torch {run['torch']}, {run['date']}; drawn scenes "
        "at 128 px, teacher 256 px, means of three seeds, one of the teacher (`benchmarks/results/table3-small.json`). Time of "
        "an image: by another network, ResNet-18 of full width with 64 channels, at the same sizes without NMS, float32; its "
        "backbone, which all have, is most of it, and by a narrow one `fa` takes 1.9 times as long as `snet` "
        f"([deployment](deployment.md#half-and-eight-bits)). `{cpu['command']}`, {cpu['hardware']}, "
        f"{cpu['date']}, commit {cpu['commit']} (`benchmarks/results/kernels-cpu.json`).",
    ]


DOCUMENTS: tuple[tuple[str, str, Section], ...] = (
    ("README.md", "speed", speed_section),
    ("README.md", "models", models_section),
    ("benchmarks/README.md", "benchmarks", details_section),
    ("benchmarks/README.md", "training-step", steps_section),
    *(("docs/reproduction.md", item, reproduced(item)) for item in REPRODUCED),
    ("docs/deployment.md", "deployment", deployment_section),
    ("docs/students.md", "students", students_section),
)


def put(text: str, mark: str, lines: Sequence[str]) -> str:
    """`text` with `lines` in place of what stands between the marks of that name.

    Raises:
        SystemExit: it has no such marks.
    """
    begin, end = f"<!-- {mark}: made by benchmarks/report.py -->\n", f"<!-- {mark}: end -->\n"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"report: there are no lines {begin.strip()!r} and {end.strip()!r} to put the table between")
    return before + begin + "\n".join(lines) + "\n" + end + after


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The results of each device, as they are kept in a folder, by the keys of :func:`take`."""
    paths = {key: folder / name for device in DEVICES for key, name in files_of(device).items()}
    return {key: json.loads(path.read_text(encoding="utf-8")) for key, path in paths.items() if path.is_file()}


def files_of(device: str) -> dict[str, str]:
    """Where the results of a device are kept."""
    return {device: f"kernels-{device}.json", f"train-step-{device}": f"train-step-{device}.json"}


def write_results(folder: Path, kept: dict[str, dict[str, Any]]) -> None:
    """Keeps the results of each device, one benchmark a line."""
    for key, results in kept.items():
        head = json.dumps({key: value for key, value in results.items() if key != "benchmarks"}, indent=1)
        rows = ",\n".join(f"  {json.dumps(benchmark)}" for benchmark in results["benchmarks"])
        text = head[: -len("\n}")] + f',\n "benchmarks": [\n{rows}\n ]\n}}\n'
        (folder / files_of(results["device"])[key]).write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--take", type=Path, nargs="+", metavar="RAW", help="keep the results of these runs, and make the tables"
    )
    choice.add_argument("--show", type=Path, nargs="+", metavar="RAW", help="print the tables of these runs")
    choice.add_argument("--check", action="store_true", help="change nothing; exit status 1 where a table differs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where --show writes")
    options = parser.parse_args(arguments)
    if options.show:
        kept = take(*(json.loads(path.read_text(encoding="utf-8")) for path in options.show))
        text = "\n".join(["## Targets", "", *speed_section(kept), "", "## All", "", *details_section(kept), ""])
        if steps := steps_section(kept):
            text += "\n".join(["", *steps, ""])
        if options.out:
            options.out.write_text(text, encoding="utf-8")
        else:
            print(text, end="")
        return 0
    folder = root / "benchmarks" / "results"
    if options.take:
        write_results(folder, take(*(json.loads(path.read_text(encoding="utf-8")) for path in options.take)))
    kept = read_results(folder)
    differs = []
    for name, mark, section in DOCUMENTS:
        path = root / name
        text = path.read_text(encoding="utf-8")
        made = put(text, mark, section(kept))
        if made != text:
            differs += [name] * (name not in differs)
            if not options.check:
                path.write_text(made, encoding="utf-8")
    if options.check and differs:
        told = f"the tables of {', '.join(differs)} are not those of the results; run python benchmarks/report.py"
        print(f"report: {told}", file=sys.stderr)
        return 1
    print(f"report: {'changed ' + ', '.join(differs) if differs else 'all tables are those of the results'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
