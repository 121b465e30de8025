"""The page on depth: its verdict follows from the studies' tables."""

import dataclasses
import json
import pathlib
import types

import pytest

from familial.core import errors
from familial.core.estimate import Estimate
from familial.report import depth_story
from familial.studies import depth_law
from familial.studies import depth_toys
from tests.report.conftest import Page

RESULTS = pathlib.Path(__file__).parents[2] / 'experiments' / 'results'


def law(a_depth=Estimate(1.1, 0.8, 1.4), open_=()):
  values = {'E': Estimate(0.5, 0.4, 0.6), 'c_depth': Estimate(0.9, 0.8, 1.0)}
  constants = tuple(
    depth_law.Constant('width_depth', name, value, name not in open_)
    for name, value in {**values, 'a_depth': a_depth}.items()
  )
  return depth_law.Tables((), (), constants, (), (), (), (), ())


def regimes(*groups, towards=()):
  """Returns what the page reads of the tables; groups are (regime, G, depth)."""
  return types.SimpleNamespace(
    groups=[
      types.SimpleNamespace(
        regime=regime, exits=exits, depth=depth, same=3, seeds=4
      )
      for regime, exits, depth in groups
    ],
    towards=towards,
  )


def toys(*curves):
  return depth_toys.Tables(tuple(curves), (), (), (), (), (), ())


def curve(teacher, exponent, **changes):
  values = {field.name: None for field in dataclasses.fields(depth_toys.Curve)}
  values |= {
    'study': 'state', 'teacher': teacher, 'stages': 1, 'one_layer': False,
    'teacher_depth': 64, 'depths': (2, 4, 8), 'bent': False,
    'exponent': Estimate(exponent, exponent - 0.1, exponent + 0.1),
  }  # fmt: skip
  return depth_toys.Curve(**{**values, **changes})


@pytest.mark.parametrize(
  ('ends', 'regime', 'agrees'),
  [
    ((1.1, 0.8, 1.4), 'ensemble', 'yes'),
    ((0.4, 0.2, 0.6), 'ensemble', 'no'),
    ((1.4, 1.2, 1.6), 'ensemble', 'no'),
    ((2.8, 2.5, 3.1), 'smooth', 'yes'),
    ((1.1, None, None), 'ensemble', 'open'),
    ((1.1, None, 1.4), 'ensemble', 'open'),
    ((1.1, 0.8, 1.4), 'undecided', 'open'),
    ((1.1, 0.8, 1.4), 'compositional', 'open'),
  ],
)
def test_law_is_compared_with_the_layers(ends, regime, agrees):
  found = depth_story.verdict(law(Estimate(*ends)), regimes((regime, 1, 8)))
  assert found.agrees == agrees
  assert found.findings[0].exponent == Estimate(*ends)


@pytest.mark.parametrize('name', ['E', 'c_depth', 'a_depth'])
def test_exponent_that_depends_on_an_open_constant_settles_nothing(name):
  found = depth_story.verdict(
    law(open_=[name]), regimes(('ensemble', 1, 8)), toys(curve('tied', 1.1))
  )
  assert found.agrees == found.findings[0].agrees == 'open'
  assert name in found.findings[0].says
  assert [span.meets_law for span in found.spans] == ['open']


def test_law_is_compared_with_the_deepest_dense_models():
  groups = [('smooth', 1, 8), ('ensemble', 1, 16), ('smooth', 4, 32)]
  found = depth_story.verdict(law(), regimes(*groups))
  assert found.agrees == 'yes'
  assert found.findings[0].expected == 1
  expected = [row.expected for row in found.findings if row.part == 'layers']
  assert expected == [3, 1]


def test_what_exits_do_is_a_finding():
  row = types.SimpleNamespace(exits=4, depth=8, composition='in part')
  found = depth_story.verdict(None, regimes(('ensemble', 1, 8), towards=[row]))
  [finding] = [row for row in found.findings if row.part == 'exits']
  assert 'in part' in finding.says
  assert found.agrees == 'open'


@pytest.mark.parametrize(
  ('tied', 'overlap', 'meets'),
  [(2.9, 'no', ['yes', 'no']), (1.1, 'yes', ['yes', 'yes'])],
)
def test_toys_that_show_a_regime_span_its_exponents(tied, overlap, meets):
  controls = [
    curve('tied', 8.0, teacher_depth=4),
    curve('tied', 8.0, stages=2),
    curve('tied', 8.0, one_layer=True),
  ]
  known = [curve('independent', 1.05), curve('independent', 1.3)]
  found = depth_story.verdict(
    law(), toys=toys(*known, curve('tied', tied), *controls)
  )
  assert [row.agrees for row in found.findings[1:]] == [
    'yes', 'no', 'yes' if tied > 2 else 'no', '', '', ''
  ]  # fmt: skip
  assert [span.meets_law for span in found.spans] == meets
  assert (found.spans[0].lo, found.spans[0].hi) == pytest.approx((0.95, 1.4))
  assert found.overlap == overlap


def test_without_both_kinds_of_toys_their_overlap_is_open():
  unknown = dataclasses.replace(curve('independent', 1.0), exponent=None)
  found = depth_story.verdict(toys=toys(curve('tied', 3.0), unknown))
  assert found.overlap == 'open'
  assert [row.agrees for row in found.findings] == ['yes', 'open']


def test_page_of_the_committed_studies(tmp_path, undrawn):
  folders = {
    name: str(RESULTS / f'{folder}_cpu')
    for name, folder in {**depth_story.KINDS, 'law': 'depth_law'}.items()
  }
  depth_story.write(folders, tmp_path)
  found = Page(tmp_path / 'index.html')
  assert found.sections == [
    'answer', 'law', 'forms', 'over_e', 'cutoffs', 'controls', 'regimes', 'toys',
    'terms',
  ]  # fmt: skip
  assert found.figures == {
    'shapes', 'forms', 'cutoffs', 'regimes_8', 'layers_8', 'toys_loss',
    'toys_steps',
  }  # fmt: skip


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda values: values.update(study='isoflop'), "'isoflop'"),
    (
      lambda values: values['tables']['constants'][0].pop('identified'),
      r'tables.constants\[0\].identified',
    ),
  ],
)
def test_summary_of_another_kind_is_refused_in_one_line(tmp_path, change, said):
  values = json.loads((RESULTS / 'depth_law_cpu/summary.json').read_text())
  change(values)
  path = tmp_path / 'summary.json'
  path.write_text(json.dumps(values))
  with pytest.raises(errors.UserError, match=said) as raised:
    depth_story.write({'law': str(tmp_path)}, tmp_path / 'out')
  assert str(raised.value).startswith(f'--law: {path}: ')
  assert '\n' not in str(raised.value)
  assert not (tmp_path / 'out').exists()


def test_a_folder_is_needed(tmp_path):
  with pytest.raises(errors.UserError, match='--law, --regimes, --toys'):
    depth_story.write(dict.fromkeys(depth_story.KINDS, ''), tmp_path / 'out')
  with pytest.raises(errors.UserError, match=r'--toys: .*summary\.json'):
    depth_story.write({'toys': str(tmp_path)}, tmp_path / 'out')
