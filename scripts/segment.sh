# How script_contrast.sh, script_amn.sh and script_sbe.sh go on with SEG=1: they source it.

segment() {  # folder of pseudo masks, folder of the run
  METHOD="${SEG_METHOD:-deeplab2}" MASK_DIR="$1" OUT="$2" STEPS="${SEG_STEPS:-}" BACKBONE="${SEG_BACKBONE:-}" \
    WEIGHTS="${SEG_WEIGHTS:-}" TRAIN_FLAGS="${SEG_FLAGS:-}" SCALES="${SEG_SCALES:-}" DATASET="$DATASET" ROOT="$ROOT" \
    TRAIN_LIST="$MASK_LIST" SEED="$SEED" SHORT="${SHORT:-0}" PYTHON_READY="$PYTHON" bash scripts/script_seg.sh
}
