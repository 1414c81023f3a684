# What compare.sh and compare_amn.sh share: they source it, in the folder of the project.
# It makes the embedded dataset and sets SEEDS, JOBS and the number of threads. `logged` runs a part of the work.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then sourced=1 && source "$(dirname "$0")/settings.sh"; fi
export PYTHON_READY="$PYTHON"
SEEDS="${SEEDS:-0 1 2}"
JOBS="${JOBS:-1}"
if [ "$JOBS" -gt 1 ]; then export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"; fi
if [ "${DATASET:-toy}" = toy ]; then "$PYTHON" -m data.toy --root "${ROOT:-out/toy-data}"; fi

logged() {  # name, folder, command ...: what the command prints goes to FOLDER.log; says how that ends if it fails
  echo "$1 -> $2"
  "${@:3}" >"$2.log" 2>&1 || {
    echo "$1 failed: $2.log ends with" >&2
    tr '\r' '\n' <"$2.log" | tail -n 3 >&2
    return 1
  }
}
export -f logged
