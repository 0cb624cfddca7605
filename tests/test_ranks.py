"""Runs of several ranks: one process with the whole batch is what they must agree with."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from clusters import alive, until
from torch import Tensor
from torch.nn import functional as F

from noisebench import registry
from noisebench.assembly import Setup, method_class
from noisebench.cell import run_cell, weights_sha256
from noisebench.checks import RECIPE, check_method, sample_data
from noisebench.config import Benchmark, Cell, Recipe, build
from noisebench.errors import TrainingFailed, UserError
from noisebench.fitting import Memory
from noisebench.launching import launch
from noisebench.method import Batch, Classifier, Task
from noisebench.noise import inject
from noisebench.ranks import Group, join
from noisebench.seats import Seat, is_first, seat_for, seat_in
from noisebench.training import Run, train_epoch

DATA = sample_data()  # 84 images after the split
NOISY = inject(DATA.train_labels, "symmetric", 0.4, num_classes=4, seed=1)
OUTLIERS = inject(DATA.train_labels, "open_set", 0.4, num_classes=4, seed=1, labelled=0.5, source=96)
NAMES = [n for n in registry.methods().entries if not method_class(n).coupled_with(method_class(n).Hparams())]
"""Methods whose loss is a mean over samples."""


class Plain(Classifier):
    """Cross-entropy."""

    name = "plain"

    def loss(self, batch: Batch, run: Run) -> Tensor:
        return F.cross_entropy(self(batch.x), batch.y)


class Centre(Plain):
    """A buffer that each rank would update from its own share; `share` says whether it asks the others."""

    share = True

    def build(self, task: Task) -> None:
        super().build(task)
        self.register_buffer("centre", torch.zeros(()))

    def after_step(self, batch: Batch, run: Run) -> None:
        labels = run.gather(batch.y) if self.share else batch.y
        self.centre.lerp_(labels.float().mean(), 0.5)


class Diverges(Centre):
    share = False


class Counts(Plain):
    """Counts of its own on each rank, which have the same sum; and small integers, which no backend takes."""

    def build(self, task: Task) -> None:
        super().build(task)
        self.register_buffer("kinds", torch.zeros(task.num_train, dtype=torch.int16))
        self.register_buffer("counts", torch.zeros(task.num_classes, dtype=torch.int64))

    def after_step(self, batch: Batch, run: Run) -> None:
        self.kinds[batch.index] = batch.y.to(torch.int16)
        self.counts += torch.bincount(batch.y, minlength=len(self.counts))


class StepsBefore(Plain):
    """An epoch begins with a step of its own."""

    def epoch(self, run: Run) -> Iterator[Batch]:
        run.optimize(self.loss(next(iter(run.loader())), run))
        yield from run.loader()


class SkipsOne(Plain):
    """One rank finds nothing to learn in a batch, and does without a step."""

    def step(self, batch: Batch, run: Run) -> None:
        if run.step != 2 or run.group.rank == 0:
            super().step(batch, run)


class NaNOnOne(Plain):
    """Its loss is no number in the third step of one rank."""

    def loss(self, batch: Batch, run: Run) -> Tensor:
        loss = super().loss(batch, run)
        return loss * float("nan") if (run.group.rank, run.step) == (1, 2) else loss


class FailsOnOne(Plain):
    """As a rank does that meets an image that does not decode."""

    def loss(self, batch: Batch, run: Run) -> Tensor:
        if (run.group.rank, run.step) == (1, 2):
            raise UserError("image 3 does not decode")
        return super().loss(batch, run)


class InOrder(Plain):
    """Goes through 17 samples in order, 8 at a time, which leaves one over."""

    seen: list[list[int]]

    def epoch(self, run: Run) -> Iterator[Batch]:
        self.seen = []
        for batch in run.loader(torch.arange(17), shuffle=False, batch_size=8):
            self.seen.append(batch.index.tolist())
            yield batch


def setup_of(cls: Any, group: Group | None, hparams: Any = None, norm: bool = False, **changes: Any) -> Setup:
    """Without augmentation, and without BatchNorm, for which a share of a batch is not the whole, unless asked for."""
    recipe = Recipe(**(RECIPE.model_dump() | {"padding": 0, "flip": False, "channels_last": False} | changes))
    noisy = OUTLIERS if "outliers" in cls.needs else NOISY
    given: tuple[Any, ...] = (cls, hparams or cls.Hparams(), DATA, noisy.labels, recipe, 7, noisy, "cpu", DATA, group)
    setup = Setup(*given)
    for module in setup.method.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.BatchNorm2d) and not norm:
                setattr(module, name, torch.nn.Identity())
    return setup


# --------------------------------------------------------------------------------- one process and two, the same steps


def stepped(name: str, group: Group | None) -> dict[str, Tensor]:
    """Gradients and state after a step in the last epoch, before which others went by without steps."""
    cls = method_class(name)
    hparams = {"backward": {"max_condition": 1e20}, "ensemble": {"size": 2}}.get(name, {})
    setup = setup_of(cls, group, cls.Hparams(**hparams))
    method, run = setup.method, setup.run
    for epoch in (1, 2):
        run.begin_epoch(epoch)
        for _ in method.epoch(run):
            pass
    run.begin_epoch(3)
    batch = next(iter(method.epoch(run)))
    batch = batch._replace(x=batch.x.double())
    method.train()
    for parameter in method.parameters():  # rounding to float32 alone would take most of 1e-6
        parameter.data = parameter.data.double()
    torch.manual_seed(0)  # Monte-Carlo draws, which the samples of a batch share
    run.take_share(batch)
    method.step(batch, run)
    run.step += 1
    method.after_step(batch, run)
    run.share_state(batch)
    grads = {f"grad {name}": p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return grads | {name: value.clone() for name, value in method.state_dict().items()}


def failure_of(cls: Any, group: Group) -> str:
    setup = setup_of(cls, group)
    try:
        train_epoch(setup.run, setup.method, 0)
    except TrainingFailed as error:
        return str(error)
    return ""


def evaluated(group: Group | None) -> dict[str, Any]:
    """What a method that two ranks did not touch gives; sizes that no two ranks can halve."""
    setup = setup_of(method_class("het_full"), group, test_size=37, norm=True, padding=1, flip=True)
    setup.method.eval()
    with torch.no_grad():
        metrics = setup.evaluator(setup.method, setup.run)
    rows = setup.run.per_sample(lambda batch: torch.stack([batch.index, batch.y], dim=1))
    shown = setup.run.per_sample(lambda batch: batch.x, augment=True)
    return {"metrics": metrics, "rows": rows, "shown": shown}


def short(group: Group | None) -> tuple[list[int], Tensor, float]:
    """The only batch of five samples, of which the first of two ranks has three."""
    setup = setup_of(Plain, group)
    run = setup.run
    run.begin_epoch(0)
    (batch,) = run.loader(torch.arange(5))
    run.take_share(batch)
    setup.method.step(batch, run)
    return run.gather(batch.index).tolist(), next(setup.method.parameters()).grad.clone(), run.end_epoch()["train.loss"]


def weights_after_epoch(cls: Any, group: Group | None) -> Tensor:
    setup = setup_of(cls, group)
    train_epoch(setup.run, setup.method, 0)
    return torch.cat([p.detach().flatten() for p in setup.method.parameters()])


def failing(cell: Cell, out: Path) -> dict[str, Any]:
    """What a cell gives whose method fails on one rank. The other hears of it when that one ends."""
    from noisebench import cell as cell_module

    cell_module.method_class = lambda name: FailsOnOne  # type: ignore[assignment]
    return run_cell(cell, out, accelerator="cpu")


def battery(cell: Cell, out: Path) -> bytes:
    """All that two ranks are asked about, in one go: they take seconds to start."""
    seat = seat_for(2)
    assert seat is not None
    group = join(RECIPE, "cpu", seat)
    in_order = setup_of(InOrder, group)
    train_epoch(in_order.run, in_order.method, 0)
    trained = []
    for _ in range(2):
        setup = setup_of(Centre, group, norm=True, epochs=2)
        setup.train(Memory())
        trained.append(weights_sha256(setup.method))
    found = {
        "rank": seat.rank,
        "first": is_first(),
        "steps": {name: stepped(name, group) for name in NAMES},
        "evaluated": evaluated(group),
        "short": short(group),
        "in order": in_order.method.seen,
        "trained": trained,
        "diverges": failure_of(Diverges, group),
        "counts": failure_of(Counts, group),
        "steps before": weights_after_epoch(StepsBefore, group),
        "nan": failure_of(NaNOnOne, group),
        "skips": failure_of(SkipsOne, group),
        "gathered none": list(group.gather(torch.zeros(0, 3)).shape),
        "gathered": group.gather(torch.full((3 * seat.rank, 2), seat.rank, dtype=torch.bool)).tolist(),
        "failing": failing(cell, out),  # the last
    }
    return pickle.dumps(found)  # a pipe would share the memory of tensors, which ends with this process


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("failing")
    found = [pickle.loads(one) for one in launch(battery, 2, cell_of("ce", epochs=1), out)]
    found[0]["failure.json"] = json.loads((out / cell_of("ce", epochs=1).folder() / "failure.json").read_text())
    assert [one["rank"] for one in found] == [0, 1]
    assert [one["first"] for one in found] == [True, False]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_two_ranks_is_that_of_one_process_with_the_whole_batch(name: str, two: list[dict[str, Any]]) -> None:
    alone = stepped(name, None)
    for one in two:
        assert one["steps"][name].keys() == alone.keys()
        for key, value in one["steps"][name].items():
            most = float(alone[key].double().abs().max())
            apart = float((value.double() - alone[key].double()).abs().max())
            assert apart <= 1e-6 * max(most, 1e-3), f"{key}: {apart / most:.2g} of its largest entry"


def test_targets_of_every_sample_of_the_batch_reach_both_ranks(two: list[dict[str, Any]]) -> None:
    targets = [one["steps"]["elr"]["targets"] for one in two]
    assert torch.equal(*targets)
    assert int((targets[0].sum(dim=1) > 0).sum()) == RECIPE.batch_size


def test_per_sample_has_every_sample_once_and_in_order_on_both_ranks(two: list[dict[str, Any]]) -> None:
    alone = evaluated(None)
    for one in two:
        assert torch.equal(one["evaluated"]["rows"], alone["rows"])
        assert torch.equal(one["evaluated"]["shown"], alone["shown"])
    assert alone["rows"][:, 0].tolist() == list(range(84))


def test_evaluation_counts_each_sample_once_and_draws_as_one_process(two: list[dict[str, Any]]) -> None:
    alone = evaluated(None)["metrics"]
    assert two[0]["evaluated"]["metrics"] == two[1]["evaluated"]["metrics"]
    assert two[0]["evaluated"]["metrics"] == pytest.approx(alone, rel=1e-5)


def test_unequal_shares_count_by_their_samples(two: list[dict[str, Any]]) -> None:
    order, grad, loss = short(None)
    for one in two:
        assert one["short"][0] == order  # the order of the whole batch, too
        assert float((one["short"][1] - grad).abs().max()) <= 1e-6 * float(grad.abs().max())
        assert one["short"][2] == pytest.approx(loss, rel=1e-6)


def test_a_tail_that_not_all_ranks_have_a_sample_of_goes_with_the_batch_before(two: list[dict[str, Any]]) -> None:
    assert [[len(part) for part in one["in order"]] for one in two] == [[4, 5], [4, 4]]
    assert sorted(i for one in two for part in one["in order"] for i in part) == list(range(17))


def test_runs_of_two_ranks_repeat(two: list[dict[str, Any]]) -> None:
    assert len({sha256 for one in two for sha256 in one["trained"]}) == 1


def test_rows_of_other_numbers_are_gathered_rank_by_rank(two: list[dict[str, Any]]) -> None:
    assert [one["gathered"] for one in two] == [[[True, True]] * 3] * 2
    assert [one["gathered none"] for one in two] == [[0, 3]] * 2


def test_a_step_outside_the_loop_counts_all_ranks_alike(two: list[dict[str, Any]]) -> None:
    alone = weights_after_epoch(StepsBefore, None)
    for one in two:
        assert torch.allclose(one["steps before"], alone, rtol=1e-5, atol=1e-6)


def test_a_buffer_that_each_rank_has_of_its_own_is_named(two: list[dict[str, Any]]) -> None:
    for one in two:
        assert one["diverges"].startswith("after epoch 1: 'centre' is not the same on all ranks")
        assert "run.gather" in one["diverges"]
        assert one["counts"].startswith("after epoch 1: 'counts' is not the same on all ranks")


def test_ranks_that_do_not_step_alike_are_told(two: list[dict[str, Any]]) -> None:
    for one in two:
        assert one["skips"].startswith("the ranks call run.optimize at other steps")


def test_a_loss_that_is_no_number_on_one_rank_fails_on_both_alike(two: list[dict[str, Any]]) -> None:
    assert two[0]["nan"] == two[1]["nan"]
    assert two[0]["nan"].startswith("the loss became nan in epoch 1, step 3")


def test_the_reason_of_the_rank_that_failed_is_the_cells(two: list[dict[str, Any]]) -> None:
    for result in (two[0]["failing"], two[1]["failing"], two[0]["failure.json"]):
        assert (result["status"], result["reason"]) == ("failed", "image 3 does not decode")


# ---------------------------------------------------------------------------------------------------------------- cells


def cell_of(method: str = "elr", **recipe: Any) -> Cell:
    board = {
        "name": "two",
        "datasets": ["shapes@300"],  # no scikit-learn, which takes each process seconds to import
        "noise": [{"kind": "symmetric", "rate": 0.4}],
        "seeds": [0],
        "methods": [method],
        "recipe": {"epochs": 8, "batch_size": 32, "ranks": 2, "checkpoint_seconds": 0, **recipe},
    }
    config: Benchmark = build(Benchmark, board, "test")
    return config.cells()[0]


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to find the ranks in")
COMMAND = ["-m", "noisebench", "run", "--method", "elr", "--dataset", "shapes@300", "--device", "cpu"]
COMMAND += [
    f"--set=recipe.{k}={v}" for k, v in {"epochs": 8, "batch_size": 32, "ranks": 2, "checkpoint_seconds": 0}.items()
]


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line["metrics"].items() if k != "seconds"} for line in found]


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


def ranks_of(pid: int) -> list[int]:
    """The processes of the ranks; Python has one of its own beside them."""
    return [p for p in children_of(pid) if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]


@needs_proc
def test_under_torchrun_and_with_a_rank_killed_a_cell_ends_in_the_same_bits(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *torchrun, *COMMAND, "--out", str(tmp_path / "torchrun"), "--json"]
    folder = tmp_path / "killed" / cell_of().folder()

    def kill_one() -> None:
        until(lambda: (folder / "metrics.jsonl").exists() and len(lines(folder)) >= 2)
        os.kill(ranks_of(os.getpid())[1], signal.SIGKILL)

    with subprocess.Popen(command, **pipes) as under:
        killer = threading.Thread(target=kill_one)
        killer.start()
        result = run_cell(cell_of(), tmp_path / "killed", accelerator="cpu")
        killer.join()
        out, err = under.communicate(timeout=600)
    assert result["status"] == "finished"
    log = (folder / "log.txt").read_text()
    assert "the process of rank 1 was killed by SIGKILL" in log
    assert log.count("resumed after epoch") == 1
    assert under.returncode == 0, err
    assert json.loads(out)["weights_sha256"] == result["weights_sha256"]  # one rank speaks
    assert lines(folder) == lines(tmp_path / "torchrun" / cell_of().folder())
    assert run_cell(cell_of(), tmp_path / "killed") == result  # is only read
    assert not list(folder.glob("*.tmp"))


@needs_proc
def test_ranks_end_with_the_process_that_started_them() -> None:
    code = "import time; from noisebench.launching import launch; launch(time.sleep, 2, 600)"
    with subprocess.Popen([sys.executable, "-c", code]) as started:
        until(lambda: len(ranks_of(started.pid)) == 2)
        ranks = ranks_of(started.pid)
        time.sleep(0.1)
        started.kill()
    until(lambda: not any(alive(rank) for rank in ranks))


# ------------------------------------------------------------------------------------------------------ who is who


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
}  # fmt: skip
SRUN = {
    "SLURM_NTASKS": "3", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_STEP_NODELIST": "gpu[3-4]", "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0",
}  # fmt: skip


def test_torchrun_and_srun_say_who_is_who() -> None:
    assert seat_in(TORCHRUN) == Seat(5, 8, 1, 4, 1, "torchrun", "node1", 29500)
    found = seat_in(SRUN)
    assert found is not None
    assert (found.rank, found.ranks, found.local_rank, found.local_ranks, found.address) == (2, 3, 0, 1, "gpu3")
    assert seat_in({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None  # a batch script: one process
    assert seat_in(TORCHRUN | {"WORLD_SIZE": "1"}) is None


def test_another_number_of_processes_than_ranks_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    result = run_cell(cell_of(ranks=1), tmp_path)
    assert result["status"] == "failed"
    assert result["reason"] == ("recipe.ranks: 1, and torchrun started 8 processes; set recipe.ranks=8, or start 1")


def test_ranks_that_cannot_share_a_batch_are_refused() -> None:
    for size, ranks in ((32, 3), (4, 4)):
        with pytest.raises(UserError, match=f"{ranks} ranks cannot share a batch_size of {size}"):
            build(Recipe, {"batch_size": size, "ranks": ranks}, "recipe")


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    result = run_cell(cell_of(), tmp_path, accelerator="cuda")
    assert result["reason"] == "recipe.ranks: 2 on this machine need a GPU each, and 1 can be seen; give 1"


def test_ranks_count_in_a_fingerprint_only_where_there_are_several() -> None:
    assert "ranks" not in Recipe().identity()
    assert Recipe(ranks=2).identity()["ranks"] == 2


# ------------------------------------------------------------------------------------------------------ the declaration


class Pairs(Plain):
    """Mixes each sample with another, and does not say so."""

    name = "pairs"

    def loss(self, batch: Batch, run: Run) -> Tensor:
        other = torch.randperm(len(batch.y), generator=run.generator)
        return F.cross_entropy(self(0.7 * batch.x + 0.3 * batch.x[other]), batch.y)


class Chooses(Plain):
    name = "chooses"

    def loss(self, batch: Batch, run: Run) -> Tensor:
        losses = F.cross_entropy(self(batch.x), batch.y, reduction="none")
        return losses.sort().values[: len(losses) // 2].mean()


class Declares(Chooses):
    name = "declares"
    coupled = "it chooses small losses"


class DrawsForEach(Plain):
    """Draws for each sample: halves of a batch draw otherwise, and yet nothing couples them."""

    name = "draws_for_each"

    def loss(self, batch: Batch, run: Run) -> Tensor:
        return F.cross_entropy(self(batch.x + torch.randn_like(batch.x)), batch.y)


class TwoViews(Plain):
    name = "two_views"

    def epoch(self, run: Run) -> Iterator[Batch]:
        yield from run.loader(views=2)

    def loss(self, batch: Batch, run: Run) -> Tensor:
        return F.cross_entropy(self(batch.x[0]) + self(batch.x[1]), batch.y)


@cache
def verdict(cls: type[Classifier]) -> tuple[str, str]:
    outcomes = check_method(cls, raise_on_failure=False)
    return next((o.status, o.detail) for o in outcomes if o.name.startswith("has a loss that is a mean"))


@pytest.mark.parametrize("cls", [Pairs, Chooses])
def test_a_method_that_couples_samples_is_told_to_say_so(cls: type[Classifier]) -> None:
    status, detail = verdict(cls)
    assert status == "failed"
    assert "`coupled`" in detail


def test_a_method_that_says_so_or_does_not_passes() -> None:
    assert verdict(Declares) == ("skipped", "declared: it chooses small losses")
    assert verdict(DrawsForEach)[0] == "passed"
    assert verdict(TwoViews)[0] == "passed"
