import dataclasses

import jax
import pytest

from familial.model import flops
from familial.planning import chips
from familial.planning import compiled
from familial.planning import roofline
from familial.training import config as train_config
from familial.training import optimizer
from familial.training import step

ONE = {'data': 1, 'fsdp': 1, 'tensor': 1}


@pytest.fixture
def work(run_config, shape):
  def make(mesh=None, batch_size=8, microbatches=1, trained='all', **model):
    config = run_config(
      shape(**{'vocab_size': 256, 'mlp_width': 32, **model}),
      batch_size=batch_size,
      eval_batch_size=batch_size,
      trained=trained,
      init_from='' if trained == 'all' else 'somewhere',
    )
    layout = train_config.LayoutConfig(microbatches=microbatches)
    return roofline.work(
      dataclasses.replace(config, layout=layout), {**ONE, **(mesh or {})}
    )

  return make


def test_one_device_does_all_and_sends_nothing(work, shape):
  model = shape(vocab_size=256, mlp_width=32)
  tokens = 8 * 32
  assert work(attention='plain').flops == tokens * flops.train(model, 32)
  assert work().sent == 0
  # Parameters, both moments and the gradient, in float32, among others.
  held = flops.params_full(model) + flops.params_embedding(model, 2)
  assert work().memory > 16 * held


@pytest.mark.parametrize('changes', [{'remat': True}, {'attention': 'blocked'}])
def test_what_is_done_again_or_left_out_is_what_xla_counts(
  work, run_config, shape, changes
):
  # Wide, for products to be most of what XLA counts.
  plain = {'width': 128, 'mlp_width': 352, 'attention': 'plain'}

  def ours(**model):
    return work(batch_size=8, **{**plain, **model}).flops

  def xla(**model):
    config = run_config(shape(**{'vocab_size': 256, **plain, **model}))
    h = optimizer.hyper(config.train, config.model.exits)
    state = jax.eval_shape(
      lambda: step.init(config.model, 'all', jax.random.key(0), h)
    )
    lowered = step.train.lower(
      config.model, 'all', state, compiled.batch(config, 8), h
    )
    return lowered.cost_analysis()['flops']

  more = xla(**changes) - xla()
  assert ours(**changes) - ours() == pytest.approx(more, rel=0.1)


def test_a_fused_kernel_skips_half_of_the_square(work):
  wide = {'width': 32, 'dtype': 'bfloat16'}
  plain, blocked, fused = (
    work(**wide, attention=kind).flops for kind in ('plain', 'blocked', 'fused')
  )
  assert plain - fused == 2 * (plain - blocked) > 0


def test_exits_on_a_frozen_trunk_cost_little(work, shape):
  exits = {'exits': (1, 3), 'width': 32, 'remat': True}
  all_, some = (
    work(trained=trained, attention='plain', **exits)
    for trained in ('all', 'exits')
  )
  model = shape(vocab_size=256, mlp_width=32, **exits)
  assert some.flops == 8 * 32 * flops.train(model, 32, 'exits')
  assert some.memory < all_.memory and some.moved < all_.moved
  sent = [
    work({'data': 2}, trained=trained, **exits).sent
    for trained in ('all', 'exits')
  ]
  # Of the exit, its norm's gain alone.
  assert sent[1] == pytest.approx(4 * 32) and sent[0] > 100 * sent[1]


def test_each_unembedding_has_a_gradient(work, shape):
  exits = {'exits': (1, 2, 3), 'tied': False}
  shared, own = (
    work({'fsdp': 4}, exit_kind=kind, **exits) for kind in ('head', 'separate')
  )
  # Two more, gathered in bfloat16 or float32 twice and summed in float32.
  more = 2 * 16 * 256 * 4
  assert own.sent - shared.sent == pytest.approx((2 + 2) * 3 / 4 * more)
  assert own.memory > shared.memory + more


def test_what_is_sent_follows_from_the_axes(work, shape):
  model = shape(vocab_size=256, mlp_width=32)
  held = 4 * (flops.params_full(model) + flops.params_embedding(model, 2))
  held += 4 * model.width  # Exit 1's norm.
  gains = 4 * (2 * model.depth + model.granularity) * model.width
  # An all-reduce of every gradient, as a ring of n sends it.
  for n in (2, 4):
    assert work({'data': n}).sent == pytest.approx(2 * (n - 1) / n * held)
  # Weights gathered forwards and backwards, gradients scattered, but for the
  # embedding's, which is summed whole; gains are whole everywhere.
  table = 4 * flops.params_embedding(model, 2)
  assert work({'fsdp': 4}).sent == pytest.approx(
    3 / 4 * (3 * held + table), rel=0.02
  )
  assert gains < 0.02 * held
  # Parts of a batch are gathered for one by one.
  many = work({'fsdp': 4}, microbatches=2).sent
  assert many == pytest.approx(2 * work({'fsdp': 4}).sent)
  # With the tokens, not the weights.
  more = work({'tensor': 2}, batch_size=16).sent
  assert more == pytest.approx(2 * work({'tensor': 2}).sent)


def test_more_devices_share_the_products_and_the_memory(work):
  for axis in ONE:
    assert work({axis: 2}).flops == work().flops / 2
    assert work({axis: 2}).memory < work().memory
  assert work(microbatches=4).memory < work().memory


def test_the_bound_is_the_slowest_part():
  chip = chips.Chip('toy', 10.0, 1.0, 5.0, 2.0)
  times = roofline.times(roofline.Work(20.0, 15.0, 2.0, 0.0), chip)
  assert dataclasses.astuple(times) == (2.0, 3.0, 1.0)
  assert (times.bound, times.apart, times.limit) == (3.0, 6.0, 'memory')
