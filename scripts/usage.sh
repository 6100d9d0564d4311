# shellcheck shell=bash
# Sourced by the scripts of bash, before they read their arguments: a mistake of the command line ends with 2, as it does in
# qstage, before anything else is looked at or begun.

# mistake MESSAGE
mistake() {
  printf '%s: %s; see --help\n' "${0##*/}" "$*" >&2
  exit 2
}

# value OPTION [VALUE]: the option was given a value. Not ${2:?...}, which ends with 1.
value() { [[ -n ${2-} ]] || mistake "$1 needs a value"; }

# number OPTION [VALUE]: the value is a whole number above zero.
number() {
  value "$@"
  [[ $2 =~ ^[1-9][0-9]*$ ]] || mistake "$1: '$2' is no number above zero"
}

# unknown ARGUMENT
unknown() { if [[ $1 == -* ]]; then mistake "unknown option '$1'"; else mistake "unexpected argument '$1'"; fi; }
