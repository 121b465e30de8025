"""What a fit leaves behind: fit.json, and the one line that sums it up."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import importlib.metadata
import io
import json
import math
import os
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
import tqdm

from familial import errors
from familial.laws import bootstrap as bootstraps
from familial.laws import estimate
from familial.laws import forms
from familial.laws import profile as profiles
from familial.laws import selection as selections
from familial.laws import table as tables

_VERSIONED = ('familial', 'jax', 'numpy', 'scipy')
_SAMPLES = 'bootstrap.npz'
_LAW = ('form', 'params', 'objective', 'bootstrap', 'flags')


@dataclasses.dataclass(frozen=True)
class Result:
  """One form on one table, with everything that says how sure it is."""

  fit: estimate.Fit
  bootstrap: bootstraps.Bootstrap
  profiles: dict[str, profiles.Profile]
  table: tables.Table
  loss_definition: str

  @property
  def flags(self) -> tuple[str, ...]:
    """All of them: the fit's, the bootstrap's, the profiles'."""
    return (
      *self.fit.flags,
      *self.bootstrap.flags,
      *(flag for p in self.profiles.values() for flag in p.flags),
    )

  def interval(self, name: str) -> tuple[float | None, float | None]:
    """A constant's interval: its profile's where there is one."""
    if name in self.profiles:
      return self.profiles[name].lo, self.profiles[name].hi
    spread = self.bootstrap.intervals[name]
    return spread.lo, spread.hi


@dataclasses.dataclass(frozen=True)
class Law:
  """A law read back from fit.json; `record` holds all that the file does.

  `samples` holds the constants of the bootstrap's resamples, each [resamples],
  or is None where bootstrap.npz does not lie beside the file.
  """

  form: forms.Form
  params: dict[str, float]
  record: dict[str, Any]
  samples: dict[str, np.ndarray] | None = None

  def predict(self, columns: Mapping[str, Any]) -> np.ndarray:
    """The loss at these columns, one a row."""
    return self.form.predict(self.params, columns)


def run(
  table: tables.Table,
  form_names: Sequence[str],
  out: str | pathlib.Path,
  *,
  loss_definition: str = 'final',
  delta: float = estimate.DELTA,
  starts: int = estimate.STARTS,
  resamples: int = bootstraps.RESAMPLES,
  level: float = bootstraps.LEVEL,
  seed: int = 0,
  progress: bool = True,
) -> str:
  """Fits the forms to the table, writes the files, returns the summary line.

  One form writes OUT/fit.json; several write OUT/FORM/fit.json each and
  OUT/selection.json.
  """
  chosen = [forms.get(name) for name in dict.fromkeys(form_names)]
  if not chosen:
    raise errors.UserError(
      f'no form was asked for; there are {", ".join(forms.FORMS)}'
    )
  out = pathlib.Path(out)
  results = [
    analyse(
      form, table, loss_definition=loss_definition, delta=delta, starts=starts,
      resamples=resamples, level=level, seed=seed, progress=progress,
    )
    for form in chosen
  ]  # fmt: skip
  if len(results) == 1:
    save(results[0], out / 'fit.json')
    return f'{summary(results[0])} -> {out / "fit.json"}'
  for result in results:
    save(result, out / result.fit.form.name / 'fit.json')
  selection = selections.select([result.fit for result in results], table)
  write_json(out / 'selection.json', selections.to_json(selection))
  lines = [selections.summary(selection), *map(summary, results)]
  return f'{" | ".join(lines)} -> {out / "selection.json"}'


def analyse(
  form: forms.Form,
  table: tables.Table,
  *,
  loss_definition: str = 'final',
  delta: float = estimate.DELTA,
  starts: int = estimate.STARTS,
  resamples: int = bootstraps.RESAMPLES,
  level: float = bootstraps.LEVEL,
  seed: int = 0,
  progress: bool = False,
) -> Result:
  """Fit, bootstrap by run, and the profile of each parameter with a null."""
  with _bar(form.name, 'starts', starts, progress) as bar:
    fit = estimate.fit(
      form, table, delta=delta, starts=starts, seed=seed, advance=bar.update
    )
  with _bar(form.name, 'resamples', resamples, progress) as bar:
    bootstrap = bootstraps.bootstrap(
      fit, table, resamples=resamples, level=level, seed=seed,
      advance=bar.update,
    )  # fmt: skip
  asked = [p.name for p in form.parameters if p.null is not None]
  return Result(
    fit=fit,
    bootstrap=bootstrap,
    profiles={
      name: profiles.profile(form, table, fit, name, level=level)
      for name in asked
    },
    table=table,
    loss_definition=loss_definition,
  )


def summary(result: Result) -> str:
  """One line: the constants with their intervals, and every flag."""
  fit = result.fit
  asked = [
    *result.profiles,
    *(n for n in fit.form.names if n not in result.profiles),
  ]
  numbers = ', '.join(
    f'{name} {fit.params[name]:.4g} {_bracket(*result.interval(name))}'
    for name in asked
  )
  level = f'{result.bootstrap.level:.0%} intervals by {result.bootstrap.unit}'
  derived_tokens = result.table.filters.get('tokens')
  notes = [f'tokens = {derived_tokens}'] if derived_tokens else []
  flags = '; '.join([*result.flags, *notes]) or 'none'
  return (
    f'{fit.form.name}, {result.loss_definition} loss, {fit.rows} rows:'
    f' {numbers} ({level}); flags: {flags}'
  )


def to_json(result: Result) -> dict[str, Any]:
  """The content of fit.json; not yet free of NaN, which write_json mends."""
  fit, bootstrap, table = result.fit, result.bootstrap, result.table
  point = {n: f(fit.params) for n, f in fit.form.derived.items()}
  return {
    'form': fit.form.name,
    'loss_definition': result.loss_definition,
    'table': {
      'path': table.source,
      'sha256': table.sha256,
      'columns': table.mapping,
      'filters': table.filters,
    },
    'rows': fit.rows,
    'dropped': table.dropped,
    'params': fit.params,
    'objective': fit.objective,
    'delta': fit.delta,
    'starts': fit.starts,
    'basin_hit_rate': fit.basin_hit_rate,
    'converged': fit.converged,
    'condition_number': fit.condition_number,
    'identified': fit.identified,
    'flags': list(result.flags),
    'bootstrap': {
      name: dataclasses.asdict(spread)
      for name, spread in bootstrap.intervals.items()
    },
    'level': bootstrap.level,
    'bootstrap_unit': bootstrap.unit,
    'resamples': bootstrap.resamples,
    'profile': {
      name: dataclasses.asdict(p) for name, p in result.profiles.items()
    },
    'derived': {
      name: {'value': value, **dataclasses.asdict(bootstrap.derived[name])}
      for name, value in point.items()
    },
    'aic': fit.aic,
    'bic': fit.bic,
    'seed': fit.seed,
    'seconds': {**fit.seconds, 'bootstrap': bootstrap.seconds},
    'backend': jax.default_backend(),
    'versions': {name: _version(name) for name in _VERSIONED},
  }


def save(result: Result, path: str | pathlib.Path) -> None:
  """Writes fit.json, and the resamples' constants to bootstrap.npz beside it."""
  path = pathlib.Path(path)
  samples: dict[str, Any] = result.bootstrap.samples
  content = io.BytesIO()
  np.savez(content, **samples)
  _write(path.with_name(_SAMPLES), content.getvalue())
  write_json(path, to_json(result))


def load(path: str | pathlib.Path) -> Law:
  """Reads fit.json back.

  Raises:
    UserError: where there is no such file, or it is not one of ours.
  """
  try:
    record = json.loads(pathlib.Path(path).read_text('utf-8'))
  except (OSError, json.JSONDecodeError) as error:
    raise errors.UserError(f'cannot read {str(path)!r}: {error}') from error
  missing = [k for k in _LAW if not isinstance(record, dict) or k not in record]
  if missing:
    raise errors.UserError(
      f'{str(path)!r} is no fit.json: it lacks {", ".join(missing)}'
    )
  samples = None
  beside = pathlib.Path(path).with_name(_SAMPLES)
  if beside.exists():
    with np.load(beside) as file:
      samples = {name: file[name] for name in file.files}
  return Law(forms.get(record['form']), record['params'], record, samples)


def write_json(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Writes JSON at once or not at all; NaN and infinity become null."""
  text = json.dumps(_plain(record), indent=2, allow_nan=False) + '\n'
  _write(path, text.encode())


def _write(path: pathlib.Path, content: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
    file.write(content)
  os.chmod(file.name, 0o644)
  os.replace(file.name, path)


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  if isinstance(value, (np.ndarray, np.generic)):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _bracket(lo: float | None, hi: float | None) -> str:
  ends = (
    '-inf' if lo is None else f'{lo:.4g}',
    'inf' if hi is None else f'{hi:.4g}',
  )
  return f'[{ends[0]}, {ends[1]}]'


def _bar(form: str, what: str, total: int, progress: bool) -> Any:
  return tqdm.tqdm(
    desc=f'{form}: {what}', total=total, disable=not progress, leave=False
  )


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
