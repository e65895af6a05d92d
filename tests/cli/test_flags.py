"""What the programs say of themselves: help, version, settings; and which key was meant."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import rcsd_jax
from configs import stage2, tiny
from rcsd_jax.cli import shipped_configs
from rcsd_jax.cli.flag_parser import parser
from rcsd_jax.cli.help_text import help_text
from rcsd_jax.cli.unknown_keys import nearest_keys
from rcsd_jax.settings import keys, sizes

ROOT = Path(__file__).resolve().parents[2]


def run(program, *arguments):
    command = [sys.executable, "-m", f"rcsd_jax.{program}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "program, flag, words",
    [
        ("main", "--help", ("python -m rcsd_jax.main --config", "--workdir", "--[no]check", "--[no]print_config")),
        ("main", "--helpfull", ("--[no]distributed", "absl.logging:", "--verbosity")),
        ("main", "--version", (f"rcsd_jax {rcsd_jax.__version__}\n",)),
        ("evaluate", "-h", ("python -m rcsd_jax.evaluate", "--workdir", "--[no]check")),
        ("plan", "--help", ("python -m rcsd_jax.plan", "--topology", "--[no]search")),
        ("check", "--help", ("python -m rcsd_jax.check", "--only", "--[no]full", "--workdir")),
        ("plan", "--version", (f"rcsd_jax {rcsd_jax.__version__}\n",)),
        ("report", "--version", (f"rcsd_jax {rcsd_jax.__version__}\n",)),
        ("report", "--help", ("--no-tokens",)),
    ],
)
def test_a_program_says_what_it_is_asked_and_ends_well(program, flag, words):
    code, out, err = run(program, flag)
    assert (code, err) == (0, "")
    for word in words:
        assert word in out


def test_help_is_answered_beside_other_flags_and_before_a_config_is_read(capsys):
    with pytest.raises(SystemExit) as ended:
        parser("x", "usage")(["x", "--config=nothing.py", "--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage\n\nFlags:\n")


def test_help_lists_every_config_with_its_variants_and_the_sizes():
    text = help_text("usage")
    lines = [line.strip() for line in text.splitlines()]
    for name, (about, variants) in shipped_configs.variants().items():
        assert name in lines and about.split()[0] in text
        assert all(variant in text for variant in variants)
    assert set(shipped_configs.variants()["stage2"][1]) == set(stage2.VARIANTS)
    for table in (sizes.LORA, sizes.FULL):
        assert all(size in text and all(one in text for one in slices) for size, slices in table.items())


def test_every_variant_that_is_listed_can_be_had():
    for name, (_, variants) in shipped_configs.variants().items():
        get_config = __import__(f"configs.{name}", fromlist=["get_config"]).get_config
        for variant in variants:
            assert get_config(variant) is not None
        assert variants or name == "tiny"


def test_the_effective_config_is_printed():
    code, out, err = run("main", "--config=tiny", "--print_config", "--config.stage2.train.steps=7")
    wanted = tiny.get_config()
    wanted.stage2.train.steps = 7
    assert (code, err) == (0, "") and json.loads(out) == json.loads(keys.to_json(wanted))
    code, out, err = run("evaluate", "--config=evaluate:piqa", "--print_config")  # which lacks a model still
    assert (code, err) == (0, "") and json.loads(out)["eval"]["benchmarks"]["piqa"] == ""


def test_a_key_given_without_its_stage_names_that_of_all_stages():
    code, _, err = run("main", "--config=tiny", "--config.optimizer.learning_rate=1e-4")
    assert code == 2 and err.endswith(
        "field 'config.optimizer.learning_rate': the config has no such key; "
        "did you mean 'stage1.optimizer.learning_rate' or 'stage2.optimizer.learning_rate'?\n"
    )


@pytest.mark.parametrize(
    "bad, meant",
    [
        ("train.steps", ["stage1.train.steps", "stage2.train.steps"]),
        ("trian.steps", ["stage1.train.steps", "stage2.train.steps"]),
        ("stage1.trian.steps", ["stage1.train.steps"]),
        ("zzzz", []),
    ],
)
def test_what_was_meant(bad, meant):
    config = tiny.get_config()
    stages = {name: keys.all_keys(stage) for name, stage in keys.stages_of(config)}
    assert nearest_keys(bad, keys.all_keys(config), stages) == meant


def test_the_first_line_comes_before_jax_is_imported(tmp_path):
    code = f"""if True:
        import sys
        from rcsd_jax.cli import start
        from rcsd_jax.cli.flag_parser import parser
        from rcsd_jax import main
        start.join_processes = lambda _: print("jax" in sys.modules)
        argv = parser("main", "")(["main", "--config=tiny", "--workdir={tmp_path}"])
        main.start(argv, example="")
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, imported, kept = done.stdout.splitlines()
    assert (first, imported) == (f"{tmp_path}: starting JAX", "False") and kept.startswith(
        "compiled programs are kept in"
    )
