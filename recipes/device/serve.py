"""The smallest service: a line on stdin is a path of an image, a line on stdout its best class. Put your own in its place.

python3 serve.py vitdeploy/current/bundle
"""

import sys

import vitdeploy as vd

with vd.load(sys.argv[1]) as model:
    print("ready", flush=True)
    for line in sys.stdin:
        (answer,) = model([line.strip()])
        print(answer.classes[0].label, flush=True)
