"""How `tests/run.sh` runs suites, with a stand-in for Python: no environment is made, no test is run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from tests.forked import Forked

FAKE_PYTHON = """#!/bin/bash
case "$*" in
  *sys.version_info*3.99*) exit 1 ;;
  *sys.version_info* | *ensurepip*) exit ;;
  --version) echo "Python 3.11.2"; exit ;;
  "-m venv"*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; exit ;;
  "-m pytest"*) ;;
  *) exit ;;
esac
echo "$(basename "$(dirname "$(dirname "$0")")") ${*:5}" >>"$CALLS"
mkdir -p "$(dirname "$4")"
failed=0
[[ $4 != *$FAILING* ]] || failed=1
printf '<testsuites><testsuite name="p" errors="0" failures="%d" skipped="2" tests="7">' "$failed" >"$4"
exit $failed
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of nothing but the scripts, with the suites `cloud` and, for a Python that is not there, `future`."""
    for folder in ("tests/locks", "examples", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    for script in ("tests/run.sh", "examples/environment.sh"):
        (tmp_path / script).write_bytes((CHECKOUT / script).read_bytes())
    (tmp_path / "pyproject.toml").touch()
    for name, text in {"base": "a==1", "tools": "b==1", "cloud": "a==2", "future": "# Python 3.99\na==3"}.items():
        (tmp_path / "tests" / "locks" / f"{name}.txt").write_text(f"{text}\n")
    for tool in ("ruff", "pyright", "lint-imports"):
        (tmp_path / "bin" / tool).write_text('#!/bin/sh\nexec test "$STYLE" = good\n')
        (tmp_path / "bin" / tool).chmod(0o755)
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def run(
    checkout: Path, *arguments: str, failing: str = "none", style: str = "good"
) -> subprocess.CompletedProcess[str]:
    variables = {
        **os.environ,
        "PYTHON": str(checkout / "python"),
        "PATH": f"{checkout / 'bin'}:/usr/bin:/bin",
        "CALLS": str(checkout / "calls"),
        "FAILING": f"/{failing}.xml",
        "STYLE": style,
        "PYENV_ROOT": str(checkout),
    }
    command = ["bash", str(checkout / "tests" / "run.sh"), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def calls(checkout: Path) -> list[str]:
    log = checkout / "calls"
    return log.read_text().splitlines() if log.exists() else []


def results(finished: subprocess.CompletedProcess[str]) -> list[str]:
    return finished.stdout.partition("== results\n")[2].splitlines()


def test_the_base_suite_leaves_slow_tests_out(checkout: Path) -> None:
    finished = run(checkout, "-x")
    assert finished.returncode == 0, finished.stderr
    assert calls(checkout) == [".venv tests -m not slow -x"]
    assert results(finished) == ["base: 5 passed, 0 failed, 2 skipped"]


def test_all_runs_every_suite_and_tells_of_each_at_the_end(checkout: Path) -> None:
    finished = run(checkout, "--all", failing="base")
    assert finished.returncode == 1
    assert calls(checkout) == [".venv tests", ".venv-cloud tests/cloud"]
    assert results(finished) == [
        "base: 4 passed, 1 failed, 2 skipped",
        "cloud: 5 passed, 0 failed, 2 skipped",
        "future: did not run to its end, see above",
    ]
    assert "tests/locks/future.txt is for Python 3.99" in finished.stderr


def test_a_suite_that_could_not_run_is_a_failure(checkout: Path) -> None:
    assert run(checkout, "--all").returncode == 1
    (checkout / "tests" / "locks" / "future.txt").unlink()
    assert run(checkout, "--all").returncode == 0


def test_one_suite_alone(checkout: Path) -> None:
    finished = run(checkout, "--suite", "cloud", "-k", "rain", style="bad")
    assert finished.returncode == 0
    assert calls(checkout) == [".venv-cloud tests/cloud -k rain"]
    assert run(checkout, "--suite", "cloud", failing="cloud").returncode == 1


@pytest.mark.parametrize("name", ["clouds", "tools", ""])
def test_an_unknown_suite_is_told_with_those_that_there_are(checkout: Path, name: str) -> None:
    finished = run(checkout, "--suite", name)
    assert finished.returncode == 2
    assert finished.stderr == f"error: expected one of the suites base cloud future, got '{name}'\n"


def test_bad_style_stops_before_any_test(checkout: Path) -> None:
    assert run(checkout, "--all", style="bad").returncode == 1
    assert calls(checkout) == []


def collected(checkout: Path, path: str) -> int:
    """How many tests pytest finds there with the real conftest.py."""
    arguments = ["--collect-only", "-q", "-p", "tests.conftest", f"--rootdir={checkout}", path]
    process = Forked(lambda: int(pytest.main(arguments)), log=checkout / "collected", folder=checkout)
    assert process.wait() == 0, process.texts()
    out = (checkout / "collected.out").read_text()
    (checkout / "collected.out").unlink()
    return sum("::" in line for line in out.splitlines())


def test_suites_of_their_own_are_collected_only_by_name(checkout: Path) -> None:
    for name in ("cloud", "unit"):
        folder = checkout / "tests" / name
        folder.mkdir()
        (folder / f"test_{name}.py").write_text("def test_one(): pass\n")
    assert collected(checkout, "tests") == 1
    assert collected(checkout, "tests/cloud") == 1
    assert collected(checkout, "tests/cloud/test_cloud.py::test_one") == 1
    (checkout / "tests" / "locks" / "cloud.txt").unlink()
    assert collected(checkout, "tests") == 2
