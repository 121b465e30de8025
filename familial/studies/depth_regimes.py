"""The study of what layers do in models with exits and in dense models.

Models differ in their exits alone. Each is probed on the same held-out text; exits
are compared with dense models by pairs of one depth and seed.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Annotated

import numpy as np

from familial.analysis import middle
from familial.analysis import probe as probe_lib
from familial.analysis import regimes
from familial.core import errors
from familial.core import schema
from familial.core import text
from familial.core.estimate import Estimate
from familial.studies import depth_law
from familial.studies import execution
from familial.studies import study as study_lib
from familial.studies import sweep

PROBES = 'probes'
# Quantities of a probe that are compared layer by layer.
LAYERS = ('turn', 'cosine', 'to_last', 'loss', 'skip', 'swap')
# Statistics that rise from averaging to composition.
COMPOSITION = ('step_spread', 'early', 'stop_spread')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(depth_law.EqualTokens):
  """Models that differ in their exits alone, and their probes.

  Attributes:
    width: of all models.
    depths: numbers of layers.
    granularities: G of the models of each depth; 1, a dense model, among them.
    seeds: of each model; models of one seed and depth are pairs.
    probe_tokens: held-out tokens that a probe reads.
  """

  width: schema.Count
  depths: Annotated[
    tuple[Annotated[int, schema.at_least(middle.LEAST_DEPTH)], ...],
    schema.UNIQUE,
  ]
  granularities: Annotated[tuple[schema.Count, ...], schema.UNIQUE] = (1, 4)
  seeds: Annotated[tuple[schema.Index, ...], schema.UNIQUE] = (0, 1, 2, 3)
  probe_tokens: schema.Count = 32_768
  warmup: schema.Fraction = 0.05

  def __post_init__(self) -> None:
    schema.check(self)
    errors.require(
      1 in self.granularities,
      'granularities',
      self.granularities,
      'with 1, a dense model, among them',
    )
    self.check_width('width', self.width)


@dataclasses.dataclass(frozen=True)
class OfModels:
  """The models that a record is about: those of one depth and G.

  Attributes:
    depth: number of layers.
    exits: G.
  """

  depth: int
  exits: int


@dataclasses.dataclass(frozen=True)
class Group(OfModels):
  """The regime of the models of one depth and G, all seeds together.

  Attributes:
    loss: of the last exit on the probed text, mean over seeds.
    regime: of all seeds together; see `analysis.regimes`.
    strength: lead of the best score over the next.
    agreement: share of resamples with the same regime.
    seeds: number of seeds.
    same: number of seeds that have this regime alone.
    scores: by regime.
    notes: limits of the answer.
  """

  loss: float
  regime: str
  strength: float
  agreement: float | None
  seeds: int
  same: int
  scores: dict[str, float]
  notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Seed(OfModels):
  """One model: its loss, its regime, and its statistics of `analysis.middle`."""

  seed: int
  loss: float
  regime: str
  alignment: float
  departure: float
  drift: float
  step_spread: float
  early: float
  stop_spread: float
  middle_turn: float


@dataclasses.dataclass(frozen=True)
class Evidence(regimes.Evidence, OfModels):
  """A statistic behind a group's regime, and how well it fits each regime."""


@dataclasses.dataclass(frozen=True)
class EarlyAt(OfModels):
  """Share of tokens at most `remaining` of their largest angle from the last state.

  Measured at layer 0.75 L; mean over seeds.
  """

  remaining: float
  share: Estimate


@dataclasses.dataclass(frozen=True)
class Layer(OfModels):
  """A quantity of a probe at one layer, mean over seeds."""

  name: str
  layer: int
  mean: float


@dataclasses.dataclass(frozen=True)
class Difference(OfModels):
  """A statistic of models with exits less that of dense models of the same seeds.

  The interval is Student's over pairs: it contains the noise between seeds alone.

  Attributes:
    name: of a statistic of the middle layers, or of a quantity of LAYERS.
    layer: of the quantity; None for a statistic.
    dense: mean over the dense models.
    with_exits: mean over the models with exits.
    difference: `with_exits` less `dense`.
    pairs: number of pairs.
  """

  name: str
  layer: int | None
  dense: float
  with_exits: float
  difference: Estimate
  pairs: int


@dataclasses.dataclass(frozen=True)
class Towards(OfModels):
  """Whether exits move the layers towards composition: yes, in part, no."""

  composition: str


@text.brief
@dataclasses.dataclass(frozen=True)
class Tables:
  """Tables of a study of layers and exits."""

  groups: tuple[Group, ...]
  seeds: tuple[Seed, ...]
  evidence: tuple[Evidence, ...]
  early_at: tuple[EarlyAt, ...]
  layers: tuple[Layer, ...]
  differences: tuple[Difference, ...]
  towards: tuple[Towards, ...]


class DepthRegimes(execution.TrainedStudy[Config, Tables]):
  """The study of layers and exits."""

  kind = 'depth_regimes'
  config_class = Config
  tables_class = Tables
  run_keys = depth_law.RUN_KEYS

  def runs(self, config: Config) -> execution.Runs:
    """Returns the runs, those of a shape together."""
    return [
      depth_law.run_of(
        config,
        'exits' if exits > 1 else 'dense',
        config.width,
        depth,
        f'_g{exits}_seed{seed}',
        exits,
        seed=seed,
      )
      for depth in config.depths
      for exits in config.granularities
      for seed in config.seeds
    ]

  def fit(self, config: Config, results: study_lib.Results) -> Iterator[str]:
    """Probes the models without a probe; yields why one cannot be probed."""
    for run in results.finished:
      path = _probe_path(results.folder, run.cell)
      if path.exists():
        continue
      try:
        probe = probe_lib.of_checkpoint(
          sweep.folder(results.folder, run.cell), tokens=config.probe_tokens
        )
      except errors.UserError as error:
        yield f'not probed: {error}'
      else:
        probe_lib.write(probe, path)

  def flags(
    self, results: study_lib.Results, tables: Tables, cost: study_lib.Cost
  ) -> Iterator[str]:
    """Yields also each note on the groups, with the models that it is about."""
    yield from super().flags(results, tables, cost)
    groups = tables.groups
    for note in dict.fromkeys(note for row in groups for note in row.notes):
      models = '; '.join(_name(row) for row in groups if note in row.notes)
      yield f'{models}: {note}'

  def analyse(
    self, config: Config, results: study_lib.Results
  ) -> tuple[str, Tables]:
    """Returns the regimes by depth and G, and what exits change."""
    found = [
      probe_lib.read(path)
      for run in results.finished
      if (path := _probe_path(results.folder, run.cell)).exists()
    ]
    if not found:
      raise errors.UserError(
        f'{results.folder / PROBES}: holds no probe of a finished run'
      )
    groups: dict[tuple[int, int], list[probe_lib.Probe]] = {}
    for depth in config.depths:
      for exits in config.granularities:
        same = [
          probe
          for probe in found
          if (probe.model.depth, len(probe.model.exits)) == (depth, exits)
        ]
        if same:
          groups[depth, exits] = same
    answers = {
      key: regimes.classify([probe.network for probe in probes])
      for key, probes in groups.items()
    }
    seeds = [
      _seed(*key, probe) for key, probes in groups.items() for probe in probes
    ]
    changes = [
      change
      for (depth, exits), probes in groups.items()
      if exits > 1
      for change in _differences(
        depth, exits, groups.get((depth, 1), ()), probes
      )
    ]
    tables = Tables(
      groups=tuple(
        _group(answer, [s for s in seeds if (s.depth, s.exits) == key])
        for key, answer in answers.items()
      ),
      seeds=tuple(seeds),
      evidence=tuple(
        Evidence(*key, **vars(item))
        for key, answer in answers.items()
        for item in answer.evidence
      ),
      early_at=tuple(
        EarlyAt(*key, row[0].remaining, Estimate.of(each.share for each in row))
        for key, probes in groups.items()
        for row in zip(*(probe.early_at for probe in probes), strict=True)
      ),
      layers=tuple(
        layer
        for key, probes in groups.items()
        for layer in _layers(*key, probes)
      ),
      differences=tuple(changes),
      towards=tuple(_towards(changes)),
    )
    return _line(tables), tables


def _probe_path(folder: pathlib.Path, cell: str) -> pathlib.Path:
  return folder / PROBES / f'{cell}.json'


def _seed(depth: int, exits: int, probe: probe_lib.Probe) -> Seed:
  loss = probe.quantities['loss'][-1].mean
  assert loss is not None
  assert probe.regime is not None
  return Seed(
    depth=depth,
    exits=exits,
    seed=probe.model.seed,
    loss=loss,
    regime=probe.regime.regime,
    **_statistics(probe),
  )


def _group(answer: regimes.Answer, seeds: Sequence[Seed]) -> Group:
  return study_lib.record_of(
    Group,
    answer,
    depth=seeds[0].depth,
    exits=seeds[0].exits,
    loss=float(np.mean([seed.loss for seed in seeds])),
    seeds=len(seeds),
    same=sum(seed.regime == answer.regime for seed in seeds),
  )


def _layers(
  depth: int, exits: int, probes: Sequence[probe_lib.Probe]
) -> Iterator[Layer]:
  """Yields the quantities by layer, where all seeds have a value."""
  for name in LAYERS:
    for row in zip(*(probe.quantities[name] for probe in probes), strict=True):
      means = [each.mean for each in row if each.mean is not None]
      if len(means) == len(row):
        yield Layer(depth, exits, name, row[0].layer, float(np.mean(means)))


def _differences(
  depth: int,
  exits: int,
  dense: Sequence[probe_lib.Probe],
  others: Sequence[probe_lib.Probe],
) -> Iterator[Difference]:
  """Yields the differences of what all models of the pairs have a value of."""
  partners = {probe.model.seed: _values(probe) for probe in dense}
  pairs = [
    (partners[probe.model.seed], _values(probe))
    for probe in others
    if probe.model.seed in partners
  ]
  for name, layer in pairs[0][0] if pairs else ():
    key = (name, layer)
    if all(key in values for pair in pairs for values in pair):
      values_Px2 = np.array([[a[key], b[key]] for a, b in pairs])
      base, value = values_Px2.mean(axis=0).tolist()
      apart = Estimate.of(values_Px2[:, 1] - values_Px2[:, 0])
      yield Difference(
        depth, exits, name, layer, base, value, apart, len(pairs)
      )


def _values(probe: probe_lib.Probe) -> dict[tuple[str, int | None], float]:
  """Returns the statistics of a network, and its quantities by layer."""
  by_layer: dict[tuple[str, int | None], float] = {
    (name, row.layer): row.mean
    for name in LAYERS
    for row in probe.quantities[name]
    if row.mean is not None
  }
  return {
    (name, None): value for name, value in _statistics(probe).items()
  } | by_layer


def _statistics(probe: probe_lib.Probe) -> dict[str, float]:
  turn = middle.turn(probe.network)
  assert turn is not None  # Every depth of a study has middle layers.
  return {**middle.statistics(probe.network), 'middle_turn': turn}


def _towards(changes: Sequence[Difference]) -> Iterator[Towards]:
  """Yields `yes` where all statistics of COMPOSITION rise, `no` where none does.

  A statistic rises if its interval is above 0.
  """
  for key in dict.fromkeys((row.depth, row.exits) for row in changes):
    risen = [
      row.difference.sign == 'higher'
      for row in changes
      if (row.depth, row.exits) == key and row.name in COMPOSITION
    ]
    yield Towards(
      *key, 'yes' if all(risen) else 'in part' if any(risen) else 'no'
    )


def _name(row: Group) -> str:
  kind = f'G = {row.exits}' if row.exits > 1 else 'dense'
  return f'{kind}, {row.depth} layers'


def _line(tables: Tables) -> str:
  """Returns the regimes, and whether exits move them towards composition."""
  regimes_of = [
    f'{_name(row)}: {row.regime} ({row.same} of {row.seeds} seeds alone)'
    for row in tables.groups
  ]
  towards = [
    f'G = {row.exits} moves {row.depth} layers towards composition: '
    f'{row.composition}'
    for row in tables.towards
  ]
  return '; '.join([*regimes_of, *towards])


REGIMES = DepthRegimes()
