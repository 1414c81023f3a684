#!/usr/bin/env bash
# Everything that is to be measured on a GPU, in at most 8 minutes; needs no network, no weights and no dataset.
#
#   bash benchmarks/gpu.sh            on one GPU
#   bash benchmarks/gpu.sh --tiny     the same parts with tiny sizes, on a CPU: whether they run at all
#
# Writes gpu.json (anew after each part), gpu.md (the tables) and gpu.log into ${OUT:-out}. ${PYTHON:-python3} needs torch, torchvision, timm,
# tensorboard and tqdm. Ends with status 1 when a part failed or ran out of time; the others are measured all the same.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
