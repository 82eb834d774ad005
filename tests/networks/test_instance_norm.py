from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nnssl.networks.pimpic_unet import instance_norm, keeps_layout


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_instance_norm__value_gradient_and_layout(
    memory_format: torch.memory_format, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    x = (2 + 3 * torch.randn(3, 4, 5, 6, 7, dtype=dtype)).to(memory_format=memory_format).requires_grad_()
    upstream = torch.randn_like(x).contiguous()
    normalised = instance_norm(x)
    assert normalised.is_contiguous(memory_format=memory_format)
    (gradient,) = torch.autograd.grad(normalised, x, upstream)
    wide = x.detach().double().requires_grad_()
    expected = F.instance_norm(wide)
    (expected_gradient,) = torch.autograd.grad(expected, wide, upstream.double())
    torch.testing.assert_close(normalised.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=tolerance)


def test_instance_norm__an_in_place_activation_may_follow() -> None:
    x = torch.randn(2, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d).requires_grad_()
    (one,) = torch.autograd.grad(F.relu_(instance_norm(x)).square().sum(), x)
    (other,) = torch.autograd.grad(F.relu(F.instance_norm(x)).square().sum(), x)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_instance_norm__half_precision_and_one_voxel_go_torchs_way() -> None:
    half = torch.randn(2, 3, 4, 4, 4).bfloat16().to(memory_format=torch.channels_last_3d)
    assert keeps_layout(half)
    torch.testing.assert_close(instance_norm(half), F.instance_norm(half), rtol=0, atol=0)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        instance_norm(torch.randn(1, 3, 1, 1, 1))
