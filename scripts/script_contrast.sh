#!/usr/bin/env bash
# FBR, the main job: train, CAMs, dense CRF, pseudo masks, mIoU.
#
#   bash scripts/script_contrast.sh                          the embedded dataset; about 4 minutes on two CPU cores
#   DATASET=voc12 ROOT=.../VOC2012 SALIENCY_ROOT=... WEIGHTS=... bash scripts/script_contrast.sh
#                                                            the paper's setting; one GPU, about a day
#   DATASET=coco14 ROOT=.../COCO SALIENCY_ROOT=... WEIGHTS=... bash scripts/script_contrast.sh
#   SHORT=1 STEPS=400 DATASET=voc12 ROOT=.../voc6 TRAIN_LIST=train bash scripts/script_contrast.sh
#                                                            a few hundred photographs on a CPU
#   DATASET=folder ROOT=.../my-photos bash scripts/script_contrast.sh         your own (docs/photographs.md): a folder per
#                                                            class, or images/ and labels.csv; scored if masks/ exists
# SHORT=1|0: the method's recipe for a few hundred images (its `Recipe.short`), or the paper's; by default 1 for the
# embedded dataset and your own photographs.
# GATE=1|0: gate the CAMs by background regions (NROIs) in inference, or not; by default only for fbr.
# SEG=1|0: go on with a segmentation network trained on the masks (scripts/script_seg.sh), in OUT/seg; by default only for your
# own photographs. SEG_METHOD, SEG_STEPS, SEG_BACKBONE, SEG_WEIGHTS and SEG_FLAGS are its settings.
# METHOD=fill|cam|eps|ppc|fbr  SEED=0  OUT=out/...  are further settings; TRAIN_FLAGS goes to train_fbr.py, after these;
# SKIP_BAD_IMAGES=1 leaves out, counts and lists images that cannot be read.
# Stopped and started again, it goes on where it was.
set -euo pipefail
methods="fill cam eps ppc fbr"
if [ "${DATASET:-toy}" = folder ]; then SEG="${SEG:-1}"; fi
source "$(dirname "$0")/settings.sh"
source scripts/chain.sh
METHOD="${METHOD:-fbr}"
DATASET="${DATASET:-toy}"
SEED="${SEED:-0}"
case "$DATASET" in
  toy)
    ROOT="${ROOT:-out/toy-data}"
    TRAIN_LIST="${TRAIN_LIST:-train}"
    SHORT="${SHORT:-1}" SCALES="${SCALES:-2}"                          # its zoom in training
    ;;
  voc12)
    TRAIN_LIST="${TRAIN_LIST:-train_aug}"
    ;;
  coco14)                                    # EPS's recipe for COCO
    TRAIN_LIST="${TRAIN_LIST:-train}"
    if [ "${SHORT:-0}" != 1 ]; then
      STEPS="${STEPS:-256500}" BATCH_SIZE="${BATCH_SIZE:-16}"
      if [ -z "${CROP:-}" ]; then CROP=321 TRAIN_FLAGS="--long-side 256 448 ${TRAIN_FLAGS:-}"; fi
    fi
    if [ "$METHOD" != cam ]; then METHOD_FLAGS="${METHOD_FLAGS:---lam 0.9}"; fi
    ;;
  *)
    TRAIN_LIST="${TRAIN_LIST:-train}"
    SHORT="${SHORT:-1}"
    if [ "$SHORT" = 1 ]; then STEPS="${STEPS:-400}"; fi
    if [ "$DATASET" = folder ] && [ ! -d "${ROOT:-}/masks" ]; then SCORE="${SCORE:-0}"; fi   # photographs without ground truth
    if [ "$DATASET" = folder ]; then prepare_photographs; fi
    ;;
esac
ROOT="${ROOT:-}" && need ROOT "the folder of the dataset"
SCORE_LIST="${SCORE_LIST:-train}"            # where mIoU is measured
MASK_LIST="${MASK_LIST:-$TRAIN_LIST}"        # what gets CAMs and pseudo masks
OUT="${OUT:-out/$DATASET-$METHOD-seed$SEED}"

data=(--dataset "$DATASET" --root "$ROOT" ${SALIENCY_ROOT:+--saliency-root "$SALIENCY_ROOT"})
short=()
[ "${SHORT:-0}" != 1 ] || short=(--short)
gate=()
[ -z "${GATE:-}" ] || set_gate
plain=()                                     # a small run keeps the CAMs before the gate, for the report
case "${SHORT:-0}:${GATE:-}:$METHOD" in 1:1:* | 1::fbr) plain=(--keep-plain) ;; esac
[ "${SKIP_BAD_IMAGES:-0}" = 0 ] || data+=(--skip-bad-images)
score=("${data[@]}" --list "$SCORE_LIST")
[ "$DATASET" = toy ] && score+=(--context "$ROOT/context")

if [ "$METHOD" = fill ]; then
  "$PYTHON" -m data.fill "${data[@]}" --list "$MASK_LIST" --out "$OUT/mask"
else
  # shellcheck disable=SC2086  # TRAIN_FLAGS, METHOD_FLAGS and SCALES are lists of words
  "$PYTHON" train_fbr.py --method "$METHOD" "${data[@]}" --list "$TRAIN_LIST" --out "$OUT" --seed "$SEED" \
    ${short[@]+"${short[@]}"} ${STEPS:+--steps "$STEPS"} ${CROP:+--crop "$CROP"} ${BATCH_SIZE:+--batch-size "$BATCH_SIZE"} \
    ${BACKBONE:+--backbone "$BACKBONE"} ${WEIGHTS:+--weights "$WEIGHTS"} ${TRAIN_FLAGS:-} ${METHOD_FLAGS:-}
  "$PYTHON" infer_cam.py --checkpoint "$OUT/checkpoint.pth" "${data[@]}" --list "$MASK_LIST" --out "$OUT/cam" ${gate[@]+"${gate[@]}"} \
    ${plain[@]+"${plain[@]}"} ${SCALES:+--scales $SCALES}
  [ "${SCORE:-1}" = 0 ] ||
    "$PYTHON" eval_miou.py --pred-dir "$OUT/cam" "${score[@]}" --sweep --json "$OUT/miou_cam.json"
  "$PYTHON" crf_postprocess.py --cam-dir "$OUT/cam" "${data[@]}" --list "$MASK_LIST" --out "$OUT/mask"
fi
if [ "${SCORE:-1}" = 0 ]; then
  echo "no masks in $ROOT: $OUT/mask is not scored"
else
  "$PYTHON" eval_miou.py --pred-dir "$OUT/mask" "${score[@]}" --json "$OUT/miou.json"
fi
finish "$OUT" "$OUT/mask" "$OUT/miou.json" "$MASK_LIST"
segment "$OUT/mask" "$OUT/seg"
if [ "$DATASET" = folder ] && [ "${SEG:-0}" = 1 ]; then
  echo "new photographs: $PYTHON -m network.predict PHOTOGRAPH ... --checkpoint $OUT/seg/checkpoint.pth --out FOLDER"
fi
