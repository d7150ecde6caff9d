"""Losses as compiled functions: the same steps to rounding, and a way on without a compiler."""

import shutil

import pytest
import torch
from lightning.fabric import Fabric
from tensordict import TensorDict
from torch import nn

from mbrl_lightning.config import load_config
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.sac import SAC

COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


class Fitted(nn.Module):
    """A small net, its loss, and how often Python went through that."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.calls = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), 0

    def losses(self, batch):
        self.calls += not torch.compiler.is_compiling()
        return {"loss": (self.net(batch[:, :3]) - batch[:, 3:]).square().mean(), "size": batch.square().mean()}


def steps(compiled, sizes=(8, 8, 5, 7)):
    fitted, step = Fitted(), GradientStep(Fabric(accelerator="cpu", devices=1), compiled)
    optimizer = torch.optim.Adam(fitted.parameters(), lr=0.1, fused=True)
    draws = torch.Generator().manual_seed(1)
    batches = [torch.randn(size, 4, generator=draws) for size in sizes]
    found = step.fit(fitted.losses, iter(batches).__next__, optimizer, len(batches))
    return fitted, found, step


@COMPILER
def test_compiled_steps_are_those_of_python_to_rounding_and_python_is_left_out(capsys):
    plain, expected, _ = steps(False)
    compiled, found, step = steps(True)
    assert (plain.calls, compiled.calls, step.count) == (4, 0, 4)
    assert found == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-6)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said] == [
        ["compiling", "Fitted.losses:"],
        ["compiled", "Fitted.losses"],
    ]  # once


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(monkeypatch, caplog):
    def broken(loss, **_):
        def fail(batch):
            raise RuntimeError("no compiler here\nand a long story")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    plain, expected, _ = steps(False)
    fallen, found, _ = steps(True)
    assert (found, fallen.calls) == (expected, 4)
    torch.testing.assert_close(fallen.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert [record.message for record in caplog.records] == [
        "Fitted.losses runs as it is: compiling failed (no compiler here)"
    ]


def test_losses_are_compiled_only_where_that_is_asked_for():
    assert load_config(["conf=slim_humanoid"]).compile == "false"
    assert load_config(["conf=slim_humanoid", "compile=true"]).compile == "true"


def critics(compiled, updates=100, rows=32):
    """A humanoid's actor-critic after updates of both kinds, in double precision."""
    cfg, draws = load_config(["conf=slim_humanoid"]), torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    sac = SAC(cfg.policy, cfg.sac, 1, 60, 17, recurrent=0).double()
    step = GradientStep(Fabric(accelerator="cpu", devices=1), compiled)
    optimizer = torch.optim.Adam(sac.trained_parameters(), lr=cfg.sac.lr)

    def normal(*shape):
        return torch.randn(rows, *shape, generator=draws, dtype=torch.float64)

    for _ in range(updates):
        after = {"inputs": {"current": normal(60)}, "reward": normal(1), "terminated": torch.zeros(rows, 1)}
        batch = {"inputs": {"current": normal(60)}, "action": normal(17).tanh(), "noise": normal(2, 17), "next": after}
        sac.update(TensorDict(batch, batch_size=[rows]), step, optimizer)
    return sac.state_dict()


@COMPILER
@pytest.mark.slow
def test_a_hundred_compiled_updates_of_a_soft_actor_critic_are_the_plain_ones():
    assert load_config(["conf=slim_humanoid"]).sac.policy_delay == 2  # both losses are in it
    torch.testing.assert_close(critics(True), critics(False), rtol=1e-9, atol=1e-11)
