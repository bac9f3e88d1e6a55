#!/usr/bin/env bash
# Every check in one command: style, types, import contract, tests. Makes its own environments the first time.
#
#   tests/run.sh [pytest arguments]                the base suite, without its slow tests
#   tests/run.sh --all [pytest arguments]          the slow tests as well, then every other suite
#   tests/run.sh --suite NAME [pytest arguments]   one suite alone, without style, types and contract
#
# The base suite runs in .venv. Every other lock file tests/locks/NAME.txt makes a suite NAME, which has its own
# environment .venv-NAME and runs the tests in tests/NAME, or those that paths_of says. The suite slurm starts a real SLURM
# on this machine; it needs root and Debian's slurm-wlm, and skips without them. All suites run, also when one has
# failed; the last lines say what became of each, and the exit status is 1 unless every one passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. examples/environment.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
results=.cache/suites

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

# suites: the names of all but the base suite.
suites() {
  local lock
  for lock in tests/locks/*.txt; do
    lock=$(basename "$lock" .txt)
    case $lock in base | tools) ;; *) echo "$lock" ;; esac
  done
  if [ -d tests/slurm ]; then echo slurm; fi
}

# paths_of SUITE: what pytest is asked to collect.
paths_of() {
  case $1 in
    base) echo tests ;;
    newest) echo tests/distributed tests/unit/test_frame_doctor.py ;;
    *) echo "tests/$1" ;;
  esac
}

# folder_of SUITE: its environment. SLURM needs no Python packages of its own, but a machine that has it.
folder_of() {
  case $1 in
    base | slurm) echo .venv ;;
    *) echo ".venv-$1" ;;
  esac
}

# environment_of SUITE: makes it.
environment_of() {
  if [ "$(folder_of "$1")" = .venv ]; then
    make_environment .venv tests/locks/base.txt tests/locks/tools.txt
  else
    make_environment ".venv-$1" "tests/locks/$1.txt"
  fi
}

# suite NAME [PYTEST-ARGUMENT...]: the tests of one suite in its environment.
suite() {
  local name=$1 folder started=$SECONDS status=0
  shift
  folder=$(folder_of "$name")
  # The slow tests run once, in the base suite: here they would take minutes more.
  if [ "$name" = newest ]; then set -- -m "not slow" "$@"; fi
  rm -f "$results/$name.xml"
  environment_of "$name" || return
  # shellcheck disable=SC2046  # several paths
  PATH="$PWD/$folder/bin:$PATH" python -m pytest --junitxml "$results/$name.xml" $(paths_of "$name") "$@" || status=$?
  echo "== $name took $((SECONDS - started)) s"
  return $status
}

# result_of SUITE: its tests in one line.
result_of() {
  local file="$results/$1.xml" tests failures errors skipped
  if [ ! -f "$file" ]; then
    echo "$1: did not run to its end, see above"
    return
  fi
  for word in tests failures errors skipped; do
    declare "$word=$(grep -o "<testsuite [^>]*" "$file" | grep -o " $word=\"[0-9]*" | grep -o '[0-9]*$')"
  done
  echo "$1: $((tests - failures - errors - skipped)) passed, $((failures + errors)) failed, $skipped skipped"
}

# run_suites NAME... -- [PYTEST-ARGUMENT...]: all of them, then a line for each.
run_suites() {
  local name names=() status=0
  while [ "$1" != -- ]; do
    names+=("$1")
    shift
  done
  shift
  for name in "${names[@]}"; do
    step suite "$name" "$@" || status=1
  done
  echo "== results"
  for name in "${names[@]}"; do
    result_of "$name"
  done
  return $status
}

# check_the_code: what needs no test.
check_the_code() {
  environment_of base
  local PATH="$PWD/.venv/bin:$PATH"
  step style
  step types
  step contract
}

case ${1:-} in
  --suite)
    name=${2:-}
    if [[ ! " base $(suites | xargs) " == *" $name "* ]] || [ -z "$name" ]; then
      echo "error: expected one of the suites base $(suites | xargs), got '$name'" >&2
      exit 2
    fi
    run_suites "$name" -- "${@:3}"
    ;;
  --all)
    check_the_code
    # shellcheck disable=SC2046  # several names
    run_suites base $(suites) -- "${@:2}"
    ;;
  *)
    check_the_code
    run_suites base -- -m "not slow" "$@"
    ;;
esac
