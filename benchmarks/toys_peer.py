"""The toys in PyTorch, one student after another, as its users would write it."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from familial.analysis import toys

Layers = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def layers(params: dict[str, Any], member: int, learns: bool) -> Layers:
  """Returns a network's layers, as torch's linear maps take them."""
  turned = {
    'in': np.swapaxes(params['in'][member], 1, 2),
    'bias': params['bias'][member],
    'out': np.swapaxes(params['out'][member], 1, 2),
  }
  return [
    tuple(
      torch.from_numpy(np.array(turned[name][layer])).requires_grad_(learns)
      for name in turned
    )
    for layer in range(len(turned['bias']))
  ]


def last(network: Layers, x: torch.Tensor, stages: int = 1) -> torch.Tensor:
  """Returns the normed last states [B, D]."""
  size = x.shape[1:]
  x = F.rms_norm(x, size, eps=1e-6)
  for inner, bias, outer in network:

    def mlp(x, inner=inner, bias=bias, outer=outer):
      h = F.relu(F.linear(F.rms_norm(x, size, eps=1e-6), inner, bias))
      return F.linear(h * h, outer)

    x = x + mlp(x if stages == 1 else x + mlp(x) / 2)
  return F.rms_norm(x, size, eps=1e-6)


class Student:
  """A student under training by fused Adam, its teacher, and its heads.

  Args:
    task: what it is trained for.
    params: of the students [M, ...].
    member: which of them.
    teachers: all.
    teacher: its own.
    temperature: of the heads.
    compiled: whether torch.compile makes the networks' programs.
  """

  def __init__(
    self,
    task: toys.Task,
    params: dict[str, Any],
    member: int,
    teachers: toys.Teachers,
    teacher: int,
    temperature: float,
    compiled: bool,
  ):
    self._task, self._cold = task, temperature
    self._layers = layers(params, member, True)
    self._teacher = layers(teachers.mlps, teacher, False)
    self._right = torch.from_numpy(np.array(teachers.head[teacher])).T
    self._own = self._right
    weights = [weight for layer in self._layers for weight in layer]
    if task.head == 'learned':
      own = torch.from_numpy(np.array(params['head'][member]).T.copy())
      self._own = own.requires_grad_()
      weights.append(self._own)
    self._adam = torch.optim.Adam(weights, lr=1.0, fused=True)
    self._last = torch.compile(last) if compiled else last

  def loss(self, x: torch.Tensor) -> torch.Tensor:
    """Returns the mean loss on inputs [B, D]."""
    with torch.no_grad():
      y = self._last(self._teacher, x)
    out = self._last(self._layers, x, self._task.stages)
    if self._task.head == 'none':
      return F.mse_loss(out, y)
    with torch.no_grad():
      right = F.log_softmax(F.linear(y, self._right) / self._cold, dim=-1)
    found = F.log_softmax(F.linear(out, self._own) / self._cold, dim=-1)
    return F.kl_div(found, right, reduction='batchmean', log_target=True)

  def step(self, x: torch.Tensor, rate: float) -> None:
    """Takes one step."""
    self._adam.param_groups[0]['lr'] = rate
    loss = self.loss(x)
    self._adam.zero_grad(set_to_none=True)
    loss.backward()
    self._adam.step()
