#!/usr/bin/env bash
# Fine-tuning on the hosts of a Cloud TPU slice, without Kubernetes:
#   bash docs/recipes/cloud_tpu.sh create|setup|train|status|delete
# Needs the gcloud command, and PROJECT, ZONE, NAME and BUCKET, which the account of the slice may read
# and write.
set -euo pipefail
: "${PROJECT:?the project of Google Cloud}" "${ZONE:?such as us-west4-a}" "${NAME:?of the slice}"
: "${BUCKET:?with data and initial weights, where checkpoints go}"
ACCELERATOR="${ACCELERATOR:-v5litepod-16}"
RUNTIME="${RUNTIME:-v2-alpha-tpuv5-lite}"
HOSTS="${HOSTS:-4}"
REPOSITORY="${REPOSITORY:-}"

tpu() { gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"; }
on_all_hosts() { tpu tpu-vm ssh "$NAME" --worker=all --command="$1"; }

case "${1:-}" in
  create)
    tpu queued-resources create "$NAME" --node-id="$NAME" --spot \
      --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME"
    ;;
  status)
    tpu queued-resources describe "$NAME" --format='value(state.state)'
    ;;
  setup)
    : "${REPOSITORY:?address of the git repository with this checkout}"
    on_all_hosts "set -e
      sudo apt-get -qq update && sudo apt-get -qq install -y python3.11-venv
      [ -d xvla ] || git clone $REPOSITORY xvla
      cd xvla && python3.11 -m venv .venv
      .venv/bin/pip install --constraint requirements/constraints.txt --editable '.[data,gcs,tpu]'"
    ;;
  train)
    # a lost connection ends no run: the log stays on the hosts
    on_all_hosts "cd xvla && nohup .venv/bin/python -m scripts.train \
      --config=configs/finetune_libero.py --workdir=gs://$BUCKET/runs/libero \
      --config.init_from=gs://$BUCKET/xvla --config.data.root=gs://$BUCKET/data \
      --config.data.mixture=libero_rlds:1 \
      --config.data.lanes=$HOSTS --config.distributed.kind=auto \
      --program_cache=gs://$BUCKET/programs --restarts=20 >train.log 2>&1 &"
    ;;
  delete)
    tpu queued-resources delete "$NAME" --force --quiet
    ;;
  *)
    echo "usage: cloud_tpu.sh create | setup | train | status | delete" >&2
    exit 2
    ;;
esac
