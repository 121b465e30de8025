"""The pages of the study of L(N, D, G) and of a run, and what drives them."""

import dataclasses
import html
import json
import pathlib
import re
import shutil
import subprocess

import pytest

from familial.core import errors
from familial.core import storage
from familial.report import page
from familial.studies import isoflop
from familial.studies import study as study_lib
from tests.report.conftest import Page

ROOT = pathlib.Path(__file__).parents[2]
TINY = ROOT / 'tests' / 'data' / 'schema_1' / 'isoflop'
RESULTS = ROOT / 'experiments' / 'results' / 'familial_law_cpu'
EVIL = '<script>alert("x")</script>&{{ 7 * 7 }}'
SECTIONS = [
  'answer', 'paired', 'twins', 'exits', 'isoflop', 'gamma', 'law', 'leverage',
  'controls', 'runs', 'record', 'terms',
]  # fmt: skip
FIGURES = {
  'heat', 'paired', 'twins', 'exits', 'isoflop_final', 'isoflop_mean', 'gamma',
  'profile', 'leverage', 'weighting', 'frozen', 'gradients',
  *(f'{kind}_{loss}' for kind in ('law', 'residuals')
    for loss in ('final', 'mean', 'exit')),
}  # fmt: skip


@pytest.mark.parametrize('folder', [TINY, RESULTS], ids=lambda path: path.name)
def test_page_holds_all_of_a_study(tmp_path, undrawn, folder):
  copy = tmp_path / 'study'
  shutil.copytree(folder, copy)
  path = page.write(copy)
  found = Page(path)
  assert found.sections == SECTIONS
  # Tiny runs have no gradients.
  assert found.figures == FIGURES - (
    set() if folder == RESULTS else {'gradients'}
  )
  results = study_lib.read(copy)
  assert found.rows['runs'] == len(results.runs) + 1
  for run in results.runs:
    assert run.cell in found.content
  assert results.plan['title'] in found.content
  for link in found.links:
    if not link.startswith('#') and '/figures/' not in f'/{link}':
      assert (path.parent / link).exists(), link


def test_page_escapes_what_a_folder_says(tmp_path, undrawn):
  tags = []
  for name in ('harmless', EVIL):
    copy = tmp_path / f'{len(tags)}'
    copy.mkdir()
    rows = [
      {**row, 'cell': f'{name}{row["cell"]}'}
      for row in study_lib.read(TINY).rows
    ]
    storage.append(copy / 'rows.jsonl', rows)
    plan = {'title': name, 'corpus': {'name': name, 'fingerprint': name,
            'train_tokens': 1, 'heldout_tokens': 1, 'vocab_size': 1}}  # fmt: skip
    storage.write_json(
      copy / 'plan.json', {'schema': 1, 'study': 'isoflop', **plan, 'cells': []}
    )
    results = study_lib.read(copy)
    summary = isoflop.ISOFLOP.summarise(None, results)
    tables = dataclasses.replace(
      summary.tables,
      weighting=tuple(
        dataclasses.replace(row, weighting=name)
        for row in summary.tables.weighting
      ),
    )
    study_lib.write_summary(
      copy,
      dataclasses.replace(
        summary, summary_line=name, machine={name: name, 'command': name},
        flags=(name,) * 5, tables=tables,
      ),
    )  # fmt: skip
    found = Page(page.write(copy))
    assert found.content.count(name) > 20
    tags.append(found.tags)
  assert tags[0] == tags[1]


def test_a_study_under_way_has_a_page(tmp_path, undrawn):
  """One run is left, and a plan of all: no law, no pair."""
  copy = tmp_path / 'study'
  shutil.copytree(TINY, copy, ignore=shutil.ignore_patterns('fits', 'summary*'))
  first, *others = sorted((copy / 'cells').iterdir())
  for folder in others:
    shutil.rmtree(folder)
  path = page.write(copy)
  found = Page(path)
  results = study_lib.read(copy)
  assert [run.cell for run in results.finished] == [first.name]
  assert not {'paired', 'twins', 'law', 'leverage'} & set(found.sections)
  assert {'answer', 'runs', 'record'} <= set(found.sections)
  assert found.rows['runs'] == len(results.runs) + 1
  before = path.read_bytes()
  assert page.write(copy).read_bytes() == before


def test_a_run_has_a_page(tmp_path, undrawn):
  shutil.copytree(TINY, tmp_path / 'study')
  folder = next((tmp_path / 'study' / 'cells').iterdir())
  storage.write_json(folder / 'config.json', {'schema': 1, 'cell': EVIL})
  path = page.write(folder)
  found = Page(path)
  assert 'losses' in found.figures
  assert folder.name in found.content and EVIL in found.content.replace(
    '\\"', '"'
  )


def test_results_without_tables_or_a_config_are_refused(tmp_path):
  shutil.copytree(
    TINY, tmp_path / 'study', ignore=shutil.ignore_patterns('config.json')
  )
  with pytest.raises(errors.UserError, match=r'summary\.json'):
    page.write(tmp_path / 'study')


# Waits for the charts, then does what a reader does and writes what came of it.
DRIVE = """<script>
const wait = (test) => new Promise((done) => {
  const look = () => { const found = test(); found ? done(found) : setTimeout(look, 50); };
  look();
});
(async () => {
  const found = {};
  const chart = document.getElementById('figure-isoflop_final');
  await wait(() => chart.view && chart.querySelector('svg .mark-symbol path'));
  found.figures = [...document.querySelectorAll('.chart')].filter((c) => c.querySelector('svg')).length;
  for (const path of chart.querySelectorAll('.mark-symbol path')) {
    const at = path.getBoundingClientRect();
    for (const kind of ['mouseover', 'mousemove', 'pointerover', 'pointermove'])
      path.dispatchEvent(new MouseEvent(kind, {bubbles: true, clientX: at.x, clientY: at.y}));
    await new Promise((done) => setTimeout(done, 20));
    const tip = document.getElementById('vg-tooltip-element');
    if (tip && tip.textContent) { found.tip = tip.textContent; break; }
  }
  const box = document.querySelector('[data-csv="runs"]');
  const names = () => [...box.querySelectorAll('tbody tr')].filter((row) => !row.hidden).map((row) => row.cells[0].textContent.trim());
  const head = [...box.querySelectorAll('th')].find((th) => th.textContent.trim() === 'C');
  const column = [...box.querySelectorAll('th')].indexOf(head);
  const keys = () => [...box.querySelectorAll('tbody tr')].map((row) => Number(row.cells[column].dataset.key));
  head.click(); found.ascending = keys();
  head.click(); found.descending = keys();
  found.all = names();
  const filter = box.querySelector('input');
  filter.value = 'twin'; filter.dispatchEvent(new Event('input'));
  found.filtered = names();
  const out = document.createElement('pre');
  out.id = 'found'; out.textContent = JSON.stringify(found);
  document.body.append(out);
})();
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('chromium'), reason='needs chromium')
def test_page_answers_to_its_reader(tmp_path, undrawn):
  shutil.copytree(TINY, tmp_path / 'study')
  path = page.write(tmp_path / 'study')
  body, end, rest = path.read_text('utf-8').rpartition('</body>')
  path.write_text(f'{body}{DRIVE}{end}{rest}', 'utf-8')
  done = subprocess.run(
    [
      'chromium', '--headless', '--no-sandbox', '--disable-gpu',
      '--no-first-run', '--disable-background-networking',
      f'--user-data-dir={tmp_path}/chromium', '--virtual-time-budget=60000',
      '--window-size=1200,2000', '--dump-dom', f'file://{path}',
    ],
    capture_output=True, text=True, timeout=240,
  )  # fmt: skip
  written = re.search('<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
  assert written, done.stderr[-2000:]
  found = json.loads(html.unescape(written.group(1)))
  runs = {run.cell for run in study_lib.read(TINY).runs}
  assert any(cell in found['tip'] for cell in runs)
  assert set(found['all']) == runs
  assert found['ascending'] == sorted(found['ascending'])
  assert found['descending'] == found['ascending'][::-1]
  assert set(found['filtered']) == {cell for cell in runs if 'twin' in cell}
  assert found['filtered'] and found['figures'] == len(FIGURES) - 1
