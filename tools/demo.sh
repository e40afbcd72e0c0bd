#!/bin/sh
# The whole path in one go: up, generate, netstat, down. Usage: tools/demo.sh DLLAMA_ZMQ
# The story and the figures end within the last 24 lines.
set -eu
dllama=$1

say() { printf '\n\033[1m$ %s\033[0m\n' "$1" >&2; }
[ -t 2 ] || say() { printf '\n$ %s\n' "$1" >&2; }

say "dllama-zmq up cluster.yaml"
"$dllama" up cluster.yaml
trap '"$dllama" down cluster.yaml' EXIT
trap 'exit 130' INT TERM

say 'dllama-zmq generate "Once upon a time" --steps 120 --temperature 0.7'
"$dllama" generate "Once upon a time" --steps 120 --temperature 0.7

say "dllama-zmq netstat --summary     (all of it: dllama-zmq netstat)"
"$dllama" netstat --summary

trap - EXIT INT TERM
say "dllama-zmq down cluster.yaml"
"$dllama" down cluster.yaml
