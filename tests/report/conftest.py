"""A study's folder made from a known law, with everything a report can show."""

import dataclasses
import json
import pathlib
import types
from typing import Any
from typing import ClassVar

import numpy as np
import pytest

from familial.core import run_folder
from familial.core import storage
from familial.laws import definitions
from familial.laws import forms
from familial.model import config as model_config
from familial.model import flops as flops_lib
from familial.report import html
from familial.studies import paired_comparison
from familial.training import config as training_config
from familial.training import rows as rows_lib

SEQ_LEN = 64
BATCH = 8
BUDGETS = (2e11, 6e11, 1.8e12, 5e12)
TWINS = BUDGETS[1]  # the one budget with dense twins
SHAPES = ((32, 4), (48, 8), (80, 8), (128, 12))
GRANULARITIES = (1, 2, 4)
GAMMA = 0.031
NOISE = 0.002


def model(width: int, depth: int, exits: int) -> model_config.ModelConfig:
  return model_config.ModelConfig(
    vocab_size=256, width=width, depth=depth, heads=4, kv_heads=4,
    mlp_width=3 * width, exits=model_config.even_exits(depth, exits),
  )  # fmt: skip


@pytest.fixture(scope='session', autouse=True)
def coarse():
  """Draws figures coarsely: what they show does not depend on it."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(html, '_DPI', 60)
    yield


@dataclasses.dataclass
class Study:
  """Writes a study's folder."""

  LAW: ClassVar = {
    'E': 1.1, 'A': 60.0, 'B': 90.0, 'alpha': 0.37, 'beta': 0.34,
  }  # fmt: skip

  workdir: pathlib.Path
  rng: np.random.Generator = dataclasses.field(
    default_factory=lambda: np.random.default_rng(0)
  )
  cells: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  last: dict[str, list[storage.Row]] = dataclasses.field(default_factory=dict)

  def law(self, params: float, tokens: float, exits: int) -> float:
    columns = {'N': np.array([params]), 'D': np.array([tokens])}
    dense = forms.get('chinchilla').predict(self.LAW, columns)[0]
    return float(dense * exits**GAMMA)

  def run(
    self,
    budget: float,
    width: int,
    depth: int,
    exits: int,
    *,
    arm: str = 'grid',
    status: str = 'finished',
    cell: str = '',
    seed: int = 0,
  ) -> list[dict[str, Any]]:
    """Adds one run and returns its last rows."""
    shape = model(width, depth, exits)
    per_step = BATCH * SEQ_LEN * flops_lib.train(shape, SEQ_LEN)
    steps = round(budget / per_step)
    tokens = steps * BATCH * SEQ_LEN
    name = cell or f'{arm}_{budget:.0e}_{width}x{depth}_g{exits}_s{seed}'
    config = types.SimpleNamespace(
      cell=name, arm=arm, budget=budget, model=shape,
      data=types.SimpleNamespace(seq_len=SEQ_LEN),
      train=training_config.TrainConfig(
        steps=steps, batch_size=BATCH, base_lr=0.01, seed=seed
      ),
    )  # fmt: skip
    luck = self.rng.normal(0, NOISE)
    losses = [
      self.law(flops_lib.params(shape, exit_), tokens, exits) * np.exp(luck)
      for exit_ in range(1, exits + 1)
    ]
    folder = self.workdir / 'cells' / f'{len(self.cells):03d}'
    folder.mkdir(parents=True)
    common = (config, folder.name, 'f00dfeed')
    rows = rows_lib.of_evaluation(
      *common, step=steps // 2, inherited=0.0, epochs=tokens / 4e7,
      losses=[1.2 * loss for loss in losses], bytes_per_token=1.0,
      status='running',
    )  # fmt: skip
    last = rows_lib.of_evaluation(
      *common, step=steps, inherited=0.0, epochs=tokens / 2e7,
      losses=None if status == 'diverged' else losses, bytes_per_token=1.0,
      status=status,
    )  # fmt: skip
    storage.append(folder / run_folder.ROWS, rows + last)
    if status == 'finished':
      self.last[folder.name] = last
    self.cells.append({
      'cell': name, 'arm': arm, 'budget': budget, 'width': width,
      'depth': depth, 'exits': exits, 'exit_layers': list(shape.exits),
      'exit_kind': 'head', 'params_full': flops_lib.params_full(shape),
      'tokens': tokens, 'steps': steps, 'batch_tokens': BATCH * SEQ_LEN,
      'flops': last[0]['flops'], 'epochs': tokens / 2e7, 'base_lr': 0.01,
      'seconds': 3.0,
    })  # fmt: skip
    return last

  def grid(self) -> None:
    for budget in BUDGETS:
      for width, depth in SHAPES:
        for exits in GRANULARITIES:
          self.run(budget, width, depth, exits)

  def plan(self, **more: Any) -> None:
    self._write('plan.json', {
      'study': 'isoflop', 'title': 'A familial law on synthetic losses',
      'corpus': {'name': 'synthetic', 'fingerprint': 'f00dfeed',
                 'train_tokens': 20_000_000, 'heldout_tokens': 65_536,
                 'vocab_size': 256},
      'cells': self.cells,
      'power': {'gamma_half_width': 0.006, 'share_excluding_zero': 0.97,
                'noise': 0.003, 'law': {**self.LAW, 'gamma': 0.033}},
      'warnings': [], **more,
    })  # fmt: skip

  def fit(self, loss: str, form: str, gamma: float | None, aic: float) -> None:
    """Writes a fit.json by hand, in the documented shape."""
    arms = definitions.arms_of('exit' if loss == 'dense' else loss)
    arms += ('branch',) if form == 'branch' else ()
    params = dict(self.LAW)
    if form == 'branch':
      params |= {'gamma_up': 0.012, 'gamma_down': 0.003}
    elif gamma is not None:
      params['gamma'] = gamma
    spread = {
      name: {'sd': 0.1 * abs(v), 'lo': 0.8 * v, 'hi': 1.2 * v}
      for name, v in params.items()
    }
    self._write(f'fits/{loss}/{form}/fit.json', {
      'form': form, 'loss_definition': loss,
      'table': {'path': 'cells', 'sha256': '0' * 64, 'columns': {},
                'filters': {'rows': 'last', 'arms': list(arms)}},
      'rows': 36, 'dropped': 0, 'params': params, 'objective': 1e-4,
      'delta': 1e-3, 'starts': 256, 'basin_hit_rate': 0.4, 'converged': True,
      'condition_number': 1e5, 'identified': dict.fromkeys(params, True),
      'flags': ['E not identified'] if loss == 'exit' else [],
      'bootstrap': spread, 'level': 0.95, 'bootstrap_unit': 'run',
      'resamples': 1000, 'profile': self._profile(gamma), 'derived': {}, 'aic': aic,
      'bic': aic + 4, 'seed': 0, 'seconds': {}, 'backend': 'cpu',
      'versions': {},
    })  # fmt: skip

  def _profile(self, gamma: float | None) -> dict[str, Any]:
    if gamma is None:
      return {}
    values = np.linspace(gamma - 0.02, gamma + 0.02, 9)
    deviance = [*(((values - gamma) / 0.004) ** 2)[:-1], None]
    return {'gamma': {
      'name': 'gamma', 'values': values.tolist(), 'deviance': deviance,
      'cutoff': 4.0, 'lo': gamma - 0.008, 'hi': None, 'level': 0.95,
      'null': 0.0, 'p_value': 1e-9, 'flags': [],
    }}  # fmt: skip

  def fits(self) -> None:
    for loss, gamma in (('final', GAMMA), ('mean', 0.062), ('exit', 0.044)):
      self.fit(loss, 'familial_total', gamma, -310.0)
      self.fit(loss, 'familial_reducible', 1.8 * gamma, -308.6)
      self.fit(loss, 'dense_null', None, -270.0)
      self._write(f'fits/{loss}/selection.json', {
        'candidates': [
          {'form': form, 'aic_behind': 0.0, 'hold_out': held}
          for form, held in (
            ('familial_total', {'rms': 0.012, 'bias': 0.001}),
            ('dense_null', None),
          )
        ],
        'by_aic': 'familial_total', 'by_hold_out': 'familial_total',
      })  # fmt: skip
    self.fit('exit', 'branch', None, -311.0)
    self.fit('dense', 'chinchilla', None, -100.0)

  def summary(self, **values: Any) -> None:
    self._write('summary.json', values)

  def fill(self) -> None:
    """Writes everything that a study can leave."""
    self.grid()
    for seed in (1, 2):
      for exits in GRANULARITIES:
        self.run(BUDGETS[1], 48, 8, exits, arm='seed', seed=seed)
    for layer in (2, 4, 6):
      self.run(TWINS, 80, layer, 1, arm='twin')
    self.run(TWINS, 80, 8, 2, arm='branch', cell='branched')
    self.run(BUDGETS[2], 32, 4, 4, status='diverged', cell='wild')
    self.plan(warnings=['1 cell runs beyond 4 epochs'])
    self.fits()
    self.summary(**self.everything())

  def everything(self) -> dict[str, Any]:
    """Returns a summary with every key."""
    noise = {
      'sd_log_loss': {'final': NOISE, 'mean': NOISE, 'exit': NOISE},
      'cells': 3, 'seeds': 3, 'degrees': 6,
    }  # fmt: skip
    rng = np.random.default_rng(1)
    layers = (2, 4, 6, 8)
    shape = {'width': 80, 'depth': 8, 'budget': BUDGETS[1], 'exits': 4}
    return {
      'summary_line': 'gamma 0.031 [0.025, 0.037] on the last exit',
      'machine': {'backend': 'cpu', 'cores': 2, 'jax': '0.10.2'},
      'cost': {'flops': 8e13, 'seconds': 5400.0, 'finished': 60, 'diverged': 1,
               'missing': 0},
      'noise': noise,
      'paired': paired_comparison.paired(self.last, {'final': self.LAW}),
      'twins': paired_comparison.twins(self.last, noise),
      'minima': paired_comparison.minima(self.last, noise),
      'gamma': [
        {'loss': loss, 'form': form, 'gamma': g * s, 'lo': g * s - 0.006,
         'hi': g * s + 0.006, 'profile_lo': g * s - 0.009,
         'profile_hi': g * s + 0.008,
         'flags': ['E not identified'] if loss == 'exit' else []}
        for loss, g in (('mean', 0.062), ('final', GAMMA), ('exit', 0.044))
        for form, s in (('familial_total', 1.0), ('familial_reducible', 1.8))
      ],
      'weighting': [
        {'weighting': name, 'exit': e + 1, 'layer': layer, **shape,
         'loss': 2.9 - 0.1 * e + (0.02 * (3 - e) - 0.03) * place}
        for place, name in enumerate(('uniform', 'final_one', 'linear'))
        for e, layer in enumerate(layers)
      ],
      'frozen': [
        {'exit_kind': 'separate', 'exit': e + 1, 'layer': layer, **shape,
         'flops': 1.25 * BUDGETS[1], 'loss': 2.9 - 0.1 * e + 0.12 * (3 - e),
         'loss_joint': 2.9 - 0.1 * e, 'budget_joint': BUDGETS[1]}
        for e, layer in enumerate(layers[:-1])
      ],
      'leverage': [
        {'run': f'{b}{g}{k}', 'budget': budget, 'exits': g,
         'leverage': None if k == 3 and g == 4 else level,
         'lo': 0.8 * level, 'hi': None if k == 2 else 1.3 * level,
         'infinite': k == 3 and g == 4}
        for b, budget in enumerate(BUDGETS)
        for g in (2, 4)
        for k in range(4)
        for level in [float(rng.uniform(0.9, 1.1) * g**0.4)]
      ],
      'leverage_measured': [
        {'run': f'{g}', 'budget': BUDGETS[1], 'exits': g, 'exit': e + 1,
         'share': 1.0 - 0.1 * e, 'bound': e + 1 < g}
        for g in (2, 4)
        for e in range(g)
      ],
      'gradients': [
        {'step': step, 'exit_a': a, 'exit_b': b, 'layer': layer,
         'cosine': float(0.8 / (b - a) - 0.1 * step / 400)}
        for step in (1, 100, 200, 400)
        for a, b in ((1, 2), (1, 4), (2, 4))
        for layer in (1, 2)
      ],
    }  # fmt: skip

  def _write(self, name: str, value: Any) -> None:
    path = self.workdir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, allow_nan=False))


@pytest.fixture(scope='session')
def make_study() -> type[Study]:
  return Study


@pytest.fixture
def study(tmp_path: pathlib.Path) -> Study:
  return Study(tmp_path / 'study')
