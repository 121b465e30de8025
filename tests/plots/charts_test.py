"""Every chart is drawn from published results; three look as they did."""

import functools
import inspect
import io
import json
import pathlib

import numpy as np
from PIL import Image
import pytest
import vl_convert

from familial.core import run_folder
from familial.core import storage
from familial.laws import table as tables_lib
from familial.plots import depth_law
from familial.plots import families
from familial.plots import isoflop
from familial.plots import planning
from familial.plots import regimes
from familial.plots import theme
from familial.plots import toys
from familial.plots import training
from familial.studies import registry
from familial.studies import study as study_lib

pytestmark = pytest.mark.filterwarnings('error')
DATA = pathlib.Path(__file__).parents[1] / 'data'
RESULTS = DATA.parents[1] / 'experiments' / 'results'
MODULES = (isoflop, families, depth_law, regimes, toys, training, planning)


@functools.cache
def study(name):
  """The results of a published study, and the tables of its summary."""
  results = study_lib.read(RESULTS / name)
  summary = registry.of_plan(results.plan).read_summary(RESULTS / name)
  return results, summary.tables


def isoflop_charts():
  results, tables = study('familial_law_cpu')
  runs = results.finished
  laws = isoflop.laws(results, tables)
  one = laws['final']
  for name in ('paired', 'heat', 'twins', 'gamma', 'leverage', 'weighting',
               'frozen', 'gradients'):  # fmt: skip
    yield getattr(isoflop, name), (tables,)
  yield isoflop.curves, (runs, tables.minima, 'mean')
  yield isoflop.exits, (runs, tables.twins)
  yield isoflop.profile, (laws,)
  yield isoflop.law, (one, 'a title')
  yield isoflop.residuals, (one, 'a title')


def other_charts(folder):
  tables = study('three_families_cpu')[1]
  for name in ('heat', 'compared', 'agreement'):
    yield getattr(families, name), (tables,)
  tables = study('depth_toys_cpu')[1]
  for name in ('loss', 'exponents', 'temperatures', 'evolution'):
    yield getattr(toys, name), (tables,)
  tables = study('depth_regimes_cpu')[1]
  for name in ('statistics', 'layers'):
    yield getattr(regimes, name), (tables, regimes.depths(tables)[0])
  results, tables = study('depth_law_cpu')
  yield depth_law.grid, (tables, results.rows)
  law, table = tables.law(), tables_lib.from_rows(results.rows, 'exit')
  yield depth_law.shapes, (law, table, 'a title')
  yield depth_law.cutoffs, ('width_depth', tables.cutoffs)
  yield depth_law.forms, (tables.candidates,)
  run = DATA / 'schema_1' / 'isoflop' / 'cells' / 'c1e8_w12_d2_g2'
  yield training.losses, (storage.read_rows(run / run_folder.ROWS),)
  progress = [
    {'step': i, 'tokens': 64 * i, 'loss': 3 / i, 'rate': 0.1,
     'gradient_norm': 1.0, 'tokens_per_second': 1e4}
    for i in range(1, 9)
  ]  # fmt: skip
  storage.append(folder / run_folder.PROGRESS, progress)
  yield training.curves, ([folder],)
  plan = RESULTS / 'plans' / 'single_1b_v5e_4x4.json'
  yield planning.limits, (json.loads(plan.read_text('utf-8')),)


def chart_functions():
  """The public functions of the modules that return a chart."""
  for module in MODULES:
    for name, function in inspect.getmembers(module, inspect.isfunction):
      own = function.__module__ == module.__name__ and name[0] != '_'
      returned = inspect.signature(function).return_annotation
      if own and returned in (theme.Chart, theme.Chart | None):
        yield function


def test_every_chart_is_a_specification_without_warnings(tmp_path):
  drawn = set()
  for function, arguments in (*isoflop_charts(), *other_charts(tmp_path)):
    specification = theme.specification(function(*arguments))
    assert vl_convert.vegalite_to_vega(specification)['marks']
    json.dumps(specification, allow_nan=False)
    drawn.add(function)
  assert drawn == set(chart_functions())


def picture(chart):
  """Returns a chart in grey, 400 pixels wide."""
  png = vl_convert.vegalite_to_png(json.dumps(theme.specification(chart)))
  image = Image.open(io.BytesIO(png)).convert('L')
  height = round(400 * image.height / image.width)
  return image.resize((400, height), Image.Resampling.BOX)


# To draw them anew: remove the file, and look at what the failed test wrote.
@pytest.mark.parametrize('name', ['heat', 'paired', 'compared'])
def test_a_chart_looks_as_it_did(name):
  if name == 'compared':
    chart = families.compared(study('three_families_cpu')[1])
  else:
    chart = getattr(isoflop, name)(study('familial_law_cpu')[1])
  found, path = picture(chart), DATA / 'plots' / f'{name}.png'
  if not path.exists():
    found.save(path, optimize=True)
    pytest.fail(f'{path} was missing; it is drawn now')
  known = Image.open(path)
  assert path.stat().st_size < 60_000
  assert found.height == pytest.approx(known.height, abs=4)
  # Letters of another font differ, and the place of a mark by a pixel.
  size = 100, known.height // 4
  found, known = (
    np.asarray(image.resize(size, Image.Resampling.BOX), np.float64) / 255
    for image in (found, known)
  )
  difference = np.abs(found - known)
  assert difference.mean() < 0.005 and difference.max() < 0.25
