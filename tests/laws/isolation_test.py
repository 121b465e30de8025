import pathlib
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).parents[2] / 'familial'


def test_laws_and_allocation_import_no_training_and_no_frames():
  """Frames and validation are imported where they are used."""

  def imports(room):
    names = sorted(path.stem for path in (PACKAGE / room).glob('[a-z]*.py'))
    return [f'import familial.{room}.{name}' for name in names]

  code = '\n'.join(
    [
      'import sys',
      'for name in ("flax", "optax", "orbax", "matplotlib", "altair", "polars",',
      '             "pydantic", "familial.plots", "familial.training"):',
      '  sys.modules[name] = None',
      *imports('laws'),
      'rooms = {name.split(".")[1] for name in sys.modules',
      '         if name.startswith("familial.") and sys.modules[name]}',
      'assert rooms == {"core", "laws"}, rooms',
      'del sys.modules["optax"]',
      *imports('allocation'),
    ]
  )  # fmt: skip
  subprocess.run([sys.executable, '-c', code], check=True, cwd=PACKAGE.parent)
