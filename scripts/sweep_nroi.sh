#!/usr/bin/env bash
# The sweep by which the default weight of nce_nroi was chosen: {0, 0.01, 0.05, 0.2}, and its table.
#
#   bash scripts/sweep_nroi.sh                     toy
#   SHORT=1 STEPS=400 DATASET=voc12 ROOT=... TRAIN_LIST=train bash scripts/sweep_nroi.sh
# SEEDS, JOBS and every setting of script_contrast.sh hold as in compare.sh.
set -euo pipefail
calls="compare.sh"
source "$(dirname "$0")/settings.sh"
VARIANTS="fbr:--weight-nce-nroi=0 fbr:--weight-nce-nroi=0.01 fbr:--weight-nce-nroi=0.05 fbr:--weight-nce-nroi=0.2"
export OUT="${OUT:-out/sweep-nroi-${DATASET:-toy}}" METHODS="${VARIANTS}" SEEDS="${SEEDS:-0}"
exec bash scripts/compare.sh
