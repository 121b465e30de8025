import functools
import re

import jax
from jax._src.cudnn import fused_attention_stablehlo
import jax.numpy as jnp
import numpy as np
import pytest

from familial.core import errors
from familial.model import attention
from familial.model import kernels

B, H, K, L, E = 2, 4, 2, 32, 4
KINDS = ('plain', 'blocked')
causal = jax.jit(attention.causal, static_argnums=4)


@pytest.fixture(scope='module')
def qkv():
  rng = np.random.default_rng(0)
  return tuple(
    jnp.asarray(rng.normal(size=(B, heads, L, E)), jnp.float32)
    for heads in (H, K, K)
  )


def rotary(start, theta=1e4):
  return [table[start:] for table in attention.rotary(theta, E, start + L)]


@pytest.fixture(scope='module')
def segments():
  ends = np.zeros((B, L), np.int32)
  ends[0, [5, 17]] = 1
  ends[1, [15, 16, 30]] = 1
  return jnp.asarray(ends.cumsum(axis=1))


def _by_hand(q, k, v, segments=None):
  """Attention position by position, in float64."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros(q.shape)
  for b, h, t in np.ndindex(*q.shape[:3]):
    kv = h * k.shape[1] // q.shape[1]
    seen = np.arange(t + 1)
    if segments is not None:
      row = np.asarray(segments[b])
      seen = seen[row[seen] == row[t]]
    scores = k[b, kv, seen] @ q[b, h, t] / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max())
    out[b, h, t] = weights @ v[b, kv, seen] / weights.sum()
  return out


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('documents', [False, True])
def test_attention_equals_its_definition(qkv, segments, kind, documents):
  mask = segments if documents else None
  out = causal(*qkv, mask, kind)
  np.testing.assert_allclose(out, _by_hand(*qkv, mask), rtol=0, atol=2e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_large_scores_stay_finite(qkv, kind):
  q, k, v = qkv
  out = causal(300 * q, 300 * k, v, None, kind)
  assert np.isfinite(out).all()
  np.testing.assert_allclose(
    out, _by_hand(300 * q, 300 * k, v), rtol=0, atol=1e-4
  )


def test_rotation_turns_half_split_pairs(qkv):
  x = np.asarray(qkv[0], np.float64)
  theta, start = 100.0, 3
  frequencies = theta ** (-np.arange(E // 2) * 2 / E)
  turn = np.exp(1j * (start + np.arange(L))[:, None] * frequencies)
  turned = (x[..., : E // 2] + 1j * x[..., E // 2 :]) * turn
  expected = np.concatenate([turned.real, turned.imag], axis=-1)
  rotated = attention.rotate(qkv[0], *rotary(start, theta))
  np.testing.assert_allclose(rotated, expected, rtol=0, atol=3e-6)


def pieces_of(qkv, starts, length):
  return [
    jnp.stack([x[b, :, a : a + length] for b, a in enumerate(starts)])
    for x in qkv
  ]


@pytest.mark.parametrize('lengths', [(L - 3,), (5, 1, 1, 20), (1,) * 9])
def test_cached_attention_is_causal_attention_piece_by_piece(qkv, lengths):
  expected = causal(*qkv, None, 'plain')
  cached = jax.jit(attention.cached)
  # What lies in the cache beyond a position is not read.
  cache = tuple(jnp.full((B, K, L + 7, E), 1e3) for _ in range(2))
  starts = np.array([0, 3])  # Rows are not in step.
  _, cache = cached(*pieces_of(qkv, [0, 0], 3), cache, jnp.zeros(B, jnp.int32))
  for length in lengths:
    out, cache = cached(*pieces_of(qkv, starts, length), cache, starts)
    np.testing.assert_allclose(
      out, pieces_of([expected], starts, length)[0], rtol=0, atol=2e-6
    )
    starts = starts + length


def test_bfloat16_keeps_its_type_and_a_float32_softmax(qkv):
  low = tuple(x.astype(jnp.bfloat16) for x in qkv)
  for kind in KINDS:
    out = causal(*low, None, kind)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
      out.astype(jnp.float32), _by_hand(*low), rtol=0, atol=3e-2
    )
  assert attention.rotate(low[0], *rotary(0)).dtype == jnp.bfloat16


def _fused_step(segments):
  """The gradient of attention at a length of 256, and its arguments."""

  def total(q, k, v, segments):
    return jnp.sum(attention.causal(q, k, v, segments, 'fused') ** 2)

  q, kv = (
    jax.ShapeDtypeStruct((B, heads, 256, 64), jnp.bfloat16) for heads in (H, K)
  )
  documents = jax.ShapeDtypeStruct((B, 256), jnp.int32) if segments else None
  return jax.jit(jax.grad(total, (0, 1, 2))), (q, kv, kv, documents)


@pytest.mark.parametrize('segments', [False, True])
def test_fused_is_the_kernel_of_cudnn(monkeypatch, segments):
  # Lowered for CUDA as a machine with a GPU would; only there does it run.
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(
    fused_attention_stablehlo, 'check_cudnn_version', lambda: 91000
  )
  step, shapes = _fused_step(segments)
  lowered = step.trace(*shapes).lower(lowering_platforms=('cuda',)).as_text()
  scores = '__cudnn$fmhaScaleBiasSoftmax' if segments else '__cudnn$fmhaSoftmax'
  assert f'@{scores}(' in lowered and f'@{scores}Backward(' in lowered
  # No score of a head is an array; the documents' mask has no heads.
  squares = re.findall(r'tensor<(\d+x\d+)x256x256x', lowered)
  assert set(squares) == ({f'{B}x1'} if segments else set())


@pytest.mark.skipif(jax.default_backend() != 'gpu', reason='needs a GPU')
@pytest.mark.parametrize('segments', [False, True])
def test_fused_is_plain_to_rounding(segments):
  rng = np.random.default_rng(0)
  _, shapes = _fused_step(segments)
  q, k, v = (jnp.asarray(rng.normal(size=s.shape), s.dtype) for s in shapes[:3])
  documents = (
    jnp.arange(256) // 50 * jnp.ones((B, 1), int) if segments else None
  )

  def both(kind):
    def total(*qkv):
      out = causal(*qkv, documents, kind).astype(jnp.float32)
      return jnp.sum(out**2), out

    return jax.grad(total, (0, 1, 2), has_aux=True)(q, k, v)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a.astype(jnp.float32), b.astype(jnp.float32), rtol=0.05, atol=0.05
    ),
    both('fused'),
    both('plain'),
  )


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of CPUs')
def test_fused_is_what_xla_makes_of_blocks_where_there_is_no_kernel(qkv):
  np.testing.assert_array_equal(
    causal(*qkv, None, 'fused'), causal(*qkv, None, 'blocked')
  )


@pytest.mark.parametrize(
  'documents', [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_splash_is_plain_to_rounding(documents):
  # Interpreted: a TPU's kernel, whose tiles a length of 384 has three of.
  length = 384
  rng = np.random.default_rng(0)
  q, k, v = (
    jnp.asarray(rng.normal(size=(B, heads, length, 8)), jnp.float32)
    for heads in (H, K, K)
  )
  segments = jnp.arange(length) // 100 * jnp.ones((B, 1), int)

  def both(attend):
    def total(q, k, v):
      out = attend(q, k, v, segments if documents else None)
      return jnp.sum(out**2 * jnp.arange(8)), out

    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-4),
    both(functools.partial(kernels.splash, interpret=True)),
    both(functools.partial(attention.causal, kind='plain')),
  )


def test_what_cudnn_lacks_is_one_line(monkeypatch, qkv):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(
    fused_attention_stablehlo, 'check_cudnn_version', lambda: 91000
  )
  with pytest.raises(errors.UserError, match=r"'fused': .*float32") as raised:
    attention.causal(*qkv, None, 'fused')
  assert '\n' not in str(raised.value)
