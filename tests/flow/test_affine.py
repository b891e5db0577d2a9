"""u = W_y (x - mu_y): it whitens each class, is undone, and says by how much it stretches."""

import numpy as np
import torch
from scipy.stats import multivariate_normal

from cadp_fl.flow.affine import ConditionalAffine
from cadp_fl.flow.conditions import condition_of

CLASSES, DIMS = 3, 5


def random_layer(seed=0):
    """Return a layer of any means and whitenings, lower triangular with a positive diagonal; float64."""
    generator = torch.Generator().manual_seed(seed)
    layer = ConditionalAffine(CLASSES, DIMS).double()
    with torch.no_grad():
        layer.mean.copy_(torch.randn(CLASSES, DIMS, generator=generator))
        layer.whitening.copy_(torch.randn(CLASSES, DIMS, DIMS, generator=generator))
        layer.whitening.diagonal(dim1=1, dim2=2).abs_().add_(0.5)
    return layer


def records(count=30, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, DIMS, generator=generator).double()
    return x, condition_of(torch.arange(count) % CLASSES, CLASSES, torch.float64)


def test_a_new_layer_changes_nothing():
    x, condition = records()
    u, log_det = ConditionalAffine(CLASSES, DIMS).double()(x, condition)
    assert torch.equal(u, x)
    assert not log_det.any()


def test_the_inverse_undoes_it():
    layer, (x, condition) = random_layer(), records()
    torch.testing.assert_close(layer.inverse(layer(x, condition)[0], condition), x)
    torch.testing.assert_close(layer(layer.inverse(x, condition), condition)[0], x)


def test_the_log_determinant_is_that_of_autograds_jacobian():
    layer, (x, condition) = random_layer(), records(6)
    log_det = layer(x, condition)[1]
    for row in range(len(x)):
        own = condition[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(lambda one, own=own: layer(one[None], own)[0][0], x[row])
        torch.testing.assert_close(log_det[row].detach(), torch.linalg.slogdet(jacobian)[1])


def test_a_standard_normal_u_makes_x_normal_with_covariance_w_transposed_w_inverted():
    layer, (x, condition) = random_layer(), records()
    u, log_det = layer(x, condition)
    found = log_det.detach() + torch.from_numpy(multivariate_normal(np.zeros(DIMS)).logpdf(u.detach()))
    for row in range(len(x)):
        y = row % CLASSES
        whitening = layer.whitening[y].detach().tril()
        normal = multivariate_normal(layer.mean[y].detach(), torch.linalg.inv(whitening.T @ whitening))
        assert abs(found[row].item() - normal.logpdf(x[row])) < 1e-9


def test_what_is_above_the_diagonal_does_not_count():
    layer, (x, condition) = random_layer(), records()
    before = layer(x, condition)[0], layer.inverse(x, condition)
    with torch.no_grad():
        layer.whitening.add_(torch.ones(DIMS, DIMS).triu(1))
    assert torch.equal(layer(x, condition)[0], before[0])
    assert torch.equal(layer.inverse(x, condition), before[1])


def test_whitening_leaves_no_mean_and_no_correlation():
    """20,000 records of each class, all entries within 6 standard errors of 0 or 1."""
    layer, generator, count = random_layer(), torch.Generator().manual_seed(2), 20_000
    for y in range(CLASSES):
        covariance = torch.eye(DIMS).double() + torch.ones(DIMS, DIMS).double() * (y + 1) / 2
        factor = torch.linalg.cholesky(covariance)
        x = torch.randn(count, DIMS, generator=generator).double() @ factor.T + y
        with torch.no_grad():
            layer.mean[y] = float(y)
            layer.whitening[y] = torch.linalg.inv(factor)
        u = layer(x, condition_of(torch.full((count,), y), CLASSES))[0].detach()
        assert u.mean(dim=0).abs().max() < 6 / count**0.5
        assert (torch.cov(u.T) - torch.eye(DIMS)).abs().max() < 6 * (2 / count) ** 0.5


def test_a_record_is_mapped_as_if_it_were_alone():
    layer, (x, condition) = random_layer(), records()
    together = layer(x, condition)[0]
    other = torch.cat([x[:1], 1e3 * x[1:]])
    assert torch.equal(layer(other, condition)[0][0], together[0])
