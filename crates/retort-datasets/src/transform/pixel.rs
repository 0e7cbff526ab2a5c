//! Operations on pixel values, bit for bit those of Pillow (`ImageOps`, `ImageEnhance`, `ImageFilter.GaussianBlur`).
//!
//! Images have 1 channel (Pillow's mode L) or 3 (RGB).

use super::Image;

/// Pillow's `Image.blend`: `low + factor (high - low)`, cut off to whole numbers and clipped to a byte.
fn blend(low: u8, high: u8, factor: f32) -> u8 {
    // The cast clips.
    (f32::from(low) + factor * (f32::from(high) - f32::from(low))) as u8
}

/// Luma `0.299 R + 0.587 G + 0.114 B` in Pillow's fixed point.
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    let sum = u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000;
    (sum >> 16) as u8
}

/// Replaces every pixel of a colour image; nothing happens to a grey one.
fn map_colours(image: &mut Image, change: impl Fn([u8; 3]) -> [u8; 3]) {
    if image.shape.channels != 3 {
        return;
    }
    let (reds, others) = image.pixels.split_at_mut(image.shape.height * image.shape.width);
    let (greens, blues) = others.split_at_mut(reds.len());
    for ((red, green), blue) in reds.iter_mut().zip(greens).zip(blues) {
        [*red, *green, *blue] = change([*red, *green, *blue]);
    }
}

/// Replaces every value of every channel by a table.
fn look_up(values: &mut [u8], change: impl FnMut(u8) -> u8) {
    let mut table: [u8; 256] = std::array::from_fn(|value| value as u8);
    let mut change = change;
    table.iter_mut().for_each(|value| *value = change(*value));
    values.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
}

pub(super) fn greyscale(image: &mut Image) {
    map_colours(image, |colour| [luma(colour); 3]);
}

/// 0 black, 1 the image.
pub(super) fn brightness(image: &mut Image, factor: f64) {
    look_up(&mut image.pixels, |value| blend(0, value, factor as f32));
}

/// 0 grey, 1 the image.
pub(super) fn saturation(image: &mut Image, factor: f64) {
    map_colours(image, |colour| {
        let grey = luma(colour);
        colour.map(|value| blend(grey, value, factor as f32))
    });
}

/// 0 the mean luma everywhere, 1 the image.
pub(super) fn contrast(image: &mut Image, factor: f64) {
    let plane = image.shape.height * image.shape.width;
    let total: u64 = match image.pixels.chunks_exact(plane).collect::<Vec<_>>()[..] {
        [reds, greens, blues] => {
            let colours = reds.iter().zip(greens).zip(blues);
            colours.map(|((&red, &green), &blue)| u64::from(luma([red, green, blue]))).sum()
        }
        _ => image.pixels.iter().take(plane).map(|&value| u64::from(value)).sum(),
    };
    let mean = (total as f64 / plane as f64 + 0.5) as u8;
    look_up(&mut image.pixels, |value| blend(mean, value, factor as f32));
}

/// 0 smoothed by the kernel 1 1 1, 1 5 1, 1 1 1 over 13 (the border stays), 1 the image.
pub(super) fn sharpness(image: &mut Image, spare: &mut Vec<u8>, factor: f64) {
    let shape = image.shape;
    let (height, width) = (shape.height, shape.width);
    image.rewrite(spare, shape, |source, target| {
        target.copy_from_slice(source);
        if height < 3 || width < 3 {
            return;
        }
        let planes = source.chunks_exact(height * width).zip(target.chunks_exact_mut(height * width));
        for (source, target) in planes {
            for y in 1..height - 1 {
                for x in 1..width - 1 {
                    let rows = [y - 1, y, y + 1].map(|y| &source[y * width + x - 1..y * width + x + 2]);
                    let around: u32 = rows.iter().flat_map(|row| row.iter()).map(|&value| u32::from(value)).sum();
                    let centre = source[y * width + x];
                    let smooth = (2 * (around + 4 * u32::from(centre)) + 13) / 26;
                    target[y * width + x] = blend(smooth as u8, centre, factor as f32);
                }
            }
        }
    });
}

/// Keeps the upper `bits` of every value, 0 to 8.
pub(super) fn posterize(image: &mut Image, bits: u32) {
    let mask = !(0xffu32 >> bits.min(8)) as u8;
    look_up(&mut image.pixels, |value| value & mask);
}

/// Inverts the values from `threshold` on.
pub(super) fn solarize(image: &mut Image, threshold: f64) {
    look_up(&mut image.pixels, |value| if f64::from(value) < threshold { value } else { 255 - value });
}

pub(super) fn invert(image: &mut Image) {
    look_up(&mut image.pixels, |value| 255 - value);
}

/// Stretches every channel to 0 .. 255; a channel of one value stays.
pub(super) fn autocontrast(image: &mut Image) {
    for plane in image.pixels.chunks_exact_mut(image.shape.height * image.shape.width) {
        let (low, high) = plane.iter().fold((255, 0), |(low, high), &v| (v.min(low), v.max(high)));
        if low < high {
            let scale = 255.0 / f64::from(high - low);
            let offset = -f64::from(low) * scale;
            look_up(plane, |value| (f64::from(value) * scale + offset) as u8);
        }
    }
}

/// Spreads the values of every channel evenly over 0 .. 255.
pub(super) fn equalize(image: &mut Image) {
    for plane in image.pixels.chunks_exact_mut(image.shape.height * image.shape.width) {
        let mut histogram = [0usize; 256];
        plane.iter().for_each(|&value| histogram[usize::from(value)] += 1);
        let last = histogram.iter().rev().copied().find(|&count| count > 0).unwrap_or(0);
        let step = (plane.len() - last) / 255;
        // Also where the channel has one value.
        if step > 0 {
            let mut below = step / 2;
            look_up(plane, |value| {
                let result = (below / step).min(255) as u8;
                below += histogram[usize::from(value)];
                result
            });
        }
    }
}

/// Turns the hue by `turns` of a full circle, in Pillow's 8-bit HSV as torchvision does; a grey image stays.
pub(super) fn hue(image: &mut Image, turns: f64) {
    let shift = (turns * 255.0) as i32 as u8;
    map_colours(image, |colour| {
        let [hue, saturation, value] = to_hsv(colour);
        from_hsv([hue.wrapping_add(shift), saturation, value])
    });
}

fn to_hsv(colour: [u8; 3]) -> [u8; 3] {
    let [red, green, blue] = colour;
    let (low, high) = (red.min(green).min(blue), red.max(green).max(blue));
    if low == high {
        return [0, 0, high];
    }
    let range = f32::from(high - low);
    let [r, g, b] = colour.map(|value| f32::from(high - value) / range);
    let sector = if red == high {
        b - g
    } else if green == high {
        (2.0 + f64::from(r) - f64::from(b)) as f32
    } else {
        (4.0 + f64::from(g) - f64::from(r)) as f32
    };
    let hue = ((f64::from(sector) / 6.0 + 1.0) % 1.0) as f32;
    let saturation = range / f32::from(high);
    [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, high]
}

fn from_hsv([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let sixth = f64::from(hue) * 6.0 / 255.0;
    let sector = sixth.floor();
    let fraction = f64::from((sixth - sector) as f32);
    let s = f64::from((f64::from(saturation) / 255.0) as f32);
    let scaled = |part: f64| (f64::from(value) * part).round() as u8;
    let (p, q, t) = (scaled(1.0 - s), scaled(1.0 - s * fraction), scaled(1.0 - s * (1.0 - fraction)));
    match sector as u32 % 6 {
        0 => [value, t, p],
        1 => [q, value, p],
        2 => [p, value, t],
        3 => [p, q, value],
        4 => [t, p, value],
        _ => [value, p, q],
    }
}

/// Pillow's `GaussianBlur(radius=sigma)`: three extended box filters (Gwosdek et al. 2011), edges repeated.
pub(super) fn gaussian_blur(image: &mut Image, spare: &mut Vec<u8>, sigma: f64) {
    let radius = box_radius(sigma as f32);
    // Pillow leaves the image where the box is a single pixel.
    if radius == 0.0 {
        return;
    }
    let (height, width) = (image.shape.height, image.shape.width);
    let mut line = vec![0; height.max(width)];
    for plane in image.pixels.chunks_exact_mut(height * width) {
        for row in plane.chunks_exact_mut(width) {
            (0..3).for_each(|_| box_blur(row, &mut line, radius));
        }
        spare.resize(height, 0);
        for x in 0..width {
            spare.iter_mut().zip(plane.iter().skip(x).step_by(width)).for_each(|(to, from)| *to = *from);
            (0..3).for_each(|_| box_blur(spare, &mut line, radius));
            plane.iter_mut().skip(x).step_by(width).zip(&*spare).for_each(|(to, from)| *to = *from);
        }
    }
}

/// The radius, with its fraction, of the box that three times gives this standard deviation.
fn box_radius(sigma: f32) -> f32 {
    let variance = sigma * sigma / 3.0;
    let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
    let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
    let above = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
    whole + above / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)))
}

/// Averages `2 r + 1` values and a fraction of the next on both sides, in fixed point with 24 bits.
fn box_blur(values: &mut [u8], copy: &mut [u8], radius: f32) {
    let copy = &mut copy[..values.len()];
    copy.copy_from_slice(values);
    let whole = radius as i64;
    let inner = ((1u32 << 24) as f32 / (radius * 2.0 + 1.0)) as u64;
    let outer = ((1u64 << 24).saturating_sub((2 * whole as u64 + 1) * inner)) / 2;
    let last = copy.len() as i64 - 1;
    let at = |place: i64| u64::from(copy[place.clamp(0, last) as usize]);
    let mut sum: u64 = (-whole - 1..whole).map(at).sum();
    for (place, value) in (0i64..).zip(values) {
        sum = sum + at(place + whole) - at(place - whole - 1);
        let total = sum * inner + (at(place - whole - 1) + at(place + whole + 1)) * outer;
        *value = ((total + (1 << 23)) >> 24).min(255) as u8;
    }
}
