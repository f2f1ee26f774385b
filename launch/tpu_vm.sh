#!/usr/bin/env bash
# Trains on a Cloud TPU VM slice: the same command on all its workers. Run it again after a
# preemption, or to go on: the run resumes from its workdir.
#
#   launch/tpu_vm.sh create    # the slice
#   launch/tpu_vm.sh setup     # this checkout and its packages on every worker
#   launch/tpu_vm.sh train     # starts it; it goes on when this terminal closes
#   launch/tpu_vm.sh logs      # what worker 0 says, until Ctrl-C
#   launch/tpu_vm.sh stop      # all save the same step and end
#   launch/tpu_vm.sh delete
#
# EDIT the next lines, or set them in the environment. The dataset must lie at DATA_DIR already
# (dmfnet data prepare ... --data-dir), and all workers must reach it and WORKDIR: gs:// addresses.
# The package needs Python >= 3.11: PYTHON names one, which setup installs where it is missing.
set -euo pipefail

TPU_NAME=${TPU_NAME:-dmfnet}
PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-us-west4-a}
ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-v5litepod-256}
RUNTIME_VERSION=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}
PYTHON=${PYTHON:-python3.11}
BUCKET=${BUCKET:-gs://my-bucket}
CONFIG=${CONFIG:-configs/dmfnet.py:stage=1}
WORKDIR=${WORKDIR:-$BUCKET/runs/stage1}
DATA_DIR=${DATA_DIR:-$BUCKET/data}
# 256 chips with 8 pairs each; see `dmfnet preflight` for what fits.
OVERRIDES=${OVERRIDES:---config.batch_size=2048 --config.compute_dtype=bfloat16 --config.remat=True}

cd "$(dirname "$0")/.."
TPU=(gcloud compute tpus tpu-vm)
WHERE=(--project "$PROJECT" --zone "$ZONE")

on_all_workers() {
  "${TPU[@]}" ssh "$TPU_NAME" "${WHERE[@]}" --worker=all --command="$1"
}

case "${1:-}" in
  create)
    "${TPU[@]}" create "$TPU_NAME" "${WHERE[@]}" \
      --accelerator-type="$ACCELERATOR_TYPE" --version="$RUNTIME_VERSION"
    ;;
  setup)
    archive=$(mktemp --suffix=.tar.gz)
    git archive --format=tar.gz -o "$archive" HEAD
    "${TPU[@]}" scp "$archive" "$TPU_NAME:dmfnet_jax.tar.gz" "${WHERE[@]}" --worker=all
    rm "$archive"
    on_all_workers "mkdir -p dmfnet_jax && tar -xzf dmfnet_jax.tar.gz -C dmfnet_jax && cd dmfnet_jax &&
      { command -v $PYTHON >/dev/null || sudo apt-get install -y -qq $PYTHON $PYTHON-venv; } &&
      $PYTHON -m venv .venv && .venv/bin/pip install --quiet '.[tpu]' gcsfs"
    ;;
  train)
    # JAX finds the other workers through the slice's metadata.
    on_all_workers "cd dmfnet_jax && exec >>train.log 2>&1 </dev/null &&
      setsid -f .venv/bin/dmfnet train --config $CONFIG --workdir $WORKDIR \
      --config.data_dir=$DATA_DIR $OVERRIDES"
    ;;
  logs)
    "${TPU[@]}" ssh "$TPU_NAME" "${WHERE[@]}" --worker=0 --command="tail -n 50 -F dmfnet_jax/train.log"
    ;;
  stop)
    on_all_workers "pkill -TERM -f '[d]mfnet train' || true"
    ;;
  delete)
    "${TPU[@]}" delete "$TPU_NAME" "${WHERE[@]}" --quiet
    ;;
  *)
    echo "usage: $0 create|setup|train|logs|stop|delete" >&2
    exit 2
    ;;
esac
