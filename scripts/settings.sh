#!/usr/bin/env bash
# What the scripts of this folder begin with: each sources this file first, whatever folder it is called from.
#
# --help prints the comment at the top of the script and the settings that it reads. Arguments that it does not take,
# values that a setting cannot have and methods of another script end in one line. A setting that the script does not
# read is warned about, if another script reads it or its name is close to one that it reads. A relative path in a
# setting is one of the folder that the script is called from; the script itself goes on in the folder of the project.
#
# A script may set, before it sources this file: methods, the METHODs that it takes; stages, methods that it trains on
# the way; calls, the scripts whose settings hold in it too; arguments=1, if it has arguments of its own; sourced=1, if it
# is a part of other scripts. After it PYTHON is set, and `need` ends a script that lacks a setting.

if [ "${BASH_SOURCE[0]}" = "$0" ]; then sourced=1; fi
script="${script:-$(basename "$0")}"
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
caller="$PWD"
wrong() { echo "$script: error: $1" >&2 && exit 2; }
need() { [ -n "${!1:-}" ] || wrong "set $1 to $2, as in $1=... bash scripts/$script"; }  # setting, what it is
value_of() { sed -n "s/^$2=\"\(.*\)\"\$/\1/p" "$scripts/$1"; }          # script, methods, stages or calls
more="PYTHON NEWEST"
if [ "${SEG:-0}" = 1 ]; then more+=" LIST LABELS ROUND"; fi        # script_seg.sh takes them from the environment
read_text() { awk -v task="$1" -v script="$script" -v extra="$more" -f "$scripts/settings.awk" "$scripts"/*.sh "${@:2}"; }
known=" $(read_text list | sort | tr '\n' ' ')"

show_help() {
  sed -n '1,/^[^#]/{s/^# //p;s/^#$//p;}' "$scripts/$script"
  [ -n "${sourced:-}" ] || printf '\nSettings that it reads:%s\n' "$known" | fold -s -w 120
}
for argument in "$@"; do
  case "$argument" in
    -h | --help) show_help && exit 0 ;;
  esac
  [ -z "${arguments:-}" ] || break                               # of the script's own only the first can be --help
  case "$argument" in
    [A-Z]*=*) wrong "$argument stands behind the script: write $argument bash scripts/$script" ;;
    *) wrong "unknown argument $argument: settings stand before the script, as in SEED=1 bash scripts/$script (--help)" ;;
  esac
done
[ -z "${sourced:-}" ] || wrong "it is a part of other scripts: run one of those, such as scripts/script_contrast.sh"

absolute() { case "$1" in "" | /*) echo "$1" ;; *) echo "$caller/$1" ;; esac; }
if [ "$caller" != "$(dirname "$scripts")" ]; then
  for name in ROOT OUT SALIENCY_ROOT CAM_DIR CAM_OUT TRANSCAM_OUT SAVE MASK_DIR WEIGHTS SEG_WEIGHTS PYTHON TRAIN_LIST MASK_LIST SCORE_LIST LIST; do
    value="${!name:-}"
    case "$name:$value" in
      *WEIGHTS:imagenet | *WEIGHTS:pypi | *WEIGHTS:none | MASK_DIR:truth | *: ) ;;
      *LIST:*.txt) [ ! -f "$value" ] || printf -v "$name" %s "$(absolute "$value")" ;;
      PYTHON:*/*) printf -v "$name" %s "$(absolute "$value")" ;;
      *LIST:* | PYTHON:*) ;;                                      # a name
      *) printf -v "$name" %s "$(absolute "$value")" ;;
    esac
  done
  if [ -n "${RUNS:-}" ]; then
    runs=""
    for value in $RUNS; do runs+=" $(absolute "$value")"; done
    RUNS="${runs# }"
  fi
  if [ -n "${MASKS:-}" ]; then                                    # pairs NAME=FOLDER
    pairs=""
    for value in $MASKS; do
      if [ "${value#*=}" = truth ]; then pairs+=" $value"; else pairs+=" ${value%%=*}=$(absolute "${value#*=}")"; fi
    done
    MASKS="${pairs# }"
  fi
fi
cd "$scripts/.."

one_of() { case " $2 " in *" $1 "*) ;; *) return 1 ;; esac; }
check_values() {
  local name value
  for name in SHORT SEG IRN SCORE LABELS GATE SKIP_BAD_IMAGES NEWEST; do
    one_of "${!name:-0}" "0 1" || wrong "$name=${!name}: give 1 or 0"
  done
  for name in ROUND ROUNDS JOBS; do
    case "${!name:-1}" in *[!0-9]* | 0*) wrong "$name=${!name}: give a number of at least 1" ;; esac
  done
  for name in WEIGHTS SEG_WEIGHTS; do
    value="${!name:-}"
    case "$value" in "" | imagenet | pypi | none) continue ;; esac
    [ -f "$value" ] || wrong "$name=$value is no file: give one, imagenet, pypi or none"
  done
}
check_method() {  # setting, method, the methods that are possible; a method that no script knows may be the user's own
  local other
  if one_of "$2" "$3"; then return; fi
  for other in "$scripts"/script_*.sh; do
    other="$(basename "$other")"
    if one_of "$2" "$(value_of "$other" stages)"; then wrong "$1=$2 is trained on the way by scripts/$other: run that"; fi
    if one_of "$2" "$(value_of "$other" methods)"; then
      wrong "$1=$2 is a method of scripts/$other: run that, or give one of $(echo "$3" | sed 's/ /, /g')"
    fi
  done
}
check_methods() {
  local name own called
  own="${methods:-}"
  for called in ${calls:-}; do own="${own:-$(value_of "$called" methods)}"; done
  [ -n "$own" ] || return 0
  if one_of METHODS "$known"; then
    for name in ${METHODS:-}; do check_method METHODS "${name%%:*}" "$own"; done
  else
    [ -z "${METHOD:-}" ] || check_method METHOD "$METHOD" "$own"
  fi
  [ "${SEG:-0}" != 1 ] || check_method SEG_METHOD "${SEG_METHOD:-deeplab2}" "$(value_of script_seg.sh methods)"
}
warn_of_unread() {  # settings that have no effect here
  local name
  compgen -e | read_text warn - >&2
  [ "${SEG:-0}" != 1 ] || return 0
  for name in SEG_METHOD SEG_STEPS SEG_BACKBONE SEG_WEIGHTS SEG_FLAGS SEG_SCALES; do
    if [ -n "${!name:-}" ] && one_of "$name" "$known"; then
      echo "$script: warning: $name has no effect without SEG=1" >&2
    fi
  done
}
check_values
check_methods
if [ -z "${SETTINGS_CHECKED:-}${arguments:-}" ]; then warn_of_unread; fi
export SETTINGS_CHECKED=1                                        # the scripts that this one calls get its settings
export SCRIPT_PROCESS=$$                                         # the program that it waits for ends with it (tool/starting.py)
if [ -z "${arguments:-}" ]; then PYTHON="${PYTHON_READY:-$(bash scripts/setup.sh)}"; fi
