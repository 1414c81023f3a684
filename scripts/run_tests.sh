#!/usr/bin/env bash
# Sets up, then runs the linter, the type checker and the tests.
#
#   bash scripts/run_tests.sh            the quick tier: about 8 minutes on two cores
#   bash scripts/run_tests.sh --all      all, about 30 minutes: also kills, whole scripts, the benchmarks' command for a GPU
#
# Further arguments go to pytest. TEST_PROCESSES=1 runs the tests in one process; the default is one per core.
set -euo pipefail
arguments=1
source "$(dirname "$0")/settings.sh"
tier=(-m "not slow")
if [ "${1:-}" = --all ]; then
  tier=()
  shift
fi
PYTHON="$(bash scripts/setup.sh --tests)"
for script in scripts/*.sh benchmarks/*.sh .ci/run; do bash -n "$script"; done
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
export OMP_NUM_THREADS=1                     # one thread per test process
exec "$PYTHON" -m pytest --numprocesses "${TEST_PROCESSES:-auto}" ${tier[@]+"${tier[@]}"} "$@"
