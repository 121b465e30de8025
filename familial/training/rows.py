"""The rows that an evaluation of a run writes to `metrics.jsonl`."""

from collections.abc import Iterable

from familial.core import storage
from familial.model import flops as flops_lib
from familial.training import config as train_config


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
  """Returns the rows of one evaluation, one per exit.

  Args:
    config: of the run.
    run: name of the run's folder.
    fingerprint: of the corpus.
    step: steps done.
    inherited: FLOPs of the runs that this one started from.
    epochs: passes over the training tokens so far.
    losses: held-out nats per token by exit; None if the run diverged.
    bytes_per_token: of the held-out tokens.
    status: `running`, `finished` or `diverged`.
  """
  model, train, seq_len = config.model, config.train, config.data.seq_len
  batch_tokens = train.batch_size * seq_len
  tokens = step * batch_tokens
  flops = inherited + tokens * flops_lib.train(model, seq_len, train.trained)
  weights = train.exit_weights_at(step, model.exits)
  weightings = (train.weighting, train.weighting_end)
  count = model.granularity
  values = [None] * count if losses is None else list(losses)
  return [
    {
      'schema': storage.SCHEMA,
      'run': run,
      'cell': config.cell,
      'arm': config.arm,
      'budget': config.budget,
      'step': step,
      'tokens': tokens,
      'epochs': epochs,
      'flops': flops,
      'flops_6nd': flops_lib.six_nd(model, tokens),
      'exit': exit_,
      'exits': count,
      'exit_layers': list(model.exits),
      'layer': model.exits[exit_ - 1],
      'exit_kind': model.kind_of(exit_),
      'params': flops_lib.params(model, exit_),
      'params_embedding': flops_lib.params_embedding(model, exit_),
      'params_full': flops_lib.params_full(model),
      'width': model.width,
      'depth': model.depth,
      'heads': model.heads,
      'kv_heads': model.kv_heads,
      'vocab': model.vocab_size,
      'batch_tokens': batch_tokens,
      'tokens_dense': flops_lib.tokens_dense(model, exit_, seq_len, flops),
      'loss': None if loss is None else float(loss),
      'loss_per_byte': (
        None if loss is None else float(loss) / bytes_per_token
      ),
      'weighting': '>'.join(filter(None, weightings)),
      'weight': weights[exit_ - 1],
      'base_lr': train.base_lr,
      'seed': train.seed,
      'corpus': fingerprint,
      'status': status,
    }
    for exit_, loss in enumerate(values, start=1)
  ]
