#!/usr/bin/env bash
# The main job, in the commands that users type: a trained checkpoint becomes nine models for phones, each
# checked on images that it never saw, timed, and put on one page. Needs nothing from outside.
#
#   bash examples/demo.sh [FOLDER]      (default: runs/demo)
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-runs/demo}
run=$out/mobile_former_26m
digits=$out/digits
log=$out/demo.log
mkdir -p "$out"
: >"$log"

step() {
    printf '\n# %s\n$ %s\n' "$1" "${*:2}"
    printf '\n$ %s\n' "${*:2}" >>"$log"
    local started=$SECONDS
    "${@:2}" >>"$log" 2>&1 || {
        local status=$?
        tail -n 20 "$log" >&2
        exit "$status"
    }
    printf '  %d s\n' $((SECONDS - started))
}

step "Handwritten digits as PNG files: 1,297 to calibrate with, 500 held out to check with" \
    python examples/digits.py "$digits"
step "Export the trained model to ONNX, Core ML and TFLite, each proven against PyTorch" \
    mf-export mobile_former_26m --target all --input-size 32 --crop-fraction 1 --out "$out" --force \
    --checkpoint examples/checkpoints/mobile_former_26m_digits.safetensors
step "Quantize: int8 weights and activations" \
    mf-quantize "$run" --calibration "$digits/train" --scheme w8a8 --force
step "Quantize: int8 weights only" \
    mf-quantize "$run" --calibration "$digits/train" --scheme w8 --force
step "Check all nine on the held-out images, against PyTorch on the same images" \
    mf-check "$run" --data "$digits/held-out" --max-drop 5
step "Time them on this machine" \
    mf-bench "$run" --quick

printf '\n# All of it on one page\n$ mf-report %s\n' "$out"
mf-report "$out"
printf '\nFinished in %d s. What each command printed: %s\n' "$SECONDS" "$log"
