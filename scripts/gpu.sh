#!/bin/sh
# Runs the tests of tests/gpu and the benchmarks on a GPU. Everything that they print is written to
# benchmarks/results/gpu_NAME.txt as well; NAME says which GPU it is.
#
#     sh scripts/gpu.sh a100
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
name=${1:?give a name for the GPU, such as a100}
sh "$root/scripts/make_venv.sh" dev,bench
cd "$root"
if ! .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "torch finds no GPU" >&2
    exit 1
fi
results="benchmarks/results/gpu_$name.txt"
python=.venv/bin/python

# A failure is part of the results, so it does not end the script at once.
run() {
    echo "\$ $*"
    "$@" 2>&1 || echo "ended with $?"
}

{
    run git log -1 --format='%H %cI'
    run git status --short --untracked-files=no
    run "$python" -c "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())"
    run "$python" -m pytest -q -m gpu tests/gpu
    run "$python" benchmarks/refine.py --device cuda --regions 32
    run "$python" benchmarks/refine.py --device cuda --regions 32 --tf32
    run "$python" benchmarks/refine.py --device cuda --regions 256
    run "$python" benchmarks/detector.py --device cuda --repeats 9
} > "$results"
cat "$results"
! grep -q '^ended with' "$results"
