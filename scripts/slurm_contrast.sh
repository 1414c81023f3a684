#!/usr/bin/env bash
# FBR on several machines under SLURM, all four stages, one process a GPU: `sbatch scripts/slurm_contrast.sh`.
# An example: adjust the #SBATCH lines to your cluster. The result does not depend on the number of GPUs (the batch is
# global), and a job that ran into its time limit goes on when it is submitted again, also on another number of nodes.
#SBATCH --job-name=fbr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
set -euo pipefail
methods="fbr"
script=slurm_contrast.sh                                         # SLURM runs a copy of another name
source "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}/scripts/settings.sh"
source scripts/chain.sh

DATASET="${DATASET:-voc12}"
ROOT="${ROOT:-}" && need ROOT "the folder of the dataset"
TRAIN_LIST="${TRAIN_LIST:-train_aug}"
OUT="${OUT:-out/$DATASET-fbr}"
case "$DATASET" in toy|folder) SHORT="${SHORT:-1}" ;; esac        # the recipe for a few hundred images
short=()
[ "${SHORT:-0}" != 1 ] || short=(--short)
data=(--dataset "$DATASET" --root "$ROOT" ${SALIENCY_ROOT:+--saliency-root "$SALIENCY_ROOT"})

host="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
ranks=("$PYTHON" -m torch.distributed.run --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-4}"
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$host:${PORT:-29500}")

# shellcheck disable=SC2086  # TRAIN_FLAGS is a list of words
srun "${ranks[@]}" train_fbr.py --method fbr "${data[@]}" --list "$TRAIN_LIST" --out "$OUT" --amp \
  ${WEIGHTS:+--weights "$WEIGHTS"} ${short[@]+"${short[@]}"} ${TRAIN_FLAGS:-}
srun "${ranks[@]}" infer_cam.py --checkpoint "$OUT/checkpoint.pth" "${data[@]}" --list "$TRAIN_LIST" --out "$OUT/cam" \
  --cam-stride "${CAM_STRIDE:-1}" --amp      # 4 where the CAMs are too many for the disk: a COCO dump is over 100 GB
srun "${ranks[@]}" crf_postprocess.py --cam-dir "$OUT/cam" "${data[@]}" --list "$TRAIN_LIST" --out "$OUT/mask"
srun "${ranks[@]}" eval_miou.py --pred-dir "$OUT/mask" "${data[@]}" --list "${SCORE_LIST:-train}" --json "$OUT/miou.json"
finish "$OUT" "$OUT/mask" "$OUT/miou.json" "$TRAIN_LIST"
