#!/usr/bin/env bash
# The quickstart's student and its control with several seeds, and the table of all. Run examples/quickstart.sh first.
#
#   examples/quickstart_seeds.sh [SEED ...]          # default: 1 2 3
#
# A seed decides the initial weights and the order of the text; the teacher stays the same.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1
if [ ! -d quickstart/teacher ]; then
  echo 'error: quickstart/teacher is missing: run examples/quickstart.sh first' >&2
  exit 1
fi
[ "$#" -gt 0 ] || set -- 1 2 3

# train_and_evaluate RUN_DIR OVERRIDE...
train_and_evaluate() {
  local run_dir=$1
  shift
  nemo-xtoken train examples/quickstart.yaml "run_dir=$run_dir" "$@"
  if [ ! -e "$run_dir/evaluation.json" ] || [ "$run_dir/metrics.jsonl" -nt "$run_dir/evaluation.json" ]; then
    nemo-xtoken evaluate "$run_dir" --data quickstart/data/heldout --prompts quickstart/text/prompts.jsonl
  fi
}

runs=()
for seed in "$@"; do
  seeds=("train.seed=$seed" "data.seed=$seed")
  train_and_evaluate "quickstart/seeds/control-$seed" teachers=[] "${seeds[@]}"
  train_and_evaluate "quickstart/seeds/distilled-$seed" "${seeds[@]}"
  runs+=("quickstart/seeds/control-$seed" "quickstart/seeds/distilled-$seed")
done
python examples/compare_runs.py "${runs[@]}"
