# Sourced by tests/run.sh and examples/quickstart.sh: makes a Python environment out of lock files.
#
#   . examples/environment.sh
#   make_environment .venv tests/locks/base.txt      # one or more lock files; then use .venv/bin/python
#
# A lock file pins every package that is to be installed; what the packages themselves ask for is not looked at, but for
# torch, whose builds differ in the CUDA libraries that they name. A line "# Python 3.12" in the first lock file asks for
# that Python; without one 3.11 or newer will do, and PYTHON=... chooses it.
#
# What is there already is reused; a lock file that has changed makes a new environment. Fails with one line on stderr and
# status 2 where the machine lacks something.
# shellcheck shell=bash

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# make_environment DIR LOCKFILE...
make_environment() {
  local directory=$1 python version lock
  shift
  python=$(find_python "$1") || return
  version=$("$python" --version)
  for lock in "$@"; do
    if is_outdated "$directory" "$(stamp "$directory" "$lock")" "$version $(digest "$lock")"; then
      create_environment "$python" "$directory" || return
    fi
  done
  for lock in "$@"; do
    install "$directory" "$(stamp "$directory" "$lock")" "$version $(digest "$lock")" \
      "$(grep -c == "$lock") packages of $lock" --no-deps -r "$lock" || return
    install_libraries_of_torch "$directory" "$(grep '^torch==' "$lock")" || return
  done
  install "$directory" "$directory/project.stamp" "$checkout $(digest "$checkout/pyproject.toml")" \
    "nemo-xtoken from $checkout" --no-deps --no-build-isolation -e "$checkout"
}

# find_python LOCKFILE: prints an interpreter of the version that the lock file is for.
find_python() {
  local lock=$1 version candidate
  version=$(sed -n 's/^# Python \(3\.[0-9]*\)$/\1/p' "$lock")
  while read -r candidate; do
    if is_python "$candidate" "$version"; then
      command -v "$candidate"
      return
    fi
  done < <(pythons "$version")
  if [ -z "$version" ]; then
    echo "error: no Python 3.11 or newer found; try: apt-get install python3 python3-venv" >&2
  else
    echo "error: $lock is for Python $version, which is neither on PATH nor among the Pythons of pyenv or uv; try:" \
      "uv python install $version, or pyenv install $version, or apt-get install python$version-venv where that exists" >&2
  fi
  return 2
}

# pythons [VERSION]: interpreters to try, one a line.
pythons() {
  local version=$1
  if [ -z "$version" ]; then
    # shellcheck disable=SC2086  # several words
    printf '%s\n' ${PYTHON:-python3.11 python3 python3.12 python3.13}
  else
    printf '%s\n' "${PYTHON:-python$version}" "python$version" \
      "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python \
      "${XDG_DATA_HOME:-$HOME/.local/share}/uv/python/cpython-$version".*/bin/python
  fi
}

# is_python COMMAND [VERSION]: whether it runs, and is of this version; 3.11 or newer where none is given.
is_python() {
  local wanted="sys.version_info >= (3, 11)"
  [ -z "$2" ] || wanted="'%d.%d' % sys.version_info[:2] == '$2'"
  "$1" -c "import sys; sys.exit(not $wanted)" >/dev/null 2>&1 </dev/null
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

# install_libraries_of_torch DIR PIN: what the build of torch that is there asks for; nothing for an empty pin.
install_libraries_of_torch() {
  [ -z "$2" ] || install "$1" "$1/torch.stamp" "$2" "the libraries of $2" "$2"
}
