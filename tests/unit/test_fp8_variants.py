"""Every run config of the repository in FP8: it loads, is planned with and launched, and doctor says what it needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_xtoken.cli.app import run as run_cli
from nemo_xtoken.config_io import load_run, save_run
from nemo_xtoken.doctor.machine import Gpu
from nemo_xtoken.integrations.megatron.fp8_backend import CAPABILITIES
from nemo_xtoken.launch.render import render
from tests.conftest import CHECKOUT
from tests.unit.test_frame_doctor import BARE, by_name, with_packages
from tests.unit.test_launch import GOLDEN, plan_of

PRECISIONS = sorted((CHECKOUT / "launcher_configs" / "precision").glob("*.yaml"))
RUNS = sorted((CHECKOUT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda path: path.stem)
@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_run_has_every_precision(path: Path, precision: Path, tmp_path: Path) -> None:
    run = load_run(path, (), [precision])
    recipe = precision.stem.removeprefix("fp8_") if precision.stem.startswith("fp8_") else None
    assert (None if run.fp8 is None else run.fp8.recipe) == recipe
    assert run.train.bf16 == (precision.stem != "fp32")
    save_run(run, tmp_path / "run.yaml")
    assert load_run(tmp_path / "run.yaml") == run


@pytest.mark.parametrize("path", [path for path in RUNS if path.stem.startswith("plan_")], ids=lambda path: path.stem)
@pytest.mark.parametrize("recipe", CAPABILITIES)
def test_a_run_in_fp8_is_planned_with(path: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["plan", str(path), f"fp8={{recipe: {recipe}}}", "--gpus", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"]
    assert run_cli(["plan", str(path), "fp8={recipe: fp7}", "--gpus", "64"]) == 2


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda path: path.stem)
def test_a_run_in_fp8_has_the_script_of_any_run(precision: Path, tmp_path: Path) -> None:
    """Its precision is in the config that the job reads, and nowhere else."""
    plan = plan_of("pyxis", "train")
    save_run(plan.run, tmp_path / "run.yaml")
    in_fp8 = replace(plan, run=load_run(tmp_path / "run.yaml", (), [precision]))
    assert render(in_fp8) == (GOLDEN / "pyxis-train.sbatch").read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", CAPABILITIES)
def test_doctor_says_what_each_recipe_needs(recipe: str) -> None:
    name = {"delayed": "delayed scaling", "current": "current scaling", "mxfp8": "MXFP8"}.get(recipe, recipe)
    needed = CAPABILITIES[recipe]  # type: ignore[index]

    def detail(capability: tuple[int, int], *packages: str) -> str:
        found = replace(with_packages(BARE, *packages), gpus=(Gpu("GPU", capability, 80 << 30),))
        return by_name(found)[f"FP8, {name}"].detail

    lower = (needed[0] - 1, 9) if needed[1] == 0 else (needed[0], needed[1] - 1)
    assert detail(needed, "transformer-engine") == "can run here"
    assert f"compute capability {needed[0]}.{needed[1]} or higher" in detail(lower, "transformer-engine")
    assert detail(needed).startswith("missing: transformer-engine")
