"""GSSM: sizes of the paper, the evidence lower bound, fitting with a plain Lightning Trainer."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import lightning
import pytest
import torch
from fakes import plain_spec
from tensordict import TensorDict
from torch.distributions import Normal, kl_divergence

from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.data.batches import TransitionData, context_target
from mbrl_lightning.models.graph import GraphDynamics

SMALL = DynamicsConfig(latent_dim=3, width=8, hidden=16, layers=1, tasks=4, context=12, targets=12)


@pytest.mark.parametrize(
    ("table", "observation", "action", "hidden", "layers", "exact"),
    [
        ("8.9e4", 4, 1, 200, 2, 89_844),
        ("8.1e5", 4, 1, 400, 5, 816_644),
        ("2.1e5", 18, 6, 200, 5, 218_722),
        ("2.3e5", 45, 17, 200, 5, 235_045),
    ],
    ids=["cart-pole", "acrobot", "half-cheetah", "slim-humanoid"],
)
def test_parameter_counts_of_table_5(table, observation, action, hidden, layers, exact):
    cfg = DynamicsConfig(latent_dim=16, width=32, hidden=hidden, layers=layers)
    model = GraphDynamics(plain_spec(observation, action), cfg)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == exact
    digits = 10 ** (len(str(count)) - 2)
    assert float(table) == count // digits * digits  # the paper truncates


def batch_of(
    model: GraphDynamics, context: int = 5, targets: int = 4, particles: int = 1, tasks: int = 2
) -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    spec = model.spec

    def transitions(count: int) -> TensorDict:
        widths = (spec.observation_dim, spec.action_dim, spec.observation_dim)
        seen, action, after = (torch.randn(tasks, count, width, generator=generator) for width in widths)
        return TensorDict({"observation": seen, "action": action, "next": {"observation": after}}, [tasks, count])

    noise = torch.randn(tasks, particles, targets, model.cfg.latent_dim, generator=generator)
    parts = {"context": transitions(context), "target": transitions(targets), "noise": noise}
    return TensorDict(parts, batch_size=[tasks])


def small(**changes) -> GraphDynamics:
    torch.manual_seed(0)
    return GraphDynamics(plain_spec(), replace(SMALL, **changes)).double()


@pytest.mark.parametrize(("particles", "kl_weight"), [(1, 1.0), (3, 1.0), (2, 0.25)])
def test_loss_is_the_negative_evidence_lower_bound(particles, kl_weight):
    model = small(particles=particles, kl_weight=kl_weight, scale=0.3)
    batch = batch_of(model, particles=particles).double()
    losses = model.training_step(batch)
    belief, target = model.infer(batch["context"]), batch["target"]
    x, y = model.inputs(target["observation"], target["action"]), model.targets(target)
    loc, scale = model.encoder.target(x, belief)
    total = torch.zeros(2, 4, dtype=torch.float64)
    for particle in range(particles):
        code = loc + scale * batch["noise"][:, particle]
        for m in range(2):
            mean = model.decoder(torch.cat([x[m], code[m]], -1).unsqueeze(0))[0]
            total[m] += Normal(mean, 0.3).log_prob(y[m]).sum(-1) / particles
    kl = kl_divergence(Normal(loc, scale), Normal(belief["loc"][:, None], belief["scale"][:, None])).sum(-1)
    torch.testing.assert_close(losses["loss_likelihood"], -total.mean())
    torch.testing.assert_close(losses["loss_kl"], kl.mean())
    torch.testing.assert_close(losses["loss"], -total.mean() + kl_weight * kl.mean())


def test_kl_is_zero_when_both_posteriors_share_their_head_and_message():
    model = small()
    with torch.no_grad():
        for name in ("loc", "log_var"):
            getattr(model.encoder, f"point_{name}").load_state_dict(getattr(model.encoder, f"task_{name}").state_dict())
    batch = batch_of(model, context=1).double()  # one point: its message is the pooled value
    assert model.training_step(batch)["loss_kl"].item() == pytest.approx(0, abs=1e-12)
    assert model.training_step(batch_of(model, context=5).double())["loss_kl"] > 0


@pytest.mark.parametrize("learn", [False, True])
def test_likelihood_scale_is_learned_only_if_asked_for(learn):
    model = small(learn_scale=learn)
    model.training_step(batch_of(model).double())["loss"].backward()
    trained = {id(p) for group in model.configure_optimizers().param_groups for p in group["params"]}
    assert (id(model.log_scale) in trained) == learn
    assert (model.log_scale.grad is not None) == learn


def test_prediction_averages_over_particles_and_members():
    model = small(members=3)
    batch = batch_of(model, targets=6).double()
    belief, target = model.infer(batch["context"]), batch["target"]
    noise = torch.randn(4, 2, 6, 3, dtype=torch.float64)
    single = []
    for eps in noise:
        for member in range(3):
            with torch.no_grad():
                single.append(
                    model.imagine(target["observation"], target["action"], belief, eps, slice(member, member + 1))
                )
    predicted = model.predict(target["observation"], target["action"], belief, noise)
    torch.testing.assert_close(predicted, torch.stack(single).mean(0))


def fit(model: GraphDynamics, data: TransitionData, **options) -> lightning.Trainer:
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning advises more workers
        trainer.fit(model, data)
    return trainer


def test_a_plain_trainer_fits_recorded_data_and_its_checkpoint_is_plain(cartpole, filled, tmp_path):
    torch.manual_seed(0)
    model = GraphDynamics(cartpole.spec, replace(SMALL, lr=3e-3))
    model.observe(filled.transitions())
    held = context_target(filled, model.cfg, torch.Generator().manual_seed(99), cartpole.scale, context=10)
    before = model.training_step(held)["loss"].item()
    trainer = fit(model, TransitionData(filled, model.cfg, cartpole.scale, steps=60, seed=1), max_epochs=2)
    assert trainer.global_step == 120
    after = model.training_step(held)["loss"].item()
    assert math.isfinite(after)
    assert after < 0.7 * before

    trainer.save_checkpoint(tmp_path / "model.ckpt")
    state = torch.load(tmp_path / "model.ckpt", weights_only=True)  # nothing but tensors and plain containers
    torch.manual_seed(1)
    other = GraphDynamics(cartpole.spec, model.cfg)
    other.load_state_dict(state["state_dict"])
    with torch.no_grad():
        assert float(other.training_step(held)["loss"]) == model.training_step(held)["loss"].item()
