"""Makes the parts of the pages that come from the code. mkdocs runs this as a hook, which replaces `<!-- generated: NAME -->` by tables.

The comments beside the keys of `rcsd_jax.settings.keys.stage` are read from its source, and so are the programs' flags: nothing
is written twice.
"""

from __future__ import annotations

import ast
import html
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout, whatever else is installed; `configs` is no installed package

from configs import chains, evaluate, smollm2, stage1, stage2, tiny, world
from rcsd_jax.data import columns
from rcsd_jax.evaluate.benchmarks import BENCHMARKS
from rcsd_jax.evaluate.graders import GRADERS
from rcsd_jax.rubrics import schema
from rcsd_jax.settings import keys, sizes
from rcsd_jax.settings.unpack import choices

_PLACE = re.compile(r"<!-- generated: (\w+) -->")
_SOURCE = re.compile(r"<!-- source: (\S+) (.+?) -->")
_PROGRAMS = {
    "rcsd_jax.main": "rcsd_jax/main.py",
    "rcsd_jax.data": "rcsd_jax/data/__main__.py",
    "rcsd_jax.plan": "rcsd_jax/plan/__main__.py",
    "rcsd_jax.check": "rcsd_jax/check/__main__.py",
    "rcsd_jax.report": "rcsd_jax/report/__main__.py",
    "rcsd_jax.share": "rcsd_jax/share/__main__.py",
    "rcsd_jax.world": "rcsd_jax/world/__main__.py",
    "rcsd_jax.checkpoints": "rcsd_jax/checkpoints/__main__.py",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The hook of mkdocs: the page with its places filled. A name without a table ends the build."""
    with_sources = _SOURCE.sub(lambda match: source(match[1], match[2].split()), markdown)
    return _PLACE.sub(lambda match: TABLES[match[1]](), with_sources)


def on_page_content(content: str, **_: Any) -> str:
    """The hook of mkdocs: keeps a mean and its interval on one line."""
    return re.sub(r"(?<=\d) ± (?=\d)", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}", content)


def on_files(files: Any, config: Any) -> Any:
    """The hook of mkdocs: adds the figures that `experiments/README.md` shows, since a page includes that file."""
    from mkdocs.structure.files import File  # late: tests load this module without mkdocs

    for path in sorted((ROOT / "experiments" / "figures").glob("*.svg")):
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    return files


# --- configuration ---------------------------------------------------------------------------------------------------


class Key(NamedTuple):
    """A key of the configuration and its explanation."""

    key: str
    default: Any
    type: str
    choices: tuple[str, ...]
    comment: str


def described_keys() -> list[Key]:
    """Every key of `rcsd_jax.settings.keys.stage()` that holds a value, in the order of the source."""
    said = _said()
    order = {key: place for place, key in enumerate(said)}
    found, allowed = [], choices()
    for key, default, kind in _leaves(keys.stage()):
        section, _, _ = key.rpartition(".")
        of_all = said.get(section, "") if "." in section else ""  # a top section's stands above its table
        comment = said.get(key) or of_all
        found.append(Key(key, default, kind, allowed.get(key, ()), comment))

    def place(key: Key) -> tuple[int, ...]:
        parts = key.key.split(".")
        return tuple(order.get(".".join(parts[: i + 1]), -1) for i in range(len(parts)))

    return sorted(found, key=place)


def _said() -> dict[str, str]:
    return comments((ROOT / "rcsd_jax" / "settings" / "keys.py").read_text(encoding="utf-8"), function="stage")


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict) and len(value):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value, config.get_type(key).__name__


def comments(source: str, *, function: str) -> dict[str, str]:
    """Dotted key -> its comment, "" without one, in the order of the source; also of sections.

    A key's comment stands behind its last line, or above it on lines of its own. A section's stands in these places or behind
    the line that opens it. Behind a line that holds several keys of one section it speaks of the section.

    Args:
      source: of a module.
      function: its function that returns the config, written as nested `dict(...)` calls.
    """
    behind, above = _comments_by_line(source)
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    body = next(node.body for node in functions if node.name == function)
    found: dict[str, str] = {}

    def visit(node: ast.expr, prefix: str, opened: int) -> None:
        if not isinstance(node, ast.Call):
            return
        if node.args and isinstance(node.args[0], ast.Call):  # ConfigDict(dict(...)) holds what its argument holds
            node = node.args[0]
        ends = [keyword.value.end_lineno for keyword in node.keywords]
        for keyword in node.keywords:
            first, opens, last = keyword.lineno, keyword.value.lineno, keyword.value.end_lineno
            texts = [above.get(first)] if first != opened else []
            texts += [behind.get(opens)] if opens != last else []
            texts += [behind.get(last)] if ends.count(last) == 1 and last != opened else []
            is_section = isinstance(keyword.value, ast.Call) and bool(keyword.value.keywords)
            texts = [text for text in texts if text]
            # Beside a comment of its own, what stands above a key is for those who change the source.
            found[prefix + keyword.arg] = "; ".join(text.rstrip(".") for text in (texts if is_section else texts[-1:]))
            visit(keyword.value, f"{prefix}{keyword.arg}.", opens)

    visit(next(node.value for node in body if isinstance(node, ast.Return)), "", 0)
    return found


def _comments_by_line(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments after code, by their line, and those that stand alone, by the line of code that follows them."""
    behind, above, waiting = {}, {}, []
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = token.string.removeprefix("#").strip()
        if token.type == tokenize.COMMENT and not lines[token.start[0] - 1].strip().startswith("#"):
            behind[token.start[0]] = text
        elif token.type == tokenize.COMMENT:
            waiting.append(text)
        elif token.type == tokenize.NL and not token.line.strip():
            waiting = []
        elif token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT) and waiting:
            above[token.start[0]] = " ".join(waiting)
            waiting = []
    return behind, above


def configuration() -> str:
    """A heading and a table for each section."""
    said = _said()
    sections: dict[str, list[Key]] = {}
    for key in described_keys():
        sections.setdefault(key.key.partition(".")[0] if "." in key.key else "", []).append(key)
    sections["prompts"] = sections.pop("prompts")  # the longest comes last
    parts = []
    for name, members in sections.items():
        parts.append(f"### `{name}`" if name else "### A stage")
        if said.get(name):
            parts.append(_sentence(said[name]))
        rows = [(_anchored(k.key), _default(k), ", ".join(map(_code, k.choices)), _cell(k.comment)) for k in members]
        columns = ("key", "default", "allowed", "")
        filled = [i for i in range(len(columns)) if any(row[i] for row in rows)]
        columns, *rows = (tuple(line[i] for i in filled) for line in (columns, *rows))
        parts.append(_table(columns, rows))
    return "\n\n".join(parts)


def _default(key: Key) -> str:
    if key.default is None:
        return f"{_code('None')}, else {_code(key.type)}"
    if isinstance(key.default, ConfigDict):
        return f"{_code('{}')}, names and values"
    return _code(repr(key.default))


# --- config files ----------------------------------------------------------------------------------------------------


def variants() -> str:
    """The config files: their docstrings, and the settings of their variants that differ from the default variant."""
    parts = []
    for module in (tiny, stage1, stage2, world, chains, smollm2, evaluate):
        path = f"{module.__name__.replace('.', '/')}.py"
        parts += [f"### `{path}`", module.__doc__.strip()]
        if not module.VARIANTS:
            continue
        default = _flat(module.get_config())
        rows = []
        for name in module.VARIANTS:
            changed = {k: v for k, v in _flat(module.get_config(name)).items() if v != default.get(k)}
            told = " ".join(_code(f"{k}={v!r}") for k, v in changed.items())
            rows.append((_code(f"{path}:{name}"), told or "the default"))
        parts.append(_table(("variant", "what it sets, against the default variant"), rows))
    return "\n\n".join(parts)


def slices() -> str:
    """The sizes and slices of `rcsd_jax.settings.sizes`."""
    rows = []
    teachers = {f"{size},from_{teacher.rpartition('_')[2]}": table for (size, teacher), table in sizes.FROM.items()}
    for more, table in (((), sizes.LORA), (("full",), sizes.FULL), ((), teachers)):
        for size, settings_of in table.items():
            for name, settings in settings_of.items():
                variant = ",".join([size, *more, name])
                mesh = " ".join(f"{axis}={n}" for axis, n in settings["mesh"].items() if n != 1)
                chunk = settings["loss"].get("chunk_size", keys.stage().loss.chunk_size)
                rows.append((_code(variant), mesh, str(settings["microbatches"]), _code(settings["remat"]), str(chunk)))
    columns = ("variant", "mesh", "microbatches", "model.remat", "loss.chunk_size")
    return _table(columns, rows)


def flags() -> str:
    """The flags of the programs, as their sources define them."""
    parts = []
    for program, path in _PROGRAMS.items():
        calls = [node for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))) if isinstance(node, ast.Call)]
        rows = [row for call in calls if (row := _flag(call)) is not None]
        parts += [f"### `python -m {program}`", _table(("flag", "default", ""), rows)]
    return "\n\n".join(parts)


def _flag(call: ast.Call) -> tuple[str, str, str] | None:
    name = getattr(call.func, "attr", "")
    texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
    if name.startswith("DEFINE_"):
        flag, default, told = texts
        return _code(f"--{flag}"), "" if default is None else _code(str(default)), _cell(told)
    if name == "add_argument":
        told = next(k.value.value for k in call.keywords if k.arg == "help")
        return _code(texts[0] if texts[0].startswith("-") else texts[0].upper()), "", _cell(told)
    return None


# --- data ------------------------------------------------------------------------------------------------------------


def fields() -> str:
    """Fields of rows and their column names."""
    told = {
        "id": "unique; if it is missing, the row's number is used",
        "question": "text, or a conversation; every row has one",
        "reference": "text, number, or a list of accepted answers: a worked solution or reference answer",
        "rubric": "see [Rubrics in rows](#rubrics-in-rows)",
        "answer": "text, number, or a list of accepted answers: only the final answer",
        "solution": "text: a chain of thought that leads to the answer, in addition to a shorter reference; read if a role sees it",
    }
    rows = [
        (_code(name), ", ".join(map(_code, names)), ", ".join(map(_code, columns.ALSO[name])), told[name])
        for name, names in columns.ALIASES.items()
    ]
    return _table(
        ("field", "columns, of which the first that is not empty is read", "then, if its value can be the field", ""),
        rows,
    )


def criterion_keys() -> str:
    """Keys of a criterion that is an object."""
    rows = [(_code(name), ", ".join(map(_code, names))) for name, names in schema._ALIASES.items()]
    return _table(("part of a criterion", "keys, upper or lower case"), rows)


def classes() -> str:
    """Classes, their default weights, and the names that are read as them."""
    rows = [
        (kind, f"{schema.DEFAULT_WEIGHTS[kind]:g}", ", ".join(map(_code, schema._CLASS_NAMES[kind].split())))
        for kind in schema.KINDS
    ]
    return _table(("class", "default weight", "other names for it"), rows)


def benchmarks() -> str:
    """The declared benchmarks."""
    rows = [
        (_code(name), _code(b.path), _code(b.grader), ", ".join(map(_code, b.aggregations)))
        for name, b in BENCHMARKS.items()
    ]
    return _table(("benchmark", "where it is published", "grader", "rule of a judge's scores"), rows)


def graders() -> str:
    """The graders, the fields they need, and whether they give feedback on what was wrong."""
    rows = []
    for name, grader in GRADERS.items():
        doc = grader.grade.__doc__.strip().splitlines()[0] if grader.grade else "Another model, criterion by criterion."
        needs = ", ".join(map(_code, grader.needs))
        rows.append((_code(name), _cell(doc), needs, "yes" if grader.feedback else ""))
    return _table(("grader", "", "needs", "gives feedback"), rows)


# --- the code itself -------------------------------------------------------------------------------------------------


def source(path: str, names: list[str]) -> str:
    """Functions and classes of a file, as one block of code.

    Raises:
      ValueError: the file does not define one of them.
    """
    text = (ROOT / path).read_text(encoding="utf-8")
    nodes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    missing = [name for name in names if name not in nodes]
    if missing:
        raise ValueError(f"{path} does not define {', '.join(missing)}")
    parts = []
    for name in names:
        first = min([nodes[name].lineno, *(decorator.lineno for decorator in nodes[name].decorator_list)])
        parts.append("\n".join(text.splitlines()[first - 1 : nodes[name].end_lineno]))
    return f'```python title="{path}"\n' + "\n\n\n".join(parts) + "\n```"


def layers() -> list[str]:
    """The rooms from top to bottom, from the contract that import-linter checks."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    found = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [room.strip() for layer in found for room in layer.split("|")]


def files() -> str:
    """Every file of every room, with the first line of its docstring."""
    parts = []
    for room in layers():
        paths = sorted((ROOT / "rcsd_jax" / room).rglob("*.py")) or [ROOT / "rcsd_jax" / f"{room}.py"]
        rows = []
        for path in paths:
            said = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
            if said:
                rows.append((_code(str(path.relative_to(ROOT / "rcsd_jax"))), _cell(said)))
        parts.append(f"### `{room}`\n\n" + _table(("file", "what it does"), rows))
    return "\n\n".join(parts)


# --- tables ----------------------------------------------------------------------------------------------------------

TABLES = {
    "configuration": configuration,
    "variants": variants,
    "slices": slices,
    "flags": flags,
    "fields": fields,
    "criterion_keys": criterion_keys,
    "classes": classes,
    "benchmarks": benchmarks,
    "graders": graders,
    "files": files,
}


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    """Text as code inside a table: as HTML, because Markdown would interpret bars and backticks."""
    return f"<code>{_escaped(text)}</code>"


def _anchored(key: str) -> str:
    return f'<code id="{key}">{_escaped(key)}</code>'


def _escaped(text: str) -> str:
    text = html.escape(text, quote=False).replace("\n", " ")
    return re.sub(r"[|`*_\\\[\]{}~]", lambda match: f"&#{ord(match[0])};", text)


def _cell(text: str) -> str:
    """A comment inside a table: its backticks stay Markdown."""
    parts = text.split("`")
    return "".join(_code(part) if i % 2 else _escaped(part) for i, part in enumerate(parts))


def _sentence(text: str) -> str:
    return _cell(text[0].upper() + text[1:].rstrip(".") + ".")


def _flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    if "stages" in config:
        return {}
    return {key: list(value) if isinstance(value, tuple) else value for key, value, _ in _leaves(config, prefix)}
