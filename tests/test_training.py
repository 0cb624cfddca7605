"""The loop and what a method sees of it: schedules, parameter groups, random streams, epochs, failures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noisebench.assembly import Setup
from noisebench.checks import RECIPE, sample_data
from noisebench.config import Recipe, Schedule
from noisebench.errors import TrainingFailed, UserError
from noisebench.fitting import Memory
from noisebench.method import Batch, Classifier, epochs_from
from noisebench.training import Run, learning_rate_factor

DATA = sample_data()


class Plain(Classifier):
    """Cross-entropy, which notes what it sees."""

    name = "plain"
    paper = "none"

    def loss(self, batch: Batch, run: Run) -> Tensor:
        return nn.functional.cross_entropy(self(batch.x), batch.y)


def setup_of(cls: type[Classifier] = Plain, **changes: Any) -> Setup:
    recipe = Recipe(**(RECIPE.model_dump() | changes))
    return Setup(cls, cls.Hparams(), DATA, DATA.train_labels, recipe, 3, accelerator="cpu")


def trained(cls: type[Classifier] = Plain, **changes: Any) -> Setup:
    setup = setup_of(cls, **changes)
    setup.train(Memory())
    return setup


def test_multistep_drops_take_effect_in_the_epoch_of_the_milestone() -> None:
    """Arazo et al.: drops that take effect at epochs 101 and 251, counted from 1."""
    schedule = Schedule(kind="multistep", milestones=(100, 250), gamma=0.1)
    factor = [learning_rate_factor(schedule, epoch, 300) for epoch in range(300)]
    assert factor[99] == 1.0
    assert factor[100] == pytest.approx(0.1)
    assert factor[249] == pytest.approx(0.1)
    assert factor[250] == pytest.approx(0.01)


def test_a_schedule_in_shares_shrinks_with_the_run() -> None:
    shares = Schedule(kind="multistep", milestones=(1 / 3, 5 / 6))
    for epochs in (300, 60, 12):
        factor = [learning_rate_factor(shares, epoch, epochs) for epoch in range(epochs)]
        assert factor.count(1.0) == epochs // 3
        assert sum(f == pytest.approx(0.01) for f in factor) == epochs // 6


def test_cosine_starts_at_one_and_would_be_zero_after_the_last_epoch() -> None:
    factor = [learning_rate_factor(Schedule(kind="cosine"), epoch, 10) for epoch in range(11)]
    assert factor == pytest.approx([0.5 * (1 + math.cos(math.pi * e / 10)) for e in range(11)])


def test_warm_up_is_linear_and_the_rest_follows_it() -> None:
    factor = [learning_rate_factor(Schedule(kind="constant", warmup=4), epoch, 10) for epoch in range(10)]
    assert factor == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])


def test_an_int_counts_epochs_and_a_float_is_a_share_of_the_run() -> None:
    assert [epochs_from(v, 300) for v in (105, 0.35, 1, 1.0, 0, 0.0)] == [105, 105, 1, 300, 0, 0]
    for wrong in (-1, 1.5, -0.1, True):
        with pytest.raises(UserError, match="no number of epochs"):
            epochs_from(wrong, 300)


class Grouped(Plain):
    name = "grouped"

    def param_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(self.net[0].parameters()), "lr_scale": 0.0},
            {"params": list(self.net[1].parameters()), "weight_decay": 0.0},
        ]


def test_groups_carry_their_own_rate_and_weight_decay() -> None:
    setup = setup_of(Grouped)
    backbone = [p.clone() for p in setup.method.net[0].parameters()]
    head = setup.method.net[1].weight.clone()
    setup.train(Memory())
    assert all(torch.equal(a, b) for a, b in zip(backbone, setup.method.net[0].parameters(), strict=True))
    assert not torch.equal(head, setup.method.net[1].weight)
    decays = [group["weight_decay"] for group in setup.run.optimizer.param_groups]
    assert decays == [RECIPE.weight_decay, 0.0]


def test_gradients_are_clipped_to_the_recipe_s_norm() -> None:
    setup = setup_of(clip_norm=1e-3)
    setup.run.begin_epoch(0)
    batch = next(setup.run.loader())
    setup.run.optimize(1000 * setup.method.loss(batch, setup.run))
    norm = torch.stack([p.grad.norm() for p in setup.method.parameters()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_a_reset_forgets_momentum_and_keeps_the_rate() -> None:
    setup = setup_of()
    setup.run.begin_epoch(2)
    setup.run.optimize(setup.method.loss(next(setup.run.loader()), setup.run))
    rate = setup.run.optimizer.param_groups[0]["lr"]
    assert rate < RECIPE.lr
    assert setup.run.optimizer.state
    setup.run.reset_optimizer(setup.method.net[1])
    left = len(setup.run.optimizer.state)
    assert 0 < left < len(list(setup.method.parameters()))
    setup.run.reset_optimizer()
    assert not setup.run.optimizer.state
    assert setup.run.optimizer.param_groups[0]["lr"] == rate


class EndsEpochs(Plain):
    name = "ends_epochs"
    ended: tuple[int, ...] = ()

    def epoch(self, run: Run) -> Iterator[Batch]:
        yield from run.loader()
        self.ended = (*self.ended, run.epoch)


def test_code_behind_the_last_yield_ends_every_epoch() -> None:
    assert trained(EndsEpochs).method.ended == (0, 1, 2, 3)


class Looks(Plain):
    """Draws from every stream that a method has, which must shift none of the others."""

    name = "looks"

    def epoch(self, run: Run) -> Iterator[Batch]:
        run.per_sample(lambda batch: batch.y, augment=True)
        torch.rand(5)
        torch.rand(3, generator=run.generator, device=run.device)
        yield from run.loader()


def test_a_pass_over_the_set_and_other_draws_shift_neither_order_nor_augmentation() -> None:
    plain, looks = trained(), trained(Looks)
    for a, b in zip(plain.method.state_dict().values(), looks.method.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_per_sample_goes_through_the_set_in_order_in_eval_mode_and_restores_the_mode() -> None:
    setup = setup_of()
    setup.method.train()
    modes = []

    def index(batch: Batch) -> Tensor:
        modes.append(setup.method.training)
        return batch.index

    assert setup.run.per_sample(index).tolist() == list(range(84))
    assert modes == [False]
    assert setup.method.training


def test_two_views_differ_and_come_with_one_label() -> None:
    setup = setup_of()
    setup.run.begin_epoch(0)
    batch = next(setup.run.loader(views=2))
    assert batch.x.shape == (2, 16, 1, 8, 8)
    assert not torch.equal(batch.x[0], batch.x[1])
    assert batch.y.shape == (16,)


class Explodes(Plain):
    name = "explodes"

    def loss(self, batch: Batch, run: Run) -> Tensor:
        factor = float("nan") if (run.epoch, run.step) == (2, 12) else 1.0
        return factor * super().loss(batch, run)


def test_a_loss_that_is_not_finite_fails_with_epoch_and_step() -> None:
    # 84 training samples in batches of 16: 5 steps an epoch; step 12 of the run (from 0) is the 3rd of epoch 3.
    with pytest.raises(TrainingFailed, match="the loss became nan in epoch 3, step 13"):
        trained(Explodes)


class NoScalar(Plain):
    name = "no_scalar"

    def loss(self, batch: Batch, run: Run) -> Tensor:
        return nn.functional.cross_entropy(self(batch.x), batch.y, reduction="none")


class NoSimplex(Plain):
    name = "no_simplex"

    def predict(self, x: Tensor) -> Tensor:
        return 2 * super().predict(x)


class WrongShape(Plain):
    name = "wrong_shape"

    def predict(self, x: Tensor) -> Tensor:
        return super().predict(x)[:, :2]


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (NoScalar, r"must be a scalar, not of shape \(16,\)"),
        (NoSimplex, "rows on the simplex; the worst row sums to 2"),
        (WrongShape, r"predict must give \[B, 4\], it gave \[40, 2\]"),
    ],
)
def test_what_breaks_the_contract_is_named(cls: type[Classifier], says: str) -> None:
    with pytest.raises(TrainingFailed, match=says):
        trained(cls)


def test_logged_values_are_means_over_the_epoch() -> None:
    class Logs(Plain):
        name = "logs"

        def loss(self, batch: Batch, run: Run) -> Tensor:
            run.log(step=run.step)
            return super().loss(batch, run)

    setup, journal = setup_of(Logs), Memory()
    setup.train(journal)
    assert [line["metrics"]["train.step"] for line in journal.history] == [2, 7, 12, 17]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_every_optimiser_resumes_bit_for_bit(optimizer: str) -> None:
    from noisebench.checks import _through_a_file

    whole, journal = setup_of(optimizer=optimizer, lr=0.01), Memory(keep_states=True)
    store = journal.checkpoint
    journal.checkpoint = lambda state, last: store(_through_a_file(state), last)  # type: ignore[method-assign]
    whole.train(journal)
    resumed = setup_of(optimizer=optimizer, lr=0.01)
    resumed.train(Memory(), journal.states[1])
    for a, b in zip(whole.method.state_dict().values(), resumed.method.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_bf16_runs_and_predicts_in_float32() -> None:
    setup = trained(precision="bf16-mixed")
    assert setup.method.predict(torch.zeros(2, 1, 8, 8)).dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in setup.method.parameters())


def test_under_bf16_every_step_sees_the_weights_of_the_last_one() -> None:
    class Watched(Plain):
        def loss(self, batch: Batch, run: Run) -> Tensor:
            linear: Any = self.net[-1]  # type: ignore[index]
            features = torch.ones(1, linear.in_features)
            seen = linear(features)
            with torch.autocast("cpu", enabled=False):
                cast = nn.functional.linear(features.bfloat16(), linear.weight.bfloat16(), linear.bias.bfloat16())
            assert torch.equal(seen, cast)
            return super().loss(batch, run)

    trained(Watched, precision="bf16-mixed")


def test_what_is_done_in_float32_under_bf16_has_its_gradient_in_float32() -> None:
    class Island(Plain):
        def loss(self, batch: Batch, run: Run) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return nn.functional.linear(
                    batch.x.flatten(1), self.net[0].layers[0].weight.flatten(1)[:1, :1].expand(1, 64)
                ).mean()

    setup = setup_of(Island, precision="bf16-mixed")
    batch = next(setup.run.loader(augment=False, shuffle=False))
    with setup.run.autocast():
        setup.run.optimize(setup.method.loss(batch, setup.run))
    gradient = setup.method.net[0].layers[0].weight.grad.flatten()[0]
    assert float(gradient) == pytest.approx(float(batch.x.double().flatten(1).sum(1).mean()), rel=1e-5)


def test_a_streaming_run_ends_in_the_weights_of_a_resident_one() -> None:
    resident, streaming = trained(loader="resident"), trained(loader="streaming", workers=0)
    for a, b in zip(resident.method.state_dict().values(), streaming.method.state_dict().values(), strict=True):
        assert torch.equal(a, b)
