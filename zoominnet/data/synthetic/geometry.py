"""Solids in the world and in the image: the camera, their polygons, their boxes and what they hide of each other.

The world is measured in metres, z up, its ground flat at z = 0. Lengths in the image are shares of its side, x to the
right and y down, unless a name says px.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Self

import numpy as np
from PIL import Image, ImageDraw

from zoominnet.data.synthetic.models import MODELS

REFERENCE_PX = 512
"""The image side at which sizes in px are quoted."""
_MODELS = tuple(MODELS.values())


class Arrays:
    """Base of frozen dataclasses whose fields are arrays of the same length."""

    def take(self, which: np.ndarray) -> Self:
        """The entries at the indices `which`, or where it is True."""
        return type(self)(*(getattr(self, field.name)[which] for field in fields(self)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. All vectors float32[3]; `focal` is in image sides."""

    position: np.ndarray
    right: np.ndarray
    up: np.ndarray
    forward: np.ndarray
    focal: float

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points [..., 3] to the image (x, y) [..., 2], and their depth [...] in metres."""
        relative = points - self.position
        depth = np.maximum(relative @ self.forward, 0.1)
        x = 0.5 + self.focal * (relative @ self.right) / depth
        y = 0.5 - self.focal * (relative @ self.up) / depth
        return np.stack((x, y), axis=-1), depth

    def project_ground(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `project`, of the points (x, y) [n] of the ground."""
        return self.project(np.stack((x, y, np.zeros(len(x))), axis=-1))

    def ground_at(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World x and y of the ground that is seen at (x, y) of the image, and its depth."""
        u, v = (x - 0.5) / self.focal, (0.5 - y) / self.focal
        depth = -self.position[2] / (self.forward[2] + u * self.right[2] + v * self.up[2])
        world_x = self.position[0] + depth * (self.forward[0] + u * self.right[0] + v * self.up[0])
        world_y = self.position[1] + depth * (self.forward[1] + u * self.right[1] + v * self.up[1])
        return world_x, world_y, depth


@dataclass(frozen=True)
class Objects(Arrays):
    """n solids, far ones first."""

    models: np.ndarray  # int64[n], position in MODELS
    positions: np.ndarray  # float32[n, 3]
    yaws: np.ndarray  # float32[n]
    scales: np.ndarray  # float32[n, 3]
    labels: np.ndarray  # int64[n]
    colours: np.ndarray  # float32[n, roles, 3], 0 to 255

    def __len__(self) -> int:
        return len(self.models)


@dataclass(frozen=True)
class Polygons(Arrays):
    """The polygons of objects that face the camera, in the order to paint them."""

    world: np.ndarray  # float32[F, 8, 3]
    image: np.ndarray  # float32[F, 8, 2]
    normals: np.ndarray  # float32[F, 3], of length 1
    corners: np.ndarray  # int64[F], see models.Model
    roles: np.ndarray  # int64[F]
    outline: np.ndarray  # bool[F]
    owners: np.ndarray  # int64[F], position in the objects


def place_polygons(camera: Camera, objects: Objects) -> Polygons:
    """Places every solid in the world, and keeps the polygons that face the camera."""
    world, chosen = [np.zeros((0, 8, 3), dtype=np.float32)], []
    axes = np.stack((camera.right, camera.up))
    for model_index in np.unique(objects.models):
        model = _MODELS[model_index]
        which = np.flatnonzero(objects.models == model_index)
        scales = objects.scales[which][:, None, None]
        points = model.anchors * scales
        yaws = objects.yaws[which][:, None, None]
        cos, sin = np.cos(yaws), np.sin(yaws)
        x, y = points[..., 0] * cos - points[..., 1] * sin, points[..., 0] * sin + points[..., 1] * cos
        points = np.stack((x, y, points[..., 2]), axis=-1) + objects.positions[which][:, None, None]
        points += (model.billboard @ axes) * scales[..., 2:]
        world.append(points.reshape(-1, *points.shape[2:]))
        facts = np.stack((model.corners, model.roles, model.outline, model.one_sided))
        chosen.append(np.concatenate((np.tile(facts, len(which)), np.repeat(which, len(model.roles))[None])))
    corners, roles, outline, one_sided, owners = np.concatenate([np.zeros((5, 0), dtype=np.int64), *chosen], axis=1)
    points = np.concatenate(world)
    normals = np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 1])
    facing = ((camera.position - points[:, 0]) * normals).sum(axis=1)
    normals *= (np.where(facing < 0, -1, 1) / np.maximum(np.linalg.norm(normals, axis=1), 1e-9))[:, None]
    image, _ = camera.project(points)
    polygons = Polygons(
        points, image.astype(np.float32), normals.astype(np.float32), corners, roles, outline.astype(bool), owners
    )
    seen = np.flatnonzero((facing > 0) | (one_sided == 0))
    return polygons.take(seen[np.argsort(owners[seen], kind="stable")])


def extents(polygons: Polygons, count: int) -> np.ndarray:
    """float32[count, 4]: the box around each object's polygons."""
    low = np.full((count, 2), np.inf, dtype=np.float32)
    high = np.full((count, 2), -np.inf, dtype=np.float32)
    np.minimum.at(low, polygons.owners, polygons.image.min(axis=1))
    np.maximum.at(high, polygons.owners, polygons.image.max(axis=1))
    return np.concatenate((low, high), axis=1)


def visible_shares(polygons: Polygons, asked: np.ndarray) -> np.ndarray:
    """float64[n]: the share of an object's pixels that nearer objects leave, counted in an image of object ids.

    `asked`, bool[n], says for which objects; the others get 0.
    """
    side = 2 * REFERENCE_PX  # always, so that the annotations do not depend on the size that is rendered
    canvas = Image.new("I", (side, side), -1)
    draw = ImageDraw.Draw(canvas)
    polygons = polygons.take(polygons.outline)
    starts = np.searchsorted(polygons.owners, np.arange(len(asked) + 1)).tolist()
    outlines, corners = pixel_lists(polygons.image, side), polygons.corners.tolist()
    low = np.clip(np.floor(polygons.image.min(axis=1) * side) - 1, 0, side).astype(np.int64)
    high = np.clip(np.ceil(polygons.image.max(axis=1) * side) + 1, 0, side).astype(np.int64)
    drawn: dict[int, tuple[tuple[slice, slice], int]] = {}
    for owner, (start, end) in enumerate(pairwise(starts)):
        for polygon in range(start, end):
            draw.polygon(outlines[polygon][: 2 * corners[polygon]], fill=owner)
        if asked[owner]:
            left, top = low[start:end].min(axis=0).tolist()
            right, bottom = high[start:end].max(axis=0).tolist()
            own = np.asarray(canvas.crop((left, top, right, bottom))) == owner
            drawn[owner] = (slice(top, bottom), slice(left, right)), int(own.sum())
    final = np.asarray(canvas)
    shares = np.zeros(len(asked))
    for owner, (crop, pixels) in drawn.items():
        shares[owner] = (final[crop] == owner).sum() / max(pixels, 1)
    return shares


def pixel_lists(points: np.ndarray, size_px: int) -> list[list[float]]:
    """Points [F, 8, 2] of the image as Pillow wants them, flat lists in px.

    Pillow rounds down to whole pixels and paints the outline too, so a polygon reaches up to a pixel too far.
    """
    flat: list[list[float]] = (points * size_px).reshape(-1, 16).tolist()
    return flat
