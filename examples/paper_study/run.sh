#!/usr/bin/env bash
# The paper's statements about losses, put to small models on a CPU: makes what is needed, runs what is missing, prints the tables.
#
#   examples/paper_study/run.sh [run|table] [--setting NAME] [--loss NAME] [--seeds N] [--jobs N]
#   examples/paper_study/run.sh compare SETTING/LOSS SETTING/LOSS     the first less the second, seed by seed
#
# Makes its own environment in .venv; texts, tokenizers, teachers and runs go to paper_study/, results to
# examples/paper_study/results. Stopped at any time, the same command goes on. study.yaml says what is compared.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. examples/environment.sh

make_environment .venv tests/locks/base.txt
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1
[ "$#" -gt 0 ] || set -- run
exec python -m examples.paper_study "$@"
