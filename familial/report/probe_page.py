"""Files of `familial probe`: JSON, a page and figures for each model and for all."""

from collections.abc import Sequence
import os
import pathlib

from familial.analysis import layers
from familial.analysis import probe as probe_lib
from familial.plots import probe as plots
from familial.report import render


def write(
  probes: Sequence[probe_lib.Probe], out: str | os.PathLike[str]
) -> str:
  """Writes probes, pages and figures; returns a summary line.

  Args:
    probes: of one model or several.
    out: folder of a single probe; each of several has a folder in it, named as
      its run, beside `depth.json` and `depth.png`.
  """
  out = pathlib.Path(out)
  if len(probes) == 1:
    _write(probes[0], out)
    return f'{line(probes[0])} -> {out / "probe.json"}'
  folders: dict[str, probe_lib.Probe] = {}
  for probe in probes:
    name = probe.model.run
    same = sum(other.model.run == name for other in folders.values())
    folders[f'{name}_{same + 1}' if same else name] = probe
  for name, probe in folders.items():
    _write(probe, out / name)
  scaling = probe_lib.of_depths(probes)
  probe_lib.write_depths(scaling, out / 'depth.json')
  render.write(
    out,
    'probes',
    figures='',
    title=f'Probes of {len(probes)} models',
    scaling=scaling,
    models=[
      {
        'name': name,
        'depth': probe.model.depth,
        'turn': turn,
        'early': probe.early,
        'regime': probe.regime and probe.regime.regime,
      }
      for (name, probe), turn in zip(
        folders.items(), scaling.turns, strict=True
      )
    ],
    plots=plots,
  )
  parts = [f'{len(probes)} models']
  if scaling.angle_exponent is not None:
    parts.append(
      f'turn of a middle layer: depth^a, a = {scaling.angle_exponent}'
    )
  if scaling.regime is not None:
    parts.append(f'{scaling.regime}')
  return f'{"; ".join(parts)} -> {out / "depth.json"}'


def line(probe: probe_lib.Probe) -> str:
  """Returns one line on a probe."""
  model = probe.model
  parts = [f'{100 * probe.early:.1f} % of {probe.tokens:,} tokens stop early']
  if probe.regime is not None:
    alignment = next(
      item.value.value
      for item in probe.regime.evidence
      if item.name == 'alignment'
    )
    parts = [
      f'{probe.regime}',
      f'alignment of neighbouring updates {alignment:.2f}',
      *parts,
    ]
  return (
    f'{model.run} at step {model.step}, {model.depth} layers: '
    f'{", ".join(parts)}'
  )


def _write(probe: probe_lib.Probe, folder: pathlib.Path) -> None:
  probe_lib.write(probe, folder / 'probe.json')
  render.write(
    folder,
    'probe',
    figures='',
    title=f'Probe of {plots.name(probe)}',
    probe=probe,
    quantities=layers.DEFINITIONS,
    plots=plots,
  )
