"""``zoominnet COMMAND ...``, the same as ``python -m zoominnet.COMMAND ...``."""

import importlib
import sys

COMMANDS = {
    "train": "train a teacher and distil a student",
    "evaluate": "measure a trained model: COCO and VisDrone protocols, speed, size",
    "predict": "find objects in images and videos",
    "report": "one page on what runs did: curves, scores, kinds of errors, masks, feature maps, images",
    "export": "a trained model for the drone: ONNX, torch.export, int8",
    "benchmark": "how fast trained models are on this machine, and what they find for it",
    "data": "check, look at or convert a data set",
    "models": "the models that come with the package",
    "reproduce": "the paper's tables, trained, measured and set beside its figures",
    "demo": "minutes on a laptop: a teacher, a student without and with distillation, and what they find",
    "doctor": "what this installation can run, what it cannot, and the remedy",
}

PACKAGES = {"data", "models"}
"""Of them, those whose command is a package's `__main__`."""


def main() -> int:
    """Runs the command that the first argument names and returns its exit status."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        name = arguments[0]
        module = importlib.import_module(f"zoominnet.{name}{'.__main__' if name in PACKAGES else ''}")
        sys.argv[0] = f"zoominnet {name}"
        return int(module.main(arguments[1:]))
    help_asked = arguments in (["-h"], ["--help"])
    usage = "\n".join(["usage: zoominnet COMMAND [OPTIONS]", *(f"  {n:10}{text}" for n, text in COMMANDS.items())])
    if help_asked:
        print(usage)
        return 0
    if arguments:
        print(f"zoominnet: {arguments[0]!r} is not a command", file=sys.stderr)
    print(usage, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
