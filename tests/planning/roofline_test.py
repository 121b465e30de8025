import dataclasses

import pytest

from familial import flops
from familial.planning import chips
from familial.planning import roofline
from familial.training import config as train_config

ONE = {'data': 1, 'fsdp': 1, 'tensor': 1}


@pytest.fixture
def work(run_config, shape):
  def make(mesh=None, batch_size=8, microbatches=1, **model):
    config = run_config(
      shape(vocab_size=256, mlp_width=32, **model),
      batch_size=batch_size,
      eval_batch_size=batch_size,
    )
    layout = train_config.LayoutConfig(microbatches=microbatches)
    return roofline.work(
      dataclasses.replace(config, layout=layout), {**ONE, **(mesh or {})}
    )

  return make


def test_one_device_does_all_and_sends_nothing(work, run_config, shape):
  model = shape(vocab_size=256, mlp_width=32)
  tokens = 8 * 32
  assert work().flops == tokens * flops.train(model, 32)
  assert work().sent == 0
  # Parameters, both moments and the gradient, in float32, among others.
  held = flops.params_full(model) + flops.params_embedding(model, 2)
  assert work().memory > 16 * held


def test_what_is_computed_again_are_the_layers(work, shape):
  model = shape(vocab_size=256, mlp_width=32)
  again = work(remat=True).flops - work().flops
  assert again == 8 * 32 * model.depth * flops.layer_forward(model, 32)
  assert work(remat=True).memory < work().memory


def test_a_fused_kernel_skips_half_of_the_square(work, shape):
  wide = {'width': 32, 'dtype': 'bfloat16'}
  square = 3 * 4 * 32 * 32 * shape(**wide).depth
  fused = dict(wide, attention='blocked')
  config = work(**fused)
  assert config.flops - 8 * 32 * square / 2 == pytest.approx(
    _fused_flops(work, wide)
  )


def _fused_flops(work, wide):
  # `fused` needs sequences of 128; what it skips is asked of four times fewer.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train_config, '_TILE', 32)
    return work(**wide, attention='fused').flops


@pytest.mark.parametrize('axis', ONE)
def test_devices_share_the_products(work, axis):
  assert work({axis: 2}).flops == work().flops / 2


def test_what_is_sent_follows_from_the_axes(work, shape):
  model = shape(vocab_size=256, mlp_width=32)
  held = 4 * (flops.params_full(model) + flops.params_embedding(model, 2))
  held += 4 * model.width  # Exit 1's norm.
  gains = 4 * (2 * model.depth + model.granularity) * model.width
  # An all-reduce of every gradient, as a ring of n sends it.
  for n in (2, 4):
    assert work({'data': n}).sent == pytest.approx(2 * (n - 1) / n * held)
  # Weights gathered forwards and backwards, gradients scattered; gains are
  # whole everywhere.
  assert work({'fsdp': 4}).sent == pytest.approx(3 * 3 / 4 * held, rel=0.02)
  assert gains < 0.02 * held
  # Parts of a batch are gathered for one by one.
  many = work({'fsdp': 4}, microbatches=2).sent
  assert many == pytest.approx(2 * work({'fsdp': 4}).sent)
  # With the tokens, not the weights.
  more = work({'tensor': 2}, batch_size=16).sent
  assert more == pytest.approx(2 * work({'tensor': 2}).sent)


def test_more_devices_need_less_memory_each(work):
  for axis in ONE:
    assert work({axis: 2}).memory < work().memory
  assert work(microbatches=4).memory < work().memory


def test_the_bound_is_the_slowest_part():
  chip = chips.Chip('toy', 10.0, 1.0, 5.0, 2.0)
  times = roofline.times(roofline.Work(20.0, 15.0, 2.0, 0.0), chip)
  assert dataclasses.astuple(times) == (2.0, 3.0, 1.0)
  assert (times.bound, times.apart, times.limit) == (3.0, 6.0, 'memory')
