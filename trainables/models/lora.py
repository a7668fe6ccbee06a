"""LoRA: linear layers whose weights are frozen, each with a trained update of low rank.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LowRankLinear(nn.Module):
    """y = W x + b + (alpha / r) B A x, with W and b frozen. B begins with zeros, so y begins as that of `linear`.

    Args:
        linear: has W and b.
        rank: r, at most the smaller side of W counts.
        alpha: factor of the update.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.factor = alpha / rank
        rank = min(rank, *linear.weight.shape)
        self.down = nn.Parameter(torch.empty(rank, linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as in the paper's code

    @property
    def weight(self) -> Tensor:
        """W + (alpha / r) B A, (out, in), for modules that use the weight of a layer instead of calling the layer."""
        return self.linear.weight + self.factor * self.up @ self.down

    @property
    def bias(self) -> Tensor | None:
        """b, (out,)."""
        return self.linear.bias

    @property
    def in_features(self) -> int:
        """Length of an input."""
        return self.linear.in_features

    @property
    def out_features(self) -> int:
        """Length of an output."""
        return self.linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        update: Tensor = F.linear(F.linear(x, self.down), self.up)
        return torch.add(self.linear(x), update, alpha=self.factor)


class SelfAttention(nn.Module):
    """nn.MultiheadAttention of a sequence with itself, whose linear layers are modules, so that they can have updates.

    Args:
        attention: has the weights; with `batch_first`, one length of all vectors, and no bias of keys and values.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        assert attention.in_proj_weight is not None
        width, self.num_heads, self.dropout = attention.embed_dim, attention.num_heads, attention.dropout
        self.qkv = nn.Linear(width, 3 * width, bias=attention.in_proj_bias is not None)
        self.qkv.weight = attention.in_proj_weight
        self.qkv.bias = attention.in_proj_bias
        self.proj = nn.Linear(width, width, bias=attention.out_proj.bias is not None)
        self.proj.weight, self.proj.bias = attention.out_proj.weight, attention.out_proj.bias

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        """Sequences (B, N, D) -> (B, N, D), without the weights of the attention. All three inputs are the same."""
        assert query is key is value
        assert not need_weights
        q, k, v = self.qkv(query).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, D / heads) each
        found = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.proj(found.transpose(1, 2).flatten(2)), None


def add_updates(backbone: nn.Module, rank: int, alpha: float) -> int:
    """Gives all linear layers of `backbone` updates, in place.

    Returns: the number of layers.

    Raises:
        ValueError: when an attention is of a kind that SelfAttention cannot replace.
    """
    for name, module in list(backbone.named_modules()):
        if isinstance(module, nn.MultiheadAttention):
            if not module.batch_first or module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
                raise ValueError(
                    f"classifier.train is lora, but the attention {name} has inputs of several kinds; allowed: all, head, "
                    "last_blocks, norm_bias"
                )
            backbone.set_submodule(name, SelfAttention(module))
    layers = [(name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    for name, layer in layers:
        backbone.set_submodule(name, LowRankLinear(layer, rank, alpha))
    return len(layers)
