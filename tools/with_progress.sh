#!/bin/sh
# Run a command whose output is long or empty: show what it does, and its output only if it fails.
# On a terminal one line with the seconds and the last line of the output; elsewhere a line after 2, 4, 8, ... s.
# Usage: tools/with_progress.sh TEXT COMMAND...
set -u
text=$1
shift
log=$(mktemp)
"$@" >"$log" 2>&1 &
pid=$!
trap 'kill "$pid" 2>/dev/null; rm -f "$log"; exit 130' INT TERM
room=$((68 - ${#text}))  # a line that wraps could not be erased

seconds=0
next=2
[ -t 2 ] || printf '%s\n' "$text" >&2
while kill -0 "$pid" 2>/dev/null; do
    if [ -t 2 ]; then
        last=$(tail -n 1 "$log" | tr -d '\r' | cut -c "1-$room")
        printf '\r\033[K%s (%d s) %s' "$text" "$seconds" "$last" >&2
    elif [ "$seconds" -ge "$next" ]; then
        printf '%s (%d s)\n' "$text" "$seconds" >&2
        next=$((next * 2))
    fi
    sleep 1
    seconds=$((seconds + 1))
done
wait "$pid"
code=$?
[ -t 2 ] && printf '\r\033[K' >&2
[ "$code" -eq 0 ] && [ -t 2 ] && printf '%s: done in %d s\n' "$text" "$seconds" >&2
[ "$code" -eq 0 ] || cat "$log" >&2
rm -f "$log"
exit "$code"
