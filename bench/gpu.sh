#!/usr/bin/env bash
# What a GPU says about this checkout, in under nine minutes, on a machine without a network: build, tests of every op and of a whole run on the GPU, bench. It
# needs a C++ compiler, nvcc for the kernel in CUDA, and in Python what the line that begins with "needs" imports; neither TransformerLens nor datasets.
#
#   bash bench/gpu.sh OUTDIR [COMMIT [STEP...]]
#   bash bench/gpu.sh OUTDIR "" run plan       what the first call had no time for
#
# OUTDIR gets rows.jsonl (append it to a file of bench/results/), steps.log with what every step said, and summary.txt, which is also printed last; a later call
# adds to them. A step that fails or takes too long does not stop the next ones; the exit code is 1 then. COMMIT is for a checkout without its .git. STEPs are
# tests, ops, rest, forward, loop, run, plan; all by default.
set -uo pipefail
out=$(mkdir -p "${1:?usage: bash bench/gpu.sh OUTDIR [COMMIT [STEP...]]}" && cd "$1" && pwd)
export PYUNIVERSAL_COMMIT=${2:-}
only=" ${*:3} "
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONPATH=$site PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
PATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH # the build calls cmake and ninja by name, and $PYTHON may be of a venv
unset TRITON_INTERPRET OPENBLAS_CORETYPE
limit=530 failed=0
date --utc +'%n%F %R UTC' | tee -a "$out/summary.txt" >>"$out/steps.log"

step() { # step NAME SECONDS COMMAND...: run it for at most so long, and no longer than is left; its output goes to a log
    local name=$1 most=$2 start=$SECONDS code
    shift 2
    [[ $name == build || $only == "  " || $only == *" $name "* ]] || return 0
    ((most > limit - SECONDS)) && most=$((limit - SECONDS))
    if ((most < 5)); then
        code="no time left"
    else
        timeout --kill-after=5 "$most" "$@" >"$site/$name.log" 2>&1
        code=$?
        { printf '\n=== %s\n' "$name" && cat "$site/$name.log"; } >>"$out/steps.log"
    fi
    [ "$code" = 0 ] || failed=1
    printf '%-8s %4d s  %s\n' "$name" $((SECONDS - start)) "$([ "$code" = 0 ] && echo done || echo "failed ($code): $(tail -1 "$site/$name.log" 2>/dev/null)")" |
        tee -a "$out/summary.txt"
}

needs="click, cmake, hypothesis, matplotlib, ninja, numpy, pandas, psutil, pyarrow, pybind11, pytest, rich, safetensors, scipy, setuptools, torch, tqdm, transformers, triton"
"$python" -c "import $needs; assert torch.cuda.is_available(), 'torch sees no GPU'" || exit 2

bench=("$python" -m bench --device cuda --out "$out/rows.jsonl")
parallel=$("$python" -c 'import xdist' 2>/dev/null && echo "-n 8 --dist loadgroup")
step build 120 "$python" -m pip install --quiet --no-deps --no-build-isolation --no-index --target "$site" .
((failed == 0)) || exit 1
required="--require-backend triton"
if PYTHONSAFEPATH=1 "$python" -c 'from pyuniversal import _C; assert _C.has_cuda' 2>/dev/null; then
    required+=" --require-backend cuda"
else
    echo "the CUDA kernel of product_ is neither tested nor measured: built without CUDA" | tee -a "$out/summary.txt"
fi
# Other versions of other libraries than those that were tested together may warn. The safe path keeps the sources here, which are not compiled, out of the way.
# shellcheck disable=SC2086
step tests 240 env PYTHONSAFEPATH=1 "$python" -m pytest -p no:cacheprovider -W default -q --maxfail=40 $parallel $required tests/ops tests/test_cuda.py
step ops 150 "${bench[@]}" product_ moments_ quantize summarize_correlation correlate
step rest 60 "${bench[@]}" pair_sums_ histogram_ dyadic_histogram_ token_sums_ logit_stats
step forward 60 "${bench[@]}" forward
step loop 60 "${bench[@]}" loop
step run 180 "${bench[@]}" run
step plan 100 "${bench[@]}" plan
for name in ops rest forward loop run plan; do # the tables that they drew
    grep -hs '[┃│└]' "$site/$name.log" | tee -a "$out/summary.txt"
done
exit $failed
