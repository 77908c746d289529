"""A trained model that takes images as people have them and gives boxes in their own pixels."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, overload

import torch
from torch import Tensor, nn

from zoominnet.data import MAX_PIXELS, ResizeGeometry, ResizeMode
from zoominnet.data.transforms import resize_image
from zoominnet.engine.checkpoint import ModelInfo
from zoominnet.errors import UserError
from zoominnet.models.interfaces import DetectionModel
from zoominnet.models.postprocess import PostProcess
from zoominnet.prediction.inputs import ImageInput, to_pixels
from zoominnet.prediction.result import Result
from zoominnet.prediction.slices import View, merge_views, views_of
from zoominnet.rules import FROM_0_BELOW_1, Rule, at_least, check_fields


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What is looked for in an image, and how; of :meth:`Detector.predict` and ``python -m zoominnet.predict``."""

    conf: Annotated[float, FROM_0_BELOW_1] = 0.25
    """Detections at or below this score are left out."""
    iou: Annotated[float, Rule(lambda value: 0 <= value <= 1, "is not in [0, 1]")] = 0.5
    """Of two boxes of a class with more than this IoU the lower score goes (paper's configurations: 0.5)."""
    max_det: Annotated[int, at_least(1)] = 500
    """Detections of an image at most, the best ones (VisDrone's protocol: 500)."""
    classes: tuple[str, ...] | None = None
    """Look for these classes alone: names, or labels from 0. None: all."""
    slice: bool = False
    """Look at images larger than --slice-size in slices of that size as well as at the whole."""
    slice_size: Annotated[int | None, at_least(32)] = None
    """Side of a slice, px. None: the model's input size."""
    overlap: Annotated[float, FROM_0_BELOW_1] = 0.2
    """What neighbouring slices share, as a share of their side. Objects smaller than that lie whole in a slice."""
    batch_size: Annotated[int, at_least(1)] = 1
    """Images or slices that the model is given at a time."""


@dataclass(eq=False)
class _Pending:
    """An image of which not every view has been seen yet."""

    pixels: Tensor
    path: Path | None
    views: list[View]
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


class Detector(nn.Module):
    """A trained model with what it was trained for: what :func:`zoominnet.load` gives.

    :meth:`predict` takes images of any size and form; called directly, it is the model itself, with torchvision's
    calling convention (:class:`zoominnet.models.RetinaNet`).

    Args:
        model: in evaluation mode; of an ONNX file, what runs that.
        info: what its file says of it.
        path: where it was loaded from.
    """

    def __init__(self, model: DetectionModel, info: ModelInfo, path: Path | None = None) -> None:
        super().__init__()
        self.model, self.info, self.path = model, info, path
        self.eval()

    def forward(self, *images_and_targets: Any) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """See :class:`zoominnet.models.RetinaNet`."""
        return self.model(*images_and_targets)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the labels 0, 1, ..."""
        return self.info.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The training data's own numbers of the labels 0, 1, ..."""
        return self.info.category_ids

    @property
    def num_classes(self) -> int:
        """Without background."""
        return len(self.info.class_names)

    @property
    def image_size(self) -> int:
        """Side of the square that an image becomes, px."""
        return self.info.image_size

    @property
    def resize(self) -> ResizeMode:
        """How an image becomes square: as when the model was trained."""
        return self.info.resize

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def place(self, device: torch.device) -> Detector:
        """Moves the model to `device`, see :meth:`zoominnet.models.RetinaNet.place`."""
        self.model.place(device)
        return self

    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        source: ImageInput,
        *,
        conf: float = ...,
        iou: float = ...,
        max_det: int = ...,
        classes: Sequence[str | int] | None = ...,
        slice: bool = ...,
        slice_size: int | None = ...,
        overlap: float = ...,
        batch_size: int = ...,
    ) -> Result: ...
    @overload
    def predict(
        self,
        source: Sequence[ImageInput],
        *,
        conf: float = ...,
        iou: float = ...,
        max_det: int = ...,
        classes: Sequence[str | int] | None = ...,
        slice: bool = ...,
        slice_size: int | None = ...,
        overlap: float = ...,
        batch_size: int = ...,
    ) -> list[Result]: ...
    def predict(
        self,
        source: ImageInput | Sequence[ImageInput],
        *,
        conf: float = PredictOptions.conf,
        iou: float = PredictOptions.iou,
        max_det: int = PredictOptions.max_det,
        classes: Sequence[str | int] | None = PredictOptions.classes,
        slice: bool = PredictOptions.slice,
        slice_size: int | None = PredictOptions.slice_size,
        overlap: float = PredictOptions.overlap,
        batch_size: int = PredictOptions.batch_size,
    ) -> Result | list[Result]:
        """What is in an image, in its own pixels.

        Args:
            source: an image, or a list or tuple of images: a path; a PIL image; uint8 [H, W, 3], RGB; a tensor [3, H, W],
                RGB, uint8 or floating point in 0..1. EXIF orientation is honoured in files and PIL images.
            conf: detections at or below this score are left out.
            iou: over which the lower score of two boxes of a class goes.
            max_det: detections of an image at most.
            classes: look for these alone: names, or labels from 0.
            slice: look at an image larger than `slice_size` in slices, too.
            slice_size: side of a slice, px; None: the model's input size.
            overlap: what neighbouring slices share, as a share of their side.
            batch_size: images or slices that the model is given at a time.

        Returns:
            A :class:`Result`, or for a list of images one each.

        Raises:
            UserError: an image or an option that cannot be used, in one line.

        Example:
            >>> result = zoominnet.load("runs/fa").predict("street.jpg", conf=0.4, slice=True)
            >>> result.names[:2], result.boxes[:2]
            >>> result.plot("out.jpg")
        """
        options = PredictOptions(
            conf=conf,
            iou=iou,
            max_det=max_det,
            classes=None if classes is None else tuple(str(each) for each in _listed(classes)),
            slice=slice,
            slice_size=slice_size,
            overlap=overlap,
            batch_size=batch_size,
        )
        if isinstance(source, list | tuple):
            return list(self.stream(source, options))
        (result,) = self.stream([source], options)  # type: ignore[list-item]
        return result

    def labels_of(self, classes: Sequence[str]) -> list[int]:
        """The labels of names of classes, or of labels as strings.

        Raises:
            UserError: the model has no such class.
        """
        labels = []
        for each in classes:
            if each in self.class_names:
                labels.append(self.class_names.index(each))
            elif each.isdecimal() and int(each) < self.num_classes:
                labels.append(int(each))
            else:
                known = ", ".join(self.class_names)
                raise UserError(f"--classes: {each!r} is none of the model's classes, which are {known}")
        if not labels:
            raise UserError("--classes: names no class; leave it out to look for all")
        return labels

    def stream(
        self, images: Iterable[ImageInput], options: PredictOptions, *, max_pixels: int = MAX_PIXELS
    ) -> Iterator[Result]:
        """The results of images one after the other, in their order, as soon as each is known.

        Args:
            images: taken as they are needed, so that they need not fit into memory together.
            options: as :meth:`predict`.
            max_pixels: larger files are refused.

        Raises:
            UserError: as :meth:`predict`.
        """
        check_fields(options)
        labels = None if options.classes is None else self.labels_of(options.classes)
        was_training = self.model.training
        pending: deque[_Pending] = deque()
        batch: list[tuple[_Pending, int]] = []
        try:
            self.model.eval()
            for image in images:
                pixels = to_pixels(image, max_pixels=max_pixels)
                path = Path(image) if isinstance(image, str | Path) else None
                now = _Pending(pixels, path, self._views(pixels, options))
                pending.append(now)
                for index in range(len(now.views)):
                    batch.append((now, index))
                    if len(batch) == options.batch_size:
                        self._look(batch, options, labels)
                        batch.clear()
                while pending and len(pending[0].found) == len(pending[0].views):
                    yield self._finish(pending.popleft(), options, max_pixels)
            if batch:
                self._look(batch, options, labels)
            while pending:
                yield self._finish(pending.popleft(), options, max_pixels)
        finally:
            self.model.train(was_training)

    def _views(self, pixels: Tensor, options: PredictOptions) -> list[View]:
        height, width = pixels.shape[-2:]
        if not options.slice:
            return [View((0, 0, width, height), whole=True)]
        return views_of(width, height, options.slice_size or self.image_size, options.overlap)

    @torch.no_grad()
    def _look(self, batch: list[tuple[_Pending, int]], options: PredictOptions, labels: list[int] | None) -> None:
        """Fills in what is found in some views, in px of their images."""
        inputs, geometries = [], []
        for image, index in batch:
            view = image.views[index]
            x1, y1, x2, y2 = view.box
            geometry = ResizeGeometry.fit(view.width, view.height, self.image_size, self.resize)
            inputs.append(resize_image(image.pixels[:, y1:y2, x1:x2], geometry))
            geometries.append(geometry)
        tensor = torch.stack(inputs).to(self.device).float() / 255
        process = PostProcess(options.conf, options.iou, max_detections=options.max_det)
        for (image, index), geometry, output in zip(
            batch, geometries, self.detect(tensor, process, labels), strict=True
        ):
            view = image.views[index]
            boxes = geometry.to_original(output["boxes"].float().cpu())
            boxes[:, 0::2] = boxes[:, 0::2].clamp(0, view.width) + view.box[0]
            boxes[:, 1::2] = boxes[:, 1::2].clamp(0, view.height) + view.box[1]
            real = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # not in the margin of a letterbox
            image.found[index] = boxes[real], output["scores"].float().cpu()[real], output["labels"].cpu()[real]

    def detect(self, images: Tensor, process: PostProcess, labels: list[int] | None) -> list[dict[str, Tensor]]:
        """What the model finds in images of its own size, see :meth:`zoominnet.models.RetinaNet.detect`."""
        return self.model.detect(images, process, labels)

    def _finish(self, image: _Pending, options: PredictOptions, max_pixels: int) -> Result:
        height, width = image.pixels.shape[-2:]
        found = [image.found[index] for index in range(len(image.views))]
        if len(found) == 1:
            boxes, scores, labels = found[0]
        else:
            shared = int(options.overlap * (options.slice_size or self.image_size))
            views = [(view, *each) for view, each in zip(image.views, found, strict=True)]
            boxes, scores, labels = merge_views(views, (width, height), overlap=shared, iou=options.iou)
        return Result(
            boxes=boxes[: options.max_det],
            scores=scores[: options.max_det],
            labels=labels[: options.max_det],
            width=width,
            height=height,
            class_names=self.class_names,
            category_ids=self.category_ids,
            path=image.path,
            _pixels=None if image.path is not None else image.pixels,
            _max_pixels=max_pixels,
        )


def _listed(classes: Sequence[str | int]) -> Sequence[str | int]:
    if isinstance(classes, str):
        raise UserError(f"--classes: {classes!r} is one string; give a list of names, [{classes!r}]")
    return classes
