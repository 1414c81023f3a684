#!/usr/bin/env bash
# `cam`, `amn`, `fbr_amn`, each alone and refined by IRN, over seeds, and their table (mean ± standard deviation).
#
#   bash scripts/compare_amn.sh                                     toy, three seeds
#   SEEDS=0 DATASET=voc12 ROOT=... TRAIN_LIST=train SHORT=1 bash scripts/compare_amn.sh
# All methods of a seed share its first stage. JOBS=2 runs two seeds at a time (one thread each). Every setting of
# script_amn.sh holds here. BASELINE=amn adds paired differences to that row. Finished runs are kept.
set -euo pipefail
calls="script_amn.sh"
source "$(dirname "$0")/settings.sh"
source scripts/comparison.sh
export GATE="${GATE:-0}"                    # one for all methods, as they share the first stage
export METHODS="${METHODS:-cam amn fbr_amn}"
export COMPARE_OUT="${OUT:-out/compare-amn-${DATASET:-toy}}"

mkdir -p "$COMPARE_OUT/runs"
one() {  # method, seed
  local run="$COMPARE_OUT/runs/$1-seed$2" first="$COMPARE_OUT/runs/cam-seed$2/1-cam" own
  own="$run/2-$1"
  [ "${ROUNDS:-1}" = 1 ] || own+="-round$ROUNDS"
  [ "$1" = cam ] && own="$first"
  METHOD="$1" SEED="$2" OUT="$run" CAM_OUT="$first" \
    logged "$1, seed $2" "$run" bash scripts/script_amn.sh || return 1
  mkdir -p "$COMPARE_OUT/$1-seed$2" "$COMPARE_OUT/$1+irn-seed$2"
  cp "$own"/{miou*,config}.json "$COMPARE_OUT/$1-seed$2"
  cp "$run"/3-irn/{miou*,config}.json "$COMPARE_OUT/$1+irn-seed$2"
}
export -f one
failed=0
seed_of() {  # seed: its methods one after the other, as they share the first stage
  local failed=0
  one cam "$1" || return 1
  for method in $METHODS; do
    if [ "$method" != cam ]; then one "$method" "$1" || failed=1; fi
  done
  return "$failed"
}
export -f seed_of
# shellcheck disable=SC2086  # SEEDS is a list of words
printf '%s\n' $SEEDS | xargs -P "$JOBS" -L 1 bash -c 'seed_of "$1"' seed_of || failed=1
rows=()
for method in $METHODS; do rows+=("$method" "$method+irn"); done
"$PYTHON" -m tool.report.table "$COMPARE_OUT" --methods "${rows[@]}" ${BASELINE:+--baseline "$BASELINE"} ${SAVE:+--save "$SAVE"}
exit "$failed"
