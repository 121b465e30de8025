"""Parameters N and compute C of a model, by exit and by step.

FLOPs count every matrix product of the model, two per multiply-add: the
projections, attention over the full L x L square, the MLP, and the unembedding
and the layer of each exit. The backward pass of a product costs twice as much.
Norms, rotations, softmax, look-ups, evaluation, recomputation and the optimizer
are not counted.
"""

from familial.model import config as model_config

ModelConfig = model_config.ModelConfig


def layer_params(config: ModelConfig) -> int:
  """Returns the parameters of one decoder layer, its two norms included."""
  kv_width = config.kv_heads * config.head_dim
  attention = 2 * config.width * (config.width + kv_width)
  mlp = 3 * config.width * config.mlp_width
  return attention + mlp + 2 * config.width


def params(config: ModelConfig, exit_: int) -> int:
  """Returns N of exit 1..G: its stand-alone model without embeddings."""
  sub = config.submodel(exit_)
  return sub.depth * layer_params(sub) + sub.width


def params_embedding(config: ModelConfig, exit_: int) -> int:
  """Returns the parameters of exit 1..G's embedding and unembedding."""
  sub = config.submodel(exit_)
  return sub.vocab_size * sub.width * (1 if sub.tied else 2)


def params_full(config: ModelConfig) -> int:
  """Returns N of the whole backbone, without embeddings."""
  return params(config, config.granularity)


def layer_forward(config: ModelConfig, seq_len: int) -> int:
  """Returns forward FLOPs per token of one decoder layer."""
  matrices = layer_params(config) - 2 * config.width
  return 2 * matrices + 4 * seq_len * config.width


def exit_forward(config: ModelConfig, exit_: int, seq_len: int) -> int:
  """Returns forward FLOPs per token of exit 1..G beyond the trunk."""
  layer = layer_forward(config, seq_len) if config.owns_layer(exit_) else 0
  return 2 * config.width * config.vocab_size + layer


def forward(config: ModelConfig, seq_len: int) -> int:
  """Returns forward FLOPs per token of the trunk and all exits."""
  exits = sum(
    exit_forward(config, exit_, seq_len)
    for exit_ in range(1, config.granularity + 1)
  )
  return config.depth * layer_forward(config, seq_len) + exits


def train(config: ModelConfig, seq_len: int, trained: str = 'all') -> int:
  """Returns FLOPs per token of one training step, forward and backward.

  Args:
    config: config of the model.
    seq_len: L, length of the sequences.
    trained: `all`, or `exits` for all exits but the last on a frozen trunk:
      no gradient enters the trunk, and the last exit is not computed.
  """
  if trained == 'all':
    return 3 * forward(config, seq_len)
  total = config.exits[-2] * layer_forward(config, seq_len)
  for exit_ in range(1, config.granularity):
    # Gradients reach the gains of the norm and of a branch, so every product
    # propagates its cotangent; only a frozen, shared unembedding has no gradient
    # of its own.
    frozen = not config.owns_unembedding(exit_)
    total += (
      3 * exit_forward(config, exit_, seq_len)
      - 2 * frozen * config.width * config.vocab_size
    )
  return total


def six_nd(config: ModelConfig, tokens: float) -> float:
  """Returns the convention 6 N D for the whole backbone."""
  return 6.0 * params_full(config) * tokens


def tokens_dense(
  config: ModelConfig, exit_: int, seq_len: int, flops: float
) -> float:
  """Returns the tokens that a dense model of exit 1..G's shape trains on."""
  return flops / train(config.submodel(exit_), seq_len)
