"""The matrix products of the graph encoder against explicit sums over pairs of nodes, and its invariances."""

from __future__ import annotations

import torch

from mbrl_lightning.beliefs.encoders import GraphEncoder, ProductEncoder

M, K, N, X, Y, Z = 2, 7, 5, 4, 3, 6


def encoder(**options) -> GraphEncoder:
    torch.manual_seed(0)
    return GraphEncoder(X, Y, Z, width=8, **options).double()


def nodes(count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    return torch.randn(M, count, X, **draw), torch.randn(M, count, Y, **draw)


def cosines(net: GraphEncoder, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    a, b = left @ net.similarity.weight.T, right @ net.similarity.weight.T
    return torch.cosine_similarity(a[:, None], b[None], dim=-1)


def explicit(net: GraphEncoder, x: torch.Tensor, y: torch.Tensor, targets: torch.Tensor):
    """Eq. 2-4 for one task the slow way: every pair of nodes gets its own row of an N x N x Z tensor, then sums."""
    h = net.nodes(torch.cat([x, y], -1))
    weight = torch.exp(cosines(net, x, x)) * (1 - torch.eye(len(x), dtype=torch.float64))
    weight = weight / weight.sum(1, keepdim=True)  # softmax over the other nodes
    pairs = weight[:, :, None] * h[None, :, :].expand(len(x), len(x), Z)
    v = h + pairs.sum(1)
    attention = torch.softmax(cosines(net, targets, x), 1)
    messages = (attention[:, :, None] * v[None, :, :].expand(len(targets), len(x), Z)).sum(1)
    return v.mean(0), v, messages


def deviation(log_var: torch.Tensor) -> torch.Tensor:
    return (0.5 * log_var).exp()


def test_products_equal_sums_over_pairs():
    net, (x, y), (targets, _) = encoder(), nodes(K), nodes(N, seed=2)
    belief = net.context(x, y)
    loc, scale = net.target(targets, belief)
    for m in range(M):
        pooled, values, messages = explicit(net, x[m], y[m], targets[m])
        torch.testing.assert_close(belief["values"][m], values)
        torch.testing.assert_close(belief["loc"][m], net.task_loc(pooled))
        torch.testing.assert_close(belief["scale"][m], deviation(net.task_log_var(pooled)))
        torch.testing.assert_close(loc[m], net.point_loc(messages))
        torch.testing.assert_close(scale[m], deviation(net.point_log_var(messages)))


def test_order_of_the_context_does_not_matter_but_pairing_of_inputs_with_outputs_does():
    net, (x, y), (targets, _) = encoder(), nodes(K), nodes(N, seed=2)
    belief, flipped = net.context(x, y), net.context(x.flip(1), y.flip(1))
    torch.testing.assert_close(flipped["loc"], belief["loc"])
    torch.testing.assert_close(flipped["scale"], belief["scale"])
    for a, b in zip(net.target(targets, flipped), net.target(targets, belief), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(net.context(x, y.flip(1))["loc"], belief["loc"])


def test_mean_is_the_sum_over_k_before_the_heads():
    sums, means = encoder(message="sum"), encoder(message="mean")
    for net in (sums, means):
        with torch.no_grad():  # heads that show the message itself
            net.point_loc.weight.copy_(torch.eye(Z))
            net.point_loc.bias.zero_()
    (x, y), (targets, _) = nodes(K), nodes(N, seed=2)
    message = sums.target(targets, sums.context(x, y))[0]
    torch.testing.assert_close(means.target(targets, means.context(x, y))[0], message / K)
    torch.testing.assert_close(means.context(x, y)["loc"], sums.context(x, y)["loc"])  # z_c is the same in both


def test_empty_context_is_a_finite_learned_prior():
    net, (x, y), (targets, _) = encoder(), nodes(0), nodes(N)
    belief = net.context(x, y)
    loc, scale = net.target(targets, belief)
    assert belief["keys"].shape == (M, 0, 8)
    torch.testing.assert_close(belief["loc"], net.task_loc.bias.expand(M, Z))
    torch.testing.assert_close(loc, net.point_loc.bias.expand(M, N, Z))
    for value in (belief["scale"], scale):
        assert torch.isfinite(value).all()
        assert (value > 0).all()
    (belief["loc"].sum() + scale.sum()).backward()
    assert net.task_loc.bias.grad.abs().sum() > 0  # so it can be learned


def test_a_context_of_one_point_is_its_own_message():
    net, (x, y), (targets, _) = encoder(), nodes(1), nodes(N)
    belief = net.context(x, y)
    h = net.nodes(torch.cat([x, y], -1))
    torch.testing.assert_close(belief["values"], h)
    net.nodes = None  # terms of the context are kept in the belief
    torch.testing.assert_close(net.target(targets, belief)[0], net.point_loc(h).expand(M, N, Z))


def test_deviations_stay_in_bounds_whatever_the_network_says():
    net, (x, y) = encoder(), nodes(K)
    for bias, expected in ((1e6, torch.exp(torch.tensor(2.0))), (-1e6, torch.exp(torch.tensor(-5.0)))):
        with torch.no_grad():
            net.task_log_var.bias.fill_(bias)
        torch.testing.assert_close(net.context(x, y)["scale"], expected.double().expand(M, Z), rtol=1e-6, atol=0)


def test_no_tensor_of_the_size_of_all_pairs_times_latent():
    """Memory stays below that of one [K, K, Z] tensor: the products never expand the pairs."""
    count, net = 300, encoder()
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, count, width, generator=generator, dtype=torch.float64) for width in (X, Y))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch(), torch.no_grad():
        net.target(x, net.context(x, y))
    assert count**2 <= largest < 2 * count**2  # Z = 6 would make it 6 times that


# -- product of Gaussians (PEARL)


def product(seed: int = 0) -> ProductEncoder:
    torch.manual_seed(seed)
    return ProductEncoder(X, Z, [8]).double()


def test_the_belief_is_the_normalised_product_of_the_factors():
    """Densities multiplied on a grid, dimension by dimension, then normalised; mean and deviation by sums."""
    net, (x, _) = product(), nodes(K)
    belief = net(x)
    loc, precision = net.factors(x)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.distributions.Normal(loc[..., None], precision[..., None].rsqrt()).log_prob(grid).sum(1)
    weight = torch.softmax(density, -1)
    mean = (weight * grid).sum(-1, keepdim=True)
    deviation = (weight * (grid - mean).square()).sum(-1).sqrt()
    torch.testing.assert_close(belief["loc"], mean.squeeze(-1), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(belief["scale"], deviation, rtol=1e-6, atol=1e-8)
    assert torch.equal(belief["latent"], belief["loc"])


def test_a_further_transition_never_widens_the_product_belief_and_order_does_not_matter():
    net, (x, _) = product(), nodes(K)
    scales = torch.stack([net(x[:, : k + 1])["scale"] for k in range(K)])
    assert (scales[1:] < scales[:-1]).all()
    torch.testing.assert_close(net(x.flip(1)), net(x))


def test_without_a_transition_the_product_is_standard_normal():
    net, (x, _) = product(), nodes(K)
    for belief in (net(x[:, :0]), net(x, torch.zeros(M, K, dtype=torch.bool))):
        assert torch.equal(belief["loc"], torch.zeros(M, Z, dtype=torch.float64))
        assert torch.equal(belief["scale"], torch.ones(M, Z, dtype=torch.float64))
    belief["loc"].sum().backward()
    assert not [p for p in net.parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]


def test_masked_transitions_are_as_if_they_were_not_there():
    net, (x, _) = product(), nodes(K)
    mask = torch.ones(M, K, dtype=torch.bool)
    mask[0, 2:5] = False
    belief = net(x, mask)
    torch.testing.assert_close(belief[:1], net(x[:1, [0, 1, 5, 6]]))
    torch.testing.assert_close(belief[1:], net(x[1:]))


def test_deviations_of_the_product_stay_positive_whatever_the_network_says():
    net, (x, _) = product(), nodes(K)
    for bias in (-1e4, 1e4):
        with torch.no_grad():
            net.net[-1].bias.fill_(bias)
        belief = net(x)
        assert torch.isfinite(belief["loc"]).all()
        assert (belief["scale"] > 0).all()
    torch.testing.assert_close(
        belief["scale"], torch.full((M, Z), (1e4 / K) ** 0.5, dtype=torch.float64), rtol=1e-3, atol=0
    )


def test_the_sum_over_transitions_keeps_its_precision_in_half_precision():
    net = product().float()
    x = torch.randn(1, 2000, X, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        belief = net(x)
    assert belief["loc"].dtype == torch.float32
    torch.testing.assert_close(belief["scale"], net(x)["scale"], rtol=1e-2, atol=0)
