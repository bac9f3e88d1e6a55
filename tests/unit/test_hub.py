"""Names on the Hugging Face hub, with a server on this machine that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nemo_xtoken.data import Manifest, hub
from nemo_xtoken.errors import ConfigError
from tests.fake_tokenizers import random_texts
from tests.small_tokenizers import wordpiece

SHA = "0123456789abcdef0123456789abcdef01234567"
LINES = {f"data/{split}.jsonl": "".join(json.dumps({"text": f"{split} {text}"}) + "\n" for text in random_texts(9))
         for split in ("train-1", "train-0", "test")}  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """One model and one dataset, `owner/name` both."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        kind, _, rest = self.path.lstrip("/").partition("owner/name")
        if kind in ("api/models/", "api/datasets/") and rest in ("", f"/revision/{SHA}"):
            names = [{"rfilename": name} for name in self.files if (name.endswith(".jsonl")) == (kind != "api/models/")]
            self._answer(json.dumps({"id": "owner/name", "sha": SHA, "siblings": names}).encode())
        elif rest.startswith("/resolve/") and rest.split("/", 3)[3] in self.files:
            self._answer(self.files[rest.split("/", 3)[3]])
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", SHA)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """That of a process for which the server is the hub; its address is read when the hub's client is imported."""
    Hub.files = {name: lines.encode() for name, lines in LINES.items()}
    Hub.files["tokenizer.json"] = wordpiece(tmp_path).read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    yield {**{key: value for key, value in os.environ.items() if not key.startswith("HF_")}, **own}
    server.shutdown()
    server.server_close()


COMMANDS = """
import contextlib, io, json, sys
from nemo_xtoken.cli import app
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = app.run(arguments)
    print(json.dumps([code, errors.getvalue()]))
"""


def prepared(environment: dict[str, str], *runs: tuple[str, str, Path]) -> list[tuple[int, str]]:
    """Exit code and stderr of `data prepare` for each source, student and output, in one process."""
    arguments = [
        ["data", "prepare", source, "--student", student, "--out", str(out), "--workers", "1"]
        for source, student, out in runs
    ]
    command = [sys.executable, "-c", COMMANDS, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return [(code, errors) for code, errors in lines]


def test_a_dataset_and_a_tokenizer_on_the_hub_and_what_it_does_not_have(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    (code, errors), *failed = prepared(
        environment,
        ("hf:owner/name/data/train", "owner/name", tmp_path / "out"),
        ("hf:owner/name/other", "bytes", tmp_path / "other"),
        ("hf:owner/nothing", "bytes", tmp_path / "nothing"),
    )
    assert code == 0, errors
    manifest = Manifest.load(tmp_path / "out")
    assert [Path(source.path).name for source in manifest.sources] == ["train-0.jsonl", "train-1.jsonl"]
    assert all(SHA in source.path for source in manifest.sources)
    assert manifest.documents == 18
    reasons = (
        "expected files with .txt, .txt.gz, .jsonl, .jsonl.gz, .parquet, the dataset has none",
        "hf:owner/nothing could not be had from the Hugging Face hub",
    )
    for (code, errors), reason in zip(failed, reasons, strict=True):
        assert code == 1
        assert reason in " ".join(errors.split())
        assert "Traceback" not in errors


def test_what_is_no_name_of_a_dataset_is_said_so() -> None:
    with pytest.raises(ConfigError, match=r"expected hf:OWNER/NAME, .* got 'hf:name'"):
        hub.fetch("hf:name", [".txt"])
