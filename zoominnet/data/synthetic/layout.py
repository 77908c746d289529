"""What a synthetic scene consists of and what is annotated of it: a pure function of a random stream.

Units as in `geometry`. The camera looks at the origin of the world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from zoominnet.data.records import VISDRONE_CLASSES
from zoominnet.data.synthetic.geometry import (
    REFERENCE_PX,
    Arrays,
    Camera,
    Objects,
    Polygons,
    extents,
    place_polygons,
    visible_shares,
)
from zoominnet.data.synthetic.models import FIXED, METAL, MODELS, SKIN, TROUSERS, Role

MIN_SIDE = 3 / REFERENCE_PX
MAX_SIDE = 60 / REFERENCE_PX
MIN_OBJECTS, MAX_OBJECTS = 20, 500
MAX_HIDDEN = 0.7
"""An object of which nearer ones hide a larger share is left out of the scene."""
MIN_INSIDE = 0.35
"""So is one of whose box a smaller share lies inside the image."""

OTHER, CLUTTER = -1, -2
"""Labels of what is annotated as an ignored region (as VisDrone's class 11), and of what is not annotated."""
_LABELS = {name: label for label, name in enumerate(VISDRONE_CLASSES)} | {"other": OTHER, "clutter": CLUTTER}
_MODEL_INDEX = {name: index for index, name in enumerate(MODELS)}
_MODELS = tuple(MODELS.values())


@dataclass(frozen=True)
class Road:
    """A straight road with a pavement on either side; its own frame is (along, across) its middle."""

    angle: float
    offset: float
    lanes: int
    pavement: float

    LANE_WIDTH = 3.3

    @property
    def half_width(self) -> float:
        return self.lanes * self.LANE_WIDTH / 2 + 0.5

    def frame(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        along, across = rotate(x, y, -self.angle)
        return along, across - self.offset

    def world(self, along: np.ndarray, across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rotate(along, across + self.offset, self.angle)


GRASS, FIELD, SQUARE, CAR_PARK, BUILT, SOIL = range(6)
"""What covers a cell of the ground."""
_COVER_SHARES = (0.2, 0.14, 0.2, 0.18, 0.18, 0.1)
_COVER_COLOURS = np.array(
    [(88, 104, 62), (122, 112, 72), (152, 146, 138), (112, 112, 114), (134, 128, 122), (142, 122, 96)]
)
_CROWDS_PER_M2 = {SQUARE: 0.1, GRASS: 0.012, SOIL: 0.02, FIELD: 0.004}
_PLANTS_PER_M2 = {GRASS: 0.02, BUILT: 0.005, SQUARE: 0.003, SOIL: 0.006, FIELD: 0.002}
STALL_WIDTH, STALL_LENGTH, STALL_PERIOD = 2.7, 5.1, 16.0
"""Metres, in car parks: two rows of stalls and an aisle make a period."""
GRID = 16
"""The cells repeat after so many in either direction."""


@dataclass(frozen=True)
class Ground:
    """Square cells of one cover each, in the frame of the first road without its offset, and the roads over them."""

    roads: tuple[Road, ...]
    cell_size: float
    covers: np.ndarray  # int64[GRID, GRID], rows lie across the first road
    cover_colours: np.ndarray  # float32[GRID * GRID, 3], 0 to 255
    asphalt: np.ndarray  # float32[3]
    paving: np.ndarray  # float32[3]
    grain_shift: float  # so that no two scenes show the same grain

    def is_free(self, x: np.ndarray, y: np.ndarray, margin: float | np.ndarray) -> np.ndarray:
        """bool[n]: whether (x, y) keeps `margin` metres from every road and its pavements."""
        free = np.ones(len(x), dtype=bool)
        for road in self.roads:
            free &= np.abs(road.frame(x, y)[1]) > road.half_width + road.pavement + margin
        return free


@dataclass(frozen=True)
class Scene:
    """Everything needed to paint a scene, and its annotations in shares of the image's side."""

    camera: Camera
    ground: Ground
    objects: Objects
    polygons: Polygons
    boxes: np.ndarray  # float32[G, 4]
    labels: np.ndarray  # int64[G]
    ignored: np.ndarray  # float32[R, 4]


def rotate(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Turns (x, y) anticlockwise by `angle` radians."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return x * cos - y * sin, x * sin + y * cos


# What is placed together: parts as (class, models to choose from), length and width in metres.
class _Kind(NamedTuple):
    parts: tuple[tuple[str, tuple[str, ...]], ...]
    length: float
    width: float


_KINDS = {
    "car": _Kind((("car", ("sedan", "hatchback")),), 4.6, 1.9),
    "van": _Kind((("van", ("van",)),), 5.0, 2.0),
    "truck": _Kind((("truck", ("box truck", "flatbed truck")),), 7.2, 2.5),
    "bus": _Kind((("bus", ("bus",)),), 9.4, 2.6),
    "tricycle": _Kind((("tricycle", ("tricycle",)),), 3.0, 1.3),
    "driven tricycle": _Kind((("tricycle", ("tricycle",)), ("people", ("tricycle rider",))), 3.0, 1.3),
    "awning-tricycle": _Kind((("awning-tricycle", ("awning-tricycle",)),), 3.0, 1.4),
    "bicycle": _Kind((("bicycle", ("bicycle",)),), 1.9, 0.6),
    "ridden bicycle": _Kind((("bicycle", ("bicycle",)), ("people", ("bicycle rider",))), 1.9, 0.6),
    "motor": _Kind((("motor", ("motor",)),), 2.0, 0.7),
    "ridden motor": _Kind((("motor", ("motor",)), ("people", ("motor rider",))), 2.0, 0.7),
    "pedestrian": _Kind((("pedestrian", ("walker", "stander")),), 0.6, 0.6),
    "people": _Kind((("people", ("sitter",)),), 0.8, 0.7),
    "digger": _Kind((("other", ("digger",)),), 4.5, 2.4),
    "clutter": _Kind((("clutter", ("post box", "bollard", "skip", "kiosk", "parasol", "bush")),), 2.0, 1.8),
    "container": _Kind((("clutter", ("container",)),), 5.8, 2.4),
}
_KIND_INDEX = {name: index for index, name in enumerate(_KINDS)}
_KIND_LIST = tuple(_KINDS.values())
_LENGTHS = np.array([kind.length for kind in _KIND_LIST])
_WIDTHS = np.array([kind.width for kind in _KIND_LIST])
_ANNOTATED_PARTS = np.array([sum(_LABELS[label] >= 0 for label, _ in kind.parts) for kind in _KIND_LIST])
_IN_GROUPS = [_KIND_INDEX[name] for name in ("pedestrian", "people")]
_IN_ROWS = [_KIND_INDEX[name] for name in ("motor", "bicycle")]

# How often each kind is drawn in each place, relative to the others there.
_ON_LANES = {
    "car": 60,
    "van": 13,
    "truck": 10,
    "bus": 11,
    "ridden motor": 5,
    "driven tricycle": 3,
    "awning-tricycle": 3,
}
_AT_KERBS = {
    "ridden motor": 20,
    "ridden bicycle": 14,
    "driven tricycle": 7,
    "awning-tricycle": 10,
    "tricycle": 4,
    "car": 22,
    "van": 8,
    "digger": 1,
}
_ON_PAVEMENTS = {"pedestrian": 58, "people": 10, "motor": 12, "bicycle": 10, "awning-tricycle": 3, "clutter": 8}
_ON_SQUARES = {
    "pedestrian": 60,
    "people": 16,
    "bicycle": 6,
    "motor": 5,
    "awning-tricycle": 4,
    "tricycle": 3,
    "clutter": 8,
}
_IN_CAR_PARKS = {"car": 66, "van": 16, "truck": 8, "bus": 5, "tricycle": 2, "container": 3}
_ON_GREEN = {"pedestrian": 40, "people": 25, "bicycle": 5, "tricycle": 4, "truck": 3, "digger": 3, "clutter": 20}


def make_scene(rng: np.random.Generator, *, density: float, empty: bool, zoom: float = 1.0) -> Scene:
    """Draws a scene.

    Args:
        density: scales the number of objects that is aimed at; the world may have room for fewer.
        empty: without any object to annotate and without ignored regions.
        zoom: of the camera, 1 or more: it sees 1 / zoom of the field, and objects are `zoom` times as large.
    """
    camera, ground = _draw_camera(rng, zoom), _draw_ground(rng)
    spots, props = _candidates(rng, camera, ground, zoom)
    regions = _draw_regions(rng, 0 if empty else int(rng.choice(4, p=(0.45, 0.3, 0.15, 0.1))))
    if empty:
        spots = spots.take(np.isin(spots.kinds, [_KIND_INDEX["clutter"], _KIND_INDEX["container"]]))
    density /= zoom  # of what is in view; a field of 1 / zoom**2 of the area is then `zoom` times as crowded
    wish = np.exp(rng.normal(np.log(90 * density), 0.85))
    target = int(np.clip(wish, 1.3 * density * MIN_OBJECTS, 0.95 * density * MAX_OBJECTS))
    objects = _make_objects(rng, camera, _choose_spots(rng, camera, spots, regions, target, zoom), props)
    polygons = place_polygons(camera, objects)

    boxes = extents(polygons, len(objects))
    inside = np.clip(boxes, 0, 1)
    sides = inside[:, 2:] - inside[:, :2]
    share_inside = sides.prod(axis=1) / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    fits = ((sides >= zoom * MIN_SIDE) & (sides <= zoom * MAX_SIDE)).all(axis=1) & (share_inside >= MIN_INSIDE)
    is_clutter = objects.labels == CLUTTER
    in_region = _inside((boxes[:, :2] + boxes[:, 2:]) / 2, regions)
    stays = is_clutter | in_region | fits
    candidates = polygons.take(stays[polygons.owners])
    to_annotate = fits & ~is_clutter & ~in_region
    to_annotate &= visible_shares(candidates, to_annotate) >= 1 - MAX_HIDDEN
    stays = is_clutter | in_region | to_annotate
    polygons = polygons.take(stays[polygons.owners])
    is_object, is_other = to_annotate & (objects.labels >= 0), to_annotate & (objects.labels == OTHER)
    return Scene(
        camera,
        ground,
        objects.take(stays),
        replace(polygons, owners=(np.cumsum(stays) - 1)[polygons.owners]),
        inside[is_object],
        objects.labels[is_object],
        np.concatenate((regions, inside[is_other])),
    )


def _draw_camera(rng: np.random.Generator, zoom: float) -> Camera:
    """A camera 20 to 190 m up, whatever its zoom; nothing of the sky is in view."""
    focal = rng.uniform(0.9, 1.7)
    lowest = np.arctan(0.5 / focal) + np.radians(13)
    pitch = lowest + (np.radians(86) - lowest) * rng.beta(1.1, 1.6)
    roll = np.radians(rng.normal(0, 1.5))
    metre = np.exp(rng.uniform(np.log(4.5), np.log(13))) / REFERENCE_PX  # in the middle of the image, without zoom
    forward = np.array([0, np.cos(pitch), -np.sin(pitch)])
    right, up = np.array([1, 0, 0]), np.array([0, np.sin(pitch), np.cos(pitch)])
    cos, sin = np.cos(roll), np.sin(roll)
    return Camera(
        position=(-focal / metre * forward).astype(np.float32),
        right=(cos * right + sin * up).astype(np.float32),
        up=(cos * up - sin * right).astype(np.float32),
        forward=forward.astype(np.float32),
        focal=zoom * focal,
    )


def _draw_ground(rng: np.random.Generator) -> Ground:
    angle = rng.normal(np.pi / 2, 0.35) if rng.random() < 0.5 else rng.uniform(0, np.pi)
    frames = [(angle, rng.normal(0, 7))]
    if rng.random() < 0.65:
        frames.append((angle + np.pi / 2 + rng.normal(0, 0.08), rng.uniform(-25, 25)))
    if rng.random() < 0.35:
        frames.append((angle, frames[0][1] + rng.choice((-1, 1)) * rng.uniform(32, 55)))
    if rng.random() < 0.07:
        frames = [(angle, 1e4)]  # far out of sight
    roads = tuple(Road(*frame, int(rng.choice((2, 2, 4, 4, 6))), rng.uniform(2, 4.5)) for frame in frames)
    covers = rng.choice(len(_COVER_SHARES), size=(GRID, GRID), p=_COVER_SHARES)
    colours = _COVER_COLOURS[covers.ravel()] * rng.normal(1, 0.1, (GRID**2, 1)) + rng.normal(0, 3, (GRID**2, 3))
    return Ground(
        roads,
        cell_size=rng.uniform(22, 38),
        covers=covers,
        cover_colours=colours.astype(np.float32),
        asphalt=(rng.uniform(70, 125) + rng.normal(0, 2, 3)).astype(np.float32),
        paving=(rng.uniform(125, 175) + rng.normal(0, 3, 3)).astype(np.float32),
        grain_shift=rng.uniform(0, 1000),
    )


def _draw_regions(rng: np.random.Generator, count: int) -> np.ndarray:
    """float32[count, 4]: where objects are not annotated; more often far away, as in VisDrone."""
    centres = np.stack((rng.uniform(0, 1, count), rng.beta(1, 2, count)), axis=-1)
    halves = np.stack((rng.uniform(0.04, 0.13, count), rng.uniform(0.03, 0.09, count)), axis=-1)
    return np.clip(np.concatenate((centres - halves, centres + halves), axis=1), 0, 1).astype(np.float32)


@dataclass(frozen=True)
class _Spots(Arrays):
    """Where something of a kind could stand, and its heading."""

    kinds: np.ndarray  # int64[m]
    x: np.ndarray
    y: np.ndarray
    yaw: np.ndarray

    @classmethod
    def none(cls) -> _Spots:
        return cls(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0), np.zeros(0))

    @classmethod
    def join(cls, spots: Sequence[_Spots]) -> _Spots:
        return cls(*(np.concatenate([getattr(part, field.name) for part in spots]) for field in fields(cls)))


class _Prop(NamedTuple):
    """A house, a plant or a lamp: stands where it is put, and is never annotated."""

    model: str
    x: float
    y: float
    yaw: float
    scale: tuple[float, float, float]


def _draw_kinds(rng: np.random.Generator, shares: dict[str, int], count: int) -> np.ndarray:
    edges = np.cumsum(list(shares.values()))
    drawn = np.searchsorted(edges, rng.random(count) * edges[-1], side="right")
    return np.array([_KIND_INDEX[name] for name in shares])[drawn]


def _groups(rng: np.random.Generator, shares: dict[str, int], x: np.ndarray, y: np.ndarray, row_yaw: float) -> _Spots:
    """Small groups at (x, y): people in knots, parked two-wheelers in rows along `row_yaw`, the rest alone."""
    kinds = _draw_kinds(rng, shares, len(x))
    in_group, in_row = np.isin(kinds, _IN_GROUPS), np.isin(kinds, _IN_ROWS)
    members = np.where(in_group, rng.integers(1, 6, len(x)), np.where(in_row, rng.integers(1, 8, len(x)), 1))
    group = np.repeat(np.arange(len(x)), members)
    rank = np.arange(len(group)) - np.repeat(np.cumsum(members) - members, members)
    scatter = rng.normal(0, 0.9, (2, len(group))) * in_group[group]
    step = 0.85 * rank * in_row[group]
    parked = row_yaw + np.pi / 2 + rng.normal(0, 0.12, len(group))
    return _Spots(
        kinds[group],
        x[group] + scatter[0] + step * np.cos(row_yaw),
        y[group] + scatter[1] + step * np.sin(row_yaw),
        np.where(in_row[group], parked, rng.uniform(0, 2 * np.pi, len(group))),
    )


def _road_spots(rng: np.random.Generator, road: Road, reach: float) -> list[_Spots]:
    """Traffic on the lanes, slow traffic and parked cars at the kerbs, and what is on the pavements."""
    spots = []
    mean_gap = rng.uniform(1.5, 16)
    for lane in range(road.lanes):
        middle = (lane + 0.5 - road.lanes / 2) * road.LANE_WIDTH
        along = np.cumsum(6 + rng.exponential(mean_gap, int(2 * reach / (6 + mean_gap)))) - reach
        x, y = road.world(along, middle + rng.normal(0, 0.25, len(along)))
        yaw = road.angle + (0 if middle < 0 else np.pi) + rng.normal(0, 0.04, len(along))  # keeping to the right
        spots.append(_Spots(_draw_kinds(rng, _ON_LANES, len(along)), x, y, yaw))
    for side in (-1, 1):
        count = rng.poisson(2 * reach * 0.12 * rng.random())
        x, y = road.world(rng.uniform(-reach, reach, count), np.full(count, side * (road.half_width - 0.9)))
        yaw = road.angle + (0 if side < 0 else np.pi) + rng.normal(0, 0.08, count)
        spots.append(_Spots(_draw_kinds(rng, _AT_KERBS, count), x, y, yaw))
        count = rng.poisson(2 * reach * 0.2 * rng.random())
        across = side * (road.half_width + rng.uniform(0.5, road.pavement - 0.3, count))
        x, y = road.world(rng.uniform(-reach, reach, count), across)
        spots.append(_groups(rng, _ON_PAVEMENTS, x, y, road.angle))
    return spots


def _roadside_props(rng: np.random.Generator, road: Road, reach: float) -> list[_Prop]:
    """A row of trees or lamps on some sides of the road."""
    props = []
    for side in (-1, 1):
        if rng.random() < 0.5:
            continue
        along = np.arange(-reach, reach, rng.uniform(6, 20)) + rng.normal(0, 0.5)
        x, y = road.world(along, np.full(len(along), side * (road.half_width + road.pavement + 0.4)))
        model, scale = ("tree", rng.uniform(0.5, 1.0)) if rng.random() < 0.7 else ("lamp post", 1.0)
        turn = road.angle - side * np.pi / 2
        props += [_Prop(model, float(a), float(b), turn, (scale,) * 3) for a, b in zip(x, y, strict=True)]
    return props


def _cell_spots(rng: np.random.Generator, cover: int, size: float, angle: float) -> _Spots:
    """What may stand in one cell, relative to its corner and along its axes; `angle` is that of the cells."""
    if cover == CAR_PARK:
        row, stall = np.meshgrid(
            np.arange(STALL_LENGTH / 2, size - 2.5, STALL_PERIOD), np.arange(STALL_WIDTH / 2, size - 1.3, STALL_WIDTH)
        )
        u, v = np.tile(stall.ravel(), 2), np.concatenate((row.ravel(), row.ravel() + STALL_LENGTH))
        taken = (rng.random(len(u)) < rng.uniform(0.35, 0.95)) & (v < size - 2.5)
        count = int(taken.sum())
        yaw = angle + np.pi * (rng.integers(0, 2, count) - 0.5) + rng.normal(0, 0.04, count)
        u, v = u[taken] + rng.normal(0, 0.1, count), v[taken] + rng.normal(0, 0.2, count)
        return _Spots(_draw_kinds(rng, _IN_CAR_PARKS, count), u, v, yaw)
    crowds = rng.poisson(_CROWDS_PER_M2.get(cover, 0.0) * rng.random() ** 2.5 * size**2)
    u, v = rng.uniform(1, size - 1, (2, crowds))
    return _groups(rng, _ON_SQUARES if cover == SQUARE else _ON_GREEN, u, v, rng.uniform(0, np.pi))


def _cell_props(rng: np.random.Generator, cover: int, size: float, angle: float) -> list[_Prop]:
    """Houses and plants of one cell, relative to its corner and along its axes."""
    props = []
    if cover == BUILT and rng.random() < 0.5:
        height = rng.uniform(5, 14)
        scale = (size * rng.uniform(0.5, 0.8), size * rng.uniform(0.35, 0.6), height)
        props.append(_Prop("office" if height > 8 else "shop", size / 2, size / 2, angle, scale))
    elif cover == BUILT:
        for u in np.arange(5, size - 4, 9.5).tolist():
            for v in (size * 0.25, size * 0.72):
                if rng.random() < 0.8:
                    scale = (rng.uniform(6, 8.5), rng.uniform(5, 7), rng.uniform(3.5, 6))
                    props.append(_Prop("house", u, v, angle + rng.integers(0, 2) * np.pi / 2, scale))
    for _ in range(rng.poisson(_PLANTS_PER_M2.get(cover, 0.0) * rng.random() * size**2)):
        model = ("tree", "old tree", "bush")[rng.integers(3)]
        u, v = rng.uniform(1, size - 1, 2).tolist()
        props.append(_Prop(model, u, v, rng.uniform(0, 6.3), (rng.uniform(0.6, 1.5),) * 3))
    return props


def _candidates(rng: np.random.Generator, camera: Camera, ground: Ground, zoom: float) -> tuple[_Spots, list[_Prop]]:
    """Everything that could stand in or near the view: far more spots than will be taken, and all props."""
    corners_x, corners_y, _ = camera.ground_at(np.array([0.0, 1, 0, 1]), np.array([0.0, 0, 1, 1]))
    reach = float(min(150, np.hypot(corners_x, corners_y).max()))
    spots, props = [_Spots.none()], []
    for road in ground.roads:
        if abs(road.offset) < reach:
            spots += _road_spots(rng, road, reach)
            props += _roadside_props(rng, road, reach)
    size, angle = ground.cell_size, ground.roads[0].angle
    span = np.arange(-int(reach / size) - 1, int(reach / size) + 1)
    columns, rows = (axis.ravel() for axis in np.meshgrid(span, span))
    seen = _in_view(camera, *rotate((columns + 0.5) * size, (rows + 0.5) * size, angle), margin=0.35 * zoom)
    for column, row in zip(columns[seen].tolist(), rows[seen].tolist(), strict=True):
        cover = int(ground.covers[row % GRID, column % GRID])
        cell = _cell_spots(rng, cover, size, angle)
        x, y = rotate(cell.x + column * size, cell.y + row * size, angle)
        spots.append(replace(cell, x=x, y=y).take(ground.is_free(x, y, 0.5)))
        for prop in _cell_props(rng, cover, size, angle):
            x, y = rotate(np.array([prop.x + column * size]), np.array([prop.y + row * size]), angle)
            if ground.is_free(x, y, 0.7 * max(prop.scale[:2]))[0]:
                props.append(prop._replace(x=float(x[0]), y=float(y[0])))
    anchors, depth = camera.project(np.array([(prop.x, prop.y, 0) for prop in props]).reshape(-1, 3))
    sizes = np.array([8.0 if prop.model == "lamp post" else 3 * max(prop.scale) for prop in props])
    margin = (sizes * camera.focal / depth)[:, None]
    near = ((anchors > -margin) & (anchors < 1 + margin)).all(axis=1)
    return _Spots.join(spots), [prop for prop, keep in zip(props, near, strict=True) if keep]


def _in_view(camera: Camera, x: np.ndarray, y: np.ndarray, margin: float) -> np.ndarray:
    image, _ = camera.project_ground(x, y)
    inside: np.ndarray = np.logical_and.reduce((image > -margin) & (image < 1 + margin), axis=1)
    return inside


def _inside(points: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """bool[n]: whether each point [n, 2] lies in any of the regions [r, 4]."""
    x, y = points[:, :1], points[:, 1:]
    hits = (x >= regions[:, 0]) & (y >= regions[:, 1]) & (x <= regions[:, 2]) & (y <= regions[:, 3])
    inside: np.ndarray = np.logical_or.reduce(hits, axis=1)
    return inside


def _choose_spots(
    rng: np.random.Generator, camera: Camera, spots: _Spots, regions: np.ndarray, target: int, zoom: float
) -> _Spots:
    """Takes spots at random, none overlapping, until about `target` objects stand, and crowds the regions."""
    spots = spots.take(rng.permutation(len(spots.kinds)))
    spots = spots.take(_in_view(camera, spots.x, spots.y, margin=0.02))
    lengths, widths = _LENGTHS[spots.kinds], _WIDTHS[spots.kinds]
    image, depth = camera.project_ground(spots.x, spots.y)
    metre = camera.focal / depth
    in_region = _inside(image, regions)
    fits = (lengths * metre < 1.5 * zoom * MAX_SIDE) & (in_region | (widths * metre > 0.8 * zoom * MIN_SIDE))
    # A footprint is the set of 0.7 m tiles of the ground that points spread over it fall on, each as one integer.
    u, v = (axis.ravel() for axis in np.meshgrid(np.linspace(-0.5, 0.5, 15), np.linspace(-0.5, 0.5, 5)))
    offset_x, offset_y = lengths[:, None] * u, widths[:, None] * v
    cos, sin = np.cos(spots.yaw)[:, None], np.sin(spots.yaw)[:, None]
    tile_x = np.floor((spots.x[:, None] + offset_x * cos - offset_y * sin) / 0.7)
    tile_y = np.floor((spots.y[:, None] + offset_x * sin + offset_y * cos) / 0.7)
    footprints = (tile_x * 4096 + tile_y).astype(np.int64).tolist()
    parts = _ANNOTATED_PARTS[spots.kinds].tolist()
    crowd, occupied, chosen = 60 * len(regions), set[int](), []
    for spot in np.flatnonzero(fits).tolist():
        if (crowd if in_region[spot] else target) <= 0 or not occupied.isdisjoint(footprints[spot]):
            continue
        occupied.update(footprints[spot])
        chosen.append(spot)
        if in_region[spot]:
            crowd -= 1
        else:
            target -= parts[spot]
    return spots.take(np.array(chosen, dtype=np.int64))


def _make_objects(rng: np.random.Generator, camera: Camera, spots: _Spots, props: list[_Prop]) -> Objects:
    """The objects at the spots and the props, in the order to paint them: far ones first."""
    rows: list[tuple[int, int, float, float, int, float, tuple[float, float, float]]] = []
    sizes = rng.normal(1, 0.06, len(spots.kinds)).tolist()
    places = zip(spots.kinds.tolist(), spots.x.tolist(), spots.y.tolist(), spots.yaw.tolist(), sizes, strict=True)
    for kind, x, y, yaw, size in places:
        for part, (label, models) in enumerate(_KIND_LIST[kind].parts):
            model = _MODEL_INDEX[models[rng.integers(len(models))]]
            rows.append((model, _LABELS[label], x, y, part, yaw, (size, size, size)))
    rows += [(_MODEL_INDEX[prop.model], CLUTTER, prop.x, prop.y, 0, prop.yaw, prop.scale) for prop in props]
    # Nearer is what is nearer to the point below the camera; a rider comes after what is ridden.
    foot_x, foot_y = float(camera.position[0]), float(camera.position[1])
    rows.sort(key=lambda row: (-np.hypot(row[2] - foot_x, row[3] - foot_y), row[4]))
    models_ = np.array([row[0] for row in rows], dtype=np.int64)
    return Objects(
        models=models_,
        positions=np.array([(row[2], row[3], 0) for row in rows], dtype=np.float32).reshape(-1, 3),
        yaws=np.array([row[5] for row in rows], dtype=np.float32),
        scales=np.array([row[6] for row in rows], dtype=np.float32).reshape(-1, 3),
        labels=np.array([row[1] for row in rows], dtype=np.int64),
        colours=_draw_colours(rng, models_),
    )


def _draw_colours(rng: np.random.Generator, models: np.ndarray) -> np.ndarray:
    """float32[n, roles, 3], about 0 to 255, for n objects of the given models."""

    def draw(paints: np.ndarray, count: int) -> np.ndarray:
        return paints[rng.integers(0, len(paints), count)]

    count = len(models)
    colours = np.empty((count, len(Role), 3), dtype=np.float32)
    for role, colour in FIXED.items():
        colours[:, role] = colour
    for role, paints in ((Role.METAL, METAL), (Role.SKIN, SKIN), (Role.LEGS, TROUSERS)):
        colours[:, role] = draw(paints, count)
    for model in np.unique(models):
        which = np.flatnonzero(models == model)
        colours[which, Role.BODY] = draw(_MODELS[model].body, len(which))
        colours[which, Role.TRIM] = draw(_MODELS[model].trim, len(which))
    awnings = np.isin(models, [_MODEL_INDEX[name] for name in ("awning-tricycle", "kiosk", "parasol")])
    plain = np.flatnonzero(awnings & (rng.random(count) < 0.6))
    colours[plain, Role.LAMP] = 0.85 * colours[plain, Role.TRIM]  # the others have pale stripes
    colours *= rng.normal(1, 0.07, (count, len(Role), 1))
    colours += rng.normal(0, 5, (count, len(Role), 3))
    return colours
