# Sourced by tests/run.sh and examples/quickstart.sh: makes a Python environment out of lock files.
#
#   . examples/environment.sh
#   make_environment .venv tests/locks/base.txt      # one or more lock files; then use .venv/bin/python
#
# What is there already is reused; a lock file that has changed makes a new environment. PYTHON=... chooses the
# interpreter. Fails with one line on stderr and status 2 where the machine lacks something.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# make_environment DIR LOCKFILE...
make_environment() {
  local directory=$1 python version lock
  shift
  python=$(find_python) || return
  version=$("$python" --version)
  for lock in "$@"; do
    if is_outdated "$directory" "$(stamp "$directory" "$lock")" "$version $(digest "$lock")"; then
      create_environment "$python" "$directory" || return
    fi
  done
  for lock in "$@"; do
    install "$directory" "$(stamp "$directory" "$lock")" "$version $(digest "$lock")" \
      "$(grep -c == "$lock") packages of $lock" -r "$lock" || return
  done
  install "$directory" "$directory/project.stamp" "$checkout $(digest "$checkout/pyproject.toml")" \
    "nemo-xtoken from $checkout" --no-deps --no-build-isolation -e "$checkout"
}

# find_python: prints an interpreter of version 3.11 or newer.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer found; try: apt-get install python3 python3-venv" >&2
  return 2
}

# stamp DIR LOCKFILE: the file that says which state of the lock file is installed.
stamp() { echo "$1/$(basename "$2").stamp"; }

# digest FILE
digest() { sha256sum <"$1" | cut -d' ' -f1; }

# is_outdated DIR STAMP STATE: whether the environment is missing, or holds another state than this.
is_outdated() { [ ! -x "$1/bin/python" ] || { [ -f "$2" ] && [ "$(cat "$2")" != "$3" ]; }; }

# create_environment PYTHON DIR: an empty environment in place of what is there.
create_environment() {
  if ! "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    echo "error: $1 can't make environments; try: apt-get install python3-venv" >&2
    return 2
  fi
  echo "making the environment $2 with $("$1" --version)"
  "$1" -m venv --clear "$2"
}

# install DIR STAMP STATE WHAT PIP-ARGUMENT...: installs unless the stamp says that it is done.
install() {
  local directory=$1 stamp=$2 state=$3 what=$4 output
  shift 4
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ]; then return; fi
  echo "installing $what"
  if ! output=$("$directory/bin/python" -m pip install --quiet --disable-pip-version-check "$@" 2>&1); then
    grep -v ^WARNING <<<"$output" | tail -n 5 >&2
    echo "error: could not install $what; is a package index reachable?" >&2
    return 2
  fi
  echo "$state" >"$stamp"
}
