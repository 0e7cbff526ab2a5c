//! What happens to a whole batch: four rotations, mixup, cutmix. Pure functions; what is random is drawn apart and
//! handed in.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use retort_datasets::{batch, sample_rng};
//!
//! let images = Tensor::arange(0f32, 2. * 3. * 4. * 4., &Device::Cpu)?.reshape((2, 3, 4, 4))?;
//! let mut rng = sample_rng(0, 0, 0, 0);
//! let lambda = batch::draw_beta(0.4, &mut rng)?;
//! let partners = batch::draw_permutation(2, &mut rng);
//! let mixed = batch::mixup(&images, &partners, lambda)?;
//! assert_eq!(mixed.dims(), images.dims());
//! # Ok::<(), retort_datasets::Error>(())
//! ```

use std::ops::Range;

use candle_core::{D, Tensor};
use rand_chacha::ChaCha8Rng;

use crate::rng::shuffle;
use crate::transform::draw;
use crate::{Error, Result};

/// Every image under 0, 1, 2 and 3 quarter turns counter-clockwise (HSAKD, Yang et al. 2021, arXiv 2107.13715).
///
/// Row `4 i + k` is image `i` under `k` turns: `out_1[r, c] = x[r', c']` with `(r', c') = (c, N - 1 - r)`, `out_2`
/// `(N - 1 - r, N - 1 - c)`, `out_3` `(N - 1 - c, r)`. Gradients flow.
///
/// # Shapes
///
/// `images`: `[B, C, N, N]`. Returns `[4 B, C, N, N]`.
///
/// # Errors
///
/// Another rank, images that are not square, no image.
pub fn rotate4(images: &Tensor) -> Result<Tensor> {
    const OP: &str = "rotate4";
    let (b, c, height, width) = four(OP, images)?;
    if height != width {
        return Err(Error::invalid(OP, "images", "height equal to width", format!("{:?}", images.dims())));
    }
    let quarter = |x: &Tensor| Ok::<_, Error>(flip(x, D::Minus1)?.transpose(D::Minus2, D::Minus1)?.contiguous()?);
    let once = quarter(images)?;
    let twice = quarter(&once)?;
    let thrice = quarter(&twice)?;
    let turned = Tensor::stack(&[images, &once, &twice, &thrice], 1)?;
    Ok(turned.reshape((4 * b, c, height, width))?)
}

/// The labels of [`rotate4`]: class `c` under `k` turns is `4 c + k`, rows in the same order.
///
/// # Errors
///
/// A label above `(u32::MAX - 3) / 4`.
pub fn rotate4_labels(labels: &[u32]) -> Result<Vec<u32>> {
    const LARGEST: u32 = (u32::MAX - 3) / 4;
    match labels.iter().position(|&label| label > LARGEST) {
        Some(row) => {
            let what = format!("label of row {row}");
            Err(Error::invalid("rotate4", what, format!("at most {LARGEST}"), labels[row]))
        }
        None => Ok(labels.iter().flat_map(|&label| (0..4).map(move |k| 4 * label + k)).collect()),
    }
}

/// Mixes every row with its partner: `lambda x + (1 - lambda) x[partners]` (mixup, Zhang et al. 2017, arXiv
/// 1710.09412).
///
/// Works on images and on hidden maps, for manifold mixup (Verma et al. 2018, arXiv 1806.05236). Gradients flow into
/// both rows. The papers draw one `lambda ~ Beta(alpha, alpha)` and one permutation per batch: [`draw_beta`],
/// [`draw_permutation`].
///
/// # Shapes
///
/// `x`: `[B, ..]`, real numbers; `partners`: `[B]`. Returns the shape of `x`.
///
/// # Errors
///
/// A scalar, not one partner per row, a partner `>= B`, a `lambda` outside 0 to 1.
pub fn mixup(x: &Tensor, partners: &[u32], lambda: f64) -> Result<Tensor> {
    const OP: &str = "mixup";
    check_lambda(OP, lambda)?;
    let other = rows(OP, x, partners)?;
    Ok(((x * lambda)? + (other * (1.0 - lambda))?)?)
}

/// The rectangle that cutmix pastes, with the size of the images that it lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutmixBox {
    height: usize,
    width: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl CutmixBox {
    const OP: &str = "cutmix";

    /// A rectangle around a uniform pixel. Drawn: its row, its column.
    ///
    /// # Errors
    ///
    /// A size of 0, a `lambda` outside 0 to 1.
    pub fn draw(height: usize, width: usize, lambda: f64, rng: &mut ChaCha8Rng) -> Result<Self> {
        let centre = (draw::below(height, rng), draw::below(width, rng));
        Self::from_centre(height, width, lambda, centre)
    }

    /// The rectangle of sides `trunc(S sqrt(1 - lambda))` around `centre` (row, column), clipped to the image.
    ///
    /// It goes from `c - side / 2` to `c + side / 2` (exclusive), halves cut off, so that an odd side loses a pixel.
    ///
    /// # Errors
    ///
    /// A size of 0, a centre outside the image, a `lambda` outside 0 to 1.
    pub fn from_centre(height: usize, width: usize, lambda: f64, centre: (usize, usize)) -> Result<Self> {
        check_lambda(Self::OP, lambda)?;
        for (what, at, size) in [("row", centre.0, height), ("column", centre.1, width)] {
            if at >= size {
                let what = format!("{what} of the centre in {height}x{width} images");
                return Err(Error::invalid(Self::OP, what, format!("less than {size}"), at));
            }
        }
        let part = (1.0 - lambda).sqrt();
        let around = |at: usize, size: usize| {
            let half = (size as f64 * part) as usize / 2;
            at.saturating_sub(half)..at.saturating_add(half).min(size)
        };
        Ok(Self { height, width, rows: around(centre.0, height), columns: around(centre.1, width) })
    }

    /// Rows that are pasted (dimension 2).
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Columns that are pasted (dimension 3).
    pub fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// The part of the image that stays, `1 - area / (H W)`: it takes the place of lambda in the loss.
    pub fn lambda_adjusted(&self) -> f64 {
        let area = self.rows.len() as f64 * self.columns.len() as f64;
        1.0 - area / (self.height as f64 * self.width as f64)
    }
}

/// Pastes a rectangle of each image's partner (cutmix, Yun et al. 2019, arXiv 1905.04899).
///
/// The paper draws `lambda ~ Beta(1, 1)`, the rectangle and a permutation once per batch; the loss weighs the labels of
/// the image and of its partner by [`CutmixBox::lambda_adjusted`]. Gradients flow.
///
/// # Shapes
///
/// `images`: `[B, C, H, W]`; `partners`: `[B]`. Returns the shape of `images`.
///
/// # Errors
///
/// Another rank, a rectangle for another size, not one partner per row, a partner `>= B`.
pub fn cutmix(images: &Tensor, partners: &[u32], patch: &CutmixBox) -> Result<Tensor> {
    const OP: &str = CutmixBox::OP;
    let (_, _, height, width) = four(OP, images)?;
    if (height, width) != (patch.height, patch.width) {
        let expected = format!("{}x{}", patch.height, patch.width);
        return Err(Error::invalid(OP, "images for this box", expected, format!("{height}x{width}")));
    }
    let other = rows(OP, images, partners)?;
    let place = |y: usize, x: usize| u8::from(patch.rows.contains(&y) && patch.columns.contains(&x));
    let mask: Vec<u8> = (0..height).flat_map(|y| (0..width).map(move |x| place(y, x))).collect();
    let mask = Tensor::from_vec(mask, (1, 1, height, width), images.device())?;
    Ok(mask.broadcast_as(images.shape())?.contiguous()?.where_cond(&other, images)?)
}

/// Draws `lambda ~ Beta(alpha, alpha)`, in 0 to 1, by two Gamma variates (Marsaglia and Tsang 2000).
///
/// The same bits on every platform. A tiny `alpha` gives 0 or 1, a huge one 1/2.
///
/// # Errors
///
/// An `alpha` that is not positive and finite.
pub fn draw_beta(alpha: f64, rng: &mut ChaCha8Rng) -> Result<f64> {
    if alpha > 0.0 && alpha.is_finite() {
        return Ok(draw::beta(alpha, rng));
    }
    Err(Error::invalid("draw_beta", "alpha", "positive and finite", alpha))
}

/// Draws a uniform permutation of `0 .. n` (Fisher and Yates).
pub fn draw_permutation(n: u32, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n).collect();
    shuffle(&mut order, rng);
    order
}

fn check_lambda(operation: &'static str, lambda: f64) -> Result<()> {
    if (0.0..=1.0).contains(&lambda) {
        return Ok(());
    }
    Err(Error::invalid(operation, "lambda", "0 to 1", lambda))
}

fn four(operation: &'static str, images: &Tensor) -> Result<(usize, usize, usize, usize)> {
    match *images.dims() {
        [b, c, h, w] if images.elem_count() > 0 => Ok((b, c, h, w)),
        _ => {
            let found = format!("{:?}", images.dims());
            Err(Error::invalid(operation, "shape of the images", "[B, C, H, W], none of them 0", found))
        }
    }
}

/// The partner of every row.
fn rows(operation: &'static str, x: &Tensor, partners: &[u32]) -> Result<Tensor> {
    let count = x.dims().first().copied().unwrap_or(0);
    if count == 0 || partners.len() != count {
        let found = format!("{} for shape {:?}", partners.len(), x.dims());
        return Err(Error::invalid(operation, "partners", "one per row, at least 1", found));
    }
    if let Some(&partner) = partners.iter().find(|&&partner| partner as usize >= count) {
        return Err(Error::invalid(operation, "partner", format!("less than {count}"), partner));
    }
    let index = Tensor::from_slice(partners, count, x.device())?;
    Ok(x.contiguous()?.index_select(&index, 0)?)
}

/// Reverses a dimension.
fn flip(x: &Tensor, dim: D) -> Result<Tensor> {
    use candle_core::shape::Dim;
    let last = x.dim(dim)? as u32;
    let dim = dim.to_index(x.shape(), "flip")?;
    let reversed = Tensor::from_iter((0..last).rev(), x.device())?;
    Ok(x.contiguous()?.index_select(&reversed, dim)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_rng;
    use candle_core::{DType, Device, Var};
    use proptest::prelude::*;

    const CPU: Device = Device::Cpu;

    fn counted(shape: (usize, usize, usize, usize)) -> Tensor {
        let (b, c, h, w) = shape;
        Tensor::arange(0f32, (b * c * h * w) as f32, &CPU).unwrap().reshape(shape).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn rotations_follow_their_definition() {
        let n = 5;
        let x = counted((2, 3, n, n));
        let turned = rotate4(&x).unwrap();
        assert_eq!(turned.dims(), [8, 3, n, n]);
        let (x, turned) = (values(&x), values(&turned));
        for (i, &value) in turned.iter().enumerate() {
            let (row, channel, r, c) = (i / (3 * n * n), i / (n * n) % 3, i / n % n, i % n);
            let (y, x_) = [(r, c), (c, n - 1 - r), (n - 1 - r, n - 1 - c), (n - 1 - c, r)][row % 4];
            assert_eq!(value, x[((row / 4 * 3 + channel) * n + y) * n + x_]);
        }
        assert_eq!(rotate4_labels(&[2, 0]).unwrap(), [8, 9, 10, 11, 0, 1, 2, 3]);
        assert!(rotate4_labels(&[0, 1 << 30]).unwrap_err().to_string().contains("label of row 1"));
        assert!(rotate4_labels(&[(1 << 30) - 1]).is_ok());
    }

    #[test]
    fn quarter_turns_of_pixels_agree_with_rotate4() {
        use crate::{Image, ImageShape, TransformConfig};
        let shape = ImageShape { channels: 3, height: 4, width: 4 };
        let pixels: Vec<u8> = (0..48).collect();
        let turned = values(&rotate4(&counted((1, 3, 4, 4))).unwrap());
        let turned: Vec<Vec<u8>> = turned.chunks(48).map(|x| x.iter().map(|&v| v as u8).collect()).collect();
        let mut seen = [0; 4];
        for row in 0..64 {
            let mut image = Image::new(shape, pixels.clone()).unwrap();
            let turn = TransformConfig::RandomQuarterTurn { probability: 1.0 };
            turn.apply(&mut image, &mut sample_rng(0, 0, row, 0)).unwrap();
            seen[turned.iter().position(|t| t == image.pixels()).unwrap()] += 1;
        }
        assert!(seen.iter().all(|&count| count > 5), "{seen:?}");
    }

    #[test]
    fn wrong_arguments_are_errors() {
        let x = counted((2, 3, 4, 5));
        let message = |result: Result<Tensor>| result.unwrap_err().to_string();
        assert!(message(rotate4(&x)).contains("height equal to width"));
        assert!(message(rotate4(&x.flatten_all().unwrap())).contains("[B, C, H, W]"));
        for lambda in [-0.1, 1.1, f64::NAN] {
            assert!(message(mixup(&x, &[0, 1], lambda)).contains("lambda: expected 0 to 1"));
            assert!(CutmixBox::from_centre(4, 5, lambda, (0, 0)).is_err());
        }
        assert!(message(mixup(&x, &[0], 0.5)).contains("one per row"));
        assert!(message(mixup(&x, &[0, 2], 0.5)).contains("partner: expected less than 2, found 2"));
        assert!(mixup(&Tensor::new(1f32, &CPU).unwrap(), &[], 0.5).is_err());
        let patch = CutmixBox::from_centre(5, 4, 0.5, (0, 0)).unwrap();
        assert!(message(cutmix(&x, &[0, 1], &patch)).contains("expected 5x4, found 4x5"));
        assert!(CutmixBox::from_centre(4, 5, 0.5, (4, 0)).is_err());
        assert!(CutmixBox::draw(0, 5, 0.5, &mut sample_rng(0, 0, 0, 0)).is_err());
        for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(draw_beta(alpha, &mut sample_rng(0, 0, 0, 0)).is_err());
        }
    }

    #[test]
    fn the_ends_of_lambda_give_one_of_the_images() {
        let x = counted((3, 1, 3, 5));
        let partners = [2, 0, 1];
        let other = rows("test", &x, &partners).unwrap();
        assert_eq!(values(&mixup(&x, &partners, 1.0).unwrap()), values(&x));
        assert_eq!(values(&mixup(&x, &partners, 0.0).unwrap()), values(&other));
        let nothing = CutmixBox::from_centre(3, 5, 1.0, (1, 2)).unwrap();
        assert_eq!(nothing.lambda_adjusted(), 1.0);
        assert_eq!(values(&cutmix(&x, &partners, &nothing).unwrap()), values(&x));
        // Sides 3 and 5 lose a pixel: rows 0..2, columns 0..4.
        let most = CutmixBox::from_centre(3, 5, 0.0, (1, 2)).unwrap();
        assert_eq!((most.rows(), most.columns()), (0..2, 0..4));
        assert_eq!(most.lambda_adjusted(), 1.0 - 8.0 / 15.0);
    }

    #[test]
    fn gradients_of_mixup_agree_with_finite_differences() {
        let start: Vec<f64> = (0..12).map(|i| (i as f64 * 0.7).sin()).collect();
        let weight = Tensor::from_iter((0..12).map(|i| (i as f64 * 1.3).cos()), &CPU).unwrap().reshape((3, 4)).unwrap();
        let loss = |x: &Tensor| {
            let mixed = mixup(x, &[1, 2, 2], 0.3).unwrap();
            (mixed.sqr().unwrap() * &weight).unwrap().sum_all().unwrap()
        };
        let x = Var::from_tensor(&Tensor::from_slice(&start, (3, 4), &CPU).unwrap()).unwrap();
        let gradient = loss(&x).backward().unwrap().get(&x).unwrap().flatten_all().unwrap();
        let gradient: Vec<f64> = gradient.to_vec1().unwrap();
        for (i, &slope) in gradient.iter().enumerate() {
            let at = |step: f64| {
                let mut moved = start.clone();
                moved[i] += step;
                loss(&Tensor::from_vec(moved, (3, 4), &CPU).unwrap()).to_scalar::<f64>().unwrap()
            };
            let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((slope - expected).abs() < 1e-8, "{i}: {slope} against {expected}");
        }
    }

    #[test]
    fn gradients_flow_through_rotations_and_cutmix() {
        let x = Var::from_tensor(&counted((2, 1, 3, 3)).to_dtype(DType::F64).unwrap()).unwrap();
        let turned = rotate4(&x).unwrap();
        let loss = turned.sqr().unwrap().sum_all().unwrap();
        let gradient = loss.backward().unwrap().get(&x).unwrap().clone();
        // Every pixel comes four times: d/dx 4 x^2.
        let expected = (x.as_tensor() * 8.0).unwrap();
        assert_eq!(
            gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap(),
            expected.flatten_all().unwrap().to_vec1::<f64>().unwrap()
        );
        let patch = CutmixBox::from_centre(3, 3, 0.4, (1, 1)).unwrap();
        assert_eq!(patch.rows(), 0..2);
        let loss = cutmix(&x, &[1, 0], &patch).unwrap().sqr().unwrap().sum_all().unwrap();
        let gradient = loss.backward().unwrap().get(&x).unwrap().clone();
        // A permutation shows every pixel once.
        let expected = (x.as_tensor() * 2.0).unwrap();
        assert_eq!(
            gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap(),
            expected.flatten_all().unwrap().to_vec1::<f64>().unwrap()
        );
    }

    #[test]
    fn beta_keeps_to_its_range_and_moments() {
        for alpha in [f64::MIN_POSITIVE, 5e-324, 1e-300, 1e-3, 0.4, 1.0, 2.0, 1e9, 1e300, f64::MAX] {
            for row in 0..200 {
                let lambda = draw_beta(alpha, &mut sample_rng(9, 0, row, 0)).unwrap();
                assert!((0.0..=1.0).contains(&lambda), "alpha {alpha}: {lambda}");
                assert!(alpha > 1e-9 || lambda == 0.0 || lambda == 1.0, "alpha {alpha}: {lambda}");
                assert!(alpha < 1e8 || (lambda - 0.5).abs() < 1e-3, "alpha {alpha}: {lambda}");
            }
        }
        for alpha in [0.1, 0.4, 1.0, 2.0] {
            let draws: Vec<f64> = (0..20_000).map(|i| draw_beta(alpha, &mut sample_rng(4, 0, i, 0)).unwrap()).collect();
            let n = draws.len() as f64;
            let mean = draws.iter().sum::<f64>() / n;
            let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let expected = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            assert!((mean - 0.5).abs() < 4.0 * (expected / n).sqrt(), "{alpha}: mean {mean}");
            assert!((variance / expected - 1.0).abs() < 0.05, "{alpha}: variance {variance}, {expected}");
        }
    }

    #[test]
    fn draws_keep_their_bits() {
        let rng = &mut sample_rng(1, 2, 3, 0);
        let drawn = [0.1, 0.4, 1.0, 8.0].map(|alpha| draw_beta(alpha, rng).unwrap().to_bits());
        assert_eq!(drawn, BETA_BITS);
        assert_eq!(draw_permutation(8, rng), PERMUTATION);
    }

    const BETA_BITS: [u64; 4] = [4566993979129033484, 4606469504956424197, 4597108020828098817, 4603289957636194827];
    const PERMUTATION: [u32; 8] = [7, 3, 5, 2, 6, 4, 0, 1];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn permutations_are_permutations(n in 0..200u32, seed: u64) {
            let mut drawn = draw_permutation(n, &mut sample_rng(seed, 0, 0, 0));
            drawn.sort_unstable();
            prop_assert!(drawn.into_iter().eq(0..n));
        }

        #[test]
        fn cutmix_pastes_its_box(h in 1..9usize, w in 1..9usize, lambda in 0.0..=1.0f64, seed: u64) {
            let x = counted((3, 2, h, w));
            let patch = CutmixBox::draw(h, w, lambda, &mut sample_rng(seed, 0, 0, 0)).unwrap();
            let mixed = values(&cutmix(&x, &[1, 2, 0], &patch).unwrap());
            let x = values(&x);
            let mut pasted = 0;
            for (i, &value) in mixed.iter().enumerate() {
                let (row, rest) = (i / (2 * h * w), i % (2 * h * w));
                let inside = patch.rows().contains(&(rest / w % h)) && patch.columns().contains(&(rest % w));
                let from = if inside { (row + 1) % 3 } else { row };
                pasted += usize::from(inside);
                prop_assert_eq!(value, x[from * 2 * h * w + rest]);
            }
            let kept = 1.0 - pasted as f64 / (6 * h * w) as f64;
            prop_assert!((patch.lambda_adjusted() - kept).abs() < 1e-12);
            // Clipping and cut off halves only make the box smaller.
            prop_assert!(patch.lambda_adjusted() >= lambda - 1e-12);
        }
    }
}
