"""On a GPU: every method trains, gives what the CPU gives, resumes there, and runs in mixed precision.

Skipped where there is none. Everything random is drawn on the CPU, so that the two runs differ in rounding alone.
"""

from __future__ import annotations

import math

import pytest
import torch
from two_ranks import BASE, TRAINED, build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = {"accelerator": "gpu"}


SHORT = {"iterations": 1, "model_steps": 6, "first_model_steps": 6}


def trained(folder, changes):
    loop = build(0, folder, changes, 1)
    loop.fit()
    return loop


def network(loop):
    return torch.cat([p.detach().double().flatten().cpu() for p in loop.algorithm.parameters()])


@pytest.mark.parametrize("name", TRAINED)
def test_gives_what_the_cpu_gives(tmp_path, name):
    changes = dict(TRAINED[name])
    changes["loop"] = changes.get("loop", {}) | SHORT  # longer, and line searches decide otherwise
    # which of two restarts is better hangs on rounding too
    changes["search"] = BASE["search"] | changes.get("search", {}) | {"restarts": 1}
    on_cpu, on_gpu = trained(tmp_path / "cpu", changes), trained(tmp_path / "gpu", changes | GPU)
    assert all(p.is_cuda for p in on_gpu.algorithm.parameters())
    start = network(build(0, tmp_path / "start", changes, 1))
    learned = (network(on_cpu) - start).norm()
    assert learned > 0
    assert (network(on_cpu) - network(on_gpu)).norm() < 0.2 * learned  # of unrelated runs: 1.4


@pytest.mark.parametrize("name", TRAINED)
def test_mixed_precision_is_finite_and_learns(tmp_path, name):
    loop = trained(tmp_path / "bf16", TRAINED[name] | GPU | {"precision": "bf16-mixed"})
    assert torch.isfinite(network(loop)).all()
    assert (network(loop) - network(build(0, tmp_path / "start", TRAINED[name], 1))).norm() > 0
    returns = [row.value for row in loop.results.rows if row.metric == "return/policy"]
    assert returns
    assert all(math.isfinite(value) for value in returns)


@pytest.mark.parametrize("name", TRAINED)
def test_what_a_gpu_saved_goes_on_there_and_on_a_cpu(tmp_path, name):
    whole = trained(tmp_path / "whole", TRAINED[name] | GPU)
    state = whole.state_dict()
    state["world"]["iteration"] = 1
    for accelerator in ("gpu", "cpu"):
        other = build(0, tmp_path / accelerator, TRAINED[name] | {"accelerator": accelerator}, 1)
        other.load_state_dict(state)
        other.fit()
        assert torch.isfinite(network(other)).all()
