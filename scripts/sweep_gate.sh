#!/usr/bin/env bash
# Trained runs with and without the NROI gate, at several exponents of the CRF's background score, and their table.
# The gate costs no training: the runs' checkpoints are used as they are.
#
#   RUNS="out/compare-toy/cam-seed0 out/compare-toy/eps-seed0" bash scripts/sweep_gate.sh
#   RUNS="out/voc6/eps-seed0" DATASET=voc12 ROOT=.../voc6 bash scripts/sweep_gate.sh
# ALPHAS="2 3 4 8" are the exponents; the best of them on ground truth is an oracle, and the table says so. SCALES goes to
# infer_cam.py. SAVE=FOLDER receives the figures of each run, a small JSON. What is finished is kept.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
RUNS="${RUNS:-}" && need RUNS "run directories"
DATASET="${DATASET:-toy}"
if [ "$DATASET" = toy ]; then ROOT="${ROOT:-out/toy-data}" SCALES="${SCALES:-2}"; fi
need ROOT "the folder of the dataset"
data=(--dataset "$DATASET" --root "${ROOT:-}" --list "${LIST:-train}")
score=("${data[@]}")
[ "$DATASET" = toy ] && score+=(--context "$ROOT/context")

for run in $RUNS; do
  # shellcheck disable=SC2086  # SCALES is a list of words
  "$PYTHON" infer_cam.py --checkpoint "$run/checkpoint.pth" "${data[@]}" --gate nroi --keep-plain --out "$run/cam-both" \
    ${SCALES:+--scales $SCALES}
  for gate in none nroi; do
    out="$run/gate-$gate" cam="$run/cam-both"
    [ "$gate" = nroi ] || cam="$run/cam-both/plain"
    for alpha in ${ALPHAS:-2 3 4 8}; do
      "$PYTHON" crf_postprocess.py --cam-dir "$cam" "${data[@]}" --alpha "$alpha" --out "$out/mask-$alpha"
      "$PYTHON" eval_miou.py --pred-dir "$out/mask-$alpha" "${score[@]}" --json "$out/miou-$alpha.json"
    done
  done
done
# shellcheck disable=SC2086  # RUNS is a list of words
"$PYTHON" -m tool.report.gate $RUNS ${SAVE:+--save "$SAVE"}
