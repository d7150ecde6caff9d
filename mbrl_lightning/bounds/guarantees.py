"""How far a return in the model can be from the true one: the discrepancies of M3PO's theorems.

T. Hiraoka, T. Imagawa, V. Tangkaratt, T. Osa, T. Onishi and Y. Tsuruoka, "Meta-Model-Based Meta-Policy Optimization", ACML
2021; section 5, Table 1 and appendix A. For the true return J and the return J_model of the same policy in the model,
`J >= J_model - C`, with C_Th1 where rollouts are imagined from the initial state on and C_Th2 where k imagined steps branch
off real histories.

Arguments are numbers or arrays that broadcast against each other, results are of the same shape `...`: gamma in [0, 1), discount;
eps_m and eps_pi in [0, 1], total variation distances of the model's next history from the true one and of the policy from the
one that collected the data; k, imagined steps of a branch, whole, at least 1; r_max > 0, bound of the expected reward. Returns
lie within r_max / (1 - gamma) of 0, so a discrepancy beyond `vacuous_above` says nothing. All raise a ConfigError that
names an argument out of range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mbrl_lightning.errors import ConfigError

Array = NDArray[np.float64]
Form = Literal["exact", "printed"]


def full_rollout_discrepancy(gamma: ArrayLike, eps_m: ArrayLike, eps_pi: ArrayLike, r_max: ArrayLike = 1.0) -> Array:
    """C_Th1 in units of the return, for rollouts imagined from the initial state to the end (Theorem 1).

    Table 1 has `r_max [2 gamma (eps_m + 2 eps_pi) / (1 - gamma)^2 + 4 eps_pi / (1 - gamma)]`, which is
    `r_max (2 gamma eps_m + 4 eps_pi) / (1 - gamma)^2`. (Eq. 23 prints its last term with eps_m; Corollary 1 and the
    theorem it builds on agree with the table.)
    """
    gamma, eps_m, eps_pi, r_max = _checked(gamma=gamma, eps_m=eps_m, eps_pi=eps_pi, r_max=r_max)
    return r_max * (2 * gamma * eps_m + 4 * eps_pi) / (1 - gamma) ** 2


def branched_rollout_discrepancy(
    gamma: ArrayLike,
    eps_m: ArrayLike,
    eps_pi: ArrayLike,
    k: ArrayLike = 1,
    r_max: ArrayLike = 1.0,
    form: Form = "exact",
) -> Array:
    """C_Th2 in units of the return, for k imagined steps that branch off real histories (Theorem 2).

    With eps = eps_m + eps_pi, Table 1 prints `r_max [2 eps_pi (1 + gamma^2) / (1 - gamma)^2
    + eps (gamma - k gamma^k + (k - 1) gamma^(k + 1)) / (1 - gamma)^2 + eps (gamma^k - gamma) / (gamma - 1)
    + eps (k + 1) gamma^k / (1 - gamma)]`. The sum at the end of the proof is smaller: its terms in 2 eps_pi alone are
    `1 + sum_t t gamma^t = (1 - gamma + gamma^2) / (1 - gamma)^2`, of which the printed form drops `- gamma`. So

    - exact: `r_max [2 eps_pi (1 - gamma + gamma^2) / (1 - gamma)^2 + eps g(k)]`, where
      `g(k) = 2 gamma / (1 - gamma) + gamma^2 (1 - gamma^(k - 1)) / (1 - gamma)^2` grows with k, so that k = 1 is best;
    - printed: exact + `2 gamma eps_pi r_max / (1 - gamma)^2`; it holds too, but says less.
    """
    gamma, eps_m, eps_pi, k, r_max = _checked(gamma=gamma, eps_m=eps_m, eps_pi=eps_pi, k=k, r_max=r_max)
    if form not in ("exact", "printed"):
        raise ConfigError(f"form={form!r}: no such form of the bound", "choose 'exact' or 'printed'")
    rest = 1 - gamma
    branch = 2 * gamma / rest + gamma**2 * (1 - gamma ** (k - 1)) / rest**2
    policy = 1 + gamma**2 - (gamma if form == "exact" else 0.0)
    return r_max * (2 * eps_pi * policy / rest**2 + (eps_m + eps_pi) * branch)


def vacuous_above(gamma: ArrayLike, r_max: ArrayLike = 1.0) -> Array:
    """`2 r_max / (1 - gamma)`: any two returns differ by no more, so that a larger discrepancy says nothing."""
    gamma, r_max = _checked(gamma=gamma, r_max=r_max)
    return 2 * r_max / (1 - gamma)


def pinsker(divergence: ArrayLike) -> Array:
    """Total variation that a Kullback-Leibler divergence [nats] allows, `min(sqrt(KL / 2), 1)` (Pinsker's inequality).

    A divergence below 0 (an estimate may be) counts as 0, and what is not a number as unbounded.
    """
    divergence = np.nan_to_num(np.asarray(divergence, dtype=np.float64), nan=np.inf, posinf=np.inf)
    return np.minimum(np.sqrt(np.maximum(divergence, 0.0) / 2), 1.0)


DISTANCE = ("a total variation distance, from 0 to 1", lambda x: (x >= 0) & (x <= 1))
LIMITS: dict[str, tuple[str, Callable[[Array], NDArray[np.bool_]]]] = {
    "gamma": ("at least 0 and below 1", lambda x: (x >= 0) & (x < 1)),
    "eps_m": DISTANCE,
    "eps_pi": DISTANCE,
    "r_max": ("above 0 and finite", lambda x: (x > 0) & np.isfinite(x)),
    "k": (
        "a whole number, at least 1: Theorem 2 holds for k >= 1 only",
        lambda x: (x >= 1) & (x == np.floor(x)) & np.isfinite(x),
    ),
}


def _checked(**arguments: ArrayLike) -> tuple[Array, ...]:
    arrays = {name: np.asarray(value, dtype=np.float64) for name, value in arguments.items()}
    for name, values in arrays.items():
        allowed, inside = LIMITS[name]
        if not inside(values).all():
            cause = f"{name}={values[~inside(values)].flat[0]:g}: must be {allowed}"
            raise ConfigError(cause, "give values in range; see python -m mbrl_lightning.bounds --help")
    return tuple(arrays.values())
