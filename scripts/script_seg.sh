#!/usr/bin/env bash
# The segmentation stage: a network is trained on pseudo masks, and scored on images that it knows nothing about.
#
#   bash scripts/script_seg.sh                               the embedded dataset, on the masks of the main job (made if missing)
#   DATASET=voc12 ROOT=.../VOC2012 MASK_DIR=out/voc12-fbr-seed0/mask WEIGHTS=imagenet bash scripts/script_seg.sh
#                                                            the papers' setting; one GPU
#   DATASET=coco14 ROOT=.../COCO MASK_DIR=... WEIGHTS=imagenet bash scripts/script_seg.sh
#   SHORT=1 DATASET=voc12 ROOT=.../voc6 TRAIN_LIST=train MASK_DIR=... bash scripts/script_seg.sh
#                                                            a few hundred photographs on a CPU
#   LIST=test DATASET=voc12 ...                              ends in the checked archive for VOC's server
# MASK_DIR=FOLDER: pseudo masks of TRAIN_LIST, of any earlier run or downloaded; truth: the dataset's own masks, which is
# full supervision and an upper bound. METHOD=deeplab2|deeplab2_advcam|deeplab1.
# ROUND=2: the network, together with the image labels, makes new masks of TRAIN_LIST, and a second one is trained on them.
# LABELS=1 also scores LIST with the classes masked by the image labels: a diagnostic that tells confused classes from bad
# masks. SEED=0  OUT=out/...  LIST=val  SHORT=1|0  STEPS, BACKBONE, WEIGHTS, SCALES are further settings; TRAIN_FLAGS goes to
# train_fbr.py. Each stage restarts where it stopped.
set -euo pipefail
methods="deeplab2 deeplab2_advcam deeplab1"
source "$(dirname "$0")/settings.sh"
source scripts/chain.sh
METHOD="${METHOD:-deeplab2}"
DATASET="${DATASET:-toy}"
SEED="${SEED:-0}"
case "$DATASET" in
  toy)
    ROOT="${ROOT:-out/toy-data}" TRAIN_LIST="${TRAIN_LIST:-train}" SHORT="${SHORT:-1}"
    if [ "$SHORT" = 1 ]; then
      STEPS="${STEPS:-300}" SCALES="${SCALES:-2}" TRAIN_FLAGS="--long-side 224 384 ${TRAIN_FLAGS:-}"   # its zoom
    fi
    if [ -z "${MASK_DIR:-}" ]; then
      MASK_DIR="out/toy-fbr-seed$SEED/mask"
      SEED="$SEED" OUT="out/toy-fbr-seed$SEED" DATASET=toy ROOT="$ROOT" METHOD=fbr PYTHON_READY="$PYTHON" \
        SHORT='' STEPS='' SCALES='' TRAIN_FLAGS='' TRAIN_LIST=train WEIGHTS='' BACKBONE='' \
        bash scripts/script_contrast.sh
    fi
    ;;
  voc12) TRAIN_LIST="${TRAIN_LIST:-train_aug}" ;;
  coco14)
    TRAIN_LIST="${TRAIN_LIST:-train}"
    if [ "${SHORT:-0}" != 1 ]; then
      STEPS="${STEPS:-100000}" TRAIN_FLAGS="--batch-size 20 --lr 2e-4 ${TRAIN_FLAGS:-}"
    fi
    ;;
  *)
    TRAIN_LIST="${TRAIN_LIST:-train}" SHORT="${SHORT:-1}"
    if [ "$DATASET" = folder ] && [ ! -d "${ROOT:-}/masks" ]; then SCORE="${SCORE:-0}"; fi              # photographs without ground truth
    for name in val photographs "$TRAIN_LIST"; do                # the first one that there is
      if [ -z "${LIST:-}" ] && [ -f "${ROOT:-}/lists/$name.txt" ]; then LIST="$name"; fi
    done
    ;;
esac
LIST="${LIST:-val}"
ROOT="${ROOT:-}" && need ROOT "the folder of the dataset"
MASK_DIR="${MASK_DIR:-}" && need MASK_DIR "the folder of the pseudo masks that script_contrast.sh or script_amn.sh made"
if [ "$LIST" = test ]; then SCORE=0; fi                          # there is no ground truth
OUT="${OUT:-out/$DATASET-$METHOD-seed$SEED}"
data=(--dataset "$DATASET" --root "$ROOT")
[ "${SKIP_BAD_IMAGES:-0}" = 0 ] || data+=(--skip-bad-images)
short=()
if [ "${SHORT:-0}" = 1 ]; then short=(--short) SCALES="${SCALES:-1 1.5}" infer=(--mirror); fi
context=()
[ "$DATASET" != toy ] || context=(--context "$ROOT/context")

train() {  # folder, folder of masks
  # shellcheck disable=SC2086  # TRAIN_FLAGS is a list of words
  "$PYTHON" train_fbr.py --method "$METHOD" "${data[@]}" --list "$TRAIN_LIST" --mask-dir "$2" --out "$1" --seed "$SEED" \
    ${short[@]+"${short[@]}"} ${STEPS:+--steps "$STEPS"} ${BACKBONE:+--backbone "$BACKBONE"} ${WEIGHTS:+--weights "$WEIGHTS"} \
    ${TRAIN_FLAGS:-}
}
masks() {  # folder, list, name, flags ...: masks without and with CRF, from one pass
  # shellcheck disable=SC2086  # SCALES is a list of words
  "$PYTHON" infer_cam.py --checkpoint "$1/checkpoint.pth" "${data[@]}" --list "$2" --argmax "$1/$3" --masks "$1/$3-crf" \
    ${SCALES:+--scales $SCALES} ${infer[@]+"${infer[@]}"} "${@:4}"
}
score() {  # folder, name
  [ "${SCORE:-1}" != 0 ] || return 0
  for which in "" -crf; do
    "$PYTHON" eval_miou.py --pred-dir "$1/$2$which" "${data[@]}" --list "$LIST" ${context[@]+"${context[@]}"} --json "$1/miou-$2$which.json"
  done
}

last="$OUT"
for ((round = 1; round <= ${ROUND:-1}; round++)); do
  if [ "$round" -gt 1 ]; then
    masks "$last" "$TRAIN_LIST" "$TRAIN_LIST-labelled" --with-labels
    MASK_DIR="$last/$TRAIN_LIST-labelled-crf" last="$OUT/round$round"
  fi
  train "$last" "$MASK_DIR"
  masks "$last" "$LIST" "$LIST"
  score "$last" "$LIST"
done
if [ "${LABELS:-0}" = 1 ]; then
  masks "$last" "$LIST" "$LIST-labelled" --with-labels
  score "$last" "$LIST-labelled"
fi
if [ "$LIST" = test ] && [ "$DATASET" = voc12 ]; then
  "$PYTHON" -m voc12.submit "$last/results.tar" --pred-dir "$last/$LIST-crf" --root "$ROOT" --list "$LIST"
fi
finish "$last" "$last/$LIST-crf" "$last/miou-$LIST-crf.json" "$LIST"
