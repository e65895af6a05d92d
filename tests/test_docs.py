"""The documentation: it builds without a warning, and says of the code what is so."""

import ast
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest
from ml_collections import ConfigDict

from rcsd_jax.settings import keys
from rcsd_jax.settings.unpack import choices

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
KEYS = [key for key in keys.all_keys(keys.stage()) if "." in key or key in ("seed", "task", "method")]
# Names that say all, in sections where other keys have comments.
PLAIN = {"rubric.temperature", "rubric.top_p", "teacher.thinking", "eval.roles"}


@pytest.fixture(scope="module")
def generate():
    """The hook of mkdocs, as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page, language):
    """(title, text) of a page's code blocks, also of those inside lists."""
    pattern = rf'^( *)```{language}(?: title="(.*?)")?\n(.*?)^\1```$'
    found = re.findall(pattern, page.read_text(encoding="utf-8"), re.S | re.M)
    return [(title, textwrap.dedent(text)) for _, title, text in found]


def is_section(key):
    value = keys.stage()
    for part in key.split("."):
        value = value[part]
    return isinstance(value, ConfigDict) and len(value) > 0


def test_every_key_is_in_the_reference_and_explained(generate):
    reference = generate.configuration()
    leaves = [key for key in KEYS if not is_section(key)]
    assert len(leaves) > 100
    assert [key for key in leaves if f'id="{key}"' not in reference] == []
    told = generate.comments((ROOT / "rcsd_jax" / "settings" / "keys.py").read_text(encoding="utf-8"), function="stage")
    of_section = lambda key: any(told.get(key.rsplit(".", n)[0]) for n in range(1, key.count(".") + 1))
    unexplained = {key for key in leaves if not told.get(key) and not of_section(key)}
    assert unexplained == PLAIN


def test_choices_stand_beside_their_keys(generate):
    rows = {row.split('id="')[1].split('"')[0]: row for row in generate.configuration().splitlines() if 'id="' in row}
    for key, allowed in choices().items():
        for choice in allowed:
            assert f"<code>{generate._escaped(choice)}</code>" in rows[key]


def test_comments_belong_to_the_key_they_stand_at(generate):
    source = """
def stage():
    return ConfigDict(
        dict(
            seed=0,  # of all
            # Of both, above.
            pair=dict(a=1, b=2),
            section=dict(  # opening
                a="#",
                b=dict(c=1),  # of b
                # two
                # lines
                d=None,
                # for those who read the source

                e=f(  # inside
                    1
                ),
            ),
            last=1,
        )
    )
"""
    assert generate.comments(source, function="stage") == {
        "seed": "of all",
        "pair": "Of both, above",
        "pair.a": "",
        "pair.b": "",
        "section": "opening",
        "section.a": "",
        "section.b": "of b",
        "section.b.c": "",
        "section.d": "two lines",
        "section.e": "inside",
        "last": "",
    }


def test_flags_and_aliases_are_those_of_the_programs(generate):
    flags = generate.flags().replace("&#95;", "_")
    for name in ("--config", "--workdir", "--heartbeat_timeout", "--topology", "--search", "WORKDIR", "--no-tokens"):
        assert f"<code>{name}</code>" in flags
    assert "<code>reference_answer</code>" in generate.fields().replace("&#95;", "_")


def test_an_unknown_table_is_an_error(generate):
    with pytest.raises(KeyError, match="nothing"):
        generate.on_page_markdown("<!-- generated: nothing -->")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_name_keys_that_exist(page):
    sections = {key.partition(".")[0] for key in KEYS if "." in key}
    text = page.read_text(encoding="utf-8")
    names = re.findall(r"`([a-z]\w*(?:\.\w+)+)", text) + re.findall(r"--config\.([a-z]\w*(?:\.\w+)+)", text)
    named = {re.sub(r"^stage[12]\.", "", name) for name in names}
    files = {"py", "json", "jsonl", "html", "parquet", "md"}
    named = {n for n in named if n.partition(".")[0] in sections and n.rpartition(".")[2] not in files}
    assert named - set(KEYS) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_diffs_fit_the_files_that_they_change(page):
    for title, text in blocks(page, "diff"):
        before = [line[1:] for line in text.splitlines() if line[:1] in (" ", "-")]
        assert before and "\n".join(before) in (ROOT / title).read_text(encoding="utf-8"), (title, text)


TEXTS = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "experiments").rglob("README.md")),
]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page):
    """Paths in code from the repository's root, and links to files."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    folders = "rcsd_jax|configs|experiments|tests|docs|colab"
    named = set(re.findall(rf"`((?:{folders})/[\w./*-]*)", text))
    named |= {str((page.parent / link).relative_to(ROOT)) for link in re.findall(r"\]\(([\w./-]+)[)#]", text)}
    absent = sorted(name for name in named if not list(ROOT.glob(name.rstrip("/"))))
    assert absent == [], f"{page.name} names files that are not there"


def test_the_map_has_every_room_in_the_order_of_the_layers(generate):
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `rcsd_jax/(\w+)(?:/|\.py)` \|", text[: text.index("## The way of a row")], re.M)
    assert rows == generate.layers()
    there = {path.stem for path in (ROOT / "rcsd_jax").iterdir() if path.suffix in ("", ".py")}
    assert set(rows) == there - {"__init__", "__pycache__", "shipped"} and len(rows) <= 20


def test_the_source_that_a_page_shows_is_there(generate):
    shown = [found for page in PAGES for found in generate._SOURCE.findall(page.read_text(encoding="utf-8"))]
    assert shown
    for path, names in shown:
        text = generate.source(path, names.split())
        ast.parse(text.partition("\n")[2].removesuffix("```"))
        assert all(re.search(rf"^(def|class) {name}\b", text, re.M) for name in names.split())
    with pytest.raises(ValueError, match="does not define nothing"):
        generate.source(shown[0][0], ["nothing"])


def test_every_file_is_listed_with_what_it_does(generate):
    listed = generate.files().replace("&#95;", "_")
    for path in (ROOT / "rcsd_jax").rglob("*.py"):
        assert (
            f"<code>{path.relative_to(ROOT / 'rcsd_jax')}</code>" in listed or path == ROOT / "rcsd_jax/__init__.py"
        ), path


def test_blocks_are_found():
    page = ROOT / "docs" / "extending.md"
    assert len(blocks(page, "diff")) > 5 and len(blocks(page, "python")) > 3


def test_the_readme_is_short_and_its_pictures_are_small():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    pictures = set(re.findall(r"(?:src=\"|srcset=\"|!\[.+?\]\()(.+?)[\")]", text))
    assert len(pictures) == 3 and sum((ROOT / picture).stat().st_size for picture in pictures) < 150_000
    code = re.findall(r"```(?:bash|python)\n(.*?)```", text, re.S)
    assert (
        len(code) == text.count("```") / 2 > 5
    )  # every block is executed: `.ci/run_readme.py` reads these two languages


def test_commands_of_the_quick_start_are_those_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = blocks(ROOT / "docs" / "index.md", "bash")
    assert len(commands) > 3
    assert [text for _, text in commands if text.strip() not in readme] == []


def test_messages_in_troubleshooting_are_those_of_the_code():
    texts = []
    for path in (ROOT / "rcsd_jax").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        texts += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    tables = page[page.index("## It does not start") : page.index("## It runs, and")]
    quoted = [
        q for row in tables.splitlines() if row.startswith("| ") for q in re.findall("`(.+?)`", row.split("|")[1])
    ]
    pieces = {piece.strip() for one in quoted for piece in re.split(r"…|\bN\b", one)} - {""}
    assert len(pieces) > 20
    assert {piece for piece in pieces if not any(piece in text for text in texts)} == set()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_of_pages_runs(page):
    """Blocks of a page, one after the other."""
    space = {"__name__": "page"}
    for _, text in blocks(page, "python"):
        exec(compile(text, str(page), "exec"), space)


@pytest.mark.slow
def test_every_file_and_column_of_a_run_is_in_the_data_formats(tmp_path):
    from configs import world
    from rcsd_jax import main

    config = world.get_config("mixed")
    config.update(rubric=dict(source="data"), eval=dict(count=4, batch_size=4, roles=("base", "trained")))
    config.train.update(steps=2, batch_size=8)
    config.data.count = 8
    main.run_job(config, tmp_path / "run")
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    names = {re.sub("(base|teacher|trained)", "<role>", path.name) for path in (tmp_path / "run").iterdir()}
    names = {re.sub(r"^\.lock-\d+$", ".lock-<process>", name) for name in names}
    assert "metrics.jsonl" in names
    assert {name for name in names if f"`{name}`" not in page and f"`{name}/`" not in page} == set()
    rows = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    columns = {re.sub("^graded_.*", "graded_<score>", column) for row in rows for column in json.loads(row)}
    assert "policy_loss" in columns
    assert {column for column in columns if f"`{column}`" not in page} == set()


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    for name in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(name)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {page.stem for page in PAGES} <= {page.stem for page in pages}
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert re.findall(r"""<(?:script|img|iframe)[^>]*src=["']?(?:https?:)?//[^>]*>""", html) == []
        assert re.findall(r"""<link(?![^>]*canonical)[^>]*href=["']?(?:https?:)?//[^>]*>""", html) == []
        assert "<!-- generated" not in html
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert 'id="rcsd_jax.losses.per_token_divergence"' in api
    assert not list(tmp_path.rglob("*.py"))
