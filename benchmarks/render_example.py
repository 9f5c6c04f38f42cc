"""Render examples/sunset_{1,2,3}.jpg: a bracket of a place that does not exist, by a camera that does not either.

    python benchmarks/render_example.py [--out examples] [--width 1200] [--preview picture.png]

A walk through a stone arch to a lake at sunset, cast ray by ray: analytic planes, layered ridges, fractal clouds, mirrored water. Between
the frames a woman walks by, her shadow with her, a balloon drifts, the water moves, and the hands that hold the camera shake. The photos
then come from `gmodiff.simulate` with an S-shaped response that no standard curve matches. No photograph and no other data is used.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.TiffImagePlugin import IFDRational

from gmodiff.simulate import Camera, render_bracket, s_curve

Array = NDArray[np.float32]

SHUTTER = ((1, 640), (1, 160), (1, 40))
"""Exposure times of the three frames: two stops apart."""
ISO, F_NUMBER = 200, 8.0
SEED = 2026
OVERSAMPLING = 2
FIELD_OF_VIEW_TAN = np.float32(np.tan(np.radians(31.0)))  # half of the width: a 30 mm lens on full frame

SUN_AZIMUTH, SUN_ELEVATION = np.radians(7.5), np.radians(7.0)
SUN = np.array(
    [np.sin(SUN_AZIMUTH) * np.cos(SUN_ELEVATION), np.sin(SUN_ELEVATION), np.cos(SUN_AZIMUTH) * np.cos(SUN_ELEVATION)], np.float32
)
SUN_LIGHT = np.array([5.2, 3.1, 1.5], np.float32)  # irradiance of a surface that faces the sun, over pi
SKY_LIGHT = np.array([0.30, 0.27, 0.29], np.float32)  # of an upward surface under the open sky, over pi
ROOM_LIGHT = np.array([0.034, 0.027, 0.022], np.float32)

EYE = np.array([-0.22, 1.6, 0.0], np.float32)
WALL_Z, WALL_DEPTH = 5.0, 0.7
ARCH_HALF_WIDTH, ARCH_SPRING = 1.85, 1.45
TERRACE_END, WATER_LEVEL = 9.4, -3.0
WALKER_Z = 7.6
LANTERN = (-2.66, 2.02)

_LATTICE = np.random.Generator(np.random.PCG64(SEED)).random((256, 256), dtype=np.float32)


# ---- textures -----------------------------------------------------------------------------------------------------------


def noise(x: Array, y: Array) -> Array:
    """Smooth value noise 0..1 with one feature per unit, repeating after 256."""
    u, v = (np.resize(np.mod(a, 256).astype(np.float32), (-(-x.size // 4096), 4096)) for a in (x, y))  # remap wants two dimensions
    return cv2.remap(_LATTICE, u, v, cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP).reshape(-1)[: x.size]


def fractal(x: Array, y: Array, octaves: int, gain: float = 0.5) -> Array:
    """Sum of octaves of noise, scaled to about -1..1."""
    total, amplitude, norm = np.zeros_like(x), 1.0, 0.0
    for k in range(octaves):
        total += np.float32(amplitude) * (noise(x * 2.03**k + 17.3 * k, y * 2.03**k + 5.7 * k) * 2 - 1)
        norm, amplitude = norm + amplitude, amplitude * gain
    return np.asarray(total / np.float32(norm) * 1.6, np.float32)


def step(low: float, high: float, value: Array) -> Array:
    """Smooth step from 0 at low to 1 at high."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def mix(a: Array, b: Array, t: Array) -> Array:
    """a where t is 0, b where t is 1; t (...) against colours (..., 3)."""
    return np.asarray(a + (b - a) * t[..., None], np.float32)


def colour(*rgb: float) -> Array:
    """A colour as an array."""
    return np.array(rgb, np.float32)


# ---- far away: everything that depends on the direction alone -----------------------------------------------------------


def far(d: Array) -> Array:
    """Radiance from directions d (N, 3): sky, sun, clouds, ridges."""
    azimuth, elevation = np.arctan2(d[:, 0], d[:, 2]), np.arcsin(np.clip(d[:, 1], -1, 1))
    off_sun = np.degrees(np.arccos(np.clip(d @ SUN, -1, 1)))
    light = sky(elevation, off_sun)
    light += step(0.62, 0.52, off_sun)[:, None] * colour(135, 112, 84)
    light = clouds(light, d, off_sun)
    return ridges(light, azimuth, elevation, off_sun)


def sky(elevation: Array, off_sun: Array) -> Array:
    """The clear sky: warm at the horizon, blue above, bright around the sun."""
    up = np.clip(elevation, 0, None)
    light = mix(colour(0.52, 0.30, 0.20), colour(0.25, 0.27, 0.36), step(0.0, 0.16, up))
    light = mix(light, colour(0.07, 0.14, 0.30), step(0.08, 0.50, up))
    light += np.exp(-off_sun / 8.5)[:, None] * colour(0.72, 0.34, 0.10)
    light += np.exp(-off_sun / 2.4)[:, None] * colour(2.8, 1.85, 0.9)
    return light


def clouds(light: Array, d: Array, off_sun: Array) -> Array:
    """Two decks: low cumulus-like heaps and high streaks, lit from behind and below."""
    for scale, lift, squeeze, cover, opacity, salt in ((1.15, 0.10, 1.0, 0.10, 0.94, 0.0), (0.5, 0.04, 0.35, 0.06, 0.5, 90.0)):
        x, z = d[:, 0] / (d[:, 1] + lift) * scale + salt + 3.1, d[:, 2] / (d[:, 1] + lift) * scale * squeeze + 40 + salt
        warp = fractal(x * 0.5, z * 0.5, 2)[:, None]
        x, z = x + 0.6 * warp[:, 0], z + 0.4 * warp[:, 0]
        depth = fractal(x, z, 6, 0.55)
        toward_sun = fractal(x + 0.10, z + 0.22, 4, 0.55)
        density = step(cover - 0.12, cover + 0.42, depth) * opacity * step(0.01, 0.07, d[:, 1])
        lit = np.clip(0.5 + 1.5 * (depth - toward_sun), 0, 1)
        body = mix(colour(0.13, 0.12, 0.17), colour(0.72, 0.38, 0.27), lit)
        body *= (1 + 2.2 * np.exp(-off_sun / 8))[:, None]
        rim = density * (1 - density) * 4
        body += (rim * np.exp(-off_sun / 7))[:, None] * colour(1.9, 1.15, 0.6)
        light = mix(light, body, density)
    return light


def ridges(light: Array, azimuth: Array, elevation: Array, off_sun: Array) -> Array:
    """Mountain ranges, the far ones drowned in lit haze, the near ones wooded."""
    haze = mix(colour(0.26, 0.22, 0.26), colour(1.05, 0.56, 0.27), np.exp(-off_sun / 11))
    for base, height, frequency, clarity, salt in (
        (5.2, 3.6, 5.5, 0.30, 3.0), (3.9, 2.9, 8.0, 0.48, 31.0), (2.4, 2.2, 12.0, 0.68, 57.0), (1.0, 1.5, 18.0, 0.92, 101.0),
    ):  # fmt: skip
        x = azimuth * frequency + salt
        outline = base + height * fractal(x, np.full_like(x, salt), 6, 0.52)
        # Ranges fall towards the notch through which the sun shines.
        outline = outline * (1 - 0.55 * np.exp(-(((azimuth - SUN_AZIMUTH) / 0.16) ** 2)))
        if clarity > 0.6:
            outline += 0.09 * clarity * (noise(azimuth * 900 + salt, np.zeros_like(x)) + noise(azimuth * 2100, np.zeros_like(x)) - 1)
        below = step(0.0, 0.0012, np.radians(outline) - elevation)
        slope = fractal(azimuth * 90 + salt, elevation * 210, 5, 0.6)
        body = colour(0.035, 0.040, 0.045) * (1 + 0.55 * slope[:, None]) + colour(0.03, 0.02, 0.008) * np.clip(slope, 0, 1)[:, None]
        # Mist lies on the lake and thins out upwards.
        mist = (1 - clarity) + clarity * 0.55 * np.exp(-np.clip(np.degrees(elevation), 0, None) / (0.35 + 1.5 * (1 - clarity)))
        light = mix(light, mix(body, haze, np.clip(mist, 0, 1)), below)
    return light


# ---- water --------------------------------------------------------------------------------------------------------------


def water(eye: Array, d: Array, t: float) -> Array:
    """Radiance of the lake at time t (seconds): the mirrored far scene, broken by waves."""
    distance = (WATER_LEVEL - eye[1]) / np.minimum(d[:, 1], -1e-4)
    x, z = eye[0] + d[:, 0] * distance, eye[2] + d[:, 2] * distance
    slope_x, slope_z = np.zeros_like(x), np.zeros_like(x)
    for length, height, speed_x, speed_z in (
        (9.0, 0.035, 0.9, -1.6),
        (2.4, 0.055, -0.8, -1.1),
        (0.7, 0.06, 0.5, -0.7),
        (0.22, 0.05, 0.2, -0.4),
    ):
        u, v = (x + speed_x * t) / length, (z + speed_z * t) / (1.4 * length)
        fade = 1 / (1 + (distance / (420 * length)) ** 2)
        slope_x += np.float32(height) * fade * (noise(u + 31, v) * 2 - 1)
        slope_z += np.float32(height) * fade * (noise(u, v + 67) * 2 - 1)
    normal = np.stack([slope_x * 0.7, np.ones_like(x), slope_z], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    cosine = -(d * normal).sum(axis=1)
    mirrored = d + 2 * cosine[:, None] * normal
    mirrored[:, 1] = np.maximum(mirrored[:, 1], 0.004)
    mirrored /= np.linalg.norm(mirrored, axis=1, keepdims=True)
    fresnel = np.clip(0.02 + 0.98 * (1 - np.clip(cosine, 0, 1)) ** 5, 0, 1)
    deep = colour(0.012, 0.030, 0.036)
    light = mix(np.broadcast_to(deep, d.shape), far(mirrored), fresnel)
    haze = 1 - np.exp(-distance / 1500)
    off_sun = np.degrees(np.abs(np.arctan2(d[:, 0], d[:, 2]) - SUN_AZIMUTH))
    return mix(light, mix(colour(0.26, 0.22, 0.26), colour(1.05, 0.56, 0.27), np.exp(-off_sun / 11)), haze * np.float32(0.6))


# ---- stone --------------------------------------------------------------------------------------------------------------


def in_arch(x: Array, y: Array, grow: float = 0.0) -> NDArray[np.bool_]:
    """Whether points of a wall plane lie in the opening."""
    r = ARCH_HALF_WIDTH + grow
    return (np.abs(x) < r) & ((y < ARCH_SPRING) | (x * x + (y - ARCH_SPRING) ** 2 < r * r))


def blocks(u: Array, v: Array, length: float, height: float, salt: float) -> tuple[Array, Array]:
    """Masonry: albedo factor and a height 0 (joint) to 1 of points (u, v) in metres, courses along u."""
    row = np.floor(v / height)
    shifted = u / length + 0.5 * np.mod(row, 2) + 0.35 * noise(row * 7.1 + salt, np.zeros_like(row))
    cell = np.floor(shifted)
    wobble = 0.012 * fractal(u * 6 + salt, v * 6, 3)
    to_joint = (
        np.minimum(np.abs(shifted - cell - 0.5) * -length + length / 2, np.abs(v / height - row - 0.5) * -height + height / 2) + wobble
    )
    face = step(0.004, 0.022, to_joint)
    tone = 0.72 + 0.56 * noise(cell * 13.7 + salt + 0.5, row * 9.3 + 0.5)
    grain = 1 + 0.28 * fractal(u * 9 + salt, v * 9, 5, 0.62)
    return np.asarray((0.35 + 0.65 * face) * tone * grain, np.float32), face


def wall(x: Array, y: Array) -> Array:
    """The room's side of the wall: brick, and a ring of pale stones round the arch, in the little light that the room has."""
    brick, _ = blocks(x, y, 0.31, 0.105, 11.0)
    radius = np.where(y > ARCH_SPRING, np.hypot(x, y - ARCH_SPRING), np.abs(x))
    along = np.where(y > ARCH_SPRING, np.arctan2(y - ARCH_SPRING, x) * ARCH_HALF_WIDTH, np.where(x > 0, y - ARCH_SPRING, 40 - y))
    stone, _ = blocks(along, radius - ARCH_HALF_WIDTH, 0.34, 0.30, 47.0)
    ring = (radius < ARCH_HALF_WIDTH + 0.30)[:, None]
    warmth = noise(x * 3.3 + 5, y * 9.5)[:, None]
    albedo = np.where(
        ring, colour(0.62, 0.55, 0.45) * stone[:, None], (colour(0.46, 0.25, 0.17) + warmth * colour(0.02, 0.05, 0.05)) * brick[:, None]
    )
    bounce = np.exp(-np.maximum(y, 0) / 1.3) * np.exp(-np.abs(x - 0.6) / 2.2)
    darkness = 0.45 + 0.75 * np.exp(-(radius - ARCH_HALF_WIDTH) / 1.1)
    light = ROOM_LIGHT * darkness[:, None] * 1.5 + bounce[:, None] * colour(0.085, 0.05, 0.026)
    lx, ly = x - LANTERN[0], y - LANTERN[1]
    near = 0.22 / np.sqrt(lx * lx + ly * ly + 0.22**2)
    light += (near**3)[:, None] * colour(0.62, 0.30, 0.09) + (near**1.5)[:, None] * colour(0.035, 0.016, 0.005)
    return lantern(albedo * light, lx, ly)


def lantern(light: Array, x: Array, y: Array) -> Array:
    """A wall lamp over what is behind it; (x, y) in metres from its flame."""
    half = 0.078 + 0.16 * np.clip(y + 0.12, 0, 0.24) * np.where(y < 0.13, 1, 0)  # the glass widens upwards
    glass = np.maximum(np.abs(x) - half, np.abs(y - 0.005) - 0.125)
    roof = np.maximum(np.abs(x) - np.clip(0.15 - (y - 0.13) * 1.15, 0.0, 1), np.maximum(0.125 - y, y - 0.235))
    iron = np.minimum(roof, np.minimum(np.hypot(x, y - 0.26) - 0.022, np.maximum(np.abs(x) - 0.095, np.abs(y + 0.135) - 0.016)))
    iron = np.minimum(iron, np.maximum(np.minimum(np.abs(x), np.abs(np.abs(x) - half + 0.006)) - 0.006, np.abs(y) - 0.13))
    iron = np.minimum(iron, np.maximum(np.abs(x) - 0.012, np.abs(y - 0.34) - 0.07))
    flame = np.exp(-((x / 0.022) ** 2 + ((y + 0.02) / 0.05) ** 2))
    halo = np.exp(-np.hypot(x, y + 0.02) / 0.05)
    pane = halo[:, None] * colour(3.4, 1.7, 0.5) + colour(0.42, 0.19, 0.055) + flame[:, None] * colour(16, 9.5, 3.4)
    light = mix(light, pane, step(0.004, -0.004, glass))
    return mix(light, np.broadcast_to(colour(0.012, 0.010, 0.009), light.shape), step(0.003, -0.003, iron))


def reveal(x: Array, y: Array, z: Array) -> Array:
    """The inside of the arch: stone that sees the sky, and on its left the sun."""
    high = y > ARCH_SPRING
    nx = np.where(high, -x, -np.sign(x) * ARCH_HALF_WIDTH) / ARCH_HALF_WIDTH
    ny = np.where(high, -(y - ARCH_SPRING), 0) / ARCH_HALF_WIDTH
    along = np.where(high, np.arctan2(y - ARCH_SPRING, x) * ARCH_HALF_WIDTH, np.where(x > 0, y - ARCH_SPRING, 40 - y))
    stone, face = blocks(along, z - WALL_Z + 0.02, 0.34, 0.37, 47.0)
    relief = 1 + 0.5 * (fractal(along * 14, z * 14, 4, 0.6) * face)
    sun = np.clip(nx * SUN[0] + ny * SUN[1], 0, 1) * relief
    open_sky = 0.15 + 0.75 * (z - WALL_Z) / WALL_DEPTH
    from_floor = np.clip(-ny, 0, 1) * 0.18 + 0.05
    light = SUN_LIGHT * sun[:, None] + SKY_LIGHT * open_sky[:, None] * 0.55 + colour(0.8, 0.48, 0.25) * from_floor[:, None]
    return colour(0.58, 0.50, 0.40) * stone[:, None] * light


def floor(x: Array, z: Array, d: Array, t: float) -> Array:
    """Flagstones, in the room and on the terrace: sun where nothing stands before it, sky, and a worn shine."""
    flag, face = blocks(x + 0.3, z, 0.95, 0.62, 73.0)
    inside = z < WALL_Z + WALL_DEPTH
    sunlit = np.ones_like(x)
    for plane in (WALL_Z, WALL_Z + WALL_DEPTH):
        px, py = x + SUN[0] / SUN[2] * (plane - z), SUN[1] / SUN[2] * (plane - z)
        sunlit *= np.where(z < plane, in_arch(px, py), True)
    px, py = x + SUN[0] / SUN[2] * (WALKER_Z - z), SUN[1] / SUN[2] * (WALKER_Z - z)
    shaded = z < WALKER_Z
    sunlit[shaded] *= 1 - walker(px[shaded], py[shaded], t)[1]
    relief = np.clip(1 + 0.6 * fractal(x * 13, z * 26, 5, 0.7), 0.2, 2.0)
    open_sky = np.where(inside, 0.10 + 0.5 * np.exp(-(WALL_Z + WALL_DEPTH - z) / 0.9) * np.exp(-np.maximum(np.abs(x) - 1.6, 0) * 2), 0.9)
    light = SUN_LIGHT * SUN[1] * (sunlit * relief)[:, None] + SKY_LIGHT * open_sky[:, None] + ROOM_LIGHT
    mirrored = d * colour(1, -1, 1) + 0.05 * np.stack([fractal(x * 16, z * 16, 3), np.zeros_like(x), np.zeros_like(x)], axis=1)
    mx, my = x + mirrored[:, 0] / mirrored[:, 2] * (WALL_Z - z), mirrored[:, 1] / mirrored[:, 2] * (WALL_Z - z)
    seen = np.where(z < WALL_Z, in_arch(mx, my), True) * face
    shine = (0.03 + 0.55 * (1 - np.abs(d[:, 1])) ** 6) * (0.35 + 0.3 * noise(x * 3, z * 3)) * seen
    rough = np.clip(mirrored[:, 1], 0.02, 1)
    glow = sky(rough, np.degrees(np.arccos(np.clip((mirrored / np.linalg.norm(mirrored, axis=1, keepdims=True)) @ SUN, -1, 1))) + 4)
    return colour(0.42, 0.36, 0.30) * flag[:, None] * light + glow * shine[:, None] * 0.5


# ---- what moves ---------------------------------------------------------------------------------------------------------


def capsule(x: Array, y: Array, ax: float, ay: float, bx: float, by: float, ra: float, rb: float) -> Array:
    """Distance to a rounded limb from (ax, ay), radius ra, to (bx, by), radius rb; negative inside."""
    dx, dy = bx - ax, by - ay
    s = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
    return np.asarray(np.hypot(x - ax - s * dx, y - ay - s * dy) - (ra + s * (rb - ra)), np.float32)


def walker(x: Array, y: Array, t: float) -> tuple[Array, Array]:
    """A woman in a red coat at time t, walking along her plane: radiance (N, 3) and coverage (N)."""
    x = x - (-1.75 + 0.92 * t)
    swing = np.sin(2 * np.pi * t / 1.15 + 0.6)
    y = y + 0.02 * abs(swing)  # lower with the legs apart
    hip, shoulder = 0.86, 1.38
    parts: list[tuple[Array, Array]] = []
    for side in (-1, 1):  # legs, knees bent on the leg that goes forward
        reach = 0.30 * swing * side
        knee = (reach * 0.62 + 0.05, 0.46)
        foot = (reach - (0.08 if reach < 0 else 0.0), 0.05 + (0.04 if reach < 0 else 0.0))
        leg = np.minimum(capsule(x, y, 0, hip, *knee, 0.085, 0.062), capsule(x, y, *knee, *foot, 0.062, 0.042))
        parts.append((np.minimum(leg, capsule(x, y, *foot, foot[0] + 0.13, foot[1] - 0.03, 0.045, 0.03)), colour(0.10, 0.11, 0.16)))

    def arm(side: int) -> Array:
        elbow = (-0.13 * swing * side - 0.02, 1.10)
        upper = capsule(x, y, 0.0, shoulder - 0.04, *elbow, 0.062, 0.052)
        return np.minimum(upper, capsule(x, y, *elbow, -0.24 * swing * side + 0.06, 0.88, 0.052, 0.038))

    coat = capsule(x, y, 0.0, shoulder - 0.05, 0.0, 0.98, 0.135, 0.15)
    skirt = capsule(x, y, 0.0, 1.0, -0.03 * swing, 0.62, 0.14, 0.235)
    parts.append((arm(-1), colour(0.42, 0.05, 0.04)))
    parts.append((np.minimum(coat, np.where(y > 0.60, skirt, 1)), colour(0.55, 0.06, 0.05)))
    parts.append((arm(1), colour(0.50, 0.055, 0.045)))
    parts.append((capsule(x, y, 0.0, 1.42, 0.02, 1.52, 0.05, 0.05), colour(0.45, 0.30, 0.22)))
    parts.append((capsule(x, y, -0.06, 1.46, 0.10, 1.43, 0.055, 0.05), colour(0.75, 0.68, 0.50)))  # scarf
    face = np.minimum(capsule(x, y, 0.03, 1.57, 0.035, 1.64, 0.068, 0.082), capsule(x, y, 0.10, 1.585, 0.125, 1.575, 0.016, 0.010))
    parts.append((face, colour(0.50, 0.33, 0.24)))
    hair = np.minimum(capsule(x, y, -0.035, 1.60, -0.01, 1.665, 0.078, 0.092), capsule(x, y, -0.07, 1.62, -0.11, 1.42, 0.062, 0.035))
    parts.append((hair, colour(0.12, 0.06, 0.03)))
    light, coverage = np.zeros((len(x), 3), np.float32), np.zeros_like(x)
    for distance, albedo in parts:  # later parts hide earlier ones
        inside = step(0.003, -0.003, distance)
        folds = 1 + 0.30 * fractal(x * 14 + 3, y * 5, 3)
        # The sun comes from behind, a little from the right: it grazes the right-hand edges.
        rim = step(-0.028, 0.0, distance) * step(-0.10, 0.16, x + 0.1 * fractal(x * 3, y * 3, 2))
        shade = SKY_LIGHT * folds[:, None] * 0.62 + SUN_LIGHT * (0.26 * rim)[:, None]
        light = mix(light, albedo * shade, inside)
        coverage = np.maximum(coverage, inside)
    return light, coverage


def balloon(azimuth: Array, elevation: Array, t: float) -> tuple[Array, Array]:
    """A hot-air balloon at time t: radiance (N, 3) and coverage (N) of directions in radians."""
    x = np.degrees(azimuth) + 8.4 - 0.55 * t
    y = np.degrees(elevation) - 10.6 - 0.22 * t
    r = 2.0
    side = np.hypot(x, y)
    lower = np.abs(x) - np.clip(
        np.sqrt(np.clip(1 - 0.15 * 0.15, 0, 1)) * r * (1 + (y + 0.15 * r) / (1.35 * r))
        + 0.34 * np.clip(-(y + 0.15 * r) / (1.35 * r), 0, 1),
        0.0,
        None,
    )
    envelope = np.where(y > -0.15 * r, side - r, np.where(y > -1.45 * r, lower, 1.0))
    basket = np.maximum(np.abs(x) - 0.24, np.abs(y + 1.95 * r) - 0.22)
    ropes = np.where((y < -1.4 * r) & (y > -1.85 * r), np.abs(np.abs(x) - 0.27) - 0.02, 1.0)
    bulge = np.clip(1 - (x / r) ** 2, 0.0, 1) ** 0.5
    gore = np.floor(
        np.arcsin(
            np.clip(
                x / np.maximum(r * np.sqrt(np.clip(1 - (np.clip(y, 0, r) / r) ** 2, 0.02, 1)) * np.where(y < 0, 1 + 0.45 * y / r, 1), 0.05),
                -1,
                1,
            )
        )
        * 4.2
    )
    stripe = np.mod(gore, 2)
    cloth = mix(colour(0.82, 0.24, 0.10), colour(0.95, 0.72, 0.22), stripe)
    band = step(0.05, 0.0, np.abs(y / r + 0.02) - 0.16)
    cloth = mix(cloth, colour(0.10, 0.20, 0.42), band * 0.85)
    shine = SKY_LIGHT * (0.9 + 0.5 * bulge)[:, None] + SUN_LIGHT * (0.16 * step(-0.3 * r, 1.1 * r, x))[:, None]
    glow = np.exp(-((y + 1.1 * r) ** 2 + x**2) / (1.5 * r * r))[:, None] * colour(0.9, 0.5, 0.16)
    light = cloth * (shine * 0.8 + glow)
    small = np.minimum(basket, ropes)
    light = mix(light, np.broadcast_to(colour(0.06, 0.045, 0.035), light.shape), step(0.02, -0.02, small))
    flame = np.exp(-(((x / 0.13) ** 2) + ((y + 1.52 * r) / 0.3) ** 2))
    return light + flame[:, None] * colour(9, 5, 2), np.maximum(step(0.03, -0.03, np.minimum(envelope, small)), flame)


# ---- camera -------------------------------------------------------------------------------------------------------------


def look(height: int, width: int, turn: tuple[float, float, float]) -> Array:
    """(H, W, 3) unit directions of the pixels of a camera turned by (yaw, pitch, roll) radians."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    d = np.stack([(x + 0.5 - width / 2) / (width / 2), (height / 2 - y - 0.5) / (width / 2), np.ones_like(x)], axis=-1)
    d[..., :2] *= FIELD_OF_VIEW_TAN
    yaw, pitch, roll = turn
    cr, sr, cp, sp, cy, sy = np.cos(roll), np.sin(roll), np.cos(pitch), np.sin(pitch), np.cos(yaw), np.sin(yaw)
    matrix = (
        np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        @ np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    )
    d = d @ matrix.astype(np.float32)
    return np.asarray(d / np.linalg.norm(d, axis=-1, keepdims=True), np.float32)


def radiance(height: int, width: int, turn: tuple[float, float, float], t: float, opened: float) -> Array:
    """(H, W, 3) scene radiance at the sensor, shutter open from t for `opened` seconds."""
    d = look(height, width, turn).reshape(-1, 3)
    out = np.zeros_like(d)
    at = lambda z: (EYE[0] + d[:, 0] / d[:, 2] * (z - EYE[2]), EYE[1] + d[:, 1] / d[:, 2] * (z - EYE[2]))  # noqa: E731
    down = np.minimum(d[:, 1], -1e-5)
    floor_z = EYE[2] - EYE[1] / down * d[:, 2]
    floor_x = EYE[0] - EYE[1] / down * d[:, 0]
    on_floor = (d[:, 1] < 0) & (floor_z < TERRACE_END)
    near_x, near_y = at(WALL_Z)
    far_x, far_y = at(WALL_Z + WALL_DEPTH)
    passes_near, passes_far = in_arch(near_x, near_y), in_arch(far_x, far_y)
    is_floor = on_floor & (
        (floor_z < WALL_Z) | (passes_near & ((floor_z < WALL_Z + WALL_DEPTH) & (np.abs(floor_x) < ARCH_HALF_WIDTH) | passes_far))
    )
    is_wall = ~is_floor & ~passes_near
    is_reveal = ~is_floor & passes_near & ~passes_far
    outside = ~is_floor & ~is_wall & ~is_reveal
    is_water = outside & (d[:, 1] < -0.0015)
    is_far = outside & ~is_water
    fill(out, is_wall, lambda m: wall(near_x[m], near_y[m]))
    if is_reveal.any():
        fill(out, is_reveal, lambda m: reveal(*hit_reveal(d[m])))
    fill(out, is_floor, lambda m: floor(floor_x[m], floor_z[m], d[m], t))
    fill(out, is_far, lambda m: far(d[m]))
    fill(out, is_water, lambda m: water(EYE, d[m], t))
    steps = 5 if opened > 0.01 else 1
    here = np.flatnonzero(is_far)
    cover(out, here, lambda s: balloon(np.arctan2(d[here, 0], d[here, 2]), np.arcsin(d[here, 1]), t + opened * s), steps)
    x, y = at(WALKER_Z)
    here = np.flatnonzero((outside | (is_floor & (floor_z > WALKER_Z - 1e-3))) & (np.abs(y - 0.9) < 1.1))
    cover(out, here, lambda s: walker(x[here], y[here], t + opened * s), steps)
    edge = np.flatnonzero(is_floor & (floor_z > TERRACE_END - 0.16))
    out[edge] *= 1.25
    return out.reshape(height, width, 3)


def fill(out: Array, where: NDArray[np.bool_], shade: Callable[[NDArray[np.intp]], Array]) -> None:
    """out[where] = shade(indices), in pieces that fit the caches."""
    for part in np.array_split(np.flatnonzero(where), max(1, int(where.sum()) // 400_000)):
        out[part] = shade(part)


def cover(out: Array, here: NDArray[np.intp], shade: Callable[[float], tuple[Array, Array]], steps: int) -> None:
    """Composite something that moves while the shutter is open."""
    light, coverage = np.zeros((len(here), 3), np.float32), np.zeros(len(here), np.float32)
    for k in range(steps):
        colours, covered = shade((k + 0.5) / steps)
        light += colours * covered[:, None] / steps
        coverage += covered / steps
    out[here] = out[here] * (1 - coverage[:, None]) + light


def hit_reveal(d: Array) -> tuple[Array, Array, Array]:
    """Where rays that enter the arch but do not leave it meet its inside (bisection along the depth)."""
    low, high = np.full(len(d), WALL_Z, np.float32), np.full(len(d), WALL_Z + WALL_DEPTH, np.float32)
    for _ in range(18):
        z = (low + high) / 2
        free = in_arch(EYE[0] + d[:, 0] / d[:, 2] * z, EYE[1] + d[:, 1] / d[:, 2] * z)
        low, high = np.where(free, z, low), np.where(free, high, z)
    return EYE[0] + d[:, 0] / d[:, 2] * low, EYE[1] + d[:, 1] / d[:, 2] * low, low


def with_glare(light: Array) -> Array:
    """What a real lens scatters: two per cent of the light, near and far from where it fell."""
    scale = light.shape[1] / 1200
    near, wide = (cv2.GaussianBlur(light, (0, 0), s * scale) for s in (6.0, 60.0))
    return np.asarray(light * 0.978 + near * 0.016 + wide * 0.006, np.float32)


def frame(i: int, height: int, width: int) -> Array:
    """(height, width, 3) radiance of frame i, 1.0 = white of the middle frame."""
    # Hand-held: a few pixels of turn between frames, a touch of roll.
    turn = [(0.0046, -0.0021, -0.0016), (0.0, 0.0, 0.0), (-0.0034, 0.0031, 0.0021)][i]
    numerator, denominator = SHUTTER[i]
    # Half a second passes from frame to frame.
    big = radiance(
        height * OVERSAMPLING, width * OVERSAMPLING, (turn[0], turn[1] + 0.012, turn[2]), 1.9 + 0.55 * (i - 1), numerator / denominator
    )
    return with_glare(cv2.resize(big, (width, height), interpolation=cv2.INTER_AREA))


def exif(i: int) -> bytes:
    """EXIF block of frame i: what a simulated camera has to say."""
    data = Image.Exif()
    data[Base.Make], data[Base.Model] = "GMODiff", "GMODiff simulated camera"
    data[Base.ImageDescription] = "Rendered, not photographed. CC0-1.0"
    data[Base.Copyright] = "CC0-1.0"
    data[Base.Orientation] = 1
    data[Base.DateTime] = f"2026:06:21 20:58:{10 + i:02d}"
    inner = data.get_ifd(IFD.Exif)
    inner[Base.ExposureTime] = IFDRational(*SHUTTER[i])
    inner[Base.FNumber] = IFDRational(int(F_NUMBER * 10), 10)
    inner[Base.ISOSpeedRatings] = ISO
    inner[Base.ExposureBiasValue] = IFDRational(2 * (i - 1), 1)
    inner[Base.DateTimeOriginal] = data[Base.DateTime]
    inner[Base.FocalLength], inner[Base.FocalLengthIn35mmFilm] = IFDRational(30, 1), 30
    inner[Base.ExifVersion] = b"0232"
    inner[Base.ColorSpace] = 1
    return data.tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "examples")
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--quality", type=int, default=92)
    parser.add_argument("--preview", type=Path, help="also write the three frames side by side as one PNG")
    arguments = parser.parse_args()
    width, height = arguments.width, arguments.width * 2 // 3
    camera = Camera(
        s_curve((0.62, 0.58, 0.55), 2.25), iso=ISO, full_well=40000, read_electrons=5, lens_px=0.35, vignetting=0.18, jpeg_quality=None
    )
    exposures = [n / d * ISO / 100 / F_NUMBER**2 for n, d in SHUTTER]
    bracket = render_bracket(lambda i: frame(i, height, width), exposures, camera, seed=SEED)
    total = 0
    for i, shot in enumerate(bracket.frames):
        stream = io.BytesIO()
        Image.fromarray(shot.encoded).save(stream, "JPEG", quality=arguments.quality, subsampling="4:2:0", optimize=True, exif=exif(i))
        target = arguments.out / f"sunset_{i + 1}.jpg"
        target.write_bytes(stream.getvalue())
        total += len(stream.getvalue())
        print(f"{target.name}  1/{SHUTTER[i][1]} s  {len(stream.getvalue()) / 1e3:.0f} kB")
    print(f"{total / 1e3:.0f} kB in all")
    if arguments.preview:
        Image.fromarray(np.hstack([shot.encoded for shot in bracket.frames])).save(arguments.preview)


if __name__ == "__main__":
    main()
