#!/bin/sh
# A gate for any CI, and for the desk: sh gate.sh MODEL IMAGES BASELINE. Exit status 0: pass; 1: the model; 2 and more: the job.
set -eu
vitdeploy validate "$1" --data "$2" -o accuracy.json
vitdeploy bench "$1" -o latency.json
vitdeploy gate accuracy.json latency.json --about "$1" --config gate.toml --baseline "$3" -o gate.xml
