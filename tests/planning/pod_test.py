import dataclasses
import json
import types

import jax
import pytest

from familial.core import errors
from familial.expansion import config as growth_config
from familial.model import flops
from familial.planning import chips
from familial.planning import compiled
from familial.planning import growth
from familial.planning import layouts
from familial.planning import pod
from familial.planning import summary
from familial.report import plan_page
from familial.training import timing


@pytest.fixture
def cells(run_config, shape):
  """Runs of two widths, one of them in two depths and with two exits or one."""

  def make(name, **changes):
    model = shape(**{'vocab_size': 256, 'mlp_width': 32, **changes})
    return dataclasses.replace(run_config(model), cell=name)

  return [
    make('shallow', depth=1, exits=(1,)),
    make('deep', depth=4, exits=(2, 4)),
    make('dense', depth=4, exits=(4,)),
    make('wide', width=32),
  ]


@pytest.fixture
def planned(toys, cells, tmp_path, monkeypatch):
  """Plans for eight toys; compilers say what a function of the run returns."""

  def make(memory, sends=lambda cell: 7.0, **figures):
    toys(8, **{'memory': 1e9, **figures})
    asked = []

    def compile_(cell, lowered):
      asked.append(cell)
      needs = memory(cell)
      return compiled.Program(needs <= 1e9, needs, sends(cell), 1e9, 0.1)

    monkeypatch.setattr(
      compiled,
      'lower',
      lambda cell, devices: types.SimpleNamespace(as_text=lambda: repr(cell)),
    )
    monkeypatch.setattr(compiled, 'compile_', compile_)
    monkeypatch.setattr(timing, 'measure', lambda cell, steps: (4e9, 1.0))
    plan = pod.make('Toys', cells, chips.HERE, tmp_path, 1)
    return plan, asked

  return make


def test_the_largest_of_its_kind_is_compiled_for_all(planned, cells):
  plan, asked = planned(lambda cell: 1e6)
  assert [row['cell'] for row in plan['cells']] == [c.cell for c in cells]
  of = {row['cell']: row['compiled'] for row in plan['cells']}
  assert of == dict(shallow='deep', deep='deep', dense='deep', wide='wide')
  assert plan['fits'] and all(row['fits'] for row in plan['cells'])
  # Three layouts of the widest, and each kind in the first of them.
  assert [cell.cell for cell in asked] == ['wide'] * 3 + ['deep']
  del plan['recommended']['flags']
  best = layouts.Layout(**plan['recommended'])
  assert layouts.apply(cells[1], best) == asked[-1]


def test_none_but_what_needs_no_more_is_of_a_kind(run_config, shape):
  def make(name, depth, exits):
    model = shape(
      vocab_size=256, depth=depth, exits=exits, exit_kind='separate'
    )
    return dataclasses.replace(run_config(model), cell=name)

  deep = make('deep', 5, (5,))
  rich = make('rich', 4, (1, 2, 3, 4))
  both = make('both', 4, (2, 4))
  assert pod._kinds([both, rich, deep]) == [[deep], [rich, both]]


def test_a_plan_adds_up(planned, cells):
  plan, _ = planned(lambda cell: 1e6)
  row, cell = plan['cells'][1], cells[1]
  tokens = cell.train.batch_size * 32
  assert row['flops'] == tokens * cell.train.steps * flops.train(cell.model, 32)
  assert row['bound_seconds'] == max(row['times'].values())
  share = row['step_flops'] / (8 * 1e9 * row['bound_seconds'])
  assert row['utilisation_bound'] == pytest.approx(share)
  assert (
    row['device_hours'] * 3600 > 8 * cell.train.steps * row['bound_seconds']
  )
  assert plan['flops'] == sum(row['flops'] for row in plan['cells'])
  # Of what is here a step is measured: 4e9 FLOP/s of eight times 1e9.
  assert plan['measured']['utilisation'] == 0.5


def test_of_layouts_that_fit_the_compiler_s_bytes_decide(planned):
  # The first by arithmetic sends most.
  sends = iter([3e9, 1e9, 2e9])
  plan, _ = planned(lambda cell: 1e6, sends=lambda cell: next(sends, 1e9))
  del plan['recommended']['flags']
  assert plan['recommended'].items() <= plan['layouts'][1].items()


def test_what_does_not_fit_leads_to_other_layouts(planned):
  # As if arithmetic had forgotten nine tenths of what layers keep.
  plan, asked = planned(lambda cell: 1e6 if cell.model.remat else 2e9)
  assert plan['fits'] and plan['recommended']['remat']
  assert [each['fits'] for each in plan['layouts']] == [False] * 3 + [True]
  assert len({(cell.model, cell.layout) for cell in asked[:4]}) == 4


def test_where_the_largest_does_not_fit_the_others_are_asked(planned):
  plan, _ = planned(lambda cell: 2e9 if cell.cell in ('deep', 'wide') else 1e6)
  fits = {row['cell']: row['fits'] for row in plan['cells']}
  assert fits == dict(shallow=True, deep=False, dense=True, wide=False)
  assert all(row['compiled'] == row['cell'] for row in plan['cells'])
  assert 'only 2 fit' in summary.headline(plan)


def test_a_program_is_compiled_once(planned):
  first, asked = planned(lambda cell: 1e6)
  again, none = planned(lambda cell: 1e6)
  assert asked and not none and first == again


def test_a_plan_is_text_and_a_page(planned, tmp_path):
  plan, _ = planned(lambda cell: 1e6)
  assert json.loads((tmp_path / 'plan.json').read_text()) == plan
  text = summary.text(plan)
  assert plan['recommended']['flags'] in text
  for row in plan['cells']:
    assert row['cell'] in text
  # Another layout may be compiled for another run.
  plan['layouts'][1]['cell'] = 'another'
  first, second = summary.text(plan).splitlines()[5:7]
  assert first.endswith('  wide') and second.endswith('  another')
  html = plan_page.write(tmp_path, plan).read_text()
  assert 'Measured: a step of wide takes' in html
  plan['measured'] = None
  for row in plan['cells']:  # As of one device.
    row['times']['links'] = 0.0
  html = plan_page.write(tmp_path, plan).read_text()
  assert 'Nothing here is measured' in html


def test_xla_counts_what_we_do_and_one_device_sends_nothing(run_config):
  config = run_config()
  lowered = compiled.lower(config, jax.devices()[:1])
  program = compiled.compile_(config, lowered)
  tokens = config.train.batch_size * config.data.seq_len
  expected = tokens * flops.train(config.model, config.data.seq_len)
  # Norms, softmax and the optimizer are much of so small a step.
  assert expected < program.flops < 1.5 * expected
  assert program.fits and program.memory > 0
  assert program.sent == 0


def test_a_compiler_s_full_memory_is_no_error(run_config):
  said = {
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 22.5G of '
    '15.75G hbm.': 22.5 * 2**30,
    'RESOURCE_EXHAUSTED: E1000: total memory required for HLO temporaries '
    '(512.0M) exceeds available HBM (15.75G).': 2**29,
  }
  for text, needs in said.items():

    def full(text=text):
      raise jax.errors.JaxRuntimeError(text)

    program = compiled.compile_(
      run_config(), types.SimpleNamespace(compile=full)
    )
    assert (program.fits, program.memory, program.sent) == (False, needs, None)

  def broken():
    # Not the memory that other layouts would need less of.
    raise jax.errors.JaxRuntimeError(
      'RESOURCE_EXHAUSTED: Used 17M of 16M vmem\nand much more'
    )

  with pytest.raises(errors.UserError, match=r'Used 17M of 16M vmem$'):
    compiled.compile_(run_config(), types.SimpleNamespace(compile=broken))


def test_a_growth_says_what_a_device_reads_and_makes(planned, cells):
  plan, _ = planned(lambda cell: 1e8)
  assert not list(summary.growth(plan))
  small, deep = cells[0], cells[2]
  grows = dataclasses.replace(
    deep,
    train=dataclasses.replace(deep.train, init_from='../shallow'),
    growth=growth_config.GrowthConfig(depth='identity'),
  )
  found = growth.of(grows, [small, grows], jax.devices()[:1])
  assert found['parent'] == 'shallow'
  assert found['exact_exits'] == 1
  assert found['makes'] == found['whole'] > found['reads'] > 0
  assert growth.of(grows, [grows], jax.devices()[:1]) is None
  plan['cells'][0]['growth'] = found
  assert any(
    'from shallow: a device reads' in line for line in summary.growth(plan)
  )
