"""Executes the notebooks of this folder, and saves them with their plots.

    pip install -e '.[notebooks]'
    python colab/run.py [NAME ...] [--small] [--set NAME=VALUE ...] [--write]

Each notebook has one cell tagged "parameters". What `--small` and `--set` say is executed after it, as papermill would, and
is not saved. `--small` takes minutes on two cores and shows that every cell runs; `own_data` then has a made-up model and
rows, else it wants `--set DATA=FILE.jsonl`; `smollm2` has a made-up model, too.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbclient
import nbformat

HERE = Path(__file__).resolve().parent
NAMES = tuple(sorted(path.stem for path in HERE.glob("*.ipynb")))
CELL_SECONDS = 3600
# Heads as of a Qwen3-0.6B: the TPU's kernels do not take much smaller ones.
TWO_LAYERS = dict(
    model_type="qwen3", vocab_size=1024, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
    num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=4096, tie_word_embeddings=True,
)  # fmt: skip


def small_settings(name: str, scratch: Path) -> dict[str, Any]:
    """Parameters with which a notebook takes a minute or so; what it writes and reads lies under `scratch`."""
    workdir = {"WORKDIR": str(scratch / "run")}
    if name == "embedded_world":
        return workdir | dict(STAGE1_STEPS=2, STAGE2_STEPS=2, TRAINING_QUESTIONS=32, EVAL_QUESTIONS=4)
    if name == "own_data":
        model, rows = _made_up_inputs(scratch)
        short = dict(
            STEPS=2, BATCH_SIZE=4, HELD_OUT=4, RUBRIC_TOKENS=128, ANSWER_TOKENS=16, LORA_RANK=4, DTYPE="float32"
        )
        return workdir | short | dict(MODEL=model, DATA=rows)
    if name == "smollm2":
        model, _ = _made_up_inputs(scratch)
        short = dict(STEPS=2, BATCH_SIZE=4, ANSWER_TOKENS=16, LORA_RANK=4, EVAL_QUESTIONS=4)
        return workdir | short | dict(MODEL=model, STUDENT_TOKENS=1536, TEACHER_TOKENS=2048)
    if name == "losses_in_flax":
        return dict(STEPS=10, LARGE_VOCABULARY=8192, LARGE_WIDTH=64, LENGTHS=(256, 512))
    if name == "plan_tpu":
        (scratch / "config.json").write_text(json.dumps(TWO_LAYERS), encoding="utf-8")  # all that the planner reads
        return workdir | dict(MODEL=str(scratch), COMPLETION_TOKENS=32, PROGRAMS="teacher scoring,update")
    return {}


def _made_up_inputs(scratch: Path) -> tuple[str, str]:
    sys.path.insert(0, str(HERE.parent))
    from tests.user_inputs import make_user_inputs  # imports torch and transformers

    make_user_inputs(scratch / "model", scratch / "rows.jsonl")
    return str(scratch / "model"), str(scratch / "rows.jsonl")


def execute(name: str, settings: Mapping[str, Any]) -> nbformat.NotebookNode:
    """The notebook of that name with the outputs of a run in the repository's root.

    Args:
      name: of `NAMES`.
      settings: parameter -> value, other than in the notebook.

    Raises:
      ValueError: a parameter that the notebook does not have.
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
    (place,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    known = {target.id for node in ast.parse(notebook.cells[place].source).body for target in node.targets}
    if unknown := set(settings) - known:
        raise ValueError(f"{name} has no parameter {', '.join(sorted(unknown))}, only {', '.join(sorted(known))}")
    said = nbformat.v4.new_code_cell("\n".join(f"{key} = {value!r}" for key, value in settings.items()))
    notebook.cells.insert(place + 1, said)
    where = {"metadata": {"path": str(HERE.parent)}}
    nbclient.NotebookClient(notebook, timeout=CELL_SECONDS, resources=where, record_timing=False).execute()
    notebook.cells.remove(said)
    return notebook


def with_plots_alone(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy as it is committed: of the outputs PNG images alone, no numbers of executions, nothing of the machine."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
        if cell.cell_type == "code":
            cell.execution_count = None
            images = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
            cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": image}) for image in images]
    return notebook


def main() -> None:
    """Executes the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--small", action="store_true", help="with few steps")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another value of a parameter")
    parser.add_argument("--write", action="store_true", help="save the notebooks, with plots as their only outputs")
    flags = parser.parse_args()
    if unknown := set(flags.names) - set(NAMES):
        parser.error(f"no notebook {', '.join(sorted(unknown))}: use some of {', '.join(NAMES)}")
    given = dict(setting.partition("=")[::2] for setting in flags.set)
    for name in flags.names or NAMES:
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            settings = small_settings(name, Path(scratch)) if flags.small else {}
            notebook = execute(name, settings | {key: _value(text) for key, text in given.items()})
        if flags.write:
            nbformat.write(with_plots_alone(notebook), HERE / f"{name}.ipynb")


def _value(text: str) -> Any:
    """A Python literal, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


if __name__ == "__main__":
    main()
