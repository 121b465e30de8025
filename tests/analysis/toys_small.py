"""A study of toys that is trained in seconds."""

from familial.analysis import toys
from familial.studies import depth_toys_config

SHAPE = toys.Shape(width=5, hidden=7, vocab=6)


def asked(**changes):
  """Returns what is asked for, with changes of its only study."""
  study = depth_toys_config.Study(
    depths=(1, 2, 3),
    teacher_depth=4,
    steps=6,
    rate=0.01,
    rate_depth=4,
    **changes,
  )
  return depth_toys_config.ToysConfig(
    title='Toys',
    studies={'only': study},
    width=SHAPE.width,
    hidden=SHAPE.hidden,
    vocab=SHAPE.vocab,
    batch=8,
    test_batch=8,
    test_batches=2,
    replicates=2,
    checkpoints=2,
    gain=0.2,
  )
