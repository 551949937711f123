"""Distances against numbers worked out apart from torch, and what each is blind to."""

import numpy as np
import pytest
import torch
from onnx_opt.frontends.training import losses
from onnx_opt.frontends.training.objective import output_scales
from torch.nn import functional as F  # noqa: N812 - torch's own convention

P = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
Q = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 1.0]])


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_by_hand(temperature):
    p, q = (
        softmax(P.numpy().astype(float) / temperature),
        softmax(Q.numpy().astype(float) / temperature),
    )
    wanted = float((p * np.log(p / q)).sum(1).mean() * temperature**2)
    assert losses.kl(Q, P, temperature).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["kl", "dist", "dkd", "binary"])
def test_nothing_is_lost_on_the_teacher_itself(name):
    assert getattr(losses, name)(P.clone(), P, 2.0).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["cosine", "attention", "relation"])
def test_no_distance_from_oneself(name):
    x = torch.arange(24.0).reshape(2, 3, 4) - 7
    assert getattr(losses, name)(x, x).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["kl", "dkd", "dist"])
def test_classes_do_not_see_a_shift_of_all_logits(name):
    loss = getattr(losses, name)
    assert loss(Q + 3, P, 2.0).item() == pytest.approx(loss(Q, P, 2.0).item(), rel=1e-4)


def test_dkd_with_weight_one_for_each_part_is_kl():
    """KL = first + (1 - p_top) * rest; with the rest weighted so for each row, both agree.
    arXiv:2203.08679, eq. 7.
    """
    p = F.softmax(P[:1], -1)
    others = float(1 - p.max())
    assert losses.dkd(Q[:1], P[:1], 1.0, others).item() == pytest.approx(
        losses.kl(Q[:1], P[:1], 1.0).item(), rel=1e-4
    )


def test_dist_by_correlation():
    q, p = softmax(Q.numpy().astype(float)), softmax(P.numpy().astype(float))
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    classes = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    assert losses.dist(Q, P, 1.0).item() == pytest.approx(2 - rows - classes, rel=1e-4)


def test_mse_is_one_for_the_mean():
    variance = P.var(correction=0).item()
    assert losses.mse(
        torch.full_like(P, P.mean()), P, variance
    ).item() == pytest.approx(1)
    assert losses.mse(P, P, variance).item() == 0


def test_columns_of_other_units_weigh_alike():
    y = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    y = y * torch.tensor([1e-3, 1.0, 2e4]) + torch.tensor([0.0, 5.0, 3e4])
    (scale,) = output_scales({"y": y}).values()
    assert losses.mse(y.mean(0).expand_as(y), y, scale).item() == pytest.approx(1)
    for column in range(3):
        own = y.clone()
        own[:, column] = y[:, column].mean()
        assert losses.mse(own, y, scale).item() == pytest.approx(1 / 3)
    # scores of classes are of one unit
    assert output_scales({"y": P}) == {"y": P.double().var(correction=0).item()}
    assert output_scales({"y": P[:, 0]}) == {"y": P[:, 0].double().var(0, False).item()}


def test_cosine_does_not_see_lengths():
    assert losses.cosine(3 * P, P).item() == pytest.approx(0, abs=1e-6)


def test_attention_does_not_see_which_channel():
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert losses.attention(x.flip(1), x).item() == pytest.approx(0, abs=1e-6)
    assert losses.attention(x.flip(2), x).item() > 0.01


def test_relation_compares_widths_that_differ():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert losses.relation(torch.cat([x, x], 1), x).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["kl", "dist", "dkd", "binary"])
def test_sequences_of_classes_are_rows(name):
    loss = getattr(losses, name)
    assert loss(Q[None], P[None], 1.0).item() == pytest.approx(
        loss(Q, P, 1.0).item(), rel=1e-5
    )
