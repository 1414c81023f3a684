#!/usr/bin/env bash
# Several methods and seeds of one dataset, and their table (mean ± standard deviation over seeds).
#
#   bash scripts/compare.sh                                         toy, fill cam eps ppc fbr, three seeds
#   SHORT=1 STEPS=400 METHODS="fill eps fbr" SEEDS=0 DATASET=voc12 ROOT=... TRAIN_LIST=train bash scripts/compare.sh
#   METHODS="cam+irn sfc bes sbe bao" GATE=1 OUT=out/compare-gated bash scripts/compare.sh
# A system gives several rows: sfc one for each of its maps and sfc+irn; bes and sbe theirs with the CRF, as NAME+crf; bao
# those of compare_bao.sh, transcam's among them, without and with the gate if GATE is not given. A method named NAME+irn,
# amn and fbr_amn are those of script_amn.sh. GATE=1|0 is that of every other method; without it each has its own.
# A method of script_contrast.sh may carry flags of train_fbr.py: METHODS="fbr fbr:--weight-nce-nroi=0". JOBS=2 runs two at
# a time (one thread each). BASELINE=eps adds paired differences to that method, over the seeds that both have on one
# processor model. Every setting of script_contrast.sh holds here. SAVE=FOLDER receives the figures of each run. Finished
# runs are kept. The minutes are those of one go, beside whatever else the machine did.
set -euo pipefail
calls="script_contrast.sh"
methods="fill cam eps ppc fbr cam+irn amn fbr_amn amn+irn fbr_amn+irn sfc bes sbe bao"
source "$(dirname "$0")/settings.sh"
source scripts/comparison.sh
METHODS="${METHODS:-fill cam eps ppc fbr}"
export COMPARE_OUT="${OUT:-out/compare-${DATASET:-toy}}"

mkdir -p "$COMPARE_OUT/runs"
keep() {  # row, seed, folder, name of the masks' score ("" for none), name of the CAMs' score ("" for none)
  local row="$COMPARE_OUT/$1-seed$2"
  mkdir -p "$row"
  cp "$3/config.json" "$row/config.json"
  [ -z "$5" ] || cp "$3/$5.json" "$row/miou_cam.json"
  [ ! -f "$MINUTES" ] || cp "$MINUTES" "$row/minutes.json"
  [ -z "$4" ] || cp "$3/$4.json" "$row/miou.json"
}
system() {  # script, method, seed, settings ...: run it, and note the minutes
  local run="$COMPARE_OUT/runs/$2-seed$3"
  MINUTES="$run.minutes.json" SECONDS=0
  METHOD="$2" SEED="$3" OUT="$run" logged "$2, seed $3" "$run" env "${@:4}" bash "scripts/$1" || return 1
  [ -f "$MINUTES" ] || echo "{\"minutes\": $((SECONDS / 60))}" >"$MINUTES"
}
one() {  # method, seed
  local method="${1%%:*}" flags="" run="$COMPARE_OUT/runs/${1%%:*}-seed$2" map
  [[ "$1" == *:* ]] && flags="${1#*:}"
  [ ! -f "$COMPARE_OUT/$1-seed$2/miou.json" ] || return 0
  case "$method" in
    sfc)
      system script_sfc.sh sfc "$2" METHOD= || return 1
      for map in prototype classifier seed walk; do keep "sfc.$map" "$2" "$run/1-sfc" "" "miou_cam_$map"; done
      keep sfc+irn "$2" "$run/2-sfc_irn" miou ""
      keep sfc "$2" "$run/1-sfc" miou miou_cam
      ;;
    bes | sbe)
      system script_sbe.sh "$method" "$2" || return 1
      keep "$method+crf" "$2" "$run/2-$method" miou-crf ""
      keep "$method" "$2" "$run/2-$method" miou miou_cam
      ;;
    bao) SEEDS="$2" OUT="$COMPARE_OUT" SAVE="" BASELINE="" GATES="${GATE:-0 1}" bash scripts/compare_bao.sh >/dev/null ;;
    *amn | *+irn)
      local name="${method%+irn}" first="$COMPARE_OUT/runs/1-cam-seed$2" own
      own="$run/2-$name"
      [ "${ROUNDS:-1}" = 1 ] || own+="-round$ROUNDS"
      [ "$name" = cam ] && own="$first"
      system script_amn.sh "$method" "$2" METHOD="$name" CAM_OUT="$first" || return 1
      [ "$method" = "$name" ] || keep "$method" "$2" "$run/3-irn" miou miou_cam
      keep "$name" "$2" "$own" miou miou_cam
      ;;
    *)
      METHOD="$method" SEED="$2" OUT="$COMPARE_OUT/$1-seed$2" METHOD_FLAGS="${flags//,/ }" SEG="${SEG:-0}" \
        logged "$1, seed $2" "$COMPARE_OUT/$1-seed$2" bash scripts/script_contrast.sh
      ;;
  esac
}
export -f one system keep
failed=0 rows=()
for method in $METHODS; do
  case "$method" in
    *amn:* | *+irn:* | sfc:* | bes:* | sbe:* | bao:*) wrong "METHODS: ${method%%:*} takes no flags here" ;;
  esac
  case "$method" in
    sfc*) rows+=(sfc.classifier sfc.prototype sfc.seed sfc.walk sfc sfc+irn) ;;
    bes* | sbe*) rows+=("$method" "$method+crf") ;;
    bao*)
      for kind in "" +gate; do rows+=("transcam$kind" "transcam-free$kind" "bao$kind" "bao-target$kind"); done
      ;;
    *+irn) rows+=("${method%+irn}" "$method") ;;
    *) rows+=("$method") ;;
  esac
done
for seed in $SEEDS; do
  for method in $METHODS; do
    [ "$method" = fill ] && [ "$seed" != "${SEEDS%% *}" ] && continue   # it has no randomness
    echo "$method $seed"
  done
done | xargs -P "$JOBS" -L 1 bash -c 'one "$@"' one || failed=1
"$PYTHON" -m tool.report.table "$COMPARE_OUT" --methods "${rows[@]}" ${BASELINE:+--baseline "$BASELINE"} ${SAVE:+--save "$SAVE"}
exit "$failed"
