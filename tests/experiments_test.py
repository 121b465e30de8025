import collections
import importlib.util
import math
import pathlib
import time

import ml_collections
import pytest

from familial.core import errors
from familial.laws import frontier
from familial.model import flops as flops_lib
from familial.studies import isoflop
from familial.studies import plan as plan_lib
from familial.studies import shapes
from familial.training import config as train_config

FOLDER = pathlib.Path(__file__).parents[1] / 'experiments'
STUDY = isoflop.ISOFLOP
LAW = ('test', 'cpu', 'gpu', 'paper', 'rates')
STUDIES = [('quickstart', ''), *(('familial_law', arg) for arg in LAW)]


def load(name):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def study(name, arg):
  config = load(name).get_config(*[arg] if arg else [])
  assert isinstance(config, ml_collections.ConfigDict)
  return STUDY.read_config(config)


def test_no_experiment_is_left_out_here():
  names = {path.stem for path in FOLDER.glob('*.py')}
  others = {  # Theirs: tests/studies, tests/allocation, tests/analysis.
    'expansion',
    'three_families',
    'allocation',
    'allocation_live',
    'depth_law',
    'depth_regimes',
    'depth_toys',
  }
  runs = {'single', 'train_on', 'grow'}
  assert names == {name for name, _ in STUDIES} | others | runs
  with pytest.raises(ValueError) as raised:
    load('familial_law').get_config('none')
  assert str(raised.value).endswith(', '.join(LAW))


@pytest.mark.parametrize(('name', 'arg'), STUDIES)
def test_a_study_builds_its_cells_at_their_cost(name, arg):
  start = time.process_time()
  cells = STUDY.runs(study(name, arg))
  assert time.process_time() - start < 2
  assert len({cell.cell for cell in cells}) == len(cells) > 3
  for cell in cells:
    if cell.train.steps >= 200:
      assert shapes.cost(cell) == pytest.approx(cell.budget, rel=0.005)


@pytest.mark.parametrize(
  ('name', 'arg'), [('familial_law', 'cup'), ('quickstart', 'x')]
)
def test_an_unknown_variant_is_one_line(name, arg):
  with pytest.raises(ValueError, match=f"variant '{arg}'") as raised:
    load(name).get_config(arg)
  assert '\n' not in str(raised.value)


def test_single_is_a_run():
  run = train_config.read(load('single').get_config())
  assert run.model.granularity > 1 and run.train.steps > 200


@pytest.mark.parametrize(('arg', 'billions'), [('1b', 1.1), ('8b', 8.0)])
def test_large_single_runs_are_of_the_size_they_say(arg, billions):
  run = train_config.read(load('single').get_config(arg))
  model = run.model
  params = flops_lib.params_full(model) + flops_lib.params_embedding(model, 4)
  assert model.granularity == 4
  assert params / 1e9 == pytest.approx(billions, rel=0.03)
  tokens = run.train.steps * run.train.batch_size * run.data.seq_len
  assert tokens / params == pytest.approx(20, rel=0.05)


def test_training_on_needs_a_model(tmp_path):
  get_config = load('train_on').get_config
  with pytest.raises(ValueError, match=r'train_on\.py:FOLDER'):
    get_config()
  with pytest.raises(errors.UserError, match=r'holds no config\.json'):
    get_config(str(tmp_path))


def test_quickstart_has_enough_to_fit_the_law():
  grid = study('quickstart', '').grid
  assert len(grid.budgets) >= 3 and len(grid.shapes) >= 4
  assert set(grid.granularities) >= {1, 2, 4}
  assert not grid.shapes_of


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
  [('quickstart', ''), *(('familial_law', a) for a in LAW[1:4])],
)
def test_the_assumed_law_s_optima_lie_inside_the_sizes(name, arg):
  config = study(name, arg)
  law, curves = config.assumed, collections.defaultdict(list)
  for cell in STUDY.runs(config):
    if cell.arm == 'grid':
      params = flops_lib.params_full(cell.model)
      tokens = cell.train.steps * cell.train.batch_size * cell.data.seq_len
      loss = law.E + law.A / params**law.alpha + law.B / tokens**law.beta
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
  tokens = max(
    cell.train.steps * cell.train.batch_size * cell.data.seq_len
    for cell in cells
  )
  assert tokens < 4e8


def test_gpu_and_paper_span_what_they_say():
  gpu = study('familial_law', 'gpu')
  budgets = gpu.grid.budgets
  assert max(budgets) == 1e16 and min(budgets) <= 1e13
  top = [cell for cell in STUDY.runs(gpu) if cell.budget == 1e16]
  assert 0 < len(top) <= 16
  paper = study('familial_law', 'paper')
  assert (min(paper.grid.budgets), max(paper.grid.budgets)) == (1e19, 1e21)
  assert paper.data.corpus == 'c4/en'
