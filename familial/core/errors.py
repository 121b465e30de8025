"""The one exception that a user should see, and how its texts are made."""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import difflib

# Characters of a value that a refusal shows.
_LONGEST = 160


class UserError(ValueError):
  """A mistake in what the user asked: one line naming key, value, allowed."""


def require(holds: bool, key: str, value: object, allowed: str) -> None:
  """Raises a UserError that names all three, unless it holds."""
  if not holds:
    raise not_allowed(key, value, allowed)


def not_allowed(key: str, value: object, allowed: str) -> UserError:
  """Returns the error for a value that is not allowed."""
  shown = repr(value)
  if len(shown) > _LONGEST:
    shown = f'{shown[:_LONGEST]}...'
  return UserError(f'{key}: {shown} is not allowed; it must be {allowed}')


def require_one_of(key: str, value: str, allowed: Collection[str]) -> None:
  """Raises a UserError unless the value is one of those allowed."""
  if value not in allowed:
    raise UserError(
      f'{key}: {value!r} is not one of {", ".join(allowed)}'
      f'{nearest(value, allowed)}'
    )


def nearest(name: str, allowed: Iterable[str]) -> str:
  """Returns " (did you mean 'x'?)" for the closest allowed name, or ''."""
  close = difflib.get_close_matches(name, list(allowed), n=1)
  return f' (did you mean {close[0]!r}?)' if close else ''


@contextlib.contextmanager
def within(where: object) -> Iterator[None]:
  """Puts `where: ` before the text of a UserError that is raised inside."""
  try:
    yield
  except UserError as error:
    raise UserError(f'{where}: {error}') from None


class Interrupted(Exception):
  """A signal asked for a stop; what was under way is saved."""


class Incomplete(Exception):
  """Part of what was asked failed; the rest is done and saved."""
