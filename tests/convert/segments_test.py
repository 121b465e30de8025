import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from familial.convert import segments
from familial.core import errors
from tests.serving.families import CONTEXT


@pytest.mark.parametrize(
  'shape',
  [
    {},
    {'exit_kind': 'separate', 'tied': False},
    {'exit_kind': 'branch', 'branch_unembedding': 'own'},
  ],
)
def test_segments_hold_every_layer_once(family, shape):
  made = family(**shape)
  for exits in ((), (1, 3), (3,)):
    parts = made.segments(*exits)
    names = [name for part in parts for name in part.params]
    layers = [name for name in names if name.startswith('segment_')]
    assert sorted(layers) == ['segment_0', 'segment_1', 'segment_2']
    assert [part.exit for part in parts] == list(exits or (1, 2, 3))
    assert (parts[0].first, parts[-1].last) == (True, True)
    for part in parts:
      assert f'exit_{part.exit}' in part.params
      sizes = segments.nbytes(part)
      assert sum(sizes.values()) == sum(
        leaf.nbytes for leaf in jax.tree.leaves(part.params)
      )
      shared = {'embedding', 'unembedding'} & set(part.params)
      assert bool(sizes['copied']) == bool(shared)
    assert 'embedding' in parts[0].params


def test_a_segment_comes_back_without_the_others(family, tmp_path):
  made = family(exit_kind='branch', tied=False)
  for part in made.segments():
    segments.save(part, tmp_path / str(part.index))
    found = segments.load(tmp_path / str(part.index))
    jax.tree.map(np.testing.assert_array_equal, found.params, part.params)
    for field in dataclasses.fields(segments.Cut):
      assert getattr(found, field.name) == getattr(part, field.name)


def test_a_fingerprint_is_that_of_the_family(family):
  one, other = family(), family(rope_theta=2e4)
  mark = segments.fingerprint(one.params, one.config)
  assert {part.fingerprint for part in one.segments(1, 3)} == {mark}
  assert segments.fingerprint(other.params, other.config) != mark
  how = family(unroll=False, attention='plain', loss_chunk=4)
  assert segments.fingerprint(how.params, how.config) == mark
  params = jax.tree.map(np.array, one.params)
  params['segment_1']['mlp']['up']['kernel'][0, 3, 2] += 1e-3
  assert segments.fingerprint(params, one.config) != mark


@pytest.mark.parametrize(
  ('exits', 'said'), [((3, 1), 'increasing'), ((1, 4), 'exit: 4 is not')]
)
def test_exits_that_do_not_exist_are_refused(family, exits, said):
  made = family()
  with pytest.raises(errors.UserError, match=said):
    segments.split(made.params, made.config, CONTEXT, exits)


def refused(folder, said):
  with pytest.raises(errors.UserError, match=said):
    segments.load(folder)


def test_parameters_are_checked(family, tmp_path):
  refused(tmp_path, 'not a segment')
  segments.save(family().segments()[1], tmp_path)
  params = tmp_path / 'params.safetensors'
  whole = params.read_bytes()
  for content in (b'', b'\x80\x04pickle', whole[:-7], whole[:40]):
    params.write_bytes(content)
    refused(tmp_path, r'params\.safetensors: ')
  arrays, name = safetensors.load(whole), 'exit_2.norm.gain'
  gain = arrays[name]
  for wrong, said in (
    ({'more': np.zeros(2)}, 'more is .* nothing is needed'),
    ({name: np.zeros(3)}, r'gain is float64 \(3,\), and float32 \(16,\)'),
    ({name: gain.astype(np.float16)}, r'is float16 \(16,\), and float32'),
    # One bit of a parameter, as a disk may flip it.
    ({name: gain * np.float32(1 + 2**-20)}, 'SHA-256'),
  ):
    params.write_bytes(safetensors.save(arrays | wrong))
    refused(tmp_path, said)


def test_the_config_is_checked(family, tmp_path):
  segments.save(family().segments()[1], tmp_path)
  path = tmp_path / 'segment.json'
  config = json.loads(path.read_text())
  for wrong, said in (
    ({'index': 7}, 'index: 7 is not allowed; it must be from 0 to 2'),
    ({'exits': [3, 1]}, 'exits: .* must be increasing'),
    ({'exits': [1, 4]}, 'exit: 4'),
    ({'exits': []}, 'exits'),
    ({'model': {**config['model'], 'width': 'wide'}}, 'model.width'),
    ({'tokenizer': 'f00d'}, 'its tokenizer is bytes; .* says f00d'),
  ):
    path.write_text(json.dumps({**config, **wrong}))
    refused(tmp_path, said)
  path.write_text(json.dumps(config))
  assert segments.load(tmp_path).index == 1
