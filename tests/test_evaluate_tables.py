"""Statistics with known answers, and tables that say what they leave out."""

import numpy as np
import pytest

from gmodiff.errors import InputError
from gmodiff.evaluate.markup import latex, markdown, markdown_text
from gmodiff.evaluate.rows import latest
from gmodiff.evaluate.statistics import bootstrap_interval, summary
from gmodiff.evaluate.tables import failures, main_table, provenance, settings, tables


def row(scene, method, psnr_mu, *, dataset="hills", status="ok", **more):
    """A row as `rows` describes it; more: other keys, or other metrics where their names hold a slash or are known ones."""
    metrics = {"psnr_mu": psnr_mu, "psnr_l": psnr_mu - 5 if psnr_mu is not None else None, **more.pop("metrics", {})}
    facts = {"motion": more.pop("motion", "people"), "stops": [-2.0, 0.0, 2.0], "frames": 3, "clipped_share": 0.1, "iso": 100}
    base = {"dataset": dataset, "scene": scene, "method": method, "status": status, "error": "boom" if status != "ok" else None}
    base |= {
        "metrics": metrics if status == "ok" else {},
        "settings": {"psnr_mu": "mu 5000"},
        "facts": facts,
        "seconds": 1.0,
        "peak_mb": 10.0,
    }
    base |= {"threads": 1, "workers": 1, "scene_hash": f"{abs(hash(scene)):016x}", "version": "1", "commit": "abc", "scale": 1.0}
    return base | {"finished": "2026-01-01T00:00:00+00:00"} | more


VALUES = {"reference": [30.0, 31.0, 29.0, 33.0], "classical": [38.0, 30.0, 41.0, 40.0], "oracle": [45.0, 44.0, 46.0, 43.0]}
ROWS = [row(s, m, v) for m, values in VALUES.items() for s, v in zip("abcd", values, strict=True)]


def test_means_medians_and_wins_are_those_of_the_numbers():
    of = summary(ROWS, "hills")
    for method, values in VALUES.items():
        found = of.shared[method]["psnr_mu"]
        assert (found.mean, found.median, found.count) == (np.mean(values), np.median(values), 4)
    assert of.wins == {"reference": 1, "classical": 3}
    text = markdown(main_table(of))
    assert "| classical | **37.25** |" in text  # four scenes: no interval
    assert "**44.50**" not in text  # the oracle is nobody's rival


def test_the_interval_is_the_percentile_bootstrap():
    values = np.random.default_rng(2).normal(35, 3, 24)
    low, high = bootstrap_interval(values)
    rng = np.random.default_rng(77)  # another generator's resamples must tell the same interval
    means = [values[rng.integers(0, 24, 24)].mean() for _ in range(10_000)]
    assert (low, high) == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=0.08)
    # A quarter of the usual formula's disagreement is allowed for 24 scenes.
    half = 1.96 * values.std(ddof=1) / np.sqrt(24)
    assert high - low == pytest.approx(2 * half, rel=0.1)


def test_differences_are_paired():
    """Two methods a constant apart differ by exactly that, however the scenes vary."""
    rows = [
        row(s, m, v + d)
        for s, v in zip("abcdef", (20.0, 30.0, 40.0, 25.0, 35.0, 28.0), strict=True)
        for m, d in (("classical", 0), ("new", 1.5))
    ]
    (difference,) = summary(rows, "hills").differences
    assert (difference.mean, difference.low, difference.high) == pytest.approx((1.5, 1.5, 1.5))
    assert (difference.won, difference.lost, difference.count) == (6, 0, 6)


def test_a_method_that_fails_on_the_hard_scene_does_not_look_better_for_it():
    rows = [r for r in ROWS if not (r["method"] == "reference" and r["scene"] == "c")]
    rows.append(row("c", "reference", None, status="failed"))
    of = summary(rows, "hills")
    assert of.common == ("a", "b", "d")
    assert of.shared["classical"]["psnr_mu"].mean == np.mean([38, 30, 40])
    assert of.failed == {"reference": 1, "classical": 0, "oracle": 0}
    text = markdown(main_table(of))
    assert "left out of the means: reference failed on c" in text
    names = [t.name for t in tables(of)]
    assert "own" in names
    assert failures(of) == ["c, reference: boom"]


def test_rows_made_again_count_once_and_the_last_counts():
    of = summary([*ROWS, row("a", "classical", 10.0)], "hills")
    assert of.shared["classical"]["psnr_mu"].mean == np.mean([10, 30, 41, 40])


def test_metrics_without_a_value_are_left_out_and_masks_say_on_how_many_scenes():
    rows = [row(s, m, 30.0, metrics={"psnr_mu/motion": 25.0 if s == "a" else None, "jod": None}) for s in "ab" for m in ("x", "classical")]
    of = summary(rows, "hills")
    assert "jod" not in of.metrics
    text = "\n".join(markdown(t) for t in tables(of))
    assert "PSNR-mu, motion 1" in text
    assert "JOD" not in text


def test_lower_is_better_where_it_is():
    rows = [row("a", m, 30.0, metrics={"lpips": v}) for m, v in (("x", 0.1), ("y", 0.2))]
    text = markdown(main_table(summary(rows, "hills")))
    assert "**0.100**" in text
    assert "lower is better" in text


def test_few_scenes_have_no_interval_and_say_so():
    few = [row(s, "classical", 30.0 + i) for i, s in enumerate("abcde")]
    text = markdown(main_table(summary(few, "hills")))
    assert "Fewer than 6 scenes: no intervals." in text
    assert "\\[" not in text
    text = markdown(main_table(summary([*few, row("f", "classical", 40.0)], "hills")))
    assert "PSNR-mu \\[95 %\\]" in text
    assert "bootstrap" in text


def test_nothing_in_common_is_said():
    of = summary([row("a", "x", 30.0), row("b", "y", 40.0)], "hills")
    assert of.common == ()
    assert "They cannot be compared" in markdown(main_table(of))


def test_no_rows_of_a_dataset_is_an_error():
    with pytest.raises(InputError, match="no rows of dataset 'sea': there are rows of hills"):
        summary(ROWS, "sea")


def test_rows_that_disagree_are_pointed_out():
    rows = [*ROWS, row("a", "late", 35.0, settings={"psnr_mu": "mu 100"}, commit="def")]
    of = summary(rows, "hills")
    told = "\n".join((*settings(of), *provenance(of)))
    assert "psnr_mu: rows disagree: mu 5000 (reference, classical, oracle); mu 100 (late)" in told
    assert "commit: rows disagree: abc (12 rows), def (1 row)" in told


def test_rows_of_other_pixels_are_not_compared():
    """A second set of the same name, or a set that changed: the newest pixels of a scene count, older rows of it are left out and named."""
    newer = row("a", "mertens", 99.0, scene_hash="f" * 16, finished="2026-02-01T00:00:00+00:00")
    of = summary(latest([newer, *ROWS]), "hills")  # whatever the order of the rows
    assert ("a", "classical") not in of.rows
    assert ("b", "classical") in of.rows
    text = markdown(main_table(of))
    assert "saw other pixels than the newest of their scene: a reference, a classical, a oracle" in text
    assert "| mertens | 99" not in text  # nothing in common with the others


def test_scenes_without_truth_and_methods_that_do_not_apply_are_named():
    rows = [row(s, m, 30.0) for s in "ab" for m in ("reference", "classical")] + [
        row("c", m, None, metrics={"psnr_l": None}) for m in ("reference", "classical")
    ]
    rows += [row(s, "oracle", None, status="skipped", error="no motionless frames") for s in "ab"]
    of = summary(rows, "hills")
    assert of.common == ("a", "b")
    assert of.failed["oracle"] == 0
    text = markdown(main_table(of))
    assert "no ground truth: c." in text
    assert "oracle does not apply here (no motionless frames)" in text
    assert failures(of) == []


def test_every_table_prints_in_both_languages():
    rows = [
        row(s, m, 30.0 + len(m), metrics={"psnr_mu/dark": 20.0}, motion="still" if s == "a" else "people") for s in "ab" for m in VALUES
    ]
    made = tables(summary([*rows, row("a", "saved:my_outputs & more%", 33.0), row("b", "saved:my_outputs & more%", 33.0)], "hills"))
    assert [t.name for t in made] == ["main", "masks", "differences", "motion", "scenes"]
    for table in made:
        for line in markdown(table).splitlines():
            if line.startswith("|"):
                assert line.count(" | ") == len(table.heads) - 1 or set(line) <= set("|-:")
        text = latex(table)
        assert text.count(r"\\") == len(table.rows) + 1
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
        if any("more" in c.text for r in table.rows for c in r):
            assert r"my\_outputs \& more\%" in text


def test_markdown_shows_names_as_they_are():
    assert markdown_text("a|b*c [d] _e_ my_file <x>") == r"a\|b\*c \[d\] \_e\_ my_file &lt;x>"
