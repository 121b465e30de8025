"""A replay: policies compared on random draws of known curves."""

from collections.abc import Iterator
import dataclasses
import json
import pathlib
import time
from typing import Any

import numpy as np
import tqdm

from familial.allocation import compared
from familial.allocation import config as config_lib
from familial.allocation import curves as curves_lib
from familial.allocation import frontier
from familial.allocation import halving
from familial.allocation import optimal_design
from familial.allocation import policies
from familial.allocation import replay
from familial.allocation import synthetic
from familial.core import errors
from familial.core import storage
from familial.laws import fit_record
from familial.laws import forms
from familial.laws import inference

RESULT = 'allocation.json'
DRAWS = 'draws.jsonl'


def run(
  config: config_lib.ReplayConfig,
  out: str | pathlib.Path,
  draw: bool = True,
) -> str:
  """Replays every cell on every table; returns the summary line.

  Writes OUT/allocation.json, OUT/draws.jsonl (one row a draw and policy),
  OUT/index.html and its figures.

  Args:
    config: of the replay.
    out: folder.
    draw: page and figures too.

  Raises:
    UserError: if the table cannot be used, or has fewer curves than a cell
      takes.
  """
  for name in config.policies:
    policies.check(name)
    if name == policies.LAW:
      optimal_design.check(config.law)
  out = pathlib.Path(out)
  start = time.monotonic()
  cells: list[dict[str, Any]] = []
  rows: list[dict[str, Any]] = []
  examples = []
  pools = dict(tables(config))
  for pool in pools.values():
    check_law(pool, config.law)
    for candidates, budget in config.cells:
      check(pool, candidates, budget, config.eta)
  for name, pool in pools.items():
    for candidates, budget in config.cells:
      cell, draws, example = _cell(config, name, pool, candidates, budget)
      cells.append(cell)
      rows += draws
      examples.append(example)
      print(text(cell), flush=True)
  result = {
    'schema': storage.SCHEMA,
    'title': config.title,
    'config': dataclasses.asdict(config),
    'level': compared.LEVEL,
    'frontiers': {
      name: frontier.described(pool.curves) for name, pool in pools.items()
    },
    'cells': cells,
    'seconds': time.monotonic() - start,
    'versions': inference.versions(),
    'summary_line': line(cells),
  }
  fit_record.write_json(out / RESULT, result)
  storage.write_text(
    out / DRAWS,
    ''.join(json.dumps(fit_record.plain(row)) + '\n' for row in rows),
  )
  path = out / RESULT
  if draw:
    from familial.report import replay_page  # Brings matplotlib.

    path = replay_page.write(result, examples, out)
  return f'{result["summary_line"]} -> {path}'


def tables(
  config: config_lib.ReplayConfig,
) -> Iterator[tuple[str, curves_lib.Curves]]:
  """Yields the curves that are replayed, by name."""
  if config.table:
    yield (
      pathlib.Path(config.table).stem,
      curves_lib.read(config.table, config.columns, config.curve, config.loss),
    )
    return
  for noise in config.noises:
    yield (
      noise,
      synthetic.curves(config.curves, noise, config.seed, config.constants),
    )


def check(
  pool: curves_lib.Curves, candidates: int, budget: float, eta: int
) -> None:
  """Refuses a cell that curves cannot play."""
  if candidates > len(pool.curves):
    raise errors.UserError(
      f'candidates: {candidates}; {pool.source} has {len(pool.curves)} curves'
    )
  halving.check(candidates, budget, eta)
  rounds = len(halving.survivors(candidates, eta))
  share = budget / (candidates * rounds)
  first = min(curve.flops[0] for curve in pool.curves)
  if share < first:
    raise errors.UserError(
      f'budget: {budget:g} FLOPs give each of {candidates} candidates'
      f' {share:.3g} in the first of {rounds} rounds, and no curve of'
      f' {pool.source} has a loss before {first:.3g}'
    )


def check_law(pool: curves_lib.Curves, law: config_lib.Law) -> None:
  """Refuses a law that curves lack columns or rows for."""
  if not law.form:
    return
  form = forms.get(law.form)
  if not {'N', 'D'} <= set(form.columns):
    raise errors.UserError(
      f'--form: {law.form!r} is not allowed; a law that is asked for the best'
      " loss of a compute has N and D; --form='' fits no law"
    )
  table, _ = compared.rows([pool.curves], law.where)
  if not table.rows:
    raise errors.UserError(
      f'--where: no row of {pool.source} meets {", ".join(law.where)}'
    )
  for column in form.columns:
    if column not in table.columns:
      raise errors.UserError(
        f'--form: {law.form!r} needs column {column}; {pool.source} has'
        f" {', '.join(table.columns)}; --form='' fits no law"
      )


def _cell(
  config: config_lib.ReplayConfig,
  name: str,
  pool: curves_lib.Curves,
  candidates: int,
  budget: float,
) -> tuple[dict[str, Any], list[dict[str, Any]], Any]:
  """One comparison: its record, a row a draw and policy, and its first draw."""
  rng = np.random.default_rng(config.seed)
  # All of them can be chosen in one way.
  count = 1 if candidates == len(pool.curves) else config.draws
  chosen = [
    rng.choice(len(pool.curves), candidates, replace=False)
    for _ in range(count)
  ]
  grids = [[pool.curves[i] for i in each] for each in chosen]
  allocations: dict[str, list[halving.Allocation]] = {}
  seconds: dict[str, float] = {}
  label = f'{name}: {candidates} candidates, {budget:g} FLOPs'
  names = dict.fromkeys((compared.BASE, compared.BOUND, *config.policies))
  for policy in tqdm.tqdm(names, desc=label, disable=None, leave=False):
    tick = time.monotonic()
    sources = [replay.Replay(grid) for grid in grids]
    if policy == policies.LAW:
      # What it is compared by grows with what is spent: it gets as much as the
      # base policy could make use of in the same draw.
      budgets = [base.total for base in allocations[compared.BASE]]
      allocations[policy] = optimal_design.run(sources, budgets, config.law)
    else:
      allocations[policy] = policies.allocate(
        policy, sources, budget, config.eta, config.law, config.seed
      )
    seconds[policy] = time.monotonic() - tick
  found = compared.outcomes(allocations, grids, budget, config.law, pool.law)
  cell = {
    'table': name,
    'source': {'path': pool.source, 'sha256': pool.sha256},
    'flags': list(pool.flags),
    'curves': len(pool.curves),
    'candidates': candidates,
    'budget': budget,
    'eta': config.eta,
    'rounds': list(halving.survivors(candidates, config.eta)),
    'draws': count,
    'policies': compared.summary(found),
    'calibration': {
      policy: compared.calibration(mine, grids)
      for policy, mine in allocations.items()
      if policy in policies.SURROGATES
    },
    'seconds': seconds,
  }
  rows = [
    {
      'table': name,
      'candidates': candidates,
      'budget': budget,
      'draw': draw,
      'policy': policy,
      'chosen': [pool.curves[i].name for i in chosen[draw]],
      'kept': [list(r.kept) for r in allocations[policy][draw].rounds],
      **{key: float(values[draw]) for key, values in mine._asdict().items()},
    }
    for policy, mine in found.items()
    for draw in range(count)
  ]
  example = grids[0], {p: mine[0] for p, mine in allocations.items()}
  return cell, rows, example


def text(cell: dict[str, Any]) -> str:
  """A cell as a person reads it."""
  lines = [
    '',
    f'{cell["table"]}: {cell["candidates"]} of {cell["curves"]} curves,'
    f' {cell["budget"]:g} FLOPs, {cell["draws"]} draws',
    *cell['flags'],
    f'{"policy":<26}{"spent":>6}{"loss":>8}{"gain over sh":>26}{"of oracle":>10}'
    f'{"AbC":>7}{"law off by":>11}{"fits":>6}',
  ]
  for name, row in cell['policies'].items():
    gain = row['gain']
    lines.append(
      f'{name:<26}{row["spent"]["value"] / cell["budget"]:>6.0%}'
      f'{_number(row["best"], ".4f"):>8}'
      f'{_number(gain, "+.2%"):>9} [{_end(gain, "lo")}, {_end(gain, "hi")}]'
      f'{_number(row.get("share_of_bound"), ".0%"):>10}'
      f'{_number(row["area"], ".2f"):>7}{_number(row["law_error"], ".1%"):>11}'
      f'{row["law_fits"]:>6}'
    )
  return '\n'.join(lines)


def line(cells: list[dict[str, Any]]) -> str:
  """All cells in one line: what each policy gained over Successive Halving."""
  found = []
  for cell in cells:
    gains = ', '.join(
      f'{name} {_number(row["gain"], "+.2%")}'
      for name, row in cell['policies'].items()
      if name != compared.BASE
    )
    found.append(
      f'{cell["table"]} ({cell["candidates"]}, {cell["budget"]:g}): {gains}'
    )
  return 'gain over sh: ' + ' | '.join(found)


def _number(interval: dict[str, Any] | None, style: str) -> str:
  value = (interval or {}).get('value')
  return '-' if value is None else format(value, style)


def _end(interval: dict[str, Any], end: str) -> str:
  value = interval[end]
  return '-' if value is None else f'{value:+.2%}'
