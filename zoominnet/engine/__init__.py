"""Training, checkpoints and inference behind the commands."""
