"""The same decoder with exits in PyTorch, as its users would write it."""

from typing import Any

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

from familial.model import config as model_config
from familial.training import config as train_config


class Layer(nn.Module):
  """One decoder layer; heads share nothing (kv_heads = heads)."""

  def __init__(self, config: model_config.ModelConfig):
    super().__init__()
    width, mlp_width = config.width, config.mlp_width
    self.heads = config.heads
    self.attention_norm = nn.RMSNorm(width, eps=config.norm_eps)
    self.q = nn.Linear(width, width, bias=False)
    self.k = nn.Linear(width, width, bias=False)
    self.v = nn.Linear(width, width, bias=False)
    self.o = nn.Linear(width, width, bias=False)
    self.mlp_norm = nn.RMSNorm(width, eps=config.norm_eps)
    self.gate = nn.Linear(width, mlp_width, bias=False)
    self.up = nn.Linear(width, mlp_width, bias=False)
    self.down = nn.Linear(mlp_width, width, bias=False)

  def forward(
    self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
  ) -> torch.Tensor:
    batch, length, width = x.shape
    h = self.attention_norm(x)
    q, k, v = (
      linear(h).view(batch, length, self.heads, -1).transpose(1, 2)
      for linear in (self.q, self.k, self.v)
    )
    out = F.scaled_dot_product_attention(
      _rotate(q, cos, sin), _rotate(k, cos, sin), v, is_causal=True
    )
    x = x + self.o(out.transpose(1, 2).reshape(batch, length, width))
    h = self.mlp_norm(x)
    return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
  """A decoder with exits of kind `head` and a tied unembedding."""

  def __init__(self, config: model_config.ModelConfig, length: int):
    super().__init__()
    self.exits = config.exits
    self.scale = config.base_width / config.width
    self.embedding = nn.Embedding(config.vocab_size, config.width)
    self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
    self.norms = nn.ModuleList(
      nn.RMSNorm(config.width, eps=config.norm_eps) for _ in config.exits
    )
    dim = config.head_dim
    frequencies = config.rope_theta ** (-torch.arange(0, dim, 2) / dim)
    angles = torch.arange(length)[:, None] * frequencies
    self.register_buffer('cos', torch.cat([angles.cos()] * 2, dim=-1))
    self.register_buffer('sin', torch.cat([angles.sin()] * 2, dim=-1))

  def forward(
    self, inputs: torch.Tensor, targets: torch.Tensor
  ) -> torch.Tensor:
    """Returns each exit's mean cross-entropy [G], nats."""
    x = self.embedding(inputs)
    losses = []
    for number, layer in enumerate(self.layers, start=1):
      x = layer(x, self.cos, self.sin)
      if number in self.exits:
        norm = self.norms[len(losses)]
        logits = F.linear(norm(x) * self.scale, self.embedding.weight)
        losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    return torch.stack(losses)


def decoder(
  params: dict[str, Any], config: model_config.ModelConfig, length: int
) -> Decoder:
  """Returns the decoder with this project's parameters in it."""
  model = Decoder(config, length)
  stacks = [params[f'segment_{i}'] for i in range(config.granularity)]
  with torch.no_grad():
    _copy(model.embedding.weight, params['embedding'])
    for exit_, norm in enumerate(model.norms, start=1):
      _copy(norm.weight, params[f'exit_{exit_}']['norm']['gain'])
    places = [
      (stack, layer)
      for stack, depth in zip(stacks, config.segment_depths, strict=True)
      for layer in range(depth)
    ]
    for module, (stack, layer) in zip(model.layers, places, strict=True):
      for norm in ('attention_norm', 'mlp_norm'):
        _copy(getattr(module, norm).weight, stack[norm]['gain'][layer])
      for room, names in (
        ('attention', 'qkvo'),
        ('mlp', ('gate', 'up', 'down')),
      ):
        for name in names:
          kernel = np.asarray(stack[room][name]['kernel'][layer])
          _copy(getattr(module, name).weight, kernel.T)
  return model


def adamw(
  model: Decoder,
  config: model_config.ModelConfig,
  train: train_config.TrainConfig,
) -> torch.optim.Optimizer:
  """Returns fused AdamW with this project's rates and decay at full rate."""
  factor = config.base_width / config.width
  # PyTorch's decay is times the group's rate; here it is times base_lr.
  kernels = [p for p in model.layers.parameters() if p.dim() == 2]
  gains = [p for p in model.parameters() if p.dim() == 1]
  decay = train.weight_decay
  return torch.optim.AdamW(
    [
      {
        'params': kernels,
        'lr': train.base_lr * factor,
        'weight_decay': decay / factor,
      },
      {'params': [model.embedding.weight], 'weight_decay': decay},
      {'params': gains, 'weight_decay': 0.0},
    ],
    lr=train.base_lr,
    betas=(train.beta1, train.beta2),
    eps=train.eps,
    fused=True,
  )


def step(
  model: nn.Module,
  optimizer: torch.optim.Optimizer,
  batch: dict[str, np.ndarray],
  clip: float,
) -> torch.Tensor:
  """Takes one step; returns the losses [G] before it."""
  inputs = torch.from_numpy(batch['inputs_BxL']).long()
  targets = torch.from_numpy(batch['targets_BxL']).long()
  losses = model(inputs, targets)
  optimizer.zero_grad(set_to_none=True)
  losses.mean().backward()
  nn.utils.clip_grad_norm_(model.parameters(), clip)
  optimizer.step()
  return losses.detach()


def _rotate(
  x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
  first, second = x.chunk(2, dim=-1)
  return x * cos + torch.cat([-second, first], dim=-1) * sin


def _copy(parameter: torch.Tensor, values: Any) -> None:
  parameter.copy_(torch.from_numpy(np.array(values)))
