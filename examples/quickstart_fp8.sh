#!/usr/bin/env bash
# The quickstart's student in emulated FP8, every recipe beside fp32, and the table of all. Run examples/quickstart.sh first.
#
#   examples/quickstart_fp8.sh [KEY=VALUE ...]       # changes every run, such as train.steps=60
#   SEEDS='1 2 3' TP='1 2' RECIPES='delayed current blockwise mxfp8' examples/quickstart_fp8.sh
#
# One run at a time. Stopped at any moment, the same command goes on where it was. Held-out losses are those of the
# weights in fp32; validation in the log is in FP8.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -d .venv ]; then export PATH="$PWD/.venv/bin:$PATH"; fi
export OMP_NUM_THREADS=1
if [ ! -d quickstart/teacher ]; then
  echo 'error: quickstart/teacher is missing: run examples/quickstart.sh first' >&2
  exit 1
fi

runs=()
for seed in ${SEEDS:-1 2 3}; do
  for tp in ${TP:-1 2}; do
    for recipe in fp32 ${RECIPES:-delayed current blockwise mxfp8}; do
      run_dir="quickstart/fp8/$recipe-tp$tp-$seed"
      fp8=("fp8={recipe: $recipe, backend: emulate}")
      if [ "$recipe" = fp32 ]; then fp8=(); fi
      nemo-xtoken train examples/quickstart.yaml "run_dir=$run_dir" "train.seed=$seed" "data.seed=$seed" \
        "parallel.tensor_model_parallel_size=$tp" "${fp8[@]}" "$@"
      if [ ! -e "$run_dir/evaluation.json" ] || [ "$run_dir/metrics.jsonl" -nt "$run_dir/evaluation.json" ]; then
        nemo-xtoken evaluate "$run_dir" --data quickstart/data/heldout
      fi
      runs+=("$run_dir")
    done
  done
done
python examples/compare_runs.py "${runs[@]}"
