import jax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
import pytest

from familial.model import axes
from familial.model import transformer

MESH = AbstractMesh((2, 4, 8), ('data', 'fsdp', 'tensor'))
LAYER = {
  'attention_norm.gain': (None,),
  'attention.q.kernel': ('fsdp', 'tensor'),
  'attention.k.kernel': ('fsdp', 'tensor'),
  'attention.v.kernel': ('fsdp', 'tensor'),
  'attention.o.kernel': ('tensor', 'fsdp'),
  'mlp_norm.gain': (None,),
  'mlp.gate.kernel': ('fsdp', 'tensor'),
  'mlp.up.kernel': ('fsdp', 'tensor'),
  'mlp.down.kernel': ('tensor', 'fsdp'),
}


def expected(name):
  """How a parameter of this name is split, by hand."""
  part, _, rest = name.partition('.')
  if part == 'embedding':
    return ('tensor', 'fsdp')
  if name.endswith('unembedding'):
    return ('fsdp', 'tensor')
  if part.startswith('segment_'):
    return (None, *LAYER[rest])
  return LAYER[rest.removeprefix('branch.')] if 'branch' in name else (None,)


def padded(spec, shape):
  return (*spec, *[None] * (len(shape.shape) - len(spec)))


@pytest.mark.parametrize('kind', ['head', 'separate', 'branch'])
def test_every_parameter_is_split_as_its_axes_say(shape, kind):
  model = shape(exit_kind=kind, branch_unembedding='own', tied=False)
  params = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
  specs = axes.specs(params, MESH)
  names = set()
  for (path, leaf), spec in zip(
    jax.tree_util.tree_leaves_with_path(params),
    jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P)),
    strict=True,
  ):
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    assert len(axes.of(tuple(name.split('.')))) == len(leaf.shape), name
    assert padded(spec, leaf) == expected(name), name
    names.add(name)
  assert {'embedding', 'unembedding', 'exit_1.norm.gain'} < names


def test_an_axis_of_one_device_is_not_named():
  one = AbstractMesh((8, 1, 1), ('data', 'fsdp', 'tensor'))
  assert axes.spec(('layers', 'width', 'mlp'), one) == P()
  assert axes.spec(('batch', 'positions'), one) == P('data')
  assert axes.spec(('batch', 'positions'), MESH) == P(('data', 'fsdp'))
  members = AbstractMesh((4, 2), ('member', 'data'))
  assert axes.spec(('batch',), members) == P('data')


def test_an_unknown_parameter_or_axis_is_an_error():
  for name in (('segment_0', 'mlp', 'gate', 'bias'), ('embeddings',)):
    with pytest.raises(KeyError):
      axes.of(name)
  with pytest.raises(KeyError, match='widht'):
    axes.spec(('widht',), MESH)
