"""What a user submits: the TPU VM script against a stand-in for gcloud, and the fields of the JobSet manifest."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[1] / "experiments" / "launch"
# Says the next state of STATES to `describe`, and the next status of RESULTS for two workers to a run.
GCLOUD = r"""#!/usr/bin/env bash
printf '%s ' "$@" | tr '\n' ' ' >> "$GCLOUD_LOG"; echo >> "$GCLOUD_LOG"
case "$4 $*" in
  describe*) n=$(grep -c ' describe ' "$GCLOUD_LOG"); state=$(echo $STATES | cut -d' ' -f$n)
    [ "$state" = MISSING ] && exit 1; echo $state ;;
  ssh*rcsd_jax.main*) n=$(grep -c 'rcsd_jax.main' "$GCLOUD_LOG")
    for worker in 0 1; do echo "rcsd_jax exit status $(echo $RESULTS | cut -d' ' -f$n)"; done ;;
esac
"""
TRIED = ["describe", "scp", "scp", "ssh", "ssh"]


def launch(tmp_path, states, results):
    """(exit status, gcloud's verbs, its calls) of the script."""
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "GCLOUD_LOG": str(tmp_path / "log"), "STATES": states, "RESULTS": results,
        "TPU": "t", "ZONE": "z", "TYPE": "v5litepod-16", "WORKDIR": "gs://b/run", "DATA": str(tmp_path / "rows.jsonl"),
        "WAIT": "0", "MAX_RESTARTS": "2",
    }  # fmt: skip
    command = [str(LAUNCH / "tpu_vm.sh"), "--config=configs/stage2.py", "--config.eval.roles=('base',)"]
    ended = subprocess.run(command, env=environment, cwd=LAUNCH.parents[1], capture_output=True, text=True, timeout=60)
    calls = (tmp_path / "log").read_text().splitlines()
    return ended.returncode, [call.split()[3] for call in calls], calls


@pytest.mark.parametrize(
    "states, results, status, verbs",
    [
        ("MISSING", "0", 0, ["describe", "create", *TRIED[1:]]),
        ("READY PREEMPTED", "143 0", 0, [*TRIED, "describe", "delete", "create", *TRIED[1:]]),
        ("CREATING READY", "0", 0, ["describe", *TRIED]),
        ("READY", "2", 2, TRIED),
        ("READY READY READY", "3 3 3", 1, TRIED * 3),
    ],
    ids=["made", "preempted", "not ready yet", "bad input", "gives up"],
)
def test_tpu_vm(tmp_path, states, results, status, verbs):
    returned, called, calls = launch(tmp_path, states, results)
    assert (returned, called) == (status, verbs)
    assert all("--zone=z" in call for call in calls)
    run = calls[-1]
    assert "--worker=all" in run and " --distributed --workdir=gs://b/run " in run
    assert r"--config.eval.roles=\(\'base\'\,\)" in run


# Type, or fields (with ! where they are required), or a list of one; of JobSet v1alpha2 and batch/v1, as far as used.
CONTAINER = {
    "name!": str, "image!": str, "command!": [str], "workingDir": str, "ports": [{"containerPort!": int}],
    "resources": {"limits!": dict}, "volumeMounts": [{"name!": str, "mountPath!": str}],
}  # fmt: skip
POD = {
    "restartPolicy!": str, "terminationGracePeriodSeconds": int, "serviceAccountName": str, "nodeSelector!": dict,
    "initContainers": [CONTAINER], "containers!": [CONTAINER], "volumes": [{"name!": str, "emptyDir": dict}],
}  # fmt: skip
ON_EXIT = {"containerName": str, "operator!": str, "values!": [int]}
JOB = {
    "parallelism!": int, "completions!": int, "completionMode": str, "backoffLimit!": int,
    "podFailurePolicy": {"rules!": [{"action!": str, "onExitCodes": ON_EXIT}]}, "template!": {"spec!": POD},
}  # fmt: skip
RULE = {"name!": str, "action!": str, "onJobFailureReasons": [str], "targetReplicatedJobs": [str]}
JOBSET = {
    "apiVersion!": str, "kind!": str, "metadata!": {"name!": str, "annotations": dict},
    "spec!": {
        "failurePolicy": {"maxRestarts": int, "rules": [RULE]},
        "replicatedJobs!": [{"name!": str, "replicas": int, "template!": {"spec!": JOB}}],
    },
}  # fmt: skip


def check(value, schema, where="jobset"):
    if isinstance(schema, type):
        assert isinstance(value, schema), where
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, where
        for number, item in enumerate(value):
            check(item, schema[0], f"{where}[{number}]")
    else:
        known = {name.rstrip("!"): of for name, of in schema.items()}
        assert set(value) <= set(known), f"{where}: {set(value) - set(known)}"
        assert {name[:-1] for name in schema if name.endswith("!")} <= set(value), where
        for name, item in value.items():
            check(item, known[name], f"{where}.{name}")


def test_jobset():
    manifest = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    check(manifest, JOBSET)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (train,) = pod["containers"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert job["parallelism"] == job["completions"]
    assert job["parallelism"] * train["resources"]["limits"]["google.com/tpu"] == rows * columns
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"  # a pod failure policy needs the latter
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    assert train["command"][:4] == ["python", "-m", "rcsd_jax.main", "--distributed"]
    mounts = {mount["name"] for mount in train["volumeMounts"]}
    assert mounts <= {volume["name"] for volume in pod["volumes"]}
