//! Pictures in PNG and JPEG as pixels `[C, H, W]`, and contact sheets as PNG.

use std::borrow::Cow;
use std::io::{Cursor, Write};
use std::path::Path;

use ::image::codecs::jpeg::JpegDecoder;
use ::image::codecs::png::{PngDecoder, PngEncoder};
use ::image::imageops::FilterType;
use ::image::{
    DynamicImage, ExtendedColorType, GrayImage, ImageDecoder as _, ImageEncoder as _, ImageError, Limits, RgbImage,
};
use serde::{Deserialize, Serialize};

use super::files::{row_error, shown};
use crate::{Error, ImageShape, Result};

/// Longest side of a picture that is resized.
pub const MAX_SIDE: u32 = 16_384;

/// Most pixels of a picture that is resized; decoded, they take 192 MiB in colour.
pub const MAX_PIXELS: u64 = 64 << 20;

const PNG: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
const JPEG: [u8; 3] = [0xff, 0xd8, 0xff];

/// How a picture gets the size of its data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fit {
    /// It must have it; another size is an error with its row.
    #[default]
    Exact,
    /// Resized to this size, whatever its proportions: bilinear, with the filter widened where the picture shrinks, as
    /// PIL's `BILINEAR` and torchvision's `antialias=True`. Pixels differ from theirs by at most 1, by rounding.
    Resize {
        /// Rows of pixels, >= 1.
        height: usize,
        /// Columns of pixels, >= 1.
        width: usize,
    },
    /// The shorter side resized to `resize`, the longer one in proportion (rounded down), then the middle
    /// `crop x crop` pixels: torchvision's `Resize(resize)` and `CenterCrop(crop)`.
    ResizeShortAndCrop {
        /// Length of the shorter side, >= `crop`.
        resize: usize,
        /// Both sides of the result, >= 1.
        crop: usize,
    },
}

impl Fit {
    pub(crate) fn is_exact(&self) -> bool {
        *self == Self::Exact
    }

    /// Size of the images that come out, where those that go in have the shape `native`.
    pub fn shape(self, native: ImageShape) -> ImageShape {
        match self {
            Self::Exact => native,
            Self::Resize { height, width } => ImageShape { height, width, ..native },
            Self::ResizeShortAndCrop { crop, .. } => ImageShape { height: crop, width: crop, ..native },
        }
    }

    fn check(self) -> Result<()> {
        let side = |what: &str, value: usize, least: usize| {
            if value >= least && value <= MAX_SIDE as usize {
                return Ok(());
            }
            Err(Error::invalid("fit", what, format!("{least} to {MAX_SIDE}"), value))
        };
        match self {
            Self::Exact => Ok(()),
            Self::Resize { height, width } => side("height", height, 1).and_then(|()| side("width", width, 1)),
            Self::ResizeShortAndCrop { resize, crop } => {
                side("crop", crop, 1).and_then(|()| side("resize", resize, crop))
            }
        }
    }
}

/// What is wrong with a picture: what, expected, found.
type Refusal = (&'static str, String, String);

/// Turns files of pictures into pixels of one shape.
///
/// Palettes and 16 bits become 8 bits a channel, transparency is dropped (not blended), EXIF orientation is ignored. Grey
/// becomes colour where the data set has three channels; colour where it has one is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageDecoder {
    native: ImageShape,
    fit: Fit,
    shape: ImageShape,
}

impl ImageDecoder {
    /// For pictures of `native`'s channels, and with [`Fit::Exact`] of its size too.
    ///
    /// # Errors
    ///
    /// Channels other than 1 and 3, a size of 0, a size above [`MAX_SIDE`], a crop larger than what it is cut from.
    pub fn new(native: ImageShape, fit: Fit) -> Result<Self> {
        fit.check()?;
        if !matches!(native.channels, 1 | 3) {
            return Err(Error::invalid("image decoder", "channels", "1 or 3", native.channels));
        }
        let shape = fit.shape(native);
        let side = 1..=MAX_SIDE as usize;
        if !side.contains(&shape.height) || !side.contains(&shape.width) {
            return Err(Error::invalid("image decoder", "height and width", format!("1 to {MAX_SIDE}"), shape));
        }
        Ok(Self { native, fit, shape })
    }

    /// Shape of what [`decode`](Self::decode) returns.
    pub fn shape(&self) -> ImageShape {
        self.shape
    }

    /// Pixels `[C, H, W]` of a PNG or JPEG; `file` and `row` are named in errors.
    ///
    /// The size that a picture claims is compared with the size wanted, or with [`MAX_SIDE`] and [`MAX_PIXELS`], before
    /// any memory is asked for. A JPEG carries no check sum: damage inside its pixels can go unnoticed, a missing end not.
    ///
    /// # Errors
    ///
    /// No bytes, another format, a damaged or incomplete picture, another size, colour in a grey data set.
    pub fn decode(&self, file: &str, row: usize, bytes: &[u8]) -> Result<Vec<u8>> {
        self.pixels(bytes).map_err(|(what, expected, found)| row_error(file, row, what, expected, found))
    }

    /// The same for pixels `[C, H, W]` of the native shape that a file holds without a format around them.
    ///
    /// # Errors
    ///
    /// Pixels of another length.
    pub fn fit<'a>(&self, file: &str, row: usize, pixels: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        if self.native.bytes() != Some(pixels.len()) {
            let expected = format!("those of {}", self.native);
            return Err(row_error(file, row, "bytes of pixels", expected, pixels.len()));
        }
        if self.fit == Fit::Exact {
            return Ok(Cow::Borrowed(pixels));
        }
        let ImageShape { channels, height, width } = self.native;
        let interleaved = interleaved(pixels, channels);
        let (Ok(w), Ok(h)) = (u32::try_from(width), u32::try_from(height)) else {
            return Err(row_error(file, row, "size", format!("sides up to {MAX_SIDE}"), self.native));
        };
        let picture = match channels {
            1 => GrayImage::from_raw(w, h, interleaved).map(DynamicImage::from),
            _ => RgbImage::from_raw(w, h, interleaved).map(DynamicImage::from),
        };
        let picture = picture.ok_or_else(|| row_error(file, row, "size", self.native, pixels.len()))?;
        Ok(Cow::Owned(self.planar(&self.fitted(picture))))
    }

    fn pixels(&self, bytes: &[u8]) -> std::result::Result<Vec<u8>, Refusal> {
        let picture = if bytes.starts_with(&PNG) {
            let limits = limits();
            let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits.clone()).map_err(damaged)?;
            self.checked(decoder, limits)?
        } else if bytes.starts_with(&JPEG) {
            jpeg_end(bytes)?;
            self.checked(JpegDecoder::new(Cursor::new(bytes)).map_err(damaged)?, limits())?
        } else {
            let found = match bytes {
                [] => "no bytes".to_owned(),
                _ => format!("{} bytes that begin with {:02x?}", bytes.len(), bytes.get(..4).unwrap_or(bytes)),
            };
            return Err(("picture", "PNG or JPEG".to_owned(), found));
        };
        Ok(self.planar(&self.fitted(picture)))
    }

    fn checked(
        &self,
        mut decoder: impl ::image::ImageDecoder,
        limits: Limits,
    ) -> std::result::Result<DynamicImage, Refusal> {
        let (width, height) = decoder.dimensions();
        let found = || format!("{height} x {width}");
        let exact = self.fit == Fit::Exact;
        if exact && (height as usize, width as usize) != (self.native.height, self.native.width) {
            return Err(("size of the picture", format!("{} x {}", self.native.height, self.native.width), found()));
        }
        let fits = |width: u32, height: u32| {
            let side = 1..=MAX_SIDE;
            side.contains(&width) && side.contains(&height) && u64::from(width) * u64::from(height) <= MAX_PIXELS
        };
        // A very long picture would become huge where its short side grows.
        let (resized_width, resized_height) = self.resized_to(width, height);
        if !fits(width, height) || !fits(resized_width, resized_height) {
            let expected =
                format!("sides of 1 to {MAX_SIDE} and at most {MAX_PIXELS} pixels, before and after resizing");
            return Err(("size of the picture", expected, found()));
        }
        let colour = decoder.color_type().has_color();
        if self.native.channels == 1 && colour {
            return Err(("channels of the picture", "grey".to_owned(), "colour".to_owned()));
        }
        decoder.set_limits(limits).map_err(damaged)?;
        let picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
        Ok(if self.native.channels == 1 { picture.to_luma8().into() } else { picture.to_rgb8().into() })
    }

    fn fitted(&self, picture: DynamicImage) -> DynamicImage {
        let (width, height) = self.resized_to(picture.width(), picture.height());
        let picture = match (picture.width(), picture.height()) == (width, height) {
            true => picture,
            false => picture.resize_exact(width, height, FilterType::Triangle),
        };
        let Fit::ResizeShortAndCrop { crop, .. } = self.fit else { return picture };
        let crop = side(crop);
        picture.crop_imm(centre(width.saturating_sub(crop)), centre(height.saturating_sub(crop)), crop, crop)
    }

    /// Width and height after resizing, before the crop.
    fn resized_to(&self, width: u32, height: u32) -> (u32, u32) {
        match self.fit {
            Fit::Exact => (width, height),
            Fit::Resize { height, width } => (side(width), side(height)),
            Fit::ResizeShortAndCrop { resize, .. } => {
                let resize = side(resize);
                // 64 bits: the product of two sides need not fit 32.
                let long = |long: u32, short: u32| u64::from(resize) * u64::from(long) / u64::from(short.max(1));
                let long = |a, b| u32::try_from(long(a, b)).unwrap_or(u32::MAX);
                if width <= height { (resize, long(height, width)) } else { (long(width, height), resize) }
            }
        }
    }

    /// `[H, W, C]` to `[C, H, W]`.
    fn planar(&self, picture: &DynamicImage) -> Vec<u8> {
        let bytes = picture.as_bytes();
        let channels = self.native.channels;
        (0..channels).flat_map(|c| bytes.iter().skip(c).step_by(channels).copied()).collect()
    }
}

/// `[C, H, W]` to `[H, W, C]`; the caller has checked the length.
fn interleaved(pixels: &[u8], channels: usize) -> Vec<u8> {
    let plane = pixels.len() / channels.max(1);
    (0..plane).flat_map(|i| pixels.iter().skip(i).step_by(plane.max(1)).copied()).collect()
}

/// Sides were checked when the decoder was made.
fn side(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(MAX_SIDE)
}

/// Half of the spare pixels, rounded half to even as Python's `round` in torchvision's `CenterCrop`.
fn centre(spare: u32) -> u32 {
    let half = spare / 2;
    if spare % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    // 16 bits and four channels, and as much again for the way to 8 bits.
    limits.max_alloc = Some(16 * MAX_PIXELS);
    limits
}

fn damaged(e: ImageError) -> Refusal {
    ("picture", "a complete PNG or JPEG".to_owned(), e.to_string())
}

/// Follows the segments of a JPEG to its end marker: decoders fill up what is missing with grey.
fn jpeg_end(bytes: &[u8]) -> std::result::Result<(), Refusal> {
    const SCAN: u8 = 0xda;
    const END: u8 = 0xd9;
    let cut = || ("picture", "a JPEG with an end marker".to_owned(), format!("{} bytes without one", bytes.len()));
    let mut at = 2;
    loop {
        let marker = match bytes.get(at..at + 2).ok_or_else(cut)? {
            // Any number of ff may stand before a marker.
            [0xff, 0xff] => {
                at += 1;
                continue;
            }
            [0xff, marker] => *marker,
            _ => {
                let expected = "a JPEG made of segments".to_owned();
                return Err(("picture", expected, format!("no marker at byte {at}")));
            }
        };
        if marker == END {
            return Ok(());
        }
        at += 2;
        // Markers without a length.
        if marker == 0x01 || (0xd0..=0xd8).contains(&marker) {
            continue;
        }
        let length = bytes.get(at..at + 2).ok_or_else(cut)?;
        at += length.iter().fold(0, |n, &b| n << 8 | usize::from(b)).max(2);
        if marker == SCAN {
            // Coded pixels go on up to an ff that neither 00 nor a restart follows.
            let data = bytes.get(at..).ok_or_else(cut)?;
            let ends = |pair: &[u8]| matches!(pair, &[0xff, next] if next != 0 && !(0xd0..=0xd7).contains(&next));
            at += data.windows(2).position(ends).ok_or_else(cut)?;
        }
    }
}

/// Size and channels of a picture, from its header: 1 for grey, 3 for everything else.
///
/// # Errors
///
/// As for [`ImageDecoder::decode`], without the pixels.
pub fn picture_shape(file: &str, row: usize, bytes: &[u8]) -> Result<ImageShape> {
    let header = |decoder: &dyn Fn() -> std::result::Result<((u32, u32), bool), ImageError>| {
        let ((width, height), colour) = decoder().map_err(|e| {
            let (what, expected, found) = damaged(e);
            row_error(file, row, what, expected, found)
        })?;
        let channels = if colour { 3 } else { 1 };
        Ok(ImageShape { channels, height: height as usize, width: width as usize })
    };
    if bytes.starts_with(&PNG) {
        header(&|| {
            let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits())?;
            Ok((decoder.dimensions(), decoder.color_type().has_color()))
        })
    } else if bytes.starts_with(&JPEG) {
        header(&|| {
            let decoder = JpegDecoder::new(Cursor::new(bytes))?;
            Ok((decoder.dimensions(), decoder.color_type().has_color()))
        })
    } else {
        Err(row_error(file, row, "picture", "PNG or JPEG", format!("{} other bytes", bytes.len())))
    }
}

/// Writes pixels `[C, H, W]` as PNG, under a temporary name first, so that there is never half a file.
///
/// # Errors
///
/// Channels other than 1 and 3, pixels of another length, a folder that cannot be written.
pub fn write_png(path: &Path, shape: ImageShape, pixels: &[u8]) -> Result<()> {
    let png = png_bytes(shape, pixels)?;
    let io = |reason| Error::Io { file: shown(path), reason };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = tempfile::Builder::new();
    // The library's own choice would hide the file from everybody else.
    #[cfg(unix)]
    name.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = name.prefix(".png-").tempfile_in(folder).map_err(io)?;
    file.write_all(&png).map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}

/// Pixels `[C, H, W]` as the bytes of a PNG.
///
/// # Errors
///
/// As for [`write_png`], without the folder.
pub fn png_bytes(shape: ImageShape, pixels: &[u8]) -> Result<Vec<u8>> {
    const OP: &str = "write PNG";
    let colour = match shape.channels {
        1 => ExtendedColorType::L8,
        3 => ExtendedColorType::Rgb8,
        channels => return Err(Error::invalid(OP, "channels", "1 or 3", channels)),
    };
    let expected = shape.bytes().filter(|&n| n > 0);
    if expected != Some(pixels.len()) {
        return Err(Error::invalid(OP, "bytes of pixels", format!("those of {shape}, at least 1"), pixels.len()));
    }
    let (Ok(width), Ok(height)) = (u32::try_from(shape.width), u32::try_from(shape.height)) else {
        return Err(Error::invalid(OP, "shape", "sides below 4294967296", shape));
    };
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&interleaved(pixels, shape.channels), width, height, colour)
        .map_err(|e| Error::invalid(OP, "picture", "one that can be encoded", e))?;
    Ok(png)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    macro_rules! picture {
        ($name:literal) => {
            include_bytes!(concat!("../../tests/data/", $name)).as_slice()
        };
    }

    const COLOUR: ImageShape = ImageShape { channels: 3, height: 6, width: 8 };
    const GREY: ImageShape = ImageShape { channels: 1, ..COLOUR };

    /// What the pictures of `tests/data` were drawn from.
    fn expected(channel: usize) -> Vec<u8> {
        let pixel = |(y, x): (usize, usize)| match channel {
            0 => y * 40 + x,
            1 => 255 - x * 30,
            _ => x * y * 5,
        };
        (0..6).flat_map(|y| (0..8).map(move |x| (y, x))).map(|at| (pixel(at) % 256) as u8).collect()
    }

    fn expected_grey() -> Vec<u8> {
        (0..6).flat_map(|y| (0..8).map(move |x| (y * 30 + x * 12) as u8)).collect()
    }

    fn decode(native: ImageShape, fit: Fit, bytes: &[u8]) -> Result<Vec<u8>> {
        ImageDecoder::new(native, fit)?.decode("f", 7, bytes)
    }

    #[test]
    fn every_kind_of_png_becomes_planes_of_bytes() {
        let colour = [expected(0), expected(1), expected(2)].concat();
        for png in [picture!("rgb.png"), picture!("palette.png"), picture!("rgba.png")] {
            assert_eq!(decode(COLOUR, Fit::Exact, png).unwrap(), colour);
            let error = decode(GREY, Fit::Exact, png).unwrap_err().to_string();
            assert_eq!(error, "`f`, row 7: channels of the picture: expected grey, found colour");
        }
        for png in [picture!("grey.png"), picture!("grey16.png"), picture!("grey-alpha.png")] {
            assert_eq!(decode(GREY, Fit::Exact, png).unwrap(), expected_grey());
            assert_eq!(decode(COLOUR, Fit::Exact, png).unwrap(), expected_grey().repeat(3), "grey is expanded");
        }
    }

    /// First row of red, and the last pixel, as PIL decodes them; decoders of JPEG may differ by a little.
    #[test]
    fn jpegs_are_close_to_another_decoder() {
        for jpeg in [picture!("rgb.jpg"), picture!("progressive.jpg")] {
            let pixels = decode(COLOUR, Fit::Exact, jpeg).unwrap();
            let close = |found: u8, expected: u8| found.abs_diff(expected) <= 3;
            assert!(pixels.iter().zip([0, 1, 1, 1, 3, 4, 3, 7]).all(|(&p, e)| close(p, e)), "{:?}", &pixels[..8]);
            assert!([(47, 209), (95, 44), (143, 172)].into_iter().all(|(at, e)| close(pixels[at], e)));
        }
        let grey = decode(GREY, Fit::Exact, picture!("grey.jpg")).unwrap();
        assert!(grey.iter().zip(expected_grey()).all(|(&p, e)| p.abs_diff(e) <= 3));
    }

    /// Numbers from PIL's `resize(.., BILINEAR)`, and torchvision's rule for the crop.
    #[test]
    fn resizing_is_that_of_pil() {
        let native = ImageShape { channels: 1, height: 13, width: 9 };
        let pixels: Vec<u8> = (0..13).flat_map(|y| (0..9).map(move |x| ((y * 37 + x * 53) % 256) as u8)).collect();
        let png = png_bytes(native, &pixels).unwrap();
        let small = [
            [83, 161, 101, 157],
            [161, 121, 136, 124],
            [114, 127, 139, 106],
            [106, 153, 110, 164],
            [157, 90, 153, 107],
        ];
        let close = |found: &[u8], expected: &[u8]| {
            assert_eq!(found.len(), expected.len());
            assert!(found.iter().zip(expected).all(|(f, e)| f.abs_diff(*e) <= 1), "{found:?}\n{expected:?}");
        };
        let fit = Fit::Resize { height: 5, width: 4 };
        close(&decode(native, fit, &png).unwrap(), small.as_flattened());
        // The same from pixels without a format around them.
        close(&ImageDecoder::new(native, fit).unwrap().fit("f", 0, &pixels).unwrap(), small.as_flattened());
        let large = decode(native, Fit::Resize { height: 15, width: 10 }, &png).unwrap();
        close(&large[70..80], &[222, 49, 59, 106, 154, 202, 160, 41, 89, 134]);
        let cropped = [
            [153, 189, 78, 130, 160],
            [181, 111, 110, 179, 135],
            [66, 92, 169, 124, 80],
            [75, 148, 184, 99, 129],
            [136, 153, 80, 113, 169],
        ];
        let fit = Fit::ResizeShortAndCrop { resize: 6, crop: 5 };
        close(&decode(native, fit, &png).unwrap(), cropped.as_flattened());
        assert_eq!(fit.shape(native).to_string(), "1x5x5");
    }

    #[test]
    fn fits_and_decoders_are_checked() {
        for (native, fit) in [
            (ImageShape { channels: 2, ..GREY }, Fit::Exact),
            (ImageShape { height: 0, ..GREY }, Fit::Exact),
            (ImageShape { width: usize::MAX, ..GREY }, Fit::Exact),
            (GREY, Fit::Resize { height: 0, width: 1 }),
            (GREY, Fit::Resize { height: 1, width: usize::MAX }),
            (GREY, Fit::ResizeShortAndCrop { resize: 4, crop: 5 }),
            (GREY, Fit::ResizeShortAndCrop { resize: 4, crop: 0 }),
        ] {
            assert!(ImageDecoder::new(native, fit).is_err(), "{native} {fit:?}");
        }
        let decoder = ImageDecoder::new(GREY, Fit::Exact).unwrap();
        assert!(decoder.fit("f", 3, &[0; 47]).unwrap_err().to_string().contains("row 3: bytes of pixels"));
    }

    /// A PNG header that claims a size, with a right check sum and nothing behind it.
    fn claims(width: u32, height: u32) -> Vec<u8> {
        let mut chunk = b"IHDR".to_vec();
        chunk.extend(width.to_be_bytes());
        chunk.extend(height.to_be_bytes());
        chunk.extend([8, 2, 0, 0, 0]);
        let crc = chunk.iter().fold(u32::MAX, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
        });
        [&PNG[..], &13u32.to_be_bytes(), &chunk, &(!crc).to_be_bytes(), &[0, 0, 0, 0], b"IDAT"].concat()
    }

    #[test]
    fn sizes_are_refused_before_they_cost_memory() {
        let started = std::time::Instant::now();
        let resize = Fit::Resize { height: 8, width: 8 };
        for (fit, bytes, message) in [
            (Fit::Exact, claims(60_000, 60_000), "expected 6 x 8, found 60000 x 60000"),
            (resize, claims(60_000, 60_000), "sides of 1 to 16384"),
            (resize, claims(16_000, 16_000), "at most 67108864 pixels"),
            (Fit::ResizeShortAndCrop { resize: 64, crop: 64 }, claims(16_384, 1), "after resizing"),
            (Fit::Exact, picture!("grey.png")[..40].to_vec(), "a complete PNG"),
        ] {
            let error = decode(COLOUR, fit, &bytes).unwrap_err().to_string();
            assert!(error.contains(message) && error.contains("row 7"), "{error}");
        }
        // A JPEG whose frame header claims 65535 x 65535.
        let mut jpeg = picture!("rgb.jpg").to_vec();
        let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        jpeg[frame + 5..frame + 9].fill(0xff);
        let error = decode(COLOUR, resize, &jpeg).unwrap_err().to_string();
        assert!(error.contains("found 65535 x 65535"), "{error}");
        assert!(started.elapsed().as_secs() < 5);
    }

    #[test]
    fn every_beginning_of_a_picture_is_refused() {
        for whole in [picture!("rgb.png"), picture!("rgb.jpg"), picture!("progressive.jpg"), picture!("palette.png")] {
            for length in 0..whole.len() {
                // Behind the pixels a PNG has its end mark of 12 bytes, which no decoder needs.
                if whole.starts_with(&PNG) && length + 12 >= whole.len() {
                    continue;
                }
                let error = decode(COLOUR, Fit::Exact, &whole[..length]).unwrap_err().to_string();
                assert!(error.contains("row 7"), "{length}: {error}");
            }
            // What follows a picture does not matter.
            assert!(decode(COLOUR, Fit::Exact, &[whole, b"more"].concat()).is_ok());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is changed, the answer is an error or pixels of the right number; a PNG's check sums find most.
        #[test]
        fn changed_bytes_never_panic(at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
            for (whole, native) in [
                (picture!("rgb.png"), COLOUR),
                (picture!("grey16.png"), GREY),
                (picture!("palette.png"), COLOUR),
                (picture!("rgb.jpg"), COLOUR),
                (picture!("progressive.jpg"), COLOUR),
                (picture!("grey.jpg"), GREY),
            ] {
                let mut bytes = whole.to_vec();
                at.iter().for_each(|(index, value)| bytes[index.index(whole.len())] = *value);
                for fit in [Fit::Exact, Fit::Resize { height: 3, width: 5 }] {
                    if let Ok(pixels) = decode(native, fit, &bytes) {
                        prop_assert_eq!(Some(pixels.len()), fit.shape(native).bytes());
                    }
                }
                let _ = picture_shape("f", 0, &bytes);
            }
        }

        #[test]
        fn a_png_gives_its_pixels_back(height in 1usize..9, width in 1usize..9, colour: bool, start: u8) {
            let shape = ImageShape { channels: if colour { 3 } else { 1 }, height, width };
            let pixels: Vec<u8> = (0..shape.bytes().unwrap()).map(|i| start.wrapping_add((i * 41) as u8)).collect();
            let png = png_bytes(shape, &pixels).unwrap();
            prop_assert_eq!(picture_shape("f", 0, &png).unwrap(), shape);
            prop_assert_eq!(decode(shape, Fit::Exact, &png).unwrap(), pixels);
        }
    }

    #[test]
    fn a_contact_sheet_is_written_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sheet.png");
        write_png(&path, GREY, &expected_grey()).unwrap();
        write_png(&path, COLOUR, &[expected(0), expected(1), expected(2)].concat()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(decode(COLOUR, Fit::Exact, &bytes).unwrap()[48..96], expected(1));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
        assert!(write_png(&path, GREY, &[0; 3]).is_err());
        assert!(write_png(&path, ImageShape { channels: 4, ..GREY }, &[0; 192]).is_err());
        assert!(write_png(&folder.path().join("no/sheet.png"), GREY, &expected_grey()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}
