"""Benchmarks and runs: parsing, fingerprints, and errors that name the key, the value and what would be right."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from noisebench import config, registry
from noisebench.config import Benchmark, Recipe, build, check_names, load_benchmark, override, parse_yaml
from noisebench.errors import UserError
from noisebench.reading import to_yaml

SMALL: dict[str, Any] = {
    "name": "small",
    "datasets": ["digits"],
    "noise": [{"kind": "symmetric", "rate": 0.4}],
    "methods": ["ce", {"name": "gce", "hparams": {"q": 0.5}}],
    "seeds": [0, 1],
}


def small(**changes: Any) -> Benchmark:
    made: Benchmark = build(Benchmark, SMALL | changes, "small.yaml")
    return made


def error_of(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        check_names(small(**changes), "small.yaml")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", list(registry.benchmarks()))
def test_shipped_benchmarks_are_sound(name: str) -> None:
    board = load_benchmark(name)
    assert board.name == name
    assert board.title


def test_a_board_is_methods_by_datasets_by_noise_by_seeds() -> None:
    cells = small().cells()
    assert len(cells) == 4
    assert {(c.method.label, c.seed) for c in cells} == {(m, s) for m in ("ce", "gce (q=0.5)") for s in (0, 1)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": ["mixupp"]}, "small.yaml: methods[0]: method 'mixupp' is unknown; did you mean mixup?"),
        ({"datasets": ["digit"]}, "small.yaml: datasets[0]: dataset 'digit' is unknown; did you mean digits"),
        ({"sedes": [1]}, "key 'sedes' is unknown; did you mean seeds"),
        ({"recipe": {"batch-size": 3}}, "key 'recipe.batch-size' is unknown; did you mean recipe.batch_size"),
        ({"recipe": {"epochs": True}}, "recipe.epochs: True: should be a valid integer"),
        ({"recipe": {"schedule": {"milestones": [3]}}}, "milestones belong to kind multistep"),
        ({"recipe": {"nesterov": True, "momentum": 0}}, "nesterov needs optimizer sgd with a momentum above 0"),
        ({"recipe": {"epoch": 3}}, "key 'recipe.epoch' is unknown; did you mean recipe.epochs"),
        ({"recipe": {"lr": -1}}, "recipe.lr: -1: should be greater than 0"),
        ({"recipe": {"validation": 1.0}}, "recipe.validation: 1.0: should be less than 1"),
        ({"recipe": {"optimizer": "sdg"}}, "recipe.optimizer: 'sdg': should be 'sgd', 'adam' or 'adamw'"),
        ({"recipe": {"backbone": "smal_cnn"}}, "recipe.backbone 'smal_cnn' is unknown; did you mean small_cnn"),
        ({"recipe": {"schedule": {"kind": "multistep", "milestones": [1.5]}}}, "recipe.schedule.milestones.0"),
        ({"noise": [{"kind": "symetric", "rate": 0.4}]}, "'symetric' is unknown; did you mean symmetric"),
        ({"noise": [{"kind": "symmetric", "rate": 1.4}]}, "1.4"),
        ({"noise": [{"kind": "symmetric"}]}, "rate"),
        ({"noise": [{"kind": "symmetric", "rate": 0.4, "includ_true": True}]}, "did you mean include_true"),
        ({"noise": []}, "noise"),
        ({"seeds": [0, 0]}, "seeds: '0' is listed twice"),
        ({"methods": ["ce", "ce"]}, "methods: 'ce' is listed twice"),
        ({"seeds": [-1]}, "seeds.0: -1: should be greater than or equal to 0"),
        ({"name": "a/b"}, "name"),
        ({"datasets": ["digit@100"]}, "small.yaml: datasets[0]: dataset 'digit' is unknown; did you mean digits"),
        ({"datasets": ["@100"]}, "dataset '@100': write NAME@N, with N training images, 2 or more"),
        ({"datasets": ["digits@"]}, "dataset 'digits@': write digits@N"),
        ({"datasets": ["digits@1"]}, "dataset 'digits@1': write digits@N"),
        ({"datasets": ["digits@0100"]}, "dataset 'digits@0100': write digits@N"),
        ({"datasets": ["digits@1e3"]}, "dataset 'digits@1e3': write digits@N"),
        ({"datasets": ["digits@50", "digits@50"]}, "datasets: 'digits@50' is listed twice"),
        (
            {"datasets": ["digits@50", "digits"], "recipe": {"train_size": 50}},
            "datasets: 'digits@50' and 'digits' are one column under this recipe.train_size",
        ),
    ],
)
def test_errors_name_the_key_the_value_and_what_would_be_right(changes: dict[str, Any], says: str) -> None:
    assert says in error_of(**changes)


def test_fingerprints_move_with_all_that_can_change_a_result_and_with_nothing_else() -> None:
    cell = small().cells()[0]
    same = [small(title="other"), small(methods=[{"name": "ce", "label": "renamed"}]), small(recipe={"workers": 0})]
    same += [small(methods=[{"name": "gce", "hparams": {"q": 0.7}}])]
    assert {board.cells()[0].fingerprint() for board in same[:3]} == {cell.fingerprint()}
    assert {board.cells()[0].folder() for board in same[:3]} == {cell.folder()}
    assert same[3].cells()[0].fingerprint() == small(methods=["gce"]).cells()[0].fingerprint()
    spelt_out = small(noise=[{"kind": "symmetric", "rate": 0.4, "include_true": False}])
    assert spelt_out.cells()[0].fingerprint() == cell.fingerprint()
    changes: list[dict[str, Any]] = [
        {"recipe": {"epochs": 61}},
        {"recipe": {"threads": 2}},
        {"recipe": {"schedule": {"warmup": 1}}},
        {"noise": [{"kind": "symmetric", "rate": 0.41}]},
        {"noise": [{"kind": "symmetric", "rate": 0.4, "include_true": True}]},
        {"noise": [{"kind": "symmetric", "rate": 0.4, "seed": 5}]},
        {"seeds": [3]},
        {"methods": ["mixup"]},
        {"datasets": ["mnist"]},
    ]
    prints = [small(**change).cells()[0].fingerprint() for change in changes]
    assert len({*prints, cell.fingerprint()}) == len(changes) + 1


def test_a_part_of_a_dataset_is_a_column_with_a_train_size_of_its_own() -> None:
    board = small(datasets=["digits", "digits@100"], recipe={"train_size": 500})
    whole, part = (next(c for c in board.cells() if c.dataset == name) for name in board.datasets)
    assert (whole.recipe.train_size, part.recipe.train_size) == (500, 100)
    assert part.column == ("digits@100", whole.column[1])
    assert part.noise_key() == whole.noise_key()
    same = small(recipe={"train_size": 100}).cells()[0]
    assert (part.fingerprint(), part.folder()) == (same.fingerprint(), same.folder())
    assert part.fingerprint() != whole.fingerprint() == small(recipe={"train_size": 500}).cells()[0].fingerprint()


def test_smaller_parts_are_subsets_of_larger_ones() -> None:
    from noisebench.assembly import split

    for seed in range(3):
        sets = [
            {i for part in split(1000, Recipe(train_size=n), seed) for i in part.tolist()} for n in (100, 300, 1000)
        ]
        assert [len(found) for found in sets] == [100, 300, 1000]
        assert sets[0] < sets[1] < sets[2]


def test_the_rules_version_is_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = small().cells()[0].fingerprint()
    monkeypatch.setattr(config, "RULES", config.RULES + 1)
    assert small().cells()[0].fingerprint() != before


def test_the_code_of_a_method_is_in_the_fingerprint_but_its_comments_are_not(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    texts = ['"""Doc."""\nx = 1  # a\n', '"""Other."""\n\nx = 1\n', '"""Doc."""\nx = 2  # a\n']
    digests = []
    for text in texts:
        file.write_text(text)
        registry._code_of.cache_clear()
        digests.append(registry._code_of((file,)))
    assert digests[0] == digests[1] != digests[2]


def test_the_code_that_a_method_imports_from_another_is_in_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "PACKAGE", tmp_path)
    (tmp_path / "methods").mkdir()
    base, child = tmp_path / "methods" / "base.py", tmp_path / "child.py"
    child.write_text("from noisebench.methods.base import Base\n")
    digests = []
    for text in ("x = 1\n", "x = 2\n"):
        base.write_text(text)
        registry._code_of.cache_clear()
        digests.append(registry._code_of((child,)))
    assert digests[0] != digests[1]


def test_the_board_of_all_methods_has_the_default_board_s_columns_and_recipe() -> None:
    first, second = load_benchmark("digits"), load_benchmark("digits-all")
    assert (first.recipe, first.noise, first.seeds) == (second.recipe, second.noise, second.seeds)


def test_all_methods_are_those_that_the_noise_has_something_for() -> None:
    outliers = {"kind": "open_set", "rate": 0.4, "source": "shapes"}
    for noise, there in (([SMALL["noise"][0]], False), ([SMALL["noise"][0], outliers], True)):
        rows = {method.name for method in small(methods="all", noise=noise).methods}
        asking = {n for n, e in registry.methods().entries.items() if "outliers" in e.constants.get("needs", ())}
        assert asking
        assert rows == set(registry.methods().entries) - (set() if there else asking)


def test_a_train_size_that_no_dataset_would_take_is_refused() -> None:
    with pytest.raises(UserError, match=r"recipe\.train_size: every dataset of this board says its own"):
        small(datasets=["digits@60", "digits@120"], recipe={"train_size": 50})
    small(datasets=["digits@60", "digits"], recipe={"train_size": 50})


def test_a_member_s_code_is_in_an_ensemble_s_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    nested = {"member": "ensemble", "settings": {"member": "elr"}}
    boards = [{"methods": [{"name": "ensemble", "hparams": given}]} for given in ({"member": "elr"}, nested)]
    before = [small(**board).cells()[0].fingerprint() for board in boards]
    default = small(methods=["ensemble"]).cells()[0].fingerprint()
    real = registry.Entry.code
    monkeypatch.setattr(registry.Entry, "code", lambda self: "changed" if self.name == "elr" else real(self))
    assert all(small(**board).cells()[0].fingerprint() != b for board, b in zip(boards, before, strict=True))
    assert small(methods=["ensemble"]).cells()[0].fingerprint() == default
    monkeypatch.setattr(registry.Entry, "code", lambda self: "changed" if self.name == "ce" else real(self))
    assert small(methods=["ensemble"]).cells()[0].fingerprint() != default  # its default member


def test_the_content_of_a_noise_file_is_in_the_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "T.csv"
    prints = []
    for rows in ("0.9,0.1\n0.2,0.8\n", "0.8,0.2\n0.2,0.8\n"):
        file.write_text(rows)
        prints.append(small(noise=[{"kind": "matrix", "T": str(file)}]).cells()[0].fingerprint())
    assert prints[0] != prints[1]


def test_the_noise_seed_is_the_cell_s_unless_fixed() -> None:
    assert [c.noise_seed for c in small(methods=["ce"]).cells()] == [0, 1]
    fixed = small(methods=["ce"], noise=[{"kind": "symmetric", "rate": 0.4, "seed": 7}])
    assert [c.noise_seed for c in fixed.cells()] == [7, 7]


def test_ranking_is_by_selected_where_there_is_a_validation_split() -> None:
    assert small().which == "selected"
    assert small(recipe={"validation": 0}).which == "last"


def test_an_int_counts_epochs_and_a_float_is_a_share() -> None:
    warmup = [small(recipe={"schedule": {"warmup": w}}).recipe.schedule.warmup for w in (1, 1.0, 0.25)]
    assert [type(w) for w in warmup] == [int, float, float]


def test_yaml_numbers_and_doubled_keys() -> None:
    assert parse_yaml("lr: 1e-3", "x")["lr"] == 1e-3
    with pytest.raises(UserError, match=r"line 2.*key 'a' twice"):
        parse_yaml("a: 1\na: 2", "x.yaml")
    with pytest.raises(UserError, match=r"x.yaml, line 1: not valid YAML"):
        parse_yaml("a: [1", "x.yaml")


def test_overrides_reach_into_the_benchmark() -> None:
    board = load_benchmark("digits", ["recipe.epochs=3", "seeds=[5]", "methods=[ce]"])
    assert (board.recipe.epochs, board.seeds, board.methods[0].name) == (3, (5,), "ce")
    with pytest.raises(UserError, match="expected KEY=VALUE"):
        override({}, ["epochs"])
    with pytest.raises(UserError, match="'a' holds a value"):
        override({"a": 1}, ["a.b=2"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_benchmark(str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="expected keys and values, found list"):
        load_benchmark(str(tmp_path / "list.yaml"))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError):
        load_benchmark(str(tmp_path / "bytes.yaml"))


TUNED: dict[str, Any] = {
    "trials": 20,
    "seed": 1000,
    "objective": "o",
    "rows": {
        "ce": {"trials": 1, "method": "ce", "hparams": {}},
        "gce (q=0.5)": {
            "trials": 20,
            "before": 0.5,
            "after": 0.6,
            "search": {"q": "0:1"},
            "method": "gce",
            "hparams": {"q": 0.5},
        },
    },
}


def test_a_tuned_board_says_so_and_its_cells_are_those_of_any_other() -> None:
    plain, tuned = small(), small(tuned=TUNED)
    assert plain.tuned is None
    assert [c.fingerprint() for c in tuned.cells()] == [c.fingerprint() for c in plain.cells()]
    note = "(tuned on the noisy validation split, seed 1000: 20 trials for gce (q=0.5); nothing to tune in ce)"
    assert tuned.title == f"small {note}"
    assert small(tuned=TUNED, title=f"T {note} of mine").title == f"T {note} of mine"
    assert tuned.retitled("seeds=[7]").title == f"small {note} (changed: seeds=[7])"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": [0, 1000]}, "seeds: 1000 is the seed that this board was tuned on"),
        ({"methods": ["ce", "mixup"]}, "methods: 'mixup' is no tuned row"),
        (
            {"methods": ["ce", {"name": "gce", "hparams": {"q": 0.6}, "label": "gce (q=0.5)"}]},
            "methods: 'gce (q=0.5)' is gce {'q': 0.6}, but tuning chose gce {'q': 0.5}; put that back",
        ),
        ({"tuned": TUNED | {"trials": 30}}, "rows: 'gce (q=0.5)' has 20 trials, but tuned.trials is 30"),
        ({"tuned": TUNED | {"trials": 0}}, "tuned.trials: 0: should be greater than or equal to 1"),
        ({"tuned": {"trials": 3}}, "tuned.seed: is missing"),
    ],
)
def test_a_board_that_is_not_what_was_tuned_is_refused(changes: dict[str, Any], says: str) -> None:
    assert says in error_of(**{"tuned": TUNED} | changes)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(PLAIN)
@example("\x85")
@example(["1e-3", "1e5", ".5E+2", "null", "yes", "0x1", 1e-5, "a: b", "é\u2028"])
def test_what_is_written_as_yaml_is_read_as_it_was(data: Any) -> None:
    assert parse_yaml(to_yaml({"x": data}), "x") == {"x": data}


# ---------------------------------------------------------------------------- thousands of broken configurations

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=8)
JUNK = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_letters, max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(["name", "datasets", "noise", "methods", "seeds", "recipe", "title", "extra"])
RECIPE_KEYS = st.sampled_from([*config.Recipe.model_fields, "typo"])
NOISE = st.dictionaries(
    st.sampled_from(["kind", "rate", "include_true", "T", "mapping", "path", "trace", "seed"]), JUNK
)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(KEYS, JUNK, max_size=4),
    st.dictionaries(RECIPE_KEYS, JUNK, max_size=3),
    st.lists(NOISE | JUNK, max_size=2),
    st.sampled_from(["symmetric", "asymmetric", "matrix", "file", "class_dependent", "instance", "pairflip", "none"]),
)
def test_no_broken_configuration_ends_in_a_traceback(top: Any, recipe: Any, noise: Any, kind: str) -> None:
    for data in (
        SMALL | top,
        SMALL | {"recipe": recipe},
        SMALL | {"noise": noise},
        SMALL | {"noise": [{"kind": kind, **n} if isinstance(n, dict) else n for n in noise]},
    ):
        try:
            board = build(Benchmark, data, "fuzz.yaml")
            check_names(board, "fuzz.yaml")
            for cell in board.cells()[:3]:
                json.dumps(cell.fingerprint())
        except UserError as error:
            assert "\n" not in str(error)


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet=string.printable, max_size=60) | st.binary(max_size=40).map(lambda b: b.decode("latin-1")))
def test_no_text_ends_in_a_traceback(text: str) -> None:
    try:
        data = parse_yaml(text, "fuzz.yaml")
        build(Benchmark, data, "fuzz.yaml")
    except UserError as error:
        assert "\n" not in str(error)


def test_a_name_with_a_line_break_is_one_line() -> None:
    with pytest.raises(UserError) as raised:
        build(Benchmark, {"name": "x", "datasets": ["digits"], "noise": [{"kind": "\n"}], "methods": ["ce"]}, "x.yaml")
    assert r"noise kind '\n' is unknown" in str(raised.value)
