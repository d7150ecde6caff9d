"""Losses as compiled functions: the same steps to rounding, the same bits in another process, and a way on without a compiler."""

import shutil

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from mbrl_lightning.config import load_config
from mbrl_lightning.networks.step import GradientStep

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
