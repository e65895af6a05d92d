#!/usr/bin/env bash
# Trains on a TPU VM slice of any size: makes it, installs the package, runs all workers, and starts again after preemption.
#
#   TPU=rcsd ZONE=us-west4-a TYPE=v5litepod-16 WORKDIR=gs://BUCKET/run DATA=rows.jsonl \
#     experiments/launch/tpu_vm.sh --config=configs/stage2.py:ground_truth --config.model.path=Qwen/Qwen3-1.7B
#
# TPU, ZONE, TYPE  name, zone and accelerator type of the slice; it is made where it does not exist, and not deleted at the end
# WORKDIR          a folder that all workers reach: gs://..., or a shared file system
# DATA             a local file, copied to every worker
# SPOT=1           spot capacity; VERSION: of the TPU software (v2-alpha-tpuv5-lite); MAX_RESTARTS: 20; WAIT: 60 seconds
#
# Exit status 2 of any worker is bad input: it is not tried again. Run this from the root of the repository.
set -euo pipefail

: "${TPU:?name of the slice}" "${ZONE:?its zone}" "${TYPE:?its accelerator type}" "${WORKDIR:?gs:// folder}" "${DATA:?rows}"
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
MAX_RESTARTS=${MAX_RESTARTS:-20}
WAIT=${WAIT:-60}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

vm() { local verb=$1; shift; gcloud compute tpus tpu-vm "$verb" "$@" --zone="$ZONE"; }
state() { vm describe "$TPU" --format='value(state)' 2>/dev/null || echo MISSING; }

ready() {  # leaves a slice that is READY, with the package and the data on every worker
  case $(state) in
    READY) ;;
    PREEMPTED | TERMINATED | FAILED) vm delete "$TPU" --quiet || return 1 ;;&
    MISSING | PREEMPTED | TERMINATED | FAILED)
      vm create "$TPU" --accelerator-type="$TYPE" --version="$VERSION" ${SPOT:+--spot} || return 1 ;;
    *) return 1 ;;
  esac
  git archive --format=tar.gz -o "$log.tar.gz" HEAD || return 1
  vm scp "$log.tar.gz" "$TPU:rcsd_jax.tar.gz" --worker=all || return 1
  vm scp "$DATA" "$TPU:rows.jsonl" --worker=all || return 1
  rm -f "$log.tar.gz"
  vm ssh "$TPU" --worker=all --command="mkdir -p rcsd_jax && tar xzf rcsd_jax.tar.gz -C rcsd_jax \
&& pip install -q --user uv && ~/.local/bin/uv venv -q --allow-existing --python 3.12 env \
&& ~/.local/bin/uv pip install -q --python env/bin/python -e 'rcsd_jax[tpu,gcs]'"
}

# The lock: a worker whose connection was lost may still be training; the next attempt waits until it has ended.
printf -v arguments ' %q' --distributed --workdir="$WORKDIR" "$@"
run="cd rcsd_jax && flock -w 300 ~/rcsd_jax.lock ../env/bin/python -m rcsd_jax.main$arguments --config.data.path=\$HOME/rows.jsonl"

for ((attempt = 0; attempt <= MAX_RESTARTS; attempt++)); do
  if ((attempt)); then
    echo "tpu_vm.sh: start $attempt of at most $MAX_RESTARTS again, in $WAIT s" >&2
    sleep "$WAIT"
  fi
  ready || continue
  vm ssh "$TPU" --worker=all --command="($run); echo rcsd_jax exit status \$?" 2>&1 | tee "$log" || true
  statuses=$(grep -o 'rcsd_jax exit status [0-9]*' "$log" | grep -o '[0-9]*$' | sort -un | tr '\n' ' ' || true)
  case " $statuses" in
    " 0 ") exit 0 ;;
    *" 2 "*) exit 2 ;;
  esac
done
echo "tpu_vm.sh: gave up after $MAX_RESTARTS restarts; the same command continues" >&2
exit 1
