"""The baselines of a latent model: told nothing, told the truth, fitted alike."""

from __future__ import annotations

import torch
from fakes import fingerprint
from lightning.fabric import Fabric

from mbrl_lightning.envs import make_family
from mbrl_lightning.measuring.baselines import baselines_of, fit_baseline
from mbrl_lightning.networks.step import GradientStep


def test_each_baseline_gets_as_many_updates_as_the_runs_own_model(make_loop):
    loop = make_loop(loop={"iterations": 3, "first_model_steps": 5, "model_steps": 2, "last_model_steps": 4})
    loop.fit()
    own = loop.step.count - 3 * loop.cfg.search.updates
    step = GradientStep(Fabric(accelerator="cpu", devices=1))
    baselines = baselines_of(loop.family, loop.cfg, loop.real, step, torch.Generator().manual_seed(0))
    assert own == 5 + 2 * 2 + 4
    assert step.count == 2 * own
    assert (baselines["blind"].code_dim, baselines["told"].code_dim) == (0, 2)


def test_fitting_lowers_the_loss_and_depends_on_its_generator_alone(tiny, filled):
    family, cfg = make_family("cartpole"), tiny(dynamics={"lr": 5e-3})
    step = GradientStep(Fabric(accelerator="cpu", devices=1))

    def fit(updates: int, seed: int = 0):
        torch.manual_seed(1)
        return fit_baseline(family, cfg, filled, step, torch.Generator().manual_seed(seed), updates, told=True)

    batch = filled.transitions()
    data = batch.reshape(1, -1)
    parameters = family.scale(filled.tasks[batch["task"]]).float()

    def loss(model) -> float:
        x = torch.cat([model.inputs(data["observation"], data["action"]), parameters.unsqueeze(0)], -1)
        with torch.no_grad():
            return model.nll(model.decoder(x), model.targets(data)).mean().item()

    assert loss(fit(100)) < 0.5 * loss(fit(1))
    assert fingerprint(fit(5).state_dict()) == fingerprint(fit(5).state_dict())
    assert fingerprint(fit(5, seed=1).state_dict()) != fingerprint(fit(5).state_dict())


def test_measuring_them_leaves_no_trace_in_the_run(make_loop):
    loop = make_loop(loop={"iterations": 1})
    loop.fit()
    before = fingerprint(loop.state_dict())
    loop.evaluate(full=True, baselines=True)
    changed = {key for key, value in fingerprint(loop.state_dict()).items() if before[key] != value}
    assert changed == {".streams.evaluation", ".gradient_steps"}
