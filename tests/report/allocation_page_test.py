"""The page of a live allocation, at every moment of one."""

import dataclasses
import json
import types

import numpy as np
import pytest

from familial.allocation import curves
from familial.allocation import halving
from familial.allocation import policies
from familial.allocation import rounds as rounds_lib
from familial.core import run_folder
from familial.core import storage
from familial.model import flops as flops_lib
from familial.report import page
from familial.training import config as training_config
from familial.training import rows as rows_lib
from tests.allocation import replays
from tests.report import conftest
from tests.report import page_test

SHAPES = ((32, 4, 1), (32, 4, 2), (64, 4, 1), (64, 4, 2))
HORIZON, BUDGET = 2e11, 3e11
POINTS = 8
SEQ_LEN, BATCH = conftest.SEQ_LEN, conftest.BATCH
POLICY = 'sh_lmc'


class Study:
  """A live allocation of four candidates, made by hand.

  Attributes:
    curves: of the whole grid.
    found: how the budget was spent.
  """

  def __init__(self, workdir, policy=POLICY):
    self.workdir, self.policy = workdir, policy
    self.cells, self.rows = [], []
    for width, depth, exits in SHAPES:
      self._cell(width, depth, exits)
    self.curves = [
      curves.of_run(cell['cell'], rows, 'final', {})
      for cell, rows in zip(self.cells, self.rows, strict=True)
    ]
    rank = expects if policy == POLICY else by_seen
    [self.found] = replays.allocate(
      policies.SuccessiveHalving(rank), [self.curves], BUDGET
    )

  def _cell(self, width, depth, exits):
    shape = conftest.model(width, depth, exits)
    step = BATCH * SEQ_LEN * flops_lib.train(shape, SEQ_LEN)
    steps, name = int(HORIZON / step), f'w{width}_g{exits}'
    config = types.SimpleNamespace(
      cell=name, arm='candidate', budget=HORIZON, model=shape,
      data=types.SimpleNamespace(seq_len=SEQ_LEN),
      train=training_config.TrainConfig(
        steps=steps, batch_size=BATCH, base_lr=0.01
      ),
    )  # fmt: skip
    rows = []
    for at in np.geomspace(max(steps // 100, 1), steps, POINTS).astype(int):
      tokens = int(at) * BATCH * SEQ_LEN
      loss = 1.5 + 40 / flops_lib.params_full(shape) ** 0.4 + 30 / tokens**0.4
      rows += rows_lib.of_evaluation(
        config, name, 'f00dfeed', step=int(at), inherited=0.0, epochs=0.1,
        losses=[loss * exits**0.03] * exits, bytes_per_token=1.0,
        status='finished' if at == steps else 'running',
      )  # fmt: skip
    self.rows.append(rows)
    self.cells.append({
      'cell': name, 'steps': rows[-1]['step'], 'arm': 'candidate', 'budget': HORIZON, 'width': width,
      'depth': depth, 'exits': exits, 'tokens': steps * BATCH * SEQ_LEN,
      'params_full': flops_lib.params_full(shape), 'flops': rows[-1]['flops'],
      'epochs': 0.1,
    })  # fmt: skip

  @property
  def grid(self):
    return sum(cell['flops'] for cell in self.cells)

  def write(self, rounds, trained, summary=None, **plan):
    """Writes the folder and its page; returns what it says.

    Args:
      rounds: how many were decided on.
      trained: FLOPs of each candidate of which there are rows.
      summary: changes to summary.json; None for none.
      **plan: changes to the plan.
    """
    pruning = self.policy != 'law'
    self._json('plan.json', {
      'schema': storage.SCHEMA, 'study': 'allocation', 'title': 'Live',
      'cells': self.cells, 'flops': self.grid, 'budget': BUDGET,
      'policy': self.policy, 'rounds': 2, 'full': False, 'warnings': [],
      'survivors': [4, 2] if pruning else [], 'shares': [], **plan,
    })  # fmt: skip
    self._json('config.json', {
      'schema': storage.SCHEMA, 'horizon': HORIZON, 'eta': 2, 'loss': 'final',
      'train': {'schedule': 'constant', 'base_lr': 0.01},
      'law': {'form': 'chinchilla', 'where': [], 'beyond': 10.0},
    })  # fmt: skip
    for rows, flops in zip(self.rows, trained, strict=True):
      kept = [row for row in rows if row['flops'] <= flops]
      if kept:
        path = self.workdir / 'cells' / kept[0]['cell'] / run_folder.ROWS
        path.parent.mkdir(parents=True)
        storage.append(path, kept)
    for made in self.found.rounds[:rounds]:
      row = {'schema': storage.SCHEMA, **dataclasses.asdict(made)}
      storage.append(self.workdir / 'rounds.jsonl', [row])
    if summary is not None:
      self._json('summary.json', {**self.summary(), **summary})
    return page_test.Checker(page.write(self.workdir).read_text('utf-8'))

  def summary(self):
    spent = self.found.total
    return {
      'schema': storage.SCHEMA, 'machine': {'devices': '1 x test'},
      'cost': {'flops': self.grid, 'seconds': 60.0, 'missing': 0},
      'policy': self.policy, 'budget': BUDGET, 'spent': spent,
      'grid': self.grid, 'saving': 1 - spent / self.grid, 'candidates': [],
      'extrapolated_to': 10 * HORIZON, 'laws': {'allocated': law(2.5, 0.31)},
      'apart': None, 'replays': None, 'summary_line': 'a line',
    }  # fmt: skip

  def _json(self, name, value):
    self.workdir.mkdir(parents=True, exist_ok=True)
    (self.workdir / name).write_text(json.dumps(value, allow_nan=False))


def expects(survey, seed):
  """Ranks by seven tenths of the last loss."""
  seen = survey.seen_SxM
  return halving.Ranking(
    0.7 * seen, halving.Prediction(0.7 * seen, 0.6 * seen, 0.9 * seen)
  )


def by_seen(survey, seed):
  return halving.Ranking(survey.seen_SxM)


def law(loss, alpha, **more):
  return {
    'rows': 17,
    'params': {
      'alpha': {'value': alpha, 'lo': alpha - 0.02, 'hi': alpha + 0.04}
    },
    'extrapolated': {
      'L_opt(C=2e+12)': {'value': loss, 'lo': loss - 0.1, 'hi': loss + 0.2}
    },
    'identified': {'alpha': True},
    'flags': [],
    **more,
  }


COMPARED = {
  'laws': {'allocated': law(2.5, 0.31), 'full': law(2.2, 0.36)},
  'apart': {
    'params': {'alpha': -0.05},
    'extrapolated': {'L_opt(C=2e+12)': 2.5 / 2.2 - 1},
  },
  'replays': {
    'sh': {
      'best': 2.9876, 'spent': 2.9e11, 'gain': 0.0, 'regret': 0.01,
      'saving': 0.6, 'slope': -0.1, 'area': 0.05, 'line': 0.02, 'law': None,
    }
  },
}  # fmt: skip


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  return Study(tmp_path_factory.mktemp('live') / 'study')


@pytest.fixture(scope='module')
def full(study):
  return study.write(2, [HORIZON] * 4, COMPARED, full=True)


def test_the_answer_is_the_summarys(full, study):
  answer = full.text[: full.text.index('Before believing it')]
  saved = 100 * (1 - study.found.total / study.grid)
  assert f'saved {saved:.1f} % of what the whole grid costs' in answer
  # 2.5 over 2.2 is 13.6 %, and 2.5 is above 2.2 + 0.2.
  assert "is 14 % above that of the whole grid's law, outside" in answer
  assert '2.50 [2.40, 2.70]; whole grid 2.20 [2.10, 2.40] (outside' in answer
  assert 'α: 0.310 [0.290, 0.350]; whole grid 0.360 [0.340, 0.400]' in answer
  assert 'unmeasured' not in full.ids and len(full.images) == 2


def test_a_round_says_who_left_and_why(full, study):
  first = study.found.rounds[0]
  assert len(first.kept) == 2
  text = full.text[full.text.index('Round 1, candidate by candidate') :]
  text = text[: text.index('Round 2, candidate by candidate')]
  order = np.argsort(first.score)
  places = [text.index(study.cells[first.alive[k]]['cell']) for k in order]
  assert places == sorted(places)
  for k, i in enumerate(first.alive):
    assert f'{first.score[k]:.3f}' in text and f'{first.seen[k]:.3f}' in text
    assert f'{float(study.curves[i].at(first.end[k])):.3f}' in text
  assert text.count('stays') == text.count('pruned') == 2


def test_predictions_are_held_against_what_came(full, study):
  held = 0
  for k, i in enumerate(study.found.rounds[0].alive):
    first = study.found.rounds[0]
    _, lo, hi = first.predicted[k]
    held += lo <= float(study.curves[i].at(first.end[k])) <= hi
  assert f'Of 4 predictions that can be checked, {held} held' in full.text


def test_a_law_that_knows_no_exits_is_warned_of(full):
  assert 'The law chinchilla does not know of exits' in full.text


@pytest.mark.parametrize(
  ('policy', 'rounds', 'trained', 'summary', 'said', 'images'),
  [
    (POLICY, 0, 0.0, None, 'Planned: nothing has been trained yet', 0),
    (POLICY, 0, 0.01, None, 'the first round is under way', 1),
    (POLICY, 1, 0.2, None, '1 of 2 rounds decided on', 1),
    (POLICY, 1, 0.2, None, '2 candidates may train on', 1),
    ('sh', 2, 0.4, None, 'The law is fitted when the study ends', 1),
    ('sh', 2, 0.4, {}, 'The whole grid was not trained', 2),
    (
      'sh', 2, 0.4,
      {'laws': {'allocated': {'rows': 3, 'error': '3 rows cannot fix it'}}},
      'No law of the allocation: 3 rows cannot fix it', 1,
    ),
  ],
)  # fmt: skip
def test_it_is_a_page_at_every_moment(
  tmp_path, policy, rounds, trained, summary, said, images
):
  made = Study(tmp_path / 'study', policy)
  found = made.write(rounds, [trained * HORIZON] * 4, summary)
  assert said in found.text
  assert len(found.images) == images
  assert 'Not measured here' in found.text
  for cell in made.cells:
    assert cell['cell'] in found.text


def test_law_prunes_nobody_and_may_train_nobody(tmp_path):
  made = Study(tmp_path / 'study', 'law')
  seen = made.curves[1].cut(1e11)
  rounds = [
    rounds_lib.Round(
      (1,), BUDGET / 2, (1e11,), (seen.best,), (None,), (1e11,), None, (1,)
    ),
    rounds_lib.Round((), BUDGET / 2, (), (), (), (), None, ()),
  ]
  made.found = dataclasses.replace(
    made.found, rounds=tuple(rounds), spent=(0.0, 1e11, 0.0, 0.0)
  )
  found = made.write(2, [0, 1e11, 0, 0], {})
  assert 'law prunes nobody' in found.text
  fates = found.text[found.text.index('Lowest loss: as far as') :]
  assert fates[: fates.index('Not measured')].count('not trained') == 3


def test_a_candidate_that_diverged_is_named(tmp_path):
  made = Study(tmp_path / 'study')
  last = made.rows[0][-1]
  made.rows[0][-1] = {**last, 'loss': None, 'status': 'diverged'}
  found = made.write(1, [HORIZON] * 4)
  assert '1 candidate diverged, and can survive no round: w32_g1' in found.text
