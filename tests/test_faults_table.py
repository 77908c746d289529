"""docs/faults.md, "What happens when", is in step with the tests that it names."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "faults.md"
PLACES = {"CI", "make soak", "make gpu-check"}
MARKED = {"soak": "make soak", "gpu": "make gpu-check"}
"""Where a test runs that has this mark; all others run in CI, those with an argument `device` on a GPU as well."""


@dataclass(frozen=True)
class Row:
    fault: str
    what: str
    tests: tuple[str, ...]
    places: frozenset[str]


def rows() -> list[Row]:
    found = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if not re.match(r"\| F\d", line):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 4, f"four columns, and no | in them: {line}"
        fault, what, tests, where = cells
        names = tuple(re.findall(r"`(test_\w+)`", tests))
        assert re.sub(r"`test_\w+`", "", tests).split() == [], f"only `names` in the third column: {tests}"
        found.append(Row(fault, what, names, frozenset(where.split(", "))))
    return found


def marks(tree: ast.AST) -> set[str]:
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "mark"
    }


def places_by_test() -> dict[str, set[str]]:
    """The places where each test of the tree runs, by its name; several tests of a name share an entry."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        of_all = set()
        for statement in module.body:
            if isinstance(statement, ast.Assign) and any(
                getattr(t, "id", "") == "pytestmark" for t in statement.targets
            ):
                of_all = marks(statement)
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                own = of_all.union(*(marks(decorator) for decorator in node.decorator_list))
                everywhere = {"CI", "make gpu-check"} if "device" in {a.arg for a in node.args.args} else {"CI"}
                places = {MARKED[mark] for mark in own & MARKED.keys()} or everywhere
                found.setdefault(node.name, set()).update(places)
    return found


def test_every_test_that_the_table_names_exists() -> None:
    named = [name for row in rows() for name in row.tests]
    assert len(named) > 50
    assert sorted(set(named) - places_by_test().keys()) == [], "named in docs/faults.md, but nowhere in tests/"
    assert sorted({name for name in named if named.count(name) > 1}) == [], "named in two rows of docs/faults.md"


def test_every_fault_test_is_in_the_table() -> None:
    named = {name for row in rows() for name in row.tests}
    numbered = {name for name in places_by_test() if re.match(r"test_f\d", name)}
    assert sorted(numbered - named) == [], "give it to a row of docs/faults.md, or add one"
    assert all(re.match(r"test_f(0[1-9]|1\d|2[0-5])_", name) for name in numbered), "two digits, 01 to 25"


def test_the_rows_are_about_their_tests_and_say_where_they_run() -> None:
    where = places_by_test()
    for row in rows():
        number = re.match(r"F(\d+) \S", row.fault)
        assert number, row.fault
        assert row.what.endswith("."), row.fault
        assert row.tests, f"{row.fault}: names no test"
        # tests without a number may stand in a row too, those of another fault may not
        numbers = {name[:8] for name in row.tests if re.match(r"test_f\d", name)}
        assert numbers <= {f"test_f{int(number[1]):02}"}, row.fault
        assert row.places <= PLACES, f"{row.fault}: {set(row.places)} are not of {PLACES}"
        assert row.places == set().union(*(where[name] for name in row.tests)), row.fault


def test_no_two_fault_tests_share_a_name() -> None:
    """The table names tests without their files."""
    names: list[str] = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        names += re.findall(r"^ *def (test_f\d\d_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted({name for name in names if names.count(name) > 1}) == []
