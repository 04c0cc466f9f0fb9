#!/bin/sh
# README's ten commands, on pictures/ and queries/ in the current folder.
set -e
hotrefresh gallery create mine pictures/
hotrefresh model train old --data pictures/ --epochs 3
hotrefresh gallery embed mine --model old
hotrefresh queryset import mine asked queries/
hotrefresh model train new --method ract --old old --data pictures/
hotrefresh model adapt old new --gallery mine
hotrefresh model certify old new --gallery mine --adapter old-to-new
hotrefresh rollout start mine --to new --adapter old-to-new
hotrefresh rollout status -w mine
hotrefresh rollout finalize mine
