#!/usr/bin/env bash
# BAO from image labels alone: TransCAM -> BAO, which starts from it -> masks by the best row, CRF, mIoU. No saliency.
# No threshold makes BAO's masks: the background is a map of its own.
#
#   bash scripts/script_bao.sh                           the embedded dataset; minutes on two CPU cores
#   DATASET=voc12 ROOT=.../VOC2012 WEIGHTS=.../conformer_s.pth bash scripts/script_bao.sh
#                                                        the paper's setting (Conformer-S); one GPU
#   DATASET=coco14 ROOT=.../COCO WEIGHTS=... bash scripts/script_bao.sh
#   DATASET=folder ROOT=.../my-photos bash scripts/script_bao.sh              your own; scored if ROOT/masks exists
# SEED=0  OUT=out/...  BACKBONE=...  TRANSCAM_OUT=... (the first stage, which other runs may share)  SKIP_BAD_IMAGES=1
# are further settings; TRANSCAM_FLAGS and BAO_FLAGS go to train_fbr.py; SIDES, those of the squares in inference, to
# infer_cam.py. METHOD=transcam stops after the first stage. NETWORK=online|target: which of BAO's networks infers.
# Its masks are mask/ with the CRF, which go on, and argmax/ without. TransCAM's are mask/ with the CRF, at its published .44
# of the CAM, and mask-free/ at .22, FBR's, which nobody chose on ground truth for it. All are scored.
# GATE=1|0: gate the maps of both stages by background regions (NROIs), or not (the default). The gate multiplies the
# rows of the classes. The background's row stays as it is, so a cell that the gate lowers goes to the background where that
# row is above what is left. Gated results lie beside the others, in cam-gated/, mask-gated/ and so on; both may be made in
# one OUT, and only inference runs again.
# SEG=1: go on with a segmentation network trained on SEG_MASK (mask, or argmax) of BAO, in OUT/seg; SEG_METHOD, SEG_STEPS,
# SEG_BACKBONE, SEG_WEIGHTS and SEG_FLAGS are its settings (scripts/script_seg.sh).
# SHORT=1|0: each method's recipe for a few hundred images (its `Recipe.short`), or the paper's; by default 1 for the
# embedded dataset and your own photographs.
# Each stage restarts where it stopped. Masks are scored on SCORE_LIST; the checkpoint is the last step's.
set -euo pipefail
methods="bao transcam"
source "$(dirname "$0")/settings.sh"
source scripts/chain.sh
METHOD="${METHOD:-bao}"
case "$METHOD" in
  transcam | bao) ;;
  *) echo "METHOD=$METHOD: give bao or transcam" >&2 && exit 2 ;;
esac
NETWORK="${NETWORK:-online}"
case "$NETWORK" in
  online) kind="" ;;
  target) kind="-target" ;;
  *) echo "NETWORK=$NETWORK: give online or target" >&2 && exit 2 ;;
esac
DATASET="${DATASET:-toy}"
SEED="${SEED:-0}"
GATE="${GATE:-0}"
set_gate
gated=""
[ "$GATE" = 0 ] || gated="-gated"
case "$DATASET" in
  toy) ROOT="${ROOT:-out/toy-data}" TRAIN_LIST="${TRAIN_LIST:-train}" SHORT="${SHORT:-1}" ;;
  voc12) TRAIN_LIST="${TRAIN_LIST:-train_aug}" ;;
  coco14) TRAIN_LIST="${TRAIN_LIST:-train}" ;;
  *)
    TRAIN_LIST="${TRAIN_LIST:-train}" SHORT="${SHORT:-1}"
    if [ "$DATASET" = folder ] && [ ! -d "${ROOT:-}/masks" ]; then SCORE="${SCORE:-0}"; fi              # photographs without ground truth
    ;;
esac
size=()
if [ "${SHORT:-0}" = 1 ]; then                                   # a few hundred images on a CPU
  size=(--short)
  SIDES="${SIDES:-160 320}"                                      # what training sees is 224 to 384 pixels long
  [ "$DATASET" = toy ] || TRANSCAM_FLAGS="${TRANSCAM_FLAGS:---steps 400}" BAO_FLAGS="${BAO_FLAGS:---steps 400}"
fi
TRANSCAM_FLAGS="${TRANSCAM_FLAGS:-}" BAO_FLAGS="${BAO_FLAGS:-}"
set_data
OUT="${OUT:-out/$DATASET-bao-seed$SEED}"
transcam="${TRANSCAM_OUT:-$OUT/1-transcam}" bao="$OUT/2-bao"
maps() {  # folder of the run, end of the names of its results, flags ...: CAMs
  # shellcheck disable=SC2086  # SIDES is a list of words
  "$PYTHON" infer_cam.py --checkpoint "$1/checkpoint.pth" "${data[@]}" --list "$MASK_LIST" --out "$1/cam$2" "${gate[@]}" \
    ${SIDES:+--sides $SIDES} "${@:3}"
}

# TransCAM. Its CAMs have no background: a threshold decides.
# shellcheck disable=SC2086  # the FLAGS are lists of words
train transcam "$transcam" ${size[@]+"${size[@]}"} $TRANSCAM_FLAGS
maps "$transcam" "$gated"
evaluate "$transcam/cam$gated" "$transcam/miou_cam$gated.json" --sweep
post "$transcam/cam$gated" "$transcam/mask$gated"
evaluate "$transcam/mask$gated" "$transcam/miou$gated.json"
free="$("$PYTHON" -c 'from tool.crf.post import Post, alpha_at; print(alpha_at(Post().threshold))')"
post "$transcam/cam$gated" "$transcam/mask-free$gated" --alpha "$free"
evaluate "$transcam/mask-free$gated" "$transcam/miou-free$gated.json"
if [ "$METHOD" = transcam ]; then
  finish "$transcam" "$transcam/mask$gated" "$transcam/miou$gated.json" "$MASK_LIST"
  exit 0
fi

# BAO starts from its weights, both networks of it.
network=(--seed "$SEED" ${BACKBONE:+--backbone "$BACKBONE"} --init "$transcam/checkpoint.pth")
# shellcheck disable=SC2086
train bao "$bao" ${size[@]+"${size[@]}"} $BAO_FLAGS
kind+="$gated"
maps "$bao" "$kind" --set "network=$NETWORK" --argmax "$bao/argmax$kind"
evaluate "$bao/argmax$kind" "$bao/miou-argmax$kind.json"
evaluate "$bao/cam$kind" "$bao/miou_cam$kind.json"
post "$bao/cam$kind" "$bao/mask$kind"
evaluate "$bao/mask$kind" "$bao/miou$kind.json"
finish "$bao" "$bao/mask$kind" "$bao/miou$kind.json" "$MASK_LIST"
segment "$bao/${SEG_MASK:-mask}$kind" "$OUT/seg$kind"
