from collections.abc import Mapping
import dataclasses
import json
import math
from typing import Annotated
from typing import Any

import hypothesis
from hypothesis import strategies as st
import ml_collections
import pytest

from experiments import allocation_live
from experiments import depth_law
from experiments import depth_regimes
from experiments import depth_toys
from experiments import expansion
from experiments import familial_law
from experiments import three_families
from familial.allocation import config as replay_config
from familial.core import errors
from familial.core import schema
from familial.data import config as data_config
from familial.expansion import config as growth_config
from familial.model import config as model_config
from familial.studies import isoflop
from familial.studies import registry
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
  sizes, table = (schema.describe(Whole)[i] for i in (3, 6))
  assert sizes.allowed == 'of at least one item and each finite'
  assert table.allowed == 'each at least 0'
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


PARTS = st.builds(
  Part,
  count=st.integers(1, 10**12),
  share=st.floats(0, 1),
  name=st.sampled_from(['even', 'odd']),
  rate=st.none() | st.floats(0, 1e300, exclude_min=True),
)


@hypothesis.given(
  st.builds(
    Whole,
    part=PARTS,
    parts=st.dictionaries(st.text(max_size=3), PARTS, max_size=2),
    series=st.lists(PARTS, max_size=2).map(tuple),
    sizes=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=3).map(tuple),
    shapes=st.lists(st.tuples(st.integers(), st.integers())).map(tuple),
    anything=st.none() | st.text() | st.integers(),
  )
)
def test_what_is_allowed_is_read_back_from_json_to_the_bit(whole):
  text = json.dumps(dataclasses.asdict(whole))
  assert schema.read(Whole, json.loads(text)) == whole


# Of every config class one that is allowed, by its section.
VALID = {
  'model': model_config.ModelConfig(
    vocab_size=256, width=16, depth=3, heads=4, kv_heads=2, mlp_width=24,
    exits=(1, 3),
  ),
  'data': data_config.DataConfig(),
  'train': train_config.TrainConfig(steps=20, batch_size=2, base_lr=0.1),
  'layout': train_config.LayoutConfig(),
  'growth': growth_config.GrowthConfig(),
  'law': replay_config.Law(),
  'rules': isoflop.Rules(),
  'grid': isoflop.Grid((1e9, 2e9), ((8, 2, 1),), (1, 2)),
  'fit': isoflop.Fit(),
  'assumed': isoflop.AssumedLaw(E=1.0, A=30.0, B=90.0, alpha=0.4, beta=0.4),
  '': replay_config.ReplayConfig(title='x', cells=((4, 1e9),)),
}  # fmt: skip
VALID['run'] = train_config.RunConfig(
  'cell', 'grid', 1e9, VALID['model'], VALID['data'], VALID['train']
)
# By section and field, values that are refused.
REFUSED: dict[str, dict[str, list[Any]]] = {
  'model': {
    'vocab_size': [0],
    'width': [0],
    'depth': [0],
    'heads': [0, 3],
    'kv_heads': [0, 3],
    'mlp_width': [0],
    'base_width': [0],
    'rope_theta': [-1e4],
    'norm_eps': [0.0, math.nan],
    'exits': [(), (0, 3), (2, 2, 3), (2, 1, 3), (1, 2), (1, 4)],
    'exit_kind': ['heads'],
    'branch_unembedding': ['none'],
    'dtype': ['float16'],
    'attention': ['flash'],
    'loss_chunk': [-1],
  },
  'data': {
    'corpus': [''],
    'path': ['/tmp'],
    'tokenizer': ['byte', 'my/tokenizer'],
    'vocab_size': [512],
    'seq_len': [0],
    'heldout_percent': [0, 51],
  },
  'train': {
    'steps': [0],
    'batch_size': [0],
    'base_lr': [0.0, 1e-60, math.nan, math.inf],  # 1e-60 is 0 in float32.
    'rate_width': [-1],
    'schedule': ['linear'],
    'warmup_steps': [21, -1],
    'decay_fraction': [0.0, 1.5],
    'final_lr': [-0.1, 1.1],
    'beta1': [1.0, -0.1],
    'beta2': [1.0, 1 - 1e-9],  # 1 - 1e-9 is 1 in float32.
    'eps': [0.0, 1e-60],
    'weight_decay': [-0.1],
    'clip': [-1.0],
    'weighting': ['unifrom'],
    'weighting_end': ['none'],
    'other_weight': [-0.1],
    'trained': ['heads'],
    'seed': [-1],
    'evaluations': [0],
    'first_evaluation': [-1, 21],
    'eval_tokens': [0],
    'eval_batch_size': [0],
    'checkpoint_seconds': [-1.0],
    'keep': [0],
  },
  'layout': {'data': [-1], 'fsdp': [0], 'tensor': [0], 'microbatches': [0]},
  'growth': {
    'width': ['wider'],
    'split': ['odd'],
    'depth': ['deep'],
    'state': ['keep'],
  },
  'law': {'beyond': [0.0, math.inf]},
  'rules': {
    'batch_tokens': [0],
    'at_budget': [0.0, math.inf],
    'batch_exponent': [-0.1, 1.5, math.inf],
    'beta2': [0.0, 1.0],
    'warmup': [2.0],
  },
  'grid': {
    'budgets': [()],
    'shapes': [()],
    'granularities': [()],
    'seed': [-1],
    'seconds': [-1.0],
  },
  'fit': {'delta': [0.0], 'starts': [0], 'resamples': [1]},
  'assumed': {
    'E': [0.0],
    'A': [-1.0],
    'B': [0.0],
    'alpha': [0.0],
    'beta': [0.0],
    'gamma': [math.inf],
    'noise': [0.0],
  },
  '': {
    'cells': [()],
    'policies': [()],
    'constants': [{'E': 1.0}],
    'draws': [0],
    'curves': [1],
    'seed': [-1],
    'loss': ['mode'],
  },
}
# Changes of several fields, the first of which is refused.
REFUSED_TOGETHER: list[tuple[str, dict[str, Any]]] = [
  ('model', {'heads': 16, 'kv_heads': 16}),
  ('model', {'heads': 4, 'attention': 'fused', 'dtype': 'bfloat16'}),
  ('model', {'dtype': 'float32', 'attention': 'fused'}),
  ('data', {'path': '', 'corpus': 'text_files'}),
  ('data', {'vocab_size': 256, 'tokenizer': 'bpe'}),
  ('train', {'init_from': '', 'trained': 'exits'}),
]


@pytest.mark.parametrize(
  ('section', 'changes'),
  [
    *REFUSED_TOGETHER,
    *(
      (section, {key: value})
      for section, fields in REFUSED.items()
      for key, values in fields.items()
      for value in values
    ),
  ],
)
def test_each_config_refuses_by_key_and_value(section, changes):
  valid = VALID[section]
  key, value = next(iter(changes.items()))
  start = f'{section}.{key}: {value!r} is not allowed'.removeprefix('.')
  values = dataclasses.asdict(valid) | changes
  for build in (
    lambda: dataclasses.replace(valid, **changes),
    lambda: schema.read(type(valid), values, section),
  ):
    with pytest.raises(errors.UserError) as raised:
      build()
    assert str(raised.value).startswith(start)
    assert '\n' not in str(raised.value)


def test_a_noise_of_synthetic_curves_is_refused_by_name():
  with pytest.raises(errors.UserError, match=r"^noises\[0\]: 'pink'"):
    dataclasses.replace(VALID[''], noises=('pink',))


@pytest.mark.parametrize(
  ('section', 'changes'),
  [
    ('train', {'clip': 0.0}),
    ('train', {'beta1': 0.0, 'beta2': 0.0}),
    ('train', {'weight_decay': 0.0, 'other_weight': 0.0}),
    ('train', {'final_lr': 1.0, 'decay_fraction': 1.0}),
    ('train', {'base_lr': 1e35}),  # It diverges, which is an answer.
    ('train', {'warmup_steps': 20, 'first_evaluation': 20}),
    ('data', {'heldout_percent': 50}),
    ('data', {'tokenizer': 'bpe', 'vocab_size': 257}),
    ('model', {'loss_chunk': 1, 'norm_eps': 1e-30}),
  ],
)
def test_the_ends_of_what_is_allowed_are_allowed(section, changes):
  dataclasses.replace(VALID[section], **changes)


@pytest.mark.parametrize(
  ('key', 'changes'),
  [
    ('model.vocab_size', {'model': {'vocab_size': 300}}),
    ('model.loss_chunk', {'model': {'loss_chunk': 5}}),
    (
      'model.exits',
      {
        'model': {'exits': (3,)},
        'train': {'trained': 'exits', 'init_from': '../parent'},
      },
    ),
    ('train.init_from', {'growth': {'width': 'replicate'}}),
    (
      'train.trained',
      {
        'growth': {'width': 'replicate'},
        'train': {'trained': 'exits', 'init_from': '../parent'},
      },
    ),
  ],
)
def test_sections_of_a_run_that_do_not_fit_are_refused(key, changes):
  values = dataclasses.asdict(VALID['run'])
  for section, change in changes.items():
    values[section] |= change
  with pytest.raises(errors.UserError, match=f'^{key}: .* is not allowed'):
    schema.read(train_config.RunConfig, values)


@pytest.mark.parametrize(
  ('arm', 'changes', 'key'),
  [
    ('tiwn', {}, 'arms.tiwn'),
    ('seed', {'values': ()}, 'arms.seed.values'),
    ('seed', {'values': (0,)}, 'arms.seed.values'),  # The grid's.
    ('seed', {'budgets': (0.0,), 'values': (1,)}, r'arms.seed.budgets[0]'),
    ('kind', {'shapes': (4,), 'values': ('head',)}, 'arms.kind.shapes'),
    ('frozen', {'share': 0.0, 'values': ('head',)}, 'arms.frozen.share'),
    *(
      (arm, {'values': (value,)}, f'arms.{arm}.values')
      for arm, value in (
        ('seed', 'x'), ('seed', -1), ('seed', True), ('twin', 1),
        ('weighting', 1), ('frozen', 2), ('kind', (1,)), ('branch', 2),
        ('branch', (1, 'x')), ('rate', 'x'), ('rate', 0.0), ('rate', math.inf),
        ('gradients', 'x'), ('gradients', 0),
      )
    ),
  ],
)  # fmt: skip
def test_an_arm_is_refused_by_its_key(arm, changes, key):
  config = familial_law.get_config('test')
  config.arms = {
    arm: {'budgets': (1e9,), 'shapes': (0,), 'granularities': (2,), **changes}
  }
  with pytest.raises(errors.UserError) as raised:
    isoflop.ISOFLOP.read_config(config)
  assert str(raised.value).startswith(f'{key}: ')


@pytest.mark.parametrize('shapes_of', [((0,),), ((1,), (0,)), ((0,), (-1,))])
def test_shapes_of_budgets_are_refused_by_their_key(shapes_of):
  with pytest.raises(errors.UserError, match=r'^grid\.shapes_of: '):
    dataclasses.replace(VALID['grid'], shapes_of=shapes_of)


EXPERIMENTS = (
  familial_law, expansion, three_families, allocation_live, depth_law,
  depth_regimes, depth_toys,
)  # fmt: skip


def experiment(module):
  config = module.get_config('test')
  return registry.STUDIES[config.kind].read_config(config)


@pytest.mark.parametrize(
  'config',
  [*VALID.values(), *map(experiment, EXPERIMENTS)],
  ids=lambda config: type(config).__name__,
)
def test_a_config_is_read_back_and_described(config):
  values = json.loads(json.dumps(dataclasses.asdict(config)))
  assert schema.read(type(config), values) == config
  locked = ml_collections.ConfigDict(values).lock()
  assert schema.read(type(config), locked) == config
  for field in schema.describe(type(config)):
    assert field.description, f'{field.name} has no description'
