"""The seeded faults can still be put into the package."""

import pytest

from tests.faults import seeded

FAULTS = seeded.faults()


@pytest.mark.parametrize('fault', FAULTS, ids=[f['id'] for f in FAULTS])
def test_a_fault_has_one_place_and_is_python(fault):
  [path] = seeded.places(fault)
  changed = path.read_text().replace(fault['old'], fault['new'])
  compile(changed, path, 'exec')
