"""The tables as lists of runs, and what is made of their scores; nothing is trained."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from zoominnet.config import TrainConfig, words_of
from zoominnet.data import SyntheticScenes
from zoominnet.engine.optim import Schedule
from zoominnet.reproduce import ReproduceConfig, draw, reproduce, selected, with_options
from zoominnet.reproduction.figures import colours_of, mean_curve
from zoominnet.reproduction.items import ITEMS
from zoominnet.reproduction.items.table3 import FA_CSKD_ROW, SNET_ROW, TABLE_3, TNET_ROW
from zoominnet.reproduction.plan import Item, Row, Training
from zoominnet.reproduction.runs import ReproductionError, Run, runs_of
from zoominnet.reproduction.scales import SCALES
from zoominnet.reproduction.tables import differences, gain, markdown, results_of
from zoominnet.train import parse

QUIET = Console(quiet=True)
TEACHER = Training("teacher", {"student": "none"})
PLAIN = Row("plain", Training("plain", {"student": "snet", "distill": False}), (0.100, 0.05))
TAUGHT = Row("taught", Training("taught", {"student": "snet"}, TEACHER), (0.125, 0.06), against=PLAIN)
EARLY = Row("taught, halfway", TAUGHT.training, after=Fraction(1, 2), against=PLAIN)
TABLE = Item("A table", ("AP", "AP_S"), (PLAIN, TAUGHT), more=(EARLY,))


def runs_in(out: Path, item: Item = TABLE, seeds: int = 2, **options: Any) -> list[Run]:
    scale = dataclasses.replace(SCALES["small"].config, **options)
    return runs_of(item.trainings(range(seeds)), scale, out)


def pretend(run: Run, scores: dict[int, float | None], seconds: float = 60.0) -> None:
    """The files of a finished run that was validated after the epochs of `scores`."""
    folder = run.folder / run.phase
    folder.mkdir(parents=True)
    lines = [{"kind": "train", "step": 1, "epoch": 0, "loss": 1.0}]
    lines += [
        {"kind": "val", "step": epoch + 1, "epoch": epoch, **dict.fromkeys(("AP", "AP50", "AP_S"), score)}
        for epoch, score in scores.items()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.folder / "config.json").write_text(json.dumps(run.config.settled().as_dict()))
    row = {"AP": list(scores.values())[-1], "gflops": 1.5}
    (run.folder / "result.json").write_text(json.dumps({"models": {run.phase: row}}))
    run.note({"seconds": seconds, "commit": "0123456789ab"})


def test_gains_are_those_that_the_paper_states() -> None:
    """Section 3.5.2 puts the gains over SNet in words."""
    ap = {row.label: row.paper[0] for row in TABLE_3.rows if row.paper}
    stated = {
        "SNet + CSKD": 0.045,
        "SNet + LA": 0.1261,
        "SNet + LA + CSKD": 0.2162,
        "SNet + FA": 0.3513,
        "SNet + FA + CSKD": 0.4594,
        "SNet + FA_ThinHead": 0.2613,
        "SNet + FA_ThinHead + CSKD": 0.2793,
        "TNet (2x image)": 0.954,
    }
    for label, share in stated.items():
        assert ap[label] / ap[SNET_ROW.label] - 1 == pytest.approx(share, abs=1e-3)


def test_a_part_of_a_table_is_of_use() -> None:
    """Teachers before those that they teach, every row once before any is repeated, and the paper's rows before ours."""
    order = [(training.name, seed) for training, seed in TABLE_3.trainings(range(3))]
    assert order[0] == ("teacher", 0)
    assert order.count(("teacher", 0)) == 1
    paper = [seed for name, seed in order if name in {row.training.name for row in TABLE_3.rows} and name != "teacher"]
    assert paper == [0] * 8 + [1] * 8 + [2] * 8
    assert order[25][0] == TABLE_3.more[0].training.name
    assert len(order) == len(set(order)) == 1 + 8 * 3 + len({row.training.name for row in TABLE_3.more}) * 3


def test_one_name_is_one_training() -> None:
    """Tables share runs by name."""
    known: dict[str, Any] = {}
    for item in ITEMS.values():
        for training, _ in item.trainings(range(1)):
            options = (training.options, training.derived(SCALES["paper"].config))
            assert known.setdefault(training.name, options) == options
        labels = [row.label for row in (*item.rows, *item.more)]
        assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("scale", SCALES)
def test_each_run_is_a_command_line(scale: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(SCALES[scale].config, data="DATA", decay_at=(), mask_threshold=0.25)
    for item in ITEMS.values():
        for run in runs_of(item.trainings(range(2)), config, tmp_path):
            assert parse(words_of(run.config)) == run.config


def test_runs_share_data_and_teacher_and_differ_by_their_seed(tmp_path: Path) -> None:
    teacher, *others = runs_in(tmp_path, Item("", ("AP",), (TAUGHT, PLAIN)))
    assert [run.name for run in others] == ["taught seed 0", "plain seed 0", "taught seed 1", "plain seed 1"]
    assert [run.config.seed for run in others] == [0, 0, 1, 1]
    assert {run.config.data_seed for run in (teacher, *others)} == {0}
    assert [run.teacher for run in others] == [teacher, None, teacher, None]
    assert others[0].config.teacher == str(tmp_path / "teacher")
    assert not others[1].config.uses_teacher


def test_scores_by_hand(tmp_path: Path) -> None:
    runs = runs_in(tmp_path, epochs=4, val_every=2)
    scores = {
        ("plain", 0): (0.05, 0.20),
        ("plain", 1): (0.10, 0.30),
        ("taught", 0): (0.15, 0.25),
        ("taught", 1): (0.20, 0.36),
    }
    for run in runs:
        early, late = scores.get((run.training.name, run.seed), (0.3, 0.4))
        pretend(run, {1: early, 3: late})
    found = results_of(TABLE, runs, SCALES["small"].config, QUIET)
    plain, taught, halfway = found["rows"]
    assert [run["seed"] for run in plain["runs"]] == [0, 1]
    assert (plain["mean"]["AP"], plain["standard_deviation"]["AP"]) == (0.25, 0.0707)  # 0.05 * sqrt(2)
    assert (taught["mean"]["AP"], halfway["mean"]["AP"]) == (0.305, 0.175)
    # 0.25 / 0.20 and 0.36 / 0.30, seed by seed
    assert taught["gain"] == {"mean": 0.225, "standard_deviation": 0.0354}
    assert taught["paper_gain"] == 0.25
    assert "gain" not in plain
    about = {"command": "reproduce it", "device": "a CPU", "cores": 2, "torch": "9.9", "date": "2000-01-01"}
    lines = markdown({**about, "items": {"it": found}}, "it").splitlines()
    assert lines[5] == (
        "| taught | 128 | 1.5 | 2 | 0.305 ± 0.078 | 0.125 | 0.305 ± 0.078 | 0.060 | +22.5 ± 3.5 % | +25.0 % | plain |"
    )
    assert lines[-3] == (
        "`reproduce it`, a CPU, 2 cores, torch 9.9, 2000-01-01; 4 runs of 0.1 h in all, commit 0123456789ab."
    )
    assert "--optimizer adamw (paper: sgd)" in lines[-1]


def test_a_picture_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = runs_in(tmp_path, epochs=4, val_every=2)
    for run in runs:
        pretend(run, {1: 0.1 + 0.1 * run.seed, 3: 0.4})
    results = results_of(TABLE, runs, SCALES["small"].config, QUIET)
    plain, taught, halfway = results["rows"]
    assert plain["runs"][1]["curve"] == [(0.5, 0.2), (1.0, 0.4)]
    times, means = mean_curve(plain["runs"])
    assert (times, means) == ([0.5, 1.0], [pytest.approx(0.15), 0.4])
    other = {**plain, "label": "other"}
    colours = colours_of([plain, taught, other, halfway])
    assert colours[0] == colours[1] == colours[3] != colours[2]
    scenes = SyntheticScenes(4).split()
    pictures = []
    for costs in ((1.5, 1.5, 1.5), (1.5, 1.5, 3.5), (1.5, 2.5, 3.5)):
        rows = [{**row, "gflops": cost} for row, cost in zip(results["rows"], costs, strict=True)]
        assert draw("table3", {**results, "rows": rows}, [], scenes, tmp_path, QUIET) == ["table3.png"]
        with Image.open(tmp_path / "table3.png") as picture:
            assert picture.width > 1000
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
            pictures.append(picture.tobytes())
    assert pictures[0] == pictures[1] != pictures[2]  # row by row, without the costs, where most are alike
    unmeasured = {**plain, "mean": {"AP": None}}
    assert draw("table3", {**results, "rows": [unmeasured]}, [], scenes, tmp_path, QUIET) == ["table3.png"]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = io.StringIO()
    assert draw("table3", results, [], scenes, tmp_path, Console(file=text, width=200)) == []
    assert "the picture of a table needs the package matplotlib" in text.getvalue()


def test_a_table_of_which_little_is_done(tmp_path: Path) -> None:
    """Rows without runs are empty, one without boxes to measure on has no mean, one seed has no deviation."""
    runs = runs_in(tmp_path)
    for run in runs:
        if run.training.name == "plain":
            pretend(run, {0: None if run.seed else 0.2})
    found = results_of(TABLE, runs, SCALES["small"].config, QUIET)["rows"]
    assert (found[0]["mean"]["AP"], found[0]["standard_deviation"], len(found[0]["runs"])) == (0.2, {}, 2)
    assert (found[1]["mean"], found[1]["runs"], found[1]["gain"]) == ({}, [], None)


def test_fine_tuning_as_the_paper_says(tmp_path: Path) -> None:
    """Section 3.5.5: 10 epochs, at the rate of the 20th epoch and a tenth of it after three, or at a tenth of it at once."""
    runs = runs_of(ITEMS["table9"].trainings(range(1)), SCALES["paper"].config, tmp_path)
    first, second = (run.config for run in runs if run.training.name.startswith("fine-tune"))
    assert (first.epochs, second.epochs) == (10, 10)
    for config, rates in ((first, [4e-4] * 3 + [4e-5] * 7), (second, [4e-5] * 10)):
        schedule = Schedule.from_config(config, 100, config.epochs)
        assert [schedule.at(100 * epoch + 50) for epoch in range(10)] == pytest.approx(rates)
        assert schedule.at(0) == pytest.approx(rates[0])
        assert config.init_from_teacher
        assert not config.distils
    early, late = (row.after for row in ITEMS["table9"].rows if row.label.startswith("lr1"))
    assert (early, late) == (Fraction(1, 2), 1)


def test_what_the_scales_say_is_the_papers_or_said_to_differ(tmp_path: Path) -> None:
    assert differences(SCALES["paper"].config) == []
    runs = {
        run.training.name: run.config for run in runs_of(TABLE_3.trainings(range(1)), SCALES["paper"].config, tmp_path)
    }
    paper = TrainConfig(
        student="fa", teacher=str(tmp_path / "teacher"), out=tmp_path / "fa-cskd-seed0", check_teacher=False
    )
    assert runs["fa-cskd"] == dataclasses.replace(paper, val_every=5, log_every=50)
    small = SCALES["small"]
    taught = runs_of(TABLE_3.trainings(range(1)), small.config, tmp_path, small.taught)
    assert {run.config.lambda_distill for run in taught if run.teacher} == {"auto"}
    assert {run.config.lambda_distill for run in taught if not run.teacher} == {0.01}


def test_a_folder_with_runs_by_other_options_is_refused(tmp_path: Path) -> None:
    for run in runs_in(tmp_path, lr=0.5):
        pretend(run, {0: 0.1})
    assert all(run.done() for run in runs_in(tmp_path, lr=0.5, workers=7))
    with pytest.raises(ReproductionError, match=r"--lr \(was 0.5, is 0.25\); name another --out") as error:
        runs_in(tmp_path, lr=0.25)[0].done()
    assert "\n" not in str(error.value)


def test_trainings_are_chosen_with_the_teachers_that_they_need(tmp_path: Path) -> None:
    runs = runs_of(TABLE_3.trainings(range(2)), SCALES["small"].config, tmp_path)
    names = [run.name for run in selected(runs, ["snet", FA_CSKD_ROW.training.name])]
    assert names == [TNET_ROW.training.name, "snet seed 0", "fa-cskd seed 0", "snet seed 1", "fa-cskd seed 1"]
    with pytest.raises(ReproductionError, match="--only fb: no such training; these are teacher, snet"):
        selected(runs, ["fb"])


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (ReproduceConfig(()), [], "no item: name one or more of table3"),
        (ReproduceConfig(("table3",), scale="paper"), [], r"needs VisDrone's folder; add  -- --data FOLDER"),
        (ReproduceConfig(("table3",), seeds=0), [], "--seeds: 0 is not at least 1"),
        (ReproduceConfig(("table3",), budget=-1.0), [], "--budget: -1.0 is not positive"),
        (ReproduceConfig(("table3",)), ["--student", "la"], "--student: each run of a table has its own; leave it out"),
        (ReproduceConfig(("table3",)), ["--val-fraction", "0.2"], "--val-fraction: a table needs data with a split"),
        (ReproduceConfig(("table3",)), ["--seed", "3"], "--seed: each run of a table has its own; leave it out"),
        (ReproduceConfig(("table3",)), ["--lr", "-1"], "--lr: -1.0 is not positive"),
    ],
)
def test_what_cannot_be_reproduced(config: ReproduceConfig, options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        reproduce(dataclasses.replace(config, out=tmp_path / "out"), options, console=QUIET)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_options_of_training_reach_every_run(tmp_path: Path) -> None:
    scale = with_options(SCALES["small"].config, ["--no-fused-kernels", "--epochs", "3", "--synthetic-zoom", "5"])
    assert isinstance(scale, TrainConfig)
    for run in runs_of(TABLE_3.trainings(range(1)), scale, tmp_path):
        assert (run.config.fused_kernels, run.config.epochs, run.config.synthetic_zoom) == (False, 3, 5.0)


def test_a_gain_is_seed_by_seed_but_over_a_teacher() -> None:
    """A seed that is not done yet is not made up by another's; a teacher's one run is compared with each."""

    def row(once: bool, *scores: float) -> dict[str, Any]:
        return {"once": once, "runs": [{"seed": seed, "AP": ap} for seed, ap in enumerate(scores)]}

    base = row(False, 0.2, 0.25, 0.1)
    assert gain(row(False, 0.3), base) == {"mean": 0.5}
    assert gain(row(False, 0.3, 0.3), base) == {"mean": 0.35, "standard_deviation": 0.2121}  # +50 %, +20 %
    assert gain(row(True, 0.4), base) == {"mean": 1.5333, "standard_deviation": 1.2858}  # +100 %, +60 %, +300 %
    assert gain(row(True, 0.4), row(True, 0.2)) == {"mean": 1.0}
    assert gain(row(False), base) is None
