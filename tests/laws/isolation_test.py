import pathlib
import subprocess
import sys

LAWS = pathlib.Path(__file__).parents[2] / 'familial' / 'laws'


def test_laws_import_only_core_and_no_network_library():
  """Frames and validation are imported where they are used."""
  code = '\n'.join(
    [
      'import sys',
      'for name in ("flax", "optax", "orbax", "matplotlib", "altair", "polars",',
      '             "pydantic", "familial.plots", "familial.training"):',
      '  sys.modules[name] = None',
      *(f'import familial.laws.{p.stem}' for p in sorted(LAWS.glob('[a-z]*.py'))),
      'rooms = {name.split(".")[1] for name in sys.modules',
      '         if name.startswith("familial.") and sys.modules[name]}',
      'assert rooms == {"core", "laws"}, rooms',
    ]
  )  # fmt: skip
  subprocess.run([sys.executable, '-c', code], check=True, cwd=LAWS.parents[1])
