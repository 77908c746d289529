"""Data: readers of VisDrone, COCO, YOLO and UAVDT data sets, synthetic scenes, one dataset class and its batch plan."""

from zoominnet.data.augment import AUGMENTATIONS
from zoominnet.data.batch import Batch, Sample, Target, collate, to_device
from zoominnet.data.cache import CacheError, CacheKind, CacheOptions, default_cache_folder, free_shared_memory
from zoominnet.data.dataset import DetectionDataset, LoaderError, loader_failure, make_loader
from zoominnet.data.holdout import divide_split
from zoominnet.data.images import ImageError, decode_image, read_image_header
from zoominnet.data.plan import BatchPlan, shard_batches, shard_indices
from zoominnet.data.records import (
    ANY_CLASS,
    MAX_PIXELS,
    VISDRONE_CLASSES,
    DataError,
    DataReport,
    ImageRecord,
    Split,
    SplitSource,
)
from zoominnet.data.splits import DataFormat, find_splits, open_split
from zoominnet.data.synthetic import MAX_ZOOM, SyntheticClasses, SyntheticScenes
from zoominnet.data.transforms import ResizeGeometry, ResizeMode, student_images

__all__ = [
    "ANY_CLASS",
    "AUGMENTATIONS",
    "MAX_PIXELS",
    "MAX_ZOOM",
    "VISDRONE_CLASSES",
    "Batch",
    "BatchPlan",
    "CacheError",
    "CacheKind",
    "CacheOptions",
    "DataError",
    "DataFormat",
    "DataReport",
    "DetectionDataset",
    "ImageError",
    "ImageRecord",
    "LoaderError",
    "ResizeGeometry",
    "ResizeMode",
    "Sample",
    "Split",
    "SplitSource",
    "SyntheticClasses",
    "SyntheticScenes",
    "Target",
    "collate",
    "decode_image",
    "default_cache_folder",
    "divide_split",
    "find_splits",
    "free_shared_memory",
    "loader_failure",
    "make_loader",
    "open_split",
    "read_image_header",
    "shard_batches",
    "shard_indices",
    "student_images",
    "to_device",
]
