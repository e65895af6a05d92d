"""What imports what: the rooms' layers and circles (`lint-imports`, from pyproject.toml), and imports inside functions."""

import ast
import graphlib
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest

grimp = pytest.importorskip("grimp")

ROOT = pathlib.Path(__file__).parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]

# Doors read flags, and refuse bad ones, before they import what imports JAX, which takes seconds.
DOORS = ("main.py", "cli/", "__main__.py")


def lint_imports(folder):
    code = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache', '--no-logo'])"
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def test_rooms_import_only_rooms_below_them():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_wrong_import_is_found(tmp_path):
    shutil.copytree(ROOT / "rcsd_jax", tmp_path / "rcsd_jax", ignore=shutil.ignore_patterns("__pycache__", "base"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, line in {
        "losses/weighting.py": "from rcsd_jax.run import loop",  # upwards
        "losses/options.py": "from rcsd_jax.losses import from_hidden",  # a circle within a folder
        "models/scoring.py": "import ml_collections",
    }.items():
        with open(tmp_path / "rcsd_jax" / file, "a", encoding="utf-8") as out:
            print(line, file=out)
    result = lint_imports(tmp_path)
    assert result.returncode == 1 and "Contracts: 0 kept, 4 broken" in result.stdout, result.stdout + result.stderr


def test_no_modules_import_each_other_in_a_circle():
    """Of single modules, with a package's own `__init__` among them, which the contract on folders does not see."""
    graph = grimp.build_graph("rcsd_jax", cache_dir=None)
    for contract in CONTRACTS:
        for one in contract.get("ignore_imports", ()) if contract["type"] == "acyclic_siblings" else ():
            importer, _, imported = one.partition(" -> ")
            if "*" not in one:
                graph.remove_import(importer=importer, imported=imported)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def imports_in_functions(path):
    """(whose, said) of each import inside a function: the module's name, and whether a comment stands there."""
    text = path.read_text("utf-8")
    lines = text.splitlines()
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in {n for function in functions for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)}:
        above = node.lineno - 2  # a comment stands for all imports below it
        while lines[above].lstrip().startswith(("import ", "from ")) and "#" not in lines[above]:
            above -= 1
        said = "#" in lines[node.end_lineno - 1] or "#" in lines[above]
        yield (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name), said


def test_no_import_is_hidden_in_a_function():
    ours, without_reason = set(), set()
    for path in sorted((ROOT / "rcsd_jax").rglob("*.py")):
        name = path.relative_to(ROOT / "rcsd_jax").as_posix()
        for module, said in imports_in_functions(path):
            if module.partition(".")[0] != "rcsd_jax":
                without_reason |= {name} if not said else set()
            elif not any(door in name for door in DOORS):
                ours.add(name)
    assert ours == set()
    assert without_reason == set()
