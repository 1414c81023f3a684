#!/usr/bin/env bash
# FBR from image labels alone: CAMs -> seeds -> AMN (+ FBR) -> seeds -> IRN -> pseudo masks, mIoU. No saliency.
#
#   bash scripts/script_amn.sh                           the embedded dataset, fbr_amn; minutes on two CPU cores
#   DATASET=voc12 ROOT=.../VOC2012 WEIGHTS=.../resnet50.pth bash scripts/script_amn.sh
#                                                        the paper's setting; one GPU
#   DATASET=coco14 ROOT=.../COCO WEIGHTS=... bash scripts/script_amn.sh
# METHOD=cam|amn|fbr_amn: what makes the CAMs that IRN refines (cam: the classifier's own). IRN=0 stops before IRN.
# SEED=0  OUT=out/...  BACKBONE=...  CAM_OUT=... (the first stage, which other runs may share)  SKIP_BAD_IMAGES=1
# are further settings; CAM_FLAGS, AMN_FLAGS, IRN_FLAGS go to train_fbr.py, CAM_SCALES, IRN_SCALES to infer_cam.py.
# GATE=1|0: gate the CAMs of each stage by background regions (NROIs), or not; by default for fbr_amn. With it, the final
# threshold is the one at which IRN's CAMs have as much foreground as the masks before it, else the paper's.
# SEG=1: go on with a segmentation network trained on the masks (scripts/script_seg.sh), in OUT/seg; SEG_METHOD, SEG_STEPS,
# SEG_BACKBONE, SEG_WEIGHTS and SEG_FLAGS are its settings.
# ROUNDS=N: train AMN N times, each time on the seeds of the stage before.
# SHORT=1|0: each method's recipe for a few hundred images (its `Recipe.short`), or the paper's; by default 1 for the
# embedded dataset and your own photographs.
# Each stage restarts where it stopped. Masks are scored on SCORE_LIST; the checkpoint is the last step's.
set -euo pipefail
methods="cam amn fbr_amn"
stages="irn"
source "$(dirname "$0")/settings.sh"
source scripts/chain.sh
METHOD="${METHOD:-fbr_amn}"
DATASET="${DATASET:-toy}"
SEED="${SEED:-0}"
GATE="${GATE:-$([ "$METHOD" = fbr_amn ] && echo 1 || echo 0)}"      # of the CAMs that seeds and masks are made of
set_gate
BG=0.25                                                          # of the final masks, without the gate
ROUNDS="${ROUNDS:-1}"
case "$DATASET" in
  toy)
    ROOT="${ROOT:-out/toy-data}" TRAIN_LIST="${TRAIN_LIST:-train}"
    SHORT="${SHORT:-1}" CAM_SCALES="${CAM_SCALES:-2}" IRN_SCALES="${IRN_SCALES:-2}"
    ;;
  voc12) TRAIN_LIST="${TRAIN_LIST:-train_aug}" ;;
  coco14) TRAIN_LIST="${TRAIN_LIST:-train}" BG=0.22 ;;
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
else                                                             # IRN's and AMN's settings
  BACKBONE="${BACKBONE:-resnet50}"
  cam_size=(--crop 512 --long-side 320 640 --batch-size 16 --no-jitter)
  CAM_FLAGS="${CAM_FLAGS:---epochs 5 --lr 0.1 --weight-decay 1e-4}"
  CAM_SCALES="${CAM_SCALES:-1 0.5 1.5 2}"
  size=()
fi
AMN_FLAGS="${AMN_FLAGS:-}" IRN_FLAGS="${IRN_FLAGS:-}"
set_data
OUT="${OUT:-out/$DATASET-$METHOD-seed$SEED}"
CAM_OUT="${CAM_OUT:-$OUT/1-cam}"
seeds() {  # folder of CAMs, folder of seeds; the thresholds are those of the method that made the CAMs
  post "$1" "$2" --seeds
}
masks() {  # folder of CAMs, folder, flags ...
  post "$1" "$2/mask" "${@:3}"
  evaluate "$1" "$2/miou_cam.json" --bg-threshold "$(threshold_of "$2/mask" "$BG")" --sweep
  evaluate "$2/mask" "$2/miou.json"
}

# shellcheck disable=SC2086  # the FLAGS and SCALES are lists of words
train cam "$CAM_OUT" "${cam_size[@]}" $CAM_FLAGS
# shellcheck disable=SC2086
infer "$CAM_OUT" --scales $CAM_SCALES
seeds "$CAM_OUT/cam" "$CAM_OUT/seed"
source="$CAM_OUT" power=1.0
if [ "$METHOD" != cam ]; then
  power=1.3
  for ((round = 1; round <= ROUNDS; round++)); do
    seed_dir="$source/seed" source="$OUT/2-$METHOD"
    [ "$round" = 1 ] || source+="-round$round"
    # shellcheck disable=SC2086
    train "$METHOD" "$source" --seed-dir "$seed_dir" ${size[@]+"${size[@]}"} $AMN_FLAGS
    # shellcheck disable=SC2086
    infer "$source" --seed-dir "$seed_dir" --scales $CAM_SCALES
    seeds "$source/cam" "$source/seed"
  done
fi
masks "$source/cam" "$source"
if [ "${IRN:-1}" != 1 ]; then
  finish "$source" "$source/mask" "$source/miou.json" "$MASK_LIST"
  segment "$source/mask" "$OUT/seg"
  exit 0
fi
# shellcheck disable=SC2086
train irn "$OUT/3-irn" --seed-dir "$source/seed" --power "$power" ${size[@]+"${size[@]}"} $IRN_FLAGS
# shellcheck disable=SC2086
infer "$OUT/3-irn" --cam-dir "$source/cam" ${IRN_SCALES:+--scales $IRN_SCALES}
threshold=(--threshold "$BG")
[ "$GATE" = 0 ] || threshold=(--threshold-from "$source/mask")
masks "$OUT/3-irn/cam" "$OUT/3-irn" "${threshold[@]}"
finish "$OUT/3-irn" "$OUT/3-irn/mask" "$OUT/3-irn/miou.json" "$MASK_LIST"
segment "$OUT/3-irn/mask" "$OUT/seg"
