"""Decoder-only language models: a small GPT, and the models of Hugging Face transformers."""

from __future__ import annotations

import importlib
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpeval.errors import ConfigError


def gpt(
    vocab_size: int,
    seq_len: int,
    layers: int = 4,
    heads: int = 4,
    width: int = 256,
    dropout: float = 0.0,
) -> nn.Module:
    """A GPT with newly initialised weights.

    Args:
        vocab_size: columns of the logits.
        seq_len: the longest sequence, in tokens.
        layers: number of blocks.
        heads: attention heads of a block.
        width: size of the residual stream.
        dropout: share of activations that each dropout sets to zero.

    Raises:
        ConfigError: `width` is not a multiple of `heads`.
    """
    if width % heads:
        raise ConfigError(
            f"model.args.width={width} is not a multiple of model.args.heads={heads}; use a "
            "multiple: every head gets an equal part"
        )
    return GPT(vocab_size, seq_len, layers, heads, width, dropout)


class GPT(nn.Module):
    """GPT-2's architecture (Radford et al. 2019): pre-norm blocks, learned positions, and one
    matrix that embeds tokens and predicts them."""

    def __init__(
        self, vocab_size: int, seq_len: int, layers: int, heads: int, width: int, dropout: float
    ) -> None:
        """See :func:`gpt`.

        Args:
            vocab_size: columns of the logits.
            seq_len: the longest sequence, in tokens.
            layers: number of blocks.
            heads: attention heads of a block.
            width: size of the residual stream.
            dropout: share of activations that each dropout sets to zero.
        """
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(seq_len, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(heads, width, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        self.apply(_initialise)
        # Keeps the residual stream from growing with depth (Radford et al. 2019, section 2.3).
        for name, weight in self.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.2.weight")):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next tokens, [b, length, vocab_size], from `tokens`, int64 [b, length]."""
        x = self.dropout(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


class Block(nn.Module):
    """Causal attention and a two-layer perceptron, each added to the residual stream."""

    def __init__(self, heads: int, width: int, dropout: float) -> None:
        """One of the blocks of :func:`gpt`.

        Args:
            heads: attention heads.
            width: size of the residual stream.
            dropout: share of activations that each dropout sets to zero.
        """
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(heads, width, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before_attention(x))
        summed: Tensor = x + self.mlp(self.before_mlp(x))
        return summed


class Attention(nn.Module):
    """Causal self-attention with several heads."""

    def __init__(self, heads: int, width: int, dropout: float) -> None:
        """The attention of a block.

        Args:
            heads: number of heads.
            width: size of the residual stream.
            dropout: share of activations that each dropout sets to zero.
        """
        super().__init__()
        self._heads, self._dropout = heads, dropout
        self.inputs = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = (
            part.view(batch, length, self._heads, -1).transpose(1, 2)
            for part in self.inputs(x).split(width, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=self._dropout if self.training else 0.0, is_causal=True
        )
        merged = mixed.transpose(1, 2).reshape(batch, length, width)
        attended: Tensor = self.dropout(self.out(merged))
        return attended


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def transformers_causal_lm(model_type: str, **config: Any) -> nn.Module:
    """An untrained causal language model from Hugging Face transformers.

    Args:
        model_type: as ``transformers.AutoConfig.for_model`` takes it: gpt2, llama, …
        config: keys of that type's configuration.

    Raises:
        ConfigError: transformers is not installed or has no such model.
    """
    try:
        # An optional dependency that takes seconds to import.
        transformers: Any = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "model=transformers needs the package transformers; install it with pip install "
            "'dpeval[transformers]', or use model=gpt"
        ) from error
    try:
        # The cache of keys and values only serves text generation.
        made = transformers.AutoConfig.for_model(model_type, **{"use_cache": False, **config})
    except ValueError as error:
        raise ConfigError(
            f"model.args.model_type={model_type} is not a model type of transformers "
            f"{transformers.__version__}; give the name of a decoder, such as gpt2 or llama"
        ) from error
    model = transformers.AutoModelForCausalLM.from_config(made)
    return cast(nn.Module, model.to(torch.float32))
