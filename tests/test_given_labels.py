"""Real noise, synthetic noise matched to it, and further tests: labels that people gave, through the whole harness."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import noisebench
from noisebench import noise
from noisebench.board import check_settings
from noisebench.checks import sample_data
from noisebench.config import Benchmark, Noise, Recipe, build
from noisebench.errors import UserError
from noisebench.evaluation import calibration_to_people
from noisebench.given_labels import check_given
from noisebench.image_data import ExtraTest, ImageData, LabelSets
from noisebench.loading import make_noise

pytestmark = pytest.mark.usefixtures("one_picture")
DATA = sample_data()
N, K = len(DATA.train_labels), DATA.num_classes


def people(rate: float, seed: int = 0) -> np.ndarray:
    """Labels as people give them: those of some images are wrong, and the classes are not alike."""
    draw = np.random.default_rng(seed)
    wrong = draw.random(N) < rate * (0.5 + DATA.train_labels / K)
    return np.where(wrong, (DATA.train_labels + 1 + (draw.random(N) < 0.3)) % K, DATA.train_labels)


LABELED = replace(DATA, given_labels={"few": people(0.2), "many": people(0.6, 1)})
NOISY = replace(DATA, clean_known=False)


def made(data: ImageData, **spec: object) -> noise.NoisyLabels:
    return make_noise(build(Noise, spec, "noise"), data, 0, dataset="set")


def test_real_noise_is_the_labels_that_were_given():
    noisy = made(LABELED, kind="real", given="many")
    assert np.array_equal(noisy.labels, LABELED.given_labels["many"])
    wrong = np.mean(LABELED.given_labels["many"] != DATA.train_labels)
    assert noisy.realised_rate == noisy.expected_rate == pytest.approx(wrong)
    assert noisy.description == "real (many)"
    assert noisy.options == {"given": "many"}
    counted = noisy.realised_transition(DATA.train_labels)
    np.testing.assert_allclose(noisy.transition, counted)


def test_the_only_labels_that_there_are_need_no_name():
    data = replace(DATA, given_labels={"people": people(0.3)})
    assert made(data, kind="real").options == {"given": "people"}


def test_matched_noise_has_the_same_t_and_rate_and_other_images():
    many = np.tile(LABELED.given_labels["many"], 300)
    true = np.tile(DATA.train_labels, 300)
    noisy = noise.inject(true, "matched", num_classes=K, seed=3, given=many)
    real = noise.inject(true, "real", num_classes=K, seed=3, given=many)
    np.testing.assert_array_equal(noisy.transition, real.transition)
    assert noisy.expected_rate == real.realised_rate
    assert noisy.realised_rate == pytest.approx(real.realised_rate, abs=4 * (0.25 / len(true)) ** 0.5)
    np.testing.assert_allclose(noisy.realised_transition(true), real.transition, atol=0.02)
    assert np.mean((noisy.labels != true) != (real.labels != true)) > 0.1  # which images are wrong is drawn anew
    again = noise.inject(true, "matched", num_classes=K, seed=3, given=many)
    np.testing.assert_array_equal(noisy.labels, again.labels)


def test_where_nobody_knows_the_true_labels_there_is_no_rate_and_no_t(tmp_path):
    noisy = made(NOISY, kind="real")
    assert np.array_equal(noisy.labels, DATA.train_labels)
    assert (noisy.expected_rate, noisy.realised_rate, noisy.known) == (None, None, False)
    with pytest.raises(UserError, match="nobody knows the true labels"):
        _ = noisy.transition
    noise.save(noisy, tmp_path / "n", true_labels=DATA.train_labels)
    found = noise.load(tmp_path / "n")
    assert not found.known
    assert np.array_equal(found.labels, noisy.labels)


@pytest.mark.parametrize(
    ("data", "spec", "message"),
    [
        (LABELED, {"kind": "real"}, "say which of 'set': few, many"),
        (LABELED, {"kind": "real", "given": "mny"}, "did you mean many"),
        (LABELED, {"kind": "matched"}, "say which"),
        (DATA, {"kind": "real", "given": "many"}, "came without noisy labels"),
        (NOISY, {"kind": "symmetric", "rate": 0.2}, "are real noise themselves; give noise real"),
        (NOISY, {"kind": "none"}, "are real noise themselves; give noise real"),
        (NOISY, {"kind": "matched", "given": "x"}, "are real noise themselves"),
        (LABELED, {"kind": "real", "given": "many", "rate": 0.2}, "rate: 0.2 was given"),
    ],
)
def test_what_is_refused(data, spec, message):
    with pytest.raises(UserError, match=message):
        made(data, **spec)


@pytest.mark.parametrize("kind", ["real", "matched"])
def test_labels_of_another_length_or_class_are_refused(kind):
    with pytest.raises(UserError, match="96 labels do not fit"):
        noise.inject([0, 1, 2], kind, num_classes=K, seed=0, given=people(0.2))
    with pytest.raises(UserError, match="has class 9"):
        noise.inject([0, 1, 2], kind, num_classes=K, seed=0, given=[0, 1, 9])
    with pytest.raises(UserError, match="is a name"):
        noise.inject([0, 1, 2], kind, num_classes=K, seed=0, given="worse")


def test_matched_noise_needs_labels_from_python_too():
    with pytest.raises(UserError, match="given: missing"):
        noise.inject([0, 1, 2], "matched", num_classes=3, seed=0)


def test_a_board_says_before_it_runs_that_labels_are_not_there(monkeypatch, tmp_path):
    board = build(
        Benchmark,
        {"name": "b", "datasets": ["digits"], "methods": ["ce"], "noise": [{"kind": "real", "given": "worse"}]},
        "b",
    )
    from noisebench.executors import Place

    with pytest.raises(UserError, match=r"b: noise\[0\] on digits: .*came without noisy labels"):
        check_settings(board, Place(tmp_path, None))


def test_a_run_on_given_labels_counts_what_is_memorised_and_one_on_unknown_ones_does_not():
    recipe = {"epochs": 2, "batch_size": 16, "lr": 0.02}
    assert (
        "memorised"
        in noisebench.fit("ce", LABELED, "real", noise_options={"given": "many"}, recipe=recipe).metrics["last"]
    )
    last = noisebench.fit("ce", NOISY, "real", recipe=recipe).metrics["last"]
    assert "memorised" not in last
    assert "accuracy" in last


# ---------------------------------------------------------------- further tests


def with_tests(**tests: ExtraTest) -> ImageData:
    return replace(DATA, extra_tests={name: lambda test=test: test for name, test in tests.items()})


def fit(data: ImageData, **recipe: object) -> dict[str, float]:
    plan = {"epochs": 2, "batch_size": 16, "lr": 0.02, **recipe}
    return noisebench.fit("ce", data, "symmetric", 0.2, recipe=plan).metrics["last"]


def test_a_further_test_is_scored_beside_the_test_set_and_changes_nothing_else():
    M = len(DATA.test_labels)
    wrong = (DATA.test_labels + 1) % K
    soft = np.full((M, K), 1 / K)
    data = with_tests(
        same=ExtraTest(labels=DATA.test_labels),
        wrong=ExtraTest(labels=wrong),
        people=ExtraTest(soft=soft),
        other=ExtraTest(labels=DATA.test_labels[:10], images=DATA.test_images[:10]),
    )
    plain, found = fit(data), fit(data, evaluate=["same", "wrong", "people", "other"])
    assert {key: value for key, value in found.items() if "." not in key} == plain
    for metric in ("accuracy", "nll", "ece"):
        assert found[f"same.{metric}"] == plain[metric]
    assert found["wrong.accuracy"] <= 1 - plain["accuracy"]
    assert found["people.nll"] >= np.log(K)
    assert {key for key in found if key.startswith("people")} == {"people.nll", "people.ece"}
    assert 0 <= found["other.accuracy"] <= 1


def test_images_that_are_left_out_do_not_count():
    M = len(DATA.test_labels)
    labels, keep = DATA.test_labels.copy(), np.arange(M) % 2 == 0
    labels[~keep] = (labels[~keep] + 1) % K
    clean = with_tests(kept=ExtraTest(labels=DATA.test_labels, keep=keep))
    spoilt = with_tests(kept=ExtraTest(labels=labels, keep=keep))
    assert fit(clean, evaluate=["kept"]) == fit(spoilt, evaluate=["kept"])


def test_fewer_test_images_are_a_fixed_choice_that_further_tests_share():
    data = with_tests(same=ExtraTest(labels=DATA.test_labels))
    found = fit(data, evaluate=["same"], test_size=13)
    assert found["same.accuracy"] == found["accuracy"]
    assert found["accuracy"] * 13 == pytest.approx(round(found["accuracy"] * 13))


def test_calibration_to_people_by_hand():
    p = torch.tensor([[0.7, 0.3], [0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    found = calibration_to_people(p, q)
    nll = -np.mean([0.5 * np.log(0.7) + 0.5 * np.log(0.3), np.log(0.9), 0.5 * np.log(0.2) + 0.5 * np.log(0.8)])
    assert found["nll"] == pytest.approx(nll)
    assert found["ece"] == pytest.approx((0.2 + 0.1 + 0.3) / 3)  # three bins of one image each


def test_calibration_to_people_who_agree_is_that_to_labels():
    from noisebench.evaluation import classification_metrics

    draw = torch.Generator().manual_seed(0)
    p = torch.softmax(torch.randn(500, 5, generator=draw) * 2, dim=1)
    y = torch.randint(0, 5, (500,), generator=draw)
    soft = torch.nn.functional.one_hot(y, 5).double()
    labels, opinions = classification_metrics(p, y), calibration_to_people(p, soft)
    assert opinions["nll"] == pytest.approx(labels["nll"], rel=1e-6)
    assert opinions["ece"] == pytest.approx(labels["ece"], abs=1e-6)


@pytest.mark.parametrize(("first", "second"), [(0.4, 0.42), (1.0, 0.97), (0.59, 0.6)])
def test_both_calibrations_have_the_same_bins_at_their_edges(first: float, second: float):
    from noisebench.evaluation import classification_metrics

    confident = torch.tensor([first] * 50 + [second] * 50)[:, None]
    p = torch.cat([confident, (1 - confident).expand(-1, 9) / 9], dim=1)
    y = torch.tensor([0] * 50 + [1] * 50)  # under-confident and over-confident: in one bin they cancel
    soft = torch.nn.functional.one_hot(y, 10).double()
    assert calibration_to_people(p, soft)["ece"] == pytest.approx(classification_metrics(p, y)["ece"], abs=1e-6)


@pytest.mark.parametrize("name", ["test", "val", "train", "a.b", ""])
def test_a_further_test_cannot_take_the_place_of_a_run_s_own(name: str):
    with pytest.raises(UserError, match="cannot name a further test"):
        with_tests(**{name: ExtraTest(labels=DATA.test_labels)})


def test_a_choice_of_test_images_of_which_none_counts_is_refused():
    keep = np.arange(len(DATA.test_labels)) == 3
    with pytest.raises(UserError, match=r"recipe\.test_size: 1: none"):
        fit(with_tests(few=ExtraTest(labels=DATA.test_labels, keep=keep)), evaluate=["few"], test_size=1)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (ExtraTest(), "give labels or soft"),
        (ExtraTest(labels=DATA.test_labels[:5]), r"give int64 \[40\]"),
        (ExtraTest(labels=DATA.test_labels + 2), "give 0..3"),
        (ExtraTest(labels=DATA.test_labels, keep=np.zeros(40, dtype=bool)), "some of them true"),
        (ExtraTest(soft=np.full((40, K), 0.3)), "sum to one"),
        (ExtraTest(soft=np.full((40, 2), 0.5)), r"give float64 \[40, 4\]"),
    ],
)
def test_a_further_test_that_does_not_fit_is_refused(test, message):
    with pytest.raises(UserError, match=message):
        fit(with_tests(odd=test), evaluate=["odd"])


def test_a_further_test_that_is_not_offered_is_refused():
    with pytest.raises(UserError, match="offers no further tests"):
        fit(DATA, evaluate=["corrected"])
    with pytest.raises(UserError, match="did you mean same"):
        fit(with_tests(same=ExtraTest(labels=DATA.test_labels)), evaluate=["sme"])


# ---------------------------------------------------------------- label sets


SETS = LabelSets(np.array([0, 1, 3, 4, 7]), np.array([0, 1, 0, 2, 3, 2, 0], dtype=np.int32))


def test_label_sets_as_multi_hot_rows():
    found = SETS.multihot(torch.tensor([3, 0, 1, 3]), 4)
    assert found.tolist() == [[1, 0, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 1]]


def test_a_run_on_label_sets_is_one_on_their_multi_hot_rows():
    sets = replace(DATA, label_sets=SETS, class_map={})
    hot = {
        f"{part}_labels": SETS.multihot(torch.from_numpy(getattr(DATA, f"{part}_labels")), K).numpy()
        for part in ("train", "test")
    }
    recipe = {"epochs": 2, "batch_size": 16, "lr": 0.02}
    first = noisebench.fit("ce", sets, recipe=recipe)
    second = noisebench.fit("ce", replace(DATA, class_map={}, **hot), recipe=recipe)
    assert first.weights_sha256 == second.weights_sha256
    assert first.metrics == second.metrics


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (LabelSets(np.array([0, 1, 1]), np.array([0], dtype=np.int32)), "each set with a class"),
        (LabelSets(np.array([0, 1]), np.array([9], dtype=np.int32)), "give 0..3"),
        (LabelSets(np.array([0.0, 1.0]), np.array([0], dtype=np.int32)), "give int64"),
        (LabelSets(np.array([0, 1, 2]), np.array([0, 1], dtype=np.int32)), "give sets in 0..1"),
    ],
)
def test_label_sets_that_do_not_fit_are_refused(sets, message):
    with pytest.raises(UserError, match=message):
        replace(DATA, label_sets=sets, class_map={})


def test_given_labels_are_checked():
    with pytest.raises(UserError, match=r"given_labels\['few'\] holds class 5"):
        replace(DATA, given_labels={"few": DATA.train_labels + 2})
    with pytest.raises(UserError, match="leave them out"):
        replace(LABELED, clean_known=False)
    assert check_given("symmetric", None, LABELED, "set") is None


def test_a_recipe_without_the_later_settings_keeps_its_fingerprint():
    assert not {"image_size", "evaluate", "test_size", "skip_damaged", "crop_area"} & set(Recipe().identity())
    assert Recipe(evaluate=("a",)).identity()["evaluate"] == ["a"]


def test_the_short_table_shows_both_accuracies_and_the_full_one_what_people_said():
    from noisebench.drawing import detail_grids
    from noisebench.table import Table

    numbers = {"epoch": 1, "accuracy": 0.5, "nll": 1.0, "ece": 0.1}
    numbers |= {"corrected.accuracy": 0.6, "corrected.nll": 1.0, "people.nll": 1.2, "people.ece": 0.2}
    result = {"label": "a", "dataset": "set", "noise": "real", "status": "finished", "metrics": {"last": numbers}}
    table = Table.from_results([result | {"seed": seed} for seed in (0, 1)])
    (short,), (full,) = detail_grids(table, "short"), detail_grids(table, "full")
    assert ("accuracy (corrected) %",) in short.heads
    assert not any("people" in part for head in short.heads for part in head)
    assert {"NLL (people)", "ECE (people)", "NLL (corrected)"} <= {head[0] for head in full.heads}
    assert "accuracy (corrected)" in table.to_markdown()
    assert "corrected.accuracy" in table.to_csv()
    (record,) = [r for r in table.records() if r["metric"] == "corrected.accuracy" and r["epoch"] == "last"]
    assert record["mean"] == pytest.approx(0.6)
    assert record["best"]


def test_a_further_test_of_other_images_is_refused():
    small = ExtraTest(labels=DATA.test_labels, images=np.asarray(DATA.test_images)[:, :4, :4])
    with pytest.raises(UserError, match="another kind or shape"):
        fit(with_tests(small=small), evaluate=["small"])


def test_a_mapping_of_label_sets_is_refused():
    with pytest.raises(UserError, match="a mapping of sets has no meaning"):
        made(replace(DATA, label_sets=SETS, class_map={}), kind="asymmetric", rate=0.2, mapping={1: 0})


def test_a_table_says_that_images_were_replaced():
    from noisebench.drawing import notes
    from noisebench.table import Table

    metrics = {"last": {"epoch": 1, "accuracy": 0.5}}
    result = {"label": "a", "dataset": "set", "noise": "clean", "status": "finished", "metrics": metrics}
    whole = [result | {"seed": seed} for seed in (0, 1)]
    assert not any("decode" in line for line in notes(Table.from_results(whole)))
    spoilt = Table.from_results([whole[0] | {"damaged": 3}, whole[1]])
    assert any("decode: 3 in a run" in line for line in notes(spoilt))
