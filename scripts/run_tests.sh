#!/usr/bin/env bash
# Sets up, then runs the linter and the tests (under 5 minutes on two cores). Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="$(bash scripts/setup.sh)"
for script in scripts/*.sh .ci/run; do bash -n "$script"; done
if "$PYTHON" -m ruff --version >/dev/null 2>&1; then
  "$PYTHON" -m ruff check .
  "$PYTHON" -m ruff format --check .
fi
export OMP_NUM_THREADS=1                     # a process a core
exec "$PYTHON" -m pytest --numprocesses "${TEST_PROCESSES:-auto}" "$@"
