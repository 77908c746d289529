"""What a table's runs scored, as JSON and as Markdown beside the paper's figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from zoominnet.config import MAY_CHANGE, PROFILES, TrainConfig
from zoominnet.reproduction.plan import Item, Row
from zoominnet.reproduction.runs import Run
from zoominnet.rules import beside_fields, flat, option

NO_MATTER_OF_PROTOCOL = (
    "profile",
    "data",
    "seed",
    "data_seed",
    "val_every",
    "log_every",
    "checkpoint_every",
    "amp",
    "fused_kernels",
)


def results_of(item: Item, runs: Sequence[Run], scale: TrainConfig, console: Console) -> dict[str, Any]:
    """JSON-ready: the item's rows with what is done of their runs."""
    rows = [row_of(row, item, runs, console) for row in (*item.rows, *item.more)]
    for row, each in zip((*item.rows, *item.more), rows, strict=True):
        if row.against is not None:
            each["against"] = row.against.label
            each["gain"] = gain(each, row_of(row.against, item, runs, console))
            if row.paper and row.against.paper:
                each["paper_gain"] = round(row.paper[0] / row.against.paper[0] - 1, 4)
    return {"title": item.title, "differs": differences(scale), "rows": rows}


def row_of(row: Row, item: Item, runs: Sequence[Run], console: Console) -> dict[str, Any]:
    """One row: each run's scores, their mean and standard deviation."""
    own = [run for run in runs if run.training.name == row.training.name and run.done()]
    names = ("AP50", *item.scores)
    measured = []
    values: dict[str, list[float]] = {name: [] for name in names}
    for run in own:
        scores = run.scores(row, console)
        rounded = {name: None if (score := scores[name]) is None else round(score, 4) for name in names}
        for name, score in rounded.items():
            values[name] += [] if score is None else [score]
        commit = run.attempts[-1].get("commit") if run.attempts else None
        measured.append(
            {
                "seed": run.seed,
                **rounded,
                "run": run.folder.name,
                "seconds": round(run.seconds),
                "commit": commit,
                "curve": run.curve(),
            }
        )
    mean = {name: round(statistics.mean(own), 4) for name, own in values.items() if own}
    spread = {name: round(statistics.stdev(own), 4) for name, own in values.items() if len(own) > 1}
    example = own[0] if own else None
    return {
        "label": row.label,
        "once": row.training.once,
        "image_size": None if example is None else example.image_size(row.side),
        "gflops": None if example is None else round(example.result["gflops"] * float(row.side) ** 2, 4),
        "mean": mean,
        "standard_deviation": spread,
        "paper": None if row.paper is None else dict(zip(item.scores, row.paper, strict=True)),
        "runs": measured,
    }


def gain(row: dict[str, Any], other: dict[str, Any]) -> dict[str, float] | None:
    """By how much a row's AP is over another's, relative: mean and standard deviation, seed by seed, or over all seeds of
    the one where the other has one run for all; None where there is nothing to compare."""
    own, base = ({run["seed"]: run["AP"] for run in each["runs"] if run["AP"]} for each in (row, other))
    if not own or not base:
        return None
    only = row["once"] or other["once"]
    pairs = (
        [(a, b) for a in own.values() for b in base.values()] if only else [(own[s], base[s]) for s in own if s in base]
    )
    if not pairs:
        return None
    ratios = [a / b - 1 for a, b in pairs]
    found = {"mean": round(statistics.mean(ratios), 4)}
    if len(ratios) > 1:
        found["standard_deviation"] = round(statistics.stdev(ratios), 4)
    return found


def differences(scale: TrainConfig) -> list[str]:
    """The options of all runs in which they differ from the paper's, each with both values."""
    paper = PROFILES["paper"]
    found = []
    for name, beside in beside_fields(scale):
        own, theirs = getattr(scale, name), getattr(paper, name)
        if own == theirs or MAY_CHANGE in beside or name in NO_MATTER_OF_PROTOCOL:
            continue
        if name.startswith("synthetic") and scale.data != "synthetic":
            continue
        found.append(f"{option(name)} {text(own)} (paper: {text(theirs)})")
    return found


def text(value: Any) -> str:
    return " ".join(map(str, flat(value))) if isinstance(value, tuple) else str(value)


def markdown(result: dict[str, Any], name: str) -> str:
    """The table of an item, and how it came about; `result` is what ``results.json`` holds."""
    results = result["items"][name]
    rows = [row for row in results["rows"] if row["runs"] or row["paper"]]
    scores = list(next(row["paper"] for row in rows if row["paper"] is not None))
    head = ["model", "px", "GFLOPs", "runs"]
    for name in scores:
        head += [name, "paper"]
    head += ["gain in AP", "paper", "over"]
    lines = [f"### {results['title']}", "", _line(head), _line(["---"] * len(head))]
    for row in rows:
        cells = [row["label"], row["image_size"] or "", _number(row["gflops"]), len(row["runs"])]
        for name in scores:
            cells += [plus_minus(row["mean"].get(name), row["standard_deviation"].get(name))]
            cells += ["" if row["paper"] is None else f"{row['paper'][name]:.3f}"]
        own = row.get("gain")
        cells += [percent(own["mean"], own.get("standard_deviation")) if own else ""]
        cells += [percent(row["paper_gain"]) if "paper_gain" in row else "", row.get("against", "")]
        lines.append(_line(cells))
    lines += [
        "",
        caption(result, rows),
        "",
        "What differs from the paper's protocol: " + "; ".join(results["differs"]) + ".",
    ]
    return "\n".join(lines) + "\n"


def caption(result: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """By which command, where, when and at which commits the runs of some rows were made."""
    own = {run["run"]: run for row in rows for run in row["runs"]}.values()
    commits = dict.fromkeys(str(run["commit"]) for run in own)
    return (
        f"`{result['command']}`, {result['device']}, {result['cores']} cores, torch {result['torch']}, {result['date']}; "
        f"{len(own)} runs of {sum(run['seconds'] for run in own) / 3600:.1f} h in all, "
        f"{'commits' if len(commits) > 1 else 'commit'} {', '.join(commits)}."
    )


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.1f}"


def plus_minus(mean: float | None, spread: float | None) -> str:
    """A score, with its standard deviation where there is one."""
    return "" if mean is None else f"{mean:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def percent(share: float, spread: float | None = None) -> str:
    """A relative difference."""
    return f"{100 * share:+.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}") + " %"
