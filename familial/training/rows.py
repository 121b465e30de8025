"""The rows that an evaluation of a run writes to `metrics.jsonl`."""

from collections.abc import Iterable
import dataclasses

from familial.core import storage
from familial.model import flops as flops_lib
from familial.training import config as train_config


@dataclasses.dataclass(frozen=True)
class EvaluationRow:
  """One exit at one evaluation; field names and order are those of the file.

  Attributes:
    schema: version of the row.
    run: name of the run's folder.
    cell: name of the run within its study.
    arm: role of the run within its study.
    budget: FLOPs planned for the run.
    step: steps done.
    tokens: training tokens of these steps.
    epochs: passes over the training tokens, inherited ones included.
    flops: training FLOPs, inherited ones included.
    flops_6nd: 6 N D of the whole backbone.
    exit: number of the exit, 1..G.
    exits: G.
    exit_layers: the layer of every exit.
    layer: the layer of this exit.
    exit_kind: kind of this exit.
    params: N of the exit's stand-alone model, without embeddings.
    params_embedding: parameters of its embedding and unembedding.
    params_full: N of the whole backbone.
    width: D of the model.
    depth: layers of the trunk.
    heads: query heads.
    kv_heads: key and value heads.
    vocab: size of the vocabulary.
    batch_tokens: tokens of one step.
    tokens_dense: tokens that the stand-alone model sees for `flops`.
    loss: held-out nats per token; None if the run diverged.
    loss_per_byte: held-out nats per byte of text.
    weighting: weighting of the exits' losses, `START>END` where it moves.
    weight: weight of this exit's loss at this step.
    base_lr: maximum learning rate.
    seed: seed of the run.
    corpus: fingerprint of the corpus.
    status: `running`, `finished` or `diverged`.
  """

  schema: int
  run: str
  cell: str
  arm: str
  budget: float
  step: int
  tokens: int
  epochs: float
  flops: float
  flops_6nd: float
  exit: int
  exits: int
  exit_layers: list[int]
  layer: int
  exit_kind: str
  params: int
  params_embedding: int
  params_full: int
  width: int
  depth: int
  heads: int
  kv_heads: int
  vocab: int
  batch_tokens: int
  tokens_dense: float
  loss: float | None
  loss_per_byte: float | None
  weighting: str
  weight: float
  base_lr: float
  seed: int
  corpus: str
  status: str


def of_evaluation(
  config: train_config.RunConfig,
  run: str,
  fingerprint: str,
  step: int,
  inherited: float,
  epochs: float,
  losses: Iterable[float] | None,
  bytes_per_token: float,
  status: str,
) -> list[storage.Row]:
  """Returns one evaluation's EvaluationRow of every exit, as JSON objects.

  Args:
    config: config of the run.
    run: name of the run's folder.
    fingerprint: fingerprint of the corpus.
    step: steps done.
    inherited: FLOPs of the runs that this one started from.
    epochs: passes over the training tokens so far.
    losses: held-out nats per token by exit; None if the run diverged.
    bytes_per_token: bytes of text per held-out token.
    status: `running`, `finished` or `diverged`.
  """
  model, train, seq_len = config.model, config.train, config.data.seq_len
  batch_tokens = train.batch_size * seq_len
  tokens = step * batch_tokens
  flops = inherited + tokens * flops_lib.train(model, seq_len, train.trained)
  weights = train.exit_weights_at(step, model.exits)
  weightings = (train.weighting, train.weighting_end)
  count = model.granularity
  values = [None] * count if losses is None else [float(x) for x in losses]
  rows = [
    EvaluationRow(
      schema=storage.SCHEMA,
      run=run,
      cell=config.cell,
      arm=config.arm,
      budget=config.budget,
      step=step,
      tokens=tokens,
      epochs=epochs,
      flops=flops,
      flops_6nd=flops_lib.six_nd(model, tokens),
      exit=exit_,
      exits=count,
      exit_layers=list(model.exits),
      layer=model.exits[exit_ - 1],
      exit_kind=model.kind_of(exit_),
      params=flops_lib.params(model, exit_),
      params_embedding=flops_lib.params_embedding(model, exit_),
      params_full=flops_lib.params_full(model),
      width=model.width,
      depth=model.depth,
      heads=model.heads,
      kv_heads=model.kv_heads,
      vocab=model.vocab_size,
      batch_tokens=batch_tokens,
      tokens_dense=flops_lib.tokens_dense(model, exit_, seq_len, flops),
      loss=loss,
      loss_per_byte=None if loss is None else loss / bytes_per_token,
      weighting='>'.join(filter(None, weightings)),
      weight=weights[exit_ - 1],
      base_lr=train.base_lr,
      seed=train.seed,
      corpus=fingerprint,
      status=status,
    )
    for exit_, loss in enumerate(values, start=1)
  ]
  return [dataclasses.asdict(row) for row in rows]
