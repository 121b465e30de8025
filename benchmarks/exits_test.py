"""What exits cost beside what their FLOPs say."""

import pytest

from benchmarks import clock
from familial.model import flops
from familial.training import config as train_config

pytestmark = pytest.mark.bench

_ROWS, _LENGTH = 16, 128
_TRAIN = train_config.TrainConfig(
  steps=1000, batch_size=_ROWS, base_lr=1e-3, schedule='constant'
)


@pytest.mark.parametrize(('width', 'depth'), [(32, 8), (64, 4), (128, 6)])
def test_four_exits_cost_their_flops(width, depth):
  configs = {str(g): clock.model(width, depth, g) for g in (1, 4)}
  data = clock.batch(_ROWS, _LENGTH)
  trainers = {
    name: clock.Trainer(config, _TRAIN, data)
    for name, config in configs.items()
  }
  seconds = clock.fastest({n: t.step for n, t in trainers.items()}, rounds=12)
  measured = seconds['4'] / seconds['1']
  counted = flops.train(configs['4'], _LENGTH) / flops.train(
    configs['1'], _LENGTH
  )
  print(
    f'\nwidth {width}, {depth} layers: four exits take {measured:.3f} of one '
    f"exit's time and {counted:.3f} of its FLOPs: {measured / counted - 1:+.1%}"
    ' (10 % or less)'
  )
  assert measured / counted < 1.3
