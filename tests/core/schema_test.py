import dataclasses
from typing import Any

import ml_collections
import pytest

from familial.core import errors
from familial.core import schema
from familial.data import config as data_config
from familial.model import config as model_config
from familial.studies import allocation_config as live_config
from familial.studies import cells
from familial.studies import config as study_config
from familial.studies import templates
from familial.training import config as train_config


@dataclasses.dataclass(frozen=True)
class Section:
  count: int
  share: float = 0.5
  name: str = 'x'
  on: bool = False
  sizes: tuple[float, ...] = ()
  shapes: tuple[tuple[int, int], ...] = ()
  anything: Any = None
  table: dict[str, Any] = dataclasses.field(default_factory=dict)


def make(**values):
  return schema.section(Section, values, 'part')


def test_a_section_keeps_values_and_defaults():
  built = make(count=3, sizes=(1, 2.5), shapes=((1, 2),), anything=[1])
  assert built == Section(3, sizes=(1.0, 2.5), shapes=((1, 2),), anything=[1])


def test_whole_numbers_serve_as_either_kind():
  built = make(count=3.0, share=1)
  assert type(built.count) is int and built.count == 3
  assert type(built.share) is float and built.share == 1.0
  assert type(make(count=1, sizes=(1,)).sizes[0]) is float


@pytest.mark.parametrize(
  ('values', 'said'),
  [
    ({'count': 'three'}, ["part.count: 'three'", 'int']),
    ({'count': 2.5}, ['part.count: 2.5', 'int']),
    ({'count': True}, ['part.count: True', 'int']),
    ({'count': None}, ['part.count: None', 'int']),
    ({'count': 1, 'share': '1'}, ["part.share: '1'", 'float']),
    ({'count': 1, 'share': True}, ['part.share: True', 'float']),
    ({'count': 1, 'name': 3}, ['part.name: 3', 'str']),
    ({'count': 1, 'on': 1}, ['part.on: 1', 'bool']),
    ({'count': 1, 'sizes': 1.0}, ['part.sizes: 1.0', 'tuple']),
    ({'count': 1, 'sizes': (1, 'b')}, ["part.sizes[1]: 'b'", 'float']),
    ({'count': 1, 'shapes': ((1, 2), (1, 'c'))}, ["part.shapes[1][1]: 'c'"]),
    ({'count': 1, 'table': 3}, ['part.table: 3', 'dict']),
    ({'count': 1, 'shaer': 1.0}, ['part.shaer', "did you mean 'share'"]),
    ({'count': 1, 'zzzz': 1.0}, ['part.zzzz: unknown key']),
    ({'share': 1.0}, ['part.count: is missing']),
  ],
)
def test_a_section_refuses_in_one_line(values, said):
  with pytest.raises(errors.UserError) as raised:
    make(**values)
  message = str(raised.value)
  assert '\n' not in message
  for part in said:
    assert part in message
  if 'zzzz' in values:
    assert 'did you mean' not in message


def test_every_default_of_a_study_can_be_overridden():
  template = templates.study_template()
  sections = {
    'data': (data_config.DataConfig, ()),
    'model': (model_config.ModelConfig, cells.SHAPE_KEYS),
    'train': (train_config.TrainConfig, cells.BUDGET_KEYS),
    'rules': (study_config.Rules, ()),
    'grid': (study_config.Grid, ()),
    'fit': (study_config.Fit, ()),
    'assumed': (study_config.AssumedLaw, ()),
    'layout': (train_config.LayoutConfig, ()),
  }
  for name, (cls, decided) in sections.items():
    defaults = {
      field.name: field.default
      for field in dataclasses.fields(cls)
      if field.default is not dataclasses.MISSING
    }
    expected = {k: v for k, v in defaults.items() if k not in decided}
    given = template[name].to_dict()
    extra = cells.RATIOS if name == 'model' else {}
    assert given == {**expected, **extra}
  assert set(template) == {*sections, 'title', 'arms'}


def filled(**changes):
  config = templates.study_template()
  config.train.base_lr = 0.01
  config.grid.update(budgets=[1e8], shapes=[[8, 2, 1]], granularities=[1, 2])
  config.assumed.update(E=1, A=30.0, B=90.0, alpha=0.3, beta=0.3)
  config.arms = {
    'branch': {'budgets': (1e8,), 'shapes': (0,), 'values': [[1, 2]]}
  }
  config.update(changes)
  return config


def test_a_study_comes_back_from_its_own_config():
  config = filled()
  study = templates.study(config)
  assert study.grid.shapes == ((8, 2, 1),)  # Lists are tuples, all the way.
  assert study.arms['branch'].values == ((1, 2),)
  assert type(study.assumed.E) is float
  again = ml_collections.ConfigDict(dataclasses.asdict(study))
  assert templates.study(again) == study
  assert templates.study(config.lock()) == study


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'titel': 'x'}, ['titel', "'title'"]),
    ({'grid': {'budgts': (1,)}}, ['grid.budgts', "'budgets'"]),
    ({'arms': {'branch': {'value': ()}}}, ['arms.branch.value', "'values'"]),
    ({'arms': {'tiwn': {'budgets': (1.0,), 'shapes': ()}}}, ['arms.tiwn']),
    ({'arms': {'seed': {'budgets': (1.0,)}}}, ['arms.seed.shapes: is missing']),
  ],
)
def test_a_study_refuses_in_one_line(changes, said):
  with pytest.raises(errors.UserError) as raised:
    templates.study(filled(**changes))
  assert '\n' not in str(raised.value)
  for part in said:
    assert part in str(raised.value)


def test_what_a_study_must_set_is_missing_by_name():
  with pytest.raises(errors.UserError, match=r'grid\.budgets: is missing'):
    templates.study(templates.study_template())


def single():
  config = train_config.template()
  config.data.seq_len = 16
  config.model.update(
    vocab_size=256, width=8, depth=2, heads=2, kv_heads=1, mlp_width=16,
    exits=[1, 2],
  )  # fmt: skip
  config.train.update(steps=5, batch_size=2, base_lr=0.1)
  return config


def test_a_run_is_built_with_its_place_in_no_study():
  run = train_config.read(single())
  assert (run.cell, run.arm, run.budget) == ('run', 'single', 0.0)
  assert run.model.exits == (1, 2)
  assert (run.train.steps, run.data.seq_len) == (5, 16)
  again = ml_collections.ConfigDict(dataclasses.asdict(run))
  assert train_config.read(again) == run


@pytest.mark.parametrize(
  ('section', 'key', 'value', 'said'),
  [
    ('model', 'widht', 3, "model.widht: unknown key (did you mean 'width'?)"),
    ('model', 'exits', 2, 'model.exits: 2 is not a tuple'),
    ('train', 'steps', 'many', "train.steps: 'many' is not of type int"),
    ('data', 'corpsu', 'x', 'data.corpsu: unknown key'),
  ],
)
def test_a_run_refuses_in_one_line(section, key, value, said):
  values = single().to_dict()
  values[section][key] = value
  with pytest.raises(errors.UserError) as raised:
    train_config.read(values)
  assert str(raised.value).startswith(said)


def test_a_run_needs_a_model_and_its_steps():
  values = single().to_dict()
  del values['train']['steps']
  with pytest.raises(errors.UserError, match=r'train\.steps: is missing'):
    train_config.read(values)
  with pytest.raises(errors.UserError, match=r'model\.vocab_size: is missing'):
    train_config.read({'train': values['train']})


def test_a_live_allocation_fits_the_law_of_exits_unless_told_otherwise():
  template = templates.allocation_template()
  assert template.law.form == live_config.AllocationConfig.law.form
  assert template.law.form == 'familial_total'
