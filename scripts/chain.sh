# What the scripts share: script_contrast.sh, script_amn.sh, script_sbe.sh and script_sfc.sh source all of it, the others
# `finish`; in the folder of the project.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then sourced=1 && source "$(dirname "$0")/settings.sh"; fi

set_gate() {  # the flags of GATE, which is 0 or 1
  case "$GATE" in
    0) gate=(--gate none) ;;
    1) gate=(--gate nroi) ;;
    *) echo "GATE=$GATE: give 1 or 0" >&2 && exit 2 ;;
  esac
}
set_data() {  # the flags of the dataset, of the network and of the score, from the settings
  ROOT="${ROOT:-}" && need ROOT "the folder of the dataset"
  SCORE_LIST="${SCORE_LIST:-train}"
  MASK_LIST="${MASK_LIST:-$TRAIN_LIST}"
  data=(--dataset "$DATASET" --root "$ROOT")
  [ "${SKIP_BAD_IMAGES:-0}" = 0 ] || data+=(--skip-bad-images)
  network=(--seed "$SEED" ${BACKBONE:+--backbone "$BACKBONE"} ${WEIGHTS:+--weights "$WEIGHTS"})
  score=("${data[@]}" --list "$SCORE_LIST")
  [ "$DATASET" != toy ] || score+=(--context "$ROOT/context")
}
train() {  # method, folder, flags ...
  "$PYTHON" train_fbr.py --method "$1" "${data[@]}" --list "$TRAIN_LIST" --out "$2" "${network[@]}" "${@:3}"
}
infer() {  # folder, flags ...
  "$PYTHON" infer_cam.py --checkpoint "$1/checkpoint.pth" "${data[@]}" --list "$MASK_LIST" --out "$1/cam" "${gate[@]}" "${@:2}"
}
post() {  # folder of CAMs, folder of masks or seeds, flags ...
  "$PYTHON" crf_postprocess.py --cam-dir "$1" "${data[@]}" --list "$MASK_LIST" --out "$2" "${@:3}"
}
evaluate() {  # folder of masks or CAMs, file of the result, flags ...; nothing without ground truth
  [ "${SCORE:-1}" = 0 ] || "$PYTHON" eval_miou.py --pred-dir "$1" "${score[@]}" --json "$2" "${@:3}"
}
threshold_of() {  # folder of masks, default: the threshold that made them
  "$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1])).get("threshold", sys.argv[2]))' "$1/crf.json" "$2" 2>/dev/null ||
    wrong "$1/crf.json is broken: remove it, or $1 with it"
}
prepare_photographs() {  # your own: labels, lists and saliency maps, of photographs that have none yet
  need ROOT "the folder of your photographs"
  local photographs=(--root "$ROOT") skip=() maps=()
  # Labels in the field's .npy are read as they are.
  if [ -f "$ROOT/labels.csv" ] || [ ! -d "$ROOT/images" ]; then
    "$PYTHON" -m data.folder "${photographs[@]}"
    # Photographs that came after the first run get masks; the network is trained on what it was trained on.
    if [ "$TRAIN_LIST" = train ] && [ -z "${MASK_LIST:-}" ]; then MASK_LIST=photographs train_list=train; fi
  fi
  [ "${SKIP_BAD_IMAGES:-0}" = 0 ] || skip=(--skip-bad-images)
  [ -z "${SALIENCY_ROOT:-}" ] || maps=(--saliency-root "$SALIENCY_ROOT")
  [ "$METHOD" = cam ] ||
    "$PYTHON" -m data.saliency "${photographs[@]}" --list "${MASK_LIST:-$TRAIN_LIST}" --if-missing ${maps[@]+"${maps[@]}"} ${skip[@]+"${skip[@]}"}
}
finish() {  # run directory, folder of masks, their score, list: the report, and where everything is; a failure loses no run
  local miou="not scored" report="$1/report.html" checkpoint="$1/checkpoint.pth"
  "$PYTHON" -m data.report "$1" --mask-dir "$2" --score "$3" "${data[@]}" --list "$4" --out "$report" || report="not made: see above"
  [ -f "$checkpoint" ] || checkpoint="none"
  [ ! -f "$3" ] || miou="$("$PYTHON" -c 'import json, sys; print("%.2f" % json.load(open(sys.argv[1]))["miou"])' "$3" 2>/dev/null)" || miou="not known"
  printf '%-12s%s\n' mIoU "$miou" minutes "$(printf '%d:%02d' $((SECONDS / 60)) $((SECONDS % 60)))" masks "$2" report "$report" \
    checkpoint "$checkpoint"
}
segment() {  # folder of pseudo masks, folder of the run: SEG=1 goes on with a segmentation network
  if [ "${SEG:-0}" != 1 ]; then return; fi
  METHOD="${SEG_METHOD:-deeplab2}" MASK_DIR="$1" OUT="$2" STEPS="${SEG_STEPS:-}" BACKBONE="${SEG_BACKBONE:-}" \
    WEIGHTS="${SEG_WEIGHTS:-}" TRAIN_FLAGS="${SEG_FLAGS:-}" SCALES="${SEG_SCALES:-}" DATASET="$DATASET" ROOT="$ROOT" \
    TRAIN_LIST="${train_list:-$MASK_LIST}" SEED="$SEED" SHORT="${SHORT:-0}" PYTHON_READY="$PYTHON" bash scripts/script_seg.sh
}
