"""The page: head, sections, and what they share, in one file that asks for nothing from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from string import Template

from zoominnet.reporting.markup import escape, paragraph, run_name
from zoominnet.reporting.material import Material, NotShown
from zoominnet.reporting.sections import SECTIONS


def make_page(
    title: str, material: Material, sections: Sequence[str], *, progress: Callable[[str], None] = lambda name: None
) -> str:
    """The HTML of a report.

    Args:
        title: over it.
        material: what it is made of.
        sections: names in `SECTIONS`, in order.
        progress: called with the title of each section before it is made.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    parts, links = [], []
    for name in sections:
        section = SECTIONS[name]
        progress(section.title)
        try:
            inside = section.build(material)
        except NotShown as reason:
            inside = paragraph(f"Left out: {reason}.")
        links.append(f'<a href="#{name}">{escape(section.title)}</a>')
        parts.append(f'<section id="{name}"><h2>{escape(section.title)}</h2>{inside}</section>')
    boxes = (
        f'<label><input type="checkbox" checked hidden autocomplete="off">{run_name(i, run.label)}</label>'
        for i, run in enumerate(material.runs)
    )
    return Template(_file("page.html")).substitute(
        title=escape(title),
        styles=_file("page.css").strip(),
        facts="".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in material.facts),
        links="".join(links),
        runs="".join(boxes),
        defined="".join(material.defined.values()),
        sections="\n".join(parts),
        script=_file("page.js").strip(),
    )


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
