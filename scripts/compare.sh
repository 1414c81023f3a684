#!/usr/bin/env bash
# Several methods and seeds of one dataset, and their table (mean ± standard deviation over seeds).
#
#   bash scripts/compare.sh                                         toy, all methods, three seeds
#   SHORT=1 STEPS=400 METHODS="fill eps fbr" SEEDS=0 DATASET=voc12 ROOT=... TRAIN_LIST=train bash scripts/compare.sh
# A method may carry flags of train_fbr.py: METHODS="fbr fbr:--weight-nce-nroi=0". JOBS=2 runs two at a time (one thread
# each). BASELINE=eps adds paired differences to that method, over the seeds that both have on one processor model. Every
# setting of script_contrast.sh holds here. Finished runs are kept.
set -euo pipefail
calls="script_contrast.sh"
source "$(dirname "$0")/settings.sh"
source scripts/comparison.sh
METHODS="${METHODS:-fill cam eps ppc fbr}"
export COMPARE_OUT="${OUT:-out/compare-${DATASET:-toy}}"

mkdir -p "$COMPARE_OUT"
one() {  # method, seed
  local method="${1%%:*}" flags="" out="$COMPARE_OUT/$1-seed$2"
  [[ "$1" == *:* ]] && flags="${1#*:}"
  [ -f "$out/miou.json" ] && return 0
  METHOD="$method" SEED="$2" OUT="$out" METHOD_FLAGS="${flags//,/ }" \
    logged "$1, seed $2" "$out" bash scripts/script_contrast.sh
}
export -f one
failed=0
for seed in $SEEDS; do
  for method in $METHODS; do
    [ "$method" = fill ] && [ "$seed" != "${SEEDS%% *}" ] && continue   # it has no randomness
    echo "$method $seed"
  done
done | xargs -P "$JOBS" -L 1 bash -c 'one "$@"' one || failed=1
# shellcheck disable=SC2086  # METHODS is a list of words
"$PYTHON" -m tool.report.table "$COMPARE_OUT" --methods $METHODS ${BASELINE:+--baseline "$BASELINE"} ${SAVE:+--save "$SAVE"}
exit "$failed"
