import pytest

from familial.core import errors
from familial.planning import layouts


@pytest.fixture
def cell(run_config, shape):
  return run_config(shape(vocab_size=256, mlp_width=32))


def test_every_layout_takes_all_devices_and_divides(toys, cell):
  devices, chip = toys(8, memory=1e9)
  found = layouts.ranked([cell], devices, chip)
  assert len(set(found)) == len(found)
  # With memory enough nothing is computed twice or in parts.
  assert (found[0].remat, found[0].microbatches) == (False, 1)
  for layout in found:
    assert layout.data * layout.fsdp * layout.tensor == 8
    rows = cell.train.batch_size // (layout.data * layout.fsdp)
    assert rows % layout.microbatches == 0
    assert cell.model.kv_heads % layout.tensor == 0
  meshes = {(each.data, each.fsdp, each.tensor) for each in found}
  assert meshes == {
    (8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (1, 4, 2),
  }  # fmt: skip


def test_first_what_fits_and_then_by_memory(toys, cell):
  devices, chip = toys(8, memory=1e9)
  needs = {
    layout: layouts.memory([cell], layout)
    for layout in layouts.ranked([cell], devices, chip)
  }
  middle = sorted(needs.values())[len(needs) // 2]
  ranked = layouts.ranked([cell], *toys(8, memory=middle))
  fits = [needs[layout] <= middle for layout in ranked]
  assert fits == sorted(fits, reverse=True) and not all(fits)
  rest = [needs[layout] for layout in ranked if needs[layout] > middle]
  assert rest == sorted(rest)


def test_slow_links_keep_weights_whole(toys, cell):
  # Gathering weights in two passes sends more than summing gradients once.
  slow = layouts.ranked([cell], *toys(8, memory=1e9, link_speed=1e3))[0]
  assert (slow.data, slow.fsdp) == (8, 1)


def test_no_layout_is_one_line(toys, run_config, shape):
  cell = run_config(shape(vocab_size=256), batch_size=6, eval_batch_size=6)
  with pytest.raises(errors.UserError, match='no layout on 7 devices'):
    layouts.ranked([cell], *toys(7))


def test_flags_give_a_config_the_layout(cell):
  layout = layouts.Layout(2, 4, 1, 2, True)
  laid = layouts.apply(cell, layout)
  for flag in layout.flags.split():
    path, value = flag.removeprefix('--config.').split('=')
    section, key = path.split('.')
    assert str(getattr(getattr(laid, section), key)) == value
