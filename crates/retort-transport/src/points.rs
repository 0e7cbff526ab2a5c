//! A cloud of points.

use crate::{Error, Result};

/// `n` points of `d` finite coordinates each, row after row; all points weigh the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Points<'a> {
    name: &'static str,
    values: &'a [f64],
    width: usize,
}

impl<'a> Points<'a> {
    /// A view of `values` as rows of `width` coordinates; `name` is what errors call it ("student", "teacher").
    ///
    /// # Errors
    ///
    /// No row, `width` 0, a length that is no multiple of `width`, or a coordinate that is not finite.
    pub fn new(name: &'static str, values: &'a [f64], width: usize) -> Result<Self> {
        if width == 0 || values.is_empty() || !values.len().is_multiple_of(width) {
            let found = format!("{} values in rows of {width}", values.len());
            return Err(Error::Shape {
                what: name.into(),
                expected: "at least one whole row of width > 0".into(),
                found,
            });
        }
        match values.iter().position(|x| !x.is_finite()) {
            Some(index) => {
                Err(Error::Value { what: name.into(), expected: "a finite coordinate", found: values[index], index })
            }
            None => Ok(Self { name, values, width }),
        }
    }

    /// What errors call these points.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Number of points.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is at least one point")]
    pub fn len(&self) -> usize {
        self.values.len() / self.width
    }

    /// Number of coordinates of a point.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// All coordinates, row after row.
    #[must_use]
    pub fn values(&self) -> &'a [f64] {
        self.values
    }

    /// Point `i`; none if there are not that many.
    #[must_use]
    pub fn get(&self, i: usize) -> Option<&'a [f64]> {
        (i < self.len()).then(|| self.row(i))
    }

    pub(crate) fn row(&self, i: usize) -> &'a [f64] {
        &self.values[i * self.width..(i + 1) * self.width]
    }

    /// The points one by one.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &'a [f64]> + Clone {
        self.values.chunks_exact(self.width)
    }

    /// Refuses two clouds of different widths.
    pub(crate) fn same_width(&self, other: &Points<'_>) -> Result<()> {
        if self.width == other.width {
            return Ok(());
        }
        let what = format!("{} and {}", self.name, other.name);
        let found = format!("{} and {}", self.width, other.width);
        Err(Error::Shape { what, expected: "points of the same width".into(), found })
    }
}
