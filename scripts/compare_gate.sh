#!/usr/bin/env bash
# Methods, or variants of one, over seeds, each with and without the NROI gate, and their table with paired differences.
#
#   bash scripts/compare_gate.sh                                     toy: cam, eps, ppc and fbr, three seeds
#   STEPS=400 DATASET=voc12 ROOT=.../voc6 SEEDS="0 1" BASELINE="eps ppc" bash scripts/compare_gate.sh
#   METHODS="fbr fbr:--query-saliency=0" ...                      flags of train_fbr.py after a colon, divided by commas
# Each is trained once by its short recipe on LIST=train; the gate costs no training. ALPHAS="2 4 8" are the exponents of
# the CRF, 8 among them (the best is an oracle). SAVE=FOLDER receives the figures of each run. JOBS=2 runs two at a time (one thread
# each). What is finished is kept.
set -euo pipefail
methods="cam eps ppc fbr sfc"
calls="sweep_gate.sh"
source "$(dirname "$0")/settings.sh"
source scripts/comparison.sh
METHODS="${METHODS:-cam eps ppc fbr}"
export DATASET="${DATASET:-toy}" LIST="${LIST:-train}" ALPHAS="${ALPHAS:-8}"
if [ "$DATASET" = toy ]; then ROOT="${ROOT:-out/toy-data}"; fi
need ROOT "the folder of the dataset"
export ROOT="${ROOT:-}" OUT="${OUT:-out/gate-$DATASET}" STEPS="${STEPS:-}" SAVE="${SAVE:-}"

mkdir -p "$OUT"
both() {  # run directory, method, seed, flags: train, then sweep the gate
  # shellcheck disable=SC2086  # the flags are a list of words
  "$PYTHON_READY" train_fbr.py --method "$2" --dataset "$DATASET" --root "$ROOT" --list "$LIST" --out "$1" --seed "$3" \
    --short ${STEPS:+--steps "$STEPS"} $4 || return 1
  RUNS="$1" bash scripts/sweep_gate.sh
}
one() {  # method with its flags, seed
  local method="${1%%:*}" flags="" run="$OUT/$1-seed$2"
  [[ "$1" == *:* ]] && flags="${1#*:}"
  [ -f "$run/gate-nroi/miou-${ALPHAS##* }.json" ] && return 0
  logged "$1, seed $2" "$run" both "$run" "$method" "$2" "${flags//,/ }"
}
export -f both one
failed=0
for seed in $SEEDS; do
  for method in $METHODS; do echo "$method $seed"; done
done | xargs -P "$JOBS" -L 1 bash -c 'one "$@"' one || failed=1
runs=()
for method in $METHODS; do
  for seed in $SEEDS; do
    if [ -f "$OUT/$method-seed$seed/gate-nroi/miou-8.json" ]; then runs+=("$OUT/$method-seed$seed"); fi
  done
done
# shellcheck disable=SC2086  # BASELINE is a list of words
"$PYTHON" -m tool.report.gate "${runs[@]}" ${BASELINE:+--baseline $BASELINE}
exit "$failed"
