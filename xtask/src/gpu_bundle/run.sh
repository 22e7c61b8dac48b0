#!/usr/bin/env bash
# Checks and times the CUDA kernels on this machine's first GPU. Needs an NVIDIA driver for CUDA 13.0
# or later and nothing else; uses compute-sanitizer and PyTorch where they are.
#
#   run.sh [check|sanitize|bench]...      all three by default
#
# Logs and JSON go to $OUT (by default the folder `out` beside this script). The exit status is that
# of the checks: 1 if a test or the sanitizer failed. SANITIZER_SECONDS (by default 400) is how long
# the sanitizer begins another test; those that it did not come to are told.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
out="${OUT:-$PWD/out}"
mkdir -p "$out"
export PAGELOOM_CUDA_DEVICE=gpu
failed=0
summary=()

note() { summary+=("$1"); echo "$1"; }

# run NAME COMMAND...: the command's output goes to a log; its end is shown if it fails.
run() {
  local name=$1 start=$SECONDS
  shift
  if "$@" >"$out/$name.log" 2>&1; then
    note "ok    $name ($((SECONDS - start)) s)"
  else
    note "FAIL  $name: status $?"
    tail -n 15 "$out/$name.log"
    failed=1
  fi
}

check() {
  local test
  for test in tests/*; do
    run "$(basename "$test")" "$test" --test-threads=2
  done
}

# One sanitizer after the other over every test program: reads and writes out of bounds, races in
# shared memory, reads of what was never written, barriers that not all threads reach.
sanitize() {
  local tool test end=$((SECONDS + ${SANITIZER_SECONDS:-400}))
  if ! command -v compute-sanitizer >/dev/null; then
    note "no compute-sanitizer on this machine"
    return
  fi
  for tool in memcheck racecheck initcheck synccheck; do
    for test in tests/*; do
      if ((SECONDS > end)); then
        note "out of time: $tool of $(basename "$test") and what comes after it"
        return
      fi
      run "$tool-$(basename "$test")" timeout 240 compute-sanitizer --tool "$tool" \
        --error-exitcode 1 --target-processes all "$test" --test-threads=1
    done
  done
}

bench() {
  run bench ./xtask bench kernels --json "$out/kernels.json"
  if python3 -c 'import torch' 2>/dev/null; then
    run peers python3 peers.py --json "$out/peers.json"
  else
    note "no PyTorch on this machine: no peers"
  fi
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
steps=("$@")
[[ ${#steps[@]} -gt 0 ]] || steps=(check bench sanitize)
for step in "${steps[@]}"; do
  case "$step" in
    check | sanitize | bench) "$step" ;;
    *) echo "unknown step $step: check, sanitize or bench" >&2; exit 2 ;;
  esac
done

# Short tables last: where output is cut, this is what is kept.
for table in bench peers; do
  [[ -f "$out/$table.log" ]] && tail -n 60 "$out/$table.log"
done
printf '%s\n' "" "${summary[@]}"
exit "$failed"
