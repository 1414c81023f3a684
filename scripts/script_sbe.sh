#!/usr/bin/env bash
# SBE: CAMs -> seeds -> boundary labels, with saliency -> boundary network -> CAMs walk within its boundaries -> masks, mIoU.
#
#   bash scripts/script_sbe.sh                           the embedded dataset; minutes on two CPU cores
#   METHOD=bes bash scripts/script_sbe.sh                BES: the same without saliency
#   DATASET=voc12 ROOT=.../VOC2012 SALIENCY_ROOT=... WEIGHTS=.../resnet50.pth bash scripts/script_sbe.sh
#                                                        the paper's setting; one GPU
#   DATASET=coco14 ROOT=.../COCO SALIENCY_ROOT=... WEIGHTS=... bash scripts/script_sbe.sh
# SEED=0  OUT=out/...  BACKBONE=...  CAM_OUT=... (the CAMs and their seeds, which other runs may share)  SKIP_BAD_IMAGES=1
# are further settings; CAM_FLAGS, BOUNDARY_FLAGS go to train_fbr.py, LABEL_FLAGS to data.boundary, CAM_SCALES, WALK_SCALES
# (the size at which boundaries are found: that of training) to infer_cam.py.
# There are two masks of each image: mask/ without a CRF, foreground above BG, and mask-crf/, the CRF on these. Both are
# scored. BG is .21 (bes .25). The CAMs of a short run are too wide for that: there it is the threshold at which the walked
# CAMs of sbe have as much foreground as its saliency.
# GATE=1|0: gate the CAMs of both stages by background regions (NROIs), or not (the default). With it, BG is the threshold at
# which the walked CAMs have as much foreground as the masks of the CAMs that they come from.
# SEG=1: go on with a segmentation network trained on SEG_MASK (mask, or mask-crf), in OUT/seg; SEG_METHOD, SEG_STEPS,
# SEG_BACKBONE, SEG_WEIGHTS and SEG_FLAGS are its settings (scripts/script_seg.sh).
# SHORT=1|0: each method's recipe for a few hundred images (its `Recipe.short`), or the paper's; by default 1 for the
# embedded dataset and your own photographs.
# Each stage restarts where it stopped. Masks are scored on SCORE_LIST; the checkpoint is the last step's.
set -euo pipefail
methods="sbe bes"
source "$(dirname "$0")/settings.sh"
source scripts/chain.sh
METHOD="${METHOD:-sbe}"
DATASET="${DATASET:-toy}"
SEED="${SEED:-0}"
fixed="${BG:-}"
case "$METHOD" in
  sbe) saliency=(--saliency) BG="${BG:-0.21}" CAM_BG=0.21 ;;
  bes) saliency=() BG="${BG:-0.25}" CAM_BG=0.11 ;;
  *) echo "METHOD=$METHOD: give sbe or bes" >&2 && exit 2 ;;
esac
GATE="${GATE:-0}"
set_gate
case "$DATASET" in
  toy)
    ROOT="${ROOT:-out/toy-data}" TRAIN_LIST="${TRAIN_LIST:-train}"
    SHORT="${SHORT:-1}" CAM_SCALES="${CAM_SCALES:-2}" WALK_SCALES="${WALK_SCALES:-2}"
    ;;
  voc12) TRAIN_LIST="${TRAIN_LIST:-train_aug}" ;;
  coco14) TRAIN_LIST="${TRAIN_LIST:-train}" ;;
  *)
    TRAIN_LIST="${TRAIN_LIST:-train}" SHORT="${SHORT:-1}"
    if [ "$DATASET" = folder ] && [ ! -d "${ROOT:-}/masks" ]; then SCORE="${SCORE:-0}"; fi              # photographs without ground truth
    ;;
esac
if [ "${SHORT:-0}" = 1 ]; then                                   # a few hundred images on a CPU
  CAM_SCALES="${CAM_SCALES:-1 1.5}"
  [ "$DATASET" = toy ] || CAM_FLAGS="${CAM_FLAGS:---steps 400}"
  CAM_FLAGS="${CAM_FLAGS:-}"
  cam_size=(--short) size=(--short)
else                                                             # the settings of BES and SBE
  BACKBONE="${BACKBONE:-resnet50}"
  cam_size=(--crop 512 --long-side 320 512 --batch-size 16 --no-jitter)
  CAM_FLAGS="${CAM_FLAGS:---epochs 5 --lr 0.1 --weight-decay 1e-4}"
  CAM_SCALES="${CAM_SCALES:-1 0.5 1.5 2}"
  size=()
fi
BOUNDARY_FLAGS="${BOUNDARY_FLAGS:-}" LABEL_FLAGS="${LABEL_FLAGS:-}"
set_data
OUT="${OUT:-out/$DATASET-$METHOD-seed$SEED}"
CAM_OUT="${CAM_OUT:-$OUT/1-cam}"
BES_OUT="$OUT/2-$METHOD"
maps=(${SALIENCY_ROOT:+--saliency-root "$SALIENCY_ROOT"})

# The CAMs of a classifier with attention pooling, and confident seeds of them.
# shellcheck disable=SC2086  # the FLAGS and SCALES are lists of words
train cam "$CAM_OUT" --pooling attention "${cam_size[@]}" $CAM_FLAGS
# shellcheck disable=SC2086
infer "$CAM_OUT" --scales $CAM_SCALES
evaluate "$CAM_OUT/cam" "$CAM_OUT/miou_cam.json" --bg-threshold "$CAM_BG" --sweep
post "$CAM_OUT/cam" "$CAM_OUT/seed" --seeds 0.30 0.07

# The labels of boundaries, and the network that learns them. The labels of BES and SBE differ.
# shellcheck disable=SC2086
"$PYTHON" -m data.boundary "${data[@]}" ${maps[@]+"${maps[@]}"} --list "$TRAIN_LIST" --seed-dir "$CAM_OUT/seed" \
  --out "$OUT/boundary" ${saliency[@]+"${saliency[@]}"} $LABEL_FLAGS
[ "$METHOD" = sbe ] || maps=()
# shellcheck disable=SC2086
train "$METHOD" "$BES_OUT" --boundary-dir "$OUT/boundary" ${maps[@]+"${maps[@]}"} ${size[@]+"${size[@]}"} $BOUNDARY_FLAGS

# The walk of the CAMs within the boundaries, and both masks.
# shellcheck disable=SC2086
infer "$BES_OUT" --cam-dir "$CAM_OUT/cam" ${WALK_SCALES:+--scales $WALK_SCALES}
threshold=(--threshold "$BG")
if [ "$GATE" = 1 ]; then
  post "$CAM_OUT/cam" "$CAM_OUT/mask"
  threshold=(--threshold-from "$CAM_OUT/mask")
elif [ "$METHOD" = sbe ] && [ "${SHORT:-0}" = 1 ] && [ -z "$fixed" ]; then
  "$PYTHON" -m data.fill "${data[@]}" ${maps[@]+"${maps[@]}"} --list "$MASK_LIST" --out "$OUT/salient"
  threshold=(--threshold-from "$OUT/salient")
fi
post "$BES_OUT/cam" "$BES_OUT/mask" "${threshold[@]}"
BG="$(threshold_of "$BES_OUT/mask" "$BG")"
alpha="$("$PYTHON" -c 'import sys; from tool.crf.post import alpha_at; print(alpha_at(float(sys.argv[1])))' "$BG")"
post "$BES_OUT/cam" "$BES_OUT/mask-crf" --preset label20 --alpha "$alpha"
evaluate "$BES_OUT/cam" "$BES_OUT/miou_cam.json" --bg-threshold "$BG" --sweep
evaluate "$BES_OUT/mask" "$BES_OUT/miou.json"
evaluate "$BES_OUT/mask-crf" "$BES_OUT/miou-crf.json"
finish "$BES_OUT" "$BES_OUT/mask" "$BES_OUT/miou.json" "$MASK_LIST"
segment "$BES_OUT/${SEG_MASK:-mask}" "$OUT/seg"
