from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    variables = {"PYTHON": str(python), "CALLS": str(python.parent / "calls"), **environment}
    return call(f"make_environment venv {' '.join(locks or ['lock.txt'])}", python.parent, **variables)


def call(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A shell script after environment.sh."""
    script = f'set -euo pipefail; . "{CHECKOUT}/examples/environment.sh"; {script}'
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
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


def test_packages_come_without_what_they_ask_for_but_torch(python: Path) -> None:
    (python.parent / "lock.txt").write_text("a==1\ntorch==2.13.0\n")
    assert make(python).returncode == 0
    _, lock, torch, _ = calls(python)
    assert lock.endswith("--no-deps -r lock.txt")
    assert torch.endswith("--disable-pip-version-check torch==2.13.0")


def old_pythons(folder: Path) -> dict[str, str]:
    """Variables of a machine on which `python3.12` and PYTHON are other versions."""
    (folder / "bin").mkdir()
    for name in ("python3.12", "python3"):
        (folder / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / "bin" / name).chmod(0o755)
    pyenv, uv = str(folder / "pyenv"), str(folder / "share")
    return {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "PYTHON": "python3", "PYENV_ROOT": pyenv, "XDG_DATA_HOME": uv}


@pytest.mark.parametrize("home", ["pyenv/versions/3.12.1/bin", "share/uv/python/cpython-3.12.9-linux/bin"])
def test_a_lock_file_can_ask_for_a_python_version(tmp_path: Path, home: str) -> None:
    machine = old_pythons(tmp_path)
    (tmp_path / "lock.txt").write_text("# Python 3.12\na==1\n")
    told = call("find_python lock.txt", tmp_path, **machine)
    assert (told.returncode, told.stdout, len(told.stderr.splitlines())) == (2, "", 1)
    assert told.stderr.startswith("error: lock.txt is for Python 3.12, which is neither on PATH nor")
    (tmp_path / home).mkdir(parents=True)
    (tmp_path / home / "python").write_text("#!/bin/sh\n")
    (tmp_path / home / "python").chmod(0o755)
    assert call("find_python lock.txt", tmp_path, **machine).stdout == f"{tmp_path / home}/python\n"


def test_the_version_asked_for_is_the_one_that_is_looked_for() -> None:
    major, minor = sys.version_info[:2]
    wrong = f"{major}.{minor + 1}"
    script = f'is_python "{sys.executable}" {major}.{minor} && ! is_python "{sys.executable}" {wrong}'
    assert call(script, CHECKOUT).returncode == 0


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


def pins_of(*locks: Path) -> list[str]:
    return [line for lock in locks for line in lock.read_text().splitlines() if not line.startswith("#")]


LOCKS = CHECKOUT / "tests" / "locks"
BASE = (LOCKS / "base.txt", LOCKS / "tools.txt")


@pytest.mark.parametrize(
    "locks",
    [BASE, *((lock,) for lock in sorted(LOCKS.glob("*.txt")) if lock not in BASE)],
    ids=lambda locks: locks[0].stem,
)
def test_a_lock_file_pins_every_package_exactly_and_once(locks: tuple[Path, ...]) -> None:
    pins = pins_of(*locks)
    assert [pin for pin in pins if pin.count("==") != 1 or "+" in pin or "@" in pin] == []
    names = [canonicalize_name(pin.partition("==")[0]) for pin in pins]
    assert len(names) == len(set(names))


def test_the_base_lock_files_hold_everything_that_their_packages_ask_for() -> None:
    pinned = {canonicalize_name(pin.partition("==")[0]) for pin in pins_of(*BASE)}
    asked = {
        (name, canonicalize_name(requirement.name))
        for name in pinned - {"torch"}  # what torch asks for depends on its build
        for requirement in map(Requirement, importlib.metadata.requires(name) or ())
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }
    assert {(name, needed) for name, needed in asked if needed not in pinned} == set()
