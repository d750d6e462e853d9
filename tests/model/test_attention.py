"""In bfloat16 on a CPU, where plain products are taken, against the fused kernel in float32."""

import torch
from torch import Tensor
from torch.nn import functional as F

from crystallm.model.attention import causal_attention, masked_attention


def heads(n: int, t: int) -> list[Tensor]:
    return list(torch.randn(n, 3, 2, t, 16, generator=torch.Generator().manual_seed(t)).bfloat16())


def test_causal():
    q, k, v = heads(3, 19)
    fused = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    torch.testing.assert_close(causal_attention(q, k, v).float(), fused, atol=0.03, rtol=0.03)


def test_masked_values_and_gradients():
    [q] = heads(1, 7)
    k, v = heads(2, 19)
    mask = torch.arange(19) < torch.tensor([[19], [4], [1]])
    own = [x.clone().requires_grad_() for x in (q, k, v)]
    exact = [x.float().requires_grad_() for x in (q, k, v)]
    found, fused = masked_attention(*own, mask), masked_attention(*exact, mask)
    torch.testing.assert_close(found.float(), fused, atol=0.03, rtol=0.03)
    found.float().square().sum().backward()
    fused.square().sum().backward()
    for one, other in zip(own, exact, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.float(), other.grad, atol=0.1, rtol=0.1)
    hidden = ~mask[:, None, :, None].expand_as(k)
    assert not own[1].grad[hidden].any() and not own[2].grad[hidden].any()
    torch.testing.assert_close(found[2].float(), v[2, :, :1].float().expand(2, 7, 16))  # one token alone to be seen
