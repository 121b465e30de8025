import itertools
import json
import math
import re
import types

import pytest

from familial.core import errors
from familial.core import storage
from familial.plots import families
from familial.report import page
from tests.report import page_test

BUDGETS = (4e8, 16e8)
PARAMS = (1000, 2000, 4000)
EVIL = '<script>alert("x")</script>&$x^2$'


def interval(value, half):
  ends = {} if half is None else {'lo': value - half, 'hi': value + half}
  return {'value': value, 'lo': None, 'hi': None, **ends}


class Study:
  """A study of families made by hand; `relative` is of its ways.

  Attributes:
    ways: name to (kind, against).
    relative: log loss over, by way and then by size.
    half: of every interval; None for one seed.
  """

  def __init__(self, workdir, ways, relative, half=0.01, budgets=BUDGETS):
    self.workdir, self.ways, self.relative = workdir, ways, relative
    self.half, self.budgets = half, budgets
    self.seeds = (0,) if half is None else (0, 1)

  def cells(self, way):
    exits = self.ways[way][0] == 'exits'
    return [3] if exits else [1, 2, 3]

  def plan(self, **more):
    ledger, cells = [], []
    for way, (kind, _) in self.ways.items():
      for c in self.budgets:
        stages = [
          {'cell': f'{way}_{c:g}_s0_{size}', 'width': 16, 'depth': size,
           'exits': [1, 2, 3] if kind == 'exits' else [size],
           'budget': c * size / 3, 'steps': 100, 'tokens': 1000 * size,
           'flops': c / 3 if kind == 'chain' else c * size / 3,
           'total': c * size / 3 * 1.001}
          for size in self.cells(way)
        ]  # fmt: skip
        ledger.append({
          'way': way, 'kind': kind, 'budget': c,
          'flops': sum(stage['flops'] for stage in stages),
          'saving': 0.4711 if kind == 'chain' else None, 'stages': stages,
        })  # fmt: skip
        cells += [
          {'cell': f'{way}_{c:g}_s{seed}_{size}', 'arm': way, 'budget': c,
           'width': 16, 'depth': size, 'exits': 1, 'params_full': 1000 * size,
           'tokens': 1000 * size, 'flops': c, 'epochs': 0.1, 'seed': seed}
          for seed in self.seeds
          for size in self.cells(way)
        ]  # fmt: skip
    self.write('plan.json', {
      'schema': storage.SCHEMA, 'study': 'families', 'title': 'Ways',
      'corpus': {'name': 'synthetic', 'fingerprint': 'f00dfeed'},
      'cells': cells, 'ledger': ledger, 'warnings': [], **more,
    })  # fmt: skip

  def summary(self, **more):
    half = self.half
    compared = [
      {'way': way, 'against': self.ways[way][1], 'budget': c, 'size': size,
       'seeds': len(self.seeds), **interval(by_size[size - 1], half)}
      for way, by_size in self.relative.items()
      for c in self.budgets
      for size in (1, 2, 3)
      if by_size[size - 1] is not None
    ]  # fmt: skip
    members = [
      {'way': way, 'budget': c, 'seed': seed, 'size': size,
       'run': f'{way}_{c:g}_s{seed}_{size}', 'exit': 1, 'width': 16,
       'layer': size, 'params': PARAMS[size - 1], 'tokens_seen': 12_300 * size}
      for way in self.ways
      for c in self.budgets
      for seed in self.seeds
      for size in (1, 2, 3)
    ]  # fmt: skip
    agree = {'kl': 0.25, 'kl_back': 0.2, 'js': 0.05, 'top1': 0.8}
    found = {
      'schema': storage.SCHEMA,
      'machine': {'devices': '1 x test'},
      'cost': {'flops': 1e10, 'seconds': 60.0, 'missing': 0},
      'ways': [
        {'way': way, 'kind': kind, 'against': [against] if against else [],
         'keep_exits': False, 'rate_width': 0, 'alike': False,
         'growth': {'width': '', 'depth': 'identity'}}
        for way, (kind, against) in sorted(self.ways.items())
      ],
      'members': members,
      'losses': [
        {'way': row['way'], 'budget': row['budget'], 'size': row['size'],
         'seeds': len(self.seeds),
         **interval(5 - row['size'], half)}
        for row in members
        if row['seed'] == 0
      ],
      'compared': compared,
      'overall': [
        {'way': way, 'against': self.ways[way][1],
         **interval(sum(x or 0 for x in by_size) / 3, half)}
        for way, by_size in self.relative.items()
      ],
      'equal_loss': [
        {**row, 'slope': 0.1, **interval(math.exp(row['value'] / 0.1), half)}
        for row in compared
        if len(self.budgets) > 1
      ],
      'saving': [
        {'way': way, 'against': self.ways[way][1], 'budget': c,
         'ledger': 0.1234, **interval(0.3 - 10 * self.relative[way][2], half)}
        for way, (kind, _) in self.ways.items()
        for c in self.budgets
        if kind == 'chain' and len(self.budgets) > 1
      ],
      'agreement': [
        {'kind': kind, 'way': row['way'], 'budget': row['budget'],
         'seed': row['seed'], 'size': row['size'],
         'other_size': row['size'] + (kind == 'adjacent'), 'other_seed': 0,
         **agree, 'errors': dict.fromkeys(agree, 0.01)}
        for kind in ('adjacent', 'seeds')
        for row in members
        if (row['size'] < 3 if kind == 'adjacent' else row['seed'])
      ],
      'storage': [
        {'way': way, 'models': 3, 'bytes': 28e6,
         'forward_flops': [1e4, 2e4, 4e4], 'member_bytes': [4e6, 8e6, 16e6]}
        for way in self.ways
      ],
      'summary_line': 'a line',
    }  # fmt: skip
    self.write('summary.json', {**found, **more})

  def write(self, name, value):
    self.workdir.mkdir(parents=True, exist_ok=True)
    (self.workdir / name).write_text(json.dumps(value, allow_nan=False))

  def text(self):
    return page_test.Checker(page.write(self.workdir).read_text('utf-8')).text


WAYS = {
  'chain': ('chain', 'alone'),
  'alone': ('separate', ''),
  'exits': ('exits', 'alone'),
  'worse_chain': ('chain', 'alone'),
}
RELATIVE = {
  'chain': (None, -0.03, -0.036),  # It begins with one that is alone.
  'exits': (0.02, 0.001, 0.003),
  'worse_chain': (0.03, 0.03, 0.06),
}


@pytest.fixture
def undrawn(monkeypatch):
  """Figures are made but not drawn, which takes most of the time."""
  monkeypatch.setattr('matplotlib.figure.Figure.savefig', lambda *_, **__: None)


@pytest.fixture(scope='module')
def full(tmp_path_factory):
  study = Study(tmp_path_factory.mktemp('full') / 'study', WAYS, RELATIVE)
  study.plan()
  study.summary()
  text = page.write(study.workdir).read_text('utf-8')
  return types.SimpleNamespace(html=text, page=page_test.Checker(text))


def test_page_holds_every_section_and_nothing_from_elsewhere(full):
  ids = ['answer', 'compared', 'losses', 'agreement', 'compute', 'ledger',
         'serving', 'runs', 'record', 'terms']  # fmt: skip
  assert full.page.ids == ids
  assert not re.search(r'https?://|url\(|@import', full.html)
  assert not full.page.tags & {'script', 'link', 'iframe', 'object'}
  for link in full.page.links:
    assert link.startswith(('#', 'data:image/png;base64,'))
  assert len(full.page.images) == 2
  assert 'G exits' not in full.page.text  # that is another kind of page


def test_numbers_of_the_answer_are_those_of_the_summary(full):
  text = full.page.text
  # exp(-0.022) - 1, exp(-0.036) - 1 and the ends, in per cent.
  assert (
    'chain over alone: −2.2 [−3.1, −1.2] % (lower) over all sizes and budgets;'
    ' −3.5 [−4.5, −2.6] % (lower) for the largest at C = 1.6×10⁹.' in text
  )
  assert 'worse_chain over alone: 4.1 [3.0, 5.1] % (higher) over all' in text
  assert '12.3 % fewer FLOPs than alone; at its losses it saves 66.0' in text
  assert 'C = 4×10⁸ and 1.6×10⁹ FLOPs, 2 seeds' in text
  assert '3 sizes of 1 k to 4 k parameters in 4 ways' in text


def test_an_interval_across_zero_is_said_to_include_it(full):
  text = full.page.text
  assert 'exits over alone: 0.8 [−0.2, 1.8] % (includes 0) over all' in text
  assert text.count('(includes 0)') == 2  # and its largest size
  # Of three ways, two budgets and three sizes two pairs are the same run.
  assert 'Of 16 intervals of single sizes 12 exclude 0' in text
  assert 'where one includes 0, the two cannot be told apart' in text
  assert (
    'the loss over all sizes and budgets is lower in chain; it is higher'
    ' in worse_chain; it cannot be told apart in exits.' in text
  )


def test_a_chain_that_saves_nothing_is_said_to(full):
  start = full.page.text.index('worse_chain over alone')
  part = full.page.text[start : start + 500]
  assert 'it saves −30.0 [−31.0, −29.0] %: nothing, alone would' in part


def test_separate_ways_come_first_then_chains_then_exits(full):
  at = full.page.text.index('Loss in nats per token at C = 4×10⁸')
  text = full.page.text[at:]
  places = [text.index(way) for way in ('alone', 'chain', 'worse', 'exits')]
  assert places == sorted(places)


def test_tables_hold_agreement_ledger_and_costs(full):
  text = full.page.text
  assert '0.250 ± 0.010' in text and '80.0 ± 1.0' in text
  assert 'Two seeds of one size at C = 4×10⁸' in text
  assert '+0.30' in text  # 0.001 * 3 / 1 of 100 steps
  assert '−47.1 %' in text  # the plan's saving
  assert '28.0' in text and '40 k' in text
  assert '36.9 k' in text  # seen by the third of a chain
  assert 'f00dfeed' in text and '1 x test' in text


def test_one_seed_and_one_budget_are_said(tmp_path, undrawn):
  study = Study(tmp_path, WAYS, RELATIVE, half=None, budgets=(4e8,))
  study.plan()
  study.summary()
  text = study.text()
  assert 'There is one seed, so there is no interval' in text
  assert 'this study has one seed, and so no scale' in text
  assert 'it takes two budgets, and the study has one' in text
  assert 'What it saves at its losses was not measured: that takes two' in text
  # 1 - (3 * 1/3) / (1/3 + 2/3 + 1) of the plan's ledger.
  assert '50.0 % fewer FLOPs than alone' in text
  assert 'includes 0' not in text.partition('Definitions')[0]


def test_a_study_without_a_summary_says_what_is_missing(tmp_path):
  study = Study(tmp_path, WAYS, RELATIVE)
  study.plan()
  checked = page_test.Checker(page.write(tmp_path).read_text('utf-8'))
  assert 'Not finished: 0 of 40 runs have a result' in checked.text
  assert '40 runs not run' in checked.text
  assert '6 k' in checked.text  # planned to be seen by the third of a chain
  assert {'ledger', 'runs', 'unmeasured'} <= set(checked.ids)
  assert not {'compared', 'losses', 'compute'} & set(checked.ids)
  assert not checked.images


def test_missing_members_are_named(tmp_path, undrawn):
  study = Study(tmp_path, WAYS, RELATIVE)
  study.plan()
  study.summary()
  found = storage.read_json(tmp_path / 'summary.json')
  gone = ('chain', 4e8, 1, 3)
  members = [
    row
    for row in found['members']
    if (row['way'], row['budget'], row['seed'], row['size']) != gone
  ]
  study.summary(members=members)
  assert '1 member missing, in no mean: chain, size 3, C = 4×10⁸, seed 1.' in (
    study.text()
  )
  parts = ('members', 'losses', 'compared', 'overall', 'equal_loss', 'saving',
           'agreement', 'storage')  # fmt: skip
  study.summary(**{part: [] for part in parts})
  assert 'No way is compared with another here' in study.text()


def test_text_is_escaped(tmp_path, undrawn):
  ways = {EVIL: ('chain', 'alone'), 'alone': ('separate', '')}
  study = Study(tmp_path, ways, {EVIL: RELATIVE['chain']})
  study.plan(title=EVIL, warnings=[EVIL], corpus={'name': EVIL})
  study.summary(machine={EVIL: EVIL}, summary_line=EVIL)
  text = page.write(tmp_path).read_text('utf-8')
  assert '<script' not in text
  assert page_test.Checker(text).text.count(EVIL) >= 12


def test_labels_at_the_end_of_lines_do_not_overlap():
  wanted, heights = [0.5, 0.51, 0.51, 0.9, 0.99], [0.1] * 5
  places = families.spread(wanted, heights)
  gaps = [b - a for a, b in itertools.pairwise(places)]
  assert min(gaps) >= 0.1 - 1e-9
  assert 0.05 - 1e-9 <= places[0] and places[-1] <= 0.95 + 1e-9
  assert places[1] == pytest.approx(0.51, abs=0.01)


def test_the_figure_draws_each_interval():
  rows = [
    {'way': 'chain', 'against': 'alone', 'budget': 1e9, 'size': size,
     **interval(value, 0.01)}
    for size, value in ((1, 0.0), (2, 0.02), (3, -0.03))
  ]  # fmt: skip
  params = {('chain', size): count for size, count in enumerate(PARAMS, 1)}
  figure = families.compared(rows, params, ['alone', 'chain'])
  lines = [line.get_xydata() for line in figure.axes[0].lines]
  curve = next(line for line in lines if len(line) == 3)
  assert list(curve[:, 0]) == list(PARAMS)
  assert curve[:, 1] == pytest.approx([0, 2.0201, -2.9554], abs=1e-3)
  bars = [line for line in lines if line.shape == (2, 2) and line[0, 0] > 1]
  assert [bar[0, 0] for bar in bars] == list(PARAMS)
  assert bars[1][:, 1] == pytest.approx([1.0050, 3.0455], abs=1e-3)


def test_each_way_has_a_look_of_its_own():
  looks = families.looks([f'way {n}' for n in range(20)]).values()
  assert len({tuple(look.values()) for look in looks}) == 20


def test_a_folder_of_nothing_is_refused(tmp_path):
  (tmp_path / 'plan.json').write_text('{"schema": 1, "study": "families"}')
  with pytest.raises(errors.UserError, match='familial run'):
    page.write(tmp_path)
