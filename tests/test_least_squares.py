from __future__ import annotations

import pytest
import torch

from yolo_prune.surgery.least_squares import Moments, least_squares


def rows(n: int, width: int, seed: int = 0, groups: int = 1) -> torch.Tensor:
    return torch.randn(groups, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_moments_add_up_and_centre_as_those_of_all_samples() -> None:
    x, y = rows(50, 4, groups=2), rows(50, 3, 1, groups=2)
    whole = Moments.of(x, y)
    parts = Moments.of(x[:, :20], y[:, :20])
    parts.add(Moments.of(x[:, 20:], y[:, 20:]))
    sum_of_parts = Moments.of(x[:, :20], y[:, :20]).plus(Moments.of(x[:, 20:], y[:, 20:]))
    x_mean, y_mean = x.mean(1), y.mean(1)
    centred = Moments.of(x, y, (x_mean, y_mean))
    names = ("samples", "origin", "x", "y", "xx", "xy", "yy")
    for name in names:
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
        torch.testing.assert_close(getattr(sum_of_parts, name), getattr(whole, name))
    whole.centre(x_mean, y_mean)
    for name in names:
        torch.testing.assert_close(getattr(whole, name), getattr(centred, name))


def test_what_hardly_varies_has_no_energy_below_zero() -> None:
    x = 30 + torch.cat([rows(4096, 8), 1e-7 * rows(4096, 8, 1)], 2).float()
    y = rows(4096, 3, 2).float()
    parts = Moments.of(x[:, :512], y[:, :512], origin := (x[:, :512].mean(1), y[:, :512].mean(1)))
    for first in range(512, 4096, 512):
        parts.add(Moments.of(x[:, first : first + 512], y[:, first : first + 512], origin))
    parts.centre(*parts.means)
    x, y = x.double(), y.double()
    right = Moments.of(x, y, (x.mean(1), y.mean(1)))
    assert (parts.xx.diagonal(dim1=1, dim2=2) >= 0).all()
    torch.testing.assert_close(parts.xx, right.xx, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(parts.xy, right.xy, rtol=1e-5, atol=1e-3)


def test_the_error_is_that_of_the_samples() -> None:
    x, y, weights = rows(50, 4), rows(50, 3, 1), rows(4, 3, 2)
    assert Moments.of(x, y).error(weights) == pytest.approx(float((x @ weights - y).square().sum()))


@pytest.mark.parametrize("is_judged", [True, False])
def test_what_inputs_determine_is_found_exactly(is_judged: bool) -> None:
    x, right = rows(60, 5, groups=3), rows(5, 2, 1, groups=3)
    y = x @ right
    held_out = Moments.of(x[:, 40:], y[:, 40:]) if is_judged else None
    fitted = Moments.of(x[:, :40], y[:, :40])
    found = least_squares(fitted.plus(held_out), fitted, held_out, torch.zeros_like(right))
    torch.testing.assert_close(found, right)


def test_noise_that_helps_no_held_out_sample_changes_nothing() -> None:
    x, y, start = rows(40, 30), rows(40, 2, 1), rows(30, 2, 2) * 0
    fresh, other = rows(400, 30, 3), rows(400, 2, 4)
    fitted, held_out = Moments.of(x, y), Moments.of(fresh, other)
    assert least_squares(fitted.plus(held_out), fitted, held_out, start) is start


def test_inputs_that_are_always_zero_keep_their_weights() -> None:
    x, start = rows(40, 4), rows(4, 2, 1)
    x[..., 3] = 0
    fitted = Moments.of(x, x[..., :2])
    found = least_squares(fitted, fitted, None, start)
    torch.testing.assert_close(found[:, 3], start[:, 3])
    torch.testing.assert_close(x @ found, x[..., :2])


def test_a_ridge_that_some_outputs_choose_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    x, right = rows(90, 20), rows(20, 50, 1)
    y = x @ right + 2 * rows(90, 50, 2)
    fitted, held_out = Moments.of(x[:, :60], y[:, :60]), Moments.of(x[:, 60:], y[:, 60:])
    found = []
    for most in (7, 1000):
        monkeypatch.setattr("yolo_prune.surgery.least_squares.MOST_JUDGED", most)
        found.append(least_squares(fitted.plus(held_out), fitted, held_out, torch.zeros_like(right)))
    assert found[0].shape == right.shape and torch.equal(*found)
