#!/usr/bin/env bash
# SFC from image labels alone: CAMs -> seeds -> IRN with SFC's two walks -> pseudo masks, mIoU. No saliency.
#
#   bash scripts/script_sfc.sh                           the embedded dataset; minutes on two CPU cores
#   DATASET=voc12 ROOT=.../VOC2012 WEIGHTS=.../resnet50.pth bash scripts/script_sfc.sh
#                                                        the paper's setting; one GPU
#   DATASET=coco14 ROOT=.../COCO WEIGHTS=... bash scripts/script_sfc.sh
#   DATASET=folder ROOT=.../my-photos bash scripts/script_sfc.sh              your own; scored if ROOT/masks exists
# IRN=0 takes the seeds, which are made by a CRF, as masks in place of IRN: 255 is unknown in them, and counts as
# background in the score. As in the paper this is the default for coco14 only.
# SEED=0  OUT=out/...  BACKBONE=...  SKIP_BAD_IMAGES=1  are further settings; SFC_FLAGS and IRN_FLAGS go to train_fbr.py,
# CAM_SCALES and IRN_SCALES to infer_cam.py.
# CAM_STRIDE=N: store one value of SFC's five maps per N pixels; by default 4 in the paper's setting, where they would
# take 50 GB on voc12, else 1.
# GATE=1|0: gate the CAMs of both stages by background regions (NROIs), or not; by default not.
# SEG=1: go on with a segmentation network trained on the masks (scripts/script_seg.sh), in OUT/seg; SEG_METHOD, SEG_STEPS,
# SEG_BACKBONE, SEG_WEIGHTS and SEG_FLAGS are its settings.
# SHORT=1|0: each method's recipe for a few hundred images (its `Recipe.short`), or the paper's; by default 1 for the
# embedded dataset and your own photographs.
# Each stage restarts where it stopped. Masks are scored on SCORE_LIST; the checkpoint is the last step's.
set -euo pipefail
methods="sfc"
stages="sfc_irn"
source "$(dirname "$0")/settings.sh"
source scripts/chain.sh
DATASET="${DATASET:-toy}"
SEED="${SEED:-0}"
GATE="${GATE:-0}"
set_gate
case "$DATASET" in
  toy)
    ROOT="${ROOT:-out/toy-data}" TRAIN_LIST="${TRAIN_LIST:-train}"
    SHORT="${SHORT:-1}" CAM_SCALES="${CAM_SCALES:-2}" IRN_SCALES="${IRN_SCALES:-2}"
    ;;
  voc12) TRAIN_LIST="${TRAIN_LIST:-train_aug}" ;;
  coco14)
    TRAIN_LIST="${TRAIN_LIST:-train}" IRN="${IRN:-0}"
    [ "${SHORT:-0}" = 1 ] || SFC_FLAGS="${SFC_FLAGS:---epochs 5}"
    ;;
  *)
    TRAIN_LIST="${TRAIN_LIST:-train}" SHORT="${SHORT:-1}"
    if [ "$DATASET" = folder ] && [ ! -d "${ROOT:-}/masks" ]; then SCORE="${SCORE:-0}"; fi              # photographs without ground truth
    ;;
esac
if [ "${SHORT:-0}" = 1 ]; then                                   # a few hundred images on a CPU
  CAM_SCALES="${CAM_SCALES:-1 1.5}"
  [ "$DATASET" = toy ] || SFC_FLAGS="${SFC_FLAGS:---steps 400}"
  size=(--short)
else
  BACKBONE="${BACKBONE:-resnet50}" CAM_STRIDE="${CAM_STRIDE:-4}"
  size=()
fi
SFC_FLAGS="${SFC_FLAGS:-}" IRN_FLAGS="${IRN_FLAGS:-}"
set_data
OUT="${OUT:-out/$DATASET-sfc-seed$SEED}"

sfc="$OUT/1-sfc" irn="$OUT/2-sfc_irn"
# shellcheck disable=SC2086  # the FLAGS and SCALES are lists of words
train sfc "$sfc" ${size[@]+"${size[@]}"} $SFC_FLAGS
# shellcheck disable=SC2086
infer "$sfc" ${CAM_SCALES:+--scales $CAM_SCALES} --cam-stride "${CAM_STRIDE:-1}"
evaluate "$sfc/cam" "$sfc/miou_cam.json"
for map in prototype classifier seed walk; do                    # the other maps, each with its own score
  evaluate "$sfc/cam/$map" "$sfc/miou_cam_$map.json"
done
post "$sfc/cam/seed" "$sfc/seed" --seeds
evaluate "$sfc/seed" "$sfc/miou.json"
masks="$sfc/seed" last="$sfc"
if [ "${IRN:-1}" = 1 ]; then
  # shellcheck disable=SC2086
  train sfc_irn "$irn" --seed-dir "$sfc/seed" ${size[@]+"${size[@]}"} $IRN_FLAGS
  # shellcheck disable=SC2086
  infer "$irn" --cam-dir "$sfc/cam/walk" ${IRN_SCALES:+--scales $IRN_SCALES}
  post "$irn/cam" "$irn/mask"
  evaluate "$irn/mask" "$irn/miou.json"
  masks="$irn/mask" last="$irn"
fi
finish "$last" "$masks" "$last/miou.json" "$MASK_LIST"
segment "$masks" "$OUT/seg"
