"""`zoominnet.train` on the stand-in for a GPU; last it prints how often what has waited for the device, as JSON."""

import json
import sys

import operators
import torchvision  # whose operators are then there

from zoominnet.train import main

for library in ("aten", torchvision.__name__):
    operators.replace(library)
status = main(sys.argv[1:])
print(json.dumps(operators.waits))
sys.exit(status)
