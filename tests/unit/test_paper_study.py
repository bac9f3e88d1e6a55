from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from examples.paper_study import material, plan, runs, tables, text
from examples.paper_study.__main__ import choose
from nemo_xtoken.errors import ConfigError, XTokenError
from tests.documents import CHECKOUT

STUDY = plan.read_study()
TRIALS = [plan.Trial(setting, loss, 5e-3, 1) for setting, named in STUDY.settings.items() for loss in named.values()]


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: f"{trial.setting}-{trial.loss.name}")
def test_every_trial_is_a_run_with_its_teachers_and_weights(trial: plan.Trial) -> None:
    config = plan.run_config(STUDY, trial)
    assert [teacher.name for teacher in config.teachers] == list(trial.loss.teachers)
    assert [teacher.weight for teacher in config.teachers] == list(trial.loss.weights)
    assert (config.train.seed, config.data.seed, config.optimizer.lr) == (1, 1, 5e-3)


def test_all_trials_share_the_model_and_the_number_of_steps_and_those_of_a_tokenizer_the_data() -> None:
    configs = [plan.run_config(STUDY, trial) for trial in TRIALS]
    assert len({(c.student, c.train, c.parallel) for c in configs}) == 1
    assert {trial.loss.student for trial in TRIALS} == {"cl100k", "qwen"}
    assert len({(trial.loss.student, c.data) for trial, c in zip(TRIALS, configs, strict=True)}) == 2
    assert len({c.data for c in configs}) == 2


def test_a_pretrained_student_begins_with_the_weights_of_its_seed() -> None:
    loss = STUDY.settings["pretrained_split"]["gold"]
    run = plan.run_config(STUDY, plan.Trial("pretrained_split", loss, 5e-3, 3))
    before = plan.pretraining_config(STUDY, "cl100k", 3)
    assert run.student_checkpoint == before.run_dir
    assert (before.student, before.teachers, before.train) == (run.student, (), run.train)
    assert before.data.path == plan.teacher_config(STUDY.teachers["cl100k"]).data.path
    assert STUDY.rates["pretrained_split"] != STUDY.rates["split_numerals"]
    assert plan.run_config(STUDY, TRIALS[0]).student_checkpoint is None


def test_a_fingerprint_stands_for_all_that_decides_the_numbers() -> None:
    trial = TRIALS[0]
    another = STUDY.settings["ablations"]["w_top_2"]
    before = replace(trial.loss, pretrained=True)
    trials = [trial, replace(trial, rate=1e-3), replace(trial, seed=2), replace(trial, loss=another)]
    of_trials = {plan.fingerprint(STUDY, each, "text") for each in (*trials, replace(trial, loss=before))}
    assert len(of_trials | {plan.fingerprint(STUDY, trial, "another text")}) == 6
    assert plan.fingerprint(STUDY, replace(trial, setting="another"), "text") == plan.fingerprint(STUDY, trial, "text")


def test_the_same_trial_under_another_name_is_run_once() -> None:
    settings = STUDY.settings
    same = [
        plan.Trial(setting, settings[setting][name], 5e-3, 1)
        for setting, name in (("split_numerals", "p_kl_mean"), ("ablations", "dynamic"), ("several_teachers", "qwen"))
    ]
    assert len({plan.fingerprint(STUDY, trial, "text") for trial in same}) == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [("{los: {}}", "expected loss, .* got los"), ("{teachers: [gemma]}", "no such teacher: gemma"),
     ("{weights: [1, 2]}", "a weight for each of 1 teachers, got 2")],
)  # fmt: skip
def test_a_wrong_study_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    file = tmp_path / "study.yaml"
    whole = (plan.HERE / "study.yaml").read_text(encoding="utf-8")
    file.write_text(whole.replace("uld: {loss: {mode: uld}}", f"uld: {entry}"), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        plan.read_study(file)


def test_names_choose_settings_and_losses() -> None:
    assert [(s, loss.name) for s, loss in choose(STUDY, ["split_numerals"], ["gold", "ce"])] == [
        ("split_numerals", "ce"),
        ("split_numerals", "gold"),
    ]
    assert len(choose(STUDY, None, None)) == len(TRIALS)
    with pytest.raises(XTokenError, match="no such loss: glod; expected one of"):
        choose(STUDY, None, ["glod"])


def test_the_text_is_made_once_and_prompts_are_nothing_that_a_student_has_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "COUNTS", {"teacher_train": 20, "student_train": 30, "validation": 5, "heldout": 10})
    text.make_text(tmp_path)
    for part in ("problems", "sums"):
        file = text.teachers_text(tmp_path, part, tmp_path / "parts")
        assert all((" = " in json.loads(line)["text"].split("\n")[0]) == (part == "sums") for line in file.open())
    parts = {name: [json.loads(line)["text"] for line in (tmp_path / f"{name}.jsonl").open()] for name in text.COUNTS}
    assert {name: len(part) for name, part in parts.items()} == {name: 2 * n for name, n in text.COUNTS.items()}
    everything = [document for part in parts.values() for document in part]
    assert len(set(everything)) == len(everything)
    student = "\n".join(parts["student_train"])
    prompts = [json.loads(line) for line in (tmp_path / "prompts.jsonl").open()]
    assert len(prompts) > 50
    for prompt in prompts:
        left, operator, right = prompt["prompt"].removesuffix(" =").split()
        assert int(prompt["answer"]) == (int(left) + int(right) if operator == "+" else int(left) - int(right))
        assert f"{prompt['prompt']} {prompt['answer']}\n" not in student


def line(loss: str, seed: int, bits: float) -> runs.Line:
    trial = plan.Trial("split_numerals", STUDY.settings["split_numerals"][loss], 5e-3, seed)
    measures = dict.fromkeys(runs.MEASURES, 0.5) | {"bits_per_byte": bits}
    return {"setting": trial.setting, "loss": loss, "seed": seed, "rate": 5e-3, **measures} | {
        "fingerprint": runs.name_of(STUDY, trial)
    }


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of two losses with two seeds each, the rate of both searched."""
    monkeypatch.setattr(runs, "text_hash", lambda: "text")
    monkeypatch.setattr(runs, "SEARCH", tmp_path / "search.jsonl")
    monkeypatch.setattr(tables, "COUNTED", tmp_path / "runs.jsonl")
    seed = STUDY.search_seed
    for loss in ("ce", "gold"):
        for rate in STUDY.rates["split_numerals"]:
            trial = plan.Trial("split_numerals", STUDY.settings["split_numerals"][loss], rate, seed)
            found = {"bits_per_byte": abs(rate - 5e-3), "fingerprint": runs.name_of(STUDY, trial)}
            runs._append(tmp_path / "search.jsonl", found)  # pyright: ignore[reportPrivateUsage]
    for counted in (line("ce", 1, 1.0), line("ce", 2, 1.2), line("gold", 1, 0.9), line("gold", 2, 1.2)):
        runs._append(tmp_path / "runs.jsonl", counted)  # pyright: ignore[reportPrivateUsage]
    return tmp_path / "runs.jsonl"


@pytest.mark.usefixtures("results")
def test_the_table_has_means_with_intervals_and_differences_of_the_same_seed() -> None:
    head, _, gold, alone = tables.markdown(STUDY, "split_numerals").splitlines()
    assert head.startswith("| loss besides cross-entropy | bits per byte | against none, seed by seed | probability of")
    assert gold.startswith("| GOLD | 1.050 ± 1.906 | −0.050 ± 0.635 | 50.0 ± 0.0 % |")
    assert alone.startswith("| none: cross-entropy alone | 1.100 ± 1.271 |  | 50.0 ± 0.0 % |")


def test_a_table_tells_numbers_of_seeds_that_differ(results: Path) -> None:
    runs._append(results, line("gold", 3, 1.0))  # pyright: ignore[reportPrivateUsage]
    head, _, gold, alone = tables.markdown(STUDY, "split_numerals").splitlines()
    assert head.startswith("| loss besides cross-entropy | seeds | bits per byte |")
    assert gold.startswith("| GOLD | 3 | 1.033 ± ")
    assert alone.startswith("| none: cross-entropy alone | 2 | ")


@pytest.mark.usefixtures("results")
def test_two_losses_are_compared_by_the_seeds_that_both_have() -> None:
    found = tables.comparison(STUDY, "split_numerals/gold", "split_numerals/ce")
    assert found["bits_per_byte"] == "−0.050 ± 0.635"
    assert found["exact_answers"] == "0.0 ± 0.0 %"
    for name in ("split_numerals/uld", "gold", "nowhere/gold"):
        with pytest.raises(ConfigError, match=f"of which there are results.*, got {name}"):
            tables.comparison(STUDY, name, "split_numerals/ce")


def test_losses_without_a_common_seed_are_not_compared(results: Path) -> None:
    counted = [each for each in runs.read_lines(results) if (each["loss"], each["seed"]) in (("ce", 1), ("gold", 2))]
    results.write_text("".join(f"{json.dumps(each)}\n" for each in counted))
    with pytest.raises(ConfigError, match="have no seed in common"):
        tables.comparison(STUDY, "split_numerals/gold", "split_numerals/ce")


# What the README says of the results


@pytest.fixture(scope="module")
def all_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[runs.Line]]]:
    """The results that are committed, by setting and loss. They are found by the hash of the text, which is made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("study"))
        text.make_text(material.TEXT)
        found = material.text_hash()
        patch.setattr(runs, "text_hash", lambda: found)
        return {setting: tables.results(STUDY, setting) for setting in STUDY.settings}


@pytest.fixture
def committed(all_results: dict[str, dict[str, list[runs.Line]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and comparisons are of these results."""
    monkeypatch.setattr(tables, "results", lambda _, setting: all_results[setting])


README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
CHOOSING = (CHECKOUT / "docs" / "choosing.md").read_text(encoding="utf-8")


@pytest.fixture
def said(committed: None) -> str:
    """What the documents say outside of the tables."""
    outside = README
    for setting in STUDY.settings:
        outside = outside.replace(tables.markdown(STUDY, setting), "")
    return " ".join((outside + CHOOSING).split())


@pytest.mark.usefixtures("committed")
@pytest.mark.parametrize("setting", STUDY.settings)
def test_the_readme_has_the_table_of_the_results(setting: str) -> None:
    assert tables.markdown(STUDY, setting) in README


BITS, ANY, RIGHT, NATS, DIGIT = (
    "bits_per_byte", "mass_multi_digit", "probability_multi_digit", "loss_multi_digit", "loss/one_digit_numeral",
)  # fmt: skip
QUOTED = {
    ("split_numerals/p_kl_chain", "split_numerals/p_kl_first"): (BITS, NATS, ANY),
    ("split_numerals/p_kl_chain", "split_numerals/h_kl"): (BITS,),
    ("split_numerals/p_kl_chain", "split_numerals/ce"): (RIGHT,),
    ("split_numerals/p_kl_first", "split_numerals/p_kl_mean"): (BITS, ANY, RIGHT),
    ("split_numerals/p_kl_last", "split_numerals/p_kl_mean"): (ANY,),
    ("split_numerals/p_kl_first_piece", "split_numerals/p_kl_first"): (BITS,),
    ("split_numerals/p_kl_learnt_w", "split_numerals/p_kl_mean"): (BITS, RIGHT),
    ("split_numerals/uld_fixed", "split_numerals/uld"): (BITS,),
    ("shared_numerals/p_kl_chain", "shared_numerals/p_kl_first"): (BITS,),
    ("shared_numerals/p_kl_chain", "shared_numerals/h_kl"): (BITS,),
    ("shared_numerals/p_kl_chain", "shared_numerals/gold"): (BITS,),
    ("shared_numerals/p_kl_first_piece", "shared_numerals/p_kl_first"): (BITS,),
    ("shared_numerals/h_kl", "shared_numerals/p_kl_mean"): (BITS,),
    ("shared_numerals/h_kl", "shared_numerals/p_kl_first"): (BITS,),
    ("joined_numerals/p_kl_chain", "joined_numerals/p_kl_first"): (DIGIT,),
    ("joined_numerals/p_kl_chain", "joined_numerals/h_kl"): (BITS, DIGIT),
    ("joined_numerals/p_kl_chain", "joined_numerals/gold"): (BITS,),
    ("pretrained_split/gold", "pretrained_split/ce"): (ANY,),
    ("pretrained_split/p_kl_mean", "pretrained_split/ce"): (ANY,),
    ("pretrained_split/p_kl_chain", "pretrained_split/p_kl_mean"): (BITS, NATS, ANY),
    ("pretrained_split/uld", "pretrained_split/ce"): (BITS,),
    ("pretrained_shared/h_kl", "pretrained_shared/p_kl_mean"): (BITS,),
    ("pretrained_split/p_kl_chain", "pretrained_split/p_kl_first"): (BITS,),
    ("pretrained_split/p_kl_chain", "pretrained_split/h_kl"): (BITS,),
    ("pretrained_shared/p_kl_chain", "pretrained_shared/h_kl"): (BITS,),
    ("pretrained_shared/p_kl_chain", "pretrained_shared/p_kl_mean"): (BITS,),
    ("shared_numerals/p_kl_learnt_w", "shared_numerals/p_kl_mean"): (BITS,),
    ("shared_numerals/p_kl_mean_top_k", "shared_numerals/p_kl_mean"): (NATS,),
    ("ablations/fixed_half", "ablations/dynamic"): (NATS,),
    ("ablations/fixed_one", "ablations/dynamic"): (NATS,),
    ("ablations/fixed_two", "ablations/dynamic"): (NATS,),
    ("ablations/w_top_2", "ablations/dynamic"): (BITS,),
    ("ablations/temperature_two", "ablations/dynamic"): (BITS,),
    ("ablations/reverse", "ablations/dynamic"): (BITS,),
    ("several_teachers/cl100k_and_o200k", "several_teachers/same_tokenizer"): (BITS,),
    ("several_teachers/mostly_o200k", "several_teachers/o200k"): (BITS,),
    ("several_teachers/qwen_and_o200k", "several_teachers/o200k"): (BITS,),
    ("several_teachers/qwen_and_o200k", "several_teachers/qwen"): (BITS,),
    ("several_teachers/problems_and_sums", "several_teachers/sums_alone"): (BITS,),
    ("several_teachers/problems_and_sums", "several_teachers/problems_alone"): (BITS,),
    ("several_teachers/problems_and_sums", "several_teachers/ce"): (BITS,),
    ("several_teachers/o200k", "several_teachers/same_tokenizer"): (BITS,),
    ("several_teachers/qwen", "several_teachers/same_tokenizer"): (BITS,),
    ("several_teachers/same_tokenizer", "several_teachers/ce"): (BITS,),
    ("split_numerals/p_kl_chain", "several_teachers/same_tokenizer"): (BITS,),
    ("shared_numerals/p_kl_chain", "several_teachers/same_tokenizer"): (BITS,),
}
"""Differences that the running text tells, without their signs, which words may stand for."""


@pytest.mark.parametrize(("pair", "measures"), QUOTED.items(), ids=[" ".join(pair) for pair in QUOTED])
def test_the_documents_quote_the_differences_that_there_are(
    said: str, pair: tuple[str, str], measures: tuple[str, ...]
) -> None:
    found = tables.comparison(STUDY, *pair)
    numbers = {measure: found[measure].lstrip("+−").removesuffix(" %") for measure in measures}
    assert [measure for measure, number in numbers.items() if number not in said] == [], numbers


@pytest.mark.usefixtures("results")
def test_a_plot_is_drawn_of_what_there_is(tmp_path: Path) -> None:
    path = tables.plot(STUDY, "split_numerals", tmp_path)
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")
    assert tables.plot(STUDY, "ablations", tmp_path) is None


def test_an_interval_is_students_t() -> None:
    interval = tables.Interval.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval.mean == 3.0
    assert interval.half == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5))
    assert tables.Interval.of([1.0]).write(2) == "1.00"


def test_only_what_has_no_result_is_run(results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained: list[str] = []

    def train(config: object, log: Path) -> None:
        folder = log.parent / log.name.removesuffix(".log")
        folder.mkdir(parents=True)
        trained.append(str(folder.relative_to(tmp_path)))

    monkeypatch.setattr(plan, "WORK", tmp_path)
    monkeypatch.setattr(runs, "train", train)
    trials = [plan.Trial("split_numerals", STUDY.settings["split_numerals"]["gold"], 5e-3, seed) for seed in (1, 2, 3)]
    names = [runs.name_of(STUDY, trial) for trial in trials]
    known = [entry | {"fingerprint": name} for entry, name in zip(runs.read_lines(results), names[:2], strict=False)]
    file = tmp_path / "some.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in known))
    runs.run_all(STUDY, trials, file, 1, lambda trial: {"bits_per_byte": 0.8})
    assert trained == ["runs/split_numerals/gold/rate-0.005-seed-3"]
    assert [entry["fingerprint"] for entry in runs.read_lines(file)] == names


def test_a_training_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(plan.run_config(STUDY, TRIALS[0]), run_dir=str(tmp_path / "run"))
    with pytest.raises(material.subprocess.CalledProcessError):
        material.train(config, tmp_path / "run.log")
    assert "student_train" in (tmp_path / "run.log").read_text()
