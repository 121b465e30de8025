import base64
import html.parser
import io
import re
import shutil

from matplotlib import figure
import matplotlib.image
import pytest

from familial.core import errors
from familial.report import answer
from familial.report import page
from familial.report import results

VOID = {'meta', 'img', 'br', 'link', 'hr', 'input'}


class Checker(html.parser.HTMLParser):
  """Collects what a page holds and checks that its tags close in order."""

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.text = [], [], ''
    self.images, self.links, self.tags = [], [], set()
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    values = dict(attrs)
    self.tags.add(tag)
    self.ids += [values['id']] if 'id' in values else []
    self.links += [values[key] for key in ('href', 'src') if key in values]
    if tag == 'img':
      self.images.append(values)
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1:] != ['style']:
      self.text += data.replace('\u00a0', ' ')


@pytest.fixture(scope='module')
def full(tmp_path_factory, make_study):
  study = make_study(tmp_path_factory.mktemp('full') / 'study')
  study.fill()
  return page.write(study.workdir)


@pytest.fixture(scope='module')
def checked(full):
  return Checker(full.read_text('utf-8'))


def test_page_holds_every_section(checked):
  assert set(checked.ids) >= {
    'answer', 'paired', 'gamma', 'isoflop', 'exits', 'twins', 'law', 'profile',
    'leverage', 'branch', 'weighting', 'frozen', 'gradients', 'runs', 'record',
    'terms',
  }  # fmt: skip
  assert 'unmeasured' not in checked.ids
  assert len(checked.ids) == len(set(checked.ids))


def test_page_needs_nothing_else(full, checked):
  text = full.read_text('utf-8')
  assert not re.search(r'https?://|url\(|@import', text)
  assert not checked.tags & {'script', 'link', 'iframe', 'object'}
  for link in checked.links:
    assert link.startswith(('#', 'data:image/png;base64,'))
  inner = [link[1:] for link in checked.links if link.startswith('#')]
  assert inner and set(inner) <= set(checked.ids)


def test_what_was_measured_comes_first(checked):
  start = checked.text.index('The answer', checked.text.index('The answer') + 1)
  text = checked.text[start:]
  places = [
    text.index(part)
    for part in (
      "At equal FLOPs the last exit's loss is above",
      'Against dense twins of their exact shapes',
      'By the law, γ = 0.031 [0.025, 0.037] for the last exit at equal N and D',
      "The other heads' FLOPs come on top",
      'The interval excludes 0',
      'for each exit against',
    )
  ]
  assert places == sorted(places)
  assert 'with G = 4 (16 pairs of shape and budget; 95 % intervals)' in text
  assert 'G = 8 was not trained' in text
  # Of the answer's cards too.
  assert text.index('γ measured, last exit') < text.index('γ by the law, last')


def test_aic_of_rows_that_share_runs_is_doubted(checked):
  assert checked.text.count('runs as independent, which they are not') == 1
  start = checked.text.index('Each exit: total')
  assert 'as independent' in checked.text[start : start + 300]


@pytest.mark.slow
def test_a_gamma_that_changes_with_the_budget_is_doubted(study):
  study.grid()
  study.fits()
  summary = study.everything()
  steady = {'loss': 'final', 'equal': 'tokens', 'value': 0.0, 'lo': -0.1,
            'hi': 0.1}  # fmt: skip
  for trend, doubted in (
    (steady, False),
    ({**steady, 'value': 0.2, 'lo': 0.1, 'hi': 0.3}, True),
  ):
    summary['paired']['trend'] = [trend]
    study.summary(**summary)
    text = Checker(page.write(study.workdir).read_text('utf-8')).text
    assert ('γ, last exit, changes with the budget' in text) == doubted


def test_misfit_along_depth_is_told_beside_the_law(checked):
  assert 'Of dense models alone it is' in checked.text
  assert '% at 2 layers' in checked.text


def test_controls_say_what_their_noise_hides(checked):
  assert 'for 25 % more FLOPs, the trunk included' in checked.text
  assert checked.text.count('differences below about 0.6 % are not') == 2


def test_leverage_is_measured_beside_the_law(checked):
  assert 'needs 0.90 of C at G = 2' in checked.text
  assert 'at most 1.9 at G = 2 and 3.4 at G = 4' in checked.text
  assert 'Intervals by bootstrap of the dense law: [' in checked.text


def test_images_are_png_and_described(full, checked):
  assert len(checked.images) == len(list(full.parent.glob('figures/*.png')))
  for image in checked.images:
    data = base64.b64decode(image['src'].partition(',')[2])
    pixels = matplotlib.image.imread(io.BytesIO(data), format='png')
    assert pixels.shape[1] / pixels.shape[0] == pytest.approx(
      int(image['width']) / int(image['height']), rel=0.01
    )
    assert pixels.std() > 0.01  # something is drawn
    assert len(image['alt']) > 20


def test_page_names_what_to_doubt(checked):
  text = checked.text
  assert '1 cell diverged, in no figure and no fit: wild' in text
  assert 'E not identified (fit of' in text
  assert '1 cell runs beyond 4 epochs' in text
  assert 'f00dfeed' in text


def test_rows_alone_make_a_page(study):
  study.grid()
  text = page.write(study.workdir).read_text('utf-8')
  checked = Checker(text)
  assert 'No exponent of G was fitted: 48 runs' in checked.text
  assert {'isoflop', 'exits', 'unmeasured', 'runs'} <= set(checked.ids)
  assert not {'gamma', 'law', 'twins', 'weighting'} & set(checked.ids)


def test_unfinished_study_makes_a_page(study):
  """A plan of which one cell diverged, one runs and the others wait."""
  study.run(1e12, 48, 8, 4, status='diverged', cell='wild')
  study.run(1e12, 48, 8, 2, status='running', cell='going')
  study.run(1e12, 32, 4, 1, cell='gone')
  study.plan()
  shutil.rmtree(study.workdir / 'cells' / '002')
  study.summary()
  checked = Checker(page.write(study.workdir).read_text('utf-8'))
  for text in ('1 cell diverged', '1 cell running', '1 cell not run'):
    assert text in checked.text
  assert not checked.images


# Figures are made; to draw them, which `full` does, takes seconds.
@pytest.mark.parametrize(
  'drawn', [False, pytest.param(True, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
  'missing', [('noise', 'cost'), ('gamma', 'twins'), ('paired', 'minima')]
)
def test_missing_keys_of_the_summary_are_left_out(
  study, missing, drawn, monkeypatch
):
  if not drawn:
    monkeypatch.setattr(figure.Figure, 'savefig', lambda *_, **__: None)
  for exits in (1, 2):
    study.run(1e12, 48, 8, exits)
    study.run(1e12, 80, 8, exits)
  study.plan(power=None, corpus={'name': 'synthetic'})
  study.fit('final', 'familial_reducible', 0.05, -100.0)
  summary = study.everything()
  for key in missing:
    del summary[key]
  study.summary(**summary)
  checked = Checker(page.write(study.workdir).read_text('utf-8'))
  assert 'γ =' in checked.text


def test_names_from_the_folder_are_escaped(study):
  evil = '<script>alert("x")</script>&$x^2$'
  study.run(1e12, 48, 8, 2, cell=evil)
  study.run(1e12, 48, 8, 4, cell=evil + 'd', status='diverged')
  study.plan(title=evil, warnings=[evil], corpus={'name': evil})
  study.fit('final', 'familial_total', 0.03, -100.0)
  summary = study.everything()
  for row in summary['weighting']:
    row['weighting'] = evil
  summary['machine'] = {evil: evil}
  summary['summary_line'] = evil
  summary['gamma'][0]['flags'] = [evil]
  study.summary(**summary)
  text = page.write(study.workdir).read_text('utf-8')
  checked = Checker(text)
  assert not checked.tags & {'script'}
  assert '<script' not in text
  assert checked.text.count(evil) >= 6


def test_a_folder_of_nothing_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match='familial run'):
    page.write(tmp_path)


def test_page_is_the_same_twice(study):
  study.run(1e12, 48, 8, 2)
  study.plan()
  first = page.write(study.workdir).read_bytes()
  assert page.write(study.workdir).read_bytes() == first


def test_penalty_of_the_reducible_form_spares_the_floor(study):
  study.run(5e12, 48, 8, 1)
  study.fit('final', 'familial_total', 0.03, 0.0)
  study.fit('final', 'familial_reducible', 0.03, 0.0)
  found = results.read(study.workdir)
  dense = found.dense_loss()
  for estimate in found.gammas():
    floor = 0 if estimate.form == 'familial_total' else study.LAW['E']
    value, low, high = answer.penalty(found, estimate, 4)
    assert value == pytest.approx((dense - floor) * (4**0.03 - 1))
    assert low < value < high


def test_last_evaluation_counts(study):
  rows = study.run(1e12, 48, 8, 2)
  (run,) = results.read(study.workdir).runs
  assert run.finished
  assert run.losses == tuple(row['loss'] for row in rows)
  assert run.final == rows[-1]['loss']
  assert run.mean == pytest.approx((rows[0]['loss'] + rows[1]['loss']) / 2)
