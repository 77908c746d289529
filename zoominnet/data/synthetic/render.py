"""The picture of a synthetic scene: ground, light and shadow, polygons, and the camera's faults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from zoominnet.data.synthetic.geometry import pixel_lists
from zoominnet.data.synthetic.layout import (
    CAR_PARK,
    FIELD,
    GRID,
    SQUARE,
    STALL_LENGTH,
    STALL_PERIOD,
    STALL_WIDTH,
    Road,
    Scene,
)
from zoominnet.data.synthetic.models import Role

_COVER_GRAIN = np.array([0.30, 0.22, 0.10, 0.10, 0.14, 0.24], dtype=np.float32)
_ROAD_MARKS = np.array([222, 222, 214], dtype=np.float32)


@dataclass(frozen=True)
class _Look:
    """Light and camera: what changes the picture but not the annotations."""

    sun: np.ndarray  # float32[3], towards it
    shadow: float  # the share of light that a shadow takes
    night: bool
    gain: np.ndarray  # float32[3]
    haze: float  # at the top of the image
    blur_px: float
    noise: float  # standard deviation, grey levels


def _draw_look(rng: np.random.Generator) -> _Look:
    night = bool(rng.random() < 0.1)
    height, direction = np.radians(rng.uniform(28, 75)), rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(height) * np.cos(direction), np.cos(height) * np.sin(direction), np.sin(height)])
    warmth = rng.normal(0, 0.05)
    brightness = rng.uniform(0.3, 0.5) if night else rng.uniform(0.75, 1.25)
    return _Look(
        sun=sun.astype(np.float32),
        shadow=0.1 if night else float(rng.choice((0.12, 0.4, 0.5))),
        night=night,
        gain=(brightness * np.array([1 + warmth, 1, 1 - warmth])).astype(np.float32),
        haze=rng.uniform(0, 0.3) if rng.random() < 0.3 else 0.0,
        blur_px=rng.uniform(0.2, 0.6) if rng.random() < 0.4 else 0.0,
        noise=rng.uniform(5, 11) if night else rng.uniform(1.5, 6),
    )


def render(scene: Scene, size_px: int, rng: np.random.Generator) -> np.ndarray:
    """The scene as uint8[3, size, size], RGB; `rng` decides on light, blur and noise."""
    look = _draw_look(rng)
    ground = _paint_ground(scene, size_px) * _light_on_ground(scene, look, size_px)
    canvas = Image.fromarray(np.ascontiguousarray(np.clip(ground, 0, 255).astype(np.uint8).transpose(1, 2, 0)))
    oversampling = min(4, max(2, 1024 // size_px))
    canvas = canvas.resize((size_px * oversampling,) * 2, Image.Resampling.NEAREST)
    _paint_objects(scene, look, canvas)
    return _expose(look, canvas.reduce(oversampling), rng)


def _noise_tile(seed: int, exponent: float) -> np.ndarray:
    """float32[512 * 512]: seamless noise with a spectrum of 1 / f^exponent, mean 0, deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.fftfreq(512)[None])
    frequency[0, 0] = np.inf
    white = np.random.default_rng(seed).normal(size=(512, 512))
    tile = np.fft.ifft2(np.fft.fft2(white) / frequency**exponent).real
    return ((tile - tile.mean()) / tile.std()).astype(np.float32).ravel()


@lru_cache(maxsize=1)
def _noise_tiles() -> tuple[np.ndarray, np.ndarray]:
    """A rough and a soft one: the grain of every surface."""
    return _noise_tile(1, 0.6), _noise_tile(2, 1.6)


def _grain(tile: np.ndarray, x: np.ndarray, y: np.ndarray, per_metre: float) -> np.ndarray:
    columns = (x * np.float32(per_metre)).astype(np.intp) & 511
    rows = (y * np.float32(per_metre)).astype(np.intp) & 511
    return np.take(tile, rows * 512 + columns)


def _edge(distance: np.ndarray, softness: np.ndarray) -> np.ndarray:
    """1 where `distance`, metres inside of an edge, is well over 0; 0 where well below; a ramp between."""
    return np.clip(np.float32(0.5) + distance / softness, 0, 1)


def _phase(x: np.ndarray, period: float) -> np.ndarray:
    """`x` modulo `period`; much faster than np.mod."""
    turns = x * np.float32(1 / period)
    return (turns - np.floor(turns)) * np.float32(period)


def _paint_ground(scene: Scene, size_px: int) -> np.ndarray:
    """float32[3, size, size], about 0 to 255: the ground without anything on it."""
    axis = (np.arange(size_px, dtype=np.float32) + np.float32(0.5)) / np.float32(size_px)
    band = max(1, 2**15 // size_px)  # rows at a time, such that the arrays stay in the processor's cache
    rows = [_paint_ground_rows(scene, axis, axis[start : start + band]) for start in range(0, size_px, band)]
    return np.concatenate(rows, axis=1)


def _paint_ground_rows(scene: Scene, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32[3, rows, columns]: the ground seen at these image coordinates."""
    ground = scene.ground
    x, y, depth = scene.camera.ground_at(columns[None, :], rows[:, None])
    softness = depth * np.float32(1.5 / (scene.camera.focal * len(columns)))  # metres, a pixel and a half

    cell_u, cell_v = replace(ground.roads[0], offset=0.0).frame(x, y)
    cell_u, cell_v = cell_u / np.float32(ground.cell_size), cell_v / np.float32(ground.cell_size)
    column, row = np.floor(cell_u), np.floor(cell_v)
    u, v = (cell_u - column) * np.float32(ground.cell_size), (cell_v - row) * np.float32(ground.cell_size)
    cell = (row.astype(np.intp) & (GRID - 1)) * GRID + (column.astype(np.intp) & (GRID - 1))
    covers = ground.covers.ravel()
    image = np.stack([np.take(channel, cell) for channel in ground.cover_colours.T])
    grain = np.take(_COVER_GRAIN[covers], cell)
    is_field, is_square, is_car_park = (
        np.take((covers == cover).astype(np.float32), cell) for cover in (FIELD, SQUARE, CAR_PARK)
    )
    furrows = np.abs(_phase(v, 1.6) - np.float32(0.8)) - np.float32(0.4)
    joints = (_phase(u, 2.4) < 0.15) | (_phase(v, 2.4) < 0.15)
    pattern = is_field * furrows * np.clip(np.float32(1.2) - softness, 0, 1) - np.float32(0.1) * is_square * joints
    stalls = _edge(np.float32(0.09) - np.abs(_phase(u, STALL_WIDTH) - np.float32(0.09)), softness)
    marks = is_car_park * stalls * (_phase(v, STALL_PERIOD) < 2 * STALL_LENGTH)

    frames = [road.frame(x, y) for road in ground.roads]
    depths = [road.half_width - np.abs(across) for road, (_, across) in zip(ground.roads, frames, strict=True)]
    on_road = [_edge(depth_in, softness) for depth_in in depths]
    any_road = np.maximum.reduce(on_road)
    paved = np.maximum.reduce(
        [_edge(depth_in + road.pavement, softness) for road, depth_in in zip(ground.roads, depths, strict=True)]
    )
    marks *= 1 - paved
    for index, road in enumerate(ground.roads):
        if not on_road[index].any():
            continue
        lines = _lane_marks(road, *frames[index], depths[index], softness)
        free = on_road[index]
        for other, depth_in in enumerate(depths):
            if other != index:
                free = free * (1 - on_road[other])  # no lines across a junction, and crossings before it
                zebra = (depth_in < -1) & (depth_in > -4)
                lines = np.where(zebra, _phase(frames[index][1], 1.2) < 0.6, lines)
        marks = np.maximum(marks, lines * free)

    colours = ((paved, ground.paving), (any_road, ground.asphalt), (np.float32(0.75) * marks, _ROAD_MARKS))
    for mask, colour in colours:
        image += mask * (colour[:, None, None] - image)
    grain += paved * (np.float32(0.1) - grain)
    x += np.float32(ground.grain_shift)
    rough, soft = _noise_tiles()
    coarse = _grain(soft, x, y, 5)
    light = 1 + pattern * (1 - paved) + grain * (np.float32(0.5) * _grain(rough, y, x, 14) + np.float32(0.6) * coarse)
    light -= any_road * (coarse > 1.3) * np.float32(0.1)  # patches in the asphalt
    image *= light
    return image


def _lane_marks(
    road: Road, along: np.ndarray, across: np.ndarray, depth_in: np.ndarray, softness: np.ndarray
) -> np.ndarray:
    """0 to 1: dashes between the lanes, a line in the middle and one at each edge."""
    to_boundary = _phase(across + np.float32(road.LANE_WIDTH * (road.lanes + 1) / 2), road.LANE_WIDTH)
    to_boundary -= np.float32(road.LANE_WIDTH / 2)
    painted = (_phase(along, 7) < 3.5) | (np.abs(across) < 0.5)
    lines = _edge(np.float32(0.11) - np.abs(to_boundary), softness) * (painted & (depth_in > 1.5))
    return lines + _edge(np.float32(0.1) - np.abs(depth_in - np.float32(0.35)), softness)


def _light_on_ground(scene: Scene, look: _Look, size_px: int) -> np.ndarray:
    """float32[size, size]: the share of the light that reaches the ground."""
    polygons = scene.polygons.take(scene.polygons.outline)
    cast = polygons.world.copy()
    cast[..., :2] -= cast[..., 2:] * (look.sun[:2] / look.sun[2])
    cast[..., 2] = 0
    image, _ = scene.camera.project(cast)
    canvas = Image.new("L", (size_px, size_px), 0)
    draw = ImageDraw.Draw(canvas)
    for points, corners in zip(pixel_lists(image, size_px), polygons.corners.tolist(), strict=True):
        draw.polygon(points[: 2 * corners], fill=255)
    shadows = canvas.filter(ImageFilter.BoxBlur(size_px / 1024))
    return 1 - np.asarray(shadows, dtype=np.float32) * np.float32(look.shadow / 255)


def _paint_objects(scene: Scene, look: _Look, canvas: Image.Image) -> None:
    """Paints every polygon, far ones first, in a flat colour shaded by the sun."""
    polygons = scene.polygons
    sunlit = np.maximum(polygons.normals @ look.sun, 0)
    shade = 0.62 + (0.2 if look.night else 0.5) * sunlit
    colours = scene.objects.colours[polygons.owners, polygons.roles] * shade[:, None]
    if look.night:
        colours[np.isin(polygons.roles, (Role.LAMP, Role.TAIL))] *= 2.5
    fills = np.clip(colours, 0, 255).astype(np.uint8).tolist()
    draw = ImageDraw.Draw(canvas)
    outlines = pixel_lists(polygons.image, canvas.width)
    for points, corners, fill in zip(outlines, polygons.corners.tolist(), fills, strict=True):
        draw.polygon(points[: 2 * corners], fill=tuple(fill))


def _expose(look: _Look, picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """uint8[3, size, size]: blur, exposure, haze and sensor noise."""
    size_px = picture.width
    if look.blur_px:
        picture = picture.filter(ImageFilter.GaussianBlur(look.blur_px))
    image = np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) * look.gain[:, None, None]
    if look.haze:
        image += np.linspace(look.haze, 0, size_px, dtype=np.float32)[:, None] * (200 - image)
    # The difference of two uniform bytes has a deviation of 104.5; the same in all three channels.
    grains = np.frombuffer(rng.bytes(2 * size_px**2), dtype=np.uint8).reshape(2, size_px, size_px)
    image += (grains[0].astype(np.float32) - grains[1]) * np.float32(look.noise / 104.5)
    return np.clip(image, 0, 255).astype(np.uint8)
