#!/usr/bin/env bash
# Everything that needs a GPU, by parts, on a machine that has one: tests, memory checks, and the tables.
#
#   benchmarks/gpu_check.sh [PART ...]      results under benchmarks/results/gpu/, or under $OUT/gpu if OUT is set
#
#   tests      the test suite, and the operators' opcheck
#   kernel     bench kernel, and single operations under pytest-benchmark
#   step       bench step; NETWORKS="llama-24 mlp-200" chooses networks, COMPILED=1 adds torch.compile
#   offload    plans that move activations to host memory: their tests, and bench step --planned of a ResNet-50 and a
#              decoder, beside stored, checkpointed and offloaded ones
#   host       what a block costs the host, beside checkpointing and the least that a reversible step can do
#   depth      bench depth, ResNet and transformer blocks
#   sanitizer  the CUDA kernels under compute-sanitizer
#   all        all of these, one after the other (the default)
#
#   PYTHON=.venv/bin/python benchmarks/gpu_check.sh tests
#   DEVICE=cpu QUICK=1 benchmarks/gpu_check.sh kernel step    the same commands in small, to try the script out
#
# The environment is shown and the kernels are built first, whatever the parts. A check that fails does not keep the
# later ones from running; the exit status is 1 then, and summary-PART.txt says which.
set -uo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root" || exit 1
python="${PYTHON:-python3}"
device="${DEVICE:-cuda}"
out="${OUT:-$root/benchmarks/results}/gpu"
all_parts=(tests kernel step offload host depth sanitizer)
quick=() dtype=()
[[ -z "${QUICK:-}" ]] || quick=(--quick)
[[ "$device" != cuda ]] || dtype=(--dtype bfloat16) # few CPUs have fast bfloat16
part=environment
failed=0

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
}

# check NAME COMMAND...: runs it with its output in NAME.log, and notes in the part's summary how it ended.
check() {
    local name="$1" start="$SECONDS" status
    shift
    printf '\n=== %s\n$ %s\n' "$name" "$*"
    "$@" 2>&1 | tee "$out/$name.log"
    status="${PIPESTATUS[0]}"
    [[ "$status" -eq 0 ]] || failed=1
    printf '%-20s status %s, %s s\n' "$name" "$status" "$((SECONDS - start))" | tee -a "$out/summary-$part.txt"
}

skip() {
    printf '%-20s skipped: %s\n' "$1" "$2" | tee -a "$out/summary-$part.txt"
}

bench() {
    "$python" -m momentumnet bench "$@" --device "$device" --output "$out" "${quick[@]}"
}

environment() {
    "$python" - <<'PYTHON'
import platform

import torch

import momentumnet as mn

print("momentumnet", mn.__version__, "torch", torch.__version__, "cuda", torch.version.cuda, platform.python_version())
print("gpu", torch.cuda.get_device_name() if torch.cuda.is_available() else "none")
for device in ("cpu", "cuda"):
    print("native kernels,", device + ":", mn.native.reason(device) or "available")
PYTHON
}

part_tests() {
    if [[ -n "${QUICK:-}" ]]; then
        skip tests "QUICK is set"
        return
    fi
    local workers=()
    ! "$python" -c "import xdist" 2>/dev/null || workers=(-n auto)
    # One thread each: the workers share the cores.
    check tests env OMP_NUM_THREADS=1 "$python" -m pytest -q "${workers[@]}"
    check opcheck env OMP_NUM_THREADS=1 "$python" -m pytest -q -rs "${workers[@]}" tests/arithmetic/compiled -k opcheck
}

part_kernel() {
    local sizes=()
    [[ -n "${QUICK:-}" ]] || sizes=(--elements 1048576,16777216,67108864)
    check kernel bench kernel --gammas 9/10,1/8 "${sizes[@]}"
    check pytest-benchmark "$python" -m pytest -q -o addopts= benchmarks/test_kernel.py --benchmark-max-time=0.2
}

part_step() {
    local chosen=() name
    for name in ${NETWORKS:-}; do
        chosen+=(--network "$name")
    done
    [[ -z "${COMPILED:-}" ]] || chosen+=(--compiled)
    check step bench step "${dtype[@]}" "${chosen[@]}"
}

part_offload() {
    local networks=(--network resnet50-128 --network llama-24)
    [[ -z "${QUICK:-}" ]] || networks=()
    check offload-tests "$python" -m pytest -q -rs tests/core/test_offload{,_gpu,_memory}.py tests/planner/test_offload.py
    check offload-step "$python" -m momentumnet bench step --device "$device" --output "$out/offload" "${quick[@]}" \
        --planned --offloaded "${networks[@]}" "${dtype[@]}"
}

part_host() {
    local repeats=()
    [[ -z "${QUICK:-}" ]] || repeats=(--repeats 1)
    check host-time "$python" benchmarks/host_time.py --device "$device" --output "$out" "${repeats[@]}"
}

part_depth() {
    check depth-resnet bench depth --family resnet --budget 2GiB "${dtype[@]}"
    check depth-transformer bench depth --family transformer --budget 2GiB "${dtype[@]}"
}

part_sanitizer() {
    local kernels=("$python" -m pytest -q -x -rs tests/arithmetic/compiled/test_gpu.py)
    if [[ "$device" != cuda ]]; then
        skip compute-sanitizer "it checks CUDA kernels"
    elif command -v compute-sanitizer >/dev/null; then
        check compute-sanitizer compute-sanitizer --error-exitcode 1 "${kernels[@]}"
    else
        skip compute-sanitizer "not installed"
    fi
}

parts=()
for name in "${@:-all}"; do
    case "$name" in
        all) parts+=("${all_parts[@]}") ;;
        tests | kernel | step | offload | host | depth | sanitizer) parts+=("$name") ;;
        *)
            printf 'gpu_check.sh: no part %q\n\n' "$name" >&2
            usage >&2
            exit 2
            ;;
    esac
done

mkdir -p "$out"
: >"$out/summary-environment.txt"
check environment environment
# In an editable installation or a source tree the kernels are built in place.
[[ "$device" != cuda ]] || check build "$python" csrc/build.py
for part in "${parts[@]}"; do
    cp "$out/summary-environment.txt" "$out/summary-$part.txt"
    "part_$part"
done

printf '\n'
for part in "${parts[@]}"; do
    printf '%s\n' "--- $part" && cat "$out/summary-$part.txt"
done
exit "$failed"
