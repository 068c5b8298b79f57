# shellcheck shell=bash
# What the engines' scripts share. integration/<engine>/run sources this, defines
#
#   engine=NAME             as its directory is called
#   cases=(MODE/CASE ...)   in the order in which they run
#   begin                   once before all: start what is needed, load the images
#   change                  before the first case of another MODE (may be left out)
#   enter                   before each case, in the case's own process; MODE is set
#   tidy                    after each case: remove what it left
#   finish                  once after all: stop what was started
#   case_CASE               one function a case
#
# and ends with `main "$@"`. A case is a process of its own with a time limit: it passes when it returns, is skipped by
# `skip WHY`, and fails by anything else. Everything lies below $work, which a run makes and removes.
set -eEuo pipefail
shopt -s inherit_errexit

integration=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
self=$(readlink -f "$0")
export RUNTIME=${RUNTIME:-pelagos}
export PELAGOS_PATIENCE=${PELAGOS_PATIENCE:-1}
# Images that integration/images made, and where the logs of the cases stay.
export IMAGES=${IMAGES:-/var/tmp/pelagos-images}
export LOGS=${LOGS:-/var/tmp/pelagos-logs}

die() { echo "$*" >&2; exit 1; }
skip() { echo "$*" >&2; exit 77; }

# equal SEEN WANTED WHAT
equal() { [ "$1" = "$2" ] || die "$3: '$1' where '$2' was expected"; }

# contains SEEN PART WHAT
contains() { [[ $1 == *"$2"* ]] || die "$3: '$1' does not contain '$2'"; }

# exits CODE CMD...: run it and look at its exit code.
exits() {
  local wanted=$1 code=0
  shift
  "$@" || code=$?
  [ "$code" = "$wanted" ] || die "exit code $code where $wanted was expected: $*"
}

# fails CMD...: it must not succeed; what it prints goes to the log.
fails() { ! "$@" || die "succeeded, and should not have: $*"; }

# eventually WHAT CMD...: repeat until it succeeds, half a minute at most.
eventually() {
  local what=$1 deadline=$((SECONDS + 30 * PELAGOS_PATIENCE))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || die "never happened: $what"
    sleep 0.2
  done
}

# in_terminal CMD...: with a terminal of 33 lines and 77 columns; carriage returns are taken off.
in_terminal() {
  local line
  printf -v line '%q ' "$@"
  # Its input is a pipe that never ends: at an end script(1) would type one.
  script --quiet --return --command "stty rows 33 cols 77; $line" /dev/null 0<> <(:) | tr -d '\r'
}

# from_readme LANGUAGE PART: the README's block in LANGUAGE that has PART in it, with the runtime under test in the place of
# the installed one.
from_readme() {
  awk -v fence="\`\`\`$1" -v part="$2" '
    $0 == fence { inside = 1; text = ""; next }
    /^```$/ { if (inside && index(text, part)) printf "%s", text; inside = 0 }
    inside { text = text $0 "\n" }' "$integration/../README.md" | sed "s|/usr/local/bin/pelagos|$RUNTIME|"
}

# daemon_up CMD...: start it as the unit pelagos-$engine. Not a transient unit: containers that outlive the daemon stay in
# it, and it can be started again.
unit=/run/systemd/system/pelagos-$engine.service
daemon_up() {
  printf '%s\n' '[Service]' "ExecStart=$*" Delegate=yes KillMode=process >"$unit"
  systemctl daemon-reload
  systemctl start "pelagos-$engine"
}

daemon_down() {
  systemctl stop "pelagos-$engine" 2>/dev/null || true
  systemctl reset-failed "pelagos-$engine" 2>/dev/null || true
}

daemon_gone() {
  daemon_down
  # What the daemon left: shims, and whatever they hold.
  systemctl kill --signal KILL "pelagos-$engine" 2>/dev/null || true
  rm -f "$unit"
  systemctl daemon-reload
}

usage() {
  cat <<USAGE
usage: $engine/run [--list] [CASE...]

Runs the cases of $engine, or those whose name contains one of the words given, with the runtime RUNTIME (default:
pelagos), prints one line each (pass, fail or skip), and compares with $engine/expect. To be run as root in a machine that may be
spoiled: integration/run does so in the test machine.
USAGE
}

# The limit of one case, in seconds.
limit() { echo $((120 * PELAGOS_PATIENCE)); }

change() { :; }
mode_before=

# one NAME: run it in its own process, print its line, keep its log.
one() {
  local name=$1 log=$LOGS/$engine/$1.log code=0 why
  MODE=${name%%/*}
  if [ "$MODE" != "$mode_before" ]; then
    change
    mode_before=$MODE
  fi
  mkdir -p "$(dirname "$log")"
  timeout --kill-after=10 "$(limit)" "$self" --case "$name" >"$log" 2>&1 </dev/null || code=$?
  why=$( (grep -v '^ *$' "$log" || true) | tail -n 2 | tr -s '\n\t ' ' ' | cut -c 1-400)
  case $code in
    0) echo "pass $name" ;;
    77) echo "skip $name: $(tail -n 1 "$log")" ;;
    124 | 137) echo "fail $name: no end after $(limit) s; $why" ;;
    *) echo "fail $name: $why" ;;
  esac
  tidy >>"$log" 2>&1 || echo "tidying after $name failed: see $log" >&2
}

# wanted NAME [WORD...]
wanted() {
  local name=$1 word
  shift
  [ $# -gt 0 ] || return 0
  for word; do [[ $name != *"$word"* ]] || return 0; done
  return 1
}

# The lines of all cases that are wanted.
lines() {
  local name
  for name in "${cases[@]}"; do
    if wanted "$name" "$@"; then one "$name"; fi
  done
}

main() {
  case ${1-} in
    -h | --help) usage; exit ;;
    --list) printf '%s\n' "${cases[@]}"; exit ;;
    --case)
      MODE=${2%%/*} name=${2##*/}
      trap 'echo "line $LINENO: exit code $?: $(sed -n "$LINENO{s/^ *//p}" "$self")" >&2' ERR
      enter
      "case_$name"
      exit
      ;;
  esac
  [ "$(id -u)" = 0 ] || die "$engine/run: needs root, in a machine that may be spoiled"
  RUNTIME=$(command -v "$RUNTIME") || die "$engine/run: there is no runtime '$RUNTIME'"
  column=$(basename "$RUNTIME")
  work=${work:-/var/tmp/pelagos-$engine}
  export RUNTIME column work
  rm -rf "${LOGS:?}/$engine"
  mkdir -p "$LOGS/$engine" "$work"
  trap 'finish; rm -rf --one-file-system "$work"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  "$integration/images" "$IMAGES"
  begin
  results=$LOGS/$engine/results
  lines "$@" | tee "$results"
  "$integration/ledger" check "$engine" "$column" "$results" $#
}
