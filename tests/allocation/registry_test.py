"""A new policy and a new surrogate, each one line of the registry."""

import dataclasses

import numpy as np

from experiments import allocation
from familial.allocation import comparison
from familial.allocation import config
from familial.allocation import halving
from familial.allocation import policies
from familial.allocation import rounds
from familial.allocation import surrogate


def linear(observed, keys):
  """A surrogate: each curve's last slope in ln C goes on."""
  del keys
  log_c, loss = observed.log_c_SxT[:, None], observed.loss_SxMxT
  slope = (loss[..., -1] - loss[..., -2]) / (log_c[..., -1] - log_c[..., -2])
  ahead = observed.log_end_SxM - log_c[..., -1]
  mean = loss[..., -1] + slope * ahead
  return halving.Prediction(mean, mean - 0.1 * ahead, mean + 0.1 * ahead)


@dataclasses.dataclass(frozen=True)
class Smallest:
  """A policy: the budget goes to the candidates in order of size."""

  live: bool = True
  bracketed: bool = True

  def check(self, law):
    del law

  def survivors(self, candidates, eta):
    del candidates, eta
    return ()

  def allocate(self, sources, budgets, settings):
    del settings
    ledgers = list(map(rounds.Ledger, sources, budgets))
    for ledger in ledgers:
      sizes = [features['params'] for features in ledger.source.features]
      for i in np.argsort(sizes).tolist():
        left = (1 - 1e-9) * ledger.budget - ledger.total
        end = min(ledger.source.limit(i), left)
        if end > 0:
          ledger.advance({i: end})
      trained = list(ledger.known)
      ledger.close_round(trained, ledger.budget, ledger.spent[trained], trained)
    return [ledger.allocation() for ledger in ledgers]


def test_a_policy_and_a_surrogate_are_a_line_each(monkeypatch, tmp_path):
  policy = policies.SuccessiveHalving(surrogate.ranked_by(linear))
  monkeypatch.setitem(policies.POLICIES, 'sh_linear', policy)
  monkeypatch.setitem(policies.POLICIES, 'smallest', Smallest())
  asked = allocation.get_config('test')
  asked.policies, asked.law.form = ('sh_linear', 'smallest'), ''
  result, [cell] = comparison.run(config.read(asked), tmp_path)
  [found] = result.cells
  assert set(found.policies) == {'sh', 'oracle', 'sh_linear', 'smallest'}
  assert found.policies['sh_linear'].best.value < 10
  assert [row.round for row in found.calibration['sh_linear']] == [1]
  assert found.policies['smallest'].spent.value <= found.budget
  assert len(cell.draws) == 4 * found.draws == 12
