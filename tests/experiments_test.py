import collections
import importlib.util
import math
import pathlib

import pytest

from familial.laws import frontier
from familial.model import flops as flops_lib
from familial.studies import isoflop
from familial.studies import plan as plan_lib
from familial.studies import shapes
from familial.training import config as train_config

FOLDER = pathlib.Path(__file__).parents[1] / 'experiments'
STUDY = isoflop.ISOFLOP


def load(name):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def study(name, arg):
  return STUDY.read_config(load(name).get_config(*[arg] if arg else []))


@pytest.mark.parametrize(('arg', 'billions'), [('1b', 1.1), ('8b', 8.0)])
def test_large_single_runs_are_of_the_size_they_say(arg, billions):
  run = train_config.read(load('single').get_config(arg))
  model = run.model
  params = flops_lib.params_full(model) + flops_lib.params_embedding(model, 4)
  assert model.granularity == 4
  assert params / 1e9 == pytest.approx(billions, rel=0.03)
  assert shapes.tokens(run) / params == pytest.approx(20, rel=0.05)


def test_cpu_spans_its_compute_and_has_its_controls():
  config = study('familial_law', 'cpu')
  low, high = min(config.grid.budgets), max(config.grid.budgets)
  assert math.log10(high / low) >= 1.5 and high >= 3e12
  seeds, twins = config.arms['seed'], config.arms['twin']
  assert len(seeds.values) >= 2 and len(set(seeds.granularities)) >= 2
  assert len(twins.shapes) >= 2
  # Nothing is compared with a cell that is not there.
  cells = {cell.cell: cell for cell in STUDY.runs(config)}
  for name in ('seed', 'weighting', 'frozen', 'kind', 'twin'):
    arm = config.arms[name]
    for budget in arm.budgets:
      for index in arm.shapes:
        for granularity in (1, *arm.granularities):
          width, depth, _ = config.grid.shapes[index]
          place = (budget, width, depth, granularity)
          assert any(
            (c.budget, c.model.width, c.model.depth, c.model.granularity)
            == place
            for c in cells.values()
            if c.arm == 'grid'
          ), (name, place)


@pytest.mark.parametrize('arg', ['cpu', 'gpu', 'paper'])
def test_every_run_is_long_enough_and_remembers(arg):
  for cell in STUDY.runs(study('familial_law', arg)):
    assert cell.train.steps >= 200 or cell.arm == 'frozen', cell.cell
    assert cell.train.beta2 > cell.train.beta1, cell.cell


@pytest.mark.parametrize(
  ('name', 'arg'),
  [
    ('quickstart', ''),
    *(('familial_law', arg) for arg in ('cpu', 'gpu', 'paper')),
  ],
)
def test_the_assumed_law_s_optima_lie_inside_the_sizes(name, arg):
  config = study(name, arg)
  law, curves = config.assumed, collections.defaultdict(list)
  for cell in STUDY.runs(config):
    if cell.arm == 'grid':
      params = flops_lib.params_full(cell.model)
      data = law.B / shapes.tokens(cell) ** law.beta
      loss = law.E + law.A / params**law.alpha + data
      place = cell.budget, cell.model.granularity
      curves[place].append((params, loss))
  assert len(curves) == len(config.grid.budgets) * len(
    config.grid.granularities
  )
  for place, curve in curves.items():
    assert frontier.minimum(*zip(*curve, strict=True)).interior, place


def test_gpu_spans_three_decades_in_twenty_minutes():
  config = study('familial_law', 'gpu')
  cells = STUDY.runs(config)
  assert config.grid.seconds == 1200
  for speed, decades in ((3e13, 3), (1e14, 3.5), (3e14, 4)):
    calibrated = plan_lib.Speed((24, 384), (speed, speed), 5.0, 'cpu')
    kept = plan_lib.within(1200, cells, calibrated, 1)
    budgets = [cell.budget for cell in kept if cell.arm == 'grid']
    assert math.log10(max(budgets) / min(budgets)) > decades - 0.01
  # No more than four epochs of a hundred MB.
  assert max(map(shapes.tokens, cells)) < 4e8
