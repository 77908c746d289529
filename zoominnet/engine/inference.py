"""What a model finds in a split, in the pixels of the original images, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from zoominnet.data import DetectionDataset, ResizeMode, Split, make_loader, shard_batches, student_images
from zoominnet.engine.distributed import Ranks
from zoominnet.evaluation import Detections, count_gflops, count_parameters
from zoominnet.models import RetinaNet
from zoominnet.models.interfaces import DetectionModel

InputPath = Literal["direct", "halved"]
"""How an image reaches a model of input side S. "direct": resized to S at once, as in use. "halved": resized to 2S,
then the 2x2 mean, as a student sees it in training."""


def undecodable_warning(count: int, images: int) -> str:
    """What to say of images that could not be decoded when scores were measured."""
    return f"{count} of {images} images could not be decoded: their objects count as missed in the scores"


def no_detections() -> Detections:
    """The detections of an image in which nothing was found."""
    return Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))


def cost_of(model: RetinaNet) -> dict[str, Any]:
    """Multiply-adds for one image of the model's size and number of parameters, JSON-ready.

    Returns:
        "gflops" (1e9), "parameters", and of the `la` student with the phase predictor "gflops_plain", those of the plain
        form; "gflops_mmcv", as the paper counts: of the plain form, biases and activations included.
    """
    cost = {"gflops": count_gflops(model, model.image_size), "parameters": count_parameters(model)}
    form = model.la_predictor
    model.set_la_predictor("plain")
    try:
        if model.architecture.upsample_head and form == "phase":
            cost["gflops_plain"] = count_gflops(model, model.image_size)
        cost["gflops_mmcv"] = count_gflops(model, model.image_size, convention="mmcv")
    finally:
        model.set_la_predictor(form)
    return cost


@torch.no_grad()
def predict_split(
    model: DetectionModel,
    split: Split,
    *,
    batch_size: int = 1,
    workers: int = 0,
    timeout: float = 300.0,
    resize: ResizeMode = "squash",
    strict: bool = False,
    input_path: InputPath = "direct",
    progress: Callable[[int], None] | None = None,
    ranks: Ranks | None = None,
) -> tuple[list[Detections], int]:
    """Runs `model`, in evaluation mode, on every image of `split`.

    An image that cannot be decoded has no detections (the dataset has logged it by then).

    Args:
        model: its mode is restored.
        split: the images.
        batch_size, workers, timeout: of the loader.
        resize, input_path: how an image becomes the model's input.
        strict: an image that cannot be decoded is an error.
        progress: called with the number of images done after every batch; on every rank as often as on the first, whose
            share is the largest.
        ranks: each takes a share of the images and gets the detections of all. None: this process alone.

    Returns:
        One entry a record, in order, boxes float64 in px of the original image; and the number of images that could not
        be decoded.
    """
    device = model.device
    ranks = ranks or Ranks(device)
    side = model.image_size * (2 if input_path == "halved" else 1)
    dataset = DetectionDataset(split, side, flip=False, seed=0, resize=resize, strict=strict)
    batches = shard_batches(len(dataset), batch_size, ranks.size, ranks.rank)
    loader = make_loader(dataset, batches, workers=workers, timeout=timeout, pin_memory=device.type == "cuda")
    found: dict[int, Detections] = {}
    was_training = model.training
    model.eval()
    try:
        for indices, batch in zip(batches, loader, strict=True):
            images = batch.images.to(device, non_blocking=True).float() / 255
            if input_path == "halved":
                images = student_images(images)
            outputs = model(list(images))
            scale = side / model.image_size
            for index, target, output in zip(indices, batch.targets, outputs, strict=True):
                if target["index"] != index:  # another image stands in for one that cannot be decoded
                    found[index] = no_detections()
                    continue
                boxes = target["geometry"].to_original(output["boxes"].cpu() * scale)
                found[index] = Detections(
                    boxes.double().numpy(), output["scores"].double().cpu().numpy(), output["labels"].cpu().numpy()
                )
            if progress is not None:
                progress(len(found))
        if progress is not None and len(batches) < len(shard_batches(len(dataset), batch_size, ranks.size)):
            progress(len(found))
    finally:
        model.train(was_training)
    undecodable = len(torch.cat(ranks.gather(torch.tensor(dataset.unreadable, dtype=torch.int64))).unique())
    if ranks.size > 1:
        found = exchange(found, ranks)
    return [found[index] for index in range(len(dataset))], undecodable


def exchange(found: dict[int, Detections], ranks: Ranks) -> dict[int, Detections]:
    """The detections of all ranks, by image, from those of each."""
    keys = torch.cat(ranks.gather(torch.tensor(list(found), dtype=torch.int64)))
    rows = [
        torch.from_numpy(np.column_stack((np.full(len(d), index), d.boxes, d.scores, d.labels)))
        for index, d in found.items()
    ]
    table = torch.cat(ranks.gather(torch.cat([torch.zeros(0, 7, dtype=torch.float64), *rows]))).numpy()
    everything = {}
    for index in keys.tolist():
        of_image = table[table[:, 0] == index]
        everything[index] = Detections(of_image[:, 1:5], of_image[:, 5], of_image[:, 6].astype(np.int64))
    return everything
