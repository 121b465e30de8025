"""A small IsoFLOP study made of numbers, for the laws' tests."""

from collections.abc import Callable
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from familial.laws import forms
from familial.laws import table as tables

TRUTH = {
  'E': 1.2,
  'A': 60.0,
  'B': 900.0,
  'alpha': 0.33,
  'beta': 0.37,
  'gamma': 0.033,
  'gamma_up': 0.02,
  'gamma_down': 0.04,
}


@pytest.fixture
def truth() -> dict[str, float]:
  return dict(TRUTH)


def cells() -> dict[str, np.ndarray]:
  """Three budgets, four sizes, three granularities: 36 runs."""
  budget, n, g = (
    a.ravel()
    for a in np.meshgrid(
      [1e11, 4e11, 1.6e12], [2e4, 5e4, 1.2e5, 3e5], [1.0, 2.0, 4.0]
    )
  )
  return {
    'N': n,
    'D': budget / (6 * n * (1 + 0.1 * g)),
    'G': g,
    'C': budget,
    'budget': budget,
    'upstream': g - 1,
    'downstream': np.arange(36) * 5 % 4 * 1.0,
    'width': 2.0 ** (5 + np.arange(36) * 7 % 5),
    'depth': 1.0 + np.arange(36) * 11 % 13,
  }


def drawn(
  form: str = 'familial_total',
  noise: float = 0.0,
  seed: int = 0,
  params: dict[str, float] | None = None,
  **changes: Any,
) -> tables.Table:
  """A table of the runs drawn from a form."""
  columns = {**cells(), **changes}
  loss = forms.get(form).predict({**TRUTH, **(params or {})}, columns)
  error = noise * np.random.default_rng(seed).standard_normal(len(loss))
  return tables.Table(
    {**columns, 'loss': loss * np.exp(error)},
    np.array([f'run{i}' for i in range(len(loss))]),
  )


@pytest.fixture
def columns() -> dict[str, np.ndarray]:
  return cells()


@pytest.fixture
def make() -> Callable[..., tables.Table]:
  return drawn


@pytest.fixture
def rows() -> list[dict[str, Any]]:
  """What training writes: two runs, of 2 exits and of 1, two evaluations."""

  def row(run: str, step: int, exit_: int, exits: int, **own: Any) -> dict:
    return {
      'run': run,
      'cell': run,
      'budget': 600.0,
      'step': step,
      'tokens': 10.0 * step,
      'tokens_dense': 10.0 * step * (1 + exits - exit_),
      'flops': 100.0 * step,
      'exit': exit_,
      'exits': exits,
      'layer': 2 * exit_,
      'params': 50.0 * exit_,
      'params_full': 50.0 * exits,
      'width': 8,
      'depth': 2 * exits,
      'corpus': 'c',
      'status': 'running' if step < 6 else 'finished',
      'arm': 'grid',
      **own,
    }

  return [
    row('a', 3, 1, 2, loss=5.0),
    row('a', 3, 2, 2, loss=4.0),
    row('a', 6, 1, 2, loss=3.0),
    row('a', 6, 2, 2, loss=2.0),
    row('b', 3, 1, 1, loss=4.5),
    row('b', 6, 1, 1, loss=2.5),
  ]


@pytest.fixture
def fit(tmp_path, capsys, monkeypatch):
  """Runs the command on a file's content; returns status, line and fit.json."""
  from familial.cli import main
  from tests.laws import points

  monkeypatch.setattr('familial.training.compilation.prepare', lambda: None)

  def run(content, *arguments, name='points.csv', form='chinchilla'):
    if isinstance(content, dict):
      content = points.text(content)
    if not isinstance(content, pathlib.Path):
      path = tmp_path / name
      content = content.encode() if isinstance(content, str) else content
      path.write_bytes(content)
      content = path
    out = tmp_path / 'out'
    (out / 'fit.json').unlink(missing_ok=True)
    status = main.run([
      'familial', 'fit', f'--table={content}', f'--out={out}', '--nodraw',
      '--starts=16', '--resamples=50', f'--form={form}', *arguments,
    ])  # fmt: skip
    printed = capsys.readouterr()
    if status == 0:
      return printed.out, json.loads((out / 'fit.json').read_text())
    assert status == 2 and not printed.out
    # Bars of what was under way are wiped by the carriage returns.
    line = printed.err.rpartition('\r')[2]
    assert line.startswith('familial: ') and line.count('\n') == 1
    assert 'Traceback' not in printed.err
    return line, None

  return run
