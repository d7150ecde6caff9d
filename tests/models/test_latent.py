"""GSSM and MLSM: sizes of the paper, evidence lower bounds, fitting with a plain Lightning Trainer."""

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

from mbrl_lightning.beliefs.encoders import AttentiveEncoder, GraphEncoder, MeanEncoder
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.data.batches import TransitionData, context_target
from mbrl_lightning.models.latent import LatentDynamics

SMALL = DynamicsConfig(latent_dim=3, width=8, hidden=16, layers=1, tasks=4, context=12, targets=12)


@pytest.mark.parametrize(
    ("table", "observation", "action", "hidden", "layers", "exact"),
    [
        ("8.9e4", 4, 1, 200, 2, (89_844, 89_108)),
        ("8.1e5", 4, 1, 400, 5, (816_644, 815_908)),
        ("2.1e5", 18, 6, 200, 5, (218_722, 217_378)),
        ("2.3e5", 45, 17, 200, 5, (235_045, 232_485)),
    ],
    ids=["cart-pole", "acrobot", "half-cheetah", "slim-humanoid"],
)
def test_parameter_counts_of_table_5(table, observation, action, hidden, layers, exact):
    cfg = DynamicsConfig(latent_dim=16, width=32, hidden=hidden, layers=layers)
    for encoder, expected in zip((GraphEncoder, MeanEncoder), exact, strict=True):
        model = LatentDynamics(plain_spec(observation, action), cfg, encoder)
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert count == expected
        digits = 10 ** (len(str(count)) - 2)
        assert float(table) == count // digits * digits  # the paper truncates


def batch_of(
    model: LatentDynamics, context: int = 5, targets: int = 4, particles: int = 1, tasks: int = 2
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


def small(encoder=GraphEncoder, **changes) -> LatentDynamics:
    torch.manual_seed(0)
    return LatentDynamics(plain_spec(), replace(SMALL, **changes), encoder).double()


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


@pytest.mark.parametrize("encoder", [MeanEncoder, AttentiveEncoder])
def test_a_neural_process_weighs_one_kl_a_task_against_the_sum_of_its_targets(encoder):
    model = small(encoder, particles=2, kl_weight=0.5, scale=0.3)
    batch = batch_of(model, particles=2).double()
    losses, target, context = model.training_step(batch), batch["target"], batch["context"]
    prior, total = model.infer(context), 0.0
    after = model.infer(torch.cat([context, target], 1))  # the same encoder on both
    x, y = model.inputs(target["observation"], target["action"]), model.targets(target)
    for m in range(2):
        for particle in range(2):
            z = (
                after["loc"][m] + after["scale"][m] * batch["noise"][m, particle, 0]
            )  # once for all of the task's targets
            told = model.encoder.code(x, z.expand(2, 4, -1), prior)[m]
            mean = model.decoder(torch.cat([x[m], told], -1).unsqueeze(0))[0]
            total = total - Normal(mean, 0.3).log_prob(y[m]).sum() / 2
        both = Normal(after["loc"][m], after["scale"][m]), Normal(prior["loc"][m], prior["scale"][m])
        total = total + 0.5 * kl_divergence(*both).sum()
    torch.testing.assert_close(losses["loss"], total / (2 * 4))
    assert losses["loss_kl"] > 0


def test_an_attentive_process_is_the_plain_one_but_for_a_constant_code_if_it_attends_to_all_alike():
    plain, attentive = small(MeanEncoder), small(AttentiveEncoder)
    batch = batch_of(plain, targets=6).double()
    seen = batch["target", "observation"], batch["target", "action"]
    with torch.no_grad():
        attentive.encoder.load_state_dict(plain.encoder.state_dict(), strict=False)
        belief = attentive.infer(batch["context"])
        apart = attentive.code(attentive.inputs(*seen), belief)[..., 3:]
        assert not torch.allclose(apart, apart[:, :1].expand_as(apart))
        attentive.encoder.keys.weight.zero_()
        belief = attentive.infer(batch["context"])
        code = attentive.code(attentive.inputs(*seen), belief)
        torch.testing.assert_close(code[..., :3], plain.code(plain.inputs(*seen), plain.infer(batch["context"])))
        torch.testing.assert_close(code[..., 3:], belief["values"].mean(1, keepdim=True).expand(-1, 6, -1))
        first, width = (
            attentive.decoder.affine[0],
            plain.decoder.sizes[0],
        )  # the plain decoder under the code of one task
        for mine, its in zip(plain.decoder.affine, attentive.decoder.affine, strict=True):
            mine.bias.copy_(its.bias)
            mine.weight.copy_(its.weight[:, : mine.weight.shape[1]])
        plain.decoder.affine[0].bias.add_(code[0, 0, 3:] @ first.weight[0, width:])
        one = plain.predict(seen[0][:1], seen[1][:1], plain.infer(batch["context"][:1]))
    torch.testing.assert_close(one, attentive.predict(*seen, belief)[:1])


@pytest.mark.parametrize("encoder", [MeanEncoder, AttentiveEncoder])
def test_a_process_knows_no_order_and_nothing_of_an_empty_context(encoder):
    model = small(encoder)
    context, x = batch_of(model).double()["context"], torch.randn(2, 4, 5, dtype=torch.float64)
    code = model.code(x, model.infer(context))
    torch.testing.assert_close(model.code(x, model.infer(context.flip(1))), code)
    nothing = model.infer(context[:, :0])
    torch.testing.assert_close(nothing["loc"], model.encoder.task_loc.bias.expand(2, 3))
    assert model.code(x, nothing).shape == code.shape
    noise = torch.randn(2, 4, 3, dtype=torch.float64)  # of a stream each
    told = model.code(x, model.infer(context), noise)[..., :3]
    torch.testing.assert_close(
        told, model.infer(context)["loc"][:, None] + model.infer(context)["scale"][:, None] * noise
    )


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


def fit(model: LatentDynamics, data: TransitionData, **options) -> lightning.Trainer:
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
    model = LatentDynamics(cartpole.spec, replace(SMALL, lr=3e-3))
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
    other = LatentDynamics(cartpole.spec, model.cfg)
    other.load_state_dict(state["state_dict"])
    with torch.no_grad():
        assert float(other.training_step(held)["loss"]) == model.training_step(held)["loss"].item()
