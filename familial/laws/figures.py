"""The figures of a fit."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from familial.laws import result


def draw(found: result.Result, folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the figures as PNG; returns their paths."""
  raise NotImplementedError
