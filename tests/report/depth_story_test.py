"""The page on depth: its verdict follows from the studies' numbers."""

import copy
import json
import pathlib
import re

import pytest

from familial.core import errors
from familial.plots import regimes
from familial.report import depth_page
from familial.report import depth_story
from familial.report import html
from familial.report import results as results_lib

RESULTS = pathlib.Path(__file__).parents[2] / 'experiments' / 'results'


def constant(value, lo=0.1, hi=2.0, identified=True):
  return {'value': value, 'lo': lo, 'hi': hi, 'identified': identified}


def law(value=1.1, lo=0.8, hi=1.4, open_=(), **changes):
  params = {
    name: constant(1.0)
    for name in ('c_width', 'a_width', 'c_tokens', 'a_tokens')
  }
  params.update(
    E=constant(0.5), c_depth=constant(0.9), a_depth=constant(value, lo, hi)
  )
  for name in open_:
    params[name]['identified'] = False
  return {
    'schema': 1,
    'laws': {'width_depth': {'params': params, 'flags': ['E was hard']}},
    'selection': {
      'candidates': [
        {
          'form': 'chinchilla', 'parameters': 5, 'aic_behind': 0.0,
          'by_model': None, 'model_error_behind': None,
        }
      ]
    },
    'scan': None,
    **changes,
  }  # fmt: skip


def group(regime, exits=1, depth=8):
  return {
    'exits': exits, 'depth': depth, 'regime': regime, 'regimes': [regime] * 4,
    'loss': [1.7] * 4, 'strength': 1.0, 'scores': {regime: 1.0}, 'notes': [],
    'early_at': [{'remaining': 0.1, **estimate(0.5)}],
    'statistics': [dict.fromkeys(regimes.STATISTICS, 0.1)] * 4,
    'layers': {
      name: [{'layer': 1, 'mean': 0.2}] for name in regimes.LAYERS
    },
  }  # fmt: skip


def layers(regime, differences=(), groups=()):
  return {
    'schema': 1,
    'level': 0.95,
    'definitions': {},
    'groups': [group(regime), *groups],
    'differences': list(differences),
  }


def estimate(value, reach=0.1):
  return {'value': value, 'lo': value - reach, 'hi': value + reach}


def curve(teacher, exponent, **changes):
  return {
    'study': 'state', 'teacher': teacher, 'temperature': None, 'stages': 1,
    'one_layer': False,
    'teacher_depth': 64, 'depths': [2, 4, 8], 'exponent': estimate(exponent),
    'deep': estimate(exponent), 'curvature': estimate(0.0), 'averaging': None,
    'evolution': [{'steps': 10, **estimate(exponent)}],
    'loss': [[[4.0, 2.0, 1.0]] * 2], **changes,
  }  # fmt: skip


def toys(*curves):
  return {
    'schema': 1, 'level': 0.95, 'teachers': 2, 'curves': list(curves),
    'pairs': [], 'regimes': [],
  }  # fmt: skip


def saved(found, folder):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'summary.json').write_text(json.dumps(found))
  return str(folder)


@pytest.mark.parametrize(
  ('interval', 'regime', 'said'),
  [
    ((1.1, 0.8, 1.4), 'ensemble', 'exponent of 1: .* agrees'),
    ((0.4, 0.2, 0.6), 'ensemble', 'exponent of 1: .* does not agree'),
    ((1.4, 1.2, 1.6), 'ensemble', 'exponent of 1: .* does not agree'),
    ((2.8, 2.5, 3.1), 'smooth', 'exponent of 3: .* agrees'),
    ((1.1, None, None), 'ensemble', 'no interval.* settles nothing'),
    ((1.1, None, 1.4), 'ensemble', 'no interval.* settles nothing'),
    ((1.1, 0.8, 1.4), 'undecided', 'cannot be held against each other'),
    ((1.1, 0.8, 1.4), 'compositional', 'cannot be held against each other'),
  ],
)
def test_the_verdict_holds_the_law_against_the_layers(interval, regime, said):
  found = {'law': law(*interval), 'regimes': layers(regime)}
  *_, verdict = depth_story.verdict(found)
  assert re.search(said, verdict)


@pytest.mark.parametrize('open_', ['E', 'c_depth', 'a_depth'])
def test_an_exponent_that_hangs_on_what_is_open_settles_nothing(open_):
  over = {
    'form': 'width_depth',
    'rows': [{'value': 0.7, 'params': {'a_depth': 0.25}, 'aic_behind': 3.0}],
  }
  found = {
    'law': law(open_=[open_], over_E=over),
    'regimes': layers('ensemble'),
  }
  lines = list(depth_story.verdict(found))
  for line in (lines[1], lines[-1]):
    assert 'conditional on E = 0.5' in line and 'settles nothing' in line
    assert f'do not pin down {open_}' in line
  assert 'agree' not in lines[-1]
  assert 'at 0.700, a_depth 0.250 (AIC 3.0 behind)' in lines[2]
  assert 'exponent of that term, not of the loss' in lines[0]


def test_the_deepest_dense_models_are_held_against_the_law():
  """Other groups, and shallower models, say something else."""
  found = {
    'law': law(),
    'regimes': layers(
      'smooth',
      groups=[
        group('ensemble', depth=16),
        group('smooth', depth=12),
        group('smooth', exits=4, depth=32),
      ],
    ),
  }
  *lines, verdict = depth_story.verdict(found)
  assert re.search('models of 16 layers, .* exponent of 1: .* agrees', verdict)
  [said] = [line for line in lines if 'the deepest' in line]
  assert 'dense models of 16 layers' in said


def test_what_the_forms_and_exits_do_is_said():
  rows = [
    {'name': name, 'layer': None, 'low': 0.1}
    for name in ('step_spread', 'early', 'stop_spread')
  ]
  found = {
    'law': law(),
    'regimes': layers('ensemble', [{'exits': 4, 'depth': 8, 'rows': rows}]),
  }
  lines = list(depth_story.verdict(found))
  assert 'chinchilla' in lines[0]
  assert '4 of 4 seeds' in lines[1]
  assert 'G = 4 yes' in lines[2]


def test_the_toys_are_in_the_verdict():
  apart = toys(
    curve('independent', 1.05),
    curve('independent', 1.3),
    curve('tied', 2.9),
    curve('tied', 1.0, curvature=estimate(2.0), teacher_depth=4, study='short'),
  )
  lines = list(depth_story.verdict({'law': law(), 'toys': apart}))
  said = '\n'.join(lines)
  assert '1 of 2 intervals hold 1' in said and '1 of 1 intervals hold 3' in said
  assert 'short, tied: 1.00 [0.90, 1.10], no power law' in said.replace(
    html_space(), ' '
  )
  assert 'do not overlap, so there an exponent tells the regime' in said
  assert 'meets those of independent layers' in said
  overlap = toys(curve('independent', 1.05), curve('tied', 1.1))
  *_, follows, _ = depth_story.verdict(
    {'law': law(open_=['E']), 'toys': overlap}
  )
  assert 'from 1.00 to 1.15 tells no regime' in follows
  assert 'cannot be laid beside them' in follows
  *_, follows, _ = depth_story.verdict({'toys': toys(curve('tied', 3.0))})
  assert 'nothing for the law' in follows


def test_depth_is_held_against_width():
  wide = curve('tied', 0.5, one_layer=True, study='one_layer')
  found = toys(curve('tied', 2.3), wide)
  found['pairs'] = [
    {
      'study': 'state', 'base': 'one_layer', 'teacher': 'tied',
      'temperature': None, 'equal': 'units', 'depths': [2, 4, 8],
      'exponent': estimate(2.3), 'base_exponent': estimate(0.5),
      'difference': estimate(1.8), 'log_ratio': estimate(-2.0),
    }
  ]  # fmt: skip
  lines = [
    line.replace(html_space(), ' ')
    for line in depth_story.verdict({'toys': found})
  ]
  assert '1 of 1 intervals' not in lines[0]
  assert 'one layer, tied: 0.50 [0.40, 0.60]' in lines[1]
  [said] = [line for line in lines if line.startswith('Depth or width')]
  assert '0.135 [0.122, 0.150] of the loss' in said
  assert 'exponent of 2.30 [2.20, 2.40] where that has 0.50' in said


def html_space():
  return '\u00a0'


def test_flags_and_legitimate_nulls_are_on_the_page(tmp_path):
  found = law(1.1, None, None, ['E'], selection=None)
  found['laws']['width_depth']['params']['E'].update(lo=None, hi=None)
  blank = toys(
    curve('tied', 3.0, loss=[[[None, 2.0, 1.0], [4.0, 2.0, 1.0]]]),
    curve(
      'independent', 1.0, temperature=0.5, loss=[[[None] * 3]],
      averaging=1.1,
      deep=dict.fromkeys(('value', 'lo', 'hi')),
      curvature=dict.fromkeys(('value', 'lo', 'hi')),
    ),
  )  # fmt: skip
  blank['curves'][1]['exponent'] = dict.fromkeys(('value', 'lo', 'hi'))
  line = depth_story.write(
    {
      'law': saved(found, tmp_path / 'law'),
      'regimes': saved(layers('ensemble'), tmp_path / 'regimes'),
      'toys': saved(blank, tmp_path / 'toys'),
    },
    tmp_path / 'out',
  )
  assert 'settles nothing' in line
  page = (tmp_path / 'out' / 'index.html').read_text()
  for said in (
    'E was hard', 'no interval', 'How the exponents depend on E was not asked',
    'missing here: the folder holds no run', 'No forms were compared',
  ):  # fmt: skip
    assert said in page
  assert 'No law of width and depth was fitted' not in page
  assert 'E was hard' in page[: page.index('id="law"')]  # Beside the verdict.
  figures = {path.name for path in (tmp_path / 'out' / 'figures').iterdir()}
  assert figures == {
    'regimes_8.png', 'layers_8.png', 'toys_loss.png', 'toys_steps.png'
  }  # fmt: skip


@pytest.mark.parametrize(
  ('kind', 'place', 'value', 'said'),
  [
    ('toys', ['curves'], [], 'curves has 0 entries'),
    ('toys', ['curves', 0], {}, r'curves\[0\]\.study is missing'),
    ('toys', ['curves', 0, 'teacher'], 'odd', r'teacher must be one of'),
    ('toys', ['curves', 0, 'loss'], [[[1.0]]], 'each of its 3 depths'),
    ('toys', ['curves', 0, 'exponent', 'lo'], 'low', 'lo must be a number'),
    ('regimes', ['groups'], [{}], r'groups\[0\]\.depth is missing'),
    ('regimes', ['groups'], {}, 'groups must be a list'),
    (
      'law',
      ['laws', 'width_depth', 'params', 'a_depth'],
      {'value': 1.0, 'identified': True},
      r'laws\.width_depth\.params\.a_depth\.lo is missing',
    ),
    (
      'law',
      ['laws', 'width_depth', 'params'],
      {},
      r'params\.E is missing',
    ),
    ('law', ['selection'], {'candidates': []}, 'candidates has 0 entries'),
    ('law', ['scan'], {'form': 'width_depth'}, r'scan\.cutoffs is missing'),
  ],
)
def test_a_broken_summary_is_one_line_and_nothing_is_written(
  kind, place, value, said, tmp_path
):
  studies = {
    'law': law(),
    'regimes': layers('ensemble'),
    'toys': toys(curve('tied', 3.0)),
  }
  broken = copy.deepcopy(studies[kind])
  part = broken
  for key in place[:-1]:
    part = part[key]
  part[place[-1]] = value
  folders = {
    name: saved(broken if name == kind else found, tmp_path / name)
    for name, found in studies.items()
  }
  with pytest.raises(errors.UserError, match=said) as raised:
    depth_story.write(folders, tmp_path / 'out')
  assert str(tmp_path / kind / 'summary.json') in str(raised.value)
  assert '\n' not in str(raised.value)
  assert not (tmp_path / 'out').exists()


def test_results_without_their_fits_show_the_law(tmp_path):
  """Of the committed study: constants, flags, E, and a figure of its rows."""
  results = results_lib.read(RESULTS / 'depth_law_cpu')
  assert len(results.arm('grid')) == 16
  sections = {
    section.key: section.body
    for section in depth_page.findings(results, html.Gallery(tmp_path))
  }
  assert {'law', 'over_e', 'cutoffs'} <= sections.keys()
  assert 'No law of width and depth' not in ''.join(sections.values())
  assert (tmp_path / 'shapes.png').exists()
  assert '193 of 1000 resamples failed' in sections['law']
  assert '0.00000000' not in sections['law'] + sections['cutoffs']
  cells = re.findall('<td[^>]*>(not identified[^<]*)', sections['cutoffs'])
  assert len(cells) == 12  # E and c_depth, at six cut-offs
  assert '161 of 1000 resamples failed' in sections['cutoffs']
  over = results.summary['over_E']['rows']
  exponents = [row['params']['a_depth'] for row in over]
  assert exponents == sorted(exponents) and exponents[-1] > 0.8
  assert over[0]['value'] == over[0]['aic_behind'] == 0
  assert f'{exponents[1]:.4f}' in sections['over_e']


def test_the_committed_studies_have_what_the_page_asks():
  found = {
    kind: depth_story._summary(kind, str(RESULTS / f'{experiment}_cpu'))
    for kind, (experiment, _) in depth_story.KINDS.items()
  }
  said = '\n'.join(depth_story.verdict(found))
  for part in ('Depth or width, tied', 'G = 4 in part', 'With E held'):
    assert part in said.replace(html_space(), ' ')


def test_rows_that_lack_a_field_are_refused(tmp_path):
  (tmp_path / 'rows.jsonl').write_text('{"cell": "a", "run": "a"}\n')
  with pytest.raises(errors.UserError, match=r'rows\.jsonl: row 1 lacks arm'):
    results_lib.read(tmp_path)


def test_another_study_s_folder_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match='--law, --regimes, --toys: at le'):
    depth_story.write(dict.fromkeys(depth_story.KINDS, ''), tmp_path / 'out')
  (tmp_path / 'summary.json').write_text(json.dumps({'schema': 1}))
  with pytest.raises(errors.UserError, match=r'--toys: .*depth_toys\.py'):
    depth_story.write({'toys': str(tmp_path)}, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
