"""The probe of a trained model: what its layers do, and in which regime.

A probe has, for each quantity of `layers.DEFINITIONS` and each layer, the mean over
tokens with its standard error, the standard deviation and quantiles; the tokens that
stopped early; and, by groups of windows, the statistics that the regime follows
from. `probe.json` holds it.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from familial.analysis import layers
from familial.analysis import middle
from familial.analysis import regimes
from familial.analysis import trajectories
from familial.convert import hugging_face
from familial.convert import load
from familial.core import errors
from familial.core import estimate
from familial.core import schema
from familial.core import storage
from familial.core import text
from familial.core.estimate import Estimate
from familial.data import batches as batches_lib
from familial.data import config as data_config
from familial.data import packing
from familial.serving import evaluate

# Layer of a quantity's first value, where it is not 1.
_FIRST_LAYER = {'norm': 0, 'to_last': 0, 'remaining': 0, 'loss': 0}
_POSITIONS = {'first': 'from', 'last': 'to'}  # keys of `Positions` in the file
_FIELDS = {key: name for name, key in _POSITIONS.items()}


@dataclasses.dataclass(frozen=True)
class ProbedModel:
  """The model of a probe, its training, and the text that it read.

  Attributes:
    run: name of the model's folder.
    step: step of the checkpoint.
    cell: name of the run in its study.
    arm: part of the study that the run belongs to.
    budget: training FLOPs that the run was planned for.
    tokens_trained: tokens of the run's training.
    seed: of the run.
    base_lr: base learning rate.
    width: D.
    depth: L, number of layers.
    heads: number of query heads.
    mlp_width: F.
    vocab: V.
    exits: layers after which an exit lies.
    exit_kind: kind of the exits before the last.
    weighting: of the exits' losses.
    corpus: name of the text.
    fingerprint: of the text.
    context: positions of a window.
    document_mask: whether attention stays within documents.
    lineage: content of the model's `lineage.json`.
  """

  run: str
  step: int
  cell: str
  arm: str
  budget: float
  tokens_trained: int
  seed: int
  base_lr: float
  width: int
  depth: int
  heads: int
  mlp_width: int
  vocab: int
  exits: tuple[int, ...]
  exit_kind: str
  weighting: str
  corpus: str
  fingerprint: str
  context: int
  document_mask: bool
  lineage: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LayerValue:
  """A quantity at one layer.

  Attributes:
    layer: of the model.
    tokens: number of tokens that have a value.
    mean: over tokens; None without tokens.
    error: standard error of the mean, from the scatter between groups.
    sd: standard deviation over tokens.
    quantiles: at `trajectories.LEVELS`; None where no histogram is taken.
  """

  layer: int
  tokens: int
  mean: float | None
  error: float | None
  sd: float | None
  quantiles: tuple[float | None, ...] | None


@dataclasses.dataclass(frozen=True)
class EarlyAt:
  """Share of tokens whose remaining angle is at most `remaining` at layer 0.75 L."""

  remaining: float
  share: float


@dataclasses.dataclass(frozen=True)
class Positions:
  """Share of tokens at positions `first` to `last` that stopped early.

  `last` is None for the last, open class of positions.
  """

  first: int
  last: int | None
  tokens: int
  early: float


@text.brief
@dataclasses.dataclass(frozen=True)
class Record:
  """Statistics of a model's layers on held-out text, as their file has them.

  Attributes:
    model: the probed model.
    tokens: number of tokens read.
    windows: number of windows that hold them.
    quantities: by name, in the order of layers.
    settled: share of tokens that have settled by each layer, from 0.
    early: share of tokens that stopped early.
    early_at: the same by other thresholds of the angle.
    by_position: `early` by position in the window.
    by_place: `early` by position since the last separator.
  """

  model: ProbedModel
  tokens: int
  windows: int
  quantities: dict[str, tuple[LayerValue, ...]]
  settled: tuple[float, ...]
  early: float
  early_at: tuple[EarlyAt, ...]
  by_position: tuple[Positions, ...]
  by_place: tuple[Positions, ...]


@dataclasses.dataclass(frozen=True)
class Probe(Record):
  """A record, and the statistics by groups of windows that its regime is of."""

  network: trajectories.NetworkStatistics

  @functools.cached_property
  def regime(self) -> regimes.Answer | None:
    """The regime; None below `middle.LEAST_DEPTH` layers."""
    return _classified([self])


@text.brief
@dataclasses.dataclass(frozen=True)
class DepthScaling:
  """Probes of several models, and how their angles scale with depth.

  Attributes:
    probes: of the models.
    turns: mean turn of a middle layer of each, radians; None without a middle.
    angle_exponent: exponent of depth in it; None below three depths.
    regime: of all together; None if no model has `middle.LEAST_DEPTH` layers.
  """

  probes: tuple[Probe, ...]
  turns: tuple[float | None, ...]
  angle_exponent: Estimate | None
  regime: regimes.Answer | None


def of_checkpoint(
  folder: str | os.PathLike[str],
  step: str = 'last',
  tokens: int = 0,
  batch: int = 0,
  context: int = 0,
  data: Mapping[str, Any] | None = None,
) -> Probe:
  """Returns the probe of a model on the held-out text of its run.

  A model from elsewhere has no text of its own; it reads the default corpus.

  Args:
    folder: folder of a run, an export or an import, one of its checkpoints, or
      Hugging Face files of a Llama-like model.
    step: as `load.load` takes it.
    tokens: number of held-out targets; 0 for those of the run's evaluations.
    batch: windows of a batch; 0 for those of the run's evaluations.
    context: positions of a window; 0 for those of the training.
    data: keys of the text, by DataConfig, in place of the run's; any text is
      allowed then.

  Raises:
    UserError: if there is no such model, its corpus is not that of its run,
      `tokens` do not fill a batch, or a window has a single position.
  """
  with _opened(folder, step) as model:
    other = bool(data)
    model = evaluate.on_text(model, data or {})
    train = model.config.train
    text = _windows(model, context)
    wanted = tokens or train.eval_tokens
    size = batch or train.eval_batch_size
    if tokens and tokens < size * text.seq_len:
      raise errors.UserError(
        f'tokens: {tokens} is not allowed; a batch of {size} windows of '
        f'{text.seq_len} has {size * text.seq_len}, the least: ask for more, '
        'or for a smaller batch'
      )
    rows = batch or min(size, -(-wanted // text.seq_len))
    corpus = packing.load(text)
    evaluate.check_corpus(model, corpus, other)
    batches = batches_lib.heldout(corpus, text, wanted, rows)
    with errors.within(model.folder):
      measurement = layers.measure(
        model.params, model.config.model, batches, corpus.separator
      )
    return of_measurement(measurement, _probed(model, corpus, text))


def _windows(model: load.Model, context: int) -> data_config.DataConfig:
  """Returns the config of the text in windows of `context` positions."""
  data = model.config.data
  if context > data.seq_len:
    raise errors.UserError(
      f'context: {context} is not allowed; {model.folder} was trained on '
      f'{data.seq_len} positions, the most'
    )
  data = dataclasses.replace(data, seq_len=context or data.seq_len)
  if data.seq_len < 2:
    raise errors.UserError(
      f'context: {data.seq_len} is not allowed; at least 2 positions are '
      'needed: the updates of a token are compared with those of another token '
      'of its window'
    )
  return data


def of_measurement(
  measurement: layers.Measurement, model: ProbedModel
) -> Probe:
  """Returns the probe of a model from what was measured."""
  network = measurement.network
  settled_L = np.cumsum(network.settled.sum(axis=0)) / measurement.tokens
  early = int(trajectories.EARLY * model.depth)
  return Probe(
    model=model,
    tokens=measurement.tokens,
    windows=measurement.windows,
    quantities={
      name: tuple(_layer_values(network, name, model))
      for name in network.moments
    },
    settled=tuple(settled_L.tolist()),
    early=float(settled_L[early]),
    early_at=tuple(
      EarlyAt(
        remaining,
        trajectories.share_below(
          network.bins['remaining'][early],
          trajectories.SCALES['remaining'],
          remaining,
        ),
      )
      for remaining in trajectories.REMAINING
    ),
    by_position=_positions(measurement.early['by_position']),
    by_place=_positions(measurement.early['by_place']),
    network=network,
  )


def _layer_values(
  network: trajectories.NetworkStatistics, name: str, model: ProbedModel
) -> Iterator[LayerValue]:
  moments = network.moments[name]
  pooled = trajectories.pool(moments)
  spread = trajectories.sd(pooled)
  standard_errors = trajectories.standard_errors(moments)
  first = _FIRST_LAYER.get(name, 1)
  bins = network.bins.get(name)
  for place, (count, mean) in enumerate(
    zip(pooled.count, pooled.mean, strict=True)
  ):
    yield LayerValue(
      layer=model.exits[place] if name == 'exit_loss' else first + place,
      tokens=int(count),
      mean=float(mean) if count else None,
      error=standard_errors[place],
      sd=float(spread[place]) if count > 1 else None,
      quantiles=None
      if bins is None
      else trajectories.quantiles(bins[place], trajectories.SCALES[name]),
    )


def _positions(counts: np.ndarray) -> tuple[Positions, ...]:
  return tuple(
    Positions(
      first=2**place - 1,
      last=2 ** (place + 1) - 2 if place < layers.CLASSES - 1 else None,
      tokens=int(tokens),
      early=int(early) / int(tokens),
    )
    for place, (early, tokens) in enumerate(counts)
    if tokens
  )


def of_depths(probes: Sequence[Probe]) -> DepthScaling:
  """Returns how the angles of probed models scale with their depth."""
  networks = [probe.network for probe in probes]
  return DepthScaling(
    probes=tuple(probes),
    turns=tuple(map(middle.turn, networks)),
    angle_exponent=middle.angle_exponent(networks),
    regime=_classified(probes),
  )


def _classified(probes: Sequence[Probe]) -> regimes.Answer | None:
  networks = [probe.network for probe in probes]
  if max(network.depth for network in networks) < middle.LEAST_DEPTH:
    return None
  return regimes.classify(networks)


def write(probe: Probe, path: str | os.PathLike[str]) -> None:
  """Writes a probe as JSON."""
  values = dataclasses.asdict(probe)
  del values['network']
  for name in ('by_position', 'by_place'):
    values[name] = [_renamed(row, _POSITIONS) for row in values[name]]
  groups: dict[str, Any] = {'settled': probe.network.settled.tolist()}
  for name in trajectories.REGIME_QUANTITIES:
    moments = probe.network.moments[name]
    groups[name] = {k: v.tolist() for k, v in moments._asdict().items()}
  storage.write_json(
    path,
    {
      'schema': storage.SCHEMA,
      **values,
      'definitions': layers.DEFINITIONS,
      'thresholds': {
        'settled': trajectories.SETTLED,
        'early': trajectories.EARLY,
      },
      'levels': trajectories.LEVELS,
      'random': {
        'cosine_sd': probe.model.width**-0.5,
        'note': 'of two random vectors of this width; their cosine has mean 0',
      },
      'groups': groups,
      'regime': probe.regime
      and {
        **_answer(probe.regime),
        'definitions': middle.DEFINITIONS,
        'bounds': regimes.BOUNDS,
      },
    },
  )


def read(path: str | os.PathLike[str]) -> Probe:
  """Returns the probe that `write` wrote; its network has no histograms."""
  values = storage.read_own(path)
  groups = values['groups']
  moments = {
    name: trajectories.Moments(
      **{part: np.asarray(v, float) for part, v in groups[name].items()}
    )
    for name in trajectories.REGIME_QUANTITIES
  }
  for name in ('by_position', 'by_place'):
    values[name] = [_renamed(row, _FIELDS) for row in values[name]]
  with errors.within(path):
    names = [field.name for field in dataclasses.fields(Record)]
    record = schema.read(Record, {name: values[name] for name in names})
  network = trajectories.NetworkStatistics(
    record.model.width, moments, {}, np.asarray(groups['settled'])
  )
  return Probe(**vars(record), network=network)


def _renamed(
  row: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
  return {names.get(key, key): value for key, value in row.items()}


def write_depths(scaling: DepthScaling, path: str | os.PathLike[str]) -> None:
  """Writes what several models say together as JSON."""
  exponent, regime = scaling.angle_exponent, scaling.regime
  storage.write_json(
    path,
    {
      'schema': storage.SCHEMA,
      'models': [probe.model.run for probe in scaling.probes],
      'depths': [probe.model.depth for probe in scaling.probes],
      'middle_turn': scaling.turns,
      'angle_exponent': exponent and dataclasses.asdict(exponent),
      'level': estimate.LEVEL,
      'definitions': middle.DEFINITIONS,
      'regime': regime and _answer(regime),
    },
  )


def _answer(answer: regimes.Answer) -> storage.Row:
  """Returns an answer as JSON, the interval of a statistic as `low`, `high`."""
  values = dataclasses.asdict(answer)
  for item in values['evidence']:
    item['value'], item['low'], item['high'] = item['value'].values()
  return values


@contextlib.contextmanager
def _opened(folder: str | os.PathLike[str], step: str) -> Iterator[load.Model]:
  """Reads a model; Hugging Face files through a temporary import."""
  path = pathlib.Path(folder) / 'config.json'
  values = storage.read_json(path) if path.exists() else None
  if not isinstance(values, dict) or 'architectures' not in values:
    yield load.load(folder, step)
    return
  with tempfile.TemporaryDirectory() as place:
    out = pathlib.Path(place) / pathlib.Path(folder).absolute().name
    hugging_face.from_hugging_face(folder, (), 'head', out)
    yield load.load(out, step)


def _probed(
  model: load.Model, corpus: packing.Corpus, data: data_config.DataConfig
) -> ProbedModel:
  config = model.config
  shape, train = config.model, config.train
  return ProbedModel(
    run=model.folder.absolute().name,
    step=model.step,
    cell=config.cell,
    arm=config.arm,
    budget=config.budget,
    tokens_trained=model.step * train.batch_size * config.data.seq_len,
    seed=train.seed,
    base_lr=train.base_lr,
    width=shape.width,
    depth=shape.depth,
    heads=shape.heads,
    mlp_width=shape.mlp_width,
    vocab=shape.vocab_size,
    exits=shape.exits,
    exit_kind=shape.exit_kind,
    weighting=train.weighting,
    corpus=corpus.name,
    fingerprint=corpus.fingerprint,
    context=data.seq_len,
    document_mask=data.document_mask,
    lineage=storage.read_json(model.folder / 'lineage.json'),
  )
