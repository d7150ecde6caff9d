"""What the metrics of `results.csv` are called where people read them, and the order in which methods are put side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Metric(NamedTuple):
    """How a metric is shown: heading of its column or axis, "up" or "down" where one is better, digits of a number."""

    heading: str
    better: str = ""
    digits: int = 3


METRICS = {
    "return/policy": Metric("deterministic policy", "up"),
    "return/sampled": Metric("sampled policy", "up"),
    "return/wrong_belief": Metric("another task's belief"),
    "return/fine_tuned": Metric("fine-tuned", "up"),
    "return/unadapted": Metric("un-adapted", "up"),
    "return/oracle": Metric("true parameters", "up"),
    "return/random": Metric("random policy"),
    "real/return": Metric("return of training episodes", "up"),
    "imagined/return": Metric("imagined return", "up"),
    "reward/before_switch": Metric("before the first switch", "up"),
    "reward/since_0_10": Metric("0-9 steps after one", "up"),
    "reward/since_10_25": Metric("10-24", "up"),
    "reward/since_25_on": Metric("25 and more", "up"),
    "upright/share": Metric("upright [share of steps]", "up"),
    "upright/first_fall": Metric("first fall [step]", "up"),
    "distance": Metric("distance [m]", "up"),
    "model/mse": Metric("MSE", "down"),
    "model/wrong_mse": Metric("MSE, wrong context"),
    "model/null_mse": Metric("MSE of no change"),
    "model/nmse": Metric("nMSE", "down"),
    "model/wrong_nmse": Metric("nMSE, wrong context"),
    "model/null_nmse": Metric("nMSE of no change"),
    "model/blind_nmse": Metric("nMSE, MLP told nothing", "down"),
    "model/told_nmse": Metric("nMSE, MLP told the task", "down"),
    "model/blind_mse": Metric("MSE, MLP told nothing", "down"),
    "model/told_mse": Metric("MSE, MLP told the task", "down"),
    "model/multi_step_nmse": Metric("multi-step nMSE", "down"),
    "model/reward_nmse": Metric("nMSE of the reward", "down"),
    "model/nmse_before": Metric("nMSE, before adapting", "down"),
    "model/nmse_after": Metric("nMSE, after", "down"),
    "model/loss_before": Metric("L, before adapting", "down"),
    "model/loss_after": Metric("L, after", "down"),
    "model/slope": Metric("slope, worst head", "up"),
    "model/nll": Metric("NLL [nats]", "down", 4),
    "policy/kl_cloned": Metric("KL from cloned policy [nats]", "", 4),
    "latent/scale": Metric("posterior sd"),
    "latent/spread": Metric("spread over tasks"),
    "latent/collapse": Metric("collapsed [share of seeds]", "down"),
}
FREE = ("return/random", "return/oracle")
"""The same whatever the context."""
ORDER = ("m3po", "m3po_h", "m2po", "recurrent_sac", "pearl", "visible")
"""Methods for hidden tasks, as they are put side by side; variants (m3po_k3) follow their method, all others go before."""


def metric(name: str) -> Metric:
    """How a metric is shown; one that is not listed (of a task's parameter, of a user) by the end of its name."""
    if name in METRICS:
        return METRICS[name]
    of, _, who = name.rpartition("@")
    if of:
        return Metric(f"{metric(of).heading}, {metric(f'return/{who}').heading}")
    plain = name.removesuffix("_random")
    if plain != name and plain in METRICS:  # measured on what gathers a context
        return METRICS[plain]._replace(heading=f"{METRICS[plain].heading}, exploration")
    group, _, end = name.partition("/")
    return Metric(f"R2 of {end.removeprefix('r2/')}" if group == "probe" else end or name)


def in_order(names: Iterable[str]) -> list[str]:
    """Metrics: listed ones as they are listed, then by the value after `=`, then by name."""
    listed = list(METRICS)

    def place(name: str) -> tuple[int, float, str]:
        value = name.rpartition("=")[2]
        numeric = value.lstrip("-").replace(".", "", 1).isdigit() and "=" in name
        return listed.index(name) if name in METRICS else len(listed), float(value) if numeric else 0.0, name

    return sorted(set(names), key=place)


def place_in_order(algorithm: str) -> tuple[int, str]:
    """What to sort names of algorithms, and of their variants, by."""
    of = [name for name in ORDER if f"{algorithm}_".startswith(f"{name}_")]
    return (ORDER.index(max(of, key=len)) if of else -1), algorithm
