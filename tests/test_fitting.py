"""`noisebench.fit` and `noisebench.leaderboard` from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import noisebench
from noisebench.checks import sample_data
from noisebench.errors import UserError

pytestmark = pytest.mark.usefixtures("one_picture")

QUICK = {"epochs": 2, "batch_size": 32}


def test_fit_by_name_is_repeatable_and_gives_the_three_numbers() -> None:
    first = noisebench.fit("ce", "digits", "symmetric", 0.4, seed=1, recipe=QUICK)
    again = noisebench.fit("ce", "digits", "symmetric", 0.4, seed=1, recipe=QUICK)
    assert set(first.metrics) == {"last", "selected", "best"}
    assert first.weights_sha256 == again.weights_sha256
    assert len(first.history) == 2
    assert first.noise.realised_rate == pytest.approx(0.4, abs=0.05)


def test_fit_takes_classes_and_data_of_one_s_own() -> None:
    from noisebench.assembly import method_class

    found = noisebench.fit(method_class("gce"), sample_data(), "pairflip", 0.2, hparams={"q": 0.5}, recipe=QUICK)
    assert found.method.hparams.q == 0.5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "cee"}, "method 'cee' is unknown; did you mean ce?"),
        ({"method": 3}, "expected a name or a Method class"),
        ({"dataset": "digit"}, "did you mean digits?"),
        ({"noise": "symmetrical"}, "did you mean symmetric"),
        ({"noise": "symmetric", "rate": 2.0}, "rate"),
        ({"recipe": {"epoch": 2}}, "did you mean epochs"),
        ({"method": "gce", "hparams": {"p": 1}}, "hparams 'p' is unknown"),
        ({"method": "gce", "hparams": {"q": 3}}, r"hparams\.q: 3: should be less than or equal to 1"),
    ],
)
def test_mistakes_are_one_clear_line(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        noisebench.fit(**{"method": "ce", "dataset": "digits", "recipe": QUICK} | arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_seed_of_the_noise_s_own_is_taken_and_threads_are_given_back() -> None:
    import torch

    torch.set_num_threads(2)
    found = [
        noisebench.fit("ce", sample_data(), "pairflip", 0.4, recipe=QUICK, noise_options={"seed": seed}).noise.sha256
        for seed in (5, 6)
    ]
    assert found[0] != found[1]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_a_script_without_a_main_guard_can_run_a_board(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import noisebench\nprint('once')\n"
        "settings = ['recipe.epochs=1', 'seeds=[0]', 'methods=[ce]']\n"
        f"print(noisebench.leaderboard('digits', out={str(tmp_path / 'out')!r}, settings=settings).to_markdown())\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.count("once") == 1
    assert "failed" not in done.stdout


def test_names_of_the_package_are_functions_whatever_was_imported_before() -> None:
    import noisebench.board
    import noisebench.fitting

    assert callable(noisebench.fit)
    assert callable(noisebench.leaderboard)


def test_leaderboard_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The script above has a sender, which takes seconds.
    monkeypatch.setattr("noisebench.tracking.start", lambda *given: SimpleNamespace(finish=lambda: None))
    table = noisebench.leaderboard(
        "digits", out=tmp_path, jobs=1, settings=["recipe.epochs=1", "seeds=[0]", "methods=[ce]"]
    )
    assert "ce" in table.to_markdown()
    assert (tmp_path / "boards" / "digits" / "leaderboard.json").exists()
