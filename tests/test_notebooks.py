"""The notebooks: what is committed of them, and that every cell runs on the small settings of `colab/run.py`."""

import base64
import importlib.util
import re
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import nbformat
import pytest

from rcsd_jax.settings.unpack import check

COLAB = Path(__file__).resolve().parents[1] / "colab"
NOTEBOOKS = ("embedded_world", "losses_in_flax", "own_data", "plan_tpu", "smollm2")
LARGEST = 400_000  # bytes
# Of a machine that a notebook was run on: home and temporary folders, where Colab or Linux keep packages, addresses.
OF_A_MACHINE = re.compile(
    r"/(?:home|root|tmp|content|Users|usr|opt|work|mnt|var)/|localhost|\b\d{1,3}(?:\.\d{1,3}){3}\b"
)


def read(name):
    return nbformat.read(COLAB / f"{name}.ipynb", as_version=4)


def module_of(path):
    specification = importlib.util.spec_from_file_location(f"colab_{path.stem}", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run():
    """`colab/run.py` as a module."""
    return module_of(COLAB / "run.py")


def test_every_notebook_is_tested(run):
    assert run.NAMES == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_has_its_parameters_and_one_install_cell(name):
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    installing = [i for i, cell in enumerate(code) if re.search(r"pip install|git clone", cell.source)]
    assert installing == [1] and code[1].metadata["tags"] == ["install"]
    assert [i for i, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", ())] == [0]
    assert "# @param" in code[0].source and code[0].source.startswith('SOURCE = ""')


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_but_plots_is_kept_of_a_run(name):
    path = COLAB / f"{name}.ipynb"
    text, notebook = path.read_text(encoding="utf-8"), read(name)
    assert path.stat().st_size < LARGEST
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        if cell.cell_type == "code":
            assert cell.execution_count is None
            for output in cell.outputs:
                assert output.output_type == "display_data" and list(output.data) == ["image/png"]
                assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG") and output.metadata == {}
        else:
            assert "attachments" not in cell
    assert socket.gethostname() not in re.findall(r"[\w.-]+", text)
    for cell in notebook.cells:
        assert not OF_A_MACHINE.search(cell.source), cell.source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_published_notebook_opens_itself_and_installs_its_release(name):
    publish, notebook = module_of(COLAB / "publish.py"), read(name)
    publish.published(notebook, name, "first/one", "git+https://github.com/first/one")
    publish.published(notebook, name, "owner/name", "rcsd_jax==1.2.3")
    nbformat.validate(notebook)
    badge, _, about = notebook.cells[0].source.partition("\n\n")
    assert f"(https://colab.research.google.com/github/owner/name/blob/main/colab/{name}.ipynb)" in badge
    assert about == read(name).cells[0].source and "first/one" not in nbformat.writes(notebook)
    assert notebook.cells[1].source == read(name).cells[1].source.replace('SOURCE = ""', 'SOURCE = "rcsd_jax==1.2.3"')


def test_losses_are_all_that_the_flax_notebook_takes():
    source = "\n".join(cell.source for cell in read("losses_in_flax").cells if cell.cell_type == "code")
    assert re.findall(r"^\s*(?:from|import) rcsd_jax.*", source, re.M) == ["from rcsd_jax import losses"]


def test_outputs_other_than_plots_are_taken_away(run):
    v4 = nbformat.v4
    image = v4.new_output("display_data", {"image/png": "iVBORw0K", "text/plain": "<Figure>"}, metadata={"needs": 1})
    text = v4.new_output("stream", name="stdout", text="/home/someone")
    error = v4.new_output("error", ename="E", evalue="e", traceback=[])
    cell = v4.new_code_cell(
        "1",
        outputs=[text, image, error],
        execution_count=3,
        metadata={"tags": ["a"], "execution": {"iopub.status.busy": "12:00"}},
    )
    notebook = v4.new_notebook(
        cells=[cell, v4.new_markdown_cell("# A")], metadata={"language_info": {"name": "python", "version": "3"}}
    )
    kept = run.with_plots_alone(notebook)
    nbformat.validate(kept)
    assert kept.cells[0].outputs == [v4.new_output("display_data", {"image/png": "iVBORw0K"})]
    assert kept.cells[0].execution_count is None and kept.cells[0].metadata == {"tags": ["a"]}
    assert kept.cells[1].source == "# A" and kept.metadata == {"language_info": {"name": "python"}}
    assert len(notebook.cells[0].outputs) == 3


def test_a_parameter_that_is_not_there_is_told(run):
    with pytest.raises(ValueError, match="plan_tpu has no parameter STEPS, only .*BATCH_SIZE"):
        run.execute("plan_tpu", {"STEPS": 1})


def test_on_a_single_tpu_chip_the_users_model_has_the_settings_of_its_size(monkeypatch):
    cells = [cell.source for cell in read("own_data").cells if cell.cell_type == "code"]
    (settings,) = [source for source in cells if "def settings(config)" in source]
    for kind, batch, expected in (("TPU v5 lite", 12, 4), ("TPU v6 lite", 12, 4), ("cpu", 12, 0)):
        monkeypatch.setattr(jax, "devices", lambda kind=kind: [SimpleNamespace(device_kind=kind)])
        monkeypatch.setattr(jax, "device_count", lambda: 1)
        names = {"workdir": Path("runs")}
        exec(cells[0], names)
        names["BATCH_SIZE"] = batch
        exec(settings, names)
        for config in (names["first"], names["second"]):
            check(config)
            assert config.sampling.slots == expected and (config.model.remat != "full") == (kind != "cpu")
            assert config.train.batch_size == batch and config.model.path == "Qwen/Qwen3-0.6B"


# What the last cell with an output says at least: the run came that far, and found what it should.
SAID = {
    "embedded_world": ("| stage1 | criterion_f1 | base |", "question:", "report.html", "<iframe srcdoc="),
    "losses_in_flax": ("NNX, from logits:", "gradients differ by at most", "from hidden states ["),
    "own_data": (
        "| stage2 | accuracy | trained |",
        "----- the teacher sees",
        "before:",
        "report.html",
        "<iframe srcdoc=",
    ),
    "smollm2": ("rubric:", "| out_of_distribution | trained |", "after: "),
    "plan_tpu": ("verdict: these programs fit", "Nothing was run on a TPU"),
}
PLOTS = {"embedded_world": 4, "losses_in_flax": 2, "own_data": 1, "plan_tpu": 2, "smollm2": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_runs(name, run, tmp_path, monkeypatch):
    if name == "plan_tpu":
        pytest.importorskip("libtpu")
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = (COLAB / f"{name}.ipynb").read_bytes()
    notebook = run.execute(name, run.small_settings(name, tmp_path))
    assert (COLAB / f"{name}.ipynb").read_bytes() == before
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "\n".join(
        "".join(output.get("text", "")) + "".join(map(str, output.get("data", {}).values()))
        for output in outputs
        if "image/png" not in output.get("data", {})
    )
    for words in SAID[name]:
        assert words in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PLOTS[name]
    kept = run.with_plots_alone(notebook)
    assert [len(cell.get("outputs", ())) for cell in kept.cells].count(1) == PLOTS[name]
