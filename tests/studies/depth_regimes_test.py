"""A study of layers and exits: pairs that differ in their exits alone."""

import json

import pytest

from experiments import depth_regimes as experiment
from familial.cli import main
from familial.core import errors
from familial.studies import depth_regimes
from familial.studies import depth_regimes_summary as summaries
from familial.studies import templates


def row(name, low, layer=None):
  return {'name': name, 'low': low, 'layer': layer}


def test_all_that_composition_predicts_must_rise():
  all_three = [row(name, 0.1) for name in summaries.COMPOSITION]
  assert summaries.towards_composition(all_three) == 'yes'
  # Layers and other statistics say nothing of it.
  others = [row('alignment', -1.0), row('turn', -1.0, 3)]
  assert summaries.towards_composition(all_three + others) == 'yes'
  one = [*all_three[:2], row(summaries.COMPOSITION[2], -0.1)]
  assert summaries.towards_composition(one) == 'in part'
  none = [row(name, None) for name in summaries.COMPOSITION]
  assert summaries.towards_composition(none) == 'no'


def test_models_are_told_apart_by_their_depth_and_exits():
  probes = [
    {'model': {'depth': depth, 'exits': exits}}
    for depth in (4, 8)
    for exits in ([depth], [2, depth])
  ]
  assert summaries._of(probes, 8, 1) == [probes[2]]
  assert summaries._of(probes, 4, 2) == [probes[1]]


def test_early_stops_are_told_by_the_cut():
  probes = [
    {'early_at': [{'remaining': 0.1, 'share': share}]} for share in (0.2, 0.4)
  ]
  [row] = summaries._early_at(probes)
  assert row['remaining'] == 0.1 and row['value'] == pytest.approx(0.3)
  assert row['lo'] < 0.2 and row['hi'] > 0.4  # Student's, of two seeds.


@pytest.mark.parametrize('arg', ['test', 'cpu', 'gpu'])
def test_pairs_differ_in_their_exits_alone(arg):
  study = templates.regimes(experiment.get_config(arg))
  cells = depth_regimes.build(study)
  assert len({cell.cell for cell in cells}) == len(cells)
  of = {(c.model.depth, c.model.granularity, c.train.seed): c for c in cells}
  assert len(of) == len(cells)
  for (depth, _, seed), cell in of.items():
    dense = of[depth, 1, seed]
    assert cell.train == dense.train and cell.data == dense.data
    assert cell.model.width == dense.model.width


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'depths': (2,)}, 'depths: .* at least 4'),
    ({'granularities': (2, 4)}, 'granularities: .* with 1'),
    ({'seeds': (0, 0)}, 'seeds: .* no two alike'),
    ({'width': 12}, 'width: 12 .* multiple of head_width, 8'),
  ],
)
def test_what_cannot_be_is_one_line(changes, said):
  config = experiment.get_config('test')
  config.update(changes)
  with pytest.raises(errors.UserError, match=said):
    templates.regimes(config)


@pytest.mark.slow
def test_a_study_says_what_exits_change(tmp_path, capsys):
  flags = [
    '--config=experiments/depth_regimes.py:test',
    f'--workdir={tmp_path}',
  ]
  assert main._main(['familial', 'run', *flags]) == 0
  assert 'towards composition' in capsys.readouterr().out
  found = json.loads((tmp_path / 'summary.json').read_text())
  assert [group['exits'] for group in found['groups']] == [1, 2]
  for group in found['groups']:
    assert len(group['regimes']) == len(group['statistics']) == 2
  [change] = found['differences']
  early = next(r for r in change['rows'] if r['name'] == 'early')
  each = [[row['early'] for row in g['statistics']] for g in found['groups']]
  assert early['one'] == pytest.approx(sum(each[0]) / 2)
  assert early['difference'] == pytest.approx(
    sum(each[1]) / 2 - sum(each[0]) / 2
  )
  page = (tmp_path / 'report' / 'index.html').read_text()
  assert found['summary_line'].replace(' ', '') in page.replace(
    '\u00a0', ''
  ).replace(' ', '')
  # What is probed is probed once.
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'probes').iterdir()}
  assert main._main(['familial', 'run', *flags]) == 0
  assert before == {p: p.stat().st_mtime_ns for p in before}
