#!/usr/bin/env bash
# Segmentation networks that are trained on the masks of several methods, and their table.
#
#   MASKS="truth=truth fbr=out/compare-toy/runs/fbr-seed%/mask" bash scripts/compare_seg.sh
#   SHORT=1 DATASET=voc12 ROOT=.../voc6 TRAIN_LIST=train MASKS="..." SEEDS=0 bash scripts/compare_seg.sh
# MASKS are pairs NAME=FOLDER; a % in the folder is the seed, and truth the dataset's own masks (an upper bound).
# SEEDS="0 1 2"; JOBS=2 runs two at a time (one thread each). SAVE=FOLDER receives the figures of each run. Every setting
# of script_seg.sh holds here. LABELS=1 by default. Finished runs are kept.
set -euo pipefail
calls="script_seg.sh"
source "$(dirname "$0")/settings.sh"
source scripts/comparison.sh
MASKS="${MASKS:-}" && need MASKS "pairs NAME=FOLDER"
export DATASET="${DATASET:-toy}" LABELS="${LABELS:-1}"
if [ "$DATASET" = toy ]; then export ROOT="${ROOT:-out/toy-data}"; fi
export COMPARE_OUT="${OUT:-out/seg-$DATASET}"

mkdir -p "$COMPARE_OUT"
one() {  # name=folder, seed
  local run="$COMPARE_OUT/${1%%=*}-seed$2" masks="${1#*=}"
  MASK_DIR="${masks//%/$2}" SEED="$2" OUT="$run" logged "${1%%=*}, seed $2" "$run" bash scripts/script_seg.sh
}
export -f one
failed=0
for seed in $SEEDS; do
  for pair in $MASKS; do echo "$pair $seed"; done
done | xargs -P "$JOBS" -L 1 bash -c 'one "$@"' one || failed=1
runs=()
for pair in $MASKS; do
  for seed in $SEEDS; do
    if [ -f "$COMPARE_OUT/${pair%%=*}-seed$seed/miou-${LIST:-val}-crf.json" ]; then runs+=("$COMPARE_OUT/${pair%%=*}-seed$seed"); fi
  done
done
"$PYTHON" -m tool.report.seg "${runs[@]}" --list "${LIST:-val}" ${SAVE:+--save "$SAVE"}
exit "$failed"
