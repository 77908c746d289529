"""What was trained, and how the runs differ."""

from __future__ import annotations

import dataclasses
import shlex

from zoominnet.config import words_of
from zoominnet.reporting.markup import escape, paragraph, run_name, table
from zoominnet.reporting.material import Material, Run
from zoominnet.rules import option

_OF_NO_INTEREST = {"out", "resume", "debug", "device", "cache", "cache_folder", "workers", "loader_timeout"}
"""Options that change nothing that a model learns."""


def build(material: Material) -> str:
    rows = []
    for i, run in enumerate(material.runs):
        info, config = run.detector.info, run.config
        teacher = "" if not run.is_student else (config.teacher if run.distils else "none")
        if teacher == "train":
            teacher = f"{config.teacher_model}, trained first"
        epochs = config.epochs if run.is_student else config.teacher_epochs or config.epochs
        row = (run.path, info.name, info.backbone, teacher, config.data, epochs, config.seed)
        rows.append([run_name(i, run.label), *(escape(each) for each in row)])
    classes = [f"run-{i}" for i in range(len(rows))]
    columns = ("run", "path", "model", "backbone", "learnt from", "trained on", "epochs", "seed")
    parts = [table(columns, rows, classes=classes, text_columns=6)]
    for i, run in enumerate(material.runs):
        parts += [f'<p class="note run-{i}">{run_name(i, run.label)}: {escape(note)}</p>' for note in run.notes]
    if len(material.runs) > 1:
        parts.append(_differences(material.runs))
    for i, run in enumerate(material.runs):
        command = shlex.join(["python", "-m", "zoominnet.train", *words_of(run.config)])
        versions = f"<p>{escape(run.versions)}</p>" if run.versions else ""
        parts.append(
            f'<details class="run-{i}"><summary>{run_name(i, run.label)}: its command</summary>{versions}'
            f"<pre>{escape(command)}</pre></details>"
        )
    return "".join(parts)


def _differences(runs: list[Run]) -> str:
    rows = []
    for each in dataclasses.fields(runs[0].config):
        values = [str(getattr(run.config, each.name)) for run in runs]
        if each.name not in _OF_NO_INTEREST and len(set(values)) > 1:
            rows.append([f"<code>{escape(option(each.name))}</code>", *map(escape, values)])
    if not rows:
        return paragraph("The runs have the same options.")
    columns = ("option", *(run_name(i, run.label) for i, run in enumerate(runs)))
    return table(columns, rows, text_columns=len(columns), caption="Options in which the runs differ")
