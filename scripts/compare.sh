#!/usr/bin/env bash
# Several methods and seeds of one dataset, and their table (mean ± standard deviation over seeds).
#
#   bash scripts/compare.sh                                         toy, all methods, three seeds
#   SHORT=1 STEPS=400 METHODS="fill eps fbr" SEEDS=0 DATASET=voc12 ROOT=... TRAIN_LIST=train bash scripts/compare.sh
# A method may carry flags of train_fbr.py: METHODS="fbr fbr:--weight-bg-sim=0". JOBS=2 runs two at a time (one thread
# each). Every setting of script_contrast.sh holds here. Finished runs are kept.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="$(bash scripts/setup.sh)"
export PYTHON_READY="$PYTHON"
METHODS="${METHODS:-fill cam eps ppc fbr}"
SEEDS="${SEEDS:-0 1 2}"
COMPARE_OUT="${OUT:-out/compare-${DATASET:-toy}}"
JOBS="${JOBS:-1}"
if [ "$JOBS" -gt 1 ]; then export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"; fi
if [ "${DATASET:-toy}" = toy ]; then "$PYTHON" -m data.toy --root "${ROOT:-out/toy-data}"; fi

mkdir -p "$COMPARE_OUT"
one() {
  local method="${1%%:*}" flags="" seed="$2" out="$COMPARE_OUT/$1-seed$2"
  [[ "$1" == *:* ]] && flags="${1#*:}"
  [ -f "$out/miou.json" ] && return 0
  echo "$1, seed $seed -> $out"
  METHOD="$method" SEED="$seed" OUT="$out" METHOD_FLAGS="${flags//,/ }" bash scripts/script_contrast.sh >"$out.log" 2>&1 || {
    echo "$1, seed $seed failed: $out.log ends with" >&2
    tr '\r' '\n' <"$out.log" | tail -n 3 >&2
    return 1
  }
}
export -f one
failed=0
export COMPARE_OUT
for seed in $SEEDS; do
  for method in $METHODS; do
    [ "$method" = fill ] && [ "$seed" != "${SEEDS%% *}" ] && continue   # it has no randomness
    echo "$method $seed"
  done
done | xargs -P "$JOBS" -L 1 bash -c 'one "$@"' one || failed=1
# shellcheck disable=SC2086  # METHODS is a list of words
"$PYTHON" -m tool.report.table "$COMPARE_OUT" --methods $METHODS
exit "$failed"
