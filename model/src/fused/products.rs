//! Products of small matrices whose sizes are rounded up, so that all tiles are whole.

use super::shape::BLOCK;
use super::simd::{Left, Right, Vector, multiply_add};

/// Rows of a product with low tiles are a multiple of this many.
pub(super) const ROW_STEP: usize = 4;

/// out += left right. `out` is rows x width, row by row, `left` rows x depth, `right` depth x width; the width is a multiple
/// of [`BLOCK`]. Tiles are as tall as the registers allow, for rows that are a multiple of 12, or `LOW`, four rows or two,
/// for a multiple of [`ROW_STEP`].
///
/// Each sum is built upon what `out` holds, in the order of the depth.
#[inline(always)]
pub(super) fn add_product<V: Vector, const LOW: bool>(
    depth: usize,
    left: Left<'_, V::Number>,
    right: Right<'_, V::Number>,
    out: &mut [V::Number],
    width: usize,
) {
    debug_assert!(width.is_multiple_of(BLOCK));
    let mut column = 0;
    while column < width {
        let right = Right { from: &right.from[column..], ..right };
        match (width - column) / V::WIDTH {
            1 => column += columns::<V, 1, LOW>(depth, left, right, out, (column, width)),
            2 => column += columns::<V, 2, LOW>(depth, left, right, out, (column, width)),
            3 => column += columns::<V, 3, LOW>(depth, left, right, out, (column, width)),
            _ => column += columns::<V, 4, LOW>(depth, left, right, out, (column, width)),
        }
    }
}

/// C vectors of every row; gives how many columns these are.
#[inline(always)]
fn columns<V: Vector, const C: usize, const LOW: bool>(
    depth: usize,
    left: Left<'_, V::Number>,
    right: Right<'_, V::Number>,
    out: &mut [V::Number],
    at: (usize, usize),
) -> usize {
    match (V::ROWS, LOW) {
        (6, false) => tiles::<V, 6, C>(depth, left, right, out, at),
        (3, false) => tiles::<V, 3, C>(depth, left, right, out, at),
        (6, true) => tiles::<V, 4, C>(depth, left, right, out, at),
        _ => tiles::<V, 2, C>(depth, left, right, out, at),
    }
    C * V::WIDTH
}

#[inline(always)]
fn tiles<V: Vector, const R: usize, const C: usize>(
    depth: usize,
    left: Left<'_, V::Number>,
    right: Right<'_, V::Number>,
    out: &mut [V::Number],
    (column, width): (usize, usize),
) {
    for (tile, out) in out.chunks_exact_mut(R * width).enumerate() {
        let left = Left { from: &left.from[tile * R * left.row..], ..left };
        let mut sums = [[V::constant(0.0); C]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            for (c, sum) in sums.iter_mut().enumerate() {
                *sum = V::read(out, r * width + column + c * V::WIDTH);
            }
        }
        sums = multiply_add(sums, depth, left, right);
        for (r, sums) in sums.iter().enumerate() {
            for (c, sum) in sums.iter().enumerate() {
                sum.write(out, r * width + column + c * V::WIDTH);
            }
        }
    }
}
