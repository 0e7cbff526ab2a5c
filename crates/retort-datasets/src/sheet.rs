//! Contact sheets: what a data set looks like.

use crate::{Dataset, Error, ImageShape, Result};

/// Pixels between images.
const GAP: usize = 1;

/// Widest sheet, in pixels and in images.
const MAX_SIDE: usize = 16_384;

/// The first `columns` images of every class, a row a class, as one image: its shape and its pixels `[C, H, W]`.
///
/// Images without labels fill ten rows in their order. Pixel values are scaled so that
/// [`max_value`](Dataset::max_value) becomes 255.
///
/// # Errors
///
/// No column, a sheet of more than 16,384 pixels in height or width, images that are neither grey nor in colour, a file that
/// cannot be read any more.
pub fn contact_sheet(rows: &Dataset, columns: usize) -> Result<(ImageShape, Vec<u8>)> {
    const OP: &str = "contact sheet";
    let ImageShape { channels, height, width } = rows.shape();
    if ![1, 3].contains(&channels) {
        return Err(Error::invalid(OP, "channels", "1 or 3", channels));
    }
    let lines = if rows.is_labelled() { by_class(rows, columns) } else { in_order(rows, columns) };
    let side = |count: usize, size: usize| {
        let pixels = size.checked_add(GAP)?.checked_mul(count)?.checked_sub(GAP)?;
        (1..=MAX_SIDE).contains(&pixels).then_some(pixels)
    };
    let (Some(sheet_height), Some(sheet_width)) = (side(lines.len(), height), side(columns, width)) else {
        let expected = format!("at least 1, and a sheet of at most {MAX_SIDE} x {MAX_SIDE} pixels");
        return Err(Error::invalid(OP, "columns", expected, columns));
    };
    let shape = ImageShape { channels, height: sheet_height, width: sheet_width };
    // White, so that the gaps can be told from black borders.
    let mut sheet = vec![255; channels * sheet_height * sheet_width];
    for (line, images) in lines.iter().enumerate() {
        for (column, &row) in images.iter().enumerate() {
            let image = rows.image(row)?;
            let (top, left) = (line * (height + GAP), column * (width + GAP));
            for (y, pixels) in image.chunks_exact(width).enumerate() {
                let (plane, y) = (y / height, y % height);
                let at = (plane * sheet_height + top + y) * sheet_width + left;
                let scaled = |&pixel: &u8| (f32::from(pixel) * 255.0 / rows.max_value()).round() as u8;
                sheet[at..at + width].iter_mut().zip(pixels).for_each(|(target, pixel)| *target = scaled(pixel));
            }
        }
    }
    Ok((shape, sheet))
}

/// Row numbers, a line a class.
fn by_class(rows: &Dataset, columns: usize) -> Vec<Vec<usize>> {
    let mut lines = vec![Vec::new(); rows.classes()];
    for (row, &label) in rows.labels().iter().enumerate() {
        let line = &mut lines[label as usize];
        if line.len() < columns {
            line.push(row);
        }
    }
    lines
}

fn in_order(rows: &Dataset, columns: usize) -> Vec<Vec<usize>> {
    let all: Vec<usize> = (0..rows.len().min(columns.saturating_mul(10))).collect();
    all.chunks(columns.max(1)).map(<[usize]>::to_vec).collect()
}
