"""Sheets: every picture is where it belongs, unchanged, and text is readable and nowhere else."""

import pytest
import torch

from nl3dmm.figures.sheets import Cell, Column, diverging, fitted, fitted_map, sheet

TOP = 8 + 33  # px above the pictures: the border and a line of headings


def colour(*rgb: float, size: tuple[int, int] = (20, 40)) -> torch.Tensor:
    return torch.tensor(rgb, dtype=torch.float32)[:, None, None].expand(3, *size).clone()


def dark_box(part: torch.Tensor) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what is not white."""
    rows, columns = torch.where(part.amin(0) < 0.5)
    return int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())


def test_pictures_stand_unchanged_in_their_columns():
    a, b, c = torch.rand(3, 20, 40), torch.rand(3, 20, 60), torch.rand(3, 10, 30)
    picture = sheet([Column(""), Column("")], [[Cell(a), Cell(b)], [None, Cell(c)]])
    assert picture.shape == (3, TOP + 20 + 8 + 10 + 8, 8 + 40 + 8 + 60 + 8)
    assert torch.equal(picture[:, TOP : TOP + 20, 8:48], a)
    assert torch.equal(picture[:, TOP : TOP + 20, 56:116], b)
    assert torch.equal(picture[:, TOP + 28 : TOP + 38, 71:101], c)  # in the middle of its cell
    picture[:, TOP : TOP + 20, 8:48] = picture[:, TOP : TOP + 20, 56:116] = 1
    picture[:, TOP + 28 : TOP + 38, 71:101] = 1
    assert (picture == 1).all()


def test_smaller_pictures_stand_in_the_middle_of_their_row():
    picture = sheet([Column(""), Column("")], [[Cell(colour(0, 0, 0)), Cell(colour(0, 0, 0, size=(10, 40)))]])
    assert dark_box(picture[:, :, 56:]) == (TOP + 5, TOP + 14, 0, 39)


def test_headings_and_captions_are_centred_text():
    blank = colour(1, 1, 1, size=(20, 300))
    picture = sheet([Column("Input"), Column("I(S, A)")], [[Cell(blank, "l2,1 0.0363"), Cell(blank)]])
    assert picture.shape[1] == TOP + 20 + 27 + 8
    for part in (picture[:, :TOP, 8:308], picture[:, :TOP, 316:616], picture[:, TOP + 20 : TOP + 47, 8:308]):
        top, bottom, left, right = dark_box(part)
        assert 9 <= bottom - top + 1 <= 24  # readable, and within its line
        assert abs((left + right) / 2 - 150) < 3
    assert (picture[:, TOP + 20 : TOP + 47, 316:] == 1).all()


def test_long_text_shrinks_to_fit():
    blank = colour(1, 1, 1, size=(4, 120))
    text = "nonlinear, global and local"
    long, short = (sheet([Column(words)], [[Cell(blank)]])[:, :TOP, 8:128] for words in (text, "x"))
    assert 0 <= dark_box(long)[2] < dark_box(long)[3] < 120
    assert dark_box(long)[3] - dark_box(long)[2] > 90
    assert dark_box(short)[3] - dark_box(short)[2] < 20


def test_a_tilde_stands_above_the_letter_before_it():
    blank = colour(1, 1, 1, size=(4, 100))
    plain, tilde = (sheet([Column(text)], [[Cell(blank)]])[0, :TOP, 8:108] for text in ("S", "S~"))
    assert torch.equal(tilde.minimum(plain), tilde)  # the letter is where it was
    rows, columns = torch.where(tilde < plain - 0.3)
    top, _, left, right = dark_box(plain.expand(3, -1, -1))
    assert 0 < int(rows.min()) < int(rows.max()) < top
    assert abs(float(columns.float().mean()) - (left + right) / 2) < 2


def test_groups_are_ruled_off_over_their_columns():
    blank = colour(1, 1, 1, size=(4, 50))
    columns = [Column("a"), Column("b", "with"), Column("c", "with"), Column("d", "without")]
    picture = sheet(columns, [[Cell(blank)] * 4])
    rule = picture[0, TOP - 2 : TOP]
    expected = torch.ones(8 + 4 * 58)
    expected[8 + 58 : 8 + 3 * 58 - 8] = expected[8 + 3 * 58 : 8 + 4 * 58 - 8] = 0
    assert torch.equal(rule, expected.expand(2, -1))
    assert (picture[:, :TOP, :66] == 1).all()


def test_rows_must_have_the_same_length():
    with pytest.raises(ValueError, match="zip"):
        sheet([Column("a"), Column("b")], [[Cell(colour(0, 0, 0))] * 2, [None]])


@pytest.mark.parametrize(("size", "side", "expected"), [((48, 48), 96, (96, 96)), ((30, 60), 90, (45, 90))])
def test_fitted_enlarges_by_the_longer_side(size, side, expected):
    flat = colour(0.2, 0.5, 0.9, size=size)[None]
    assert torch.allclose(fitted(flat, side), flat[..., :1, :1].expand(1, 3, *expected), atol=1e-6)
    assert float(fitted(torch.rand(2, 3, *size), side).min()) >= 0


def test_fitted_leaves_what_fits():
    picture = torch.rand(2, 3, 40, 50)
    assert fitted(picture, 50) is picture
    assert fitted(picture, 25).shape == (2, 3, 20, 25)
    assert torch.allclose(fitted(picture, 100)[:, :, 10:-10, 10:-10].mean(), picture.mean(), atol=0.02)


@pytest.mark.parametrize("side", [12, 24, 60, 70])
def test_maps_are_resampled_from_their_mask_alone(side):
    mask = torch.zeros(20, 24, dtype=torch.bool)
    mask[4:16, 6:18] = True
    values, share = fitted_map(torch.where(mask, 0.3, 1e6).expand(1, 1, 20, 24), mask, side)
    assert max(values.shape) == max(share.shape) == side
    assert torch.allclose(values[share.expand_as(values) > 0], torch.tensor(0.3), atol=1e-4)
    assert float(share.mean()) == pytest.approx(float(mask.float().mean()), rel=0.1)
    assert share[0, 0, share.shape[2] // 2, share.shape[3] // 2] == 1
    assert share[0, 0, 0, 0] == 0


def test_diverging_colours():
    """Neutral at nothing, cold and warm at the ends and beyond."""
    values = torch.tensor([0.0, -2.0, -9.0, 2.0, 9.0, 1.0]).view(1, 1, 1, 6)
    colours = diverging(values, 2.0)[0, :, 0].T
    assert (colours[0] == colours[0, 0]).all()
    assert torch.equal(colours[1], colours[2])
    assert torch.equal(colours[3], colours[4])
    assert colours[1, 2] > 0.7 > 0.4 > colours[1, 0]
    assert colours[3, 0] > 0.7 > 0.2 > colours[3, 2]
    assert torch.allclose(colours[5], (colours[0] + colours[3]) / 2)
