"""Tables for tests to spoil, as columns, as files and fitted."""

import io

import numpy as np
import polars as pl

from familial.laws import estimation
from familial.laws import forms
from familial.laws import parametric
from familial.laws import table as tables


def columns(rows=40, seed=0):
  """A table that nothing is wrong with."""
  rng = np.random.default_rng(seed)
  params = rng.permutation(np.geomspace(1e6, 1e9, rows))
  tokens = np.geomspace(1e8, 1e11, rows)
  loss = 1.7 + 400 / params**0.33 + 900 / tokens**0.36
  loss *= np.exp(0.003 * rng.standard_normal(rows))
  return {'params': params, 'tokens': tokens, 'loss': loss}


def text(columns):
  rows = zip(*columns.values(), strict=True)
  lines = [','.join(columns), *(','.join(map(str, row)) for row in rows)]
  return '\n'.join(lines) + '\n'


def parquet_bytes(columns):
  sink = io.BytesIO()
  pl.DataFrame(columns).write_parquet(sink)
  return sink.getvalue()


def table(columns):
  arrays = {
    parametric.SYMBOLS.get(name, name): np.asarray(values, float)
    for name, values in columns.items()
  }
  return tables.Table(arrays, np.arange(len(arrays['loss'])).astype(str))


def law(columns, form='chinchilla', **options):
  """The fit without a bootstrap, of columns in long names."""
  return estimation.fit(forms.get(form), table(columns), starts=16, **options)


def closed_form(values, compute):
  """N and D of least loss at 6 N D = C: Hoffmann et al. (2022), approach 3."""
  alpha, beta = values['alpha'], values['beta']
  scale = (alpha * values['A'] / (beta * values['B'])) ** (1 / (alpha + beta))
  n = scale * (np.asarray(compute) / 6) ** (beta / (alpha + beta))
  return n, np.asarray(compute) / (6 * n)
