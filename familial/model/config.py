"""The shape of a familial model and how it is computed."""

from collections.abc import Sequence
import dataclasses

from familial.core import errors

EXIT_KINDS = ('head', 'separate', 'branch')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder with exits; everything that fixes its parameters and its maths.

  Attributes:
    vocab_size: V, tokens of the vocabulary.
    width: D, of the residual stream.
    depth: number of trunk layers.
    heads: H, query heads.
    kv_heads: K, key and value heads; divides `heads`.
    mlp_width: F, of the SwiGLU.
    exits: the layers after which an exit stands, increasing; the last one is
      `depth`. G = len(exits).
    exit_kind: `head` (own norm, shared unembedding), `separate` (own norm and
      own unembedding) or `branch` (own layer and norm). The last exit is
      always a `head`.
    branch_unembedding: `shared` or `own`, for `branch` exits.
    tied: the shared unembedding is the transposed embedding.
    base_width: the width at which rates and logits are unscaled; the logits
      are multiplied by base_width / width, so that one rate serves all widths.
    rope_theta: base of the rotary frequencies.
    norm_eps: added to the mean square in every RMSNorm.
    dtype: of activations and matrix products, `float32` or `bfloat16`;
      parameters, softmax, norms and losses are float32 always.
    attention: `plain` (one L x L square), `blocked` (the causal square without
      its upper right quarter, the fastest on CPU) or `fused`, in bfloat16: a
      kernel that never has the square in memory, cuDNN's on an NVIDIA GPU and
      JAX's splash attention on a TPU; on CPU it is `blocked`.
    unroll: layers of a segment one after another in the program (fast on CPU)
      instead of scanned (compiles in time independent of depth).
    remat: recompute each layer's activations in the backward pass.
    loss_chunk: positions per chunk of the cross-entropy; 0 takes all at once.
  """

  vocab_size: int
  width: int
  depth: int
  heads: int
  kv_heads: int
  mlp_width: int
  exits: tuple[int, ...]
  exit_kind: str = 'head'
  branch_unembedding: str = 'shared'
  tied: bool = True
  base_width: int = 128
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-5
  dtype: str = 'float32'
  attention: str = 'blocked'
  unroll: bool = True
  remat: bool = False
  loss_chunk: int = 0

  def __post_init__(self) -> None:
    for key in (
      'vocab_size',
      'width',
      'depth',
      'heads',
      'kv_heads',
      'mlp_width',
      'base_width',
    ):
      value = getattr(self, key)
      errors.require(value >= 1, f'model.{key}', value, 'at least 1')
    for key in ('rope_theta', 'norm_eps'):
      value = getattr(self, key)
      errors.require(value > 0, f'model.{key}', value, 'above 0')
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
    errors.require(
      bool(self.exits)
      and all(a < b for a, b in zip(self.exits, self.exits[1:], strict=False))
      and self.exits[0] >= 1,
      'model.exits',
      self.exits,
      'increasing layers from 1 on',
    )
    errors.require(
      self.exits[-1] == self.depth,
      'model.exits',
      self.exits,
      f'layers up to depth {self.depth}, the last one equal to it',
    )
    for key, allowed in (
      ('exit_kind', EXIT_KINDS),
      ('branch_unembedding', ('shared', 'own')),
      ('dtype', ('float32', 'bfloat16')),
      ('attention', ('plain', 'blocked', 'fused')),
    ):
      value = getattr(self, key)
      errors.require(
        value in allowed, f'model.{key}', value, 'one of ' + ', '.join(allowed)
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
    errors.require(
      self.loss_chunk >= 0,
      'model.loss_chunk',
      self.loss_chunk,
      '0 (no chunks) or a number of positions',
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

  def owns_unembedding(self, exit_: int) -> bool:
    """Whether exit 1..G has an unembedding of its own."""
    kind = self.kind_of(exit_)
    return kind == 'separate' or (
      kind == 'branch' and self.branch_unembedding == 'own'
    )

  def submodel(self, exit_: int) -> 'ModelConfig':
    """Returns the dense shape of exit 1..G as a model of its own."""
    if not 1 <= exit_ <= self.granularity:
      raise errors.UserError(
        f'exit: {exit_} is not one of 1..{self.granularity}'
      )
    depth = self.exits[exit_ - 1] + (self.kind_of(exit_) == 'branch')
    return dataclasses.replace(
      self,
      depth=depth,
      exits=(depth,),
      exit_kind='head',
      branch_unembedding='shared',
      tied=self.tied and not self.owns_unembedding(exit_),
    )


def common(model: ModelConfig) -> ModelConfig:
  """Returns what models that one program trains together must agree in.

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
