"""What `rcsd_jax.share` writes and uploads, read back as the hub does; no network."""

import json

import huggingface_hub
import pytest

from rcsd_jax.settings import keys
from rcsd_jax.share import __main__ as command
from rcsd_jax.share.facts import facts_of

SCORES = {
    "questions": 40,
    "accuracy": 0.425,
    "accuracy_stderr": 0.08,
    "accuracy_interval": [0.275, 0.5751],
    "length": 9.0,
}


@pytest.fixture
def base(tmp_path):
    """A base model whose README.md has a license."""
    folder = tmp_path / "home" / "small-base"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "LICENSE").write_text("Terms.")
    license = "license: other\nlicense_name: small\nlicense_link: https://small.org/license"
    (folder / "README.md").write_text(f"---\n{license}\n---\n# Small\n")
    return folder


@pytest.fixture
def workdir(tmp_path, base):
    """A job of two complete stages, the second from the first one's export."""
    job = tmp_path / "home" / "runs" / "job"
    for name, path in (("stage1", base), ("stage2", job / "stage1" / "export")):
        config = keys.stage()
        config.model.path = str(path)
        config.data.path = f"{tmp_path}/home/rows.jsonl:0.7,hub:allenai/rows#train:0.3"
        config.lora.update(rank=8, alpha=16.0)
        config.train.steps = 30
        folder = job / name
        (folder / "export").mkdir(parents=True)
        (folder / "adapter").mkdir()
        (folder / "config.json").write_text(keys.to_json(config))
        evaluation = {
            "base": {"held_out": {"greedy": SCORES | {"accuracy": 0.1, "accuracy_interval": [0.0, 0.2]}}},
            "trained": {"held_out": {"greedy": SCORES}, "judged": {"sampled": {"questions": 3, "rubric_score": None}}},
        }
        (folder / "summary.json").write_text(json.dumps({"evaluation": evaluation}))
        (folder / "starts.jsonl").write_text('{"at": "", "command": "", "versions": {"jax": "0.10.2"}}\n')
        (folder / "export" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        (folder / "export" / "model.safetensors").write_bytes(name.encode())
        (folder / "adapter" / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": str(path), "r": 8})
        )
        (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"adapter")
    (job / "report.html").write_text("<html>")
    return job


def share(capsys, *arguments):
    command.main([str(one) for one in arguments])
    return capsys.readouterr().out


def test_a_dry_run_writes_the_last_stage_with_a_card(workdir, base, tmp_path, capsys):
    out = share(capsys, workdir, "--to=me/my-model", f"--dry_run={tmp_path / 'out'}")
    names = ["LICENSE", "README.md", "config.json", "model.safetensors", "report.html", "training_config.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert out == f"written to {tmp_path / 'out'}: {', '.join(names)}\n"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"stage2"

    card = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["license_name"], data["license_link"]) == (
        "other",
        "small",
        "https://small.org/license",
    )
    assert (data["library_name"], data["pipeline_tag"], data["datasets"]) == (
        "transformers",
        "text-generation",
        ["allenai/rows"],
    )
    assert "base_model" not in data  # a folder is no hub id
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_value, result.metric_name) == (
        "held out",
        42.5,
        "accuracy, greedy, percent",
    )
    assert "| trained student | held out (40) | greedy | accuracy | 42.5 | 27.5 to 57.5 |" in card.text
    assert "| base student | held out (40) | greedy | accuracy | 10.0 | 0.0 to 20.0 |" in card.text
    assert (
        "Trained from `small-base`" in card.text
        and "whose teacher also saw rubric; 30 steps of 32 completions" in card.text
    )
    assert "| `lora.rank` | `8` |" in card.text and "`loss.beta`" not in card.text
    assert 'from_pretrained("me/my-model")' in card.text and "vllm serve me/my-model" in card.text
    assert "[small](https://small.org/license), as the base model." in card.text and "jax 0.10.2" in card.text


def test_no_folder_of_this_machine_is_published(workdir, tmp_path, capsys):
    for folder, model, *arguments in ((workdir, "export"), (workdir / "stage1", "small-base", "--adapter")):
        out = tmp_path / f"out{len(arguments)}"
        share(capsys, folder, "--to=me/my-model", f"--dry_run={out}", *arguments)
        texts = {path.name: path.read_text() for path in out.iterdir() if path.suffix in (".md", ".json")}
        assert len(texts) == 3 and not [name for name, text in texts.items() if str(tmp_path) in text]
        config = json.loads(texts["training_config.json"])
        assert config["data.path"] == "rows.jsonl:0.7,hub:allenai/rows#train:0.3" and config["model.path"] == model
        assert config["judge.base_url"] == "https://api.openai.com/v1" and set(config) == set(keys.flat(keys.stage()))


def test_an_adapter_names_its_base_at_the_hub(workdir, tmp_path, capsys, monkeypatch):
    config = json.loads((workdir / "stage1" / "config.json").read_text())
    config["model"]["path"] = "Qwen/Qwen3-0.6B"
    (workdir / "stage1" / "config.json").write_text(json.dumps(config))
    asked = []

    def load(place, **_):
        asked.append(place)
        return huggingface_hub.ModelCard("---\nlicense: apache-2.0\n---\n")

    monkeypatch.setattr(huggingface_hub.ModelCard, "load", load)
    out = share(capsys, workdir / "stage1", "--to=me/adapter", f"--dry_run={tmp_path / 'out'}", "--adapter")
    assert asked == ["Qwen/Qwen3-0.6B"] and "license" not in out and "is a folder" not in out
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text()) == {
        "base_model_name_or_path": "Qwen/Qwen3-0.6B", "r": 8,
    }  # fmt: skip
    card = huggingface_hub.ModelCard((tmp_path / "out" / "README.md").read_text())
    data = card.data.to_dict()
    assert (data["base_model"], data["license"], data["library_name"]) == ("Qwen/Qwen3-0.6B", "apache-2.0", "peft")
    assert "vllm serve Qwen/Qwen3-0.6B --enable-lora --max-lora-rank=8 --lora-modules rcsd=me/adapter" in card.text
    assert (tmp_path / "out" / "report.html").exists()  # the job's, above the stage
    assert (
        json.loads((workdir / "stage1" / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
        != "Qwen/Qwen3-0.6B"
    )


def test_a_base_that_was_a_folder_can_be_named(workdir, tmp_path, capsys):
    stage1 = workdir / "stage1"
    told, _ = share(capsys, stage1, "--to=me/adapter", f"--dry_run={tmp_path / 'one'}", "--adapter").splitlines()
    assert told == "the base small-base is a folder, which nobody finds: pass --base=OWNER/NAME"
    named = ["--adapter", "--base=small/small-base"]
    out = share(capsys, stage1, "--to=me/adapter", f"--dry_run={tmp_path / 'two'}", *named)
    assert "is a folder" not in out
    fields = json.loads((tmp_path / "two" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == "small/small-base"
    data = huggingface_hub.ModelCard.load(tmp_path / "two" / "README.md").data
    assert (data.base_model, data.license_name) == ("small/small-base", "small")  # the folder's own license


def test_an_adapter_on_an_earlier_run_s_model_is_not_said_to_be_on_that_run_s_base(workdir, tmp_path, capsys):
    to = ["--to=me/adapter", f"--dry_run={tmp_path / 'out'}", "--adapter"]
    line = "stage1/export: the adapter's base is another run's model; share the merged model, or name"
    assert line in refused(capsys, workdir, *to)
    share(capsys, workdir, *to, "--base=me/after-stage1")
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == "me/after-stage1"


def test_an_unknown_license_is_left_to_the_user_in_one_line(workdir, base, tmp_path, capsys):
    (base / "README.md").unlink()
    out = share(capsys, workdir, "--to=me/my-model", f"--dry_run={tmp_path / 'out'}", "--noreport")
    told, written = out.splitlines()
    assert told == "small-base does not say its license: pass --license=ID, or add 'license:' to README.md"
    assert "report.html" not in written
    text = (tmp_path / "out" / "README.md").read_text()
    assert (
        "license:" not in text
        and "That of the base model, `small-base`; see there." in text
        and "report.html" not in text
    )
    assert facts_of(workdir, license="mit").license == ("mit", None, None)


class Api:
    """A stand-in for the hub's client that keeps what it is given."""

    made: list = []

    def create_repo(self, repo_id, **how):
        self.made.append((repo_id, how))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message, delete_patterns):
        files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        self.made.append((repo_id, files, delete_patterns))


def test_an_upload_gives_the_hub_the_same_files(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "made", [])
    share(capsys, workdir, "--to=me/my-model", f"--dry_run={tmp_path / 'out'}")
    assert Api.made == []
    out = share(capsys, workdir, "--to=me/my-model", "--private")
    created, (repository, files, replaced) = Api.made
    assert created == ("me/my-model", {"private": True, "exist_ok": True}) and repository == "me/my-model"
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert "*.safetensors" in replaced and out.endswith("shared: https://huggingface.co/me/my-model\n")
    assert (workdir / "stage2" / "export" / "model.safetensors").read_bytes() == b"stage2"


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        share(capsys, *arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_what_cannot_be_shared_is_one_line(workdir, tmp_path, capsys, monkeypatch):
    assert "not the name of a repository" in refused(capsys, workdir, "--to=my-model")
    assert "no run in it" in refused(capsys, tmp_path / "nothing", "--to=me/x")
    assert "exists and holds something" in refused(capsys, workdir, "--to=me/x", f"--dry_run={workdir}")
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "create_repo", lambda *_, **__: (_ for _ in ()).throw(OSError("401 Unauthorized\nmore")))
    line = refused(capsys, workdir, "--to=me/x")
    assert "error: field '--to' = 'me/x': the hub did not take it (OSError: 401 Unauthorized); check the name" in line
    (workdir / "stage2" / "adapter" / "adapter_config.json").unlink()
    assert "the run wrote no such model; run it again with --config.export.adapter=True" in refused(
        capsys, workdir, "--to=me/x", "--adapter"
    )
    (workdir / "stage2" / "summary.json").unlink()
    assert "the run is not complete" in refused(capsys, workdir, "--to=me/x")
