from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
FAKE_PYTHON = """#!/bin/bash
case "$*" in
  *sys.version_info*) exit "${OLD:-0}" ;;
  *ensurepip*) exit "${NO_VENV:-0}" ;;
  --version) echo "Python 3.11.2"; exit ;;
esac
echo "$*" >>"$CALLS"
if [ "$2" = venv ]; then
  mkdir -p "$4/bin"
  rm -f "$4"/*.stamp
  cp "$0" "$4/bin/python"
else
  [ -z "${NO_REGISTRY:-}" ] || { echo "no route to host" >&2; exit 1; }
fi
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A stand-in for the interpreter, which writes down what it is asked to do."""
    path = tmp_path / "python"
    path.write_text(FAKE_PYTHON)
    path.chmod(0o755)
    (tmp_path / "lock.txt").write_text("# pins\na==1\nb==2\n")
    return path


def make(python: Path, *locks: str, **environment: str) -> subprocess.CompletedProcess[str]:
    folder = python.parent
    call = " ".join(["make_environment venv", *(locks or ["lock.txt"])])
    script = f'set -euo pipefail; . "{CHECKOUT}/examples/environment.sh"; {call}'
    variables = {**os.environ, "PYTHON": str(python), "CALLS": str(folder / "calls"), **environment}
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )


def calls(python: Path) -> list[str]:
    log = python.parent / "calls"
    found = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return found


def test_an_environment_is_made_once_and_then_reused(python: Path) -> None:
    first = make(python)
    assert first.returncode == 0, first.stderr
    venv, lock, project = calls(python)
    assert venv.startswith("-m venv --clear")
    assert lock.endswith("lock.txt")
    assert project.endswith(f"-e {CHECKOUT}")
    assert "installing 2 packages" in first.stdout
    again = make(python)
    assert (again.returncode, again.stdout, calls(python)) == (0, "", [])


def test_a_changed_lock_file_makes_a_new_environment(python: Path) -> None:
    make(python)
    calls(python)
    (python.parent / "lock.txt").write_text("a==2\n")
    make(python)
    assert [call.split()[1] for call in calls(python)] == ["venv", "pip", "pip"]


def test_a_second_lock_file_is_added_to_the_environment(python: Path) -> None:
    make(python)
    calls(python)
    (python.parent / "more.txt").write_text("c==3\n")
    assert make(python, "lock.txt", "more.txt").returncode == 0
    (added,) = calls(python)
    assert added.endswith("more.txt")
    make(python, "lock.txt")
    assert calls(python) == []


def test_an_installation_that_failed_is_taken_up_again(python: Path) -> None:
    failed = make(python, NO_REGISTRY="1")
    assert failed.returncode == 2
    assert "no route to host" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("error: could not install 2 packages of")
    calls(python)
    assert make(python).returncode == 0
    assert [call.split()[1] for call in calls(python)] == ["pip", "pip"]


@pytest.mark.parametrize(
    ("variable", "told"),
    [("OLD", "apt-get install python3 python3-venv"), ("NO_VENV", "apt-get install python3-venv")],
)
def test_what_the_machine_lacks_is_told_in_one_line(python: Path, variable: str, told: str) -> None:
    result = make(python, **{variable: "1"})
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert told in result.stderr
    assert calls(python) == []


def test_the_lock_files_pin_every_package_exactly() -> None:
    pins: list[str] = []
    for path in sorted((CHECKOUT / "tests" / "locks").glob("*.txt")):
        pins += [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert [pin for pin in pins if pin.count("==") != 1 or "+" in pin or "@" in pin] == []
    names = [pin.partition("==")[0].lower() for pin in pins]
    assert len(names) == len(set(names))
