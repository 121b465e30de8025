"""What a subcommand is, and the flags that several have."""

from collections.abc import Callable
import dataclasses

from absl import flags

from familial.core import errors


@dataclasses.dataclass(frozen=True)
class Command:
  """A subcommand.

  Attributes:
    help: one line.
    define: declares its flags.
    run: takes the parsed flags, returns the summary line.
  """

  help: str
  define: Callable[[flags.FlagValues], None]
  run: Callable[[flags.FlagValues], str]


def define_config(
  values: flags.FlagValues,
  default: str | None,
  name: str = 'config',
  more: str = '',
) -> None:
  """Declares --config, with a default file or none; perhaps of another name.

  Args:
    values: where flags are declared.
    default: FILE.py; None if one must be given.
    name: of the flag.
    more: what its help says after what it says of every config.
  """
  from ml_collections import config_flags

  config_flags.DEFINE_config_file(
    name,
    default,
    'Python file with a get_config(arg), as FILE.py or FILE.py:VARIANT; single '
    f'values are overridden by --{name}.key=value. {more}'.rstrip(),
    lock_config=True,
    flag_values=values,
  )
  if default is None:
    flags.mark_flag_as_required(name, flag_values=values)


def define_workdir(values: flags.FlagValues) -> None:
  """Declares --workdir."""
  define_folder(
    'workdir', 'Folder of the study or run; made if missing.', values
  )


def define_folder(name: str, text: str, values: flags.FlagValues) -> None:
  """Declares a flag that names a folder and must be given."""
  flags.DEFINE_string(name, None, text, required=True, flag_values=values)
  flags.register_validator(
    name,
    lambda folder: folder != '',  # As of a shell's variable that is not set.
    message='it must name a folder',
    flag_values=values,
  )


def define_checkpoint(values: flags.FlagValues) -> None:
  """Declares --checkpoint and --step."""
  define_folder(
    'checkpoint', 'Run or export, or one of its checkpoints.', values
  )
  define_step(values)


def define_step(values: flags.FlagValues) -> None:
  """Declares --step."""
  flags.DEFINE_string(
    'step',
    'last',
    'Checkpoint of a run: last, best, or a number of steps.',
    flag_values=values,
  )


def integers(flag: str, texts: list[str]) -> tuple[int, ...]:
  """Returns the whole numbers that a flag lists."""
  try:
    return tuple(map(int, texts))
  except ValueError:
    raise errors.UserError(
      f'--{flag}={",".join(texts)!r}: whole numbers, joined by commas'
    ) from None


def mapping(text: str) -> dict[str, str]:
  """Returns {'params': 'Model Size'} for 'params=Model Size'."""
  mapping: dict[str, str] = {}
  for pair in text.split(','):
    ours, _, theirs = (part.strip() for part in pair.partition('='))
    if ours in mapping:
      raise errors.UserError(f'--columns: {ours!r} is mapped twice')
    if ours and theirs:
      mapping[ours] = theirs
    elif pair.strip():
      raise errors.UserError(
        f"--columns: {pair!r} is not of the form 'ours=theirs'"
      )
  return mapping
