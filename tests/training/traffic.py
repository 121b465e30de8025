"""What devices exchange in a step, and what theory says that they must."""

import collections
import itertools
import math

import jax
import numpy as np

from familial.model import transformer

AXES = ('data', 'fsdp', 'tensor')
KINDS = {
  'all-gather': 'gather',
  'all-reduce': 'reduce',
  'reduce-scatter': 'reduce',
}


def exchanged(config, found):
  """Returns the bytes of a step's collectives by (what, axes of the mesh).

  `gather` are all-gathers; `reduce` all-reduces and reduce-scatters, which on
  TPUs take the place of an all-reduce of which each device keeps its part.
  """
  shape = {name: getattr(config.layout, name) for name in AXES}
  devices = np.arange(math.prod(shape.values())).reshape(*shape.values())
  split = [name for name in AXES if shape[name] > 1]
  names = {}
  for count in range(1, len(split) + 1):
    for some in itertools.combinations(split, count):
      at = tuple(slice(None) if name in some else 0 for name in AXES)
      names[tuple(devices[at].ravel().tolist())] = '+'.join(some)
  total = collections.Counter()
  for one in found:
    what = KINDS.get(one['kind'], one['kind'])
    total[what, names[tuple(one['group'])]] += one['bytes'] * one['count']
  return dict(total)


def expected(config):
  """Returns the least and the most bytes that `exchanged` may have.

  The least is theory: every matrix that is split over `fsdp` is gathered once,
  every gradient summed once over the devices that have other rows, a token's
  state summed over `tensor` after the look-up, twice in a layer's forward pass,
  twice in its backward pass, and once for each exit.

  The most is what XLA does on CPU, which sums before it adds (TPUs add first):
  q, k, v and gate, up backwards one by one, 7 for a layer. It gathers the
  embedding for the look-up and, turned, for the exits, and a layer once more
  backwards where that is recomputed or scanned. Its reductions are all-reduces,
  of which each device keeps its part: no reduce-scatter, which would send half
  as much. The exits' gradient of the embedding is summed for itself, once,
  however many exits and chunks there are.
  Beside them go a scalar for each leaf's norm, twice, and for each token and
  exit the largest logit, the sum and the hit over `tensor`.
  """
  model, train, layout = config.model, config.train, config.layout
  params = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
  sizes = collections.Counter()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    sizes[path[-1].key] += 4 * leaf.size
  kernels, gains, table = (
    sizes[name] for name in ('kernel', 'gain', 'embedding')
  )
  exits, parts = model.granularity, layout.microbatches
  data, fsdp, tensor = layout.data, layout.fsdp, layout.tensor
  tokens = 4 * train.batch_size * 32 // (data * fsdp)
  again = 2 if model.remat or not model.unroll else 1
  few = 4 * (1 + exits) * parts + 8 * len(jax.tree.leaves(params))
  bounds = {}

  def add(what, names, least, most):
    axes = '+'.join(name for name in names if getattr(layout, name) > 1)
    if axes:
      low, high = bounds.get((what, axes), (0, few))
      bounds[what, axes] = (low + least, high + most)

  if fsdp > 1:
    least, most = kernels + table, again * kernels + 2 * table
    add('gather', ['fsdp'], least // tensor, parts * most // tensor)
  # Summed over `fsdp` each device keeps its part, and sums that over `data`.
  own = kernels // tensor
  add('reduce', ['fsdp'], own, parts * own)
  if data > 1:
    add('reduce', ['data'], own // fsdp, parts * own // fsdp)
  # The rest is summed over both at once, or over one after the other.
  whole = table // tensor + gains
  least = 0 if data > 1 and fsdp > 1 else whole
  add('reduce', ['data', 'fsdp'], least, parts * (whole + table // tensor))
  add(
    'reduce',
    ['tensor'],
    (1 + 4 * model.depth + exits) * tokens * model.width,
    ((1 + 7 * model.depth + exits) * model.width + 3 * exits) * tokens,
  )
  return bounds


def within(config, found):
  total, bounds = exchanged(config, found), expected(config)
  assert set(total) <= set(bounds)
  for key, (least, most) in bounds.items():
    assert least <= total.get(key, 0) <= most, (key, total, bounds)
