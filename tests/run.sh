#!/usr/bin/env bash
# Every check in one command: style, types, import contract, tests. Makes its own environment in .venv the first time.
#
#   tests/run.sh [--all] [pytest arguments]
#
# --all runs the slow tests as well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. examples/environment.sh

step() {
  echo "== $*"
  "$@"
}

style() {
  ruff check --quiet --output-format concise .
  ruff format --quiet --check .
}

types() { pyright --pythonpath .venv/bin/python; }

contract() { lint-imports --no-logo 2>&1; }

tests() { python -m pytest "$@"; }

selection=(-m "not slow")
if [ "${1:-}" = --all ]; then
  selection=()
  shift
fi
make_environment .venv tests/locks/base.txt tests/locks/tools.txt
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
step style
step types
step contract
step tests "${selection[@]}" "$@"
