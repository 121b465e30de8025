from collections.abc import Mapping
import dataclasses
import json
import math
from typing import Annotated
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
class Part:
  """A section.

  Attributes:
    count: number of things,
      one or more.
    share: part of the whole; default 0.5.

  Raises:
    UserError: if a value is not allowed.
  """

  count: schema.Count
  share: schema.Fraction = 0.5
  name: Annotated[str, schema.one_of('even', 'odd')] = 'even'
  on: bool = False
  rate: schema.Positive | None = None

  def __post_init__(self):
    schema.check(self, 'part')
    if self.on and self.name == 'odd':
      raise errors.UserError("part.on: True is not allowed with name 'odd'")


@dataclasses.dataclass(frozen=True)
class Whole:
  part: Part
  parts: dict[str, Part] = dataclasses.field(default_factory=dict)
  series: tuple[Part, ...] = ()
  sizes: Annotated[tuple[schema.Finite, ...], schema.NOT_EMPTY] = (1.0,)
  shapes: tuple[tuple[int, int], ...] = ()
  anything: Any = None
  table: Mapping[str, schema.Index] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    schema.check(self)


def read(**values):
  return schema.read(Whole, {'part': {'count': 1}} | values)


def test_what_is_written_either_way_is_read_as_its_type():
  config = ml_collections.ConfigDict(
    {'part': {'count': 1e6, 'share': 1}, 'parts': {'a': {'count': 2}}}
  )
  config.shapes = [[1, 2.0]]
  config.anything = {'x': [1, '2']}
  whole = schema.read(Whole, config)
  assert whole == Whole(
    Part(1_000_000, 1.0),
    {'a': Part(2)},
    shapes=((1, 2),),
    anything={'x': (1, '2')},
  )
  assert type(whole.part.count) is int and type(whole.part.share) is float
  assert type(whole.shapes[0][1]) is int
  assert read(part=Part(3)).part == Part(3)


@pytest.mark.parametrize(
  ('values', 'key', 'value'),
  [
    ({'part': {'count': 0}}, 'part.count', 0),
    ({'part': {'count': 'three'}}, 'part.count', 'three'),
    ({'part': {'count': '3'}}, 'part.count', '3'),
    ({'part': {'count': 2.5}}, 'part.count', 2.5),
    ({'part': {'count': True}}, 'part.count', True),
    ({'part': {'count': None}}, 'part.count', None),
    ({'part': {'count': 1, 'share': '1'}}, 'part.share', '1'),
    ({'part': {'count': 1, 'share': True}}, 'part.share', True),
    ({'part': {'count': 1, 'share': math.nan}}, 'part.share', math.nan),
    ({'part': {'count': 1, 'name': 3}}, 'part.name', 3),
    ({'part': {'count': 1, 'on': 1}}, 'part.on', 1),
    ({'part': {'count': 1, 'rate': math.inf}}, 'part.rate', math.inf),
    ({'part': {'count': 1, 'on': True, 'name': 'odd'}}, 'part.on', True),
    ({'part': 3}, 'part', 3),
    ({'parts': {'a': {'count': 0}}}, 'parts.a.count', 0),
    ({'series': [{'count': 1}, {'count': 0}]}, 'series[1].count', 0),
    ({'sizes': 1.0}, 'sizes', 1.0),
    ({'sizes': ()}, 'sizes', ()),
    ({'sizes': (1, 'b')}, 'sizes[1]', 'b'),
    ({'sizes': (1, -math.inf)}, 'sizes[1]', -math.inf),
    ({'shapes': ((1, 2), (1, 'c'))}, 'shapes[1][1]', 'c'),
    ({'shapes': ((1, 2), (1,))}, 'shapes[1]', (1,)),
    ({'shapes': ((1, 2, 3),)}, 'shapes[0]', (1, 2, 3)),
    ({'table': 3}, 'table', 3),
    ({'table': {'x': -1}}, 'table.x', -1),
  ],
)
def test_a_refusal_names_key_and_value_in_one_line(values, key, value):
  with pytest.raises(errors.UserError) as raised:
    read(**values)
  assert str(raised.value).startswith(f'{key}: {value!r} is not allowed')
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
  ('values', 'line'),
  [
    ({'part': {}}, 'part.count: is missing'),
    ({'parts': {'a': {}}}, 'parts.a.count: is missing'),
    (
      {'part': {'cuont': 1}},
      "part.cuont: unknown key (did you mean 'count'?)",
    ),
    (
      {'part': {'count': 0}, 'parts': {'a': {'shaer': 1}}},
      "parts.a.shaer: unknown key (did you mean 'share'?)",
    ),
    ({'zzzz': 1}, 'zzzz: unknown key'),
    (
      {'part': {'count': 1, 'name': 'evn'}},
      "part.name: 'evn' is not allowed; it must be one of 'even', 'odd' "
      "(did you mean 'even'?)",
    ),
  ],
)
def test_a_near_miss_or_what_is_missing_is_named(values, line):
  with pytest.raises(errors.UserError) as raised:
    read(**values)
  assert str(raised.value) == line


def test_keys_are_those_of_the_whole_config():
  with pytest.raises(errors.UserError, match=r'^ways\.a\.count: 0 '):
    schema.read(Part, {'count': 0}, 'ways.a')


@pytest.mark.parametrize(
  ('build', 'key'),
  [
    (lambda: Part(0), 'part.count'),
    (lambda: dataclasses.replace(Part(1), share=1.5), 'part.share'),
    (lambda: Part(1, name='x'), 'part.name'),
    (lambda: Part(1, rate=math.inf), 'part.rate'),
    (lambda: Whole(Part(1), sizes=()), 'sizes'),
    (lambda: Whole(Part(1), sizes=(1.0, math.nan)), r'sizes\[1\]'),
    (lambda: Whole(Part(1), table={'x': -1}), r'table\.x'),
  ],
)
def test_bounds_hold_where_the_program_constructs_one(build, key):
  with pytest.raises(errors.UserError, match=f'^{key}: .* is not allowed'):
    build()


def test_defaults_are_those_of_all_sections():
  part = {'share': 0.5, 'name': 'even', 'on': False, 'rate': None}
  assert schema.defaults(Part) == part
  assert schema.defaults(Whole, without=('shapes', 'table')) == {
    'part': part,
    'parts': {},
    'series': (),
    'sizes': (1.0,),
    'anything': None,
  }


def test_a_class_describes_its_fields():
  count, share, name, on, rate = schema.describe(Part)
  assert count.required and not share.required
  assert (count.type, share.type, on.type) == (int, float, bool)
  assert share.default == 0.5 and rate.default is None
  assert count.description == 'number of things, one or more.'
  assert share.description == 'part of the whole; default 0.5.'
  assert on.description == ''
  assert (count.allowed, on.allowed) == ('at least 1', '')
  assert "'even', 'odd'" in name.allowed and 'finite' in rate.allowed
  names = [field.type_name for field in schema.describe(Whole)]
  assert names[:4] == ['Part', 'dict[str, Part]', 'tuple[Part, ...]',
                       'tuple[float, ...]']  # fmt: skip


def test_a_record_is_read_as_it_was_written(tmp_path):
  record = Whole(Part(1), {'a': Part(2)}, shapes=((1, 2),))
  schema.write_json(tmp_path / 'a.json', record)
  assert json.loads((tmp_path / 'a.json').read_text())['schema'] == 1
  assert schema.read_json(Whole, tmp_path / 'a.json') == record
  with pytest.raises(ValueError):
    nan = dataclasses.replace(record, anything=math.nan)
    schema.write_json(tmp_path / 'b.json', nan)
  assert not (tmp_path / 'b.json').exists()


@pytest.mark.parametrize(
  ('text', 'key'),
  [
    ('{"schema": 1', ''),
    ('[]', ''),
    ('{"schema": 7, "count": 1}', '7'),
    ('{"schema": 1, "count": 0}', 'count'),
    ('{"schema": 1, "count": 1, "more": 1}', 'more'),
    ('{"schema": 1}', 'count'),
  ],
)
def test_a_file_that_is_no_record_is_named(tmp_path, text, key):
  path = tmp_path / 'a.json'
  path.write_text(text)
  with pytest.raises(errors.UserError) as raised:
    schema.read_json(Part, path)
  assert str(raised.value).startswith(f'{path}: ')
  assert key in str(raised.value).removeprefix(str(path))
  assert '\n' not in str(raised.value)


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


def test_a_live_allocation_fits_the_law_of_exits_unless_told_otherwise():
  template = templates.allocation_template()
  assert template.law.form == live_config.AllocationConfig.law.form
  assert template.law.form == 'familial_total'
