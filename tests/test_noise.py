"""Label noise: every kind against matrices and loops written by hand, its memory, its artefact, its error messages."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from noisebench import noise
from noisebench.errors import UserError
from noisebench.streams import stream

MNIST_MAP = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
OWN = [[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]]


def generator(seed: int, *name: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(stream(seed, "noise", *name)))


def balanced(samples: int, classes: int) -> np.ndarray:
    return np.arange(samples) % classes


# ---------------------------------------------------------------- transition matrices


@pytest.mark.parametrize(
    ("kind", "rate", "options", "expected"),
    [
        ("none", None, {}, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("symmetric", 0.4, {}, [[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]]),
        ("symmetric", 0.6, {"include_true": True}, [[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]]),
        ("symmetric", 1.0, {"include_true": True}, [[1 / 3] * 3] * 3),
        ("symmetric", 2 / 3, {}, [[1 / 3] * 3] * 3),
        ("pairflip", 0.45, {}, [[0.55, 0.45, 0], [0, 0.55, 0.45], [0.45, 0, 0.55]]),
        ("asymmetric", 0.3, {"mapping": {2: 0, 0: 1}}, [[0.7, 0.3, 0], [0, 1, 0], [0.3, 0, 0.7]]),
        ("asymmetric", 0.3, {"mapping": {"2": 0, "0": "1"}}, [[0.7, 0.3, 0], [0, 1, 0], [0.3, 0, 0.7]]),
        ("matrix", None, {"T": OWN}, OWN),
    ],
)
def test_matrix_of_each_kind(kind, rate, options, expected):
    matrix = noise.transition_matrix(kind, rate, 3, **options)
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix, expected, atol=1e-15)


@given(st.floats(0, 1), st.integers(2, 30), st.integers(0, 5))
def test_class_dependent_has_the_trace_asked_and_a_diagonal_that_varies(rate, classes, matrix_seed):
    matrix = noise.transition_matrix("class_dependent", rate, classes, matrix_seed=matrix_seed)
    assert np.trace(matrix) == pytest.approx(classes * (1 - rate), abs=1e-9)
    by_trace = noise.transition_matrix(
        "class_dependent", None, classes, trace=classes * (1 - rate), matrix_seed=matrix_seed
    )
    np.testing.assert_allclose(by_trace, matrix, atol=1e-9)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-12)
    if 0.01 < rate < 0.99:
        assert np.ptp(np.diag(matrix)) > 1e-3


def test_class_dependent_matrix_is_the_same_over_seeds_and_another_for_another_matrix_seed():
    first, second = (noise.inject(balanced(500, 5), "class_dependent", 0.3, num_classes=5, seed=s) for s in (0, 1))
    np.testing.assert_array_equal(first.transition, second.transition)
    assert (first.labels != second.labels).any()
    other = noise.transition_matrix("class_dependent", 0.3, 5, matrix_seed=1)
    assert np.abs(first.transition - other).max() > 0.01


@given(
    st.sampled_from(["symmetric", "including", "pairflip", "asymmetric", "class_dependent"]),
    st.floats(0, 1),
    st.integers(2, 40),
)
def test_rows_sum_to_one_and_nothing_is_negative(kind, share, classes):
    options = {"including": {"include_true": True}, "asymmetric": {"mapping": {0: 1}}}.get(kind, {})
    rate = share * (classes - 1) / classes if kind == "symmetric" else share
    matrix = noise.transition_matrix("symmetric" if kind == "including" else kind, rate, classes, **options)
    assert matrix.shape == (classes, classes)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- drawn labels

CASES = {
    "none": (None, {}),
    "symmetric": (0.4, {}),
    "symmetric, including": (0.8, {"include_true": True}),
    "pairflip": (0.45, {}),
    "asymmetric": (0.4, {"mapping": MNIST_MAP}),
    "class_dependent": (0.5, {}),
    "class_dependent, trace": (None, {"trace": 3.0}),
    "matrix": (None, {"T": noise.transition_matrix("class_dependent", 0.3, 10, matrix_seed=7)}),
    "instance": (0.4, {}),
}


def injected(case: str, labels: np.ndarray, seed: int = 0) -> noise.NoisyLabels:
    rate, options = CASES[case]
    features = (np.arange(len(labels) * 12) * 2_654_435_761 // 128 % 256).astype(np.uint8).reshape(-1, 12)
    kind = case.split(",")[0]
    return noise.inject(labels, kind, rate, num_classes=10, seed=seed, features=features, **options)


@pytest.mark.parametrize("case", CASES)
def test_counted_rates_are_those_of_the_matrix(case):
    true = balanced(60_000, 10)
    noisy = injected(case, true)
    counted = noisy.realised_transition(true) * 6_000
    asked = noisy.transition
    spread = np.sqrt(6_000 * asked * (1 - asked))
    assert (np.abs(counted - 6_000 * asked) <= 5 * spread + 1e-6).all()
    wrong = float(np.mean(noisy.labels != true))
    assert noisy.realised_rate == wrong
    assert noisy.expected_rate == pytest.approx(1 - np.diag(asked).mean(), abs=1e-9)
    assert abs(wrong - noisy.expected_rate) <= 5 * math.sqrt(0.25 / 60_000)


@pytest.mark.parametrize("case", CASES)
def test_same_seed_same_labels_and_nothing_of_the_truth_is_kept(case):
    true = np.random.default_rng(3).integers(0, 10, 4_000).astype(np.uint8)
    before = true.copy()
    first, again, other = (injected(case, true, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.sha256 == again.sha256
    assert first.labels.dtype == np.int64
    np.testing.assert_array_equal(true, before)
    assert not np.shares_memory(first.labels, true)
    if case != "none":
        assert (first.labels != other.labels).any()
        kept = [value for value in vars(first).values() if isinstance(value, np.ndarray) and value.shape == true.shape]
        assert not any(np.array_equal(value, true) for value in kept)


@pytest.mark.parametrize(
    ("case", "sha256"),
    [
        ("symmetric", "f63f6d0fb979f5cb"),
        ("symmetric, including", "a1f840282ce57d54"),
        ("pairflip", "5c912b6e170195f1"),
        ("asymmetric", "1b765e35cb3cff2d"),
        ("class_dependent", "f076371b867cf570"),
        ("matrix", "395be45419a2e4b5"),
        ("instance", "d0efa6591f510aaf"),
    ],
)
def test_labels_are_these_on_every_platform(case, sha256):
    """Pinned: a change here changes every board's noise, and belongs in the CHANGELOG."""
    assert injected(case, balanced(2_000, 10)).sha256[:16] == sha256


@settings(max_examples=40)
@given(
    st.sampled_from(["symmetric", "including", "pairflip", "class_dependent"]),
    st.floats(0, 1),
    st.integers(2, 50),
    st.integers(-3, 2**40),
    st.sampled_from([np.uint8, np.int16, np.int64, np.uint64]),
)
def test_any_rate_gives_labels_in_range_at_the_rate_expected(kind, share, classes, seed, dtype):
    true = balanced(2_000, classes).astype(dtype)
    options = {"include_true": True} if kind == "including" else {}
    rate = share * (classes - 1) / classes if kind == "symmetric" else share
    name = "symmetric" if kind == "including" else kind
    noisy = noise.inject(true, name, rate, num_classes=classes, seed=seed, **options)
    assert noisy.labels.min() >= 0
    assert noisy.labels.max() < classes
    p = noisy.expected_rate
    assert abs(noisy.realised_rate - p) <= 5 * math.sqrt(max(p * (1 - p), 0) / 2_000) + 5 / 2_000


def test_samples_changed_at_a_lower_rate_are_among_those_at_a_higher_one():
    true = balanced(5_000, 10)
    low, high = (noise.inject(true, "symmetric", rate, num_classes=10, seed=1).labels != true for rate in (0.2, 0.5))
    assert low.sum() > 0
    assert (high[low]).all()


def test_labels_do_not_depend_on_how_many_are_drawn_at_a_time():
    true = balanced(700_000, 10)
    long = noise.inject(true, "symmetric", 0.4, num_classes=10, seed=0).labels
    short = noise.inject(true[:1_000], "symmetric", 0.4, num_classes=10, seed=0).labels
    np.testing.assert_array_equal(long[:1_000], short)


def test_asymmetric_is_a_loop_over_the_true_labels():
    """Chains (3 -> 8 beside 8 -> 3, 2 -> 7 -> 1) must not flip a label twice, as class-by-class code does."""
    mapping = {2: 7, 7: 1, 3: 8, 8: 3}
    true = np.random.default_rng(0).integers(0, 10, 3_000)
    draws = generator(4, "asymmetric").random(len(true))
    expected = [mapping.get(y, y) if u < 0.4 else y for y, u in zip(true.tolist(), draws, strict=True)]
    noisy = noise.inject(true, "asymmetric", 0.4, num_classes=10, seed=4, mapping=mapping)
    np.testing.assert_array_equal(noisy.labels, expected)
    assert noisy.expected_rate == pytest.approx(0.4 * np.isin(true, list(mapping)).mean())


def test_matrix_is_a_loop_that_walks_along_the_row():
    true = np.random.default_rng(0).integers(0, 3, 2_000)
    draws = generator(9, "matrix").random(len(true))
    expected = []
    for y, u in zip(true.tolist(), draws, strict=True):
        label, below = 0, OWN[y][0]
        while u >= below:
            label += 1
            below += OWN[y][label]
        expected.append(label)
    noisy = noise.inject(true, "matrix", num_classes=3, seed=9, T=OWN)
    np.testing.assert_array_equal(noisy.labels, expected)
    assert noisy.rate == pytest.approx(0.3)


def test_a_draw_on_the_edge_never_gives_a_class_of_probability_zero():
    from noisebench._noise_rows import draw_rows

    class Edges:
        def random(self, size: int) -> np.ndarray:
            return np.array([0.0, 0.5, 1 - 2**-53])

    drawn = draw_rows(np.zeros(3, int), Edges(), lambda _: np.array([0.0, 0.5, 0.0, 0.5, 0.0]))  # type: ignore[arg-type]
    np.testing.assert_array_equal(drawn, [1, 3, 3])


@pytest.mark.parametrize("scaled", [False, True])
def test_instance_is_the_papers_algorithm_sample_by_sample(scaled):
    """Xia et al. 2020, Algorithm 2, with softmax, mixing and sampling written out one number at a time."""
    classes, size, samples, seed = 4, 15, 300, 11
    images = np.random.default_rng(1).integers(0, 256, (samples, 5, 3), dtype=np.uint8)
    true = np.random.default_rng(2).integers(0, classes, samples)
    rates = [0.4 + 0.1 * z for z in generator(seed, "instance", "rates").standard_normal(samples)]
    assert all(0 <= q <= 1 for q in rates)  # nothing to draw again at this rate
    draws = generator(seed, "instance", "draw").random(samples)
    weights = [generator(seed, "instance", "weights", c).standard_normal((size, classes)) for c in range(classes)]
    expected, table = [], np.zeros((classes, classes))
    for i in range(samples):
        x, y, q = [v / 255 for v in images[i].ravel().tolist()], int(true[i]), rates[i]
        scores = [sum(x[s] * weights[y][s, j] for s in range(size)) for j in range(classes)]
        total = sum(math.exp(scores[j]) for j in range(classes) if j != y)
        p = [1 - q if j == y else q * math.exp(scores[j]) / total for j in range(classes)]
        table[y] += p
        label, below = 0, p[0]
        while draws[i] >= below:
            label += 1
            below += p[label]
        expected.append(label)
    features = images.astype(np.float32) / np.float32(255) if scaled else images
    noisy = noise.inject(true, "instance", 0.4, num_classes=classes, seed=seed, features=features)
    np.testing.assert_array_equal(noisy.labels, expected)
    assert noisy.expected_rate == pytest.approx(np.mean(rates))
    np.testing.assert_allclose(noisy.transition, table / table.sum(axis=1, keepdims=True), atol=1e-6)


def test_instance_in_small_blocks_is_the_same(monkeypatch):
    true, features = balanced(500, 10), np.random.default_rng(0).random((500, 30))
    whole = noise.inject(true, "instance", 0.3, num_classes=10, seed=0, features=features)
    monkeypatch.setattr("noisebench._noise_rows._BLOCK", 200)
    parts = noise.inject(true, "instance", 0.3, num_classes=10, seed=0, features=features)
    np.testing.assert_array_equal(whole.labels, parts.labels)
    np.testing.assert_allclose(whole.transition, parts.transition)


@pytest.mark.parametrize("rate", [0.02, 0.4, 0.97])
def test_instance_rates_are_a_truncated_normal(rate):
    from noisebench._noise_rows import truncated_normal

    drawn = truncated_normal(generator(0, "test"), rate, 0.1, 20_000)
    expected = stats.truncnorm(-rate / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1)
    assert stats.kstest(drawn, expected.cdf).pvalue > 1e-4


def test_instance_depends_on_the_sample():
    """x and -x of one class go to different classes: the likeliest for one is the least likely for the other."""
    x = np.random.default_rng(0).random(50)
    features = np.repeat([x, -x], 500, axis=0)
    noisy = noise.inject(np.zeros(1_000, int), "instance", 0.5, num_classes=10, seed=0, features=features).labels
    common = [np.bincount(half[half != 0], minlength=10).argmax() for half in (noisy[:500], noisy[500:])]
    assert common[0] != common[1]


def test_a_class_without_samples_keeps_its_row_stochastic_and_counts_as_unknown(tmp_path):
    noisy = noise.inject([0, 0, 1, 1], "instance", 0.4, num_classes=3, seed=0, features=np.ones((4, 2)))
    np.testing.assert_array_equal(noisy.transition[2], [0, 0, 1])
    assert np.isnan(noisy.realised_transition([0, 0, 1, 1])[2]).all()
    np.savetxt(tmp_path / "labels.txt", [0, 1, 1, 1], fmt="%d")
    file = noise.inject([0, 0, 1, 1], "file", num_classes=3, seed=0, path=tmp_path / "labels.txt")
    np.testing.assert_array_equal(file.transition, [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.npy", lambda p, y: np.save(p, y.astype(np.uint8))),
        ("a.npz", lambda p, y: np.savez(p, labels=y, other=y[:2])),
        ("a.txt", lambda p, y: p.write_text("\n".join(map(str, y)))),
        ("a.csv", lambda p, y: p.write_text("label\n" + "\n".join(map(str, y)) + "\n")),
        ("b.csv", lambda p, y: p.write_text("\n".join(map(str, y)) + "\n")),
    ],
)
def test_file_of_labels(tmp_path, name, write):
    true = balanced(40, 4)
    labels = np.where(np.arange(40) < 8, 3 - true, true)
    write(tmp_path / name, labels)
    noisy = noise.inject(true, "file", num_classes=4, seed=0, path=tmp_path / name)
    np.testing.assert_array_equal(noisy.labels, labels)
    assert noisy.labels.dtype == np.int64
    assert noisy.rate is None
    assert noisy.realised_rate == noisy.expected_rate == 0.2
    np.testing.assert_allclose(noisy.transition, noisy.realised_transition(true))


@pytest.mark.parametrize("name", ["T.npy", "T.csv", "T.txt"])
def test_matrix_from_a_file(tmp_path, name):
    path = tmp_path / name
    if name == "T.npy":
        np.save(path, np.float32(OWN))
    else:
        np.savetxt(path, OWN, delimiter="," if name == "T.csv" else " ")
    matrix = noise.transition_matrix("matrix", None, 3, T=str(path))
    np.testing.assert_allclose(matrix, OWN, atol=1e-7)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-15)  # float32 rows sum to one within 1e-7 only
    assert noise.inject([0, 1, 2], "matrix", num_classes=3, seed=0, T=path).options == {"T": str(path)}


# ---------------------------------------------------------------- memory and imports


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("symmetric", {}),
        ("symmetric", {"include_true": True}),
        ("pairflip", {}),
        ("asymmetric", {"mapping": {i: i + 1 for i in range(0, 20_000, 2)}}),
    ],
)
def test_21841_classes_take_memory_of_the_labels_alone(kind, options):
    samples, classes = 1_000_000, 21_841
    true = balanced(samples, classes)
    tracemalloc.start()
    noisy = noise.inject(true, kind, 0.4, num_classes=classes, seed=0, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * samples * 8
    assert "transition" not in vars(noisy)  # T is 3.8 GB there


def test_class_dependent_makes_only_the_rows_it_needs():
    classes = 21_841
    true = np.repeat([5, 20_000], 5_000)
    tracemalloc.start()
    noisy = noise.inject(true, "class_dependent", 0.4, num_classes=classes, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * classes * 8
    assert 0.1 < noisy.realised_rate < 0.7


def test_noise_is_imported_without_torch_or_matplotlib():
    code = "import sys, noisebench.noise; print([m for m in ('torch', 'matplotlib', 'scipy') if m in sys.modules])"
    root = Path(noise.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- description


@pytest.mark.parametrize(
    ("kind", "rate", "options", "label"),
    [
        ("none", None, {}, "clean"),
        ("symmetric", 0.4, {}, "symmetric 40% (excl. true)"),
        ("symmetric", 0.8, {"include_true": True}, "symmetric 80% (incl. true)"),
        ("symmetric", 0.07, {"include_true": False}, "symmetric 7% (excl. true)"),
        ("asymmetric", 0.4, {}, "asymmetric 40%"),
        ("pairflip", 0.45, {}, "pairflip 45%"),
        ("instance", 0.125, {}, "instance 12.5%"),
        ("class_dependent", 0.4, {}, "class_dependent 40%"),
        ("class_dependent", None, {"trace": 6, "matrix_seed": 3}, "class_dependent trace 6 (matrix 3)"),
        ("matrix", None, {"T": "/data/T/web.npy"}, "matrix T/web.npy"),
        ("file", None, {"path": "cifar-n/worse.npy"}, "file cifar-n/worse.npy"),
    ],
)
def test_description(kind, rate, options, label):
    assert noise.describe(kind, rate, **options) == label


def test_the_two_asymmetric_noises_of_several_labels_are_told_apart() -> None:
    missing, false = (noise.describe("asymmetric", 0.3, mapping=mapping) for mapping in ({1: 0}, {"0": 1}))
    assert (missing, false) == ("asymmetric 30% (1 to 0)", "asymmetric 30% (0 to 1)")
    assert noise.describe("asymmetric", 0.3, mapping={1: 0, 2: 0}) == noise.describe("asymmetric", 0.3)


def test_two_matrices_of_one_rate_have_two_descriptions():
    other = [[0.6, 0.4, 0], [0, 0.8, 0.2], [0.1, 0.2, 0.7]]
    first, second = (noise.describe("matrix", None, T=matrix) for matrix in (OWN, other))
    assert first.startswith("matrix 30% (")
    assert first != second


def test_help_for_every_kind():
    assert set(noise.KINDS) == {
        *("none", "symmetric", "pairflip", "asymmetric", "class_dependent", "matrix", "instance", "file", "open_set"),
        *("real", "matched"),
    }
    assert all(str(kind) == kind.summary and all(kind.options.values()) for kind in noise.KINDS.values())
    assert set(noise.KINDS["class_dependent"].options) == {"trace", "matrix_seed"}


def test_include_true_is_said():
    labels = balanced(100, 10)
    assert noise.inject(labels, "symmetric", 0.8, num_classes=10, seed=0, include_true=True).include_true is True
    assert noise.inject(labels, "symmetric", 0.8, num_classes=10, seed=0).include_true is False
    assert noise.inject(labels, "pairflip", 0.8, num_classes=10, seed=0).include_true is None


# ---------------------------------------------------------------- artefact


@pytest.mark.parametrize("case", CASES)
def test_artefact_round_trip(tmp_path, case):
    true = balanced(300, 10)
    noisy = injected(case, true)
    folder = noise.save(noisy, tmp_path / "noise" / "a", true_labels=true)
    loaded = noise.load(folder)
    np.testing.assert_array_equal(loaded.labels, noisy.labels)
    np.testing.assert_array_equal(loaded.transition, noisy.transition)
    names = ("kind", "rate", "realised_rate", "expected_rate", "include_true", "seed", "num_classes", "description")
    for name in (*names, "sha256", "options"):
        assert getattr(loaded, name) == getattr(noisy, name), name
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == ["noise.json", "noise.npz"]


def test_what_the_artefact_says(tmp_path):
    true = balanced(1_000, 10)
    noisy = noise.inject(true, "asymmetric", 0.4, num_classes=10, seed=3, mapping={9: 1})
    folder = noise.save(noisy, tmp_path / "a", name="digits", true_labels=true)
    assert folder == tmp_path / "a"
    facts = json.loads((folder / "noise.json").read_text())
    assert facts.pop("noisebench")
    assert facts.pop("transition_sha256") == hashlib.sha256(noisy.transition.tobytes()).hexdigest()
    assert facts == {
        "name": "digits",
        "description": "asymmetric 40%",
        "kind": "asymmetric",
        "rate": 0.4,
        "expected_rate": pytest.approx(0.04),
        "realised_rate": noisy.realised_rate,
        "include_true": None,
        "options": {"mapping": {"9": 1}},
        "seed": 3,
        "num_classes": 10,
        "num_samples": 1_000,
        "sha256": hashlib.sha256(noisy.labels.astype("<i8").tobytes()).hexdigest(),
        "true_sha256": hashlib.sha256(true.astype("<i8").tobytes()).hexdigest(),
    }


def test_artefact_with_many_classes_stores_no_matrix(tmp_path):
    noisy = noise.inject(balanced(3_000, 1_001), "pairflip", 0.4, num_classes=1_001, seed=0)
    folder = noise.save(noisy, tmp_path / "a")
    with np.load(folder / "noise.npz") as stored:
        assert stored.files == ["labels"]
    np.testing.assert_allclose(np.diag(noise.load(folder).transition), 0.6)
    features = np.ones((3_000, 2))
    instance = noise.inject(balanced(3_000, 1_001), "instance", 0.4, num_classes=1_001, seed=0, features=features)
    with pytest.raises(UserError, match="keeps T up to 1000 classes, not 1001"):
        _ = noise.load(noise.save(instance, tmp_path / "b")).transition


def test_an_artefact_that_is_there_is_left(tmp_path):
    noisy = injected("symmetric", balanced(100, 10))
    folder = tmp_path / "a"
    folder.mkdir()  # an empty one is no artefact
    assert noise.save(noisy, folder) == folder
    before = (folder / "noise.json").stat().st_mtime_ns, (folder / "noise.json").stat().st_ino
    assert noise.save(noisy, folder) == folder
    assert ((folder / "noise.json").stat().st_mtime_ns, (folder / "noise.json").stat().st_ino) == before


def test_losing_the_race_to_write_is_no_error(tmp_path, monkeypatch):
    noisy = injected("symmetric", balanced(100, 10))
    winner = noise.save(noisy, tmp_path / "winner")

    def late(self: Path, target: Path) -> None:
        shutil.copytree(winner, target)
        raise OSError("directory not empty")

    monkeypatch.setattr(Path, "rename", late)
    folder = noise.save(noisy, tmp_path / "noise" / "loser")
    assert noise.load(folder).sha256 == noisy.sha256
    assert len(list(folder.parent.iterdir())) == 1


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="no space"):
        noise.save(injected("symmetric", balanced(100, 10)), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def _change_labels(file: Path) -> None:
    with np.load(file) as stored:
        arrays = dict(stored)
    arrays["labels"][0] = (arrays["labels"][0] + 1) % 10
    np.savez_compressed(file, **arrays)


def _change_transition(file: Path) -> None:
    with np.load(file) as stored:
        arrays = dict(stored)
    arrays["transition"][0] = arrays["transition"][1]
    np.savez_compressed(file, **arrays)


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(bytes(content))


def _pickle(file: Path) -> None:
    np.savez_compressed(file, labels=np.array([{}]), transition=np.eye(2))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("noise.npz", Path.unlink, "is missing"),
        ("noise.json", Path.unlink, "is missing"),
        ("noise.npz", _truncate, "is truncated or changed"),
        ("noise.json", _truncate, "is truncated or changed"),
        ("noise.json", lambda file: file.write_text("[]"), "is truncated or changed"),
        ("noise.npz", _change_labels, "its labels do not have the SHA-256"),
        ("noise.npz", _change_transition, "its transition do"),
        ("noise.npz", _flip_a_bit, "changed"),
        ("noise.npz", _pickle, "is truncated or changed"),
    ],
)
def test_a_damaged_artefact_is_named(tmp_path, name, damage, message):
    noisy = injected("symmetric", balanced(2_000, 10))
    folder = noise.save(noisy, tmp_path / "a")
    damage(folder / name)
    for attempt in (lambda: noise.load(folder), lambda: noise.save(noisy, folder)):
        with pytest.raises(UserError, match=message) as error:
            attempt()
        assert str(folder / name) in str(error.value)


def test_other_labels_in_the_way_are_not_overwritten(tmp_path):
    first, second = (injected("symmetric", balanced(100, 10), seed) for seed in (0, 1))
    noise.save(first, tmp_path / "a")
    with pytest.raises(UserError, match="holds other labels"):
        noise.save(second, tmp_path / "a")
    assert noise.load(tmp_path / "a").sha256 == first.sha256


@pytest.mark.parametrize(("classes", "names"), [(3, ["cat", "dog", "aeroplane"]), (10, None), (100, None)])
def test_drawing(tmp_path, classes, names):
    from matplotlib.image import imread

    true = balanced(400, classes - 1)  # the last class has no samples
    noisy = noise.inject(true, "symmetric", 0.4, num_classes=classes, seed=0)
    noise.draw_transition(noisy.transition, noisy.realised_transition(true), tmp_path / "T.png", class_names=names)
    image = imread(tmp_path / "T.png")
    assert image.shape[1] > image.shape[0] > 300
    assert np.ptp(image[..., :3]) > 0.5


def test_drawing_checks_what_it_gets(tmp_path):
    with pytest.raises(UserError, match=r"shapes \(2, 2\) and \(3, 3\)"):
        noise.draw_transition(np.eye(2), np.eye(3), tmp_path / "T.png")
    with pytest.raises(UserError, match="1 names do not fit 2 classes"):
        noise.draw_transition(np.eye(2), np.eye(2), tmp_path / "T.png", class_names=["cat"])


# ---------------------------------------------------------------- messages

BAD_ARGUMENTS = [
    ("symetric", 0.4, {}, "noise kind 'symetric' is unknown; did you mean symmetric"),
    (None, 0.4, {}, "noise kind 'None' is unknown"),
    ("symmetric", 0.4, {"include_tru": True}, "option 'include_tru' is unknown; did you mean include_true"),
    ("pairflip", 0.4, {"mapping": {}}, "noise 'pairflip' takes no options, but 'mapping' was given"),
    ("symmetric", None, {}, "rate: missing; noise 'symmetric' needs a rate in [0, 1]"),
    ("symmetric", "40%", {}, "rate: '40%' is not a number"),
    ("symmetric", True, {}, "rate: True is not a number"),
    ("symmetric", -0.1, {}, "rate: -0.1 is out of range; it must be in [0, 1]"),
    ("symmetric", float("nan"), {}, "rate: nan is out of range"),
    ("pairflip", 40, {}, "rate: 40 is out of range; it must be in [0, 1] (did you mean 0.4?)"),
    ("symmetric", 0.7, {}, "excluding the true label allows for 3 classes, (K-1)/K = 0.666667"),
    ("symmetric", 0.4, {"include_true": "yes"}, "include_true: 'yes' is not true or false"),
    ("none", 0.4, {}, "rate: 0.4 was given, but noise 'none' has rate 0"),
    ("instance", 0.0, {}, "rate: 0 would still flip 8%"),
    ("asymmetric", 0.4, {}, "mapping: missing; noise 'asymmetric' needs {true class: noisy class, ...}"),
    ("asymmetric", 0.4, {"mapping": {}}, "mapping: {} is not a class map"),
    ("asymmetric", 0.4, {"mapping": [1, 2]}, "mapping: [1, 2] is not a class map"),
    ("asymmetric", 0.4, {"mapping": {0: 3}}, "mapping: class 3 is out of range; classes are 0..2"),
    ("asymmetric", 0.4, {"mapping": {-1: 0}}, "mapping: class -1 is out of range"),
    ("asymmetric", 0.4, {"mapping": {"cat": 0}}, "mapping: 'cat' is not an integer"),
    ("asymmetric", 0.4, {"mapping": {0: 1.0}}, "mapping: 1.0 is not an integer"),
    ("asymmetric", 0.4, {"mapping": {1: 1}}, "mapping: class 1 maps to itself"),
    ("asymmetric", 0.4, {"mapping": {"1": 0, 1: 2}}, "mapping: class 1 is given twice"),
    ("class_dependent", None, {}, "rate: missing"),
    ("class_dependent", None, {"trace": 3.5}, "trace: 3.5 is out of range; it must be in [0, 3] for 3 classes"),
    ("class_dependent", None, {"trace": -1}, "trace: -1 must be a number in [0, K]"),
    ("class_dependent", 0.4, {"trace": 1.5}, "rate: 0.4 and trace: 1.5 disagree (that trace is rate 0.5)"),
    ("class_dependent", 0.4, {"matrix_seed": 1.5}, "matrix_seed: 1.5 is not an integer"),
    ("matrix", 0.4, {"T": OWN}, "rate: 0.4 was given, but the rate of noise 'matrix' comes from T"),
    ("matrix", None, {}, "T: missing"),
    ("matrix", None, {"T": [[0.5, 0.5]]}, "T: shape (1, 2) is not square"),
    ("matrix", None, {"T": [[1.0, 0], [0, 1.0]]}, "T: 2 x 2 does not fit 3 classes"),
    ("matrix", None, {"T": [["a"]]}, "T: cannot be read as a matrix of numbers"),
    ("matrix", None, {"T": [[1, 0, 0], [0.5, 0.6, -0.1], [0, 0, 1]]}, "T: entry [1, 2] is -0.1"),
    ("matrix", None, {"T": [[1, 0, 0], [0, 1, 0], [float("nan"), 0, 1]]}, "T: entry [2, 0] is nan"),
    ("matrix", None, {"T": [[1, 0, 0], [0.5, 0.6, 0.1], [0, 0, 1]]}, "T: row 1 sums to 1.2; every row must sum to 1"),
    ("matrix", None, {"T": "T.mat"}, "T: 'T.mat' must end in .npy, .csv or .txt"),
    ("matrix", None, {"T": "nowhere.npy"}, "T: no such file 'nowhere.npy'"),
    ("file", 0.2, {"path": "a.npy"}, "rate: 0.2 was given, but the rate of noise 'file' comes from path"),
    ("file", None, {}, "path: missing"),
    ("file", None, {"path": 3}, "path: 3 is not a path"),
    ("file", None, {"path": "a.pt"}, "path: 'a.pt' must end in .npy, .npz, .txt or .csv"),
    ("file", None, {"path": "nowhere.npy"}, "path: no such file 'nowhere.npy'"),
]


@pytest.mark.parametrize(("kind", "rate", "options", "message"), BAD_ARGUMENTS)
def test_a_mistake_is_named_with_and_without_labels(kind, rate, options, message):
    features = np.ones((3, 2))
    for attempt in (
        lambda: noise.check(kind, rate, options, num_classes=3),
        lambda: noise.inject([0, 1, 2], kind, rate, num_classes=3, seed=0, features=features, **options),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        assert message in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", CASES)
def test_check_takes_what_inject_takes(case):
    rate, options = CASES[case]
    noise.check(case.split(",")[0], rate, options)
    noise.check(case.split(",")[0], rate, options, num_classes=10)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "labels: empty"),
        ([[0, 1]], "labels: shape (1, 2) is not [N]"),
        ([[0], [1, 2]], "labels: cannot be read"),
        ([0.0, 1.0], "labels: dtype float64 is not an integer type"),
        ([True, False], "labels: dtype bool is not an integer type"),
        (["cat"], "labels: dtype <U3 is not an integer type"),
        ([0, 1, 3, 4], "labels: index 2 has class 3; it must be in 0..2 for 3 classes"),
        ([0, -1], "labels: index 1 has class -1"),
        (np.array([0, 2**64 - 1], dtype=np.uint64), "labels: index 1 has class 18446744073709551615"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(UserError) as error:
        noise.inject(labels, "symmetric", 0.4, num_classes=3, seed=0)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (None, "features: missing; noise 'instance' needs"),
        (np.ones((2, 4)), "features: shape (2, 4) does not fit; it must be [3, ...]"),
        (np.ones(3), "features: shape (3,) does not fit"),
        (np.ones((3, 4), dtype=np.int64), "features: dtype int64 must be uint8 or float"),
        (np.array([[1.0], [np.nan], [1.0]]), "features: sample 1 is not finite"),
    ],
)
def test_bad_features(features, message):
    with pytest.raises(UserError) as error:
        noise.inject([0, 1, 2], "instance", 0.4, num_classes=3, seed=0, features=features)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", np.array([0, 1]), "has 2 labels, but the data set has 3"),
        ("a.npy", np.array([0, 1, 9]), "index 2 has class 9; it must be in 0..2 for 3 classes"),
        ("a.npy", np.array([0.0, 1, 2]), "dtype float64 is not an integer type"),
        ("a.npy", np.array([{}, {}, {}]), "is not a readable .npy file of plain numbers"),
        ("a.npy", "not an array", "is not a readable .npy file of plain numbers"),
        ("a.npz", {"noisy": np.array([0, 1, 2])}, "has no array 'labels'; it has noisy"),
        ("a.txt", "", "is empty"),
        ("a.txt", "0\n1.5\n2", "has 1.5 at index 1; class numbers are integers"),
        ("a.txt", "0\ncat\n2", "is not a table of numbers"),
        ("a.csv", "index,label\n0,1\n1,2\n2,0", "has 2 columns; one label a line is needed"),
        ("a.csv", "label\n0\n1\n-1", "index 2 has class -1"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content)
    with pytest.raises(UserError) as error:
        noise.inject([0, 1, 2], "file", num_classes=3, seed=0, path=path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_other_arguments_are_named():
    with pytest.raises(UserError, match="num_classes: 1 is too small; it must be at least 2"):
        noise.transition_matrix("pairflip", 0.4, 1)
    with pytest.raises(UserError, match=r"num_classes: 3\.0 is not an integer"):
        noise.inject([0], "pairflip", 0.4, num_classes=3.0, seed=0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="seed: None is not an integer"):
        noise.inject([0], "pairflip", 0.4, num_classes=3, seed=None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'instance' has no transition matrix without labels"):
        noise.transition_matrix("instance", 0.4, 3)
    noisy = noise.inject([0, 1], "pairflip", 0.4, num_classes=3, seed=0)
    for attempt in (noisy.realised_transition, lambda labels: noise.save(noisy, "nowhere", true_labels=labels)):
        with pytest.raises(UserError, match="true_labels: 1 labels do not fit 2 noisy ones"):
            attempt([0])


# ---------------------------------------------------------------- several labels a sample


def multihot(samples: int = 3_000, classes: int = 4, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((samples, classes)) < 0.3).astype(np.uint8)


ENTRYWISE = {
    "none": (None, {}),
    "symmetric": (0.1, {}),
    "pairflip": (0.2, {}),
    "asymmetric": (0.3, {"mapping": {1: 0}}),
    "class_dependent": (0.2, {}),
    "matrix": (None, {"T": [[0.98, 0.02], [0.25, 0.75]]}),
}


@pytest.mark.parametrize("kind", ENTRYWISE)
def test_each_entry_of_multihot_labels_is_a_label_of_two_classes(kind, tmp_path):
    (rate, options), true = ENTRYWISE[kind], multihot()
    noisy = noise.inject(true, kind, rate, num_classes=4, seed=5, **options)
    plain = noise.inject(true.ravel(), kind, rate, num_classes=2, seed=5, **options)
    assert (noisy.labels.dtype, noisy.num_classes, noisy.states) == (np.uint8, 4, 2)
    np.testing.assert_array_equal(noisy.labels.ravel(), plain.labels)
    np.testing.assert_array_equal(noisy.transition, plain.transition)
    np.testing.assert_array_equal(noisy.realised_transition(true), plain.realised_transition(true.ravel()))
    assert noisy.realised_rate == plain.realised_rate == np.mean(noisy.labels != true)
    assert (noisy.expected_rate, noisy.description) == (plain.expected_rate, plain.description)
    assert abs(noisy.realised_rate - noisy.expected_rate) <= 5 * math.sqrt(0.25 / true.size)
    assert noisy.sha256 == hashlib.sha256(noisy.labels.tobytes()).hexdigest()

    folder = noise.save(noisy, tmp_path / "a", true_labels=true)
    found, facts = noise.load(folder), json.loads((folder / "noise.json").read_text())
    np.testing.assert_array_equal(found.labels, noisy.labels)
    np.testing.assert_array_equal(found.transition, noisy.transition)
    assert (found.labels.dtype, found.states, found.sha256) == (np.uint8, 2, noisy.sha256)
    assert (facts["multilabel"], facts["num_classes"], facts["num_samples"]) == (True, 4, 3_000)
    assert facts["true_sha256"] == hashlib.sha256(true.tobytes()).hexdigest() == noise.sha256_of(true)
    noise.draw_transition(found.transition, found.realised_transition(true), tmp_path / "t.png", ["absent", "present"])
    assert noise.save(noisy, folder) == folder


def test_labels_that_go_missing_and_labels_that_are_false():
    true = multihot()
    missing = noise.inject(true, "asymmetric", 0.3, num_classes=4, seed=0, mapping={1: 0}).labels
    false = noise.inject(true, "asymmetric", 0.3, num_classes=4, seed=0, mapping={0: 1}).labels
    assert not (missing & ~true).any()
    assert np.mean(missing[true == 1] == 0) == pytest.approx(0.3, abs=0.04)
    assert (false[true == 1] == 1).all()
    assert np.mean(false[true == 0]) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 5), np.uint8), "labels: shape (2, 5) is not [N], one integer for each sample, nor [N, 3]"),
        (np.zeros((0, 3), np.uint8), "labels: empty"),
        (np.array([[0, 1, 2]]), "labels: entry [0, 2] is 2; multi-hot labels are 0 or 1"),
        (np.array([[0, 1, -1]]), "labels: entry [0, 2] is -1"),
        (np.array([[0.0, 1.0, 0.5]]), "labels: dtype float64 is not an integer type; 0 and 1"),
        (np.zeros((2, 3, 3), int), "labels: shape (2, 3, 3) is not [N]"),
    ],
)
def test_bad_multihot_labels(labels, message):
    with pytest.raises(UserError) as error:
        noise.inject(labels, "symmetric", 0.4, num_classes=3, seed=0)
    assert message in str(error.value)


def test_a_mistake_about_several_labels_is_named_with_and_without_labels():
    for kind, rate, options, message in [
        ("instance", 0.4, {}, "noise 'instance' is for one label a sample, and here are several; use none, symmetric,"),
        ("symmetric", 0.6, {}, "for 2 classes, (K-1)/K = 0.5"),
        ("asymmetric", 0.3, {"mapping": {2: 0}}, "mapping: class 2 is out of range; classes are 0..1"),
        ("matrix", None, {"T": np.eye(4)}, "T: 4 x 4 does not fit 2 classes"),
    ]:
        for attempt in (
            lambda k=kind, r=rate, o=options: noise.inject(multihot(9), k, r, num_classes=4, seed=0, **o),
            lambda k=kind, r=rate, o=options: noise.check(k, r, o, 4, multilabel=True),
            lambda k=kind, r=rate, o=options: noise.check(k, r, o, None, multilabel=True),
        ):
            with pytest.raises(UserError) as error:
                attempt()
            assert message in str(error.value)
    noisy = noise.inject(multihot(9), "none", num_classes=4, seed=0)
    with pytest.raises(UserError, match=r"true_labels: \[8, 4\] labels do not fit \[9, 4\] noisy ones"):
        noisy.realised_transition(multihot(8))


def test_multihot_labels_from_a_file(tmp_path):
    true, wrong = multihot(50), multihot(50, seed=1)
    np.save(tmp_path / "a.npy", wrong)
    np.savez(tmp_path / "a.npz", labels=wrong)
    for name in ("a.npy", "a.npz"):
        noisy = noise.inject(true, "file", num_classes=4, seed=0, path=tmp_path / name)
        np.testing.assert_array_equal(noisy.labels, wrong)
        np.testing.assert_allclose(noisy.transition, noisy.realised_transition(true))
        assert noisy.realised_rate == np.mean(true != wrong)
    for labels, content, message in [
        (true, wrong[:40], "has [40, 4] labels, but the data set has [50, 4]"),
        (true, wrong.T, "has [4, 50] labels, but the data set has [50, 4]"),
        (true, wrong.ravel(), "has [200] labels, but the data set has [50, 4]"),
        (balanced(50, 4), wrong, "has [50, 4] labels, but the data set has [50]"),
        (true, wrong * 3, "is 3; multi-hot labels are 0 or 1"),
    ]:
        np.save(tmp_path / "b.npy", content)
        with pytest.raises(UserError) as error:
            noise.inject(labels, "file", num_classes=4, seed=0, path=tmp_path / "b.npy")
        assert message in str(error.value)
