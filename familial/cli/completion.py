"""`familial completion bash` and `zsh`: scripts that complete a command line."""

from collections.abc import Mapping
from collections.abc import Sequence

from familial.cli import command as command_lib
from familial.cli import config_files
from familial.core import errors
from familial.core import schema

_BASH = r"""# eval "$(familial completion bash)"
_familial() {
  local words='' current="${COMP_WORDS[COMP_CWORD]}"
  local before="${COMP_WORDS[COMP_CWORD-1]}" flag=''
  # Bash takes --flag=value for three words.
  [ "$before" = = ] && flag="${COMP_WORDS[COMP_CWORD-2]}"
  [ "$current" = = ] && flag="$before" current=''
  if [ "$COMP_CWORD" = 1 ]; then
    words='COMMANDS help completion --version --help'
  elif [ -n "$flag" ]; then
    case "${COMP_WORDS[1]} $flag" in
VALUES
    esac
  else
    case "${COMP_WORDS[1]}" in
FLAGS
      help) words='COMMANDS' ;;
      completion) words='bash zsh' ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  [[ "${COMPREPLY[0]}" = *= ]] && compopt -o nospace
}
complete -o default -F _familial familial"""
_ZSH = r"""# eval "$(familial completion zsh)", after compinit
_familial() {
  if (( CURRENT == 2 )); then
    compadd -- COMMANDS help completion --version --help
    return
  fi
  shift words
  (( CURRENT -= 1 ))
  case "$words[1]" in
FLAGS
    help) compadd -- COMMANDS ;;
    completion) compadd -- bash zsh ;;
  esac
}
compdef _familial familial"""


def script(
  arguments: Sequence[str], commands: Mapping[str, command_lib.Command]
) -> str:
  """Returns the script for a shell.

  Args:
    arguments: the shell's name.
    commands: by name.

  Raises:
    UserError: if it is of no shell that is known.
  """
  if list(arguments) not in (['bash'], ['zsh']):
    raise errors.UserError(
      f'completion: {" ".join(arguments)!r} is not allowed; it must be bash or '
      'zsh'
    )
  if arguments[0] == 'bash':
    values = (
      f"      '{name} --{command_lib.flag_name(field.name)}')"
      f" words='{_values(field)}' ;;"
      for name, command in commands.items()
      for field in command.fields
      if _values(field)
    )
    flags = (
      f"      {name}) words='{' '.join(map(_flag, command.fields))}' ;;"
      for name, command in commands.items()
    )
    text = _BASH.replace('VALUES', '\n'.join(values))
  else:
    flags = (
      f'    {name}) _arguments {" ".join(map(_argument, command.fields))} ;;'
      for name, command in commands.items()
    )
    text = _ZSH
  text = text.replace('FLAGS', '\n'.join(flags))
  return text.replace('COMMANDS', ' '.join(commands))


def _values(field: schema.Field) -> str:
  """Returns the values of a flag that are listed; files are not."""
  if command_lib.is_config(field):
    return ' '.join(config_files.names())
  return ' '.join(command_lib.names_of(field))


def _flag(field: schema.Field) -> str:
  """Returns --flag=, or what changes the default of a boolean flag."""
  name = command_lib.flag_name(field.name)
  if field.type is bool:
    return f'--no{name}' if field.default else f'--{name}'
  return f'--{name}='


def _argument(field: schema.Field) -> str:
  """Returns a flag as zsh's _arguments takes it."""
  if field.type is bool:
    return _flag(field)
  again = '*' if command_lib.REPEATED in field.metadata else ''
  values = f'({_values(field)})' if _values(field) else '_files'
  return f"'{again}{_flag(field)}:{field.name}:{values}'"
