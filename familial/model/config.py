"""Shape of a familial model and how it is computed."""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Annotated
from typing import NamedTuple

from familial.core import errors
from familial.core import schema


class ExitKind(NamedTuple):
  """Parts of an exit beside its norm.

  Attributes:
    layer: whether it has a decoder layer.
    unembedding: whether it has an unembedding; None if `branch_unembedding` says
      so.
  """

  layer: bool = False
  unembedding: bool | None = False


# The kinds of exits: a new one is a line here.
EXIT_KINDS = {
  'head': ExitKind(),
  'separate': ExitKind(unembedding=True),
  'branch': ExitKind(layer=True, unembedding=None),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder with exits: all that determines its parameters and its function.

  Attributes:
    vocab_size: V, number of tokens in the vocabulary.
    width: D, width of the residual stream.
    depth: number of trunk layers.
    heads: H, number of query heads; a divisor of `width`.
    kv_heads: K, number of key and value heads; a divisor of `heads`.
    mlp_width: F, hidden width of the SwiGLU.
    exits: layers followed by an exit, increasing, the last one equal to
      `depth`; G = len(exits).
    exit_kind: kind of all exits but the last, which is always a `head`: `head`
      (own norm, shared unembedding), `separate` (own norm and unembedding) or
      `branch` (own layer and norm).
    branch_unembedding: unembedding of `branch` exits, `shared` or `own`.
    tied: whether the shared unembedding is the transposed embedding.
    base_width: width at which learning rates and logits are unscaled; logits
      are multiplied by base_width / width, so that one rate serves all widths.
    rope_theta: base of the rotary frequencies.
    norm_eps: constant added to the mean square in every RMSNorm.
    dtype: type of activations and matrix products, `float32` or `bfloat16`;
      parameters, softmax, norms and losses are always float32.
    attention: algorithm of attention: `plain` (one L x L square), `blocked` (the
      causal square without its upper right quarter, the fastest on CPU) or, in
      bfloat16, `fused`: a kernel that never stores the square, cuDNN's on an
      NVIDIA GPU and JAX's splash attention on a TPU; on CPU it is `blocked`.
    unroll: whether the layers of a segment are unrolled in the program (fast on
      CPU) instead of scanned (compile time independent of depth).
    remat: whether each layer's activations are recomputed in the backward pass.
    loss_chunk: positions per chunk of the cross-entropy; 0 for a single chunk.

  Raises:
    UserError: at construction, if a value is not allowed.
  """

  vocab_size: schema.Count
  width: schema.Count
  depth: schema.Count
  heads: schema.Count
  kv_heads: schema.Count
  mlp_width: schema.Count
  exits: tuple[int, ...]
  exit_kind: Annotated[str, schema.key_of(EXIT_KINDS)] = 'head'
  branch_unembedding: Annotated[str, schema.one_of('shared', 'own')] = 'shared'
  tied: bool = True
  base_width: schema.Count = 128
  rope_theta: schema.Positive = 10_000.0
  norm_eps: schema.Positive = 1e-5
  dtype: Annotated[str, schema.one_of('float32', 'bfloat16')] = 'float32'
  attention: Annotated[str, schema.one_of('plain', 'blocked', 'fused')] = (
    'blocked'
  )
  unroll: bool = True
  remat: bool = False
  loss_chunk: schema.Index = 0

  def __post_init__(self) -> None:
    schema.check(self, 'model')
    errors.require(
      self.width % self.heads == 0,
      'model.heads',
      self.heads,
      f'a divisor of width {self.width}',
    )
    errors.require(
      self.heads % self.kv_heads == 0,
      'model.kv_heads',
      self.kv_heads,
      f'a divisor of heads {self.heads}',
    )
    errors.require(
      self.head_dim % 2 == 0,
      'model.heads',
      self.heads,
      f'such that width / heads is even; it is {self.head_dim}',
    )
    increasing = all(a < b for a, b in itertools.pairwise((0, *self.exits)))
    errors.require(
      increasing and self.exits[-1:] == (self.depth,),
      'model.exits',
      self.exits,
      f'increasing layers from 1 to depth {self.depth}, the last one equal to it',
    )
    if self.attention == 'fused':
      errors.require(
        self.dtype == 'bfloat16',
        'model.dtype',
        self.dtype,
        "bfloat16 for attention 'fused'",
      )
      errors.require(
        self.head_dim % 8 == 0 and self.head_dim <= 256,
        'model.heads',
        self.heads,
        'such that width / heads is a multiple of 8 up to 256, for attention '
        f"'fused'; it is {self.head_dim}",
      )

  @property
  def head_dim(self) -> int:
    """E, the dimension of one head."""
    return self.width // self.heads

  @property
  def granularity(self) -> int:
    """G, the number of exits."""
    return len(self.exits)

  @property
  def segment_depths(self) -> tuple[int, ...]:
    """Layers of each segment between two exits."""
    starts = (0,) + self.exits[:-1]
    return tuple(b - a for a, b in zip(starts, self.exits, strict=True))

  def kind_of(self, exit_: int) -> str:
    """Returns the kind of exit 1..G; the last one is a `head`."""
    return 'head' if exit_ == self.granularity else self.exit_kind

  def owns_layer(self, exit_: int) -> bool:
    """Whether exit 1..G has a decoder layer of its own."""
    return EXIT_KINDS[self.kind_of(exit_)].layer

  def owns_unembedding(self, exit_: int) -> bool:
    """Whether exit 1..G has an unembedding of its own."""
    own = EXIT_KINDS[self.kind_of(exit_)].unembedding
    return self.branch_unembedding == 'own' if own is None else own

  def submodel(self, exit_: int) -> 'ModelConfig':
    """Returns the dense shape of exit 1..G as a model of its own."""
    if not 1 <= exit_ <= self.granularity:
      raise errors.UserError(
        f'exit: {exit_} is not one of 1..{self.granularity}'
      )
    depth = self.exits[exit_ - 1] + self.owns_layer(exit_)
    return dataclasses.replace(
      self,
      depth=depth,
      exits=(depth,),
      exit_kind='head',
      branch_unembedding='shared',
      tied=self.tied and not self.owns_unembedding(exit_),
    )


def common(model: ModelConfig) -> ModelConfig:
  """Returns the part of a config that models of one program must share.

  Exits of kind `head` add a product each and nothing to the trunk, so such
  models may differ in them; other exits are part of the shape.
  """
  if model.granularity > 1 and model.exit_kind != 'head':
    return model
  return dataclasses.replace(
    model, exits=(model.depth,), exit_kind='head', branch_unembedding='shared'
  )


def union(models: Sequence[ModelConfig]) -> ModelConfig:
  """Returns the model with the exits of all of some that agree in `common`."""
  exits = set().union(*(model.exits for model in models))
  return dataclasses.replace(common(models[0]), exits=tuple(sorted(exits)))


def even_exits(depth: int, granularity: int) -> tuple[int, ...]:
  """Returns the layers of G evenly spaced exits, the last at `depth`."""
  errors.require(
    1 <= granularity <= depth,
    'granularity',
    granularity,
    f'1..{depth}, the depth: exits cannot outnumber layers',
  )
  return tuple(
    round(depth * g / granularity) for g in range(1, granularity + 1)
  )
