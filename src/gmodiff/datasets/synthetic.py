"""Simulated dynamic scenes: a recipe of a few lines and a picture make a bracket whose truth is known, the same on every machine.

What a recipe leaves open is drawn from its seed, each field from its own stream, so that fixing one changes no other.

Pictures. An equirectangular panorama (width = 2 x height) is shown at its own resolution, wrapped round sideways and mirrored at its
lower edge: nothing is enlarged, so every edge is as sharp as in a photo; parts of the scene appear twice where it is smaller than the
frame. Other HDR pictures are cropped. A photo is reduced by a whole factor if it is large, cropped, and linearised as sRGB; its
highlights may be raised (boost_stops), since a photo holds little above white.
Exposure. The reference clips the share `clipped` of the pixels in at least one channel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from math import isfinite, log2
from pathlib import Path
from typing import Any

import numpy as np

from gmodiff.datasets.measured_responses import TEST_CAMERAS, measured_response
from gmodiff.datasets.pictures import exposed, read_radiance
from gmodiff.datasets.scene import Scene, common_facts, fingerprint, luminance, with_masks
from gmodiff.errors import InputError
from gmodiff.image import MAX_FRAMES, MIN_FRAMES, Bracket
from gmodiff.moving_scene import Cutout, Motion, generator, piece_of
from gmodiff.radiometry import F32, SRGB, CameraResponse
from gmodiff.simulate import Camera, render_bracket, simulate

CURVES = Path("responses") / "curves.json"
"""Where a data folder keeps the measured camera responses."""

MARGIN_PX = 24
"""Picture kept outside the frame on every side, so that shake brings in real content."""

PICTURE_STREAM, RECIPE_STREAM, COLOUR_STREAM = 77, 900, 901
"""Purposes of a seed's random streams, beside those of `simulate`."""

LENGTH_OF_PRESETS = 1000.0
"""Frame height at which the amplitudes of MOTIONS hold; smaller frames get smaller ones, down to a third."""

MOTIONS: Mapping[str, Motion] = {
    "still": Motion(),
    "handheld": Motion(shake_px=12),
    "people": Motion(shake_px=12, objects=3, travel=0.10),
    "fast-people": Motion(shake_px=12, objects=4, object_size=0.45, travel=0.22, trail=0.12),
    "leaves": Motion(shake_px=12, waves_px=2.5, wave_length_px=40, wave_share=0.33),
    "water": Motion(shake_px=8, waves_px=1.6, wave_length_px=14, wave_share=0.5),
    "faces": Motion(shake_px=8, objects=2, object_size=0.4, travel=0.012, trail=0.004, waves_px=2.0, wave_length_px=90, wave_share=0.15),
}
"""What moves, at 1500x1000: nothing; the camera alone; people who pass; leaves, water, and faces that do not keep still."""

STOPS: tuple[tuple[float, ...], ...] = (
    *((-2, 0, 2), (-1, 0, 1), (-3, 0, 3), (-2, 0, 3), (-3, 0, 1.667), (-2, -1, 0, 1, 2), (-4, -2, 0, 2, 4)),
    *((-3, -2, -1, 0, 1, 2, 3), (-4, -3, -2, -1, 0, 1, 2, 3, 4)),
)
PLAIN_RESPONSES = ("srgb", "gamma2.2", "gamma1.8")
ISOS = (100, 200, 400, 800, 1600, 3200)
COLOURS: Mapping[str, tuple[tuple[float, float, float], float]] = {
    "red": ((1.0, 0.05, 0.06), 1.6),
    "neon": ((0.15, 0.35, 1.0), 6.0),
    "orange": ((1.0, 0.35, 0.02), 2.5),
}
"""Saturated moving objects: their colour (its largest channel 1) and how bright it is where their texture is median; 1.0 = white."""


@dataclass(frozen=True)
class Recipe:
    """How a scene is made; `drawn` takes what is given and draws the rest from the seed.

    picture: file below the data folder.   seed: of everything random.   size: (width, height) of the frames in pixels.
    motion: one of MOTIONS.   stops: exposures from the reference, rising, 0 among them.   response: "srgb", "gammaX", or a measured
    camera's name.   iso, full_well, read_electrons, vignetting, lens_px, demosaic_px: see `simulate.Camera`.
    jpeg: quality 1 to 100.   clipped: share of pixels the reference clips, 0 to 0.9.   boost_stops: added to a photo's highlights.
    colour: of the moving objects, one of COLOURS; "" leaves them as they are.
    """

    picture: str
    seed: int
    motion: str
    stops: tuple[float, ...]
    response: str
    iso: float
    jpeg: int
    clipped: float
    vignetting: float
    lens_px: float
    demosaic_px: float
    size: tuple[int, int] = (1500, 1000)
    full_well: float = 30000.0
    read_electrons: float = 4.0
    boost_stops: float = 0.0
    colour: str = ""

    def __post_init__(self) -> None:
        numbers = [v for f in fields(self) if _is_number(v := getattr(self, f.name))]
        if not all(map(isfinite, (*numbers, *self.stops, *self.size))):
            raise InputError(f"{self.picture}: a value of the scene is not finite")
        rising = list(self.stops) == sorted(set(self.stops))
        checks = {
            "size": (min(self.size) >= 64 and all(isinstance(v, int) for v in self.size), "two whole numbers of pixels, 64 or more"),
            "motion": (self.motion in MOTIONS, ", ".join(MOTIONS)),
            "colour": (not self.colour or self.colour in COLOURS, ", ".join(COLOURS)),
            "stops": (
                MIN_FRAMES <= len(self.stops) <= MAX_FRAMES and 0 in self.stops and rising and max(map(abs, self.stops)) <= 16,
                f"{MIN_FRAMES} to {MAX_FRAMES} rising values from -16 to 16, 0 (the reference) among them, as in [-2, 0, 2]",
            ),
            "clipped": (0 <= self.clipped <= 0.9, "0 to 0.9"),
            "lens_px": (0 <= self.lens_px <= 20, "0 to 20"),
            "demosaic_px": (0 <= self.demosaic_px <= 20, "0 to 20"),
            "boost_stops": (0 <= self.boost_stops <= 6, "0 to 6"),
        }
        for name, (fine, expected) in checks.items():
            if not fine:
                raise InputError(f"{self.picture}: {name} is {getattr(self, name)!r}, expected {expected}")

    @staticmethod
    def drawn(picture: str, seed: int, **given: Any) -> Recipe:
        """A recipe in which what is not given comes from the seed."""
        if seed < 0:
            raise InputError(f"{picture}: seed is {seed}, expected 0 or more")

        def stream(n: int) -> np.random.Generator:
            return generator((seed, RECIPE_STREAM, n))

        def choice(n: int, values: Sequence[Any]) -> Any:
            return values[int(stream(n).integers(len(values)))]

        def between(n: int, low: float, high: float) -> float:
            return round(float(stream(n).uniform(low, high)), 3)

        drawn = {
            "motion": choice(0, tuple(MOTIONS)),
            "stops": choice(1, STOPS),
            "response": choice(2, PLAIN_RESPONSES + TEST_CAMERAS),
            "iso": choice(3, ISOS),
            "jpeg": int(stream(4).integers(75, 99)),
            "clipped": between(5, 0.04, 0.2),
            "vignetting": between(6, 0.0, 0.3),
            "lens_px": between(7, 0.3, 0.6),
            "demosaic_px": between(8, 0.3, 0.6),
        }
        return Recipe(picture=picture, seed=seed, **{**drawn, **given})

    @staticmethod
    def parse(table: Mapping[str, Any], where: str) -> Recipe:
        """From a set file's table. Raises InputError for unknown keys, missing ones and wrong types."""
        known = {f.name: str(f.type) for f in fields(Recipe)}
        unknown, missing = sorted(set(table) - set(known)), sorted({"picture", "seed"} - set(table))
        if unknown or missing:
            what = f"unknown key {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
            raise InputError(f"{where}: {what}; a simulated scene has {', '.join(known)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        for key, value in values.items():
            if not _fits(known[key], value):
                raise InputError(f"{where}: {key} is {value!r}, expected {known[key]}")
        return Recipe.drawn(**values)


def _fits(kind: str, value: Any) -> bool:
    """Whether a value from a text file is of a field's annotated type."""
    if kind.startswith("tuple"):
        length = 2 if kind == "tuple[int, int]" else None
        return isinstance(value, tuple) and all(_is_number(v) for v in value) and length in (None, len(value))
    if kind == "str":
        return isinstance(value, str)
    return isinstance(value, int) and not isinstance(value, bool) if kind == "int" else _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class SyntheticScene:
    """A recipe with a name and a data folder: a SceneSource."""

    name: str
    recipe: Recipe
    data: Path = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Of the recipe and the picture."""
        settings = json.dumps({f.name: getattr(self.recipe, f.name) for f in fields(Recipe)}, sort_keys=True)
        files = {self.recipe.picture: self.data / self.recipe.picture}
        if not _is_plain(self.recipe.response):
            files["curves"] = self.data / CURVES
        return fingerprint(settings, files)

    def load(self) -> Scene:
        """Render the scene. Raises InputError where the picture is missing or too small, or the camera unknown."""
        recipe = self.recipe
        width, height = recipe.size
        picture = read_radiance(
            self.data / recipe.picture,
            height + 2 * MARGIN_PX,
            width + 2 * MARGIN_PX,
            generator((recipe.seed, PICTURE_STREAM)),
            boost_stops=recipe.boost_stops,
        )
        radiance = exposed(picture, recipe.clipped)
        camera = _camera(recipe, self.data)
        exposures = [2.0**s for s in recipe.stops]
        reference = recipe.stops.index(0)
        made = simulate(
            radiance,
            exposures,
            camera,
            _motion(recipe),
            seed=recipe.seed,
            reference=reference,
            margin=MARGIN_PX,
            cutouts=_cutouts(recipe, radiance),
        )
        masks = with_masks(made.truth, made.bracket, made.motion_mask if recipe.motion != "still" else None)
        return Scene(
            self.name,
            made.bracket,
            made.truth,
            masks,
            perfect=partial(_perfect, made.truth, exposures, camera, recipe.seed, reference),
            facts={
                "source": "simulated",
                **common_facts(made.bracket, masks),
                "picture": recipe.picture,
                "seed": recipe.seed,
                "motion": recipe.motion,
                "iso": recipe.iso,
                "jpeg": recipe.jpeg,
                "clipped_stops": clipped_stops(made.truth),
                **({"colour": recipe.colour} if recipe.colour else {}),
            },
        )


def clipped_stops(truth: F32) -> float:
    """Stops by which the brightest thousandth of the luminance exceeds the reference's white."""
    return round(max(0.0, log2(max(float(np.quantile(luminance(truth, SRGB), 0.999)), 1e-6))), 2)


def _perfect(truth: F32, exposures: list[float], camera: Camera, seed: int, reference: int) -> Bracket:
    """The same exposures of the same light, nothing moving, with other noise. The truth is already behind the lens."""
    bare = replace(camera, lens_px=0.0, vignetting=0.0)
    return render_bracket([truth] * len(exposures), exposures, bare, seed=seed + 1_000_003, reference=reference)


def _is_plain(response: str) -> bool:
    """Whether a response is a formula, not a measured camera's."""
    return response in ("srgb", "linear") or response.startswith("gamma")


def _camera(recipe: Recipe, data: Path) -> Camera:
    name = recipe.response
    response = CameraResponse.named(name) if _is_plain(name) else measured_response(data / CURVES, name)
    return Camera(
        response,
        iso=recipe.iso,
        full_well=recipe.full_well,
        read_electrons=recipe.read_electrons,
        lens_px=recipe.lens_px,
        demosaic_px=recipe.demosaic_px,
        vignetting=recipe.vignetting,
        jpeg_quality=recipe.jpeg,
    )


def _motion(recipe: Recipe) -> Motion:
    preset = MOTIONS[recipe.motion]
    scale = min(max(recipe.size[1] / LENGTH_OF_PRESETS, 1 / 3), 2.0)
    return replace(
        preset, shake_px=preset.shake_px * scale, waves_px=preset.waves_px * scale, wave_length_px=max(preset.wave_length_px * scale, 6.0)
    )


def _cutouts(recipe: Recipe, radiance: F32) -> tuple[Cutout, ...]:
    """The moving objects in a saturated colour: pieces of the scene whose luminance is kept as texture."""
    if not recipe.colour:
        return ()
    motion = _motion(recipe)
    colour, level = COLOURS[recipe.colour]
    made = []
    for k in range(motion.objects):
        piece = piece_of(radiance, generator((recipe.seed, COLOUR_STREAM, k)), motion.object_size * recipe.size[1])
        texture = luminance(piece.radiance, SRGB)
        texture = np.clip(texture / max(float(np.median(texture)), 1e-4), 0.25, 3.0)
        made.append(Cutout(np.asarray(texture[..., None] * np.asarray(colour, np.float32) * np.float32(level), np.float32), piece.coverage))
    return tuple(made)
