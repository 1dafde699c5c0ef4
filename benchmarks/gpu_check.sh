#!/usr/bin/env bash
# Everything that needs a GPU, in one call on a machine that has one: tests, memory checks, and the tables.
#
#   benchmarks/gpu_check.sh                 results under benchmarks/results/, or under $OUT if it is set
#   PYTHON=.venv/bin/python benchmarks/gpu_check.sh
#   DEVICE=cpu QUICK=1 benchmarks/gpu_check.sh    the same commands in small, to try the script out
#
# A check that fails does not keep the later ones from running; the exit status is 1 then, and summary.txt says which.
set -uo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root" || exit 1
python="${PYTHON:-python3}"
device="${DEVICE:-cuda}"
out="${OUT:-$root/benchmarks/results}/gpu"
quick=()
[[ -n "${QUICK:-}" ]] && quick=(--quick)
mkdir -p "$out"
: >"$out/summary.txt"
failed=0

# check NAME COMMAND...: runs it with its output in NAME.log, and notes how it ended.
check() {
    local name="$1" start="$SECONDS" status
    shift
    printf '\n=== %s\n$ %s\n' "$name" "$*"
    "$@" 2>&1 | tee "$out/$name.log"
    status="${PIPESTATUS[0]}"
    [[ "$status" -eq 0 ]] || failed=1
    printf '%-20s status %s, %s s\n' "$name" "$status" "$((SECONDS - start))" | tee -a "$out/summary.txt"
}

skip() {
    printf '%-20s skipped: %s\n' "$1" "$2" | tee -a "$out/summary.txt"
}

bench() {
    "$python" -m momentumnet bench "$@" --device "$device" --output "$out" "${quick[@]}"
}

check environment "$python" - <<'PYTHON'
import platform

import torch

import momentumnet as mn

print("momentumnet", mn.__version__, "torch", torch.__version__, "cuda", torch.version.cuda, platform.python_version())
print("gpu", torch.cuda.get_device_name() if torch.cuda.is_available() else "none")
for device in ("cpu", "cuda"):
    print("native kernels,", device + ":", mn.native.reason(device) or "available")
PYTHON

if [[ "$device" == cuda ]]; then
    # In an editable installation or a source tree the kernels are built in place.
    check build "$python" csrc/build.py
fi
if [[ -z "${QUICK:-}" ]]; then
    check tests "$python" -m pytest -q
    check opcheck "$python" -m pytest -q -rs tests/arithmetic/compiled -k opcheck
else
    skip tests "QUICK is set"
fi
if [[ "$device" != cuda ]]; then
    skip compute-sanitizer "it checks CUDA kernels"
elif command -v compute-sanitizer >/dev/null; then
    check compute-sanitizer compute-sanitizer --error-exitcode 1 "$python" -m pytest -q -x tests/arithmetic/compiled -k cuda
else
    skip compute-sanitizer "not installed"
fi

sizes=() networks=() dtype=()
[[ "$device" != cuda ]] || dtype=(--dtype bfloat16) # few CPUs have fast bfloat16
if [[ -z "${QUICK:-}" ]]; then
    sizes=(--elements 1048576,16777216,67108864)
    networks=(--network resnet50-224 --network resnet101-224 --network gpt-24)
fi
check kernel bench kernel --gammas 9/10,1/8 "${sizes[@]}"
check step bench step "${dtype[@]}" "${networks[@]}"
check depth-resnet bench depth --family resnet --budget 2GiB "${dtype[@]}"
check depth-transformer bench depth --family transformer --budget 2GiB "${dtype[@]}"
check pytest-benchmark "$python" -m pytest -q -o addopts= benchmarks/test_kernel.py --benchmark-max-time=0.2

printf '\n'
cat "$out/summary.txt"
exit "$failed"
