"""A trained model in forms that run without this project, and such a file run here."""

from zoominnet.deployment.contract import Contract, DeploymentError
from zoominnet.deployment.runtime import SUFFIX, OnnxModel, known_cost, load_onnx

__all__ = ["SUFFIX", "Contract", "DeploymentError", "OnnxModel", "known_cost", "load_onnx"]
