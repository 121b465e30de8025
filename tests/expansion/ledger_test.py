"""The ledger of a chain: every size at its own budget, and what is saved."""

import dataclasses

import pytest

from familial.core import errors
from familial.expansion import ledger
from familial.model import config as model_config
from familial.model import flops

SEQ, BATCH = 64, 4


def sizes(*depths, width=32):
  return [
    model_config.ModelConfig(
      vocab_size=256,
      width=width,
      depth=depth,
      heads=4,
      kv_heads=4,
      mlp_width=88,
      exits=(depth,),
    )
    for depth in depths
  ]


@pytest.mark.parametrize('grown', [True, False])
def test_every_size_is_within_half_a_step_of_its_budget(grown):
  models = sizes(1, 2, 4, 8)
  budgets = [3e11 * share for share in ledger.shares(models, SEQ)]
  found = ledger.stages(models, budgets, SEQ, BATCH, grown=grown)
  for stage in found:
    step = BATCH * SEQ * flops.train(stage.model, SEQ)
    off = ledger.steps_off(vars(stage))
    assert off == pytest.approx((stage.total - stage.budget) / step)
    assert abs(off) <= 1 / 2
    assert (
      stage.flops == stage.steps * step == stage.tokens * step / BATCH / SEQ
    )
  if grown:
    spent = sum(stage.flops for stage in found)
    assert spent == found[-1].total
  else:
    assert all(stage.flops == stage.total for stage in found)


def test_large_models_come_near_the_ideal():
  # Where heads cost little, doubled depth is a doubled N and a doubled cost.
  models = sizes(8, 16, 32, 64)
  budgets = [1e16 * share for share in ledger.shares(models, SEQ)]
  assert ledger.saving(
    ledger.stages(models, budgets, SEQ, BATCH, grown=True)
  ) == pytest.approx(0.247, abs=0.02)


def test_a_budget_below_a_step_is_refused():
  models = sizes(1, 2)
  with pytest.raises(errors.UserError, match='leave no step'):
    ledger.stages(models, [1e9, 1.0001e9], SEQ, BATCH, grown=True)
  dearer = dataclasses.replace(models[0], mlp_width=880)
  with pytest.raises(errors.UserError, match='leave no step'):
    ledger.stages([dearer], [10.0], SEQ, BATCH, grown=False)
