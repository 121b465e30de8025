"""Laws of other groups beyond size and data, each with its source.

They are written as anyone's own (`user_forms`): columns, then constants with the
range of their starts; the docstring is the equation. Columns that are not
explained there:

    unique          unique training tokens
    sparsity        share of the experts that a token does not use, in [0, 1)
    expert_ratio    width of a dense feed-forward layer over an expert's
    lr, batch       peak learning rate, tokens a batch
    vocab_params    parameters of embedding and output layer
    bits            bits of a weight in training
    lr_area         sum of the learning rate over steps, S1
    annealing_area  momentum of the rate's fall, S2 (`annealing_areas`)
    task_loss       loss, or bits per byte, of a model on a task's texts
"""

# mypy: disable-error-code=no-untyped-def

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from familial.core import errors
from familial.laws import parametric
from familial.laws import user_forms
from familial.laws.user_forms import positive
from familial.laws.user_forms import real
from familial.laws.user_forms import within

_LOSS, _SCALE, _EXPONENT = positive(0.4, 3), positive(1, 1e9), positive(0.1, 1)


# Muennighoff et al. (2023), arXiv:2305.16264, equations 5 to 7. U_N, the size that
# the unique tokens can use, is the compute-optimal one of equation 4 there.
def data_constrained(
  N, D, unique, *,
  E=_LOSS, A=_SCALE, alpha=_EXPONENT, B=_SCALE, beta=_EXPONENT,
  R_D=positive(1, 60), R_N=positive(1, 60),
):  # fmt: skip
  """L = E + A/N_^alpha + B/D_^beta, x_ = u (1 + R (1 - exp((1 - x/u)/R)))"""
  data = jnp.minimum(D, unique)
  scale = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
  most = scale * (scale * data) ** (beta / alpha)
  size = jnp.minimum(N, most)
  data = data * (1 + R_D * -jnp.expm1((1 - D / data) / R_D))
  size = size * (1 + R_N * -jnp.expm1((1 - N / size) / R_N))
  return E + A / size**alpha + B / data**beta


# Gadre et al. (2024), arXiv:2403.08540, equation 4: M = D / N tokens a parameter.
def overtrained(N, D, *, E=_LOSS, a=_SCALE, b=_SCALE, eta=positive(0.03, 0.5)):
  """L = E + (a M^eta + b M^-eta) C^-eta, M = D/N, C = 6 N D"""
  log_m, log_c = jnp.log(D / N), jnp.log(6.0) + jnp.log(N) + jnp.log(D)
  return (
    E + a * jnp.exp(eta * (log_m - log_c)) + b * jnp.exp(-eta * (log_m + log_c))
  )


# Abnar et al. (2025), arXiv:2501.12370, equation 3; N counts all experts.
def sparse(
  N, D, sparsity, *,
  E=_LOSS, A=_SCALE, alpha=_EXPONENT, B=_SCALE, beta=_EXPONENT,
  c=positive(1e-3, 10), lambda_=real(-1, 1), d=_SCALE, delta=real(-1, 1),
  gamma=_EXPONENT,
):  # fmt: skip
  """L = E + A/N^alpha + B/D^beta + c/(1-S)^lambda_ + d/((1-S)^delta N^gamma)"""
  dense = jnp.log1p(-sparsity)
  return (
    E + A / N**alpha + B / D**beta + c * jnp.exp(-lambda_ * dense)
    + d * jnp.exp(-delta * dense - gamma * jnp.log(N))
  )  # fmt: skip


# Ludziejewski et al. (2024), arXiv:2402.07871, equation 8.
def fine_grained(
  N, D, expert_ratio, *,
  E=_LOSS, g=_SCALE, gamma=positive(0.1, 2), A=_SCALE, alpha=_EXPONENT, B=_SCALE,
  beta=_EXPONENT,
):  # fmt: skip
  """L = E + (g/expert_ratio^gamma + A)/N^alpha + B/D^beta"""
  return E + (g / expert_ratio**gamma + A) / N**alpha + B / D**beta


# Optimal rate and batch as Li et al. (2025), arXiv:2503.04715, equation 1, around
# which log loss is a parabola in the log of each.
def learning_rate(
  N, D, lr, batch, *,
  E=_LOSS, A=_SCALE, alpha=_EXPONENT, B=_SCALE, beta=_EXPONENT,
  rate=positive(1e-3, 1e3), rate_N=real(-1, 0), rate_D=real(-0.5, 0.5),
  tokens=positive(1e-1, 1e4), tokens_D=real(0, 1),
  bend_rate=positive(1e-4, 1e-1), bend_batch=positive(1e-4, 1e-1),
):  # fmt: skip
  """L = (E + A/N^alpha + B/D^beta)(1 + bend_rate r^2 + bend_batch b^2)"""
  r = jnp.log(lr / rate) - rate_N * jnp.log(N) - rate_D * jnp.log(D)
  b = jnp.log(batch / tokens) - tokens_D * jnp.log(D)
  bend = 1 + bend_rate * r**2 + bend_batch * b**2
  return (E + A / N**alpha + B / D**beta) * bend


# Kumar et al. (2024), arXiv:2411.04330, equation 3, for weights.
def precision(
  N, D, bits, *,
  E=_LOSS, A=_SCALE, alpha=_EXPONENT, B=_SCALE, beta=_EXPONENT,
  gamma=positive(0.5, 8),
):  # fmt: skip
  """L = E + A/(N (1 - exp(-bits/gamma)))^alpha + B/D^beta"""
  return E + A / (N * -jnp.expm1(-bits / gamma)) ** alpha + B / D**beta


# Tao et al. (2024), arXiv:2407.13623, equation 7; N without the vocabulary.
def vocabulary(
  N, vocab_params, D, *,
  E=_LOSS, A=_SCALE, alpha=_EXPONENT, V=_SCALE, nu=_EXPONENT, B=_SCALE,
  beta=_EXPONENT,
):  # fmt: skip
  """L = E + A/N^alpha + V/vocab_params^nu + B/D^beta"""
  return E + A / N**alpha + V / vocab_params**nu + B / D**beta


# Tissue et al. (2024), arXiv:2408.11029, equation 1.
def annealing(
  lr_area, annealing_area, *,
  E=_LOSS, A=positive(1e-2, 10), alpha=_EXPONENT, c=positive(1e-2, 10),
):  # fmt: skip
  """L = E + A/S1^alpha - c S2"""
  return E + A / lr_area**alpha - c * annealing_area


# Gadre et al. (2024), arXiv:2403.08540, equation 5: of the error 1 - accuracy.
def error_of_loss(
  task_loss,
  *,
  chance=within(0.1, 1),
  k=positive(0.1, 10),
  gamma=positive(0.1, 5),
):
  """error = chance - k exp(-gamma task_loss)"""
  return chance - k * jnp.exp(-gamma * task_loss)


# The second step of the OLMo ladder, arXiv:2412.04403, equation 4, of the error.
def sigmoid_of_loss(
  task_loss, *,
  best=within(0, 0.5), chance=within(0.1, 1), middle=real(0.2, 4),
  slope=positive(0.5, 20),
):  # fmt: skip
  """error = best + (chance - best)/(1 + exp(-slope (task_loss - middle)))"""
  share = 1 / (1 + jnp.exp(-slope * (task_loss - middle)))
  return best + (chance - best) * share


LAWS = {
  function.__name__: user_forms.from_function(function)
  for function in (
    data_constrained, overtrained, sparse, fine_grained, learning_rate, precision,
    vocabulary, annealing, error_of_loss, sigmoid_of_loss,
  )
}  # fmt: skip


def mixture(domains: Sequence[str]) -> parametric.Form:
  """The loss of one target by the shares of training domains.

  L = E + k exp(sum over domains of t_i share_i), Ye et al. (2024),
  arXiv:2403.16952, equation 6. Shares sum to 1: t_i are relative to the first.

  Args:
    domains: columns with the domains' shares, two or more.
  """
  if len(domains) < 2 or len(set(domains)) < len(domains):
    raise errors.UserError(
      f'mixture({",".join(domains)}): two or more different columns are needed'
    )
  _, *others = domains
  parameters = [
    parametric.Parameter('E', _LOSS.grid(), parametric.LOG),
    parametric.Parameter('k', positive(1e-2, 10).grid(), parametric.LOG),
    *(
      parametric.Parameter(f't_{d}', real(-4, 4).grid(), null=0.0)
      for d in others
    ),
  ]

  def log_loss(p: parametric.Coordinates, columns: parametric.Columns) -> Any:
    shares = sum(p[f't_{domain}'] * columns[domain] for domain in others)
    return parametric.log_sum(p['log_E'], p['log_k'] + shares)

  terms = ' + '.join(f't_{domain} {domain}' for domain in others)
  return parametric.Form(
    f'mixture({",".join(domains)})',
    f'L = E + k exp({terms})',
    tuple(parameters),
    tuple(others),
    log_loss,
  )


def u_shape(column: str) -> parametric.Form:
  """L = E + A/x^alpha + B x^beta: a loss with a minimum along one column.

  The shape of an IsoFLOP curve (Hoffmann et al. 2022, equation 2, at one C), or of
  loss against any setting that can be too small or too large.
  """
  symbol = parametric.SYMBOLS.get(column, column)
  exponent = parametric.Parameter(
    'alpha', _EXPONENT.grid(), parametric.LOG, is_decay=True
  )
  parameters = (
    parametric.Parameter('E', _LOSS.grid(), parametric.LOG),
    parametric.Parameter('A', positive(1e-3, 1e9).grid(), parametric.LOG),
    exponent,
    parametric.Parameter('B', positive(1e-9, 1e3).grid(), parametric.LOG),
    parametric.Parameter('beta', _EXPONENT.grid(), parametric.LOG),
  )

  def log_loss(p: parametric.Coordinates, columns: parametric.Columns) -> Any:
    log_x = jnp.log(columns[symbol])
    return parametric.log_sum(
      p['log_E'],
      p['log_A'] - jnp.exp(p['log_alpha']) * log_x,
      p['log_B'] + jnp.exp(p['log_beta']) * log_x,
    )

  def best(values: Any) -> Any:
    ratio = values['alpha'] * values['A'] / (values['beta'] * values['B'])
    return ratio ** (1 / (values['alpha'] + values['beta']))

  return parametric.Form(
    f'u_shape({column})',
    f'L = E + A/{symbol}^alpha + B {symbol}^beta',
    parameters,
    (symbol,),
    log_loss,
    {f'{symbol}_opt': best},
  )


def annealing_areas(
  lr: np.ndarray, decay: float = 0.999
) -> tuple[np.ndarray, np.ndarray]:
  """The columns of `annealing` for a schedule: S1 and S2 after each step.

  S1 is the sum of the rate, S2 that of the momentum of its fall, m = decay m +
  (previous rate - rate): Tissue et al. (2024), equation 2.

  Args:
    lr: learning rate of each step, [steps].
    decay: of the momentum.
  """
  falls = -np.diff(lr, prepend=lr[0])
  momentum, momenta = 0.0, np.zeros(len(lr))
  for i, fall in enumerate(falls):
    momenta[i] = momentum = decay * momentum + fall
  return np.cumsum(lr), np.cumsum(momenta)
