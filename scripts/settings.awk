# Reads the text of all scripts for scripts/settings.sh, and tells which settings a script reads, and which are not read.
# Input: the scripts, then, for task=warn, the names in the environment. Variables: task, list or warn; script, the name of
# the script; extra, words that are settings of it too.
FNR == 1 { file = FILENAME; sub(/.*\//, "", file); is_script = file ~ /\.sh$/; inside = "" }

is_script {
  sub(/^ *#.*/, ""); sub(/ # .*/, "")
  if (match($0, /^source scripts\/[a-z_]+\.sh$/)) parts[file] = parts[file] " " substr($0, 16)
  if (match($0, /^calls="[a-z_.]+"$/)) calls[file] = substr($0, 8, RLENGTH - 8)
  # A part's function reads its settings in the scripts that call it. Of a file, `inside` is the function that a line is in.
  if (match($0, /^[a-z_]+\(\) *[{]/)) { inside = substr($0, 1, index($0, "(") - 1); functions[file, inside] = 1 }
  for (line = $0; match(line, /[a-z_]+/); line = substr(line, RSTART + RLENGTH)) words[file, substr(line, RSTART, RLENGTH)] = 1
  for (line = $0; match(line, /[$][{][A-Z][A-Z_]*:[-+?]/); line = substr(line, RSTART + RLENGTH)) {
    name = substr(line, RSTART + 2, RLENGTH - 4)
    if (name != "PYTHON_READY") { reads[file, name] = 1; all[name] = 1; readers[file, name, inside] = 1 }
  }
  for (line = $0; match(line, /(^|[ ;(])[A-Z][A-Z_]*=/); line = substr(line, RSTART + RLENGTH)) {
    name = substr(line, RSTART, RLENGTH - 1)
    gsub(/[ ;(]/, "", name)
    sets[file, name] = 1
  }
  files[file] = 1
  if ($0 ~ /^[}]/ || $0 ~ /^[a-z_]+\(\) *[{].*[}] *$/) inside = ""
  next
}

function reads_itself(file, name,   list, n, i, key, part) {
  if ((file, name) in reads) return 1
  n = split(parts[file], list, " ")
  for (i = 1; i <= n; i++) {
    if ((list[i], name, "") in readers) return 1
    for (key in functions) {
      split(key, part, SUBSEP)
      if (part[1] == list[i] && (list[i], name, part[2]) in readers && (file, part[2]) in words) return 1
    }
  }
  return 0
}
function holds(file, name) {  # whether the script or one that it calls takes the setting from the user
  if (reads_itself(file, name)) return 1
  return (file in calls) && !((file, name) in sets) && holds(calls[file], name)
}
function prepare(   name, list, n, i) {
  for (name in all) if (holds(script, name)) known[name] = 1
  n = split(extra, list, " ")
  for (i = 1; i <= n; i++) known[list[i]] = 1
}
function owner_of(name,   file, first) {  # the first script, in their order, that has the setting
  for (file in files) if (file ~ /^(script|compare|sweep)_|^compare/ && holds(file, name) && (!first || file < first)) first = file
  return first
}

function least(a, b) { return a < b ? a : b }
function distance(a, b,   i, j, d, same) {  # edits, a swap of neighbours among them
  for (i = 0; i <= length(a); i++) d[i, 0] = i
  for (j = 0; j <= length(b); j++) d[0, j] = j
  for (i = 1; i <= length(a); i++) for (j = 1; j <= length(b); j++) {
    same = substr(a, i, 1) == substr(b, j, 1)
    d[i, j] = least(least(d[i-1, j], d[i, j-1]) + 1, d[i-1, j-1] + !same)
    if (i > 1 && j > 1 && substr(a, i, 1) == substr(b, j-1, 1) && substr(a, i-1, 1) == substr(b, j, 1))
      d[i, j] = least(d[i, j], d[i-2, j-2] + 1)
  }
  return d[length(a), length(b)]
}
function bare(name) {  # what names of one thing share
  gsub(/_/, "", name)
  return match(name, /.(DIRECTORY|FOLDER|DIR|PATH|FILE|ROOT)$/) ? substr(name, 1, RSTART) : name
}
function is_close(name, setting,   one, two) {
  one = bare(toupper(name)); two = bare(setting)
  if (one == two || index(setting, toupper(name) "_") == 1 && length(name) > 3) return 1
  if (length(two) < 4 || length(one) > length(two) + 2) return one == two "S"
  return distance(one, two) <= (length(two) > 5 ? 2 : 1)
}
function hint_of(name,   setting, near, flags) {
  for (setting in known) {
    if (setting !~ /^(PYTHON|NEWEST|OMP_|SLURM_)/ && is_close(name, setting)) near = near (near ? " or " : "") setting
    if (setting ~ /^(TRAIN|CAM|AMN|SFC|BOUNDARY|IRN|TRANSCAM|BAO)_FLAGS$/) flags = flags (flags ? " or " : "") setting
  }
  if (near) return ": is " near " meant?"
  return flags && name ~ FLAGS ? ": it is a flag of train_fbr.py, give it in " flags : ""
}

FNR == 1 {
  prepare()
  FLAGS = "^(STEPS?|EPOCHS?|LR|LEARNING_RATE|NUM_WORKERS|WARMUP|MOMENTUM|WEIGHT_DECAY|LONG_SIDE|CROP|BATCH_SIZE|ACCUMULATE|AMP|DEVICE)$"
}
!($0 in known) && $0 !~ /^(PYTHON|OMP_|SLURM_|PORT$)/ {
  owner = ($0 in all) ? owner_of($0) : ""
  hint = hint_of($0)
  if (owner hint) print script ": warning: " $0 (owner ? " (a setting of " owner ")" : "") " is not read here" hint
}

END {
  if (task == "list") { prepare(); for (name in known) print name }
}
