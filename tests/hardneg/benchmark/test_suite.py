from __future__ import annotations

from collections import defaultdict

import pytest
import yaml

from hardneg.benchmark.cell import find_overlay
from hardneg.benchmark.suite import read_suite

OPTION = {"model": {"init_args": {"learning_rate": 0.1}}}


def keys(suite) -> dict[str, str]:
    first = {(d, m, c.name): 0 for d in suite.data for m in suite.models for c in suite.chains}
    return {cell.label: cell.key for cell in suite.runs(first)}


def test_cells_are_data_times_models_times_chains_times_seeds(make_suite):
    suite = make_suite(seeds=[3, 7])
    assert list(keys(suite)) == [
        f"zoo / words / {chain} / seed {seed}" for seed in (3, 7) for chain in ("in-batch", "ngame")
    ]
    assert [cell.label for cell in suite.start_cells()] == ["zoo / words / start / seed 3"]


def test_a_chain_may_have_fewer_seeds(make_suite):
    chains = {"in-batch": ["miners/in_batch.yaml"], "other": {"configs": ["miners/ngame.yaml"], "seeds": 1}}
    assert [label.split(" / ", 2)[2] for label in keys(make_suite(seeds=2, chains=chains))] == [
        "in-batch / seed 0",
        "other / seed 0",
        "in-batch / seed 1",
    ]


def test_keys_change_with_what_is_run_and_with_nothing_else(make_suite, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("trainer: {accelerator: cpu, gradient_clip_val: 1.0}\n")
    suite = make_suite(base=[str(overlay)])
    before = keys(suite)
    overlay.write_text("# a comment\ntrainer:\n  gradient_clip_val: 1.0\n  accelerator: cpu\n")
    assert keys(make_suite(base=[str(overlay)])) == before
    assert keys(make_suite(base=[str(overlay)], name="another", margin=0.1, logging=["wandb"])) == before
    overlay.write_text("trainer: {accelerator: cpu, gradient_clip_val: 2.0}\n")
    assert not set(keys(make_suite(base=[str(overlay)])).values()) & set(before.values())
    for change in ({"budget": {"steps": 5}}, {"points": 1}, {"threads": 2}, {"test": True}):
        assert not set(keys(make_suite(base=[], **change)).values()) & set(keys(make_suite(base=[])).values())


def test_a_new_chain_leaves_the_others_alone(make_suite):
    one = keys(make_suite(chains={"in-batch": ["miners/in_batch.yaml"]}))
    both = keys(make_suite())
    assert one.items() <= both.items()


def test_the_start_is_run_again_for_another_model_alone(make_suite):
    (before,) = make_suite().start_cells()
    (after,) = make_suite(budget={"steps": 99}, points=3, seeds=4).start_cells()
    assert after.key == before.key


def test_a_common_list_of_options_is_every_chain_s(make_suite):
    trials = make_suite(tune=[OPTION, {}], test=True).trials()
    assert [(trial.chain, trial.option, trial.seed, trial.test) for trial in trials] == [
        (chain, option, 1000, False) for chain in ("in-batch", "ngame") for option in (0, 1)
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chian": {}}, "suite has no key 'chian'; it has name, base"),
        ({"budget": None}, "'budget' is missing"),
        ({"budget": {"steps": 0}}, "wants {steps: n} or {seconds: n}, one of them, a whole number above 0"),
        ({"budget": {"steps": 1.5}}, "a whole number above 0"),
        ({"budget": {"steps": 5, "seconds": 3}}, "one of them"),
        ({"budget": {"hours": 5}}, "one of them"),
        ({"budget": {"seconds": -1}}, "above 0"),
        ({"seeds": 0}, "seeds=0: wants how many"),
        ({"baseline": "nobody"}, "baseline 'nobody' is none of the chains: in-batch, ngame"),
        ({"references": {"words": []}}, "'words' is a model and a reference"),
        ({"margin": 0}, "margin=0 is out of range"),
        ({"level": 1}, "level=1 is out of range"),
        ({"points": 0}, "points=0 is out of range"),
        ({"logging": ["csv"]}, r"wants \[wandb\]"),
        ({"tune": [OPTION], "seeds": [0, 1000]}, "tune_seed=1000 is one of the seeds"),
        ({"chains": {"a": {"configs": [], "tune": [OPTION]}, "b": []}}, "unequal chances: a 1, b 0"),
        ({"chains": {"a": {"config": []}}}, "an overlay has no key 'config'"),
        ({"chains": {"start": []}}, "'start' is the untrained model"),
        ({"chains": {"a": {"prepare": [{"fit": [], "share": 1}]}}}, "share=1 is out of range"),
        ({"chains": {"a": {"prepare": [{"fit": []}, {"fit": []}]}}}, "takes the whole budget"),
        ({"chains": {"a": {"prepare": [{"share": 0.5}]}}}, "one of fit and predict"),
        ({"chains": {"a": {"peer": "name"}}}, "wants class_path and init_args"),
    ],
)
def test_mistakes_are_named(suite_file, changes, words):
    with pytest.raises(ValueError, match=words):
        read_suite(suite_file(**changes), find_overlay)


def test_a_missing_overlay_is_named_with_its_place(suite_file):
    with pytest.raises(FileNotFoundError, match=r"chains.x: config 'miners/gits.yaml': no such file here"):
        read_suite(suite_file(chains={"x": ["miners/gits.yaml"]}), find_overlay)


@pytest.mark.parametrize("name", sorted(path.stem for path in find_overlay("suites/smoke.yaml").parent.glob("*.yaml")))
def test_shipped_suites_can_be_read(name):
    suite = read_suite(find_overlay(f"suites/{name}.yaml"), find_overlay)
    assert suite.baseline in {chain.name for chain in suite.chains}
    assert yaml.safe_load(suite.base[0].text)
    cells = [*suite.start_cells(), *suite.trials(), *suite.runs(defaultdict(int))]
    assert len({cell.key for cell in cells}) == len(cells)
