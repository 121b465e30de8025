"""The page on depth: its verdict follows from the studies' numbers."""

import json
import re

import pytest

from familial import errors
from familial.report import depth_story


def law(value, lo, hi, identified=True):
  return {
    'laws': {
      'width_depth': {
        'params': {
          'a_depth': {
            'value': value, 'lo': lo, 'hi': hi, 'identified': identified
          }
        }
      }
    },
    'selection': {'candidates': [{'form': 'chinchilla'}]},
    'scan': None,
  }  # fmt: skip


def layers(regime, differences=()):
  return {
    'groups': [
      {'exits': 1, 'depth': 8, 'regime': regime, 'regimes': [regime] * 4}
    ],
    'differences': list(differences),
  }


@pytest.mark.parametrize(
  ('interval', 'regime', 'said'),
  [
    ((1.1, 0.8, 1.4), 'ensemble', 'exponent of 1: .* agrees'),
    ((0.4, 0.2, 0.6), 'ensemble', 'exponent of 1: .* does not'),
    ((2.8, 2.5, 3.1), 'smooth', 'exponent of 3: .* agrees'),
    ((1.1, 0.8, 1.4), 'undecided', 'cannot be held against each other'),
    ((1.1, 0.8, 1.4), 'compositional', 'cannot be held against each other'),
  ],
)
def test_the_verdict_holds_the_law_against_the_layers(interval, regime, said):
  found = {'law': law(*interval), 'regimes': layers(regime)}
  *_, verdict = depth_story.verdict(found)
  assert re.search(said, verdict)


def test_what_is_not_identified_and_what_exits_do_is_said():
  rows = [
    {'name': name, 'layer': None, 'low': 0.1}
    for name in ('step_spread', 'early', 'stop_spread')
  ]
  found = {
    'law': law(1.0, 0.1, 9.0, identified=False),
    'regimes': layers('ensemble', [{'exits': 4, 'depth': 8, 'rows': rows}]),
  }
  lines = list(depth_story.verdict(found))
  assert 'do not pin down' in lines[0] and 'chinchilla' in lines[0]
  assert '4 of 4 seeds' in lines[1]
  assert 'G = 4 yes' in lines[2]


def test_another_study_s_folder_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match='--law, --regimes, --toys: at le'):
    depth_story.write(dict.fromkeys(depth_story.KINDS, ''), tmp_path / 'out')
  (tmp_path / 'summary.json').write_text(json.dumps({'schema': 1}))
  with pytest.raises(errors.UserError, match=r'--toys: .*depth_toys\.py'):
    depth_story.write({'toys': str(tmp_path)}, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
