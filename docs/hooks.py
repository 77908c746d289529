"""What MkDocs does not do by itself for the pages: `mkdocs.yml` names this file as a hook and as Griffe's extension.

Pages of the repository's root become pages of the site, with their links; the reference is made from the code, so that
what is public is there; a notebook becomes a page with the outputs that it was committed with.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import dataclasses
import importlib
import inspect
import io
import itertools
import json
import posixpath
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints
from unittest import mock

import griffe
import tyro
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import zoominnet
import zoominnet.kernels
from zoominnet.__main__ import COMMANDS, PACKAGES
from zoominnet.errors import UserError
from zoominnet.prediction import Detector, Result

ROOT = Path(__file__).resolve().parents[1]
FROM_THE_ROOT = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Pages outside docs/, and what they are called in the site."""
OPTIONS_PAGE, PYTHON_PAGE, KERNELS_PAGE = (f"reference/{name}.md" for name in ("commands", "python", "kernels"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs' event: adds the pages that are made."""

    def add(name: str, content: str | bytes) -> None:
        files.append(File.generated(config, name, content=content))

    for source, name in FROM_THE_ROOT.items():
        add(name, (ROOT / source).read_text(encoding="utf-8"))
    for name, text in references().items():
        add(name, text)
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text, pictures = page_of(json.loads(notebook.content_string), posixpath.basename(notebook.src_uri))
        folder = posixpath.dirname(notebook.src_uri)
        add(notebook.src_uri.removesuffix(".ipynb") + ".md", text)
        for name, picture in pictures.items():
            add(f"{folder}/{name}", picture)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """MkDocs' event: links between docs/ and the repository's root lead to pages of the site."""
    here = page.file.src_uri
    source = next((source for source, name in FROM_THE_ROOT.items() if name == here), f"docs/{here}")
    places = {**FROM_THE_ROOT, **{f"docs/{file.src_uri}": file.src_uri for file in files}}
    for notebook in [name for name in places if name.endswith(".ipynb")]:
        if (page_of_it := places[notebook].replace(".ipynb", ".md")) != here:
            places[notebook] = page_of_it

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        return f"]({posixpath.relpath(places[target], posixpath.dirname(here) or '.')}" if target in places else link[0]

    markdown = re.sub(r"\]\(([\w./-]+)(?=[#)])", moved, markdown)
    markdown = re.sub(r"^<!-- .* -->\n", "\n", markdown, flags=re.MULTILINE)  # else a table right below would be none
    return re.sub(
        r"^\|.*", lambda row: re.sub(r"(?<=[\d±]) (?=[\d±%]|[mu]?s\b)", "&nbsp;", row[0]), markdown, flags=re.M
    )


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """MkDocs' event: a line does not end within the name of an option."""
    return re.sub(r"<code>(--[\w-]+)</code>", r'<code class="option">\1</code>', html)


def page_of(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and the pictures of its outputs by their names."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else fenced(text, "python"))
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/jpeg" in data:
                picture = f"{name.removesuffix('.ipynb')}-{len(pictures) + 1}.jpg"
                pictures[picture] = base64.b64decode(data["image/jpeg"])
                parts.append(f"![What the cell above draws]({picture})")
            else:
                parts.append(fenced("".join(data["text/plain"]), "text"))
    parts.insert(1, f"[The notebook]({name}) to run it yourself.")
    return "\n\n".join(parts) + "\n", pictures


def fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def references() -> dict[str, str]:
    """The pages of the reference, by name."""
    functions = [name for name in zoominnet.__all__ if inspect.isfunction(getattr(zoominnet, name))]
    configs = [name for name in zoominnet.__all__ if inspect.isclass(getattr(zoominnet, name))]
    commands = posixpath.basename(OPTIONS_PAGE)
    python = [
        "# Python",
        "Functions and what they take. Importing `zoominnet` loads no torch.",
        *(described(getattr(zoominnet, name), f"zoominnet.{name}") for name in functions),
        "## Options",
        f"The fields of these classes are the options of [the commands]({commands}), with an underscore for each hyphen.",
        *(described(getattr(zoominnet, name), f"zoominnet.{name}", members=False, level=3) for name in configs),
        "## What they give",
        *(
            described(each, f"{each.__module__.rpartition('.')[0]}.{each.__name__}", level=3)
            for each in (Detector, Result)
        ),
        described(UserError, "zoominnet.errors.UserError", level=3),
    ]
    kernels = [
        "# zoominnet.kernels",
        "Torch is all that these need. [How to use them](../kernels.md) in code of your own.",
        *(
            described(getattr(zoominnet.kernels, name), f"zoominnet.kernels.{name}")
            for name in sorted(zoominnet.kernels.__all__, key=str.swapcase)
        ),
    ]
    return {
        OPTIONS_PAGE: "\n\n".join(commands_page()) + "\n",
        PYTHON_PAGE: "\n\n".join(python) + "\n",
        KERNELS_PAGE: "\n\n".join(kernels) + "\n",
    }


def described(thing: Any, name: str, *, members: bool = True, level: int = 2) -> str:
    """What mkdocstrings makes the docstring of a function or class of, under its public name."""
    options = {"heading": name, "toc_label": name.rpartition(".")[2], "heading_level": level}
    if not members:
        options["members"] = "false"
    lines = [f"::: {path_of(thing)}", "    options:", *(f"      {key}: {value}" for key, value in options.items())]
    return "\n".join(lines)


def path_of(thing: Any) -> str:
    """Where a function or class is defined, which is how mkdocstrings names it."""
    return f"{thing.__module__}.{thing.__qualname__}"


def commands_page() -> Iterator[str]:
    """A section a command, with an entry an option."""
    yield "# Commands"
    yield (
        "`zoominnet COMMAND` is the same as `python -m zoominnet.COMMAND`. Flags take no value; `--no-flag` turns one off. "
        "[Exit statuses](../faults.md#exit-statuses)."
    )
    for command, about in COMMANDS.items():
        yield f"## {command}"
        yield f"{about[0].upper()}{about[1:]}."
        for options in options_of(command):
            subcommand = "" if options.__name__.endswith("Config") else options.__name__.lower()
            if subcommand:
                yield f"### {command} {subcommand}"
                yield inspect.getdoc(options) or ""
            yield from entries(options, "-".join(filter(None, (command, subcommand))))


class _Asked(BaseException):
    """A command has come to ask for its options."""


def options_of(command: str) -> list[type]:
    """The dataclasses whose fields are a command's options; none where it takes none."""
    module = importlib.import_module(f"zoominnet.{command}{'.__main__' * (command in PACKAGES)}")
    with (
        mock.patch.object(tyro, "cli", side_effect=_Asked) as cli,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(_Asked, SystemExit),
    ):
        module.main(["--help"])
    if not cli.called:
        return []
    kind = cli.call_args.args[0]
    alternatives = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return [get_args(each)[0] if get_origin(each) is Annotated else each for each in alternatives]


def entries(options: type, prefix: str) -> Iterator[str]:
    """An entry of a definition list for each field that is an option."""
    texts = {name: text for each in reversed(options.__mro__) for name, text in field_texts(each).items()}
    hints = get_type_hints(options, include_extras=True)
    for field in dataclasses.fields(options):
        hint = hints[field.name]
        beside = getattr(hint, "__metadata__", ())
        name = f"--{field.name.replace('_', '-')} {values(hint)}".strip()
        if tyro.conf.Positional in beside:
            name = next((each.metavar for each in beside if getattr(each, "metavar", None)), field.name.upper())
        default = field.default
        given = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        required = default in (dataclasses.MISSING, tyro.MISSING)
        term = f"`{name}`{{ #{prefix}-{field.name.replace('_', '-')} }}"
        yield term + ("" if required else f" default `{given or 'none'}`")
        yield textwrap.indent(escaped(texts[field.name]), "    ").replace("    ", ":   ", 1)


def values(hint: Any) -> str:
    """What an option of that type takes, as --help has it; "" for a flag."""
    if get_origin(hint) is Annotated:
        return values(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return "|".join("True|False" if kind is bool else values(kind) for kind in get_args(hint))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        return " ".join("..." if kind is ... else values(kind) for kind in kinds)
    return "" if hint is bool else "None" if hint is NoneType else hint.__name__.upper()


def escaped(text: str) -> str:
    """Words of the code as Markdown: options in the type of code, nothing else marked."""
    text = re.sub(r"([*_<])", r"\\\1", text)
    return re.sub(r"(?<![\w`])(--[a-z][\w-]*)", r"`\1`", text)


def field_texts(options: type) -> dict[str, str]:
    """The strings that stand below the fields of a dataclass."""
    if not dataclasses.is_dataclass(options):
        return {}
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(options))).body
    body: Sequence[ast.stmt] = definition.body  # type: ignore[attr-defined]
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


ROLE = re.compile(r":(?:func|class|meth|mod|data):`([\w.]+)`")


def crossed(role: re.Match[str]) -> str:
    """The name in a role of Sphinx's, which leads to the reference where that has it."""
    name = role[1].rpartition(".")[2]
    for package in (zoominnet, zoominnet.kernels):
        if name in package.__all__ and name != "__version__":
            return f"[`{name}`][{path_of(getattr(package, name))}]"
    return f"`{role[1]}`"


class Docstrings(griffe.Extension):
    """Docstrings as they are written for Sphinx and doctest become what mkdocstrings reads."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Griffe's event, for each object."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = ROLE.sub(crossed, text)
