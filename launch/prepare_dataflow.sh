#!/usr/bin/env bash
# Prepares a dataset of volumes on Google Cloud Dataflow: `dmfnet data prepare paired_volumes` with
# its subjects divided over a cluster. Run it again after a failure: what is done is kept in
# DATA_DIR/paired_volumes/work and not done again.
#
# EDIT the next lines, or set them in the environment. MANUAL_DIR is a folder here with pairs.csv,
# whose paths are addresses that every worker can read (gs://), and if wanted with train.txt,
# validation.txt and test.txt. The workers need this package: SDK_IMAGE is an image of Apache Beam's
# SDK with `pip install dmfnet_jax[beam]` in it, of the Python version that runs here.
set -euo pipefail

PROJECT=${PROJECT:-my-project}
REGION=${REGION:-us-central1}
BUCKET=${BUCKET:-gs://my-bucket}
DATA_DIR=${DATA_DIR:-$BUCKET/data}
MANUAL_DIR=${MANUAL_DIR:-lists}
SDK_IMAGE=${SDK_IMAGE:-$REGION-docker.pkg.dev/$PROJECT/dmfnet/beam}
MAX_WORKERS=${MAX_WORKERS:-100}

FLAGS=(
  --runner=DataflowRunner
  --project="$PROJECT"
  --region="$REGION"
  --temp_location="$BUCKET/tmp"
  --sdk_container_image="$SDK_IMAGE"
  --max_num_workers="$MAX_WORKERS"
  --experiments=use_runner_v2
)
exec "${DMFNET:-dmfnet}" data prepare paired_volumes --data-dir "$DATA_DIR" --manual-dir "$MANUAL_DIR" \
  --beam-options "${FLAGS[*]}" "$@"
