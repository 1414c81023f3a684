#!/usr/bin/env bash
# TransCAM and BAO over seeds, each without and with the NROI gate, and their table (mean ± standard deviation).
#
#   bash scripts/compare_bao.sh                                     toy, three seeds
#   DATASET=voc12 ROOT=... TRAIN_LIST=train SHORT=1 bash scripts/compare_bao.sh
#   OUT=out/compare-toy bash scripts/compare_bao.sh                 its rows beside those of compare.sh, in one table
# The rows: transcam at its published threshold (.44), transcam-free at the one that nobody chose for it (.22), bao and
# bao-target by the best row, each with +gate too. The CAM of a row is scored before the CRF. Each network of a seed is
# trained once. JOBS=2 runs two seeds at a time (one thread each). GATES=0 leaves out the gate, NETWORKS=online the target.
# Every setting of script_bao.sh holds here. BASELINE=transcam adds paired differences to that row. Finished runs are kept.
set -euo pipefail
calls="script_bao.sh"
source "$(dirname "$0")/settings.sh"
source scripts/comparison.sh
export GATES="${GATES:-0 1}" NETWORKS="${NETWORKS:-online target}"
export COMPARE_OUT="${OUT:-out/compare-bao-${DATASET:-toy}}"

mkdir -p "$COMPARE_OUT/runs"
row() {  # row, seed, folder of the run, end of the names of its masks' results, end of those of its CAMs'
  local out="$COMPARE_OUT/$1-seed$2"
  mkdir -p "$out"
  cp "$3/config.json" "$out/config.json"
  cp "$3/miou_cam$5.json" "$out/miou_cam.json"
  cp "$3/miou$4.json" "$out/miou.json"
}
seed_of() {  # seed: both stages, then each network and gate of it
  local run="$COMPARE_OUT/runs/bao-seed$1" gate network kind end
  for gate in $GATES; do
    kind="" end=""
    if [ "$gate" = 1 ]; then kind="+gate" end="-gated"; fi
    for network in $NETWORKS; do
      SEED="$1" OUT="$run" GATE="$gate" NETWORK="$network" \
        logged "bao, $network, gate $gate, seed $1" "$run-$network$end" bash scripts/script_bao.sh || return 1
      if [ "$network" = online ]; then
        row "bao$kind" "$1" "$run/2-bao" "$end" "$end"
      else
        row "bao-target$kind" "$1" "$run/2-bao" "-target$end" "-target$end"
      fi
    done
    row "transcam$kind" "$1" "$run/1-transcam" "$end" "$end"
    row "transcam-free$kind" "$1" "$run/1-transcam" "-free$end" "$end"
  done
}
export -f row seed_of
failed=0
# shellcheck disable=SC2086  # SEEDS is a list of words
printf '%s\n' $SEEDS | xargs -P "$JOBS" -L 1 bash -c 'set -e; seed_of "$1"' seed_of || failed=1
"$PYTHON" -m tool.report.table "$COMPARE_OUT" ${BASELINE:+--baseline "$BASELINE"} ${SAVE:+--save "$SAVE"}
exit "$failed"
