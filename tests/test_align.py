import cv2
import numpy as np
import pytest

from gmodiff.align import Alignment, align, align_frame, warp_rows
from gmodiff.errors import InputError
from gmodiff.flow import find_flow, moved_by
from gmodiff.image import Bracket, Frame
from gmodiff.radiometry import CLIPPED_ENCODED, CameraResponse

RESPONSE = CameraResponse.named("gamma2.2")


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) radiance about 0.02 to 2: noise of several sizes and hard-edged shapes."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.float32)
    for cells in (6, 14, 40, 110):
        noise = rng.standard_normal((cells, cells * width // height + 1)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 8 / (cells + 8)
    for _ in range(40):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        cv2.circle(image, centre, int(rng.integers(4, max(height // 10, 6))), float(rng.normal(0, 1.5)), -1)
    light = 0.2 * 2.0 ** np.clip(image, -3.3, 3.3)
    return cv2.GaussianBlur(light, (0, 0), 0.7)[..., None] * np.array([1.0, 0.95, 0.85], np.float32)


def photo(radiance: np.ndarray, stops: float, name: str, noise: float = 0.01, seed: int = 0, dtype: type = np.uint8) -> Frame:
    rng = np.random.default_rng(seed)
    linear = radiance * 2.0**stops
    linear = linear + noise * np.sqrt(np.maximum(linear, 0)) * rng.standard_normal(linear.shape, np.float32)
    top = np.iinfo(dtype).max
    return Frame(np.rint(RESPONSE.encode(linear) * float(top)).astype(dtype), 2.0**stops, name)


def shaken(height: int, width: int, shift: tuple[float, float], degrees: float, perspective: float = 0.0) -> np.ndarray:
    """(3, 3) homography from reference to frame pixels."""
    angle = np.deg2rad(degrees)
    centre = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    turn = np.array([[np.cos(angle), -np.sin(angle), shift[0]], [np.sin(angle), np.cos(angle), shift[1]], [perspective / width, 0, 1]])
    return np.linalg.inv(centre) @ turn @ centre


def corner_error(found: np.ndarray | None, true: np.ndarray, height: int, width: int) -> float:
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1]], float).T
    a, b = (np.eye(3) if found is None else found) @ corners, true @ corners
    return float(np.abs(a[:2] / a[2] - b[:2] / b[2]).max())


def view(radiance: np.ndarray, homography: np.ndarray, height: int, width: int, margin: int) -> np.ndarray:
    """The scene as a camera moved by the homography sees it; radiance has a margin around the reference's view."""
    to = np.array([[1, 0, margin], [0, 1, margin], [0, 0, 1.0]])
    return cv2.warpPerspective(radiance, to @ np.linalg.inv(homography), (width, height), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)


@pytest.mark.parametrize("stops", [-2.0, 2.0, 3.0])
@pytest.mark.parametrize(
    ("shift", "degrees", "perspective"), [((12.4, -7.3), 0.0, 0.0), ((38.0, 11.0), 1.0, 0.004), ((-20.5, 22.0), -3.0, 0.0)]
)
def test_global_motion_is_found_across_exposures(shift, degrees, perspective, stops):
    height, width, margin = 420, 640, 80
    scene = textured(height + 2 * margin, width + 2 * margin)
    motion = shaken(height, width, shift, degrees, perspective)
    reference = photo(scene[margin:-margin, margin:-margin], 0.0, "reference", seed=1)
    frame = photo(view(scene, motion, height, width, margin), stops, "frame", seed=2)
    found = align_frame(reference, frame, RESPONSE, dense=False)
    assert corner_error(found.homography, motion, height, width) < 0.35
    assert found.error_after < 0.5 * found.error_before


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.04])
@pytest.mark.parametrize("stops", [-3.0, -1.0, 2.0])
def test_a_still_frame_is_left_as_it_is_to_the_last_bit(noise, stops):
    scene = textured(300, 400)
    reference, frame = photo(scene, 0.0, "a", noise, seed=1), photo(scene, stops, "b", noise, seed=2)
    found = align_frame(reference, frame, RESPONSE)
    assert found.is_identity
    rows, coverage = warp_rows(frame, found, 10, 74)
    assert coverage is None
    assert rows.base is frame.encoded
    assert np.array_equal(rows, frame.encoded[10:74])


@pytest.mark.parametrize("travel", [8, 40])
def test_a_moving_thing_does_not_move_the_background(travel):
    """What moved by little is followed; what moved by most of its size, before as busy a ground, may be missed."""
    scene = textured(300, 400)
    moved = scene.copy()
    patch = textured(80, 60, seed=9)
    scene[100:180, 100:160], moved[100:180, 100 + travel : 160 + travel] = patch, patch
    found = align_frame(photo(scene, 0.0, "a", seed=1), photo(moved, 2.0, "b", seed=2), RESPONSE)
    assert found.homography is None
    assert found.flow is not None or travel > 8
    if found.flow is not None:
        assert abs(np.median(found.flow[120:160, 110:150, 0]) - travel) < 0.2
        assert np.hypot(found.flow[..., 0], found.flow[..., 1])[220:, 260:].max() == 0


def disc(size: int, at: tuple[int, int], radius: int) -> np.ndarray:
    """(size, size, 1) coverage of a disc, 0..1."""
    return cv2.circle(np.zeros((size, size), np.float32), at, radius, 1.0, -1, cv2.LINE_AA)[..., None]


@pytest.mark.parametrize("black", [False, True])
@pytest.mark.parametrize("noise", [0.01, 0.03])
@pytest.mark.parametrize("travel", [8, 16])
def test_a_small_bright_thing_that_clips_in_the_reference_is_followed(travel, noise, black):
    size, at = 480, (230, 240)
    ground = textured(size, size) * 0.3
    if black:
        ground[:, 300:] = 0  # of black ground nothing is told, and it must not go with the lamp

    def scene(x: int) -> np.ndarray:
        lamp = disc(size, (x, at[1]), 20)
        return ground * (1 - lamp) + 3 * lamp

    reference, frame = photo(scene(at[0]), 0.0, "ref.jpg", noise, seed=1), photo(scene(at[0] + travel), -2.0, "short.jpg", noise, seed=2)
    found = align_frame(reference, frame, RESPONSE)
    assert found.homography is None
    assert found.flow is not None
    inside = found.flow[at[1] - 10 : at[1] + 11, at[0] - 10 : at[0] + 11]
    assert np.abs(np.median(inside, axis=(0, 1)) - (travel, 0)).max() < 0.25 * travel
    beside = np.hypot(*np.moveaxis(found.flow, -1, 0))
    beside[at[1] - 60 : at[1] + 61, at[0] - 60 : at[0] + 60 + travel] = 0
    assert np.quantile(beside, 0.99) < 0.5


@pytest.mark.parametrize(("radius", "travel"), [(20, 16), (40, 30)])
def test_a_white_sky_does_not_go_with_what_passes_before_it(radius, travel):
    size, at = 480, (230, 200)
    ground = textured(size, size) * 0.3
    clouds = textured(size, size, 3)
    ground[60:, 60:] = (2.2 + 1.2 * clouds / clouds.max())[60:, 60:]

    def scene(x: int) -> np.ndarray:
        thing = disc(size, (x, at[1]), radius)
        return ground * (1 - thing) + np.roll(0.6 * textured(size, size, 9), x, axis=1) * thing

    found = align_frame(photo(scene(at[0]), 0.0, "a", seed=1), photo(scene(at[0] + travel), -2.0, "b", seed=2), RESPONSE)
    assert found.flow is not None
    assert abs(np.median(found.flow[at[1] - 10 : at[1] + 11, at[0] - 10 : at[0] + 11, 0]) - travel) < 2
    length = np.hypot(*np.moveaxis(found.flow, -1, 0))
    length[at[1] - radius - 40 : at[1] + radius + 40, at[0] - radius - 40 : at[0] + travel + radius + 40] = 0
    assert (length > 2).mean() < 0.06


@pytest.mark.parametrize("flare", [0.0, 0.1, 0.2, 0.3])
def test_a_still_sunset_is_left_alone_where_exposures_show_its_tones_differently(flare):
    height, width = 480, 640
    y, x = np.mgrid[:height, :width]
    light = (4 / (1 + (np.hypot(x - 120, y - 240) / 60) ** 1.5) + 0.15)[..., None] * np.array([1, 0.9, 0.7])
    light[330:] = (textured(height, width) * 0.15)[330:]
    light = light.astype(np.float32)
    tilted = light * (1 + flare * ((x - 320) / 320))[..., None].astype(np.float32)
    assert align_frame(photo(light, 0.0, "a", seed=1), photo(tilted, -1.6, "b", seed=7), RESPONSE).flow is None


def test_parallax_is_followed():
    """Two depths move apart by four pixels: dense motion lowers what the global motion left."""
    height, width = 320, 480
    scene = textured(height, width + 8)
    near = np.zeros((height, width + 8), bool)
    near[:, 150:330] = True
    frame_light = np.where(near[..., None], np.roll(scene, 4, axis=1), scene)[:, :width]
    reference, frame = photo(scene[:, :width], 0.0, "a", seed=1), photo(frame_light, -2.0, "b", seed=2)
    flat = align_frame(reference, frame, RESPONSE, dense=False)
    found = align_frame(reference, frame, RESPONSE)
    assert found.flow is not None
    assert found.error_after < 0.6 * flat.error_after
    inside = found.flow[40:-40, 190:290, 0] + (0 if found.homography is None else found.homography[0, 2])
    assert abs(float(np.median(inside)) - 4) < 0.3


def test_textureless_and_clipped_frames_are_left_alone():
    for level in (0.0, 0.2, 50.0):
        flat = np.full((120, 160, 3), level, np.float32)
        assert align_frame(photo(flat, 0.0, "a", seed=1), photo(flat, 2.0, "b", seed=2), RESPONSE).is_identity


def test_unrelated_frames_are_left_alone():
    found = align_frame(photo(textured(300, 400, 1), 0.0, "a"), photo(textured(300, 400, 2), 2.0, "b"), RESPONSE)
    assert found.error_after <= found.error_before or found.is_identity


@pytest.mark.parametrize("size", [(33, 47), (16, 16), (40, 900), (16, 33000), (1, 500), (500, 1), (2, 400)])
def test_odd_sizes(size):
    scene = np.tile(textured(300, 300)[: size[0]], (1, 110, 1))[:, : size[1]]
    bracket = Bracket((photo(scene, -2.0, "a"), photo(scene, 0.0, "b"), photo(scene, 2.0, "c")), 1, RESPONSE)
    found = align(bracket)
    assert found[1].is_identity
    assert all(np.isfinite(a.homography).all() for a in found if a.homography is not None)


def test_two_runs_agree():
    height, width, margin = 240, 320, 40
    scene = textured(height + 2 * margin, width + 2 * margin)
    frame = view(scene, shaken(height, width, (7.5, -3.2), 0.6), height, width, margin)
    bracket = Bracket((photo(frame, -2.0, "a"), photo(scene[margin:-margin, margin:-margin], 0.0, "b")), 1, RESPONSE)
    first, second = align(bracket), align(bracket)
    assert np.array_equal(first[0].homography, second[0].homography)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_split_into_strips_gives_the_same_values(dtype):
    scene = textured(200, 150)
    frame = photo(scene, 0.0, "a", dtype=dtype)
    rng = np.random.default_rng(0)
    flow = cv2.resize(rng.normal(0, 1.5, (5, 7, 2)).astype(np.float32), (50, 66))
    coverage = rng.integers(0, 256, (66, 50)).astype(np.uint8)
    alignment = Alignment(shaken(200, 150, (5.3, -2.1), 1.5), flow, coverage)
    whole, covered = warp_rows(frame, alignment, 0, 200)
    assert covered is not None
    for rows in (1, 7, 64):
        parts = [warp_rows(frame, alignment, first, min(first + rows, 200)) for first in range(0, 200, rows)]
        assert np.array_equal(np.concatenate([p for p, _ in parts]), whole)
        in_parts = np.concatenate([np.ones((len(p), 150), np.float32) if c is None else c for p, c in parts])
        np.testing.assert_allclose(in_parts, covered, atol=1e-5)


def test_outside_the_frame_is_not_covered_and_clipped_neighbours_clip():
    light = np.full((60, 80, 3), 0.3, np.float32)
    light[20:30, 30:40] = 5
    frame = photo(light, 0.0, "a", noise=0)
    rows, coverage = warp_rows(frame, Alignment(np.array([[1, 0, 10.5], [0, 1, 0.5], [0, 0, 1.0]])), 0, 60)
    assert coverage is not None
    assert (coverage[:59, :69] == 1).all()
    assert (coverage[:, 71:] == 0).all()
    between = rows[19:30, 19:30]  # every pixel whose interpolation touches the clipped square
    assert (between.max(axis=2) >= CLIPPED_ENCODED * 255).all()


def test_frames_of_other_size_are_refused():
    with pytest.raises(InputError, match="size and pixel type"):
        align_frame(photo(textured(60, 80), 0.0, "a"), photo(textured(60, 90), 0.0, "b"), RESPONSE)
    with pytest.raises(InputError, match="rows 50"):
        warp_rows(photo(textured(60, 80), 0.0, "a"), Alignment(), 50, 61)


def test_known_smooth_flow_is_recovered():
    rng = np.random.default_rng(3)
    a = np.clip(cv2.GaussianBlur(rng.normal(128, 90, (240, 320)).astype(np.float32), (0, 0), 2) * 3 - 256, 0, 255).astype(np.uint8)
    true = cv2.resize(rng.normal(0, 2.0, (4, 5, 2)).astype(np.float32), (320, 240), interpolation=cv2.INTER_CUBIC)
    frame = np.asarray(moved_by(a, -true), np.uint8)  # near enough the inverse for a flow this smooth
    found = find_flow(a, frame, np.ones(a.shape, bool), still=False)
    assert found is not None
    error = np.hypot(*np.moveaxis(found.displacement - true, 2, 0))[20:-20, 20:-20]
    assert np.median(error) < 0.25
