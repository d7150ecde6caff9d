"""One gradient step: clipping, the finite guard, shares of a batch."""

from __future__ import annotations

import copy
from functools import partial
from operator import methodcaller
from types import SimpleNamespace

import pytest
import torch
from host_reads import host_reads
from lightning.fabric import Fabric
from tensordict import TensorDict

from mbrl_lightning.errors import ConfigError, DivergedError
from mbrl_lightning.networks.step import BLOCK, GradientStep


@pytest.fixture
def step() -> GradientStep:
    return GradientStep(Fabric(accelerator="cpu", devices=1))


def parameter(*values: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values))


def take(step: GradientStep, optimizer: torch.optim.Optimizer, losses, steps: int) -> None:
    for _ in range(steps):
        step(losses, optimizer)
    step.check()


def test_one_step_is_the_optimizers(step):
    p = parameter(1.0, 2.0)
    optimizer = torch.optim.SGD([p], lr=0.1)
    out = step(lambda: {"loss": (p * torch.tensor([1.0, 3.0])).sum(), "other": p.sum()}, optimizer)
    assert step.numbers(out) == {"loss": 7.0, "other": 3.0}
    step(lambda: {"loss": p.sum()}, optimizer)  # gradients do not pile up
    torch.testing.assert_close(p.detach(), torch.tensor([0.8, 1.6]))
    assert step.count == 2


@pytest.mark.parametrize(("limit", "expected"), [(0.0, 5.0), (10.0, 5.0), (1.0, 1.0)])
def test_clipping_uses_the_norm_over_all_parameters(step, limit, expected):
    a, b = parameter(0.0), parameter(0.0)
    step(lambda: {"loss": 3 * a.sum() + 4 * b.sum()}, torch.optim.SGD([a, b], lr=1.0), limit)
    assert torch.cat([a, b]).norm().item() == pytest.approx(expected)
    assert (a / b).item() == pytest.approx(0.75)


def test_stacked_copies_are_clipped_each_by_its_own_norm(step):
    a, b = torch.nn.Parameter(torch.zeros(3, 2)), torch.nn.Parameter(torch.zeros(3, 1, 1))
    slopes = torch.tensor([0.01, 1.0, 100.0])
    step(lambda: {"loss": (slopes * (a.sum(1) + b[:, 0, 0])).sum()}, torch.optim.SGD([a, b], lr=1.0), 1.0, stacked=True)
    norms = torch.cat([a, b[:, 0]], 1).norm(dim=1)
    torch.testing.assert_close(norms.detach(), torch.tensor([0.01 * 3**0.5, 1.0, 1.0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "kind", [partial(torch.optim.Adam, fused=True), partial(torch.optim.SGD, fused=True), torch.optim.Adam]
)
def test_nothing_moves_from_a_non_finite_loss_on(step, kind, bad):
    p = parameter(1.0, 2.0)
    optimizer = kind([p], lr=0.1)
    step(lambda: {"loss": p.square().sum()}, optimizer)
    before, state = p.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(DivergedError, match=r"loss (nan|inf) .* gradient step 1"):
        take(step, optimizer, lambda: {"loss": ((bad if step.count == 1 else 1.0) * p).sum()}, 3)
    assert torch.equal(p.detach(), before)
    for name, value in optimizer.state_dict()["state"].get(0, {}).items():
        assert torch.equal(value, state[0][name])
    step(lambda: {"loss": p.square().sum()}, optimizer)  # whoever goes on may
    step.check()
    assert not torch.equal(p.detach(), before)


def test_a_run_that_never_asks_is_stopped_after_a_block(step):
    p = parameter(1.0)
    optimizer = torch.optim.Adam([p], lr=0.1, fused=True)
    with pytest.raises(DivergedError, match="gradient step 0"):
        take(step, optimizer, lambda: {"loss": (p * float("nan")).sum()}, BLOCK + 1)
    assert step.count == BLOCK


@pytest.mark.parametrize("stacked", [False, True])
def test_non_finite_gradient_of_a_finite_loss_raises_too(step, stacked):
    p = torch.nn.Parameter(torch.tensor([[0.0], [1.0]]))
    with pytest.raises(DivergedError, match="not finite"):
        step.numbers(step(lambda: {"loss": p.sqrt().sum()}, torch.optim.SGD([p], lr=0.1, fused=True), 1.0, stacked))
    assert p.tolist() == [[0.0], [1.0]]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_make_up_the_batch(world):
    batch = TensorDict({"x": torch.arange(12).view(6, 2)}, batch_size=[6])
    parts = []
    for rank in range(world):
        fabric = SimpleNamespace(world_size=world, global_rank=rank, device=torch.device("cpu"))
        parts.append(GradientStep(fabric).share(batch))
    assert all(len(part) == 6 // world for part in parts)
    assert torch.equal(torch.cat(parts)["x"], batch["x"])


def test_a_batch_that_does_not_divide_is_refused():
    fabric = SimpleNamespace(world_size=4, global_rank=0, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match="batch of 6 does not divide among 4 devices"):
        GradientStep(fabric).share(torch.zeros(6, 2))


@pytest.mark.parametrize(
    "read", [float, bool, int, *map(methodcaller, ("item", "tolist", "nonzero", "numpy")), lambda x: x[x > 0]]
)
def test_a_read_of_the_host_in_a_step_would_be_seen(step, read):
    p = parameter(1.0)
    optimizer = torch.optim.Adam([p], lr=0.1, fused=True)

    def losses():
        read(p.detach())
        return {"loss": p.sum()}

    with host_reads() as reads:
        read(p.detach())  # outside of a step
        step(lambda: {"loss": p.sum()}, optimizer)
        step.check()
        assert not reads
        step(losses, optimizer)
    (place,) = reads
    assert "test_step.py" in place


def test_an_optimizer_that_does_not_heed_the_guard_is_looked_after_at_every_step(step, monkeypatch):
    p, looks = parameter(1.0), []
    check = step.check
    monkeypatch.setattr(step, "check", lambda: (looks.append(step.count), check()))
    for fused in (True, False):
        step(lambda: {"loss": p.sum()}, torch.optim.SGD([p], lr=0.1, fused=fused))
    assert looks == [1]
