"""ZoomInNet: small-object detection in drone images by cross-scale knowledge distillation.

Importing this package compiles nothing and touches no GPU. The kernels live in :mod:`zoominnet.kernels`,
the detectors in :mod:`zoominnet.models`, the commands in ``python -m zoominnet.train``, ``.evaluate``,
``.data`` and ``.doctor``.
"""

__version__ = "0.1.0"
