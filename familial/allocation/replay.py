"""Known curves, replayed as if they were being trained."""

from collections.abc import Mapping
from collections.abc import Sequence

from familial.allocation import curves as curves_lib


class Replay:
  """A source whose candidates' futures are known.

  Where training is cut between two points of a table, the loss there is drawn
  towards the later one (linear in ln C), which live training would not know yet.

  Attributes:
    names: of the candidates.
    features: of each.
  """

  def __init__(self, curves: Sequence[curves_lib.Curve]):
    """Takes whole curves; a candidate's training ends where its curve does."""
    self.names: Sequence[str] = [curve.name for curve in curves]
    self.features: Sequence[Mapping[str, float]] = [
      curve.features for curve in curves
    ]
    self._curves = curves

  def limit(self, candidate: int) -> float:
    """Returns the FLOPs at a curve's end.

    That one will diverge is not known before: it may go as far as the longest.
    """
    curve = self._curves[candidate]
    if curve.diverged:
      return max(curve.end for curve in self._curves)
    # What was spent without a loss to show for it is no candidate's to spend.
    return float(curve.flops[-1]) if len(curve.flops) else curve.end

  def step(self, candidate: int) -> float:
    """Returns the least FLOPs by which a candidate goes on: curves have none."""
    del candidate
    return 0.0

  def point(self, candidate: int, flops: float) -> Mapping[str, float]:
    """Returns N, D and G, as known, after so many FLOPs; D grows with them."""
    curve = self._curves[candidate]
    last = {name: float(values[-1]) for name, values in curve.columns.items()}
    if 'D' in last:
      last['D'] *= flops / float(curve.flops[-1])
    return last

  def advance(
    self, targets: Mapping[int, float]
  ) -> Mapping[int, curves_lib.Curve]:
    """Returns curves as far as targets."""
    return {i: self._curves[i].cut(flops) for i, flops in targets.items()}

  def future(self, candidate: int, flops: float) -> float:
    """Returns a candidate's lowest loss within so many FLOPs."""
    return float(self._curves[candidate].at(flops))
