"""The solids that stand in the synthetic scenes: coloured polygons in metres, a few dozen each.

Local frame: x forwards, y to the left, z up, the origin on the ground below the middle. Every solid lists its polygons
from the ground up, which is the order to paint them in for a camera that looks down.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

MAX_CORNERS = 8
Point = tuple[float, float, float]


class Role(IntEnum):
    """What a polygon is made of; each object has its own colour for each."""

    BODY = 0
    TRIM = 1
    GLASS = 2
    DARK = 3
    LAMP = 4
    TAIL = 5
    SKIN = 6
    HAIR = 7
    LEGS = 8
    METAL = 9


@dataclass(frozen=True)
class Model:
    """F polygons of up to 8 corners; shorter ones repeat their last corner. And the paints to choose from.

    Attributes:
        anchors: float32[F, 8, 3], metres.
        billboard: float32[F, 8, 2], metres added along the camera's right and up: balls look round from everywhere.
        corners: int64[F], 3 to 8.
        roles: int64[F], see `Role`.
        one_sided: bool[F], seen only from the side where the corners run anticlockwise.
        outline: bool[F], False for details that lie on other polygons.
        body, trim: float32[any number, 3], colours 0 to 255 of `Role.BODY` and `Role.TRIM`; frequent ones repeat.
    """

    anchors: np.ndarray
    billboard: np.ndarray
    corners: np.ndarray
    roles: np.ndarray
    one_sided: np.ndarray
    outline: np.ndarray
    body: np.ndarray
    trim: np.ndarray


def palette(text: str) -> np.ndarray:
    """float32[n, 3] of colours written as "rrggbb" or "rrggbb*times"."""
    colours = []
    for word in text.split():
        colour, _, times = word.partition("*")
        colours += [tuple(bytes.fromhex(colour))] * int(times or 1)
    return np.array(colours, dtype=np.float32)


_CAR = "ebebe8*6 282a2e*4 a8acb0*4 6e7278*2 a82222*2 243e80*2 1c5c96 c4b03c 785438 346048"
_VAN = "e8e8e4*5 b0b2b4*3 606870 465c82"
_BOLD = "287846 2454a0 be9628 b4322c d6d8d6 3c8ca0 c86428"
_CARGO_TRICYCLE = "1e4696 a02828 286e50 50545a 969696"
_CLOTHES = "202026*4 e1e1de*3 96282e 283c78 5a82aa c8aa3c c4788c 466446 78787c 6e503c"
_WALLS = "beb8ac a89684 cececc 966e5a 8c9096"
_ROOFS = "965442 787a7e 607084 aa9682 8c463c"

SKIN = palette("e0b294 c69676 96684c")
TROUSERS = palette("1e2028 2c3654 46423c 6e6a64 a09682")
METAL = palette("82868a 5a5650 967854 3c3e40")
FIXED = {
    Role.GLASS: (44, 54, 66),
    Role.DARK: (34, 34, 36),
    Role.LAMP: (236, 232, 214),
    Role.TAIL: (176, 30, 28),
    Role.HAIR: (34, 28, 26),
}


_CIRCLE = np.stack(
    [
        np.cos(np.arange(MAX_CORNERS) * 2 * np.pi / MAX_CORNERS),
        np.sin(np.arange(MAX_CORNERS) * 2 * np.pi / MAX_CORNERS),
    ],
    axis=-1,
)


class _Builder:
    """Collects polygons; each method adds some and returns the builder."""

    def __init__(self) -> None:
        self._polygons: list[tuple[np.ndarray, np.ndarray, int, Role, bool, bool]] = []

    def polygon(self, points: list[Point], role: Role, *, one_sided: bool = True, outline: bool = True) -> _Builder:
        padded = points + [points[-1]] * (MAX_CORNERS - len(points))
        flat = np.zeros((MAX_CORNERS, 2))
        self._polygons.append((np.array(padded), flat, len(points), role, one_sided, outline))
        return self

    def box(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        side: Role,
        top: Role | None = None,
        *,
        front: Role | None = None,
        back: Role | None = None,
        inset: tuple[float, float, float] = (0, 0, 0),
    ) -> _Builder:
        """A box without bottom, whose top is `inset` by (front, back, each side) metres."""
        (x0, x1), (y0, y1), (z0, z1) = x, y, z
        top_x0, top_x1 = x0 + inset[1], x1 - inset[0]
        top_y0, top_y1 = y0 + inset[2], y1 - inset[2]
        low = [(x0, y0, z0), (x1, y0, z0), (x1, y1, z0), (x0, y1, z0)]
        high = [(top_x0, top_y0, z1), (top_x1, top_y0, z1), (top_x1, top_y1, z1), (top_x0, top_y1, z1)]
        for start, role in enumerate((side, front or side, side, back or side)):
            end = (start + 1) % 4
            self.polygon([low[start], low[end], high[end], high[start]], role)
        return self.polygon(high, side if top is None else top)

    def panel(self, axis: str, at: float, u: tuple[float, float], z: tuple[float, float], role: Role) -> _Builder:
        """A detail on an upright side: on "+x" or "-x" it spans y in `u`, on "+y" or "-y" x in `u`."""
        (u0, u1), (z0, z1) = u, z
        if axis in ("-x", "+y"):
            u0, u1 = u1, u0
        if axis[1] == "x":
            points = [(at, u0, z0), (at, u1, z0), (at, u1, z1), (at, u0, z1)]
        else:
            points = [(u0, at, z0), (u1, at, z0), (u1, at, z1), (u0, at, z1)]
        return self.polygon(points, role, outline=False)

    def lid(self, x: tuple[float, float], y: tuple[float, float], z: float, role: Role) -> _Builder:
        """A level detail, seen from above."""
        points = [(x[0], y[0], z), (x[1], y[0], z), (x[1], y[1], z), (x[0], y[1], z)]
        return self.polygon(points, role, outline=False)

    def wheel(self, x: float, y: float, radius: float, *, spokes: bool = False) -> _Builder:
        """A wheel that stands along x, seen from both sides; thin enough to vanish from straight above."""
        for share, role in ((1.0, Role.DARK), (0.72, Role.METAL))[: 2 if spokes else 1]:
            ring = [(x + share * radius * c, y, radius + share * radius * s) for c, s in _CIRCLE]
            self.polygon(ring, role, one_sided=False, outline=share == 1.0)
        return self

    def ball(self, x: float, y: float, z: float, radius: float, role: Role) -> _Builder:
        anchor = np.tile([x, y, z], (MAX_CORNERS, 1))
        self._polygons.append((anchor, radius * _CIRCLE, MAX_CORNERS, role, False, True))
        return self

    def build(self, body: str, trim: str = _BOLD) -> Model:
        anchors, billboard, corners, roles, one_sided, outline = zip(*self._polygons, strict=True)
        return Model(
            np.stack(anchors).astype(np.float32),
            np.stack(billboard).astype(np.float32),
            np.array(corners),
            np.array(roles, dtype=np.int64),
            np.array(one_sided),
            np.array(outline),
            palette(body),
            palette(trim),
        )


def _four_wheels(builder: _Builder, x: float, y: float, radius: float) -> _Builder:
    for wheel_x in (-x, x):
        for wheel_y in (-y, y):
            builder.wheel(wheel_x, wheel_y, radius)
    return builder


def _lights(builder: _Builder, x: float, y: float, z: tuple[float, float]) -> _Builder:
    for side in (-1, 1):
        across = (side * y - 0.18, side * y + 0.18)
        builder.panel("+x", x + 0.01, across, z, Role.LAMP).panel("-x", -x - 0.01, across, z, Role.TAIL)
    return builder


def _sedan() -> Model:
    builder = _four_wheels(_Builder(), 1.35, 0.88, 0.33)
    builder.box((-2.2, 2.2), (-0.9, 0.9), (0.25, 0.85), Role.BODY, inset=(0.1, 0.08, 0.04))
    _lights(builder, 2.2, 0.65, (0.55, 0.75))
    builder.box(
        (-1.75, 1.05), (-0.84, 0.84), (0.85, 1.45), Role.GLASS, Role.BODY, inset=(0.75, 0.65, 0.16)
    )  # all glass below the roof
    return builder.build(_CAR)


def _hatchback() -> Model:
    builder = _four_wheels(_Builder(), 1.25, 0.88, 0.36)
    builder.box((-2.05, 2.05), (-0.92, 0.92), (0.3, 0.95), Role.BODY, inset=(0.08, 0.04, 0.04))
    _lights(builder, 2.05, 0.66, (0.65, 0.85))
    builder.box((-2.0, 0.95), (-0.86, 0.86), (0.95, 1.6), Role.GLASS, Role.BODY, inset=(0.7, 0.3, 0.14))
    return builder.lid((-0.9, -0.1), (-0.35, 0.35), 1.61, Role.GLASS).build(_CAR)  # a sunroof


def _van() -> Model:
    builder = _four_wheels(_Builder(), 1.5, 0.93, 0.36)
    builder.box((-2.45, 2.45), (-0.95, 0.95), (0.3, 1.15), Role.BODY, inset=(0.25, 0, 0))
    _lights(builder, 2.4, 0.7, (0.6, 0.85))
    builder.box(
        (-2.45, 2.2), (-0.95, 0.95), (1.15, 2.05), Role.BODY, front=Role.GLASS, back=Role.BODY, inset=(0.75, 0.05, 0.1)
    )
    for axis, y in (("+y", 0.93), ("-y", -0.93)):
        builder.panel(axis, y, (0.55, 1.6), (1.2, 1.75), Role.GLASS)
        builder.panel(axis, y, (-2.4, 0.4), (0.75, 0.9), Role.TRIM)
    builder.panel("-x", -2.46, (-0.7, 0.7), (1.3, 1.8), Role.GLASS)
    for x in (-1.9, -1.1, -0.3):
        builder.lid((x, x + 0.12), (-0.75, 0.75), 2.06, Role.TRIM)  # roof ribs
    return builder.build(_VAN, "96989c bec0c0")


def _cab(builder: _Builder, back: float, front: float) -> None:
    builder.box((back, front), (-1.05, 1.05), (0.45, 1.45), Role.BODY)
    builder.box((back, front), (-1.05, 1.05), (1.45, 2.35), Role.BODY, front=Role.GLASS, inset=(0.35, 0.05, 0.08))
    for axis, y in (("+y", 1.03), ("-y", -1.03)):
        builder.panel(axis, y, (back + 0.4, front - 0.35), (1.5, 2.1), Role.GLASS)
    for side in (-1, 1):
        builder.panel("+x", front + 0.01, (side * 0.75 - 0.2, side * 0.75 + 0.2), (0.65, 0.9), Role.LAMP)


def _box_truck() -> Model:
    builder = _four_wheels(_Builder(), 2.3, 1.08, 0.45)
    builder.box((-3.4, 2.0), (-0.9, 0.9), (0.4, 0.8), Role.DARK)
    _cab(builder, 1.75, 3.4)
    builder.box((-3.4, 1.5), (-1.2, 1.2), (0.8, 2.95), Role.TRIM)
    builder.panel("-x", -3.41, (-0.04, 0.04), (0.8, 2.9), Role.DARK)
    return builder.build(_BOLD, "dededc*3 969ca0 3c6496 5a825a")


def _flatbed_truck() -> Model:
    builder = _four_wheels(_Builder(), 2.3, 1.08, 0.45)
    _cab(builder, 1.75, 3.4)
    builder.box((-3.4, 1.5), (-1.2, 1.2), (0.5, 1.5), Role.BODY)
    builder.lid((-3.25, 1.35), (-1.05, 1.05), 1.51, Role.METAL)  # the load, or the empty bed
    for x in (-2.2, -0.9, 0.4):
        builder.lid((x, x + 0.12), (-1.05, 1.05), 1.52, Role.DARK)
    return builder.build(_BOLD)


def _bus() -> Model:
    builder = _four_wheels(_Builder(), 2.8, 1.22, 0.48)
    builder.box((-4.5, 4.5), (-1.25, 1.25), (0.35, 2.95), Role.BODY)
    builder.panel("+x", 4.51, (-1.1, 1.1), (1.4, 2.6), Role.GLASS).panel(
        "-x", -4.51, (-1.0, 1.0), (1.7, 2.5), Role.GLASS
    )
    _lights(builder, 4.5, 0.95, (0.7, 0.95))
    for axis, y in (("+y", 1.26), ("-y", -1.26)):
        builder.panel(axis, y, (-4.5, 4.5), (0.75, 1.05), Role.TRIM)
        for x in np.arange(-4.2, 3.9, 1.4):
            builder.panel(axis, y, (float(x), float(x) + 1.15), (1.45, 2.4), Role.GLASS)
    for x in (-2.9, 2.1):
        builder.lid((x, x + 0.9), (-0.4, 0.4), 2.96, Role.METAL)  # hatches
    builder.lid((-1.1, 1.1), (-0.85, 0.85), 2.97, Role.TRIM)  # air conditioning
    return builder.build(_BOLD, "e1e1de 464a50 be3c32")


def _cargo_tricycle(builder: _Builder) -> None:
    builder.wheel(1.25, 0.0, 0.3).wheel(-0.8, 0.62, 0.3).wheel(-0.8, -0.62, 0.3)
    builder.box((-1.4, 0.05), (-0.6, 0.6), (0.35, 0.95), Role.BODY)
    builder.lid((-1.28, -0.07), (-0.48, 0.48), 0.96, Role.METAL)
    builder.box((0.05, 0.5), (-0.35, 0.35), (0.35, 0.8), Role.DARK)
    builder.box((0.5, 1.1), (-0.12, 0.12), (0.35, 0.55), Role.BODY)
    builder.box((0.95, 1.25), (-0.28, 0.28), (0.45, 1.1), Role.BODY)
    builder.box((0.9, 0.98), (-0.45, 0.45), (1.1, 1.18), Role.DARK)


def _tricycle() -> Model:
    builder = _Builder()
    _cargo_tricycle(builder)
    return builder.build(_CARGO_TRICYCLE)


def _awning_tricycle() -> Model:
    builder = _Builder()
    _cargo_tricycle(builder)
    for x, y in ((-1.35, 0.58), (-1.35, -0.58), (0.95, 0.45), (0.95, -0.45)):
        builder.box((x - 0.04, x + 0.04), (y - 0.04, y + 0.04), (0.8, 1.7), Role.METAL)
    builder.box((-1.5, 1.15), (-0.7, 0.7), (1.62, 1.78), Role.TRIM, inset=(0.1, 0.1, 0.15))
    for x in (-1.0, -0.35, 0.3):
        builder.lid((x, x + 0.22), (-0.54, 0.54), 1.79, Role.LAMP)  # pale stripes of the cloth
    return builder.build(_CARGO_TRICYCLE)


def _bicycle() -> Model:
    builder = _Builder().wheel(-0.58, 0.0, 0.36, spokes=True).wheel(0.58, 0.0, 0.36, spokes=True)
    for x in (-0.58, 0.58):
        builder.box((x - 0.36, x + 0.36), (-0.03, 0.03), (0.62, 0.72), Role.DARK)
    builder.box((-0.35, 0.45), (-0.04, 0.04), (0.5, 0.6), Role.BODY)
    builder.polygon([(-0.3, 0, 0.85), (-0.2, 0, 0.3), (-0.1, 0, 0.3), (-0.2, 0, 0.85)], Role.BODY, one_sided=False)
    builder.polygon([(0.55, 0, 0.36), (0.62, 0, 0.36), (0.48, 0, 1.0), (0.4, 0, 1.0)], Role.BODY, one_sided=False)
    builder.box((-0.4, -0.12), (-0.09, 0.09), (0.84, 0.92), Role.DARK)
    return builder.box((0.38, 0.46), (-0.3, 0.3), (0.98, 1.05), Role.METAL).build(_CAR)


def _motor() -> Model:
    builder = _Builder()
    for x in (-0.65, 0.65):
        builder.wheel(x, 0.07, 0.31).wheel(x, -0.07, 0.31)
        builder.box((x - 0.25, x + 0.25), (-0.09, 0.09), (0.4, 0.6), Role.DARK)
    builder.box((-0.8, 0.5), (-0.22, 0.22), (0.3, 0.78), Role.BODY, inset=(0.05, 0.1, 0.04))
    builder.box((-0.8, 0.1), (-0.17, 0.17), (0.78, 0.9), Role.DARK)
    builder.box((0.4, 0.7), (-0.25, 0.25), (0.45, 1.02), Role.BODY, inset=(0.15, 0, 0.05))
    builder.panel("+x", 0.71, (-0.1, 0.1), (0.75, 0.92), Role.LAMP).panel(
        "-x", -0.81, (-0.1, 0.1), (0.6, 0.76), Role.TAIL
    )
    return builder.box((0.38, 0.46), (-0.4, 0.4), (1.02, 1.12), Role.DARK).build(_CAR)


def _upper_body(builder: _Builder, x: float, base: float, lean: float, reach: float) -> None:
    """Torso, arms reaching forwards and head, above a hip at height `base`."""
    chest = x + lean
    builder.box((x - 0.15, x + 0.15 + lean), (-0.26, 0.26), (base, base + 0.62), Role.BODY, inset=(0, lean, 0.04))
    for side in (-1, 1):
        across = (side * 0.32 - 0.06, side * 0.32 + 0.06)
        builder.box((chest - 0.08, chest + 0.1 + reach), across, (base + 0.3, base + 0.58), Role.BODY)
        builder.box((chest - 0.02 + reach, chest + 0.12 + reach), across, (base + 0.12, base + 0.34), Role.SKIN)
    builder.ball(chest + 0.02, 0, base + 0.78, 0.15, Role.SKIN)
    builder.ball(chest - 0.03, 0, base + 0.85, 0.15, Role.HAIR)


def _pedestrian(stride: float) -> Model:
    builder = _Builder()
    for side in (-1, 1):
        foot = side * stride
        builder.box((foot - 0.1, foot + 0.16), (side * 0.13 - 0.1, side * 0.13 + 0.1), (0.0, 0.12), Role.DARK)
        builder.box((foot - 0.1, foot + 0.1), (side * 0.13 - 0.1, side * 0.13 + 0.1), (0.1, 0.5), Role.LEGS)
        builder.box((foot / 2 - 0.12, foot / 2 + 0.12), (side * 0.13 - 0.11, side * 0.13 + 0.11), (0.5, 0.9), Role.LEGS)
    _upper_body(builder, 0.0, 0.88, 0.0, 0.0)
    return builder.build(_CLOTHES)


def _sitter() -> Model:
    builder = _Builder()
    builder.box((-0.25, 0.2), (-0.28, 0.28), (0.0, 0.4), Role.METAL)  # a stool
    for side in (-1, 1):
        across = (side * 0.15 - 0.11, side * 0.15 + 0.11)
        builder.box((0.4, 0.58), across, (0.0, 0.45), Role.LEGS).box((0.0, 0.58), across, (0.4, 0.58), Role.LEGS)
    _upper_body(builder, -0.05, 0.5, 0.08, 0.2)
    return builder.build(_CLOTHES)


def _rider(hip: float) -> Model:
    builder = _Builder()
    for side in (-1, 1):
        across = (side * 0.2 - 0.09, side * 0.2 + 0.09)
        builder.box((0.05, 0.25), across, (hip - 0.55, hip - 0.05), Role.LEGS)
        builder.box((-0.25, 0.25), across, (hip - 0.1, hip + 0.08), Role.LEGS)
    _upper_body(builder, -0.25, hip, 0.12, 0.3)
    return builder.build(_CLOTHES)


def _digger() -> Model:
    builder = _Builder().box((-1.5, 1.5), (-1.2, 1.2), (0.0, 0.8), Role.DARK)
    builder.box((-1.6, 1.0), (-1.0, 1.0), (0.8, 1.6), Role.BODY).box(
        (-0.3, 1.0), (0.1, 1.0), (1.6, 2.8), Role.GLASS, Role.BODY
    )
    builder.box((1.0, 3.2), (-0.6, -0.3), (1.4, 1.9), Role.BODY)
    return builder.box((2.9, 3.5), (-0.9, 0.0), (0.2, 1.5), Role.METAL).build("d6a01e dc781e")


def _post_box() -> Model:
    builder = _Builder().box((-0.22, 0.22), (-0.25, 0.25), (0, 1.3), Role.BODY)
    return builder.panel("+x", 0.23, (-0.15, 0.15), (0.9, 1.05), Role.DARK).build(_CLOTHES)


def _bollard() -> Model:
    return (
        _Builder()
        .box((-0.12, 0.12), (-0.12, 0.12), (0, 0.9), Role.BODY)
        .ball(0, 0, 0.95, 0.15, Role.LAMP)
        .build("c84628 3c3e42 c8c8c8")
    )


def _skip() -> Model:
    builder = _Builder().box((-1.5, 1.5), (-0.8, 0.8), (0, 1.3), Role.BODY, inset=(-0.2, -0.2, 0))
    return builder.lid((-1.6, 1.6), (-0.7, 0.7), 1.31, Role.DARK).build(_BOLD)


def _kiosk() -> Model:
    builder = _Builder().box((-1.2, 1.2), (-1.0, 1.0), (0, 1.9), Role.METAL)
    builder.panel("+x", 1.21, (-0.7, 0.7), (0.9, 1.7), Role.DARK)
    builder.box((-1.5, 1.5), (-1.3, 1.3), (1.9, 2.2), Role.TRIM, inset=(0.3, 0.3, 0.3))
    return (
        builder.lid((-1.2, -0.6), (-1.0, 1.0), 2.21, Role.LAMP)
        .lid((0.1, 0.7), (-1.0, 1.0), 2.21, Role.LAMP)
        .build(_WALLS)
    )


def _container() -> Model:
    builder = _Builder().box((-2.9, 2.9), (-1.2, 1.2), (0, 2.5), Role.BODY)
    for x in np.arange(-2.4, 2.5, 0.9):
        builder.lid((float(x), float(x) + 0.15), (-1.2, 1.2), 2.51, Role.METAL)
    return builder.build(_BOLD)


def _parasol() -> Model:
    builder = _Builder().box((-0.05, 0.05), (-0.05, 0.05), (0, 2.0), Role.METAL)
    rim = [(1.3 * float(c), 1.3 * float(s), 1.9) for c, s in _CIRCLE]
    for start in range(MAX_CORNERS):
        role = Role.TRIM if start % 2 else Role.LAMP
        builder.polygon([rim[start], rim[(start + 1) % MAX_CORNERS], (0.0, 0.0, 2.4)], role)
    return builder.build(_WALLS)


def _lamp_post() -> Model:
    builder = _Builder().box((-0.1, 0.1), (-0.1, 0.1), (0, 7.0), Role.METAL)
    return (
        builder.box((0.0, 1.8), (-0.08, 0.08), (6.9, 7.05), Role.METAL)
        .box((1.4, 2.1), (-0.15, 0.15), (6.8, 7.0), Role.LAMP)
        .build(_WALLS)
    )


def _tree(seed: int) -> Model:
    rng = np.random.default_rng(seed)
    builder = _Builder().box((-0.15, 0.15), (-0.15, 0.15), (0, 2.2), Role.METAL)
    for _ in range(16):
        x, y = rng.normal(0, 0.8, 2)
        z = rng.uniform(2.0, 4.2)
        role = Role.BODY if z < 3.4 else Role.TRIM
        builder.ball(float(x), float(y), float(z), float(rng.uniform(0.5, 1.0)), role)
    return builder.build("345228 405a2e 4a562c 3a4826", "507438 607a40 5c6436")


def _bush() -> Model:
    builder = _Builder()
    for x, y, role in ((-0.5, 0.1, Role.BODY), (0.4, -0.2, Role.BODY), (0.0, 0.3, Role.TRIM)):
        builder.ball(x, y, 0.45, 0.55, role)
    return builder.build("3e5c2c 566034", "607c3e")


def _building(rows: int, columns: int) -> Model:
    """A block of 1 x 1 x 1, to be scaled."""
    builder = _Builder().box((-0.5, 0.5), (-0.5, 0.5), (0, 1), Role.BODY, Role.TRIM)
    for axis, at in (("+x", 0.502), ("-x", -0.502), ("+y", 0.502), ("-y", -0.502)):
        for row in range(rows):
            low = (row + 0.35) / rows
            for column in range(columns):
                left = (column + 0.22) / columns - 0.5
                builder.panel(axis, at, (left, left + 0.5 / columns), (low, low + 0.45 / rows), Role.GLASS)
    builder.lid((-0.44, 0.44), (-0.44, 0.44), 1.001, Role.METAL)
    builder.box((-0.3, -0.1), (0.05, 0.3), (1.0, 1.12), Role.LAMP).box((0.1, 0.2), (-0.3, -0.2), (1.0, 1.1), Role.LAMP)
    return builder.build(_WALLS, _ROOFS)


def _house() -> Model:
    """A block with a ridged roof, of 1 x 1 x 1, to be scaled."""
    builder = _Builder().box((-0.5, 0.5), (-0.5, 0.5), (0, 0.65), Role.BODY)
    for axis, at in (("+y", 0.502), ("-y", -0.502)):
        for x in (-0.35, 0.0, 0.25):
            builder.panel(axis, at, (x, x + 0.12), (0.25, 0.5), Role.GLASS)
    west, east = (-0.52, 0.0, 1.0), (0.52, 0.0, 1.0)
    builder.polygon([(-0.52, -0.56, 0.62), (0.52, -0.56, 0.62), east, west], Role.TRIM)
    builder.polygon([(0.52, 0.56, 0.62), (-0.52, 0.56, 0.62), west, east], Role.TRIM)
    builder.polygon([(0.5, -0.5, 0.65), (0.5, 0.5, 0.65), (0.5, 0.0, 0.98)], Role.BODY)
    return builder.polygon([(-0.5, 0.5, 0.65), (-0.5, -0.5, 0.65), (-0.5, 0.0, 0.98)], Role.BODY).build(_WALLS, _ROOFS)


MODELS: dict[str, Model] = {
    "sedan": _sedan(),
    "hatchback": _hatchback(),
    "van": _van(),
    "box truck": _box_truck(),
    "flatbed truck": _flatbed_truck(),
    "bus": _bus(),
    "tricycle": _tricycle(),
    "awning-tricycle": _awning_tricycle(),
    "bicycle": _bicycle(),
    "motor": _motor(),
    "walker": _pedestrian(0.22),
    "stander": _pedestrian(0.04),
    "sitter": _sitter(),
    "bicycle rider": _rider(0.95),
    "motor rider": _rider(0.9),
    "tricycle rider": _rider(0.85),
    "digger": _digger(),
    "post box": _post_box(),
    "bollard": _bollard(),
    "skip": _skip(),
    "kiosk": _kiosk(),
    "container": _container(),
    "parasol": _parasol(),
    "lamp post": _lamp_post(),
    "tree": _tree(1),
    "old tree": _tree(2),
    "bush": _bush(),
    "office": _building(4, 5),
    "shop": _building(1, 4),
    "house": _house(),
}
