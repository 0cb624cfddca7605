"""The command: what each one prints, its exit codes, and one line for every mistake."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from commands import noisebench
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from noisebench import cli, noise, registry

pytestmark = pytest.mark.usefixtures("one_picture")

ROOT = Path(__file__).parents[1]
COMMANDS = ("leaderboard", "tune", "analyse", "run", "inject", "list", "check", "data", "new")
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "NO_COLOR": "1"}

BOARD = """
datasets: [digits]
noise: [{kind: symmetric, rate: 0.4}]
seeds: [0]
methods: [ce, gce]
recipe: {epochs: 20, checkpoint_seconds: 0}
"""


@pytest.fixture(autouse=True)
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In an empty folder, without a data root, and with this process's SIGTERM left as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOISEBENCH_DATA", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


# ------------------------------------------------------------------------------------------------- help and lists


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    ran = CliRunner().invoke(cli.app, [command, "--help"])
    assert ran.exit_code == 0
    assert f"{command} [OPTIONS]" in ran.output


def test_help_names_every_command() -> None:
    ran = noisebench("--help")
    assert ran.code == 0
    assert all(command in ran.out for command in COMMANDS)


def test_list_shows_every_name_with_a_line() -> None:
    ran = noisebench("list")
    assert (ran.code, ran.err) == (0, "")
    names = {line.split()[0] for line in ran.out.splitlines() if line.strip()}
    for known in (registry.methods().entries, registry.datasets().entries, noise.KINDS, registry.benchmarks()):
        assert set(known) <= names


def test_list_of_one_kind_as_json() -> None:
    found = json.loads(noisebench("list", "methods", "--json").out)
    assert set(found) == {"methods", "problems"}
    assert {row["name"] for row in found["methods"]} == set(registry.methods().entries)
    assert all(row["summary"] and row["paper"] and row["origin"] for row in found["methods"])


def test_a_file_that_does_not_parse_is_named_on_standard_error_and_no_markup_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = registry.Registry("method", {}, ["methods/[b].py, line 1: invalid syntax [/]; the others go on"])
    monkeypatch.setattr(registry, "methods", lambda: broken)
    ran = noisebench("list", "datasets")
    assert ran.code == 0
    assert ran.err == "left out: methods/[b].py, line 1: invalid syntax [/]; the others go on\n"


# ---------------------------------------------------------------------------------------------------------- inject


def test_inject_prints_what_was_asked_and_what_came_out_and_writes_the_artefact() -> None:
    ran = noisebench("inject", "--rate", "0.4", "--out", "made")
    assert (ran.code, ran.err) == (0, "")
    stored = noise.load("made")
    assert "digits, symmetric 40% (excl. true), seed 0: 1200 labels" in ran.out
    assert "rate asked     0.4000" in ran.out
    assert f"wrong realised {stored.realised_rate:.4f}" in ran.out
    assert stored.sha256 in ran.out
    assert {file.name for file in Path("made").iterdir()} == {
        "noise.npz",
        "noise.json",
        "transition.json",
        "transition.png",
    }
    assert Path("made/transition.png").read_bytes().startswith(b"\x89PNG")


def test_inject_as_json() -> None:
    ran = noisebench("inject", "--noise", "pairflip", "--rate", "0.2", "--seed", "3", "--out", "made", "--json")
    facts = json.loads(ran.out)
    assert facts["rate_asked"] == 0.2
    assert facts["seed"] == 3
    assert facts["rate_realised"] == noise.load("made").realised_rate == pytest.approx(0.2, abs=0.04)


def test_inject_again_repeats_and_never_overwrites_other_noise() -> None:
    first = noisebench("inject", "--rate", "0.4", "--out", "made", "--json")
    assert noisebench("inject", "--rate", "0.4", "--out", "made", "--json") == first
    before = Path("made/noise.npz").read_bytes()
    other = noisebench("inject", "--rate", "0.3", "--out", "made")
    assert (other.code, other.out) == (2, "")
    assert other.err == "error: 'made' holds other labels; remove it, or write to another folder\n"
    assert Path("made/noise.npz").read_bytes() == before


def test_a_seed_among_the_options_is_the_seed() -> None:
    by_option = json.loads(noisebench("inject", "--rate", "0.4", "--option", "seed=5", "--out", "a", "--json").out)
    by_flag = json.loads(noisebench("inject", "--rate", "0.4", "--seed", "5", "--out", "b", "--json").out)
    assert by_option | {"folder": "b"} == by_flag


# ------------------------------------------------------------------------------------------------ run, check, new


def test_run_trains_once_and_reads_the_result_after_that() -> None:
    argv = ("run", "--method", "ce", "--epochs", "1", "--rate", "0.2", "--out", "o[x]")
    text = noisebench(*argv)
    assert text.code == 0
    assert "ce on digits, symmetric 20% (excl. true), seed 0" in text.out
    assert "best (oracle)" in text.out
    assert "o[x]/runs/ce-digits-symmetric" in text.out
    result = json.loads(noisebench(*argv, "--json").out)
    assert result["status"] == "finished"
    assert result["epochs"] == 1
    assert set(result["metrics"]) == {"last", "selected", "best"}
    assert len(list(Path("o[x]/runs").iterdir())) == 1


def test_data_that_is_missing_is_one_line_and_no_cell_fails_of_it() -> None:
    for command in (["run", "--dataset", "cifar10"], ["leaderboard", "cifar10-small"]):
        ran = noisebench(*command, "--epochs", "1", "--out", "o")
        assert ran.code == 2
        assert ran.err.startswith("error: CIFAR10 needs a data folder; set --data-root or NOISEBENCH_DATA")
        assert ran.err.count("\n") == 1
    assert not list(Path("o").glob("runs/*/failure.json"))


def test_a_cell_that_fails_is_one_line_and_exit_code_1() -> None:
    ran = noisebench("run", "--method", "forward", "--epochs", "1", "--out", "o")
    assert ran.code == 1
    assert ran.err == "error: forward: estimate_at is after epoch 1 of 1: T would never be used\n"


def test_check_prints_each_check_and_fails_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from noisebench import checks

    def outcomes(*args: object, **options: object) -> list[checks.Outcome]:
        return [checks.Outcome("one", "passed"), checks.Outcome("two", "failed", "because [of] it")]

    monkeypatch.setattr(checks, "check_method", outcomes)
    ran = noisebench("check", "ce")
    assert ran.code == 1
    assert ran.out.splitlines() == ["ok   one", "FAIL two", "       because [of] it"]
    assert ran.err == "error: ce: 1 of 2 checks failed\n"
    assert [row["status"] for row in json.loads(noisebench("check", "ce", "--json").out)] == ["passed", "failed"]


def test_check_of_a_dataset() -> None:
    ran = noisebench("check", "digits")
    assert ran.code == 0
    assert ran.out.count("ok") == 4


def test_new_says_what_comes_next() -> None:
    ran = noisebench("new", "my_method", "--in", "work")
    assert ran.out.splitlines()[0] == "Wrote work/my_method. Next:"
    assert Path("work/my_method/my_method.py").exists()


# ------------------------------------------------------------------------------------------- boards without a run


def test_rows_are_chosen_by_label_or_by_method() -> None:
    Path("tiny.yaml").write_text(
        BOARD.replace("[ce, gce]", "[ce, gce, {name: ensemble, hparams: {member: ce, size: 3}}]")
    )
    ran = noisebench("leaderboard", "tiny.yaml", "--rebuild", "runs", "--json", "--methods", "gce,ensemble,gce")
    assert ran.code == 0
    assert [row["label"] for row in json.loads(ran.out)["methods"]] == ["gce", "ensemble (member=ce, size=3)"]


# ------------------------------------------------------------------------------------------------------------ tune


def run_here(cells: list[Any], place: Any, jobs: int, idle: Callable[[], None], more: Callable[[], list[Any]]) -> Any:
    from noisebench.cell import run_cell

    queue = list(cells)
    while queue:
        idle()
        cell = queue.pop(0)
        yield cell, run_cell(cell, place.out, place.data_root, place.download, place.accelerator)
        queue += more()


def run_nothing(*given: Any) -> Any:
    raise AssertionError("a finished cell ran again")


def test_tune_writes_a_board_that_leaderboard_runs_and_calls_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    from noisebench import tuning

    tune = tuning.tune
    monkeypatch.setattr(tuning, "tune", functools.partial(tune, run=run_here))
    Path("tiny.yaml").write_text(BOARD)
    argv = ("tune", "tiny.yaml", "--search", "q=0.5:0.9", "--trials", "2", "--set", "recipe.epochs=1", "--out", "o[x]")
    ran = noisebench(*argv)
    assert (ran.code, ran.err) == (0, "")
    assert "tiny: 3 trials of 2 methods" in ran.out
    assert "[3/3 trials] gce #1 (q=0." in ran.out
    assert "nothing to search; run once" in ran.out
    assert ran.out.endswith("Next: noisebench leaderboard 'o[x]/boards/tiny/tuned.yaml' --out 'o[x]'\n")

    monkeypatch.setattr(tuning, "tune", functools.partial(tune, run=run_nothing))
    again = noisebench(*argv, "--json")
    found = json.loads(again.out)
    assert "tiny: 3 trials of 2 methods, 3 finished before" in again.err
    assert [(row["label"], row["trials"], row["failed"]) for row in found["rows"]] == [("ce", 1, 0), ("gce", 2, 0)]
    assert found["rows"][1]["own"] == {"q": 0.7}
    assert found["rows"][1]["after"] >= found["rows"][1]["before"]

    table = noisebench("leaderboard", "o[x]/boards/tiny/tuned.yaml", "--rebuild", "runs", "--out", "o[x]")
    note = "(tuned on the noisy validation split, seed 1000: 2 trials for gce; nothing to tune in ce)"
    assert note in " ".join(table.out.split())
    clash = noisebench("leaderboard", "o[x]/boards/tiny/tuned.yaml", "--rebuild", "runs", "--seeds", "1000")
    assert clash.err == "error: tuned.yaml: seeds: 1000 is the seed that this board was tuned on; give others\n"


def test_tune_ends_with_1_where_a_method_has_no_trial_that_ran_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from noisebench import tuning

    def failing(cells: list[Any], place: Any, jobs: int, idle: Any, more: Any) -> Any:
        for cell in cells:
            yield cell, {"status": "failed", "reason": "it [broke]"}
            assert not more()

    monkeypatch.setattr(tuning, "tune", functools.partial(tuning.tune, run=failing))
    Path("tiny.yaml").write_text(BOARD)
    ran = noisebench("tune", "tiny.yaml", "--search", "q=0.5:0.9", "--trials", "2", "--methods", "gce")
    assert ran.code == 1
    assert "failed gce #1" in ran.out
    assert "2 (2 failed)" in ran.out
    assert "Next:" not in ran.out
    assert not list(Path().rglob("tuned.yaml"))
    assert ran.err == "error: every trial of gce failed; the first: digits / symmetric 40% (excl. true): it [broke]\n"


def test_ctrl_c_says_how_far_tuning_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from noisebench import tuning

    def stopped(cells: list[Any], place: Any, jobs: int, idle: Any, more: Any) -> Any:
        yield cells[0], {"status": "failed", "reason": "x"}
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "tune", functools.partial(tuning.tune, run=stopped))
    ran = noisebench("tune", "--search", "gce.q=0.1:1.0", "--methods", "gce", "--set", "noise=[{kind: none}]")
    assert ran.code == 130
    assert ran.out.endswith("Stopped with 1/20 trials, 1 failed. The same command goes on from there.\n")


def test_help_needs_no_optuna() -> None:
    code = "import sys, noisebench.cli as cli; cli.app(['tune', '--help'], standalone_mode=False)"
    code += "; sys.exit(bool({'optuna', 'torch', 'mlflow'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


# ---------------------------------------------------------------------------------------------------------- errors


def write_inputs() -> None:
    """Files that the mistakes below name."""
    np.save("square.npy", np.eye(10))
    np.save("wide.npy", np.ones((10, 3)) / 3)
    np.save("small.npy", np.eye(4))
    np.save("negative.npy", np.eye(10) * 1.5 - 0.05)
    np.save("rows.npy", np.eye(10) * 0.9)
    np.save("short.npy", np.zeros(7, dtype=np.int64))
    np.save("floats.npy", np.zeros(1200))
    np.save("classes.npy", np.full(1200, 10))
    Path("junk.npy").write_bytes(b"junk")
    Path("bad.yaml").write_text("datasets: [digits\n")
    Path("key.yaml").write_text("datasets: [digits]\nnoise: [{kind: none}]\nmethods: [ce]\nrecipe: {epochz: 3}\n")
    Path("file").write_text("no folder")


MATRIX = ("inject", "--out", "o", "--noise", "matrix", "--option")
LABELS = ("inject", "--out", "o", "--noise", "file", "--option")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("run", "--method", "mixupp"), "did you mean mixup?"),
        (("run", "--method", "gce", "--hparam", "q=2"), "hparams.q: 2: should be less than or equal to 1"),
        (("run", "--method", "gce", "--hparam", "qq=0.5"), "hparams 'qq' is unknown; did you mean q?"),
        (("run", "--dataset", "digit"), "did you mean digits"),
        (("run", "--noise", "symetric"), "did you mean symmetric"),
        (("run", "--set", "recipe.epoch=3"), "did you mean recipe.epochs"),
        (("run", "--set", "recipe.epochs"), "expected KEY=VALUE"),
        (("run", "--epochs", "0"), "recipe.epochs: 0: should be greater than or equal to 1"),
        (("run", "--rate", "40"), "rate: 40 is out of range; it must be in [0, 1] (did you mean 0.4?)"),
        (("run", "--set", "methods=[ce, gce]"), "run trains one cell, and this makes 2"),
        (("run", "--method", "a\nb"), "method 'a\\nb' is unknown"),
        (("run", "--out", "file/x", "--epochs", "1"), "Not a directory"),
        (("leaderboard", "digitz"), "did you mean digits"),
        (("leaderboard", "gone.yaml"), "gone.yaml: no such file"),
        (("leaderboard", "bad.yaml"), "bad.yaml, line 2: not valid YAML"),
        (("leaderboard", "key.yaml"), "key 'recipe.epochz' is unknown; did you mean recipe.epochs"),
        (("leaderboard", "--methods", "ce,gcee"), "--methods: row 'gcee' is unknown; did you mean gce"),
        (("leaderboard", "--methods", " , "), "--methods: no row is named"),
        (("leaderboard", "--seeds", "0,x"), "seeds.1: 'x'"),
        (("leaderboard", "--seeds", "0,0"), "seeds: '0' is listed twice"),
        (("tune", "--methods", "ce"), "ce search nothing by themselves; give --search METHOD.KEY=LOW:HIGH, say"),
        (("tune", "--search", "gce.q=1:0.5"), "--search gce.q=1:0.5: range 1:0.5: the low end must be below the high"),
        (
            ("tune", "--search", "gce.q=0.5:3"),
            "search of 'gce', q in 0.5:3.0: hparams.q: 3.0: should be less than or equal",
        ),
        (("tune", "--search", "gce.qq=0:1"), "setting 'qq' is unknown; did you mean q"),
        (("tune", "--search", "gce.q"), "expected KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=[a, b, c]"),
        (("tune", "--search", "gce.q=0.1:1", "--seed", "1"), "--seed 1 is one of the board's seeds"),
        (("tune", "--search", "gce.q=0.1:1", "--set", "recipe.validation=0"), "tuning needs a noisy validation split"),
        (("inject", "--out", "o", "--dataset", "digit"), "did you mean digits"),
        (("inject", "--out", "o", "--dataset", "cifar10", "--rate", "0.4"), "set --data-root or NOISEBENCH_DATA"),
        (("inject", "--out", "o"), "rate: missing"),
        (("inject", "--out", "o", "--rate", "nan"), "rate"),
        (("inject", "--out", "o", "--rate", "-0.1"), "rate: -0.1 is out of range; it must be in [0, 1]"),
        (("inject", "--out", "o", "--rate", "0.4", "--option", "include_truth=true"), "did you mean include_true"),
        (("inject", "--out", "file", "--rate", "0.4"), "file"),
        ((*MATRIX, "T=wide.npy"), "shape (10, 3) is not square"),
        ((*MATRIX, "T=small.npy"), "4 x 4 does not fit 10 classes"),
        ((*MATRIX, "T=negative.npy"), "entry [0, 1] is -0.05"),
        ((*MATRIX, "T=rows.npy"), "row 0 sums to 0.9"),
        ((*MATRIX, "T=junk.npy"), "'junk.npy' is not a readable .npy file"),
        ((*MATRIX, "T=gone.npy"), "T: no such file 'gone.npy'"),
        ((*LABELS, "path=short.npy"), "7"),
        ((*LABELS, "path=floats.npy"), "dtype float64 is not an integer type"),
        ((*LABELS, "path=classes.npy"), "index 0 has class 10; it must be in 0..9 for 10 classes"),
        (("check", "gcee"), "did you mean gce"),
        (("new", "My-Method"), "'My-Method' cannot name a method"),
        (("new", "mine", "--in", "file"), "file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(argv: tuple[str, ...], says: str) -> None:
    write_inputs()
    before = set(Path().iterdir())
    ran = noisebench(*argv)
    assert ran.code == 2
    assert says in ran.err
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert ran.out == ""
    assert set(Path().iterdir()) <= before | {Path("o")}
    assert not Path("o/noise.npz").exists()


def test_a_mistake_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "noisebench.cli", "list", "method"]
    ran = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    command[-2:] = ["leaderboard", "digitz"]
    ran = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    assert "did you mean digits" in ran.stderr


def test_a_reader_that_leaves_early_sees_no_traceback() -> None:
    command = f"'{sys.executable}' -m noisebench.cli list | head -1"
    ran = subprocess.run(command, shell=True, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip(), ran.stderr) == (0, "methods", "")


# ------------------------------------------------------------------------------------------------- stop and go on


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tiny.yaml").write_text(BOARD)
    command = [sys.executable, "-m", "noisebench.cli", "leaderboard", "tiny.yaml", "--jobs", "1", "--device", "cpu"]
    environment = os.environ | ENVIRONMENT

    def heed_ctrl_c() -> None:  # which what a shell starts in the background ignores, and so would its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=heed_ctrl_c, **pipes) as process:
        try:
            saved: list[Path] = []
            until = time.monotonic() + 600
            while not saved and time.monotonic() < until and process.poll() is None:
                time.sleep(0.02)
                saved = list(Path("noisebench-runs/runs").glob("ce-*/checkpoint.pt"))
            assert saved, process.poll()
            lines = saved[0].with_name("metrics.jsonl")
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
            out, err = process.communicate(timeout=600)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert "The same command goes on from there." in out
    assert "Traceback" not in out + err
    before = lines.read_bytes()
    assert before.count(b"\n") < 20

    monkeypatch.setattr("noisebench.tracking.start", lambda *given: SimpleNamespace(finish=lambda: None))  # saves time
    ran = noisebench(*command[3:])
    assert ran.code == 0, ran.err
    assert lines.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    for file in Path("noisebench-runs/runs").glob("*/metrics.jsonl"):
        assert [json.loads(line)["epoch"] for line in file.read_text().splitlines()] == list(range(1, 21))
    log = next(Path("noisebench-runs/runs").glob("ce-*/log.txt")).read_text()
    assert "resumed after epoch" in log
    assert Path("noisebench-runs/boards/tiny/leaderboard.csv").exists()


# ------------------------------------------------------------------------------------------- whatever is typed in

JUNK = st.one_of(
    st.sampled_from([
        "", "0", "-1", "0.4", "1e9", "nan", "inf", "ce", "gce", "digits", "cifar10", "symmetric", "matrix", "file",
        "class_dependent", "instance", "=", "a=b", "rate=", "T=[[1]]", "T=[[0.5, 0.5], [0, 1]]", "path=.", "mapping=3",
        "mapping={0: 1}", "trace=9", "seed=-1", "kind=none", "recipe=3", "recipe.lr=.inf", "recipe.schedule.kind=x",
        "methods=all", "methods=[{name: gce, hparams: {q: 3}}]", "noise=[]", "datasets=[[1]]", "x.y.z=1", "member=elr",
        "seeds=[1e400]", "recipe.validation=0.999", "title=[/b]", "name=../x", "file", "made", "[/]", "{x: *y}",
    ]),
    st.text(st.characters(exclude_characters="/\\.\0", exclude_categories=["Cs"]), max_size=12),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(repr),
)  # fmt: skip
NEVER = {"--help", "--download", "--rebuild", "--version", "--out", "--install-completion", "--show-completion"}


def options_of(command: str) -> list[str]:
    group: Any = typer.main.get_command(cli.app)
    return sorted(
        {name for param in group.commands[command].params for name in param.opts if name.startswith("--")} - NEVER
    )


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from(["inject", "run", "leaderboard"]))
    argv = [command]
    if command == "leaderboard":
        argv += ["--rebuild", "runs", *draw(st.lists(JUNK, max_size=1))]
    else:
        argv += ["--out", draw(st.sampled_from(["made", "file", "file/below", ""]))]
    for name in draw(st.lists(st.sampled_from(options_of(command)), max_size=4)):
        argv += [name] if name == "--json" else [name, draw(JUNK)]
    return argv


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(command_lines())
@example(["inject", "--out", "", "--rate", "0.4"])
@example(["run", "--out", "file"])
@example(["leaderboard", "--rebuild", "runs", "--methods", ","])
def test_nothing_that_is_typed_in_gives_a_traceback(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    from noisebench import cell

    def instead_of_training(cell: Any, *place: object) -> dict[str, Any]:
        found = {"accuracy": 0.5, "epoch": 1}
        return {
            "status": "finished", "label": cell.method.label, "dataset": cell.dataset, "noise": cell.noise.label,
            "metrics": {"last": found, "best": found},
        }  # fmt: skip

    monkeypatch.setattr(cell, "run_cell", instead_of_training)
    monkeypatch.setattr(noise, "draw_transition", lambda *given: None)
    Path("file").write_text("no folder")
    ran = noisebench(*argv)
    assert ran.code in (0, 2), ran.err
    assert "Traceback" not in ran.err
    if ran.err.startswith("error:"):
        assert ran.err.count("\n") == 1
